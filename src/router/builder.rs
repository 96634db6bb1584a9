//! Putting a router together.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{Biplane, BrakeOptions, CacheOptions, Clock, FeedOptions, Router, feed::Feed};
use crate::{
    breaker::BreakerStatus,
    connector::{
        Connector, ConnectorStats, TenantRoute,
        memory::{MemoryConnector, MemoryDb},
    },
    error::Error,
    repository::{ChangeSource, TenantRepository},
    tenant::Tenant,
};

/// Settings from which a connector can be made.
pub trait ConnectorSettings {
    /// The connector.
    type Connector: Connector;

    /// Makes it, without I/O.
    ///
    /// # Errors
    /// [`InvalidConfiguration`](crate::error::ErrorKind::InvalidConfiguration) for settings that cannot work.
    fn connector(self) -> Result<Self::Connector, Error>;
}

/// A connector that is ready is its own settings.
impl<C: Connector> ConnectorSettings for C {
    type Connector = C;

    fn connector(self) -> Result<C, Error> {
        Ok(self)
    }
}

/// What a router is made of.
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<S> {
    repository: Arc<dyn TenantRepository>,
    pub(super) settings: S,
    cache: CacheOptions,
    brake: Option<BrakeOptions>,
    changes: Option<ChangeSource>,
    feed: FeedOptions,
    clock: Option<Clock>,
}

impl<H: Clone + Send + Sync + 'static> Biplane<H> {
    /// A router over a repository and a connector of any make. If the repository knows its
    /// [`change_source`](TenantRepository::change_source), as those of this crate do, the router follows it.
    pub fn builder<S>(repository: impl TenantRepository, connector: S) -> Builder<S>
    where
        S: ConnectorSettings,
        S::Connector: Connector<Handle = H>,
    {
        Builder {
            changes: repository.change_source(),
            repository: Arc::new(repository),
            settings: connector,
            cache: CacheOptions::default(),
            brake: Some(BrakeOptions::default()),
            feed: FeedOptions::default(),
            clock: None,
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Biplane<MemoryDb<T>> {
    /// A router whose tenants' data is in memory: a `T` each, made by `make` when it is first used.
    pub fn memory(
        repository: impl TenantRepository,
        make: impl Fn(&Tenant) -> T + Send + Sync + 'static,
    ) -> Builder<MemoryConnector<T>> {
        Self::builder(repository, MemoryConnector::new(make))
    }
}

impl<S: ConnectorSettings> Builder<S> {
    /// For how long routes are believed.
    pub fn cache(mut self, options: CacheOptions) -> Self {
        self.cache = options;
        self
    }

    /// When changes are held because they would close or move too many tenants at once.
    pub fn brake(mut self, options: BrakeOptions) -> Self {
        self.brake = Some(options);
        self
    }

    /// Lets every change act, whatever number of tenants it closes or moves. Routing can still be frozen.
    pub fn without_brake(mut self) -> Self {
        self.brake = None;
        self
    }

    /// What changes are followed by, instead of what the repository says: a [`ChangeSource`], or a log that is polled.
    pub fn changes(mut self, source: impl Into<ChangeSource>) -> Self {
        self.changes = Some(source.into());
        self
    }

    /// Follows no changes: routes go by their age alone.
    pub fn without_changes(mut self) -> Self {
        self.changes = None;
        self
    }

    /// How changes are followed.
    pub fn feed(mut self, options: FeedOptions) -> Self {
        self.feed = options;
        self
    }

    /// A clock other than the process's own, for tests.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Gives out something made of the handle instead of the handle, such as the application's own repositories. `map`
    /// is called once per route, by the first caller that gets it; the others wait, so it must not block.
    pub fn map<F, T>(self, map: F) -> Builder<Mapped<S, F, T>>
    where
        F: Fn(<S::Connector as Connector>::Handle) -> T + Send + Sync + 'static,
        T: Clone + Send + Sync + 'static,
    {
        let settings = Mapped {
            inner: self.settings,
            map,
            handle: PhantomData,
        };
        Builder {
            repository: self.repository,
            settings,
            cache: self.cache,
            brake: self.brake,
            changes: self.changes,
            feed: self.feed,
            clock: self.clock,
        }
    }

    /// Makes the router, without I/O of its own: no handle connects before it is used. The change feed begins at once
    /// inside a tokio runtime, otherwise with the first lookup.
    ///
    /// # Errors
    /// [`InvalidConfiguration`](crate::error::ErrorKind::InvalidConfiguration) for settings that cannot work.
    pub fn build(self) -> Result<Biplane<<S::Connector as Connector>::Handle>, Error> {
        self.cache.check()?;
        if let Some(brake) = &self.brake {
            brake.check()?;
        }
        self.feed.check()?;
        let connector = self.settings.connector()?;
        let clock = self.clock.unwrap_or_else(Clock::system);
        Ok(Biplane::new(Router::new(
            self.repository,
            self.cache,
            self.brake,
            clock,
            self.changes.map(|source| Feed::new(source, self.feed)),
            connector,
        )))
    }
}

/// A connector whose handles are made into something else.
pub struct Mapped<S, F, T> {
    inner: S,
    map: F,
    handle: PhantomData<fn() -> T>,
}

impl<S, F, T> ConnectorSettings for Mapped<S, F, T>
where
    S: ConnectorSettings,
    F: Fn(<S::Connector as Connector>::Handle) -> T + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    type Connector = MappedConnector<S::Connector, F, T>;

    fn connector(self) -> Result<Self::Connector, Error> {
        Ok(MappedConnector {
            inner: self.inner.connector()?,
            map: self.map,
            handle: PhantomData,
        })
    }
}

/// The connector of [`Mapped`].
pub struct MappedConnector<C, F, T> {
    inner: C,
    map: F,
    handle: PhantomData<fn() -> T>,
}

#[async_trait]
impl<C, F, T> Connector for MappedConnector<C, F, T>
where
    C: Connector,
    F: Fn(C::Handle) -> T + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    type Handle = T;

    fn handle(&self, tenant: &Tenant, route: TenantRoute) -> Result<T, Error> {
        Ok((self.map)(self.inner.handle(tenant, route)?))
    }

    async fn close(&self, deadline: Duration) {
        self.inner.close(deadline).await;
    }

    fn stats(&self) -> ConnectorStats {
        self.inner.stats()
    }

    fn breakers(&self) -> Vec<BreakerStatus> {
        self.inner.breakers()
    }
}

impl<S: fmt::Debug, F, T> fmt::Debug for Mapped<S, F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mapped").field(&self.inner).finish()
    }
}

impl<C: fmt::Debug, F, T> fmt::Debug for MappedConnector<C, F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MappedConnector").field(&self.inner).finish()
    }
}
