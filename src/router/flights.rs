//! Loads under way: one for each name, many in one query, and none published after it was overtaken.
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
    /// Tells every caller.
    pub(super) fn land(&self, outcome: Result<T, Error>) {
        self.outcome.send_replace(Some(outcome));
    }

    /// Waits for the outcome.
    ///
    /// Cancel safe: the load goes on for the others.
    pub(super) async fn outcome(&self) -> Option<Result<T, Error>> {
        let mut outcome = self.outcome.subscribe();
        let landed = outcome.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }
}

/// A moment, counted up by everything that must be ordered.
pub(super) type Moment = u64;

#[derive(Debug)]
pub(super) struct Flights<T> {
    now: Moment,
    /// The load that a new caller of a name may wait for, and when its query began.
    latest: HashMap<TenantName, (Arc<Flight<T>>, Option<Moment>)>,
    queue: VecDeque<Arc<Flight<T>>>,
    /// Queries under way.
    workers: usize,
    /// Loads whose query has begun and not ended.
    begun: usize,
    /// When each tenant was last invalidated, for as long as a load is under way that may have begun before.
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
            workers: 0,
            begun: 0,
            invalidated: HashMap::new(),
            last_invalidation: 0,
        }
    }
}

impl<T> Flights<T> {
    /// Joins the load of a name, or asks for one.
    pub(super) fn join(&mut self, name: &TenantName, max_workers: usize) -> Joined<T> {
        if let Some((flight, begun)) = self.latest.get(name) {
            let overtaken = begun.is_some_and(|begun| begun <= self.overtaken_at(name));
            if !overtaken {
                return Joined::Wait(Arc::clone(flight));
            }
        }
        let flight = Arc::new(Flight {
            name: name.clone(),
            outcome: watch::Sender::new(None),
        });
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
    pub(super) fn take(&mut self, most: usize) -> Option<(Moment, Vec<Arc<Flight<T>>>)> {
        if self.queue.is_empty() {
            self.workers -= 1;
            return None;
        }
        self.now += 1;
        let batch: Vec<_> = self.queue.drain(..most.min(self.queue.len())).collect();
        for flight in &batch {
            if let Some((latest, begun)) = self.latest.get_mut(&flight.name) {
                if Arc::ptr_eq(latest, flight) {
                    *begun = Some(self.now);
                }
            }
        }
        self.begun += batch.len();
        Some((self.now, batch))
    }

    /// Whether what a query that began then found about a tenant may be published.
    pub(super) fn may_publish(&self, tenant: TenantId, begun: Moment) -> bool {
        self.invalidated
            .get(&tenant)
            .is_none_or(|invalidated| *invalidated < begun)
    }

    /// Whether "no such name", found by a query that began then, may be remembered.
    pub(super) fn may_publish_unknown(&self, begun: Moment) -> bool {
        self.last_invalidation < begun
    }

    /// A load has ended.
    pub(super) fn end(&mut self, flight: &Arc<Flight<T>>) {
        if self
            .latest
            .get(&flight.name)
            .is_some_and(|(latest, _)| Arc::ptr_eq(latest, flight))
        {
            self.latest.remove(&flight.name);
        }
        self.begun -= 1;
        if self.begun == 0 {
            self.invalidated.clear();
        }
    }

    /// Whatever was read about this tenant before now must not be published.
    pub(super) fn invalidate(&mut self, tenant: TenantId) {
        self.now += 1;
        self.last_invalidation = self.now;
        if self.begun > 0 {
            self.invalidated.insert(tenant, self.now);
        }
    }

    /// When loads of this name were last overtaken. A slug or domain may belong to any tenant.
    fn overtaken_at(&self, name: &TenantName) -> Moment {
        match name {
            TenantName::Id(tenant) => self.invalidated.get(tenant).copied().unwrap_or(0),
            TenantName::Slug(_) | TenantName::Domain(_) => self.last_invalidation,
        }
    }
}
