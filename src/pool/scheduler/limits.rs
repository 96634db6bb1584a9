//! What a stack may open for now: it is held before a breaker, or makes do with what its server has room for.

use super::{Action, Generation, Leave, Phase, Rest, Scheduler, StackId};

impl<C: Rest, W> Scheduler<C, W> {
    /// Lets a stack open nothing for now. Its callers go on waiting, for what comes back or until it may.
    pub(in crate::pool) fn hold(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) {
        if let Some(stack) = self.stacks.get_mut(&id) {
            stack.allowance = Some(0);
            self.settle(id, actions);
        }
    }

    /// Lets a stack go on that was held.
    pub(in crate::pool) fn let_go(&mut self, id: StackId, leave: Leave, actions: &mut Vec<Action<C, W>>) {
        let Some(stack) = self.stacks.get_mut(&id) else {
            return;
        };
        let idle = stack.waiting.len() <= stack.connecting as usize;
        stack.allowance = match leave {
            // Whoever comes later finds out anew how far it may go.
            Leave::One if !idle => Some(1),
            Leave::One | Leave::All => None,
        };
        self.settle(id, actions);
    }

    /// Whether a stack may open nothing for now.
    pub(in crate::pool) fn is_held(&self, id: StackId) -> bool {
        self.stacks
            .get(&id)
            .is_some_and(|stack| stack.allowance == Some(0))
    }

    /// Whether an attempt to connect is under way for this place in the queue.
    pub(in crate::pool) fn is_tried_for(&self, id: StackId, number: u64) -> bool {
        self.stacks.get(&id).is_some_and(|stack| {
            let before = stack.waiting.range(..number).count();
            before < stack.connecting as usize
        })
    }

    /// An attempt to connect that was not made because it would be in vain. Returns the callers for whom none is under
    /// way.
    pub(in crate::pool) fn refuse(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) -> Vec<W> {
        let under_way = self.stacks.get(&id).map_or(0, |stack| stack.connecting);
        let callers = self.turn_away(id, under_way.saturating_sub(1) as usize, actions);
        self.release(id, Phase::Connecting, actions);
        callers
    }

    /// Returns all callers of a stack, which then nobody waits for.
    pub(in crate::pool) fn turn_all_away(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) -> Vec<W> {
        self.turn_away(id, 0, actions)
    }

    /// An attempt to connect found the server full: the stack makes do with what it has for now, and its callers wait
    /// for that. Returns those who would wait for nothing. The attempt's permit is still to be released.
    ///
    /// One connection that rests and that `there` says is at the same server makes room, in whatever stack.
    pub(in crate::pool) fn crowded(
        &mut self,
        id: StackId,
        generation: Generation,
        there: impl Fn(&C) -> bool,
        actions: &mut Vec<Action<C, W>>,
    ) -> Vec<W> {
        let Some(stack) = self.stacks.get_mut(&id) else {
            return Vec::new();
        };
        if generation < stack.generation || cfg!(biplane_mutant = "full_servers_are_not_spared") {
            return Vec::new();
        }
        let held = stack.open - stack.connecting;
        let ceiling = held.max(1);
        if ceiling < stack.max {
            stack.ceiling = Some(ceiling);
        }
        let others = stack.connecting.saturating_sub(1) as usize;
        if self.close_one_at_rest(there, actions) || held > 0 {
            self.settle(id, actions);
            return Vec::new();
        }
        self.turn_away(id, others, actions)
    }

    /// Lets stacks that found their server full try for one connection more.
    pub(in crate::pool) fn lift_ceilings(&mut self, actions: &mut Vec<Action<C, W>>) {
        let mut lifted = Vec::new();
        for (id, stack) in &mut self.stacks {
            if let Some(ceiling) = stack.ceiling {
                stack.ceiling = Some(ceiling + 1).filter(|ceiling| *ceiling < stack.max);
                lifted.push(*id);
            }
        }
        // All of them, before anybody is served: who has waited longest comes first.
        for id in lifted {
            self.note_hunger(id);
        }
        self.serve(actions);
    }

    /// Takes the callers of a stack out of the queue but for the oldest.
    fn turn_away(&mut self, id: StackId, but: usize, actions: &mut Vec<Action<C, W>>) -> Vec<W> {
        let Some(stack) = self.stacks.get_mut(&id) else {
            return Vec::new();
        };
        let Some(first) = stack.waiting.keys().nth(but).copied() else {
            return Vec::new();
        };
        let away: Vec<W> = stack.waiting.split_off(&first).into_values().collect();
        self.waiting -= away.len();
        self.settle(id, actions);
        away
    }

    fn close_one_at_rest(&mut self, pick: impl Fn(&C) -> bool, actions: &mut Vec<Action<C, W>>) -> bool {
        let longest = self
            .stacks
            .values_mut()
            .filter_map(|stack| Some((stack.rest.iter().position(&pick)?, stack)))
            .min_by_key(|(at, stack)| stack.rest[*at].since());
        let Some((at, stack)) = longest else {
            return false;
        };
        let connection = stack.rest.remove(at);
        self.resting -= 1;
        self.close(connection, actions);
        true
    }
}
