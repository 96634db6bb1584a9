//! The knobs of breakers, with the reasons for their defaults.

use std::{num::NonZeroU32, time::Duration};

use crate::error::{Error, ErrorKind};

/// When a server or a login that fails is left alone, and how it is taken back.
///
/// There is a breaker for each endpoint, and one for each data source, role and version of its credential. An open one
/// answers at once, with the time to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerOptions {
    /// Attempts to connect that must fail in a row before an endpoint is left alone. 3 by default: one may be a lost
    /// packet and two a coincidence. A session that was lost to an I/O error counts as one, but never as the last, so
    /// that a dead server is left alone after one failed attempt and a restarted one is not.
    pub failures: NonZeroU32,
    /// The shortest time for which an endpoint or login is left alone. 0.5 s by default: as long as a failover or a
    /// restart takes at least, and shorter than what a caller notices as an outage.
    pub shortest: Duration,
    /// The longest. It is approached by doubling, each time less a random part of up to a half, so that many processes
    /// do not come back at once. 30 s by default: the time for which a server that is back may go unused, and one
    /// attempt in it costs a dead server nothing.
    pub longest: Duration,
    /// How many connections may be opened at once when a server that came back counts as one that was never away. Until
    /// then they are 2 at first and one more with each that was opened, which doubles them with each round. 32 by
    /// default: five rounds, after which a server with cold caches has begun to warm up.
    pub slow_start: NonZeroU32,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self {
            failures: const { NonZeroU32::new(3).unwrap() },
            shortest: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            slow_start: const { NonZeroU32::new(32).unwrap() },
        }
    }
}

impl BreakerOptions {
    /// The same with another number of failures in a row.
    #[must_use]
    pub const fn failures(mut self, failures: NonZeroU32) -> Self {
        self.failures = failures;
        self
    }

    /// The same with other bounds on how long something is left alone.
    #[must_use]
    pub const fn back_off(mut self, shortest: Duration, longest: Duration) -> Self {
        self.shortest = shortest;
        self.longest = longest;
        self
    }

    /// The same with another end of the slow start.
    #[must_use]
    pub const fn slow_start(mut self, connections: NonZeroU32) -> Self {
        self.slow_start = connections;
        self
    }

    /// Whether these options can work. Called when a router is built.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfiguration`], with the name of the option.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |detail: &'static str| Err(Error::new(ErrorKind::InvalidConfiguration).detail(detail));
        if self.shortest.is_zero() {
            return invalid("breaker option shortest is 0; give it a time above 0");
        }
        if self.longest < self.shortest {
            return invalid("breaker option longest is below shortest");
        }
        Ok(())
    }
}
