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
    tenant::{Access, DataSource, DataSourceId, Tenant, TenantId, TenantRecord, Version},
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
    /// Physical connections that were made with a login or an address which has been replaced.
    pub outdated: usize,
    /// Attempts to renew a login that failed while the old one still worked.
    pub failed_renewals: u64,
    /// Data sources in use without a `database_id`. They are not fenced: nothing there refuses a route that is too old.
    pub unfenced: usize,
}

/// What a router knows of a tenant at one moment: where its data is, and what it may do.
pub struct Route {
    /// As it is served.
    record: Arc<TenantRecord>,
    origin: Origin,
    /// In milliseconds of the router's clock.
    freshness: Freshness,
}

/// Who says what a route says.
enum Origin {
    ControlPlane,
    /// A file, instead of the control plane.
    Overridden {
        /// What the control plane says.
        base: Arc<TenantRecord>,
        /// Which of the things that files have said of the tenant so far, counted up.
        saying: u64,
    },
    /// A file alone.
    Given {
        /// As above.
        saying: u64,
    },
}

/// Which of two routes that lead to one data source says the newer thing of it; the greater one does.
///
/// The version of a data source tells in one life of the control plane, which ends when it is restored: what is read after
/// that counts, however low its version. And it tells of what one file says; what the next one says counts, whatever
/// versions are in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Precedence {
    saying: u64,
    life: u64,
    version: Version,
}

#[cfg_attr(
    not(feature = "postgres"),
    expect(dead_code, reason = "data in memory is led nowhere")
)]
impl Precedence {
    /// Whether the versions of both tell: those of credentials too.
    pub(crate) fn is_comparable_with(self, other: Self) -> bool {
        (self.saying, self.life) == (other.saying, other.life)
    }
}

impl Route {
    /// A route that the control plane confirmed at one moment and that may be served until another.
    pub(crate) const fn new(
        record: Arc<TenantRecord>,
        life: u64,
        confirmed_at: u64,
        fresh_until: u64,
    ) -> Self {
        Self {
            record,
            origin: Origin::ControlPlane,
            freshness: Freshness::new(life, confirmed_at, fresh_until),
        }
    }

    /// A route for those who asked before it was overtaken, and for nobody after them.
    pub(crate) const fn overtaken(record: Arc<TenantRecord>, life: u64, confirmed_at: u64) -> Self {
        Self {
            record,
            origin: Origin::ControlPlane,
            freshness: Freshness::retired(life, confirmed_at),
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
        versions(self.record())
    }

    /// What a file says of a tenant that nobody else has spoken of. Whoever looks it up asks the control plane.
    pub(crate) fn given(record: Arc<TenantRecord>, saying: u64, now: u64) -> Self {
        let freshness = Freshness::new(0, now, 0);
        freshness.expire_unread();
        Self {
            record,
            origin: Origin::Given { saying },
            freshness,
        }
    }

    /// The same with another record to be served instead of the control plane's, because of what a file said as the
    /// `saying`th thing, or with none.
    pub(crate) fn overridden_by(&self, served: Option<Arc<TenantRecord>>, saying: u64) -> Self {
        let base = match &self.origin {
            Origin::Overridden { base, .. } => base,
            Origin::ControlPlane | Origin::Given { .. } => &self.record,
        };
        let (record, origin) = match served {
            Some(served) => {
                let base = Arc::clone(base);
                (served, Origin::Overridden { base, saying })
            }
            None => (Arc::clone(base), Origin::ControlPlane),
        };
        Self {
            record,
            origin,
            freshness: self.freshness.copy(),
        }
    }

    /// Whether an override file says where the data is, and not the control plane.
    #[must_use]
    pub fn is_overridden(&self) -> bool {
        !matches!(self.origin, Origin::ControlPlane)
    }

    /// Whether an override file alone speaks of the tenant.
    pub(crate) const fn is_given(&self) -> bool {
        matches!(self.origin, Origin::Given { .. })
    }

    /// How what it says of the data source that it leads to compares with what others say.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(dead_code, reason = "data in memory is led nowhere")
    )]
    pub(crate) fn precedence(&self) -> Precedence {
        let saying = match self.origin {
            Origin::ControlPlane => 0,
            Origin::Overridden { saying, .. } | Origin::Given { saying } => saying,
        };
        Precedence {
            saying: if cfg!(biplane_mutant = "older_files_lead") {
                0
            } else {
                saying
            },
            life: self.life(),
            version: self.source().version,
        }
    }

    /// How what the control plane says of its data source compares with what it says elsewhere.
    pub(crate) fn precedence_of_record(&self) -> Precedence {
        Precedence {
            saying: 0,
            life: self.life(),
            version: self.record().source.version,
        }
    }

    fn life(&self) -> u64 {
        match cfg!(biplane_mutant = "restored_sources_are_too_old") {
            true => 0,
            false => self.freshness.life(),
        }
    }

    /// The control plane said it again, in that life.
    pub(crate) fn live_on(&self, life: u64) {
        self.freshness.live_on(life);
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

    /// What the control plane says, or a file if nobody else does.
    pub(crate) fn record(&self) -> &TenantRecord {
        match &self.origin {
            Origin::Overridden { base, .. } => base,
            Origin::ControlPlane | Origin::Given { .. } => &self.record,
        }
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
            .field("overridden", &self.is_overridden())
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

    /// The route as it is known, however old; `None` when it is not cached.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(dead_code, reason = "data in memory is led nowhere")
    )]
    fn known(&self, tenant: TenantId) -> Option<Arc<Route>>;

    /// What is known of a data source; `None` when no tenant who is cached is on it.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(dead_code, reason = "data in memory is led nowhere")
    )]
    fn of_source(&self, source: DataSourceId) -> Option<OfSource>;

    /// How long ago the route was confirmed.
    fn age(&self, tenant: TenantId) -> Option<Duration>;

    /// Whether an override file says where the data is.
    fn is_overridden(&self, tenant: TenantId) -> Option<bool>;
}

/// What a router knows of a data source, from whichever of its tenants was read last.
#[derive(Clone, Debug)]
#[cfg_attr(
    not(feature = "postgres"),
    expect(dead_code, reason = "data in memory is led nowhere")
)]
pub(crate) struct OfSource {
    /// A route whose record says the newest thing of it.
    pub(crate) newest: Arc<Route>,
    /// Whether that need not be asked for again yet.
    pub(crate) is_fresh: bool,
    /// Of whom to ask for it: one who is on it.
    pub(crate) tenant: TenantId,
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

    /// The router that it belongs to.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(dead_code, reason = "data in memory is led nowhere")
    )]
    pub(crate) fn routes(&self) -> &Arc<dyn Routes> {
        &self.routes
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

    /// Whether an override file says where the data is, and not the control plane; `None` when the route is not cached.
    #[must_use]
    pub fn is_overridden(&self) -> Option<bool> {
        self.routes.is_overridden(self.tenant)
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
