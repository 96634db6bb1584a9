//! What a router counts.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use crate::connector::ConnectorStats;

/// How a router is doing. Counters only rise.
///
/// Each lookup of a name that is not refused because the router is closed is one of `hits`, `misses` and
/// `known_unknown`. A handle that looks its own route up again counts when the cache has no fresh one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouterStats {
    /// Lookups that the cache answered, with a handle or with the status that refuses one.
    pub hits: u64,
    /// Lookups that had to wait for the control plane.
    pub misses: u64,
    /// Lookups of unknown names that were answered without asking.
    pub known_unknown: u64,
    /// Queries to the control plane.
    pub loads: u64,
    /// Names asked for in them.
    pub names_loaded: u64,
    /// Queries that failed.
    pub failed_loads: u64,
    /// Time spent in them, in all.
    pub load_time: Duration,
    /// Those of the misses that were answered with an old route, because the control plane could not tell.
    pub served_stale: u64,
    /// Tenants cached.
    pub cached_tenants: usize,
    /// The connector's connections.
    pub connector: ConnectorStats,
}

/// Counters of which the first is written by every warm lookup, and so is spread over cache lines.
#[derive(Debug, Default)]
pub(super) struct Counters {
    hits: [Line; STRIPES],
    pub(super) misses: AtomicU64,
    pub(super) known_unknown: AtomicU64,
    loads: AtomicU64,
    names_loaded: AtomicU64,
    failed_loads: AtomicU64,
    load_micros: AtomicU64,
    pub(super) served_stale: AtomicU64,
}

/// More than the threads of a usual runtime, so that two threads rarely share a line.
const STRIPES: usize = 16;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

thread_local! {
    static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
}

impl Counters {
    pub(super) fn hit(&self) {
        self.hits[stripe()].0.fetch_add(1, Relaxed);
    }

    /// A query has ended.
    pub(super) fn loaded(&self, names: usize, time: Duration, failed: bool) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.loads.fetch_add(1, Relaxed);
        self.names_loaded.fetch_add(names as u64, Relaxed);
        self.load_micros.fetch_add(micros, Relaxed);
        self.failed_loads.fetch_add(u64::from(failed), Relaxed);
    }

    pub(super) fn snapshot(&self, cached_tenants: usize, connector: ConnectorStats) -> RouterStats {
        RouterStats {
            hits: self.hits.iter().map(|line| line.0.load(Relaxed)).sum(),
            misses: self.misses.load(Relaxed),
            known_unknown: self.known_unknown.load(Relaxed),
            loads: self.loads.load(Relaxed),
            names_loaded: self.names_loaded.load(Relaxed),
            failed_loads: self.failed_loads.load(Relaxed),
            load_time: Duration::from_micros(self.load_micros.load(Relaxed)),
            served_stale: self.served_stale.load(Relaxed),
            cached_tenants,
            connector,
        }
    }
}

fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    STRIPE.with(|own| {
        if own.get() == usize::MAX {
            own.set(NEXT.fetch_add(1, Relaxed) % STRIPES);
        }
        own.get()
    })
}
