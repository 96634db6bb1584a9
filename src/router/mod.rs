//! From a name to a handle: the one call that a service makes for every request.
//!
//! [`Biplane`] is what a service holds. Warm, [`Biplane::route`] is a lookup in a table that needs no lock and no
//! allocation; cold, the control plane is asked once, whatever the number of callers, and for many tenants in one query.
//!
//! What a caller may rely on is written at [`TenantRouter`].

mod builder;
mod clock;
mod core;
mod feed;
mod flights;
#[cfg(all(test, biplane_shuttle))]
mod interleavings;
mod known;
mod options;
mod pacing;
#[cfg(feature = "postgres")]
mod postgres;
mod stats;
mod sync;
mod table;
mod warm_up;

use std::{
    fmt::{self, Debug},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;

#[cfg(feature = "postgres")]
pub use self::postgres::CheckedBuilder;
pub use self::{
    builder::{Builder, ConnectorSettings, Mapped, MappedConnector},
    clock::Clock,
    feed::{FeedEngine, FeedHealth},
    known::BrakeHealth,
    options::{BrakeOptions, CacheOptions, FeedOptions},
    stats::RouterStats,
    warm_up::WarmUp,
};
use self::{core::Core, feed::Feed, table::Table};
#[cfg(feature = "postgres")]
use crate::plane::TenantDb;
use crate::{
    breaker::BreakerStatus,
    connector::{Connector, Routes, TenantRoute},
    error::{Error, ErrorKind},
    repository::TenantRepository,
    tenant::{Seq, TenantId, TenantRef},
};

/// Turns names into handles.
///
/// # Contract
/// - The handle is for the tenant that the name belonged to at some moment between the last confirmation of the route
///   and now, never for another.
/// - [`UnknownTenant`](ErrorKind::UnknownTenant) means that the control plane answered and knows no such name. Whatever
///   kept it from answering is another error.
/// - A tenant whose status lets nothing through gets [`Inactive`](ErrorKind::Inactive) and no handle. A handle that was
///   given out before finds out at its next use.
/// - A change that is announced by [`invalidate`](TenantRouter::invalidate) acts at once. A name that changes hands
///   concerns two tenants; announce both.
/// - Any other acts, while the change log can be read, within the bound that [`FeedOptions`] states. While it cannot, or
///   without one, a route is read anew when it is no longer fresh, and served until that was done for no longer than
///   [`CacheOptions`] say.
/// - What is known is not replaced by what is older: a lower version of the tenant, or of the name.
/// - A change that would close or move more than a set share of the open tenants at once does not act before somebody says
///   that it is meant, and none does while routing is frozen: open tenants are served as they were, as long as the age of
///   their routes allows, and [`RouterStats::brake`] tells.
#[async_trait]
pub trait TenantRouter: Debug + Send + Sync + 'static {
    /// What a name leads to.
    type Handle: Clone + Send + Sync + 'static;

    /// The handle of a name whose route is cached and may be served without asking. Neither waits nor allocates.
    fn cached(&self, name: &TenantRef<'_>) -> Option<Self::Handle>;

    /// The handle of a name.
    ///
    /// # Errors
    /// [`UnknownTenant`](ErrorKind::UnknownTenant), [`Inactive`](ErrorKind::Inactive),
    /// [`MalformedRecord`](ErrorKind::MalformedRecord),
    /// [`ControlPlaneUnavailable`](ErrorKind::ControlPlaneUnavailable),
    /// [`TooManyUnknownNames`](ErrorKind::TooManyUnknownNames) or [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    /// Safe: a caller that leaves harms no other that waits for the same tenant.
    async fn route(&self, name: &TenantRef<'_>) -> Result<Self::Handle, Error>;

    /// Forgets a tenant: once this returns, no later call yields anything that was read before it.
    ///
    /// # Cancel safety
    /// Safe: done or not begun.
    async fn invalidate(&self, tenant: TenantId);

    /// Lets the changes that the brake holds act: whoever asks once this returns is told how things are. It engages
    /// again when as much changes anew. See [`BrakeOptions`].
    ///
    /// # Cancel safety
    /// Safe: done or not begun.
    async fn release_brake(&self);

    /// Keeps the open tenants that are cached as they are, whatever changes, until [`thaw`](TenantRouter::thaw): for as
    /// long as the age of their routes allows. Others are loaded as usual.
    ///
    /// # Cancel safety
    /// Safe: done or not begun.
    async fn freeze(&self);

    /// Ends [`freeze`](TenantRouter::freeze): whatever has changed meanwhile acts, unless the control plane has frozen
    /// routing as well or the brake holds it.
    ///
    /// # Cancel safety
    /// Safe: done or not begun.
    async fn thaw(&self);

    /// Gives out nothing more and ends all connections; work in progress may go on until `deadline`. Handles that
    /// were given out answer [`Closed`](ErrorKind::Closed) from now on.
    ///
    /// # Cancel safety
    /// Safe: the router stays closed; call it again to go on waiting.
    async fn close(&self, deadline: Duration);

    /// How the router is doing.
    fn stats(&self) -> RouterStats;

    /// How each breaker is doing: what is left alone for now, and until when.
    fn breakers(&self) -> Vec<BreakerStatus>;
}

/// A router, as a service holds it: cheap to clone, and without a type parameter to carry through the application.
///
/// ```
/// use biplane::{Biplane, repository::MemoryControl};
///
/// # #[derive(Clone, Default)] struct Notes;
/// let biplane: Biplane<_> = Biplane::memory(MemoryControl::new(), |_tenant| Notes::default()).build()?;
/// # Ok::<(), biplane::error::Error>(())
/// ```
pub struct Biplane<
    #[cfg(feature = "postgres")] H: Clone + Send + Sync + 'static = TenantDb,
    #[cfg(not(feature = "postgres"))] H: Clone + Send + Sync + 'static,
>(Arc<dyn TenantRouter<Handle = H>>);

impl<H: Clone + Send + Sync + 'static> Biplane<H> {
    /// A router of any make.
    #[must_use]
    pub fn new(router: impl TenantRouter<Handle = H>) -> Self {
        Self(Arc::new(router))
    }

    /// The handle of a tenant, named by a parsed slug, id or domain. Warm, it neither waits nor allocates.
    ///
    /// # Errors
    /// As [`TenantRouter::route`].
    ///
    /// # Cancel safety
    /// Safe, as [`TenantRouter::route`].
    #[inline]
    pub fn route<'a>(&'a self, name: impl Into<TenantRef<'a>>) -> Routing<'a, H> {
        Routing {
            biplane: self,
            name: name.into(),
            cold: None,
        }
    }

    /// The handle of a tenant whose route is cached and may be served without asking.
    pub fn cached<'a>(&self, name: impl Into<TenantRef<'a>>) -> Option<H> {
        self.0.cached(&name.into())
    }

    /// Forgets a tenant, as [`TenantRouter::invalidate`].
    ///
    /// # Cancel safety
    /// Safe: done or not begun.
    pub async fn invalidate(&self, tenant: TenantId) {
        self.0.invalidate(tenant).await;
    }

    /// Lets the changes that the brake of this process holds act, as [`TenantRouter::release_brake`]. For all processes:
    /// [`TenantAdmin::release_brake`](crate::repository::TenantAdmin::release_brake), or
    /// `select biplane_control.release_brake()`.
    ///
    /// # Cancel safety
    /// Safe: done or not begun.
    pub async fn release_brake(&self) {
        self.0.release_brake().await;
    }

    /// Freezes the routes of this process, as [`TenantRouter::freeze`]. For all processes:
    /// [`TenantAdmin::freeze`](crate::repository::TenantAdmin::freeze), or `select biplane_control.freeze()`.
    ///
    /// # Cancel safety
    /// Safe: done or not begun.
    pub async fn freeze(&self) {
        self.0.freeze().await;
    }

    /// Lets them go on, as [`TenantRouter::thaw`].
    ///
    /// # Cancel safety
    /// Safe: done or not begun.
    pub async fn thaw(&self) {
        self.0.thaw().await;
    }

    /// Closes the router, as [`TenantRouter::close`].
    ///
    /// # Cancel safety
    /// Safe: the router stays closed; call it again to go on waiting.
    pub async fn close(&self, deadline: Duration) {
        self.0.close(deadline).await;
    }

    /// How the router is doing.
    #[must_use]
    pub fn stats(&self) -> RouterStats {
        self.0.stats()
    }

    /// How each breaker is doing that stands before something in use, or that is open: which endpoints and logins are
    /// left alone for now, until when, and how many callers that has cost. [`RouterStats::connector`] has their number.
    /// It is for those who look, and takes time in proportion to the endpoints and logins in use.
    #[must_use]
    pub fn breakers(&self) -> Vec<BreakerStatus> {
        self.0.breakers()
    }

    /// Up to where the changes of the control plane act in this process, for the heartbeat that tells others;
    /// [`Seq::ZERO`] before the change log was first read, and without one.
    #[must_use]
    pub fn applied(&self) -> Seq {
        self.stats().feed.applied.unwrap_or_default()
    }
}

impl<H: Clone + Send + Sync + 'static> Clone for Biplane<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<H: Clone + Send + Sync + 'static> Debug for Biplane<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Biplane").field(&self.0).finish()
    }
}

/// The future of [`Biplane::route`], which comes to a handle or an [`Error`].
///
/// Written by hand because that of an `async fn` takes as long as the lookup.
#[must_use = "futures do nothing unless they are awaited"]
pub struct Routing<'a, H: Clone + Send + Sync + 'static> {
    biplane: &'a Biplane<H>,
    name: TenantRef<'a>,
    /// Once the cache had no answer.
    cold: Option<Cold<'a, H>>,
}

type Cold<'a, H> = Pin<Box<dyn Future<Output = Result<H, Error>> + Send + 'a>>;

impl<H: Clone + Send + Sync + 'static> Future for Routing<'_, H> {
    type Output = Result<H, Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<H, Error>> {
        let this = self.get_mut();
        if this.cold.is_none()
            && let Some(handle) = this.biplane.0.cached(&this.name)
        {
            return Poll::Ready(Ok(handle));
        }
        this.poll_cold(context)
    }
}

impl<'a, H: Clone + Send + Sync + 'static> Routing<'a, H> {
    #[cold]
    fn poll_cold(&mut self, context: &mut Context<'_>) -> Poll<Result<H, Error>> {
        let Self { biplane, name, cold } = self;
        let (biplane, name): (&'a Biplane<H>, TenantRef<'a>) = (biplane, *name);
        cold.get_or_insert_with(|| Box::pin(async move { biplane.0.route(&name).await }))
            .as_mut()
            .poll(context)
    }
}

impl<H: Clone + Send + Sync + 'static> Debug for Routing<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Routing").field(&self.name).finish()
    }
}

/// The router that biplane ships, over any repository and connector.
struct Router<C: Connector> {
    core: Arc<Core<C::Handle>>,
    /// The core, as handles see it.
    routes: Arc<dyn Routes>,
    /// Here and not in the core, which the handles in it keep alive.
    table: Arc<Table<C::Handle>>,
    connector: C,
}

impl<C: Connector> Router<C> {
    fn new(
        repository: Arc<dyn TenantRepository>,
        options: CacheOptions,
        brake: Option<BrakeOptions>,
        clock: Clock,
        feed: Option<Feed>,
        connector: C,
    ) -> Self {
        let table = Arc::new(Table::new());
        let core = Arc::new(Core::new(repository, options, brake, clock, feed, &table));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            core.follow_changes(&runtime);
        }
        Self {
            routes: Arc::new(Arc::clone(&core)),
            core,
            table,
            connector,
        }
    }
}

#[async_trait]
impl<C: Connector> TenantRouter for Router<C> {
    type Handle = C::Handle;

    fn cached(&self, name: &TenantRef<'_>) -> Option<C::Handle> {
        let handle = self.table.handle(name, self.core.now())?;
        self.core.counters.hit();
        Some(handle)
    }

    async fn route(&self, name: &TenantRef<'_>) -> Result<C::Handle, Error> {
        let entry = self.core.resolve(name).await?;
        if self.core.known.is_closed() {
            return Err(ErrorKind::Closed.into());
        }
        entry.handle(|tenant| {
            let route = TenantRoute::new(tenant.id, Arc::clone(&self.routes));
            self.connector.handle(tenant, route)
        })
    }

    async fn invalidate(&self, tenant: TenantId) {
        self.core.known.invalidate(tenant);
    }

    async fn release_brake(&self) {
        self.core.release_brake();
    }

    async fn freeze(&self) {
        self.core.known.freeze(self.core.now());
    }

    async fn thaw(&self) {
        self.core.thaw();
    }

    async fn close(&self, deadline: Duration) {
        self.core.stop_following();
        self.core.known.close();
        self.connector.close(deadline).await;
    }

    fn stats(&self) -> RouterStats {
        let core = &self.core;
        let brake = core.known.brake_health(core.now());
        core.counters.snapshot(
            core.known.tenants(),
            self.connector.stats(),
            core.feed_health(),
            brake,
        )
    }

    fn breakers(&self) -> Vec<BreakerStatus> {
        if cfg!(biplane_mutant = "breakers_are_not_told") {
            return Vec::new();
        }
        self.connector.breakers()
    }
}

impl<C: Connector> Drop for Router<C> {
    fn drop(&mut self) {
        self.core.stop_following();
    }
}

impl<C: Connector> Debug for Router<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("tenants", &self.core.known.tenants())
            .field("connector", &self.connector)
            .finish_non_exhaustive()
    }
}
