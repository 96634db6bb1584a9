//! What the log is told: a line when a breaker opens, one when it has closed, and one a minute in between.

use std::time::Duration;

use tokio::time::Instant;

use super::BreakerScope;
use crate::error::Error;

/// How often an open breaker says in the log how many were refused.
pub(super) const SUMMARY_EVERY: Duration = Duration::from_secs(60);

/// An outage that the log knows of.
#[derive(Debug)]
pub(super) struct Outage {
    pub(super) since: Instant,
    pub(super) told: Instant,
    /// What `refused` was then.
    pub(super) refused_then: u64,
}

/// What the log is told.
#[derive(Clone, Debug)]
pub(super) enum Line {
    Opened(BreakerScope, Duration, Option<Error>),
    Closed(BreakerScope, Duration, u64),
    Still(BreakerScope, Duration, u64),
}

impl Line {
    pub(super) fn write(self) {
        match self {
            Self::Opened(scope, time, Some(reason)) => tracing::warn!(
                breaker = %scope,
                retry_after_ms = time.as_millis() as u64,
                %reason,
                "failures in a row; it is left alone for now"
            ),
            Self::Opened(scope, time, None) => tracing::warn!(
                breaker = %scope,
                retry_after_ms = time.as_millis() as u64,
                "failures in a row; it is left alone for now"
            ),
            Self::Closed(scope, lasted, refused) => tracing::info!(
                breaker = %scope,
                after_ms = lasted.as_millis() as u64,
                refused,
                "it works again"
            ),
            Self::Still(scope, lasts, refused) => tracing::warn!(
                breaker = %scope,
                for_s = lasts.as_secs(),
                refused,
                "it still fails; callers refused since the last report"
            ),
        }
    }
}
