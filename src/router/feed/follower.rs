//! Looking at the change log, and applying what it says.

use std::{collections::VecDeque, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Feed, Jitter,
    ears::{self, Heard},
};
use crate::{
    error::{Error, ErrorKind},
    repository::{ChangeHead, Changes},
    router::{
        core::{Core, MAX_NAMES, MAX_QUERIES},
        known::Page,
    },
    tenant::{Seq, TenantId},
};

/// How soon a look may follow another because of a push. A change in a quiet log acts at once; of many in a row, those
/// that come within this time are read together.
const HINT_PAUSE: Duration = Duration::from_millis(20);

/// What the task does, for ever.
pub(super) async fn follow<H: Clone + Send + Sync + 'static>(core: Arc<Core<H>>, feed: Arc<Feed>) {
    let follower = Follower {
        core,
        feed: Arc::clone(&feed),
        jitter: Jitter::new(),
        unsure: VecDeque::new(),
        batch_due: Instant::now(),
        owed: None,
    };
    match feed.source.push() {
        Some(push) => {
            tokio::join!(follower.run(), ears::listen(push, &feed));
        }
        None => follower.run().await,
    }
}

struct Follower<H: Clone + Send + Sync + 'static> {
    core: Arc<Core<H>>,
    feed: Arc<Feed>,
    jitter: Jitter,
    /// Tenants to be read again, a batch at a time.
    unsure: VecDeque<TenantId>,
    batch_due: Instant,
    /// What had been told before the last look, and what that found, if it was more.
    owed: Option<(Heard, Seq)>,
}

enum Why {
    Time,
    Told,
    Batch,
}

impl<H: Clone + Send + Sync + 'static> Follower<H> {
    async fn run(mut self) {
        let mut heard = self.feed.heard.subscribe();
        let mut seen = Heard::default();
        let mut due = Instant::now();
        let mut began = due;
        loop {
            let why = tokio::select! {
                () = sleep_until(due) => Why::Time,
                told = heard.changed() => {
                    told.expect("the sender lives in the feed");
                    Why::Told
                }
                () = sleep_until(self.batch_due), if !self.unsure.is_empty() => Why::Batch,
            };
            match why {
                Why::Batch => {
                    self.send_batch();
                    continue;
                }
                Why::Told if !self.is_news(*heard.borrow(), seen) => {
                    heard.mark_unchanged();
                    continue;
                }
                Why::Told => sleep_until(began + HINT_PAUSE).await,
                Why::Time => self.check_push(*heard.borrow()),
            }
            // Before the log is asked: whatever is told from now on may be newer than the answer.
            let now = *heard.borrow_and_update();
            let no_gap = now.looks == seen.looks;
            seen = now;
            began = Instant::now();
            due = began + self.jitter.around(self.feed.options.interval);
            let told = (matches!(why, Why::Told) && no_gap).then_some(now.seq);
            let found = self.look(told).await;
            if matches!(why, Why::Time) {
                self.owed = found
                    .filter(|found| no_gap && *found > now.seq)
                    .map(|found| (now, found));
            }
        }
    }

    /// Whether what was told is more than what is applied, or the log could not be read and now tells something.
    fn is_news(&self, told: Heard, seen: Heard) -> bool {
        let applied = self.feed.position().map(|position| position.seq);
        // After a restore positions are lower, and the look that found that out may have come before the new incarnation.
        let any_is = self.feed.is_failing() && !cfg!(biplane_mutant = "old_positions_are_no_news");
        told.looks != seen.looks || Some(told.seq) > applied || any_is
    }

    /// Push had the time of a whole interval to tell what the last look found. If it told nothing, nobody is at the other
    /// end.
    fn check_push(&mut self, heard: Heard) {
        if let Some((then, found)) = self.owed.take()
            && heard.looks == then.looks
            && heard.seq < found
            && !cfg!(biplane_mutant = "deaf_ears_are_trusted")
        {
            self.feed.deaf.notify_waiters();
        }
    }

    async fn look(&mut self, told: Option<Seq>) -> Option<Seq> {
        self.core.known.remind(self.core.now());
        match self.read(told).await {
            Ok(found) => {
                self.feed.could_read();
                found
            }
            Err(error) => {
                let now = self.core.now();
                let workers = self.core.known.follow_no_further(now, MAX_QUERIES);
                self.core.start(&Handle::current(), workers);
                self.core.tell_what_acts();
                self.feed.could_not_read(&error, now);
                None
            }
        }
    }

    /// Reads whatever was committed since the last look, and applies it. Gives the last change if there was any.
    async fn read(&mut self, told: Option<Seq>) -> Result<Option<Seq>, Error> {
        let (core, feed) = (Arc::clone(&self.core), Arc::clone(&self.feed));
        let log = feed.source.log();
        let Some(mut position) = feed.position() else {
            let head = self.ask(async { log.head().await }).await?;
            core.known.begin_to_follow(&head, core.now());
            feed.reached(head);
            feed.acts();
            tracing::info!(seq = head.seq.value(), "follows the changes of the control plane");
            core.tell_unfenced(&Handle::current());
            return Ok(None);
        };
        let mut found = None;
        if let Some(told) = told
            && cfg!(biplane_mutant = "hints_are_believed")
        {
            position.seq = Seq::new(told.value().saturating_sub(1));
        }
        loop {
            let mut asked_at = core.now();
            let read = self
                .ask(async { log.since(position.seq, feed.options.page).await })
                .await?;
            if cfg!(biplane_mutant = "confirmed_as_of_the_answer") {
                asked_at = core.now();
            }
            if read.head.incarnation != position.incarnation
                && !cfg!(biplane_mutant = "lives_are_not_told_apart")
            {
                core.known.other_life();
                feed.resync("the control plane was restored or made anew");
                position = read.head;
                feed.reached(position);
                continue;
            }
            if read.head.seq < position.seq {
                return Err(Error::new(ErrorKind::ControlPlaneUnavailable).detail(
                    "its change log ends before what was read from it; after a restore, give it a new incarnation",
                ));
            }
            if read.truncated && !cfg!(biplane_mutant = "truncation_is_not_seen") {
                core.known.missed_changes();
                feed.resync("changes were pruned before they were read");
            }
            found = read.changes.last().map(|change| change.seq).or(found);
            let is_last = self.apply(&read, asked_at, &mut position);
            if is_last {
                return Ok(found);
            }
        }
    }

    /// Applies a page, and says whether it was the last.
    fn apply(&mut self, read: &Changes, asked_at: u64, position: &mut ChangeHead) -> bool {
        let full = read.changes.len() >= usize::try_from(self.feed.options.page.get()).unwrap_or(usize::MAX);
        let last = read.changes.last().map(|change| change.seq);
        let is_last = !full || last >= Some(read.head.seq);
        let page = Page {
            changes: &read.changes,
            head: read.head,
            is_last,
            asked_at,
        };
        let followed = self.core.known.follow(&page, MAX_QUERIES);
        self.core.start(&Handle::current(), followed.workers);
        position.seq = match last {
            Some(last) => last,
            None if read.truncated => read.head.seq,
            None => position.seq,
        };
        self.feed.reached(*position);
        if is_last && (followed.held == 0 || cfg!(biplane_mutant = "what_is_held_counts_as_applied")) {
            self.feed.acts();
        }
        if is_last {
            self.feed.caught_up(asked_at, followed.unsure.len());
            if self.unsure.is_empty() && !followed.unsure.is_empty() {
                self.unsure = followed.unsure.into();
                let at_most = self.feed.options.resync_interval;
                self.batch_due = Instant::now() + self.jitter.below(at_most);
            }
        }
        is_last
    }

    /// Has a batch of unsure tenants read again, without waiting for them: whoever is still unsure at the next look gets
    /// another turn.
    fn send_batch(&mut self) {
        let most = if cfg!(biplane_mutant = "resyncs_come_all_at_once") {
            usize::MAX
        } else {
            MAX_NAMES
        };
        let batch: Vec<TenantId> = self.unsure.drain(..most.min(self.unsure.len())).collect();
        let workers = self.core.known.reload(&batch, MAX_QUERIES);
        self.core.start(&Handle::current(), workers);
        self.batch_due = Instant::now() + self.jitter.around(self.feed.options.resync_interval);
    }

    async fn ask<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let answer = AssertUnwindSafe(answer).catch_unwind();
        match timeout(self.feed.options.query_timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_panic)) => Err(Error::new(ErrorKind::Internal).detail("the change log panicked")),
            Err(_) => {
                Err(Error::new(ErrorKind::ControlPlaneUnavailable).detail("no answer within query_timeout"))
            }
        }
    }
}
