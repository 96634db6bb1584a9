//! Handles on data in memory, with the manners of the real ones.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::{Connector, ConnectorStats, Route, TenantRoute};
use crate::{
    error::{Error, ErrorKind},
    tenant::{Access, DataSourceId, Role, Tenant, TenantId},
};

/// Keeps a `T` for every tenant and data source, and makes handles on it.
///
/// A tenant that is placed elsewhere finds an empty `T` there, as it would find an empty database.
pub struct MemoryConnector<T>(Arc<Stores<T>>);

struct Stores<T> {
    make: Box<dyn Fn(&Tenant) -> T + Send + Sync>,
    stores: Mutex<HashMap<(DataSourceId, TenantId), Arc<Store<T>>>>,
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
        }))
    }
}

#[async_trait]
impl<T: Clone + Send + Sync + 'static> Connector for MemoryConnector<T> {
    type Handle = MemoryDb<T>;

    fn handle(&self, _: &Tenant, route: TenantRoute) -> Result<MemoryDb<T>, Error> {
        Ok(MemoryDb {
            stores: Arc::clone(&self.0),
            route,
            role: Role::default(),
        })
    }

    async fn close(&self, _: Duration) {}

    fn stats(&self) -> ConnectorStats {
        ConnectorStats {
            pools: locked(&self.0.stores).len(),
            ..ConnectorStats::default()
        }
    }
}

/// A handle on one tenant's data in memory: reads, writes and transactions, refused as a real database's would be when
/// the tenant is suspended, open for reads alone, or the router is closed.
pub struct MemoryDb<T> {
    stores: Arc<Stores<T>>,
    route: TenantRoute,
    role: Role,
}

impl<T: Clone + Send + Sync + 'static> MemoryDb<T> {
    /// Whose data this is.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.route.tenant()
    }

    /// For what it connects.
    #[must_use]
    pub fn role(&self) -> Role {
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
        self.route.age()
    }

    /// Reads.
    ///
    /// # Errors
    /// [`Inactive`](ErrorKind::Inactive), [`Closed`](ErrorKind::Closed), or whatever keeps the route from being found.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read<R>(&self, read: impl FnOnce(&T) -> R + Send) -> Result<R, Error> {
        let route = self.route.current().await?;
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
        let route = self.route.current().await?;
        self.check_write(&route)?;
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
        let route = self.route.current().await?;
        let writable = self.check_write(&route).is_ok();
        let store = self.store(&route);
        let (data, commits) = {
            let content = locked(&store.0);
            (T::clone(&content.data), content.commits)
        };
        Ok(MemoryTx {
            store,
            data,
            commits,
            writable,
            written: false,
        })
    }

    fn check_write(&self, route: &Route) -> Result<(), Error> {
        if route.access() == Access::ReadWrite && self.role != Role::ReadOnly {
            Ok(())
        } else {
            Err(ErrorKind::ReadOnly.into())
        }
    }

    fn store(&self, route: &Route) -> Arc<Store<T>> {
        let key = (route.tenant().placement.source, route.tenant().id);
        let make = || {
            let data = Arc::new((self.stores.make)(route.tenant()));
            Arc::new(Store(Mutex::new(Content { data, commits: 0 })))
        };
        Arc::clone(locked(&self.stores.stores).entry(key).or_insert_with(make))
    }
}

impl<T> Clone for MemoryDb<T> {
    fn clone(&self) -> Self {
        Self {
            stores: Arc::clone(&self.stores),
            route: self.route.clone(),
            role: self.role,
        }
    }
}

/// A transaction in memory: it sees the data as they were when it began, and its own changes. Dropped without a commit,
/// it leaves nothing behind.
pub struct MemoryTx<T> {
    store: Arc<Store<T>>,
    data: T,
    commits: u64,
    writable: bool,
    written: bool,
}

impl<T: Send + Sync + 'static> MemoryTx<T> {
    /// The data as this transaction sees them.
    #[must_use]
    pub const fn read(&self) -> &T {
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
        Ok(&mut self.data)
    }

    /// Commits.
    ///
    /// # Errors
    /// [`TransactionConflict`](ErrorKind::TransactionConflict) when this transaction wrote and another one has committed
    /// since it began; nothing is stored then.
    pub fn commit(self) -> Result<(), Error> {
        if !self.written {
            return Ok(());
        }
        let mut content = locked(&self.store.0);
        if content.commits != self.commits {
            return Err(ErrorKind::TransactionConflict.into());
        }
        content.data = Arc::new(self.data);
        content.commits += 1;
        Ok(())
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
            .field("tenant", &self.route.tenant())
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
