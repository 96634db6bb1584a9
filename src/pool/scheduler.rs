//! Who gets which connection: permits, stacks and the queue, as a state machine without I/O.
//!
//! Every physical connection holds one permit from the moment somebody decides to open it until its backend is gone.
//! Connections are kept in one stack per key, the last one used on top. Callers that find their stack empty wait; a
//! permit goes to whoever has waited longest, whatever the stack, and an idle connection of another stack is closed to
//! make room. The caller of a method performs the actions that it returns, after releasing the lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::time::Instant;

/// Identifies a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StackId(u64);

#[cfg(test)]
impl StackId {
    pub(super) const fn for_tests(number: u64) -> Self {
        Self(number)
    }
}

/// Which of the addresses and logins that a stack has had, one after the other, a connection was made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Generation(u64);

impl Generation {
    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A connection at rest.
pub(super) trait Rest {
    /// Since when it rests.
    fn since(&self) -> Instant;

    /// What it was made with.
    fn generation(&self) -> Generation;
}

/// What to do once the lock is released.
#[derive(Debug)]
pub(super) enum Action<C, W> {
    /// Hand a connection to a caller.
    Deliver(StackId, W, C),
    /// Open a connection; the permit is taken.
    Connect(StackId),
    /// Close a connection and then release its permit.
    Close(C),
}

/// In which part of its life a permit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The connection is being opened.
    Connecting,
    /// It is lent or at rest.
    Open,
    /// It is being closed.
    Closing,
}

/// What a caller gets who found nothing at rest a moment ago.
#[derive(Debug)]
pub(super) enum Offer<C> {
    /// A connection that has come back meanwhile.
    Connection(C),
    /// The number of its place in the queue.
    Place(u64),
}

/// Why a caller cannot wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The pool is closed.
    Closed,
    /// As many wait as may wait.
    Full,
}

/// What a waiting caller is held up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeldUpBy {
    /// A connection is on its way, or none has ever arrived.
    Connect,
    /// The cap of its stack.
    Stack,
    /// What the server has room for.
    Server,
    /// The cap of the process.
    Process,
}

/// How far a stack that was held may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// One connection, and then it is held again.
    One,
    /// As many as it wants.
    All,
}

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

    /// Lets a stack open nothing for now. Its callers go on waiting, for what comes back or until it may.
    pub(super) fn hold(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) {
        if let Some(stack) = self.stacks.get_mut(&id) {
            stack.allowance = Some(0);
            self.settle(id, actions);
        }
    }

    /// Lets a stack go on that was held.
    pub(super) fn let_go(&mut self, id: StackId, leave: Leave, actions: &mut Vec<Action<C, W>>) {
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
    pub(super) fn is_held(&self, id: StackId) -> bool {
        self.stacks
            .get(&id)
            .is_some_and(|stack| stack.allowance == Some(0))
    }

    /// Whether an attempt to connect is under way for this place in the queue.
    pub(super) fn is_tried_for(&self, id: StackId, number: u64) -> bool {
        self.stacks.get(&id).is_some_and(|stack| {
            let before = stack.waiting.range(..number).count();
            before < stack.connecting as usize
        })
    }

    /// An attempt to connect that was not made because it would be in vain. Returns the callers for whom none is under
    /// way.
    pub(super) fn refuse(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) -> Vec<W> {
        let under_way = self.stacks.get(&id).map_or(0, |stack| stack.connecting);
        let callers = self.turn_away(id, under_way.saturating_sub(1) as usize, actions);
        self.release(id, Phase::Connecting, actions);
        callers
    }

    /// Returns all callers of a stack, which then nobody waits for.
    pub(super) fn turn_all_away(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) -> Vec<W> {
        self.turn_away(id, 0, actions)
    }

    /// An attempt to connect found the server full: the stack makes do with what it has for now, and its callers wait
    /// for that. Returns those who would wait for nothing. The attempt's permit is still to be released.
    ///
    /// One connection that rests and that `there` says is at the same server makes room, in whatever stack.
    pub(super) fn crowded(
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
    pub(super) fn lift_ceilings(&mut self, actions: &mut Vec<Action<C, W>>) {
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

    /// Closes what rests in a stack. Its callers go on waiting, for new connections.
    pub(super) fn purge(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) {
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
    pub(super) fn renew(
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
    pub(super) fn drain(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) -> Vec<W> {
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
    pub(super) fn close_all(&mut self, actions: &mut Vec<Action<C, W>>) -> Vec<W> {
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
    pub(super) fn reap(
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

    fn close(&mut self, connection: C, actions: &mut Vec<Action<C, W>>) {
        self.closing += 1;
        actions.push(Action::Close(connection));
    }

    /// Restores the invariant after a change to one stack: whoever can be served is being served.
    fn settle(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) {
        self.note_hunger(id);
        self.serve(actions);
    }

    fn serve(&mut self, actions: &mut Vec<Action<C, W>>) {
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
    fn note_hunger(&mut self, id: StackId) {
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
}

impl<C, W> Stack<C, W> {
    fn limit(&self) -> u32 {
        self.ceiling.map_or(self.max, |ceiling| ceiling.min(self.max))
    }
}

#[cfg(test)]
mod tests;
