//! What a router knows, and the one place where it learns and forgets.
//!
//! Everything that changes what is known happens under one lock, in which a load that lands is held against the
//! invalidations since it began. Readers take no lock: a route carries its own end of freshness, so that retiring it
//! there takes it from every name at once.

mod brake;
mod changes;
mod holding;
mod landing;
mod overriding;
mod sources;

use std::sync::{
    Arc, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

pub use self::brake::BrakeHealth;
pub(super) use self::changes::Page;
use self::{brake::Brake, holding::News, landing::Landing, overriding::Said, sources::Sources};
use super::{
    BrakeOptions, CacheOptions, clock,
    flights::{Batch, Flight, Flights, Joined, Moment},
    pacing::Pacing,
    sync::{AtomicBool, Map, Mutex, MutexGuard},
    table::{Entry, Table},
};
use crate::{
    connector::{OfSource, Route, Standing},
    error::{Error, ErrorKind},
    repository::Found,
    tenant::{Access, DataSourceId, TenantId, TenantName},
};

type Answer<H> = Result<Arc<Entry<H>>, Error>;

pub(super) struct Known<H> {
    options: CacheOptions,
    ages: Ages,
    routes: Map<TenantId, Arc<Route>>,
    /// What the routes say of data sources. Written under the lock of the desk.
    sources: Sources,
    /// Weak, because the handles in the table keep the core, and with it this, alive.
    table: Weak<Table<H>>,
    /// Names that lead nowhere, and until when that is believed.
    unknown: moka::sync::Cache<TenantName, u64>,
    jitter: foldhash::fast::RandomState,
    desk: Mutex<Desk<H>>,
    /// Written under the lock of the desk.
    overrides: Mutex<Said>,
    heard_of_sources: AtomicU64,
    closed: AtomicBool,
}

/// What is behind the one lock.
struct Desk<H> {
    flights: Flights<Arc<Entry<H>>>,
    pacing: Pacing,
    brake: Brake,
    news: News,
}

/// The ages up to which a route may be served, in milliseconds, none above the bound that fails closed.
struct Ages {
    fresh: u64,
    refresh: u64,
    stale: u64,
}

impl Ages {
    fn new(options: &CacheOptions) -> Self {
        let stale = options
            .fail_closed_after
            .map_or(options.stale_for, |bound| bound.min(options.stale_for));
        let millis = |time: std::time::Duration| clock::millis(time.min(stale));
        Self {
            fresh: millis(options.fresh_for),
            refresh: millis(options.refresh_for),
            stale: millis(stale),
        }
    }

    const fn fresh_until(&self, confirmed_at: u64) -> u64 {
        confirmed_at.saturating_add(self.fresh)
    }

    fn refreshed_until(&self, route: &Route) -> u64 {
        route.confirmed_at().saturating_add(self.refresh)
    }

    fn stale_until(&self, route: &Route) -> u64 {
        route.confirmed_at().saturating_add(self.stale)
    }
}

/// What a caller that the cache had no fresh answer for is to do.
pub(super) enum Admission<H> {
    /// It has its answer, because one has come in meanwhile.
    Settled(Answer<H>),
    /// It is served with what is known, while that is refreshed.
    Refreshing(Arc<Entry<H>>, Option<StartWorker>),
    /// Nobody is asked now.
    Refused(Error, Moment),
    /// Wait.
    Wait(Arc<Flight<Arc<Entry<H>>>>, Option<StartWorker>, Moment),
}

/// A worker has been counted and must be started.
#[must_use]
#[derive(Debug)]
pub(super) struct StartWorker;

impl<H: Clone + Send + Sync + 'static> Known<H> {
    pub(super) fn new(options: CacheOptions, brake: Option<BrakeOptions>, table: &Arc<Table<H>>) -> Self {
        // The oldest make room: a scan pushes out other unknown names and nothing else.
        let most = if cfg!(biplane_mutant = "every_unknown_name_is_remembered") {
            u64::MAX
        } else {
            options.unknown_names
        };
        let unknown = moka::sync::Cache::builder()
            .max_capacity(most)
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .build();
        Self {
            ages: Ages::new(&options),
            desk: Mutex::new(Desk {
                flights: Flights::default(),
                pacing: Pacing::new(&options),
                brake: Brake::new(brake),
                news: News::default(),
            }),
            overrides: Mutex::default(),
            heard_of_sources: AtomicU64::new(0),
            options,
            routes: Map::new(),
            sources: Sources::default(),
            table: Arc::downgrade(table),
            unknown,
            jitter: foldhash::fast::RandomState::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// What a name leads to, if that can be said without asking.
    pub(super) fn settled(&self, name: &TenantName, now: u64) -> Option<Answer<H>> {
        if self.is_closed() {
            return Some(Err(ErrorKind::Closed.into()));
        }
        if let Some(entry) = self.entry(name).filter(|entry| entry.route.is_fresh(now)) {
            return Some(Ok(entry));
        }
        let unknown = self.unknown.get(name).is_some_and(|until| now < until);
        unknown.then(|| Err(ErrorKind::UnknownTenant.into()))
    }

    /// Joins the load of a name, unless one has landed since the caller looked, or what is known will do.
    pub(super) fn join(&self, name: &TenantName, now: u64, max_workers: usize) -> Admission<H> {
        let mut desk = self.desk();
        match self.settled(name, now) {
            Some(settled) if !cfg!(biplane_mutant = "join_does_not_look_again") => {
                return Admission::Settled(settled);
            }
            _ => {}
        }
        let moment = desk.flights.moment();
        let entry = self.entry(name);
        let paused = desk.pacing.paused(now);
        if let Some(entry) = entry.as_ref().filter(|entry| self.is_ageing(&entry.route, now)) {
            // Those who come next do not ask, unless the refresh comes to nothing.
            let retry_at = desk.pacing.retry_at(now);
            entry
                .route
                .extend(retry_at.min(self.ages.refreshed_until(&entry.route)));
            let worker = match paused {
                Some(_) => None,
                None => start(desk.flights.join(name, max_workers)).1,
            };
            return Admission::Refreshing(Arc::clone(entry), worker);
        }
        if !desk.flights.is_under_way(name) {
            if let Some(error) = paused {
                return Admission::Refused(error, moment);
            }
            if entry.is_none() && !desk.pacing.admits_unknown(name, now) {
                return Admission::Refused(ErrorKind::TooManyUnknownNames.into(), moment);
            }
        }
        let (flight, worker) = start(desk.flights.join(name, max_workers));
        Admission::Wait(flight, worker, moment)
    }

    /// Whether a route may be served while it is refreshed: no longer fresh and not yet too old, of an open tenant, and
    /// not known to have changed.
    fn is_ageing(&self, route: &Route, now: u64) -> bool {
        !cfg!(biplane_mutant = "refreshes_are_waited_for")
            && !route.is_retired()
            && route.access() != Access::Refused
            && route.standing() != Standing::Changed
            && now < self.ages.refreshed_until(route)
    }

    /// Joins the load of a name, also if it is known.
    pub(super) fn join_anyway(&self, name: &TenantName, now: u64, max_workers: usize) -> Admission<H> {
        let mut desk = self.desk();
        if self.is_closed() {
            return Admission::Settled(Err(ErrorKind::Closed.into()));
        }
        let moment = desk.flights.moment();
        match desk.pacing.paused(now) {
            Some(error) if !desk.flights.is_under_way(name) => Admission::Refused(error, moment),
            _ => {
                let (flight, worker) = start(desk.flights.join(name, max_workers));
                Admission::Wait(flight, worker, moment)
            }
        }
    }

    /// The loads for the next query of a worker, which ends when there are none.
    pub(super) fn take(&self, most: usize) -> Option<Batch<Arc<Entry<H>>>> {
        self.desk().flights.take(most)
    }

    /// Learns what a query found, and tells those who wait. The query was begun at `asked_at`.
    pub(super) fn land(
        &self,
        batch: &Batch<Arc<Entry<H>>>,
        outcomes: Result<Vec<Found>, Error>,
        asked_at: u64,
        now: u64,
    ) {
        let mut desk = self.desk();
        let mut landing = Landing {
            known: self,
            desk: &mut desk,
            batch,
            asked_at,
            now,
        };
        let answers: Vec<Answer<H>> = match outcomes {
            _ if self.is_closed() => vec![Err(ErrorKind::Closed.into()); batch.flights.len()],
            Err(error) => {
                landing.desk.pacing.failed(&error, now);
                vec![Err(error); batch.flights.len()]
            }
            Ok(outcomes) => {
                landing.desk.pacing.answered();
                landing.weigh(&outcomes);
                let outcomes = batch.flights.iter().zip(outcomes);
                outcomes
                    .map(|(flight, outcome)| {
                        if let Ok(None) = outcome {
                            landing.desk.pacing.found_unknown(&flight.name);
                        }
                        landing.learn(&flight.name, outcome)
                    })
                    .collect()
            }
        };
        desk.flights.end(batch);
        drop(desk);
        for (flight, answer) in batch.flights.iter().zip(answers) {
            flight.land(answer);
        }
    }

    /// A worker stopped, in the middle of a query if `batch` is given: tells those who would wait for ever.
    pub(super) fn abandon(&self, batch: Option<&Batch<Arc<Entry<H>>>>, error: &Error) {
        let orphans = self.desk().flights.abandon(batch);
        tell(&orphans, error);
    }

    /// Once this returns, nothing that was read about the tenant before the call is given to anybody who asks later.
    pub(super) fn invalidate(&self, tenant: TenantId) {
        let mut desk = self.desk();
        desk.flights.invalidate(tenant);
        desk.brake.forget(tenant);
        self.forget(tenant);
        // A tenant that was created or renamed may have a name that was unknown until now.
        if !cfg!(biplane_mutant = "unknown_survives_invalidation") {
            self.unknown.invalidate_all();
        }
    }

    /// Gives nothing out any more, and tells everybody who waits.
    pub(super) fn close(&self) {
        let mut desk = self.desk();
        // Under the lock, so that no load is begun or learnt from after this.
        self.closed.store(true, Ordering::Release);
        let waiting = desk.flights.close();
        if !cfg!(biplane_mutant = "close_keeps_the_table") {
            self.routes.for_each(|route| route.retire());
            self.routes.clear();
            self.sources.clear();
            if let Some(table) = self.table.upgrade() {
                table.clear();
            }
        }
        self.unknown.invalidate_all();
        drop(desk);
        tell(&waiting, &ErrorKind::Closed.into());
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// How many tenants are known.
    pub(super) fn tenants(&self) -> usize {
        self.routes.len()
    }

    /// What is known of a tenant, fresh or not.
    pub(super) fn route(&self, tenant: TenantId) -> Option<Arc<Route>> {
        self.routes.read(&tenant, Arc::clone)
    }

    /// What a name led to the last time, when the control plane cannot say what it leads to now: an open tenant's
    /// route, for as long as the options allow. It is served on for a while without asking again, unless something has
    /// changed since the caller came, at `moment`.
    pub(super) fn stale(&self, name: &TenantName, now: u64, moment: Moment) -> Option<Arc<Entry<H>>> {
        let desk = self.desk();
        let entry = self.entry(name)?;
        let route = &entry.route;
        let stale_until = self.ages.stale_until(route);
        let refused = route.access() == Access::Refused && !cfg!(biplane_mutant = "closed_tenants_go_stale");
        let never = cfg!(biplane_mutant = "nothing_stale_is_served");
        if refused || now >= stale_until || route.is_retired() || never {
            return None;
        }
        if !desk.flights.has_changed_since(moment) || cfg!(biplane_mutant = "failures_outlast_changes") {
            route.extend(desk.pacing.retry_at(now).min(stale_until));
        }
        Some(entry)
    }

    fn entry(&self, name: &TenantName) -> Option<Arc<Entry<H>>> {
        match name {
            TenantName::Id(tenant) => Some(self.entry_of(&self.route(*tenant)?)),
            TenantName::Slug(_) | TenantName::Domain(_) => Some(self.table.upgrade()?.named(name)?.entry),
        }
    }

    /// The entry of a route. Without a table nobody is left who could want a handle, so that any will do.
    fn entry_of(&self, route: &Arc<Route>) -> Arc<Entry<H>> {
        let kept = self.table.upgrade().and_then(|table| {
            let entry = table.entry(route.tenant().id)?;
            Arc::ptr_eq(&entry.route, route).then_some(entry)
        });
        kept.unwrap_or_else(|| Arc::new(Entry::new(Arc::clone(route))))
    }

    /// What the cached tenants of a data source say of it.
    pub(super) fn of_source(&self, source: DataSourceId, now: u64) -> Option<OfSource> {
        self.sources.find(source, now)
    }

    /// Lets readers find a route by the tenant's id.
    fn publish(&self, route: Arc<Route>) {
        self.sources.add(&route);
        self.routes.insert(route.tenant().id, route);
    }

    fn forget(&self, tenant: TenantId) {
        if let Some(route) = self.route(tenant) {
            route.retire();
            self.routes.remove(&tenant);
            self.sources.remove(&route);
            if let Some(table) = self.table.upgrade() {
                table.forget(&route);
            }
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk<H>> {
        // Nothing that runs under this lock leaves a half-made change behind when it panics.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start<T>(joined: Joined<T>) -> (Arc<Flight<T>>, Option<StartWorker>) {
    match joined {
        Joined::Wait(flight) => (flight, None),
        Joined::StartWorker(flight) => (flight, Some(StartWorker)),
    }
}

fn tell<H>(flights: &[Arc<Flight<Arc<Entry<H>>>>], error: &Error) {
    for flight in flights {
        flight.land(Err(error.clone()));
    }
}
