//! Handles on data in memory, with the manners of the real ones.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Connector, ConnectorStats, Route, TenantRoute};
use crate::{
    breaker::BreakerStatus,
    error::{Error, ErrorKind},
    tenant::{Access, DataSourceId, Role, Tenant, TenantId},
};

/// Keeps a `T` for every tenant and data source, and makes handles on it.
///
/// A tenant that is placed elsewhere finds an empty `T` there, as it would find an empty database.
pub struct MemoryConnector<T>(Arc<Stores<T>>);

/// Where a tenant's rows are, and whose they are.
type StoreMap<T> = HashMap<(DataSourceId, TenantId), Arc<Store<T>>>;

struct Stores<T> {
    make: Box<dyn Fn(&Tenant) -> T + Send + Sync>,
    stores: Mutex<StoreMap<T>>,
    /// Transactions that have begun and not ended.
    open: watch::Sender<usize>,
    /// Nothing is committed any more.
    ended: AtomicBool,
}

struct Store<T>(Mutex<Content<T>>);

struct Content<T> {
    data: Arc<T>,
    /// How many commits it has seen.
    commits: u64,
}

impl<T: Send + Sync + 'static> MemoryConnector<T> {
    /// Makes each tenant's data with `make` when it is first used.
    pub fn new(make: impl Fn(&Tenant) -> T + Send + Sync + 'static) -> Self {
        Self(Arc::new(Stores {
            make: Box::new(make),
            stores: Mutex::default(),
            open: watch::Sender::new(0),
            ended: AtomicBool::new(false),
        }))
    }
}

#[async_trait]
impl<T: Clone + Send + Sync + 'static> Connector for MemoryConnector<T> {
    type Handle = MemoryDb<T>;

    fn handle(&self, _: &Tenant, route: TenantRoute) -> Result<MemoryDb<T>, Error> {
        let shared = Arc::new(Shared {
            stores: Arc::clone(&self.0),
            route,
        });
        Ok(MemoryDb {
            shared,
            role: Role::default(),
        })
    }

    async fn close(&self, deadline: Duration) {
        let mut open = self.0.open.subscribe();
        let ended = open.wait_for(|open| *open == 0);
        // Whatever is still open at the deadline cannot commit, which is the end of it.
        let _ = tokio::time::timeout(deadline, ended).await;
        self.0.ended.store(true, Ordering::Release);
    }

    fn stats(&self) -> ConnectorStats {
        ConnectorStats {
            pools: locked(&self.0.stores).len(),
            connections: *self.0.open.borrow(),
            ..ConnectorStats::default()
        }
    }

    /// None: data in memory cannot be out of reach.
    fn breakers(&self) -> Vec<BreakerStatus> {
        Vec::new()
    }
}

/// A handle on one tenant's data in memory: reads, writes and transactions, refused as a real database's would be when
/// the tenant is suspended, open for reads alone, or the router is closed.
pub struct MemoryDb<T> {
    /// One reference count for each tenant and none for all, so that tenants do not meet in a cache line.
    shared: Arc<Shared<T>>,
    role: Role,
}

struct Shared<T> {
    stores: Arc<Stores<T>>,
    route: TenantRoute,
}

impl<T: Clone + Send + Sync + 'static> MemoryDb<T> {
    /// Whose data this is.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.shared.route.tenant()
    }

    /// For what it connects.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The same tenant through another role.
    #[must_use]
    pub fn with_role(&self, role: Role) -> Self {
        Self { role, ..self.clone() }
    }

    /// How long ago the control plane last confirmed where this tenant's data is.
    #[must_use]
    pub fn route_age(&self) -> Option<Duration> {
        self.shared.route.age()
    }

    /// Reads.
    ///
    /// # Errors
    /// [`Inactive`](ErrorKind::Inactive), [`Closed`](ErrorKind::Closed), or whatever keeps the route from being found.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read<R>(&self, read: impl FnOnce(&T) -> R + Send) -> Result<R, Error> {
        let route = self.shared.route.current().await?;
        let data = Arc::clone(&locked(&self.store(&route).0).data);
        Ok(read(&data))
    }

    /// Writes: what `write` did is kept when it returns.
    ///
    /// # Errors
    /// Those of [`MemoryDb::read`], and [`ReadOnly`](ErrorKind::ReadOnly).
    ///
    /// # Cancel safety
    /// Safe: `write` runs whole or not at all.
    pub async fn write<R>(&self, write: impl FnOnce(&mut T) -> R + Send) -> Result<R, Error> {
        let route = self.shared.route.current().await?;
        if !self.may_write(&route) {
            return Err(ErrorKind::ReadOnly.into());
        }
        let store = self.store(&route);
        let mut content = locked(&store.0);
        // Changed on a copy, so that a panic in `write` leaves the data as it was.
        let mut data = T::clone(&content.data);
        let result = write(&mut data);
        content.data = Arc::new(data);
        content.commits += 1;
        Ok(result)
    }

    /// Begins a transaction on a snapshot.
    ///
    /// # Errors
    /// Those of [`MemoryDb::read`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn begin(&self) -> Result<MemoryTx<T>, Error> {
        let route = self.shared.route.current().await?;
        let store = self.store(&route);
        let (data, commits) = {
            let content = locked(&store.0);
            (Arc::clone(&content.data), content.commits)
        };
        Ok(MemoryTx {
            store,
            data,
            commits,
            writable: self.may_write(&route),
            written: false,
            open: Open::new(&self.shared.stores),
        })
    }

    fn may_write(&self, route: &Route) -> bool {
        let tenant = route.access() == Access::ReadWrite || cfg!(biplane_mutant = "memory_writes_read_only");
        tenant && self.role != Role::ReadOnly
    }

    fn store(&self, route: &Route) -> Arc<Store<T>> {
        let stores = &self.shared.stores;
        let key = (route.tenant().placement.source, route.tenant().id);
        let make = || {
            let data = Arc::new((stores.make)(route.tenant()));
            Arc::new(Store(Mutex::new(Content { data, commits: 0 })))
        };
        Arc::clone(locked(&stores.stores).entry(key).or_insert_with(make))
    }
}

impl<T> Clone for MemoryDb<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            role: self.role,
        }
    }
}

/// A transaction in memory: it sees the data as they were when it began, and its own changes. Dropped without a commit,
/// it leaves nothing behind.
pub struct MemoryTx<T> {
    store: Arc<Store<T>>,
    data: Arc<T>,
    commits: u64,
    writable: bool,
    written: bool,
    open: Open<T>,
}

impl<T: Clone + Send + Sync + 'static> MemoryTx<T> {
    /// The data as this transaction sees them.
    #[must_use]
    pub fn read(&self) -> &T {
        &self.data
    }

    /// The data, to be changed.
    ///
    /// # Errors
    /// [`ReadOnly`](ErrorKind::ReadOnly) when the tenant was open for reads alone as the transaction began.
    pub fn write(&mut self) -> Result<&mut T, Error> {
        if !self.writable {
            return Err(ErrorKind::ReadOnly.into());
        }
        self.written = true;
        Ok(Arc::make_mut(&mut self.data))
    }

    /// Commits.
    ///
    /// # Errors
    /// [`TransactionConflict`](ErrorKind::TransactionConflict) when this transaction wrote and another one has committed
    /// since it began, [`Closed`](ErrorKind::Closed) after the deadline of the router's `close`; nothing is stored then.
    pub fn commit(self) -> Result<(), Error> {
        let mut content = locked(&self.store.0);
        if self.open.0.ended.load(Ordering::Acquire) {
            return Err(ErrorKind::Closed.into());
        }
        if !self.written {
            return Ok(());
        }
        if content.commits != self.commits {
            return Err(ErrorKind::TransactionConflict.into());
        }
        content.data = Arc::clone(&self.data);
        content.commits += 1;
        Ok(())
    }
}

/// Counts a transaction for as long as it lives.
struct Open<T>(Arc<Stores<T>>);

impl<T> Open<T> {
    fn new(stores: &Arc<Stores<T>>) -> Self {
        stores.open.send_modify(|open| *open += 1);
        Self(Arc::clone(stores))
    }
}

impl<T> Drop for Open<T> {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that runs under these locks leaves a half-made change behind when it panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> fmt::Debug for MemoryConnector<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryConnector")
    }
}

impl<T> fmt::Debug for MemoryDb<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDb")
            .field("tenant", &self.shared.route.tenant())
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for MemoryTx<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTx")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}
