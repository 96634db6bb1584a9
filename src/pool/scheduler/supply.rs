//! Who gets the next permit, and whose connection makes room for it.

use super::{Action, Rest, Scheduler, StackId};

impl<C: Rest, W> Scheduler<C, W> {
    /// Restores the invariant after a change to one stack: whoever can be served is being served.
    pub(super) fn settle(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) {
        self.note_hunger(id);
        self.serve(actions);
    }

    pub(super) fn serve(&mut self, actions: &mut Vec<Action<C, W>>) {
        while self.permits < self.cap + u32::from(cfg!(biplane_mutant = "one_over_the_cap")) {
            let Some(&(_, hungry)) = self.starving.first() else {
                break;
            };
            let stack = self
                .stacks
                .get_mut(&hungry)
                .expect("a stack with callers is not removed");
            stack.open += 1;
            stack.connecting += 1;
            stack.allowance = stack.allowance.map(|left| left.saturating_sub(1));
            self.permits += 1;
            actions.push(Action::Connect(hungry));
            self.note_hunger(hungry);
        }
        while self.closing < self.hunger {
            let Some(connection) = self.longest_at_rest() else {
                break;
            };
            self.close(connection, actions);
        }
    }

    /// Records how many permits a stack wants: one for each caller for whom no connection is on its way, as far as its
    /// own cap leaves room.
    pub(super) fn note_hunger(&mut self, id: StackId) {
        let Some(stack) = self.stacks.get_mut(&id) else {
            return;
        };
        let room = stack.limit().saturating_sub(stack.open);
        let room = stack.allowance.map_or(room, |left| left.min(room)) as usize;
        let uncovered = stack.waiting.len().saturating_sub(stack.connecting as usize);
        let wanted = match uncovered.min(room) {
            0 => None,
            _ if self.closed || stack.draining => None,
            permits => stack
                .waiting
                .keys()
                .nth(stack.connecting as usize)
                .map(|oldest| (*oldest, permits)),
        };
        if stack.hunger == wanted {
            return;
        }
        if let Some((oldest, permits)) = stack.hunger {
            self.starving.remove(&(oldest, id));
            self.hunger -= permits;
        }
        if let Some((oldest, permits)) = wanted {
            self.starving.insert((oldest, id));
            self.hunger += permits;
        }
        stack.hunger = wanted;
    }

    fn longest_at_rest(&mut self) -> Option<C> {
        if self.resting == 0 {
            return None;
        }
        let (_, stack) = self
            .stacks
            .iter_mut()
            .filter(|(_, stack)| !stack.rest.is_empty())
            .min_by_key(|(_, stack)| stack.rest[0].since())?;
        self.resting -= 1;
        Some(stack.rest.remove(0))
    }

    pub(super) fn close(&mut self, connection: C, actions: &mut Vec<Action<C, W>>) {
        self.closing += 1;
        actions.push(Action::Close(connection));
    }
}
