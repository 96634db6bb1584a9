//! Waiting for a condition, with a deadline.
//!
//! A test that sleeps for as long as something "should" take is slow on a fast machine and fails on a slow one. A
//! test that asks again and again until a deadline is neither.

use std::{borrow::Cow, sync::mpsc, thread, time::Duration};

use tokio::sync::oneshot;

/// How long to pause before the condition is asked again: short beside anything that a test waits for, long enough
/// that asking does not itself load the machine.
const PAUSE: Duration = Duration::from_millis(5);

/// The condition did not come true in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("waited {limit:?} for {what} and asked {asked} times, but it did not happen")]
pub struct TimedOut {
    what: Cow<'static, str>,
    limit: Duration,
    asked: u64,
}

impl TimedOut {
    /// What was waited for.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// For how long.
    #[must_use]
    pub const fn limit(&self) -> Duration {
        self.limit
    }
}

/// Waits until the condition is true.
///
/// The limit is real time also while tokio's clock is paused, so that a paused test can wait for a real server; and
/// it holds also when the condition itself hangs. The condition is asked at least once, whatever the limit.
///
/// ```
/// # use std::time::Duration;
/// # use biplane::testing::wait;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), wait::TimedOut> {
/// let mut left = 3;
/// wait::until("the countdown", Duration::from_secs(5), async || {
///     left -= 1;
///     left == 0
/// })
/// .await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// When the limit passes first. The error names `what`.
///
/// # Cancel safety
/// Dropping the future stops the waiting, and the condition where it stands.
pub async fn until(
    what: impl Into<Cow<'static, str>>,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> Result<(), TimedOut> {
    until_some(what, limit, async || condition().await.then_some(())).await
}

/// Waits until there is a value, and returns it. Otherwise as [`until`].
///
/// # Errors
/// When the limit passes first. The error names `what`.
///
/// # Cancel safety
/// Dropping the future stops the waiting, and the search where it stands.
pub async fn until_some<T>(
    what: impl Into<Cow<'static, str>>,
    limit: Duration,
    mut find: impl AsyncFnMut() -> Option<T>,
) -> Result<T, TimedOut> {
    let mut asked = 0;
    let asking = async {
        loop {
            asked += 1;
            if let Some(found) = find().await {
                return found;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let found = tokio::select! {
        biased;
        found = asking => Some(found),
        () = real_time(limit) => None,
    };
    found.ok_or_else(|| TimedOut {
        what: what.into(),
        limit,
        asked,
    })
}

/// Comes back after a stretch of real time. A thread measures it, because tokio's timers follow tokio's clock, which
/// a paused test moves at will.
async fn real_time(limit: Duration) {
    let (passed, over) = oneshot::channel();
    let (_abandoned, abandon) = mpsc::channel::<()>();
    thread::spawn(move || {
        if abandon.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            // Nobody is left to tell when the waiting ended at this very moment.
            let _ = passed.send(());
        }
    });
    if over.await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_condition_that_comes_true_ends_the_wait() {
        let mut asked = 0;
        let found = until_some("the third time", Duration::from_secs(10), async || {
            asked += 1;
            (asked == 3).then_some("here")
        })
        .await;
        assert_eq!(found, Ok("here"));
    }

    #[tokio::test]
    async fn a_condition_that_is_true_needs_no_time() {
        assert_eq!(until("nothing", Duration::ZERO, async || true).await, Ok(()));
    }

    #[tokio::test]
    async fn the_error_names_what_was_waited_for() {
        let error = until("Godot", Duration::from_millis(20), async || false)
            .await
            .unwrap_err();
        assert_eq!(
            (error.what(), error.limit()),
            ("Godot", Duration::from_millis(20))
        );
        assert!(error.to_string().contains("20ms for Godot"), "{error}");
    }

    #[tokio::test]
    async fn the_limit_holds_for_a_condition_that_hangs() {
        let error = until("a hanging question", Duration::from_millis(20), async || {
            std::future::pending().await
        })
        .await
        .unwrap_err();
        assert!(error.to_string().contains("asked 1 times"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_does_not_shorten_the_limit() {
        let began = Instant::now();
        let real = async || began.elapsed() > Duration::from_millis(50);
        assert_eq!(
            until("50 ms of real time", Duration::from_secs(10), real).await,
            Ok(())
        );
    }
}
