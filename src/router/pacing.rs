//! How often a router may ask what it cannot answer itself: not at all for a while after the control plane could not be
//! asked, and not without end about names that nobody has.

use super::{CacheOptions, clock};
use crate::{
    error::{Error, ErrorKind},
    tenant::TenantName,
};

/// Lookups of unknown names that may come at once, in seconds of the rate that may go on for ever.
const BURST_SECONDS: i64 = 10;

/// Kept under the router's lock.
#[derive(Debug)]
pub(super) struct Pacing {
    retry_after: u64,
    pause: Option<Pause>,
    /// Ids come from handles and tokens, and must not wait for whoever scans hosts.
    ids: Bucket,
    names: Bucket,
}

#[derive(Debug)]
struct Pause {
    until: u64,
    error: Error,
}

impl Pacing {
    pub(super) fn new(options: &CacheOptions) -> Self {
        Self {
            retry_after: clock::millis(options.retry_after),
            pause: None,
            ids: Bucket::full(i64::from(options.unknown_lookups.get())),
            names: Bucket::full(i64::from(options.unknown_lookups.get())),
        }
    }

    /// The control plane could not be asked, so nobody asks it for a while. Of other failures the next answer may be
    /// better at once.
    pub(super) fn failed(&mut self, error: &Error, now: u64) {
        if error.kind() == ErrorKind::ControlPlaneUnavailable
            && !cfg!(biplane_mutant = "outages_are_not_paced")
        {
            self.pause = Some(Pause {
                until: now.saturating_add(self.retry_after),
                error: error.clone(),
            });
        }
    }

    /// It answered, which ends the pause.
    pub(super) fn answered(&mut self) {
        self.pause = None;
    }

    /// Why it is not asked now.
    pub(super) fn paused(&self, now: u64) -> Option<Error> {
        let pause = self.pause.as_ref().filter(|pause| now < pause.until)?;
        Some(pause.error.clone())
    }

    /// When to ask again about what could not be told now.
    pub(super) fn retry_at(&self, now: u64) -> u64 {
        match &self.pause {
            Some(pause) if now < pause.until => pause.until,
            _ => now.saturating_add(self.retry_after),
        }
    }

    /// Whether a name that nothing is known of may be asked for.
    pub(super) fn admits_unknown(&mut self, name: &TenantName, now: u64) -> bool {
        self.bucket(name).holds_some(now) || cfg!(biplane_mutant = "unknown_lookups_are_not_limited")
    }

    /// A name turned out to be unknown. Those that turn out to be a tenant's cost nothing, so that a process that starts
    /// cold asks for as many tenants as it has.
    pub(super) fn found_unknown(&mut self, name: &TenantName) {
        self.bucket(name).take_one();
    }

    fn bucket(&mut self, name: &TenantName) -> &mut Bucket {
        match name {
            TenantName::Id(_) => &mut self.ids,
            TenantName::Slug(_) | TenantName::Domain(_) => &mut self.names,
        }
    }
}

/// A bucket of tokens that fills up by itself. It may be overdrawn, by those that were on their way when it ran empty.
#[derive(Debug)]
struct Bucket {
    /// Tokens in a second, which is thousandths in a millisecond.
    rate: i64,
    /// In thousandths.
    level: i64,
    filled_at: u64,
}

impl Bucket {
    const fn full(rate: i64) -> Self {
        Self {
            rate,
            level: Self::most(rate),
            filled_at: 0,
        }
    }

    const fn most(rate: i64) -> i64 {
        rate.saturating_mul(BURST_SECONDS * 1_000)
    }

    fn holds_some(&mut self, now: u64) -> bool {
        let passed = i64::try_from(now.saturating_sub(self.filled_at)).unwrap_or(i64::MAX);
        self.filled_at = self.filled_at.max(now);
        let more = passed.saturating_mul(self.rate);
        self.level = self.level.saturating_add(more).min(Self::most(self.rate));
        self.level > 0
    }

    fn take_one(&mut self) {
        // No deeper than it is high, so that it is over with the flood.
        self.level = (self.level - 1_000).max(-Self::most(self.rate));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::full(5);
        let mut drain = |now| {
            let mut taken = 0;
            while bucket.holds_some(now) {
                bucket.take_one();
                taken += 1;
            }
            taken
        };
        assert_eq!(drain(1), 50);
        assert_eq!(drain(1), 0);
        assert_eq!(drain(1_001), 5);
        assert_eq!(drain(1_000_001), 50);
        assert_eq!(drain(u64::MAX), 50);
    }
}
