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
    tenant::{TenantId, TenantName},
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
type Moment = u64;

/// The loads of one query.
#[derive(Debug)]
pub(super) struct Batch<T> {
    begun: Moment,
    pub(super) flights: Arc<[Arc<Flight<T>>]>,
}

#[derive(Debug)]
pub(super) struct Flights<T> {
    now: Moment,
    /// The load that a new caller of a name may wait for, and when its query began if it did.
    latest: HashMap<TenantName, (Arc<Flight<T>>, Option<Moment>)>,
    /// Loads that no query has taken up yet.
    queue: VecDeque<Arc<Flight<T>>>,
    /// Queries under way.
    air: Vec<Batch<T>>,
    workers: usize,
    /// When each tenant was last invalidated, for as long as a query is under way that may have begun before.
    invalidated: HashMap<TenantId, Moment>,
    last_invalidation: Moment,
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
            latest: HashMap::new(),
            queue: VecDeque::new(),
            air: Vec::new(),
            workers: 0,
            invalidated: HashMap::new(),
            last_invalidation: 0,
        }
    }
}

impl<T: Clone> Flights<T> {
    /// Joins the load of a name, or asks for one.
    pub(super) fn join(&mut self, name: &TenantName, max_workers: usize) -> Joined<T> {
        if let Some((flight, begun)) = self.latest.get(name) {
            let overtaken = begun.is_some_and(|begun| self.is_overtaken(name, begun));
            if !overtaken && !cfg!(biplane_mutant = "no_single_flight") {
                return Joined::Wait(Arc::clone(flight));
            }
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
            self.invalidated.clear();
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
        self.now += 1;
        self.last_invalidation = self.now;
        if !self.air.is_empty() {
            self.invalidated.insert(tenant, self.now);
        }
    }

    /// Whether a tenant was invalidated since this query began.
    pub(super) fn is_tenant_overtaken(&self, tenant: TenantId, batch: &Batch<T>) -> bool {
        if cfg!(biplane_mutant = "late_publish") {
            return false;
        }
        self.invalidated
            .get(&tenant)
            .is_some_and(|invalidated| batch.begun <= *invalidated)
    }

    /// Whether what this query found out about whom a name belongs to has become doubtful since it began.
    pub(super) fn is_name_overtaken(&self, name: &TenantName, batch: &Batch<T>) -> bool {
        self.is_overtaken(name, batch.begun)
    }

    /// A slug or domain may have belonged to any tenant, or belong to any now, so that each invalidation overtakes it.
    fn is_overtaken(&self, name: &TenantName, begun: Moment) -> bool {
        let overtaken_at = match name {
            TenantName::Id(tenant) => self.invalidated.get(tenant).copied().unwrap_or(0),
            TenantName::Slug(_) | TenantName::Domain(_) => self.last_invalidation,
        };
        begun <= overtaken_at
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
            flights: Arc::clone(&self.flights),
        }
    }
}
