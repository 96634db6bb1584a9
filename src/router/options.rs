//! The knobs of a router, with the reasons for their defaults.

use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// For how long a router believes what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheOptions {
    /// For how long a route is served without asking, to within a tenth of a second. 30 s by default: a change that
    /// nobody announced acts within it, and a tenant in steady use costs the control plane two queries a minute and
    /// process.
    pub fresh_for: Duration,
    /// For how long an open tenant's route is served when the control plane cannot tell, counted from when it last
    /// could. 24 h by default: an outage of the control plane is not an outage of the tenants.
    pub stale_for: Duration,
    /// How soon the control plane is asked again about a tenant whose cached route is served because it could not be.
    /// 1 s by default: those callers do not wait for a dead server one after the other. A tenant that is not cached has
    /// nothing to be served with, and is asked for each time.
    pub retry_after: Duration,
    /// For how long an unknown name stays unknown, less a random quarter. 3 s by default: enough to take the load off a
    /// host that is being scanned, short enough for a tenant who has just signed up elsewhere.
    pub unknown_for: Duration,
    /// How many unknown names are remembered; the least recently used make room. 10,000 by default, about 2 MiB.
    pub unknown_names: u64,
    /// How long one query to the control plane may take. 2 s by default.
    pub load_timeout: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            fresh_for: Duration::from_secs(30),
            stale_for: Duration::from_secs(24 * 60 * 60),
            retry_after: Duration::from_secs(1),
            unknown_for: Duration::from_secs(3),
            unknown_names: 10_000,
            load_timeout: Duration::from_secs(2),
        }
    }
}

impl CacheOptions {
    /// The same with another time to serve a route without asking.
    #[must_use]
    pub const fn fresh_for(mut self, time: Duration) -> Self {
        self.fresh_for = time;
        self
    }

    /// The same with another time to serve a route when the control plane cannot be asked.
    #[must_use]
    pub const fn stale_for(mut self, time: Duration) -> Self {
        self.stale_for = time;
        self
    }

    /// The same with another pause before a control plane that could not tell is asked again.
    #[must_use]
    pub const fn retry_after(mut self, time: Duration) -> Self {
        self.retry_after = time;
        self
    }

    /// The same with another time for an unknown name.
    #[must_use]
    pub const fn unknown_for(mut self, time: Duration) -> Self {
        self.unknown_for = time;
        self
    }

    /// The same with another number of unknown names to remember.
    #[must_use]
    pub const fn unknown_names(mut self, names: u64) -> Self {
        self.unknown_names = names;
        self
    }

    /// The same with another limit on a query to the control plane.
    #[must_use]
    pub const fn load_timeout(mut self, time: Duration) -> Self {
        self.load_timeout = time;
        self
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid = |detail: &'static str| Err(Error::new(ErrorKind::InvalidConfiguration).detail(detail));
        if self.fresh_for.is_zero() || self.load_timeout.is_zero() || self.retry_after.is_zero() {
            return invalid("cache options fresh_for, retry_after and load_timeout must be above 0");
        }
        if self.stale_for < self.fresh_for {
            return invalid(
                "cache option stale_for is below fresh_for; a route may not be stale before it is old",
            );
        }
        Ok(())
    }
}
