//! Connections that were made with what their stack has replaced: how many there are, and how they come to an end.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, Weak},
};

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
    /// Whether there has been none for so long that nothing is kept for them either.
    at_peace: bool,
}

/// That a connection is counted.
pub(super) struct Made {
    alive: Arc<Alive>,
    generation: Option<Generation>,
}

impl Alive {
    /// Counts one that is made with this.
    pub(super) fn add(self: &Arc<Self>, generation: Generation) -> Made {
        let mut counts = locked(&self.0);
        counts.at_peace = false;
        *counts.made.entry(generation).or_default() += 1;
        drop(counts);
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

    pub(super) fn is_empty(&self) -> bool {
        locked(&self.0).made.is_empty()
    }

    /// Nothing is kept for connections of which there are none.
    fn come_to_peace(&self) {
        let mut counts = locked(&self.0);
        counts.at_peace = counts.made.is_empty();
    }

    fn is_at_peace(&self) -> bool {
        locked(&self.0).at_peace
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
        let stacks = locked(&self.stacks);
        stacks.values().map(|listed| listed.alive.outdated()).sum()
    }

    /// Once a second: has stacks follow what is known, though nobody comes to them; ends what has been lent for too long
    /// since its stack was renewed; and renews logins before they expire. Of stacks without connections nothing is asked.
    pub(super) fn follow_logins(self: &Arc<Self>) {
        if let Some(upkeep) = self.upkeep.get().and_then(Weak::upgrade) {
            upkeep.look_after();
        }
        self.end_outdated();
        for stack in self.stacks_at_work() {
            stack.tend_login();
        }
    }

    fn end_outdated(self: &Arc<Self>) {
        let now = Instant::now();
        let current: HashMap<StackId, Generation> = locked(&self.stacks)
            .iter()
            .filter(|(_, listed)| !listed.alive.is_empty())
            .map(|(id, listed)| (*id, listed.alive.current()))
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

    /// Those that have connections, or that something is still kept for.
    fn stacks_at_work(&self) -> Vec<Stack> {
        // Handed out of the lock: the last handle on a stack wants it as well.
        let stacks = locked(&self.stacks);
        stacks
            .values()
            .filter(|listed| !listed.alive.is_at_peace())
            .filter_map(|listed| listed.stack.upgrade().map(Stack))
            .collect()
    }
}

impl Stack {
    /// Renews the login that is kept for its connections, if it is time. Each stack by itself: an issuer that hangs holds
    /// up nobody else's.
    fn tend_login(&self) {
        let dial = Arc::clone(&locked(&self.0.target).dial);
        let logins = &dial.logins;
        let is_empty = self.0.alive.is_empty();
        // Where nothing keeps a login in use nothing is to be renewed, and what is kept need not be.
        if logins.is_over() || is_empty && logins.is_due() {
            logins.forget();
        }
        if is_empty {
            if !logins.keeps_any() {
                self.0.alive.come_to_peace();
            }
            return;
        }
        if logins.is_due()
            && let Some(renewing) = Renewing::begin(&self.0.shared, self.0.id)
        {
            self.0.shared.spawn(async move {
                dial.logins.renew().await;
                drop(renewing);
            });
        }
    }
}

/// While the login of a stack is renewed.
struct Renewing {
    shared: Arc<Shared>,
    id: StackId,
}

impl Renewing {
    /// Unless it is being renewed already.
    fn begin(shared: &Arc<Shared>, id: StackId) -> Option<Self> {
        let mut renewing = locked(&shared.renewing);
        if cfg!(biplane_mutant = "issuers_wait_for_each_other") && !renewing.is_empty() {
            return None;
        }
        let shared = || Arc::clone(shared);
        renewing.insert(id).then(|| Self { shared: shared(), id })
    }
}

impl Drop for Renewing {
    fn drop(&mut self) {
        locked(&self.shared.renewing).remove(&self.id);
    }
}
