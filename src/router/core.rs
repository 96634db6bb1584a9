//! What a router knows and how it comes to know it: routes by tenant, unknown names, loads.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::FutureExt;

use super::{
    CacheOptions, Clock, clock,
    flights::{Flight, Flights, Joined, Moment},
    stats::Counters,
};
use crate::{
    connector::{Route, Routes},
    error::{Error, ErrorKind},
    repository::{Found, TenantRepository},
    tenant::{Access, Resolved, TenantId, TenantName, TenantRef, Version},
};

/// Queries to the control plane at a time. Names that are asked for meanwhile gather for the next one, so two are
/// enough for any number of cold tenants.
const MAX_QUERIES: usize = 2;

/// Names in one query.
const MAX_NAMES: usize = 500;

/// What a lookup came to.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) route: Arc<Route>,
    /// The version of the slug or domain that was looked up.
    pub(super) name_version: Option<Version>,
}

pub(super) struct Core {
    repository: Arc<dyn TenantRepository>,
    options: CacheOptions,
    pub(super) clock: Clock,
    pub(super) counters: Counters,
    routes: papaya::HashMap<TenantId, Arc<Route>, foldhash::fast::RandomState>,
    unknown: moka::sync::Cache<TenantName, ()>,
    flights: Mutex<Flights<Answer>>,
    closed: AtomicBool,
}

impl Core {
    pub(super) fn new(repository: Arc<dyn TenantRepository>, options: CacheOptions, clock: Clock) -> Self {
        let unknown = moka::sync::Cache::builder()
            .max_capacity(options.unknown_names)
            .expire_after(Jitter(options.unknown_for))
            .build();
        Self {
            repository,
            options,
            clock,
            counters: Counters::default(),
            routes: papaya::HashMap::with_hasher(foldhash::fast::RandomState::default()),
            unknown,
            flights: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// The route of a name, from the control plane unless `known` may still be served. `known` is what the name led to
    /// the last time.
    pub(super) async fn resolve(
        self: &Arc<Self>,
        name: &TenantRef<'_>,
        known: Option<Answer>,
    ) -> Result<Answer, Error> {
        if self.is_closed() {
            return Err(ErrorKind::Closed.into());
        }
        if let Some(known) = known
            .as_ref()
            .filter(|known| known.route.is_fresh(self.clock.now()))
        {
            return Ok(known.clone());
        }
        let name = name.to_name();
        if self.unknown.contains_key(&name) {
            self.counters.known_unknown.fetch_add(1, Ordering::Relaxed);
            return Err(ErrorKind::UnknownTenant.into());
        }
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        match self.load(&name).await {
            Err(error) if error.kind() == ErrorKind::ControlPlaneUnavailable => {
                self.serve_stale(&name, known).ok_or(error)
            }
            answer => answer,
        }
    }

    /// Once this returns, nothing that was read about the tenant before the call is given to anybody who asks later.
    pub(super) fn invalidate(&self, tenant: TenantId) {
        let mut flights = self.flights();
        flights.invalidate(tenant);
        if let Some(route) = self.routes.pin().remove(&tenant) {
            route.retire();
        }
        // A tenant that was created or renamed may have a name that was unknown until now.
        self.unknown.invalidate_all();
    }

    /// Gives nothing out any more.
    pub(super) fn close(&self) {
        // Under the lock, so that no load publishes a route after this.
        let _flights = self.flights();
        self.closed.store(true, Ordering::Release);
        let routes = self.routes.pin();
        routes.values().for_each(|route| route.retire());
        routes.clear();
        self.unknown.invalidate_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn cached(&self) -> usize {
        self.routes.len()
    }

    async fn load(self: &Arc<Self>, name: &TenantName) -> Result<Answer, Error> {
        let joined = self.flights().join(name, MAX_QUERIES);
        let flight = match joined {
            Joined::Wait(flight) => flight,
            Joined::StartWorker(flight) => {
                tokio::spawn(Arc::clone(self).work());
                flight
            }
        };
        flight
            .outcome()
            .await
            .unwrap_or_else(|| Err(ErrorKind::Internal.into()))
    }

    /// Asks the control plane until nobody waits for an answer.
    async fn work(self: Arc<Self>) {
        loop {
            let Some((begun, batch)) = self.flights().take(MAX_NAMES) else {
                return;
            };
            let names: Vec<TenantRef<'_>> = batch.iter().map(|flight| flight.name.as_ref()).collect();
            let confirmed_at = self.clock.now();
            let outcomes = self.find(&names).await;
            self.land(&batch, outcomes, begun, confirmed_at);
        }
    }

    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        let started = Instant::now();
        let find = std::panic::AssertUnwindSafe(self.repository.find(names)).catch_unwind();
        let found = match tokio::time::timeout(self.options.load_timeout, find).await {
            Ok(Ok(Ok(found))) if found.len() == names.len() => Ok(found),
            Ok(Ok(Ok(_))) => Err(Error::new(ErrorKind::Internal)
                .detail("the repository did not give one outcome for each name")),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_panic)) => Err(Error::new(ErrorKind::Internal).detail("the repository panicked")),
            Err(_) => {
                Err(Error::new(ErrorKind::ControlPlaneUnavailable).detail("no answer within load_timeout"))
            }
        };
        let counters = &self.counters;
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        counters.loads.fetch_add(1, Ordering::Relaxed);
        counters
            .names_loaded
            .fetch_add(names.len() as u64, Ordering::Relaxed);
        counters.load_micros.fetch_add(micros, Ordering::Relaxed);
        counters
            .failed_loads
            .fetch_add(u64::from(found.is_err()), Ordering::Relaxed);
        found
    }

    fn land(
        &self,
        batch: &[Arc<Flight<Answer>>],
        outcomes: Result<Vec<Found>, Error>,
        begun: Moment,
        confirmed_at: u64,
    ) {
        let outcomes = match outcomes {
            Ok(outcomes) => outcomes,
            Err(error) => batch.iter().map(|_| Err(error.clone())).collect(),
        };
        for (flight, outcome) in batch.iter().zip(outcomes) {
            let mut flights = self.flights();
            let answer = match outcome {
                Ok(Some(resolved)) => Ok(self.publish(&flights, resolved, begun, confirmed_at)),
                Ok(None) => Err(self.publish_unknown(&flights, &flight.name, begun)),
                Err(error) => Err(error),
            };
            flights.end(flight);
            drop(flights);
            flight.land(answer);
        }
    }

    /// Makes a record the tenant's route, unless something newer is known or it was overtaken.
    fn publish(
        &self,
        flights: &Flights<Answer>,
        resolved: Resolved,
        begun: Moment,
        confirmed_at: u64,
    ) -> Answer {
        let Resolved {
            record, name_version, ..
        } = resolved;
        let tenant = record.tenant.id;
        let fresh_until = confirmed_at.saturating_add(clock::millis(self.options.fresh_for));
        let routes = self.routes.pin();
        if self.is_closed() || !flights.may_publish(tenant, begun) {
            // For those who came before the invalidation, and for nobody else: a route that is not fresh is not kept.
            return Answer {
                route: Arc::new(Route::new(record, confirmed_at, 0)),
                name_version,
            };
        }
        if let Some(current) = routes.get(&tenant) {
            let known = (current.tenant().version, current.source().version);
            let found = (record.tenant.version, record.source.version);
            if found == known {
                current.confirm(confirmed_at, fresh_until);
            }
            if found <= known {
                return Answer {
                    route: Arc::clone(current),
                    name_version,
                };
            }
        }
        let route = Arc::new(Route::new(record, confirmed_at, fresh_until));
        if let Some(old) = routes.insert(tenant, Arc::clone(&route)) {
            old.retire();
        }
        Answer { route, name_version }
    }

    fn publish_unknown(&self, flights: &Flights<Answer>, name: &TenantName, begun: Moment) -> Error {
        if let TenantName::Id(tenant) = name {
            if let Some(route) = self.routes.pin().remove(tenant) {
                route.retire();
            }
        }
        if flights.may_publish_unknown(begun) && !self.is_closed() {
            self.unknown.insert(name.clone(), ());
        }
        ErrorKind::UnknownTenant.into()
    }

    /// What is known of a name whose control plane cannot be asked: the route of an open tenant, for as long as the
    /// options allow, and without asking again at once.
    fn serve_stale(&self, name: &TenantName, known: Option<Answer>) -> Option<Answer> {
        let known = match (name, known) {
            (TenantName::Id(tenant), None) => {
                let route = self.routes.pin().get(tenant).map(Arc::clone)?;
                Answer {
                    route,
                    name_version: None,
                }
            }
            (_, known) => known?,
        };
        let now = self.clock.now();
        let tenant = known.route.tenant().id;
        let still_current = self
            .routes
            .pin()
            .get(&tenant)
            .is_some_and(|current| Arc::ptr_eq(current, &known.route));
        let stale_until = known
            .route
            .confirmed_at()
            .saturating_add(clock::millis(self.options.stale_for));
        if !still_current || now >= stale_until || known.route.access() == Access::Refused {
            return None;
        }
        self.counters.served_stale.fetch_add(1, Ordering::Relaxed);
        let retry_at = now.saturating_add(clock::millis(self.options.retry_after));
        known.route.extend(retry_at.min(stale_until));
        Some(known)
    }

    fn flights(&self) -> MutexGuard<'_, Flights<Answer>> {
        // Nothing that runs under this lock leaves a half-made change behind when it panics.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Routes for Arc<Core> {
    fn current(&self, tenant: TenantId) -> Option<Result<Arc<Route>, Error>> {
        let route = self
            .routes
            .pin()
            .get(&tenant)
            .filter(|route| route.is_fresh(self.clock.now()))
            .map(Arc::clone)?;
        Some(route.open())
    }

    async fn route(&self, tenant: TenantId) -> Result<Arc<Route>, Error> {
        self.resolve(&TenantRef::Id(tenant), None).await?.route.open()
    }

    fn age(&self, tenant: TenantId) -> Option<Duration> {
        let confirmed_at = self.routes.pin().get(&tenant)?.confirmed_at();
        Some(Duration::from_millis(
            self.clock.now().saturating_sub(confirmed_at),
        ))
    }
}

/// Lets each unknown name be asked for again at a time of its own.
struct Jitter(Duration);

impl moka::Expiry<TenantName, ()> for Jitter {
    fn expire_after_create(&self, _: &TenantName, (): &(), _: Instant) -> Option<Duration> {
        let random = uuid::Uuid::new_v4().as_u128() as u32;
        Some(
            self.0
                .mul_f64(1.0 - f64::from(random) / f64::from(u32::MAX) / 4.0),
        )
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("routes", &self.routes.len())
            .finish_non_exhaustive()
    }
}
