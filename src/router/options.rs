//! The knobs of a router, with the reasons for their defaults.

use std::{num::NonZeroU32, time::Duration};

use crate::error::{Error, ErrorKind};

/// For how long a router believes what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheOptions {
    /// For how long a route is served without asking, to within a tenth of a second. 30 s by default: a change that
    /// nobody announced is asked for within it, and a tenant in steady use costs the control plane two queries a minute
    /// and process. With a change feed that works nobody asks at all.
    pub fresh_for: Duration,
    /// For how long an open tenant's route is served while one refresh runs behind it, counted like `fresh_for`. 5 min by
    /// default: no caller waits for a control plane that is slow, or restarts, and a tenant that nobody has used for
    /// longer is not met with what it was long ago. Not above `fresh_for` it means that whoever comes after that waits.
    pub refresh_for: Duration,
    /// For how long an open tenant's route is served when the control plane cannot tell, counted from when it last
    /// could. 24 h by default: an outage of the control plane is not an outage of the tenants.
    pub stale_for: Duration,
    /// After what age no route is served, whatever else is said here. None by default, because availability comes first;
    /// set where a revoked tenant must not be served for longer even if the control plane cannot be reached. It is held
    /// against the clock of the operating system, which each lookup then reads, so that it also holds for a process that
    /// was stopped.
    pub fail_closed_after: Option<Duration>,
    /// For how long the control plane is left alone after it could not be asked: routes are served as `stale_for` allows,
    /// and whoever has none is refused without asking. 1 s by default, so that callers do not wait for a dead server one
    /// after the other. An answer to whoever asks all the same, the change feed above all, ends it at once.
    pub retry_after: Duration,
    /// For how long an unknown name stays unknown, less a random quarter. 3 s by default: enough to take the load off a
    /// host that is being scanned, short enough for a tenant who has just signed up elsewhere.
    pub unknown_for: Duration,
    /// How many unknown names are remembered; the least recently used make room. 10,000 by default, about 2 MiB.
    pub unknown_names: u64,
    /// How many unknown slugs and domains, and as many ids, are asked for in a second, over ten seconds; further ones of
    /// which nothing is known are refused with [`TooManyUnknownNames`](ErrorKind::TooManyUnknownNames). 200 by default: far more than people mistype,
    /// and for 50 processes that are being scanned 10,000 look-ups by index a second, most of them in batches.
    pub unknown_lookups: NonZeroU32,
    /// How long one query to the control plane may take. 2 s by default.
    pub load_timeout: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            fresh_for: Duration::from_secs(30),
            refresh_for: Duration::from_secs(5 * 60),
            stale_for: Duration::from_secs(24 * 60 * 60),
            fail_closed_after: None,
            retry_after: Duration::from_secs(1),
            unknown_for: Duration::from_secs(3),
            unknown_names: 10_000,
            unknown_lookups: const { NonZeroU32::new(200).unwrap() },
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

    /// The same with another time to serve a route while it is refreshed.
    #[must_use]
    pub const fn refresh_for(mut self, time: Duration) -> Self {
        self.refresh_for = time;
        self
    }

    /// The same with a bound on the age of everything that is served.
    #[must_use]
    pub const fn fail_closed_after(mut self, age: Duration) -> Self {
        self.fail_closed_after = Some(age);
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

    /// The same with another rate of asking for unknown names.
    #[must_use]
    pub const fn unknown_lookups(mut self, in_a_second: NonZeroU32) -> Self {
        self.unknown_lookups = in_a_second;
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
        if self.fail_closed_after.is_some_and(|age| age.is_zero()) {
            return invalid("cache option fail_closed_after must be above 0, or nothing could be served");
        }
        if self.stale_for < self.fresh_for {
            return invalid(
                "cache option stale_for is below fresh_for; a route may not be stale before it is old",
            );
        }
        Ok(())
    }
}

/// How a router follows changes.
///
/// A change acts in every process of a service within the longer of `interval`, with its fifth, and `query_timeout`, and
/// once more `query_timeout`: 3 s by default, while the change log can be read. With push it acts as soon as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeedOptions {
    /// How often the change log is looked at, from one question to the next; each time by up to a fifth more or less, so
    /// that processes do not ask in step. 1 s by default: one small query a second and process.
    pub interval: Duration,
    /// How long a look may take. 1.5 s by default: with the interval it makes for the bound above.
    pub query_timeout: Duration,
    /// How many changes are read at once. 1,000 by default, about 100 KiB; when there are more, the next are read at once.
    pub page: NonZeroU32,
    /// How often a batch of at most 500 tenants is looked at again after changes may have been missed, because history was
    /// pruned or the control plane was restored. 1 s by default: 10,000 tenants take 20 s, in which they are served as
    /// their age allows, and 100 processes that notice at the same moment ask 100 batched questions a second.
    pub resync_interval: Duration,
}

impl Default for FeedOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            query_timeout: Duration::from_millis(1_500),
            page: const { NonZeroU32::new(1_000).unwrap() },
            resync_interval: Duration::from_secs(1),
        }
    }
}

impl FeedOptions {
    /// The same with another time between looks.
    #[must_use]
    pub const fn interval(mut self, time: Duration) -> Self {
        self.interval = time;
        self
    }

    /// The same with another limit on a look.
    #[must_use]
    pub const fn query_timeout(mut self, time: Duration) -> Self {
        self.query_timeout = time;
        self
    }

    /// The same with another number of changes to read at once.
    #[must_use]
    pub const fn page(mut self, changes: NonZeroU32) -> Self {
        self.page = changes;
        self
    }

    /// The same with another time between the batches of a resynchronisation.
    #[must_use]
    pub const fn resync_interval(mut self, time: Duration) -> Self {
        self.resync_interval = time;
        self
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let times = [self.interval, self.query_timeout, self.resync_interval];
        if times.iter().any(Duration::is_zero) {
            return Err(Error::new(ErrorKind::InvalidConfiguration)
                .detail("feed options interval, query_timeout and resync_interval must be above 0"));
        }
        Ok(())
    }
}

/// When a router takes a change for a mistake: a statement without its `where`, a script gone wrong, a control plane that
/// was restored from the wrong backup or emptied.
///
/// What counts is an open tenant that is cached and that changes status, placement, names or the address of its data
/// source, or is deleted, each once within the window; a data source counts for every tenant on it. New tenants,
/// credentials and settings do not count, nor do closed tenants: opening takes nothing from anybody. It is counted by
/// what the change log says and by what is found when records are read, so that it also holds where the log was lost.
///
/// All that is found at once is weighed before any of it acts. Over the line, none of it does, and nothing more that would
/// close or move an open tenant, until somebody lets it through ([`Biplane::release_brake`](crate::Biplane::release_brake)).
/// Tenants that are not cached are loaded as usual, and whatever acted before stays.
///
/// After changes may have been missed, because history was pruned or the control plane was restored, the line is drawn
/// among the tenants that were read again, and not among all: `percent` of at least `at_least` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrakeOptions {
    /// More than so many of a hundred open tenants engage it. 50 by default: maintenance of one of several data servers
    /// passes, and whatever is about everybody is asked about.
    pub percent: u8,
    /// Below so many open tenants it never engages. 20 by default: with a few, any change is a large share of them, and a
    /// person oversees them all.
    pub at_least: usize,
    /// For how long a change counts. 1 min by default: a loop over all tenants takes seconds, and people who change one
    /// tenant after the other do not get through half of them in a minute.
    pub window: Duration,
}

impl Default for BrakeOptions {
    fn default() -> Self {
        Self {
            percent: 50,
            at_least: 20,
            window: Duration::from_secs(60),
        }
    }
}

impl BrakeOptions {
    /// The same with another share, of a hundred.
    #[must_use]
    pub const fn percent(mut self, percent: u8) -> Self {
        self.percent = percent;
        self
    }

    /// The same with another number of tenants below which it never engages.
    #[must_use]
    pub const fn at_least(mut self, tenants: usize) -> Self {
        self.at_least = tenants;
        self
    }

    /// The same with another time for which a change counts.
    #[must_use]
    pub const fn window(mut self, time: Duration) -> Self {
        self.window = time;
        self
    }

    /// Whether so many of so many are too many.
    pub(super) const fn stops(&self, changed: usize, of: usize) -> bool {
        of >= self.at_least
            && changed.saturating_mul(100) > of.saturating_mul(self.percent as usize)
            && !cfg!(biplane_mutant = "brake_never_engages")
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid = |detail: &'static str| Err(Error::new(ErrorKind::InvalidConfiguration).detail(detail));
        if !(1..=99).contains(&self.percent) {
            return invalid(
                "brake option percent is not between 1 and 99; build with without_brake if it shall never engage",
            );
        }
        if self.window.is_zero() {
            return invalid("brake option window must be above 0, or nothing would be counted");
        }
        Ok(())
    }
}
