//! Loads under way: one for each name, many in one query, and none that counts after it was overtaken.
//!
//! The order of things is kept by a counter of moments. A load knows the moment at which its query began, an
//! invalidation the moment at which it happened; both are compared under one lock.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::sync::watch;

use crate::{
    error::Error,
    tenant::{DataSourceId, TenantId, TenantName},
};

/// A load of one name, which any number of callers wait for.
#[derive(Debug)]
pub(super) struct Flight<T> {
    pub(super) name: TenantName,
    outcome: watch::Sender<Option<Result<T, Error>>>,
}

impl<T: Clone> Flight<T> {
    fn new(name: TenantName) -> Self {
        Self {
            name,
            outcome: watch::Sender::new(None),
        }
    }

    /// Tells every caller, unless they were told something else before.
    pub(super) fn land(&self, outcome: Result<T, Error>) {
        self.outcome.send_if_modified(|told| {
            let first = told.is_none();
            if first {
                *told = Some(outcome);
            }
            first
        });
    }

    /// Waits for the outcome.
    ///
    /// Cancel safe: the load goes on for the others.
    pub(super) async fn outcome(&self) -> Result<T, Error> {
        let mut outcome = self.outcome.subscribe();
        let told = outcome
            .wait_for(Option::is_some)
            .await
            .expect("the sender lives in self");
        told.clone().expect("it was waited for")
    }
}

/// A moment, counted up by everything that must be ordered.
pub(super) type Moment = u64;

/// The loads of one query.
#[derive(Debug)]
pub(super) struct Batch<T> {
    begun: Moment,
    /// Of the control plane, as far as it was known.
    pub(super) life: u64,
    pub(super) flights: Arc<[Arc<Flight<T>>]>,
}

#[derive(Debug)]
pub(super) struct Flights<T> {
    now: Moment,
    /// How often the control plane is known to have begun another life.
    life: u64,
    /// The load that a new caller of a name may wait for, and when its query began if it did.
    latest: HashMap<TenantName, (Arc<Flight<T>>, Option<Moment>)>,
    /// Loads that no query has taken up yet.
    queue: VecDeque<Arc<Flight<T>>>,
    /// Queries under way.
    air: Vec<Batch<T>>,
    workers: usize,
    /// When each tenant was last invalidated or changed, for as long as a query is under way that may have begun before.
    tenants: HashMap<TenantId, Moment>,
    /// The same of data sources.
    sources: HashMap<DataSourceId, Moment>,
    /// Anything at all.
    last_change: Moment,
    last_source: Moment,
    /// Names may have changed hands.
    last_names: Moment,
    /// Whatever was read before counts no more.
    everything: Moment,
    /// Of what was read before, changes may have been missed.
    unsure: Moment,
}

/// What a caller does after joining.
#[derive(Debug)]
pub(super) enum Joined<T> {
    /// Wait.
    Wait(Arc<Flight<T>>),
    /// Start a worker, then wait.
    StartWorker(Arc<Flight<T>>),
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self {
            now: 0,
            life: 0,
            latest: HashMap::new(),
            queue: VecDeque::new(),
            air: Vec::new(),
            workers: 0,
            tenants: HashMap::new(),
            sources: HashMap::new(),
            last_change: 0,
            last_source: 0,
            last_names: 0,
            everything: 0,
            unsure: 0,
        }
    }
}

impl<T: Clone> Flights<T> {
    /// Joins the load of a name, or asks for one.
    pub(super) fn join(&mut self, name: &TenantName, max_workers: usize) -> Joined<T> {
        if let Some(flight) = self.under_way(name)
            && !cfg!(biplane_mutant = "no_single_flight")
        {
            return Joined::Wait(Arc::clone(flight));
        }
        let flight = Arc::new(Flight::new(name.clone()));
        self.latest.insert(name.clone(), (Arc::clone(&flight), None));
        self.queue.push_back(Arc::clone(&flight));
        if self.workers < max_workers {
            self.workers += 1;
            Joined::StartWorker(flight)
        } else {
            Joined::Wait(flight)
        }
    }

    /// Whether a new caller of this name has a load to wait for.
    pub(super) fn is_under_way(&self, name: &TenantName) -> bool {
        self.under_way(name).is_some()
    }

    fn under_way(&self, name: &TenantName) -> Option<&Arc<Flight<T>>> {
        let (flight, begun) = self.latest.get(name)?;
        let overtaken = begun.is_some_and(|begun| self.is_load_overtaken(name, begun));
        (!overtaken).then_some(flight)
    }

    /// The loads for the next query of a worker, which ends when there are none.
    pub(super) fn take(&mut self, most: usize) -> Option<Batch<T>> {
        if self.queue.is_empty() {
            self.workers -= 1;
            return None;
        }
        self.now += 1;
        let flights: Arc<[_]> = self.queue.drain(..most.min(self.queue.len())).collect();
        for flight in &*flights {
            if let Some((latest, begun)) = self.latest.get_mut(&flight.name)
                && Arc::ptr_eq(latest, flight)
            {
                *begun = Some(self.now);
            }
        }
        let batch = Batch {
            begun: self.now,
            life: self.life,
            flights,
        };
        self.air.push(batch.clone());
        Some(batch)
    }

    /// A query has ended, one way or the other.
    pub(super) fn end(&mut self, batch: &Batch<T>) {
        for flight in &*batch.flights {
            self.forget(flight);
        }
        self.air.retain(|other| other.begun != batch.begun);
        if self.air.is_empty() {
            self.tenants.clear();
            self.sources.clear();
        }
    }

    /// A worker was stopped in the middle of a query, if it was in one. Gives the loads that nobody will finish.
    pub(super) fn abandon(&mut self, batch: Option<&Batch<T>>) -> Vec<Arc<Flight<T>>> {
        self.workers -= 1;
        let mut orphans = Vec::new();
        if let Some(batch) = batch {
            self.end(batch);
            orphans.extend(batch.flights.iter().cloned());
        }
        if self.workers == 0 {
            for flight in std::mem::take(&mut self.queue) {
                self.forget(&flight);
                orphans.push(flight);
            }
        }
        orphans
    }

    /// Empties the queue and gives every load that somebody may be waiting for.
    pub(super) fn close(&mut self) -> Vec<Arc<Flight<T>>> {
        self.latest.clear();
        let in_air = self.air.iter().flat_map(|batch| batch.flights.iter().cloned());
        let mut all: Vec<_> = in_air.collect();
        all.extend(self.queue.drain(..));
        all
    }

    /// Whatever was read about this tenant before now does not count.
    pub(super) fn invalidate(&mut self, tenant: TenantId) {
        self.changed(tenant);
        self.names_moved();
    }

    /// A tenant is known to have changed before now, and kept its names.
    pub(super) fn changed(&mut self, tenant: TenantId) {
        self.now += 1;
        self.last_change = self.now;
        if !self.air.is_empty() {
            self.tenants.insert(tenant, self.now);
        }
    }

    /// Names are known to have changed hands before now, or to be new.
    pub(super) fn names_moved(&mut self) {
        self.now += 1;
        self.last_change = self.now;
        self.last_names = self.now;
    }

    /// A data source is known to have changed before now.
    pub(super) fn source_changed(&mut self, source: DataSourceId) {
        self.now += 1;
        self.last_change = self.now;
        self.last_source = self.now;
        if !self.air.is_empty() {
            self.sources.insert(source, self.now);
        }
    }

    /// Another life of the control plane has begun: whatever was read before now does not count.
    pub(super) fn other_life(&mut self) {
        self.now += 1;
        self.life += 1;
        self.everything = self.now;
        self.last_change = self.now;
    }

    /// Of what was read before now, changes may have been missed.
    pub(super) fn doubt_all(&mut self) {
        self.now += 1;
        self.unsure = self.now;
    }

    /// Now.
    pub(super) fn moment(&self) -> Moment {
        self.now
    }

    /// Whether anything is known to have changed since then.
    pub(super) fn has_changed_since(&self, moment: Moment) -> bool {
        self.last_change > moment
    }

    /// Whether a tenant, or the data source that this query found it on, is known to have changed since it began.
    pub(super) fn is_tenant_overtaken(
        &self,
        tenant: TenantId,
        source: DataSourceId,
        batch: &Batch<T>,
    ) -> bool {
        if cfg!(biplane_mutant = "late_publish") {
            return false;
        }
        let changed = [self.tenants.get(&tenant), self.sources.get(&source)];
        let latest = changed.into_iter().flatten().max().copied().unwrap_or(0);
        batch.begun <= latest.max(self.everything)
    }

    /// Whether what this query found out about whom a name belongs to has become doubtful since it began. A slug or
    /// domain may have belonged to any tenant, or belong to any now.
    pub(super) fn is_name_overtaken(&self, name: &TenantName, batch: &Batch<T>) -> bool {
        let moved = match name {
            TenantName::Id(tenant) => self.tenants.get(tenant).copied().unwrap_or(0),
            TenantName::Slug(_) | TenantName::Domain(_) => self.last_names,
        };
        batch.begun <= moved.max(self.everything)
    }

    /// Whether changes may have been missed that came after this query began.
    pub(super) fn is_unsure(&self, batch: &Batch<T>) -> bool {
        batch.begun <= self.unsure
    }

    /// Whether a load that began then may lead a new caller to what is known to have changed since.
    fn is_load_overtaken(&self, name: &TenantName, begun: Moment) -> bool {
        let changed = match name {
            TenantName::Id(tenant) => {
                let changed = self.tenants.get(tenant).copied().unwrap_or(0);
                changed.max(self.last_source)
            }
            TenantName::Slug(_) | TenantName::Domain(_) => self.last_change,
        };
        begun <= changed.max(self.everything)
    }

    fn forget(&mut self, flight: &Arc<Flight<T>>) {
        let latest = self.latest.get(&flight.name);
        if latest.is_some_and(|(latest, _)| Arc::ptr_eq(latest, flight)) {
            self.latest.remove(&flight.name);
        }
    }
}

impl<T> Clone for Batch<T> {
    fn clone(&self) -> Self {
        Self {
            begun: self.begun,
            life: self.life,
            flights: Arc::clone(&self.flights),
        }
    }
}
