//! What a router knows, and the one place where it learns and forgets.
//!
//! Everything that changes what is known happens under one lock, in which a load that lands is held against the
//! invalidations since it began. Readers take no lock: a route carries its own end of freshness, so that retiring it
//! there takes it from every name at once.

use std::{
    hash::BuildHasher,
    sync::{Arc, PoisonError, Weak, atomic::Ordering},
};

use super::{
    CacheOptions, clock,
    flights::{Batch, Flight, Flights, Joined},
    sync::{AtomicBool, Map, Mutex, MutexGuard},
    table::{Entry, Named, Table},
};
use crate::{
    connector::{Route, versions},
    error::{Error, ErrorKind},
    repository::Found,
    tenant::{Access, Resolved, Tenant, TenantId, TenantName, Version},
};

type Answer<H> = Result<Arc<Entry<H>>, Error>;

pub(super) struct Known<H> {
    options: CacheOptions,
    routes: Map<TenantId, Arc<Route>>,
    /// Weak, because the handles in the table keep the core, and with it this, alive.
    table: Weak<Table<H>>,
    /// Names that lead nowhere, and until when that is believed.
    unknown: moka::sync::Cache<TenantName, u64>,
    jitter: foldhash::fast::RandomState,
    flights: Mutex<Flights<Arc<Entry<H>>>>,
    closed: AtomicBool,
}

impl<H: Clone + Send + Sync + 'static> Known<H> {
    pub(super) fn new(options: CacheOptions, table: &Arc<Table<H>>) -> Self {
        // The oldest make room: a scan pushes out other unknown names and nothing else.
        let unknown = moka::sync::Cache::builder()
            .max_capacity(options.unknown_names)
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .build();
        Self {
            options,
            routes: Map::new(),
            table: Arc::downgrade(table),
            unknown,
            jitter: foldhash::fast::RandomState::default(),
            flights: Mutex::new(Flights::default()),
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

    /// Joins the load of a name, unless one has landed since the caller looked.
    pub(super) fn join(
        &self,
        name: &TenantName,
        now: u64,
        max_workers: usize,
    ) -> Result<Joined<Arc<Entry<H>>>, Answer<H>> {
        let mut flights = self.flights();
        match self.settled(name, now) {
            Some(settled) if !cfg!(biplane_mutant = "join_does_not_look_again") => Err(settled),
            _ => Ok(flights.join(name, max_workers)),
        }
    }

    /// Joins the load of a name, also if it is known.
    pub(super) fn join_anyway(
        &self,
        name: &TenantName,
        max_workers: usize,
    ) -> Result<Joined<Arc<Entry<H>>>, Answer<H>> {
        let mut flights = self.flights();
        if self.is_closed() {
            return Err(Err(ErrorKind::Closed.into()));
        }
        Ok(flights.join(name, max_workers))
    }

    /// The loads for the next query of a worker, which ends when there are none.
    pub(super) fn take(&self, most: usize) -> Option<Batch<Arc<Entry<H>>>> {
        self.flights().take(most)
    }

    /// Learns what a query found, and tells those who wait. The query was begun at `asked_at`.
    pub(super) fn land(
        &self,
        batch: &Batch<Arc<Entry<H>>>,
        outcomes: Result<Vec<Found>, Error>,
        asked_at: u64,
        now: u64,
    ) {
        let mut flights = self.flights();
        let landing = Landing {
            known: self,
            flights: &flights,
            batch,
            asked_at,
            now,
        };
        let answers: Vec<Answer<H>> = match outcomes {
            _ if self.is_closed() => vec![Err(ErrorKind::Closed.into()); batch.flights.len()],
            Err(error) => vec![Err(error); batch.flights.len()],
            Ok(outcomes) => batch
                .flights
                .iter()
                .zip(outcomes)
                .map(|(flight, outcome)| landing.learn(&flight.name, outcome))
                .collect(),
        };
        flights.end(batch);
        drop(flights);
        for (flight, answer) in batch.flights.iter().zip(answers) {
            flight.land(answer);
        }
    }

    /// A worker stopped, in the middle of a query if `batch` is given: tells those who would wait for ever.
    pub(super) fn abandon(&self, batch: Option<&Batch<Arc<Entry<H>>>>, error: &Error) {
        let orphans = self.flights().abandon(batch);
        tell(&orphans, error);
    }

    /// Once this returns, nothing that was read about the tenant before the call is given to anybody who asks later.
    pub(super) fn invalidate(&self, tenant: TenantId) {
        let mut flights = self.flights();
        flights.invalidate(tenant);
        self.forget(tenant);
        // A tenant that was created or renamed may have a name that was unknown until now.
        if !cfg!(biplane_mutant = "unknown_survives_invalidation") {
            self.unknown.invalidate_all();
        }
    }

    /// Gives nothing out any more, and tells everybody who waits.
    pub(super) fn close(&self) {
        let mut flights = self.flights();
        // Under the lock, so that no load is begun or learnt from after this.
        self.closed.store(true, Ordering::Release);
        let waiting = flights.close();
        if !cfg!(biplane_mutant = "close_keeps_the_table") {
            self.routes.for_each(|route| route.retire());
            self.routes.clear();
            if let Some(table) = self.table.upgrade() {
                table.clear();
            }
        }
        self.unknown.invalidate_all();
        drop(flights);
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
    /// route, for as long as the options allow, and without asking again at once.
    pub(super) fn stale(&self, name: &TenantName, now: u64) -> Option<Arc<Entry<H>>> {
        let entry = self.entry(name)?;
        let route = &entry.route;
        let stale_until = route
            .confirmed_at()
            .saturating_add(clock::millis(self.options.stale_for));
        let refused = route.access() == Access::Refused && !cfg!(biplane_mutant = "closed_tenants_go_stale");
        if refused || now >= stale_until {
            return None;
        }
        let retry_at = now.saturating_add(clock::millis(self.options.retry_after));
        route.extend(retry_at.min(stale_until));
        (!route.is_retired()).then_some(entry)
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

    fn forget(&self, tenant: TenantId) {
        if let Some(route) = self.route(tenant) {
            route.retire();
            self.routes.remove(&tenant);
            if let Some(table) = self.table.upgrade() {
                table.forget(&route);
            }
        }
    }

    fn flights(&self) -> MutexGuard<'_, Flights<Arc<Entry<H>>>> {
        // Nothing that runs under this lock leaves a half-made change behind when it panics.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A query that lands, under the lock.
struct Landing<'a, H> {
    known: &'a Known<H>,
    flights: &'a Flights<Arc<Entry<H>>>,
    batch: &'a Batch<Arc<Entry<H>>>,
    asked_at: u64,
    now: u64,
}

impl<H: Clone + Send + Sync + 'static> Landing<'_, H> {
    fn learn(&self, name: &TenantName, outcome: Found) -> Answer<H> {
        let Some(resolved) = outcome? else {
            self.learn_unknown(name);
            return Err(ErrorKind::UnknownTenant.into());
        };
        if !has_name(&resolved.record.tenant, name) && !cfg!(biplane_mutant = "answers_are_not_checked") {
            return Err(Error::new(ErrorKind::Internal)
                .detail("the repository answered for another name than it was asked"));
        }
        let version = resolved.name_version;
        let entry = self.learn_route(name, resolved)?;
        self.learn_name(name, version, entry)
    }

    /// Makes a record the tenant's route, unless something newer is known or it was overtaken.
    fn learn_route(&self, name: &TenantName, resolved: Resolved) -> Answer<H> {
        let known = self.known;
        let record = resolved.record;
        let tenant = record.tenant.id;
        if self.flights.is_tenant_overtaken(tenant, self.batch) {
            return Ok(Arc::new(Entry::new(Arc::new(Route::overtaken(
                record,
                self.asked_at,
            )))));
        }
        let fresh_until = self
            .asked_at
            .saturating_add(clock::millis(known.options.fresh_for));
        if let Some(current) = known.route(tenant) {
            let (old, new) = (current.versions(), versions(&record));
            if new < old && !cfg!(biplane_mutant = "older_route_wins") {
                let still_its_name = has_name(current.tenant(), name);
                return (still_its_name && current.is_fresh(self.now))
                    .then(|| known.entry_of(&current))
                    .ok_or_else(outdated);
            }
            if new == old {
                current.confirm(self.asked_at, fresh_until);
                return Ok(known.entry_of(&current));
            }
        }
        known.forget(tenant);
        let route = Arc::new(Route::new(record, self.asked_at, fresh_until));
        let entry = Arc::new(Entry::new(Arc::clone(&route)));
        if cfg!(biplane_mutant = "route_before_entry") {
            known.routes.insert(tenant, Arc::clone(&route));
        }
        // The entry comes first: a reader that finds the route must find the one entry that it has.
        if let Some(table) = known.table.upgrade() {
            table.enter(Arc::clone(&entry));
        }
        known.routes.insert(tenant, route);
        Ok(entry)
    }

    /// Lets a slug or domain lead there, unless it has changed hands since or that is in doubt.
    fn learn_name(&self, name: &TenantName, version: Option<Version>, entry: Arc<Entry<H>>) -> Answer<H> {
        let Some(table) = self.known.table.upgrade() else {
            return Ok(entry);
        };
        if let Some(bound) = table.named(name).filter(|bound| version < bound.version)
            && !cfg!(biplane_mutant = "names_ignore_versions")
        {
            let fresh = bound.entry.route.is_fresh(self.now);
            return fresh.then_some(bound.entry).ok_or_else(outdated);
        }
        let doubtful =
            self.flights.is_name_overtaken(name, self.batch) && !cfg!(biplane_mutant = "late_name_is_bound");
        if !entry.route.is_retired() && !doubtful {
            let named = Named {
                entry: Arc::clone(&entry),
                version,
            };
            table.bind(name, named);
        }
        Ok(entry)
    }

    fn learn_unknown(&self, name: &TenantName) {
        let known = self.known;
        if self.flights.is_name_overtaken(name, self.batch) {
            return;
        }
        match name {
            TenantName::Id(tenant) => {
                // A route that was read after this query had begun knows better.
                if known
                    .route(*tenant)
                    .is_some_and(|route| route.confirmed_at() <= self.asked_at)
                {
                    known.forget(*tenant);
                }
            }
            TenantName::Slug(_) | TenantName::Domain(_) => {
                if let Some(table) = known.table.upgrade() {
                    table.unbind(name);
                }
            }
        }
        // Each name may be asked for again at a time of its own, after three quarters of the time at the earliest.
        let longest = clock::millis(known.options.unknown_for);
        let shorter = known.jitter.hash_one((name, self.now)) % (longest / 4 + 1);
        let until = self.now.saturating_add(longest - shorter);
        known.unknown.insert(name.clone(), until);
    }
}

/// Whether a name is one of the tenant's. A repository that mixes up the order of its answers must not lead one tenant
/// to another's data.
fn has_name(tenant: &Tenant, name: &TenantName) -> bool {
    match name {
        TenantName::Id(id) => tenant.id == *id,
        TenantName::Slug(slug) => tenant.slug == *slug,
        TenantName::Domain(domain) => tenant.domains.contains(domain),
    }
}

/// Older data than is known confirms nothing, so it counts as no answer.
fn outdated() -> Error {
    Error::new(ErrorKind::ControlPlaneUnavailable).detail("it answered with older data than is known already")
}

fn tell<H>(flights: &[Arc<Flight<Arc<Entry<H>>>>], error: &Error) {
    for flight in flights {
        flight.land(Err(error.clone()));
    }
}
