//! For how long a route is believed.

#[cfg(not(all(test, biplane_shuttle)))]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(all(test, biplane_shuttle))]
use shuttle::sync::atomic::{AtomicU64, Ordering};

/// Retired: it must not be served any more, whatever anybody learns about it.
const RETIRED: u64 = 0;

/// Over since the clock began, so that whoever comes next asks.
const OVER: u64 = 1;

/// Until when something may be served without asking, in milliseconds of a clock that never says 0.
///
/// Read without a lock by every lookup, and written under that of the router. Once retired it stays so, which is what
/// lets an invalidation act at once.
pub(super) struct Freshness {
    until: AtomicU64,
    confirmed_at: AtomicU64,
    /// A [`Standing`] as a number, with [`ANY_VERSION`] if that was said.
    standing: AtomicU64,
    /// In which life of the control plane it was read last.
    life: AtomicU64,
}

/// What a reader of the change log may conclude about something that it hears nothing of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// That nothing has changed.
    Sure,
    /// Nothing, because changes may have been missed since it was read.
    Doubted,
    /// Nothing, because it is known to have changed since it was read.
    Changed,
}

/// Whatever is read next replaces it, also what is older.
const ANY_VERSION: u64 = 4;

impl Freshness {
    pub(super) const fn new(life: u64, confirmed_at: u64, until: u64) -> Self {
        Self {
            until: AtomicU64::new(until),
            confirmed_at: AtomicU64::new(confirmed_at),
            standing: AtomicU64::new(0),
            life: AtomicU64::new(life),
        }
    }

    pub(super) const fn retired(life: u64, confirmed_at: u64) -> Self {
        Self::new(life, confirmed_at, RETIRED)
    }

    /// Over, and in doubt: nothing that was heard says anything about it.
    pub(super) fn expire_unread(&self) {
        self.until.store(OVER, Ordering::Release);
        self.doubt();
    }

    /// The same, in a place of its own.
    pub(super) fn copy(&self) -> Self {
        Self {
            until: AtomicU64::new(self.until.load(Ordering::Acquire)),
            confirmed_at: AtomicU64::new(self.confirmed_at.load(Ordering::Acquire)),
            standing: AtomicU64::new(self.standing.load(Ordering::Acquire)),
            life: AtomicU64::new(self.life()),
        }
    }

    #[inline]
    pub(super) fn holds(&self, now: u64) -> bool {
        now < self.until.load(Ordering::Acquire)
    }

    pub(super) fn confirmed_at(&self) -> u64 {
        self.confirmed_at.load(Ordering::Acquire)
    }

    pub(super) fn life(&self) -> u64 {
        self.life.load(Ordering::Acquire)
    }

    /// It was read again, in that life.
    pub(super) fn live_on(&self, life: u64) {
        self.life.fetch_max(life, Ordering::AcqRel);
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

    /// Makes whoever comes next ask, until it was read anew.
    pub(super) fn expire(&self) {
        self.stand(Standing::Changed);
        let over = |current: u64| (current != RETIRED).then_some(OVER);
        // It fails for what was retired, and for nothing else.
        let _ = self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, over);
    }

    /// It is known to have changed, and is served as it was until then all the same.
    pub(super) fn hold(&self, until: u64) {
        self.stand(Standing::Changed);
        self.extend(until);
    }

    pub(super) fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Acquire) & !ANY_VERSION {
            0 => Standing::Sure,
            1 => Standing::Doubted,
            _ => Standing::Changed,
        }
    }

    pub(super) fn takes_any_version(&self) -> bool {
        self.standing.load(Ordering::Acquire) & ANY_VERSION != 0
    }

    /// Nobody may conclude any more from hearing nothing that nothing has changed.
    pub(super) fn doubt(&self) {
        if self.standing() == Standing::Sure {
            self.stand(Standing::Doubted);
        }
    }

    /// The same, and versions of before and after are not comparable.
    pub(super) fn doubt_versions(&self) {
        self.doubt();
        self.standing.fetch_or(ANY_VERSION, Ordering::AcqRel);
    }

    /// It was read anew.
    pub(super) fn reassure(&self) {
        self.standing.store(0, Ordering::Release);
    }

    fn stand(&self, standing: Standing) {
        let kept = self.standing.load(Ordering::Acquire) & ANY_VERSION;
        let standing = match standing {
            Standing::Sure => 0,
            Standing::Doubted => 1,
            Standing::Changed => 2,
        };
        self.standing.store(standing | kept, Ordering::Release);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.until.load(Ordering::Acquire) == RETIRED
    }

    pub(super) fn retire(&self) {
        self.until.store(RETIRED, Ordering::Release);
    }
}

// Under shuttle these atomics work within its scheduler alone, and nothing here has an order to try.
#[cfg(all(test, not(biplane_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_retired_is_served_no_more_whatever_is_learnt_about_it() {
        let attempts: [fn(&Freshness); 5] = [
            |freshness| freshness.extend(100),
            |freshness| freshness.confirm(50, 100),
            |freshness| freshness.hold(100),
            Freshness::expire,
            Freshness::reassure,
        ];
        for attempt in attempts {
            let freshness = Freshness::new(1, 10, 20);
            assert!(freshness.holds(19));
            freshness.retire();
            attempt(&freshness);
            assert!(freshness.is_retired());
            assert!(!freshness.holds(1));
            assert!(!freshness.copy().holds(1));
        }
    }

    #[test]
    fn it_is_extended_and_never_shortened() {
        let freshness = Freshness::new(1, 10, 20);
        freshness.confirm(15, 30);
        freshness.confirm(12, 25);
        assert!(freshness.holds(29) && !freshness.holds(30));
        assert_eq!(freshness.confirmed_at(), 15);
    }

    #[test]
    fn what_is_over_holds_again_when_it_is_confirmed() {
        let freshness = Freshness::new(1, 10, 20);
        freshness.expire();
        assert!(!freshness.holds(11));
        assert_eq!(freshness.standing(), Standing::Changed);
        freshness.reassure();
        freshness.confirm(11, 40);
        assert!(freshness.holds(39));
        assert_eq!(freshness.standing(), Standing::Sure);
    }

    #[test]
    fn any_version_will_do_until_it_was_read_anew() {
        let freshness = Freshness::new(1, 10, 20);
        freshness.doubt_versions();
        assert_eq!(freshness.standing(), Standing::Doubted);
        freshness.hold(30);
        assert_eq!(freshness.standing(), Standing::Changed);
        assert!(freshness.takes_any_version());
        freshness.doubt();
        assert_eq!(
            freshness.standing(),
            Standing::Changed,
            "a change is more than a doubt"
        );
        freshness.reassure();
        assert!(!freshness.takes_any_version());
    }
}
