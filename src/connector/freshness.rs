//! For how long a route is believed.

#[cfg(not(all(test, biplane_shuttle)))]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(all(test, biplane_shuttle))]
use shuttle::sync::atomic::{AtomicU64, Ordering};

/// Retired: it must not be served any more, whatever anybody learns about it.
const RETIRED: u64 = 0;

/// Until when something may be served without asking, in milliseconds of a clock that never says 0.
///
/// Read without a lock by every lookup. Once retired it stays so, which is what lets an invalidation act at once.
pub(super) struct Freshness {
    until: AtomicU64,
    confirmed_at: AtomicU64,
}

impl Freshness {
    pub(super) const fn new(confirmed_at: u64, until: u64) -> Self {
        Self {
            until: AtomicU64::new(until),
            confirmed_at: AtomicU64::new(confirmed_at),
        }
    }

    pub(super) const fn retired(confirmed_at: u64) -> Self {
        Self::new(confirmed_at, RETIRED)
    }

    #[inline]
    pub(super) fn holds(&self, now: u64) -> bool {
        now < self.until.load(Ordering::Acquire)
    }

    pub(super) fn confirmed_at(&self) -> u64 {
        self.confirmed_at.load(Ordering::Acquire)
    }

    /// Never shortens, and does not bring back what was retired.
    pub(super) fn extend(&self, until: u64) {
        let keeps = cfg!(biplane_mutant = "retired_comes_back");
        let extended = |current: u64| (current != RETIRED || keeps).then(|| current.max(until));
        // It fails for what was retired, and for nothing else.
        let _ = self
            .until
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, extended);
    }

    pub(super) fn confirm(&self, at: u64, until: u64) {
        self.confirmed_at.fetch_max(at, Ordering::AcqRel);
        self.extend(until);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.until.load(Ordering::Acquire) == RETIRED
    }

    pub(super) fn retire(&self) {
        self.until.store(RETIRED, Ordering::Release);
    }
}
