//! The knobs of a pool, with the reasons for their defaults.

use std::{num::NonZeroU32, time::Duration};

use crate::error::{Error, ErrorKind};

/// How many physical connections one process holds, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolOptions {
    /// Physical connections at most, counting those that are being opened or closed. 50 by default: two processes fit
    /// into the 100 of an unconfigured Postgres with nothing else on it.
    pub cap: NonZeroU32,
    /// Connections beyond the cap that cancel abandoned work. 1 by default, and needed only for moments.
    pub reserved: NonZeroU32,
    /// Callers that may wait for a connection. 1,000 by default: at 1 ms a piece and 50 connections the last one waits
    /// 20 ms; more waiting would only hide the overload.
    pub max_waiting: usize,
    /// How long a caller waits. 5 s by default, less than the usual 10 s to 30 s of a request.
    pub wait_timeout: Duration,
    /// How long opening a connection may take. 4 s by default, so that a caller learns of a dead server and not only of
    /// its own impatience.
    pub connect_timeout: Duration,
    /// After which rest a connection is closed. 5 min by default: longer than the pauses of steady use, short enough to
    /// give back what a burst opened.
    pub idle_timeout: Duration,
    /// After which life a connection is replaced. 30 min by default, less a random tenth so that they do not go at
    /// once; bounds the memory of a backend, and the time until a server that moved is noticed.
    pub max_lifetime: Duration,
    /// After which rest a connection is probed before it is lent. 30 s by default: routers and firewalls forget flows
    /// after minutes, and a probe at every checkout would double the round trips. A connection to a standby whose login would
    /// rather write lives no longer.
    pub probe_after: Duration,
    /// How long a probe, or the clean-up of a returned connection, may take before the connection is closed instead.
    /// 2 s by default.
    pub reset_timeout: Duration,
    /// How long an abandoned statement may run on before it is cancelled. 100 ms by default: most have ended by then,
    /// and to cancel one costs a connection.
    pub cancel_after: Duration,
    /// How long a connection may stay lent after its login or address was replaced; then it is ended at the server, and
    /// whoever holds it sees its statement fail. 30 min by default, as long as a connection lives: longer than work should
    /// hold one, and a rotation ends on the day that it began. Behind a transaction pooler, where backends are not known,
    /// it ends nothing.
    pub drain_timeout: Duration,
    /// How long a permit is kept for a backend that does not go. 10 s by default; then it counts as leaked.
    pub leak_after: Duration,
    /// Whether sqlx logs statements. Off by default: they may hold personal data, and flood the log of a job.
    pub statement_logging: StatementLogging,
}

/// Whether sqlx logs each statement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StatementLogging {
    /// No statement is logged.
    #[default]
    Off,
    /// Every statement is logged at debug level under `sqlx::query`, its SQL text included.
    Debug,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            cap: const { NonZeroU32::new(50).unwrap() },
            reserved: NonZeroU32::MIN,
            max_waiting: 1_000,
            wait_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(4),
            idle_timeout: Duration::from_secs(300),
            max_lifetime: Duration::from_secs(1_800),
            probe_after: Duration::from_secs(30),
            reset_timeout: Duration::from_secs(2),
            cancel_after: Duration::from_millis(100),
            drain_timeout: Duration::from_secs(1_800),
            leak_after: Duration::from_secs(10),
            statement_logging: StatementLogging::Off,
        }
    }
}

impl PoolOptions {
    /// The same with another cap.
    #[must_use]
    pub const fn cap(mut self, cap: NonZeroU32) -> Self {
        self.cap = cap;
        self
    }

    /// The same with another time to wait for a connection.
    #[must_use]
    pub const fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = timeout;
        self
    }

    /// The same with another time to open a connection.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The same with statements logged or not.
    #[must_use]
    pub const fn statement_logging(mut self, logging: StatementLogging) -> Self {
        self.statement_logging = logging;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let timeouts = [
            ("wait_timeout", self.wait_timeout),
            ("connect_timeout", self.connect_timeout),
            ("idle_timeout", self.idle_timeout),
            ("max_lifetime", self.max_lifetime),
            ("reset_timeout", self.reset_timeout),
            ("leak_after", self.leak_after),
        ];
        match timeouts.into_iter().find(|(_, timeout)| timeout.is_zero()) {
            Some((name, _)) => Err(Error::new(ErrorKind::InvalidConfiguration)
                .detail(format!("pool option {name} is 0; give it a time above 0"))),
            None if self.max_waiting == 0 => Err(Error::new(ErrorKind::InvalidConfiguration)
                .detail("pool option max_waiting is 0; let at least one caller wait")),
            None => Ok(()),
        }
    }
}
