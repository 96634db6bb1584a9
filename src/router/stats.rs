//! What a router counts.

use std::{
    cell::Cell,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::Duration,
};

use super::{BrakeHealth, FeedHealth};
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
    /// Whether changes are held back.
    pub brake: BrakeHealth,
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

/// As many as most machines have threads that serve requests, and as there are bits in [`TAKEN`].
const LINES: usize = 32;

/// What processors fetch at a time.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

/// The lines that belong to a thread, a bit for each. A line has one owner at a time, in every router.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// Nobody's line yet.
const NONE: usize = usize::MAX;

thread_local! {
    static LINE: Cell<usize> = const { Cell::new(NONE) };
    static OWNED: Owned = const { Owned };
}

/// Gives the line of a thread back when the thread ends.
struct Owned;

impl Drop for Owned {
    fn drop(&mut self) {
        // What the thread counts after this goes where everybody may write.
        let line = LINE.replace(LINES);
        if line < LINES {
            // The next owner goes on from what this one has counted.
            TAKEN.fetch_and(!(1 << line), Release);
        }
    }
}

impl Counters {
    #[inline]
    pub(super) fn hit(&self) {
        match self.own_hits.get(line()) {
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
        brake: BrakeHealth,
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
            brake,
        }
    }
}

/// The line of this thread, or a number beyond them all.
#[inline]
fn line() -> usize {
    match LINE.get() {
        NONE => take_line(),
        line => line,
    }
}

#[cold]
fn take_line() -> usize {
    let lowest = |taken: u32| (taken != u32::MAX).then(|| taken | (taken + 1));
    let line = match TAKEN.fetch_update(Acquire, Relaxed, lowest) {
        Ok(taken) => taken.trailing_ones() as usize,
        Err(_full) => LINES,
    };
    LINE.set(line);
    // It fails in a thread that is ending, which gives nothing back any more.
    if OWNED.try_with(|_| ()).is_err() {
        drop(Owned);
    }
    LINE.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Several rounds of more threads than there are lines.
    #[test]
    fn every_hit_counts_whoever_came_before_and_however_many_come_at_once() {
        let (counters, threads, hits) = (Counters::default(), 3 * LINES, 1_000);
        for round in 1..=20 {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| (0..hits).for_each(|_| counters.hit()));
                }
            });
            let counted = counters.snapshot(
                0,
                ConnectorStats::default(),
                FeedHealth::default(),
                BrakeHealth::default(),
            );
            assert_eq!(counted.hits, round * (threads * hits) as u64);
        }
    }

    #[test]
    fn a_thread_that_ended_leaves_its_line_to_the_next() {
        // Other tests hold lines too, so that one thread alone may find none; but nothing ever leaks.
        let mut own = 0;
        for _ in 0..100 * LINES {
            own += usize::from(std::thread::spawn(line).join().unwrap() < LINES);
        }
        assert!(own > 50 * LINES, "only {own} threads had a line of their own");
    }
}
