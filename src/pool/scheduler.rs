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

/// A connection at rest.
pub(super) trait Rest {
    /// Since when it rests.
    fn since(&self) -> Instant;
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

/// Why a caller cannot wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The pool is closed.
    Closed,
    /// As many wait as may wait.
    Full,
}

/// Which cap a waiting caller is held up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeldUpBy {
    /// A connection is on its way.
    Connect,
    /// The cap of its stack.
    Stack,
    /// The cap of the process.
    Process,
}

#[derive(Debug)]
pub(super) struct Scheduler<C, W> {
    cap: u32,
    max_waiting: usize,
    closed: bool,
    permits: u32,
    closing: u32,
    waiting: usize,
    next: u64,
    stacks: HashMap<StackId, Stack<C, W>>,
    /// Stacks that want a permit, by the oldest caller that none is on its way for. One entry a stack at most.
    starving: BTreeSet<(u64, StackId)>,
}

#[derive(Debug)]
struct Stack<C, W> {
    max: u32,
    draining: bool,
    rest: Vec<C>,
    open: u32,
    connecting: u32,
    waiting: BTreeMap<u64, W>,
    starving: Option<u64>,
}

impl<C: Rest, W> Scheduler<C, W> {
    pub(super) fn new(cap: u32, max_waiting: usize) -> Self {
        Self {
            cap,
            max_waiting,
            closed: false,
            permits: 0,
            closing: 0,
            waiting: 0,
            next: 0,
            stacks: HashMap::new(),
            starving: BTreeSet::new(),
        }
    }

    pub(super) fn add_stack(&mut self, max: u32) -> StackId {
        let id = StackId(self.tick());
        let stack = Stack {
            max,
            draining: false,
            rest: Vec::new(),
            open: 0,
            connecting: 0,
            waiting: BTreeMap::new(),
            starving: None,
        };
        self.stacks.insert(id, stack);
        id
    }

    /// The connection on top of a stack, if there is one. Nobody waits for a stack that has one.
    pub(super) fn take(&mut self, id: StackId) -> Option<C> {
        let stack = self.stacks.get_mut(&id)?;
        if self.closed || stack.draining {
            None
        } else {
            stack.rest.pop()
        }
    }

    /// Queues a caller and says under which number it waits.
    pub(super) fn wait(
        &mut self,
        id: StackId,
        caller: W,
        actions: &mut Vec<Action<C, W>>,
    ) -> Result<u64, (Refusal, W)> {
        let number = self.tick();
        let stack = match self.stacks.get_mut(&id) {
            Some(stack) if !self.closed && !stack.draining => stack,
            _ => return Err((Refusal::Closed, caller)),
        };
        if self.waiting >= self.max_waiting {
            return Err((Refusal::Full, caller));
        }
        stack.waiting.insert(number, caller);
        self.waiting += 1;
        self.settle(id, actions);
        Ok(number)
    }

    /// Takes a caller out of the queue and says what held it up; `None` if it has been served meanwhile.
    pub(super) fn leave(
        &mut self,
        id: StackId,
        number: u64,
        actions: &mut Vec<Action<C, W>>,
    ) -> Option<HeldUpBy> {
        let stack = self.stacks.get_mut(&id)?;
        let held_up_by = if stack.connecting > 0 {
            HeldUpBy::Connect
        } else if stack.open >= stack.max {
            HeldUpBy::Stack
        } else {
            HeldUpBy::Process
        };
        stack.waiting.remove(&number)?;
        self.waiting -= 1;
        self.settle(id, actions);
        Some(held_up_by)
    }

    /// A connection has been opened, or was lent and comes back clean.
    pub(super) fn put(&mut self, id: StackId, was: Phase, connection: C, actions: &mut Vec<Action<C, W>>) {
        let Some(stack) = self.stacks.get_mut(&id) else {
            self.closing += 1;
            actions.push(Action::Close(connection));
            return;
        };
        if was == Phase::Connecting {
            stack.connecting -= 1;
        }
        let older_starves = |front: u64| self.starving.first().is_some_and(|(first, _)| *first < front);
        let room_is_wanted = (self.closing as usize) < self.starving.len();
        match stack.waiting.first_key_value().map(|(number, _)| *number) {
            _ if self.closed || stack.draining => self.close(connection, actions),
            Some(front) if room_is_wanted && older_starves(front) => self.close(connection, actions),
            Some(_) => {
                if let Some((_, caller)) = stack.waiting.pop_first() {
                    self.waiting -= 1;
                    actions.push(Action::Deliver(id, caller, connection));
                }
            }
            None if room_is_wanted => self.close(connection, actions),
            None => stack.rest.push(connection),
        }
        self.settle(id, actions);
    }

    /// The caller that a failed attempt to connect is reported to: the one that has waited longest.
    pub(super) fn fail(&mut self, id: StackId) -> Option<W> {
        let (_, caller) = self.stacks.get_mut(&id)?.waiting.pop_first()?;
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

    /// Closes what rests in a stack and lends nothing more from it. Returns the callers that waited for it.
    pub(super) fn drain(&mut self, id: StackId, actions: &mut Vec<Action<C, W>>) -> Vec<W> {
        let Some(stack) = self.stacks.get_mut(&id) else {
            return Vec::new();
        };
        stack.draining = true;
        let rest = std::mem::take(&mut stack.rest);
        let callers: Vec<W> = std::mem::take(&mut stack.waiting).into_values().collect();
        let empty = stack.open == 0;
        self.waiting -= callers.len();
        for connection in rest {
            self.close(connection, actions);
        }
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
        ids.into_iter().flat_map(|id| self.drain(id, actions)).collect()
    }

    /// Closes the resting connections that `expired` picks. It is told how many lie above the connection in its stack,
    /// so that it can keep some.
    pub(super) fn reap(
        &mut self,
        mut expired: impl FnMut(StackId, &C, usize) -> bool,
        actions: &mut Vec<Action<C, W>>,
    ) {
        let mut picked = Vec::new();
        for (id, stack) in &mut self.stacks {
            let resting = stack.rest.len();
            let mut seen = 0;
            let gone = stack.rest.extract_if(.., |connection| {
                seen += 1;
                expired(*id, connection, resting - seen)
            });
            picked.extend(gone);
        }
        for connection in picked {
            self.close(connection, actions);
        }
    }

    /// Permits taken.
    pub(super) fn permits(&self) -> u32 {
        self.permits
    }

    /// Callers waiting.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Connections at rest.
    pub(super) fn resting(&self) -> usize {
        self.stacks.values().map(|stack| stack.rest.len()).sum()
    }

    /// Stacks that exist.
    pub(super) fn stacks(&self) -> usize {
        self.stacks.len()
    }

    fn tick(&mut self) -> u64 {
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
        while self.permits < self.cap {
            let Some((_, hungry)) = self.starving.pop_first() else {
                break;
            };
            let stack = self
                .stacks
                .get_mut(&hungry)
                .expect("a stack with callers is not removed");
            stack.starving = None;
            stack.open += 1;
            stack.connecting += 1;
            self.permits += 1;
            actions.push(Action::Connect(hungry));
            self.note_hunger(hungry);
        }
        while (self.closing as usize) < self.starving.len() {
            let Some(connection) = self.longest_at_rest() else {
                break;
            };
            self.close(connection, actions);
        }
    }

    /// Records whether a stack wants another permit: it has a caller for whom no connection is on its way, and its own
    /// cap leaves room.
    fn note_hunger(&mut self, id: StackId) {
        let Some(stack) = self.stacks.get_mut(&id) else {
            return;
        };
        let uncovered = stack.waiting.keys().nth(stack.connecting as usize).copied();
        let wanted = uncovered.filter(|_| stack.open < stack.max && !stack.draining);
        if stack.starving != wanted {
            if let Some(old) = stack.starving {
                self.starving.remove(&(old, id));
            }
            if let Some(new) = wanted {
                self.starving.insert((new, id));
            }
            stack.starving = wanted;
        }
    }

    fn longest_at_rest(&mut self) -> Option<C> {
        let (_, stack) = self
            .stacks
            .iter_mut()
            .filter(|(_, stack)| !stack.rest.is_empty())
            .min_by_key(|(_, stack)| stack.rest[0].since())?;
        Some(stack.rest.remove(0))
    }
}

#[cfg(test)]
mod tests;
