//! From a route to a handle.
//!
//! A [`Connector`] makes the handle that a router gives out, once per route and without I/O. The handle finds its
//! database through a [`TenantRoute`], which asks the router anew at every use: a handle that is kept does not keep an
//! old route alive.

mod freshness;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;

use std::{
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;

use self::freshness::Freshness;
pub(crate) use self::freshness::Standing;
use crate::{
    breaker::BreakerStatus,
    error::{Error, ErrorKind},
    tenant::{Access, DataSource, Tenant, TenantId, TenantRecord, Version},
};

/// Makes handles.
#[async_trait]
pub trait Connector: Debug + Send + Sync + 'static {
    /// What a router gives out. Cloned for every lookup, so it should be little more than an `Arc`.
    type Handle: Clone + Send + Sync + 'static;

    /// A handle on this tenant's data. Must not block: connections are made when the handle is used.
    ///
    /// # Errors
    /// When no handle can be made for this tenant at all. What may get better is an error of the handle's use.
    fn handle(&self, tenant: &Tenant, route: TenantRoute) -> Result<Self::Handle, Error>;

    /// Ends all connections; what is in use may go on until `deadline`.
    ///
    /// # Cancel safety
    /// Must stay closed when it is cancelled.
    async fn close(&self, deadline: Duration);

    /// How its connections are doing.
    fn stats(&self) -> ConnectorStats;

    /// How each of its breakers is doing; none for a connector that has none.
    fn breakers(&self) -> Vec<BreakerStatus>;
}

/// How a connector's connections are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectorStats {
    /// Pools: databases, times roles, times credentials in use.
    pub pools: usize,
    /// Physical connections, those that are being opened or closed included.
    pub connections: usize,
    /// Connections that nobody uses.
    pub resting: usize,
    /// Callers that wait for a connection.
    pub waiting: usize,
    /// Servers and logins that failed and are left alone for now.
    pub open_breakers: usize,
    /// Callers that were refused at once because of those.
    pub refused: u64,
}

/// What a router knows of a tenant at one moment: where its data is, and what it may do.
pub struct Route {
    record: Arc<TenantRecord>,
    /// In milliseconds of the router's clock.
    freshness: Freshness,
}

impl Route {
    /// A route that the control plane confirmed at one moment and that may be served until another.
    pub(crate) const fn new(record: Arc<TenantRecord>, confirmed_at: u64, fresh_until: u64) -> Self {
        Self {
            record,
            freshness: Freshness::new(confirmed_at, fresh_until),
        }
    }

    /// A route for those who asked before it was overtaken, and for nobody after them.
    pub(crate) const fn overtaken(record: Arc<TenantRecord>, confirmed_at: u64) -> Self {
        Self {
            record,
            freshness: Freshness::retired(confirmed_at),
        }
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.record.tenant
    }

    /// Where its data is.
    #[must_use]
    pub fn source(&self) -> &Arc<DataSource> {
        &self.record.source
    }

    /// What its status lets through.
    #[must_use]
    pub fn access(&self) -> Access {
        self.record.tenant.status.access()
    }

    /// The versions that order the routes of one tenant.
    pub(crate) fn versions(&self) -> (Version, Version) {
        versions(&self.record)
    }

    #[inline]
    pub(crate) fn is_fresh(&self, now: u64) -> bool {
        self.freshness.holds(now)
    }

    pub(crate) fn confirmed_at(&self) -> u64 {
        self.freshness.confirmed_at()
    }

    /// Lets it be served until then, unless it was retired.
    pub(crate) fn extend(&self, fresh_until: u64) {
        self.freshness.extend(fresh_until);
    }

    /// The control plane said again, at that moment, what it says.
    pub(crate) fn confirm(&self, confirmed_at: u64, fresh_until: u64) {
        self.freshness.confirm(confirmed_at, fresh_until);
    }

    /// It has changed, and is served as it was until then all the same.
    pub(crate) fn hold(&self, until: u64) {
        self.freshness.hold(until);
    }

    /// Its tenant or data source has changed: whoever comes next asks.
    pub(crate) fn expire(&self) {
        self.freshness.expire();
    }

    pub(crate) fn standing(&self) -> Standing {
        self.freshness.standing()
    }

    /// Whether the next that is read replaces it, also one of a lower version.
    pub(crate) fn takes_any_version(&self) -> bool {
        self.freshness.takes_any_version()
    }

    /// Changes of it may have been missed.
    pub(crate) fn doubt(&self) {
        self.freshness.doubt();
    }

    /// Changes of it may have been missed, and versions may have fallen.
    pub(crate) fn doubt_versions(&self) {
        self.freshness.doubt_versions();
    }

    /// It was read anew, after whatever made it doubtful.
    pub(crate) fn reassure(&self) {
        self.freshness.reassure();
    }

    pub(crate) fn record(&self) -> &TenantRecord {
        &self.record
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.freshness.is_retired()
    }

    /// It must not be served any more.
    pub(crate) fn retire(&self) {
        self.freshness.retire();
    }

    /// The route, if the tenant's status lets anything through.
    pub(crate) fn open(self: Arc<Self>) -> Result<Arc<Self>, Error> {
        if cfg!(biplane_mutant = "held_handles_ignore_status") {
            return Ok(self);
        }
        self.check_open().map(|()| self)
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match self.access() {
            Access::Refused => Err(ErrorKind::Inactive {
                status: self.record.tenant.status,
            }
            .into()),
            Access::Read | Access::ReadWrite => Ok(()),
        }
    }
}

/// A tenant's version comes first: only while the tenant stays the same does it stay on the same data source, whose
/// version can then be compared.
pub(crate) fn versions(record: &TenantRecord) -> (Version, Version) {
    (record.tenant.version, record.source.version)
}

impl Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tenant {
            id, status, version, ..
        } = self.tenant();
        f.debug_struct("Route")
            .field("tenant", id)
            .field("status", status)
            .field("version", version)
            .finish_non_exhaustive()
    }
}

/// Where handles find the current route: implemented by the router, named here because handles are made below it.
#[async_trait]
pub(crate) trait Routes: Debug + Send + Sync + 'static {
    /// The route as it is known now; `None` when the control plane must be asked.
    fn current(&self, tenant: TenantId) -> Option<Result<Arc<Route>, Error>>;

    /// The route, from the control plane if need be. Fails when the tenant's status lets nothing through.
    async fn route(&self, tenant: TenantId) -> Result<Arc<Route>, Error>;

    /// The route as the control plane has it now, whatever is known. If it cannot tell, what is known stays known.
    async fn reload(&self, tenant: TenantId) -> Result<Arc<Route>, Error>;

    /// How long ago the route was confirmed.
    fn age(&self, tenant: TenantId) -> Option<Duration>;
}

/// A tenant's way to its current route, kept by a handle.
#[derive(Clone)]
pub struct TenantRoute {
    tenant: TenantId,
    routes: Arc<dyn Routes>,
}

impl TenantRoute {
    pub(crate) fn new(tenant: TenantId, routes: Arc<dyn Routes>) -> Self {
        Self { tenant, routes }
    }

    /// Whose route it is.
    #[must_use]
    pub const fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The current route. Answered from the cache as a rule; ask for every use of the handle.
    ///
    /// # Errors
    /// [`Inactive`](ErrorKind::Inactive) when the tenant's status lets nothing through, [`Closed`](ErrorKind::Closed)
    /// when the router is, and whatever keeps the control plane from being asked.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn current(&self) -> Result<Arc<Route>, Error> {
        match self.routes.current(self.tenant) {
            Some(route) => route,
            None => self.routes.route(self.tenant).await,
        }
    }

    /// Whether a route that was current still is.
    ///
    /// # Errors
    /// As [`TenantRoute::current`], if the reason is known without asking.
    pub fn is_current(&self, route: &Arc<Route>) -> Result<bool, Error> {
        match self.routes.current(self.tenant) {
            Some(now) => Ok(Arc::ptr_eq(&now?, route)),
            None => Ok(false),
        }
    }

    /// The route as the control plane has it now. For those who found that the current one does not work; what is known
    /// is kept if it cannot be asked.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(dead_code, reason = "data in memory needs no login")
    )]
    pub(crate) async fn reload(&self) -> Result<Arc<Route>, Error> {
        self.routes.reload(self.tenant).await
    }

    /// How long ago the control plane last confirmed the route; `None` when it is not cached.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.routes.age(self.tenant)
    }
}

impl Debug for TenantRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TenantRoute").field(&self.tenant).finish()
    }
}
