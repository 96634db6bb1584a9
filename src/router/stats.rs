//! What a router counts.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use super::FeedHealth;
use crate::connector::ConnectorStats;

/// How a router is doing. Counters only rise.
///
/// Each lookup of a name that is not refused because the router is closed is one of `hits`, `misses`, `known_unknown` and
/// `not_asked`. A handle that looks its own route up again counts when the cache has no fresh one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouterStats {
    /// Lookups that the cache answered, with a handle or with the status that refuses one.
    pub hits: u64,
    /// Lookups that had to wait for the control plane.
    pub misses: u64,
    /// Lookups of unknown names that were answered without asking.
    pub known_unknown: u64,
    /// Lookups that only the control plane could answer and that it was not troubled with: shortly after it could not be
    /// asked, or because too many unknown names are asked for.
    pub not_asked: u64,
    /// Queries to the control plane.
    pub loads: u64,
    /// Names asked for in them.
    pub names_loaded: u64,
    /// Queries that failed.
    pub failed_loads: u64,
    /// Time spent in them, in all.
    pub load_time: Duration,
    /// Those of `misses` and `not_asked` that were answered with an old route, because the control plane could not tell.
    pub served_stale: u64,
    /// Tenants cached.
    pub cached_tenants: usize,
    /// The connector's connections.
    pub connector: ConnectorStats,
    /// The change feed.
    pub feed: FeedHealth,
}

/// Counters, of which the first is written by every warm lookup: each thread has a line of its own for it.
#[derive(Debug, Default)]
pub(super) struct Counters {
    own_hits: [Line; LINES],
    /// Those of threads that came when all lines were taken.
    other_hits: Line,
    pub(super) misses: AtomicU64,
    pub(super) known_unknown: AtomicU64,
    pub(super) not_asked: AtomicU64,
    loads: AtomicU64,
    names_loaded: AtomicU64,
    failed_loads: AtomicU64,
    load_micros: AtomicU64,
    pub(super) served_stale: AtomicU64,
}

/// As many as most machines have threads that serve requests.
const LINES: usize = 32;

/// What processors fetch at a time.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

/// The threads that have looked something up, in order; a number is not used again.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
}

impl Counters {
    #[inline]
    pub(super) fn hit(&self) {
        match self.own_hits.get(thread()) {
            // Nobody else writes here, so that it needs no locked instruction, which would cost as much as the lookup.
            Some(Line(own)) => own.store(own.load(Relaxed).wrapping_add(1), Relaxed),
            None => {
                self.other_hits.0.fetch_add(1, Relaxed);
            }
        }
    }

    /// A query has ended.
    pub(super) fn loaded(&self, names: usize, time: Duration, failed: bool) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.loads.fetch_add(1, Relaxed);
        self.names_loaded.fetch_add(names as u64, Relaxed);
        self.load_micros.fetch_add(micros, Relaxed);
        self.failed_loads.fetch_add(u64::from(failed), Relaxed);
    }

    pub(super) fn snapshot(
        &self,
        cached_tenants: usize,
        connector: ConnectorStats,
        feed: FeedHealth,
    ) -> RouterStats {
        RouterStats {
            hits: self
                .own_hits
                .iter()
                .chain([&self.other_hits])
                .map(|line| line.0.load(Relaxed))
                .sum(),
            misses: self.misses.load(Relaxed),
            known_unknown: self.known_unknown.load(Relaxed),
            not_asked: self.not_asked.load(Relaxed),
            loads: self.loads.load(Relaxed),
            names_loaded: self.names_loaded.load(Relaxed),
            failed_loads: self.failed_loads.load(Relaxed),
            load_time: Duration::from_micros(self.load_micros.load(Relaxed)),
            served_stale: self.served_stale.load(Relaxed),
            cached_tenants,
            connector,
            feed,
        }
    }
}

#[inline]
fn thread() -> usize {
    THREAD.with(|own| {
        if own.get() == usize::MAX {
            own.set(THREADS.fetch_add(1, Relaxed));
        }
        own.get()
    })
}
