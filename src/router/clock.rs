//! The clock of the warm path: read with one load, right to within a tenth of a second.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How often the clock moves on. Freshness is counted in seconds, and to ask the operating system for the time costs
/// more than the lookup itself.
const TICK: Duration = Duration::from_millis(100);

/// Milliseconds since some moment in the past, never 0.
///
/// The clock of the process is moved by a thread of its own, which sleeps otherwise; it is shared by all routers.
#[derive(Clone, Debug)]
pub struct Clock {
    millis: Arc<AtomicU64>,
    /// When it began, unless it is moved by hand.
    started: Option<Instant>,
}

impl Clock {
    /// The clock of this process.
    #[must_use]
    pub fn system() -> Self {
        static SYSTEM: OnceLock<Clock> = OnceLock::new();
        SYSTEM.get_or_init(Self::start).clone()
    }

    /// A clock that stands until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual() -> Self {
        Self {
            millis: Arc::new(AtomicU64::new(1)),
            started: None,
        }
    }

    /// Moves a clock made by [`Clock::manual`], and all its clones. Time itself, on the clock of the process, nobody
    /// moves.
    pub fn advance(&self, by: Duration) {
        if self.started.is_none() {
            // Saturates, so that no distance makes the clock go back.
            let moved = |now: u64| Some(now.saturating_add(millis(by)));
            let _ = self
                .millis
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, moved);
        }
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.millis.load(Ordering::Acquire)
    }

    /// The time of the operating system, on the same scale, which [`Clock::now`] is behind of by a tick, and by any
    /// length of time after the process was stopped.
    pub(crate) fn exact(&self) -> u64 {
        match self.started {
            Some(started) => millis(started.elapsed()).saturating_add(1),
            None => self.now(),
        }
    }

    /// A clock of the process whose thread gets no time.
    #[cfg(test)]
    pub(super) fn stalled() -> Self {
        Self {
            millis: Arc::new(AtomicU64::new(1)),
            started: Some(Instant::now()),
        }
    }

    fn start() -> Self {
        let started = Instant::now();
        let clock = Self {
            millis: Arc::new(AtomicU64::new(1)),
            started: Some(started),
        };
        let shared = Arc::clone(&clock.millis);
        let tick = move || {
            loop {
                thread::sleep(TICK);
                shared.store(millis(started.elapsed()).saturating_add(1), Ordering::Release);
            }
        };
        thread::Builder::new()
            .name("biplane-clock".into())
            .spawn(tick)
            .expect("the operating system can start one thread more");
        clock
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
