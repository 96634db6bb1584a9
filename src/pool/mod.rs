//! Physical connections: permits, stacks, the queue, and the clean return.
//!
//! One pool serves a whole process. It keeps a stack of connections per data source, role and credential, the last one
//! used on top, so that a trickle of work lets the others rest and close. A permit is held for every physical
//! connection until its backend is gone; the cap on permits is never exceeded. Callers wait in one queue, and whoever
//! has waited longest gets the next permit, for whatever stack.
//!
//! A connection comes back clean, and at once: one that was dropped in the middle of a statement or a transaction is
//! owned by a task that cancels, rolls back and resets, or closes it. Nothing sits idle in a transaction until somebody
//! borrows it again.

mod cleanup;
mod connection;
mod dial;
mod failure;
mod options;
mod scheduler;

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, oneshot},
    time::Instant,
};

pub use options::{PoolOptions, StatementLogging};

pub(crate) use self::{
    connection::Checkout,
    dial::{Dial, Logins, check_environment, check_server},
    failure::breaks_connection,
};
use self::{
    connection::{Lent, Permit, Physical},
    scheduler::{Action, HeldUpBy, Phase, Refusal, Scheduler, StackId},
};
use crate::error::{BudgetScope, Error, ErrorKind};

type Caller = oneshot::Sender<Result<Checkout, Error>>;
type Actions = Vec<Action<Physical, Caller>>;

/// The connections of one process. Cheap to clone; the connections are closed when the last clone is dropped.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

/// How a pool is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Stacks of connections: data sources, times roles, times credentials in use.
    pub stacks: usize,
    /// Permits taken: connections that are lent, at rest, being opened or being closed.
    pub connections: u32,
    /// Connections at rest.
    pub resting: usize,
    /// Callers waiting.
    pub waiting: usize,
    /// Connections opened so far.
    pub opened: u64,
    /// Attempts to open a connection that failed.
    pub failed: u64,
    /// Checkouts so far.
    pub checkouts: u64,
    /// Connections that came back in the middle of something and were cleaned or closed.
    pub rescued: u64,
    /// Backends that did not go in time, whose permit was given up.
    pub leaked: u64,
}

/// A stack of a pool: connections that are alike. Its connections are drained when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Stack(Arc<StackInner>);

struct StackInner {
    id: StackId,
    dial: Dial,
    /// How many connections rest for as long as they like.
    keep: usize,
    shared: Arc<Shared>,
}

struct Shared {
    options: PoolOptions,
    scheduler: Mutex<Scheduler<Physical, Caller>>,
    stacks: Mutex<HashMap<StackId, Weak<StackInner>>>,
    /// The connections that are lent, by number of checkout.
    lent: Mutex<HashMap<u64, Lent>>,
    reserved: Semaphore,
    runtime: OnceLock<Handle>,
    released: Notify,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    opened: AtomicU64,
    failed: AtomicU64,
    checkouts: AtomicU64,
    lent: AtomicU64,
    rescued: AtomicU64,
    leaked: AtomicU64,
}

impl Pool {
    /// A pool without connections.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfiguration`] when an option is 0 that cannot be, or the environment holds a variable that
    /// sqlx would read into every connection.
    pub fn new(options: PoolOptions) -> Result<Self, Error> {
        options.check()?;
        check_environment()?;
        let reserved = usize::try_from(options.reserved.get()).unwrap_or(Semaphore::MAX_PERMITS);
        Ok(Self(Arc::new(Shared {
            scheduler: Mutex::new(Scheduler::new(options.cap.get(), options.max_waiting)),
            stacks: Mutex::default(),
            lent: Mutex::default(),
            reserved: Semaphore::new(reserved),
            runtime: OnceLock::new(),
            released: Notify::new(),
            counters: Counters::default(),
            options,
        })))
    }

    /// How the pool is doing.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let counters = &self.0.counters;
        let scheduler = self.0.scheduler();
        PoolStats {
            stacks: scheduler.stacks(),
            connections: scheduler.permits(),
            resting: scheduler.resting(),
            waiting: scheduler.waiting(),
            opened: counters.opened.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            checkouts: counters.checkouts.load(Relaxed),
            rescued: counters.rescued.load(Relaxed),
            leaked: counters.leaked.load(Relaxed),
        }
    }

    /// Lends nothing more, closes what rests, waits until `deadline` for what is lent, and then ends it at the server.
    /// Returns when no connection is left, or when `leak_after` has passed since the deadline.
    ///
    /// # Cancel safety
    /// Safe: the pool stays closed; call it again to go on waiting.
    pub async fn close(&self, deadline: Duration) {
        let shared = &self.0;
        let callers = shared.act(|scheduler, actions| scheduler.close_all(actions));
        for caller in callers {
            // A caller that has left needs no answer.
            let _ = caller.send(Err(ErrorKind::Closed.into()));
        }
        if tokio::time::timeout(deadline, shared.empty()).await.is_err() {
            cleanup::end_lent(shared).await;
            let _ = tokio::time::timeout(shared.options.leak_after, shared.empty()).await;
        }
    }

    /// A new stack.
    pub(crate) fn stack(&self, dial: Dial, max: NonZeroU32, keep: u32) -> Result<Stack, Error> {
        check_server(&dial.server)?;
        let id = self.0.scheduler().add_stack(max.get());
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        let stack = Arc::new(StackInner {
            id,
            dial,
            keep,
            shared: Arc::clone(&self.0),
        });
        locked(&self.0.stacks).insert(id, Arc::downgrade(&stack));
        Ok(Stack(stack))
    }
}

impl Stack {
    /// Borrows a connection, opening one if none rests and the caps allow it.
    ///
    /// # Cancel safety
    /// Safe: a caller that leaves gives up its place, and what was opened for it rests for the next one.
    pub(crate) async fn checkout(&self) -> Result<Checkout, Error> {
        let shared = &self.0.shared;
        shared.start();
        shared.counters.checkouts.fetch_add(1, Relaxed);
        let deadline = Instant::now() + shared.options.wait_timeout;
        loop {
            let taken = shared.scheduler().take(self.0.id);
            let mut checkout = match taken {
                Some(physical) => Checkout::new(physical, self.clone()),
                None => self.wait(deadline).await?,
            };
            if checkout.is_fit().await {
                checkout.lend();
                return Ok(checkout);
            }
        }
    }

    pub(crate) fn dial(&self) -> &Dial {
        &self.0.dial
    }

    async fn wait(&self, deadline: Instant) -> Result<Checkout, Error> {
        let shared = &self.0.shared;
        let (caller, answer) = oneshot::channel();
        let number = match shared.act(|scheduler, actions| scheduler.wait(self.0.id, caller, actions)) {
            Ok(number) => number,
            Err((Refusal::Closed, _)) => return Err(ErrorKind::Closed.into()),
            Err((Refusal::Full, _)) => {
                return Err(ErrorKind::BudgetExhausted {
                    scope: BudgetScope::Queue,
                }
                .into());
            }
        };
        let mut place = Place {
            stack: self,
            number: Some(number),
        };
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => {
                place.number = None;
                answer
            }
            Ok(Err(_)) => Err(ErrorKind::Closed.into()),
            Err(_) => Err(match place.leave() {
                Some(HeldUpBy::Stack) => ErrorKind::BudgetExhausted {
                    scope: BudgetScope::DataSource,
                }
                .into(),
                Some(HeldUpBy::Process) | None => ErrorKind::BudgetExhausted {
                    scope: BudgetScope::Process,
                }
                .into(),
                Some(HeldUpBy::Connect) => Error::new(ErrorKind::DatabaseUnavailable { retry_after: None })
                    .detail(format!(
                        "{}: still connecting when the caller's time was up",
                        self.0.dial.whereabouts()
                    )),
            }),
        }
    }
}

/// A place in the queue, given up when the caller leaves.
struct Place<'a> {
    stack: &'a Stack,
    number: Option<u64>,
}

impl Place<'_> {
    fn leave(&mut self) -> Option<HeldUpBy> {
        let number = self.number.take()?;
        let stack = &self.stack.0;
        stack
            .shared
            .act(|scheduler, actions| scheduler.leave(stack.id, number, actions))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Drop for StackInner {
    fn drop(&mut self) {
        locked(&self.shared.stacks).remove(&self.id);
        let callers = self
            .shared
            .act(|scheduler, actions| scheduler.drain(self.id, actions));
        debug_assert!(callers.is_empty(), "a caller holds its stack");
    }
}

impl Shared {
    fn scheduler(&self) -> MutexGuard<'_, Scheduler<Physical, Caller>> {
        locked(&self.scheduler)
    }

    /// Changes the scheduler, and performs what follows from it once the lock is released: whatever is dropped on the
    /// way may need the lock again.
    fn act<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Scheduler<Physical, Caller>, &mut Actions) -> T,
    ) -> T {
        let mut actions = Actions::new();
        let result = change(&mut self.scheduler(), &mut actions);
        for action in actions {
            match action {
                Action::Deliver(id, caller, physical) => self.deliver(id, caller, physical),
                Action::Connect(id) => self.connect(id),
                Action::Close(physical) => self.hang_up(physical.noted_closing()),
            }
        }
        result
    }

    fn deliver(self: &Arc<Self>, id: StackId, caller: Caller, physical: Physical) {
        match self.stack(id) {
            // What a caller that left does not take is dropped, and so returns to its stack.
            Some(stack) => drop(caller.send(Ok(Checkout::new(physical, stack)))),
            None => self.hang_up(physical.closing(self)),
        }
    }

    fn connect(self: &Arc<Self>, id: StackId) {
        let permit = Permit::connecting(self, id);
        let (Some(stack), Some(runtime)) = (self.stack(id), self.runtime.get()) else {
            return;
        };
        runtime.spawn(async move {
            let shared = Arc::clone(&stack.0.shared);
            match stack.0.dial.connect(&shared.options).await {
                Ok(dialed) => {
                    shared.counters.opened.fetch_add(1, Relaxed);
                    let physical = Physical::new(dialed, permit, &shared.options);
                    shared.act(|scheduler, actions| scheduler.put(id, Phase::Connecting, physical, actions));
                }
                Err(error) => {
                    shared.counters.failed.fetch_add(1, Relaxed);
                    let caller = shared.scheduler().fail(id);
                    if let Some(caller) = caller {
                        // A caller that has left needs no answer.
                        let _ = caller.send(Err(error));
                    }
                    drop(permit);
                }
            }
        });
    }

    /// Closes a connection whose permit is already marked as closing.
    fn hang_up(&self, physical: Physical) {
        let limit = self.options.reset_timeout;
        if let Some(runtime) = self.runtime.get() {
            runtime.spawn(cleanup::hang_up(physical, limit));
        }
    }

    fn stack(&self, id: StackId) -> Option<Stack> {
        locked(&self.stacks).get(&id)?.upgrade().map(Stack)
    }

    /// Remembers the runtime and starts the reaper, at the first checkout.
    fn start(self: &Arc<Self>) {
        if self.runtime.get().is_none() {
            let runtime = Handle::current();
            if self.runtime.set(runtime.clone()).is_ok() {
                runtime.spawn(cleanup::reap(Arc::downgrade(self)));
            }
        }
    }

    async fn empty(&self) {
        loop {
            let released = self.released.notified();
            if self.scheduler().permits() == 0 {
                return;
            }
            released.await;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that runs under these locks leaves a half-made change behind when it panics.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stack").field(&self.0.dial).finish()
    }
}
