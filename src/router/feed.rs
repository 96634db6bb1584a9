//! Following the change log: one task for a router, whatever the number of its tenants.
//!
//! The task looks at the log from time to time, and at once when a push says that it has grown. It begins when the router
//! is built inside a runtime, otherwise with the first lookup that needs one, and ends with the router. When its runtime
//! is shut down it goes on from where it was, on the runtime of the next lookup that the cache has no answer for.

mod ears;
mod follower;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::AbortHandle,
};
use uuid::Uuid;

use self::ears::Heard;
use super::{FeedOptions, core::Core};
use crate::{
    error::{Error, ErrorKind},
    repository::{ChangeHead, ChangeSource},
    tenant::Seq,
};

/// How a router hears of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FeedEngine {
    /// It does not: routes go by their age.
    #[default]
    Off,
    /// It looks at the change log from time to time.
    Polling,
    /// It is told, and looks from time to time as well.
    Push,
}

/// How a router's change feed is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeedHealth {
    /// How it hears of changes.
    pub engine: FeedEngine,
    /// Up to where all changes act in this process; `None` before the change log was first read. It stands still while
    /// changes are [held](super::BrakeHealth).
    pub applied: Option<Seq>,
    /// How long ago the change log was asked when it last had nothing more to tell: no route is older than that, but those
    /// that are counted by `unsure_tenants` and by [`held_tenants`](super::BrakeHealth::held_tenants).
    pub lag: Option<Duration>,
    /// For how long the change log could not be read; `None` while it can.
    pub failing_for: Option<Duration>,
    /// Why it last could not be read, or push could not be heard.
    pub last_error: Option<ErrorKind>,
    /// Whether a push is being listened to.
    pub listening: bool,
    /// How often a push that was listened to was lost.
    pub push_losses: u64,
    /// How often changes may have been missed, because history was pruned or the control plane was restored.
    pub resyncs: u64,
    /// Cached tenants that the feed says nothing about until they are read again, and whose routes go by their age.
    pub unsure_tenants: usize,
}

/// The feed of a router.
pub(super) struct Feed {
    source: ChangeSource,
    options: FeedOptions,
    state: Mutex<State>,
    heard: watch::Sender<Heard>,
    /// Push did not tell what the log has told.
    deaf: Notify,
}

#[derive(Default)]
struct State {
    task: Option<AbortHandle>,
    stopped: bool,
    position: Option<ChangeHead>,
    /// Up to where all changes act, which is less while some are held.
    applied: Option<Seq>,
    /// When the log was asked that had nothing more to tell, by the router's clock.
    caught_up_at: Option<u64>,
    failing_since: Option<u64>,
    last_error: Option<ErrorKind>,
    ears: Ears,
    push_losses: u64,
    resyncs: u64,
    resyncing: bool,
    unsure: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ears {
    #[default]
    NotYet,
    Open,
    Shut,
}

impl Feed {
    pub(super) fn new(source: ChangeSource, options: FeedOptions) -> Self {
        Self {
            source,
            options,
            state: Mutex::default(),
            heard: watch::Sender::new(Heard::default()),
            deaf: Notify::new(),
        }
    }

    /// Starts the task, unless it runs or the router has ended.
    pub(super) fn start<H: Clone + Send + Sync + 'static>(
        self: &Arc<Self>,
        core: &Arc<Core<H>>,
        runtime: &Handle,
    ) {
        let mut state = self.state();
        let runs = state.task.as_ref().is_some_and(|task| !task.is_finished());
        if !runs && !state.stopped {
            let task = runtime.spawn(follower::follow(Arc::clone(core), Arc::clone(self)));
            state.task = Some(task.abort_handle());
        }
    }

    /// Ends the task, for good.
    pub(super) fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        if let Some(task) = state.task.take() {
            task.abort();
        }
    }

    pub(super) fn health(&self, now: u64) -> FeedHealth {
        let state = self.state();
        let since = |then: u64| Duration::from_millis(now.saturating_sub(then));
        FeedHealth {
            engine: match self.source.push() {
                Some(_) => FeedEngine::Push,
                None => FeedEngine::Polling,
            },
            applied: state.applied,
            lag: state.caught_up_at.map(since),
            failing_for: state.failing_since.map(since),
            last_error: state.last_error,
            listening: state.ears == Ears::Open,
            push_losses: state.push_losses,
            resyncs: state.resyncs,
            unsure_tenants: state.unsure,
        }
    }

    fn position(&self) -> Option<ChangeHead> {
        self.state().position
    }

    /// All changes up to here have been read.
    fn reached(&self, position: ChangeHead) {
        self.state().position = Some(position);
    }

    /// All that were read act.
    pub(super) fn acts(&self) {
        let mut state = self.state();
        state.applied = state.position.map(|position| position.seq);
    }

    /// There were no more of them when the log was asked, and so many tenants are unsure.
    fn caught_up(&self, asked_at: u64, unsure: usize) {
        let mut state = self.state();
        state.caught_up_at = Some(asked_at);
        state.unsure = unsure;
        if state.resyncing && unsure == 0 {
            state.resyncing = false;
            tracing::info!("every cached tenant has been looked at again");
        }
    }

    /// Changes may have been missed.
    fn resync(&self, why: &'static str) {
        let mut state = self.state();
        state.resyncs += 1;
        state.resyncing = true;
        tracing::warn!(
            "{why}; every cached tenant is looked at again, and served meanwhile as its age allows"
        );
    }

    fn is_failing(&self) -> bool {
        self.state().failing_since.is_some()
    }

    fn could_read(&self) {
        if self.state().failing_since.take().is_some() {
            tracing::info!("the change log can be read again");
        }
    }

    fn could_not_read(&self, error: &Error, now: u64) {
        let mut state = self.state();
        state.last_error = Some(error.kind());
        if state.failing_since.is_none() {
            state.failing_since = Some(now);
            tracing::warn!(%error, "the change log cannot be read; routes go by their age until it can");
        }
    }

    fn hears(&self) {
        let mut state = self.state();
        if std::mem::replace(&mut state.ears, Ears::Open) == Ears::Shut {
            tracing::info!("changes are pushed again");
        }
    }

    fn hears_no_more(&self, error: &Error) {
        let mut state = self.state();
        state.last_error = Some(error.kind());
        let before = std::mem::replace(&mut state.ears, Ears::Shut);
        state.push_losses += u64::from(before == Ears::Open);
        if before != Ears::Shut {
            tracing::warn!(%error, "changes are not pushed; the change log is looked at from time to time");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under this lock leaves a half-made change behind when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Random times, so that processes that begin together do not go on together.
struct Jitter(u64);

impl Jitter {
    fn new() -> Self {
        Self(Uuid::new_v4().as_u64_pair().0 | 1)
    }

    /// The time, more or less by up to a fifth.
    fn around(&mut self, time: Duration) -> Duration {
        scaled(time, 0.8 + 0.4 * self.fraction())
    }

    /// Something between half the time and all of it.
    fn upper_half(&mut self, time: Duration) -> Duration {
        if cfg!(biplane_mutant = "listeners_come_back_in_step") {
            return time;
        }
        scaled(time, 0.5 + 0.5 * self.fraction())
    }

    /// Something up to the time.
    fn below(&mut self, time: Duration) -> Duration {
        scaled(time, self.fraction())
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        f64::from((self.0 >> 32) as u32) / f64::from(u32::MAX)
    }
}

fn scaled(time: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(time.as_secs_f64() * factor).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_begin_together_do_not_look_together() {
        let second = Duration::from_secs(1);
        let looks = |mut jitter: Jitter| -> Vec<_> { (0..100).map(|_| jitter.around(second)).collect() };
        let (one, other) = (looks(Jitter::new()), looks(Jitter::new()));
        assert_ne!(one, other);
        let fifth = second / 5;
        for time in one {
            assert!((second - fifth..=second + fifth).contains(&time), "{time:?}");
        }
        let longest = Jitter::new().around(Duration::MAX);
        assert!(longest >= Duration::MAX / 2);
    }
}
