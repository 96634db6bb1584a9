//! Who gets which connection: permits, stacks and the queue, as a state machine without I/O.
//!
//! Every physical connection holds one permit from the moment somebody decides to open it until its backend is gone.
//! Connections are kept in one stack per key, the last one used on top. Callers that find their stack empty wait; a
//! permit goes to whoever has waited longest, whatever the stack, and an idle connection of another stack is closed to
//! make room. The caller of a method performs the actions that it returns, after releasing the lock.

mod ends;
mod limits;
mod supply;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub(super) use self::words::{Action, Generation, HeldUpBy, Leave, Offer, Phase, Refusal, Rest, StackId};

#[derive(Debug)]
pub(super) struct Scheduler<C, W> {
    cap: u32,
    max_waiting: usize,
    closed: bool,
    permits: u32,
    closing: usize,
    resting: usize,
    waiting: usize,
    next: u64,
    stacks: HashMap<StackId, Stack<C, W>>,
    /// Stacks that want permits, by the oldest caller that none is on its way for. One entry a stack at most.
    starving: BTreeSet<(u64, StackId)>,
    /// How many permits they want.
    hunger: usize,
}

#[derive(Debug)]
struct Stack<C, W> {
    max: u32,
    /// What there was room for at the server when it last had none; less than `max`.
    ceiling: Option<u32>,
    /// How many more connections may be opened for now, if that is limited.
    allowance: Option<u32>,
    keep: usize,
    generation: Generation,
    draining: bool,
    rest: Vec<C>,
    /// Permits held, whatever for.
    open: u32,
    /// Of those, for connections that are being opened.
    connecting: u32,
    waiting: BTreeMap<u64, W>,
    /// The oldest caller for whom a permit is wanted, and for how many one is.
    hunger: Option<(u64, usize)>,
}
impl<C: Rest, W> Scheduler<C, W> {
    pub(super) fn new(cap: u32, max_waiting: usize) -> Self {
        Self {
            cap,
            max_waiting,
            closed: false,
            permits: 0,
            closing: 0,
            resting: 0,
            waiting: 0,
            next: 0,
            stacks: HashMap::new(),
            starving: BTreeSet::new(),
            hunger: 0,
        }
    }

    /// A stack of at most `max` connections, of which the reaper leaves `keep` at rest.
    pub(super) fn add_stack(&mut self, max: u32, keep: usize) -> StackId {
        let id = StackId(self.tick());
        let stack = Stack {
            max,
            ceiling: None,
            allowance: None,
            keep,
            generation: Generation::default(),
            draining: false,
            rest: Vec::new(),
            open: 0,
            connecting: 0,
            waiting: BTreeMap::new(),
            hunger: None,
        };
        self.stacks.insert(id, stack);
        id
    }

    /// The connection on top of a stack, if there is one. Nobody waits for a stack that has one.
    pub(super) fn take(&mut self, id: StackId) -> Option<C> {
        let connection = self.stacks.get_mut(&id)?.rest.pop()?;
        self.resting -= 1;
        Some(connection)
    }

    /// Queues a caller, unless a connection has come to rest since it looked.
    pub(super) fn wait(
        &mut self,
        id: StackId,
        caller: W,
        actions: &mut Vec<Action<C, W>>,
    ) -> Result<Offer<C>, Refusal> {
        if !cfg!(biplane_mutant = "wake_ups_are_lost")
            && let Some(connection) = self.take(id)
        {
            return Ok(Offer::Connection(connection));
        }
        let number = self.tick();
        let stack = match self.stacks.get_mut(&id) {
            Some(stack) if !self.closed && !stack.draining => stack,
            _ => return Err(Refusal::Closed),
        };
        if self.waiting >= self.max_waiting {
            return Err(Refusal::Full);
        }
        stack.waiting.insert(number, caller);
        self.waiting += 1;
        self.settle(id, actions);
        Ok(Offer::Place(number))
    }

    /// Takes a caller out of the queue and says what held it up; `None` if it has been served meanwhile.
    pub(super) fn leave(
        &mut self,
        id: StackId,
        number: u64,
        actions: &mut Vec<Action<C, W>>,
    ) -> Option<HeldUpBy> {
        let stack = self.stacks.get_mut(&id)?;
        stack.waiting.remove(&number)?;
        self.waiting -= 1;
        let before = stack.waiting.range(..number).count();
        let held_up_by = if before < stack.connecting as usize
            || (stack.connecting > 0 && stack.connecting == stack.open)
            || stack.allowance == Some(0)
        {
            HeldUpBy::Connect
        } else if stack.open >= stack.max {
            HeldUpBy::Stack
        } else if stack.open >= stack.limit() {
            HeldUpBy::Server
        } else {
            HeldUpBy::Process
        };
        self.settle(id, actions);
        Some(held_up_by)
    }

    /// A connection has been opened, or was lent and comes back clean.
    pub(super) fn put(&mut self, id: StackId, was: Phase, connection: C, actions: &mut Vec<Action<C, W>>) {
        let Some(stack) = self.stacks.get_mut(&id) else {
            self.close(connection, actions);
            return;
        };
        if was == Phase::Connecting {
            stack.connecting -= 1;
        }
        let wanted_elsewhere = self.closing < self.hunger;
        let first = stack.waiting.first_key_value().map(|(number, _)| *number);
        let overtakes = |number| self.starving.first().is_some_and(|(oldest, _)| *oldest < number);
        let of_no_use = self.closed
            || stack.draining
            || (connection.generation() < stack.generation && !cfg!(biplane_mutant = "old_logins_are_lent"));
        match first {
            _ if of_no_use => self.close(connection, actions),
            Some(number) if wanted_elsewhere && overtakes(number) => self.close(connection, actions),
            None if wanted_elsewhere => self.close(connection, actions),
            None => {
                let at = if cfg!(biplane_mutant = "first_in_first_out") {
                    0
                } else {
                    stack.rest.len()
                };
                stack.rest.insert(at, connection);
                self.resting += 1;
            }
            Some(_) => {
                if let Some((_, caller)) = stack.waiting.pop_first() {
                    self.waiting -= 1;
                    actions.push(Action::Deliver(id, caller, connection));
                }
            }
        }
        self.settle(id, actions);
    }

    /// The caller that a failed attempt to connect is reported to: the one that has waited longest. Nobody, if the
    /// attempt was made with what the stack no longer has; another one follows then.
    pub(super) fn fail(&mut self, id: StackId, generation: Generation) -> Option<W> {
        let stack = self.stacks.get_mut(&id)?;
        if generation < stack.generation {
            return None;
        }
        let (_, caller) = stack.waiting.pop_first()?;
        self.waiting -= 1;
        Some(caller)
    }

    /// A lent connection will not come back, but its backend is not gone yet.
    pub(super) fn discard(&mut self) {
        self.closing += 1;
    }

    /// A backend is gone, or never came to be.
    pub(super) fn release(&mut self, id: StackId, was: Phase, actions: &mut Vec<Action<C, W>>) {
        self.permits -= 1;
        if was == Phase::Closing {
            self.closing -= 1;
        }
        if let Some(stack) = self.stacks.get_mut(&id) {
            stack.open -= 1;
            if was == Phase::Connecting {
                stack.connecting -= 1;
            }
            if stack.draining && stack.open == 0 {
                self.stacks.remove(&id);
            }
        }
        self.settle(id, actions);
    }

    /// Permits taken.
    pub(super) const fn permits(&self) -> u32 {
        self.permits
    }

    /// Callers waiting.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Connections at rest.
    pub(super) const fn resting(&self) -> usize {
        self.resting
    }

    /// Stacks that exist.
    pub(super) fn stacks(&self) -> usize {
        self.stacks.len()
    }

    const fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl<C, W> Stack<C, W> {
    fn limit(&self) -> u32 {
        self.ceiling.map_or(self.max, |ceiling| ceiling.min(self.max))
    }
}

#[cfg(test)]
mod tests;
