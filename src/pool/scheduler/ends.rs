//! How connections and stacks end: at rest for too long, made with what is out of date, or with the pool.

use super::{Action, Generation, Rest, Scheduler, StackId};

impl<C: Rest, W> Scheduler<C, W> {
    /// Closes what rests in a stack. Its callers go on waiting, for new connections.
    pub(in crate::pool) fn purge(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) {
        if let Some(stack) = self.stacks.get_mut(&id) {
            let rest = std::mem::take(&mut stack.rest);
            self.resting -= rest.len();
            for connection in rest {
                self.close(connection, actions);
            }
        }
    }

    /// Lets a stack go on with another address or login: what was made with the old one is closed, at once or when it
    /// comes back, and counts until then.
    pub(in crate::pool) fn renew(
        &mut self,
        id: StackId,
        generation: Generation,
        max: u32,
        keep: usize,
        actions: &mut Vec<Action<C, W>>,
    ) {
        if let Some(stack) = self.stacks.get_mut(&id) {
            stack.generation = stack.generation.max(generation);
            // What held it up may be another server's or another login's.
            stack.allowance = None;
            stack.ceiling = None;
            stack.max = max;
            stack.keep = keep;
        }
        self.purge(id, actions);
        self.settle(id, actions);
    }

    /// Closes what rests in a stack and lends nothing more from it. Returns the callers that waited for it.
    pub(in crate::pool) fn drain(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) -> Vec<W> {
        self.purge(id, actions);
        let Some(stack) = self.stacks.get_mut(&id) else {
            return Vec::new();
        };
        stack.draining = true;
        let callers: Vec<W> = std::mem::take(&mut stack.waiting).into_values().collect();
        let empty = stack.open == 0;
        self.waiting -= callers.len();
        self.settle(id, actions);
        if empty {
            self.stacks.remove(&id);
        }
        callers
    }

    /// Drains every stack, for good.
    pub(in crate::pool) fn close_all(&mut self, actions: &mut Vec<Action<C, W>>) -> Vec<W> {
        self.closed = true;
        let ids: Vec<StackId> = self.stacks.keys().copied().collect();
        // Nobody starves any more: a connection that one stack gives up must not be opened for the next.
        self.starving.clear();
        self.hunger = 0;
        for stack in self.stacks.values_mut() {
            stack.hunger = None;
        }
        ids.into_iter().flat_map(|id| self.drain(id, actions)).collect()
    }

    /// Closes the resting connections that `expired` picks. It is told whether a connection is among those that its
    /// stack keeps, which are the ones on top.
    pub(in crate::pool) fn reap(
        &mut self,
        mut expired: impl FnMut(&C, bool) -> bool,
        actions: &mut Vec<Action<C, W>>,
    ) {
        let mut picked = Vec::new();
        for stack in self.stacks.values_mut() {
            let mut above = stack.rest.len();
            let gone = stack.rest.extract_if(.., |connection| {
                above -= 1;
                expired(connection, above < stack.keep)
            });
            picked.extend(gone);
        }
        self.resting -= picked.len();
        for connection in picked {
            self.close(connection, actions);
        }
    }
}
