//! Connections that were made with what their stack has replaced: how many there are, and how they come to an end.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::{
    Shared, Stack, cleanup,
    dial::{Backend, Dial},
    locked,
    scheduler::{Generation, StackId},
};

/// The connections of one stack, counted by generation from the attempt to open one until its backend is gone.
#[derive(Debug, Default)]
pub(super) struct Alive(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    current: Generation,
    made: BTreeMap<Generation, u32>,
}

/// That a connection is counted.
pub(super) struct Made {
    alive: Arc<Alive>,
    generation: Option<Generation>,
}

impl Alive {
    /// Counts one that is made with this.
    pub(super) fn add(self: &Arc<Self>, generation: Generation) -> Made {
        *locked(&self.0).made.entry(generation).or_default() += 1;
        Made {
            alive: Arc::clone(self),
            generation: Some(generation),
        }
    }

    /// What was made before is out of date.
    pub(super) fn begin(&self, generation: Generation) {
        let mut counts = locked(&self.0);
        counts.current = counts.current.max(generation);
    }

    fn outdated(&self) -> u32 {
        if cfg!(biplane_mutant = "old_connections_are_not_counted") {
            return 0;
        }
        let counts = locked(&self.0);
        counts.made.range(..counts.current).map(|(_, count)| count).sum()
    }

    fn is_empty(&self) -> bool {
        locked(&self.0).made.is_empty()
    }

    fn current(&self) -> Generation {
        locked(&self.0).current
    }
}

impl Made {
    /// Its backend is gone.
    pub(super) fn end(&mut self) {
        let Some(generation) = self.generation.take() else {
            return;
        };
        let mut counts = locked(&self.alive.0);
        if let Some(count) = counts.made.get_mut(&generation) {
            *count -= 1;
            if *count == 0 {
                counts.made.remove(&generation);
            }
        }
    }
}

impl Shared {
    /// Connections that were made with what has been replaced.
    pub(super) fn outdated(&self) -> u32 {
        self.all_stacks()
            .iter()
            .map(|stack| stack.0.alive.outdated())
            .sum()
    }

    /// Once a second: closes what rests with a login that has been replaced, though nobody comes; ends what has been lent
    /// for too long since; and renews logins before they expire.
    pub(super) fn follow_logins(self: &Arc<Self>) {
        self.end_outdated();
        if self.following.swap(true, Relaxed) {
            return;
        }
        let following = Following(Arc::clone(self));
        self.spawn(async move {
            let stacks = following.0.all_stacks();
            join_all(stacks.iter().map(Stack::follow)).await;
        });
    }

    fn end_outdated(self: &Arc<Self>) {
        let now = Instant::now();
        let current: HashMap<StackId, Generation> = self
            .all_stacks()
            .iter()
            .map(|stack| (stack.0.id, stack.0.alive.current()))
            .collect();
        let mut over: Vec<(Arc<Dial>, Backend)> = Vec::new();
        for lent in locked(&self.lent).values_mut() {
            if current
                .get(&lent.stack)
                .is_none_or(|current| lent.generation >= *current)
            {
                continue;
            }
            let since = *lent.outdated.get_or_insert(now);
            let waits = now.saturating_duration_since(since) < self.options.drain_timeout;
            if waits || cfg!(biplane_mutant = "old_logins_work_on_for_ever") {
                continue;
            }
            // Taken out, so that it is ended once.
            over.extend(
                lent.backend
                    .take()
                    .map(|backend| (Arc::clone(&lent.dial), backend)),
            );
        }
        if over.is_empty() {
            return;
        }
        tracing::warn!(
            connections = over.len(),
            "work that began before a login or an address was replaced goes on for too long; it is ended"
        );
        let shared = Arc::clone(self);
        self.spawn(async move {
            // Whatever has not ended by then is told of when it comes back.
            let _ = timeout(shared.options.leak_after, cleanup::end_backends(&shared, over)).await;
        });
    }

    /// Never under the lock: the last handle on a stack wants it as well.
    fn all_stacks(&self) -> Vec<Stack> {
        let stacks = locked(&self.stacks);
        stacks
            .values()
            .filter_map(|stack| stack.upgrade().map(Stack))
            .collect()
    }
}

/// While somebody finds out which stacks are out of date.
struct Following(Arc<Shared>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.following.store(false, Relaxed);
    }
}

impl Stack {
    async fn follow(&self) {
        if self.0.alive.is_empty() {
            // Nothing keeps a login in use, and so nothing is to be renewed; what is kept need not be.
            let dial = Arc::clone(&locked(&self.0.target).dial);
            if dial.logins.is_due() || dial.logins.is_over() {
                dial.logins.forget();
            }
            return;
        }
        let renewal = locked(&self.0.target).renewal.clone();
        if let Some(renewal) = renewal
            && !cfg!(biplane_mutant = "who_rests_is_not_told")
        {
            renewal.follow().await;
        }
        let dial = Arc::clone(&locked(&self.0.target).dial);
        if dial.logins.is_over() {
            dial.logins.forget();
        } else if dial.logins.is_due() {
            dial.logins.renew().await;
        }
    }
}
