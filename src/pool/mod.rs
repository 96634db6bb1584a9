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
mod listen;
mod options;
mod scheduler;
mod session;

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, oneshot},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

pub use options::{PoolOptions, StatementLogging};

pub(crate) use self::{
    connection::Checkout,
    dial::{Dial, Logins, check_environment, check_server},
    failure::Damage,
    listen::Listening,
    session::Protocol,
};
use self::{
    connection::{Lent, Permit, Physical},
    dial::{NotDialed, Purpose},
    scheduler::{Action, Generation, HeldUpBy, Offer, Phase, Refusal, Scheduler, StackId},
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
    /// Stacks of connections: data sources, times roles.
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
    target: Mutex<Target>,
    shared: Arc<Shared>,
}

/// Where a stack's connections lead, for now.
struct Target {
    dial: Arc<Dial>,
    generation: Generation,
}

/// What is locked here is locked for moments, and never two at a time.
struct Shared {
    options: PoolOptions,
    scheduler: Mutex<Scheduler<Physical, Caller>>,
    stacks: Mutex<HashMap<StackId, Weak<StackInner>>>,
    /// The connections that are lent, by number of checkout.
    lent: Mutex<HashMap<u64, Lent>>,
    reserved: Semaphore,
    home: Mutex<Option<Home>>,
    released: Notify,
    counters: Counters,
}

/// Where tasks run: the runtime of the first caller, and of a later one if that runtime has ended, which its reaper
/// shows.
struct Home {
    runtime: Handle,
    reaper: JoinHandle<()>,
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
        let reserved = usize::try_from(options.reserved.get())
            .unwrap_or(Semaphore::MAX_PERMITS)
            .min(Semaphore::MAX_PERMITS);
        Ok(Self(Arc::new(Shared {
            scheduler: Mutex::new(Scheduler::new(options.cap.get(), options.max_waiting)),
            stacks: Mutex::default(),
            lent: Mutex::default(),
            reserved: Semaphore::new(reserved),
            home: Mutex::default(),
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
    /// Returns when no backend is left, or when `leak_after` has passed since the deadline.
    ///
    /// What is lent behind a transaction pooler cannot be ended from here, because its backend is not known: it ends
    /// with the statement or transaction in progress.
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
        if timeout(deadline, shared.until(|shared| shared.scheduler().permits() == 0))
            .await
            .is_err()
        {
            let end = async {
                cleanup::end_lent(shared).await;
                // What is still lent has lost its backend, whenever its holder may notice.
                shared
                    .until(|shared| {
                        let lent = locked(&shared.lent).len();
                        shared.scheduler().permits() as usize <= lent
                    })
                    .await;
            };
            // Whatever has not ended by now is not going to.
            let _ = timeout(shared.options.leak_after, end).await;
        }
    }

    /// A new stack of at most `max` connections, of which `keep` rest for as long as they like.
    pub(crate) fn stack(&self, dial: Dial, max: NonZeroU32, keep: u32) -> Result<Stack, Error> {
        check_server(&dial.server)?;
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        let id = self.0.scheduler().add_stack(max.get(), keep);
        let stack = Arc::new(StackInner {
            id,
            target: Mutex::new(Target {
                dial: Arc::new(dial),
                generation: Generation::default(),
            }),
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
        shared.counters.checkouts.fetch_add(1, Relaxed);
        let mut deadline = None;
        loop {
            let taken = shared.scheduler().take(self.0.id);
            let mut checkout = match taken {
                Some(physical) => Checkout::new(physical, Arc::clone(shared), self.0.id),
                None => {
                    let deadline =
                        deadline.get_or_insert_with(|| later(Instant::now(), shared.options.wait_timeout));
                    self.wait(*deadline).await?
                }
            };
            if checkout.is_fit().await {
                checkout.lend();
                return Ok(checkout);
            }
        }
    }

    /// Leads somewhere else from now on, or with another login: what was opened before is closed as it comes back. The
    /// cap holds all the while, and callers that wait go on waiting.
    pub(crate) fn renew(&self, dial: Dial, max: NonZeroU32, keep: u32) -> Result<(), Error> {
        check_server(&dial.server)?;
        let generation = {
            let mut target = locked(&self.0.target);
            target.dial = Arc::new(dial);
            target.generation = target.generation.next();
            target.generation
        };
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        self.0.shared.act(|scheduler, actions| {
            scheduler.renew(self.0.id, generation, max.get(), keep, actions);
        });
        Ok(())
    }

    async fn wait(&self, deadline: Instant) -> Result<Checkout, Error> {
        let shared = &self.0.shared;
        shared.settle_in();
        let (caller, mut answer) = oneshot::channel();
        let number = match shared.act(|scheduler, actions| scheduler.wait(self.0.id, caller, actions)) {
            Ok(Offer::Connection(physical)) => {
                return Ok(Checkout::new(physical, Arc::clone(shared), self.0.id));
            }
            Ok(Offer::Place(number)) => number,
            Err(Refusal::Closed) => return Err(ErrorKind::Closed.into()),
            Err(Refusal::Full) => return Err(exhausted(BudgetScope::Queue)),
        };
        let mut place = Place {
            stack: self,
            number: Some(number),
        };
        let answered = timeout_at(deadline, &mut answer).await;
        let left = place.leave();
        match (answered, left) {
            (Ok(Ok(answer)), _) => answer,
            (Err(_), Some(HeldUpBy::Stack)) => Err(exhausted(BudgetScope::DataSource)),
            (Err(_), Some(HeldUpBy::Process)) => Err(exhausted(BudgetScope::Process)),
            (Err(_), Some(HeldUpBy::Connect)) => {
                let dial = Arc::clone(&locked(&self.0.target).dial);
                Err(dial.unavailable("still connecting when the caller's time was up"))
            }
            // Served at the very moment when the time was up.
            (Err(_), None) => answer
                .try_recv()
                .unwrap_or_else(|_| Err(ErrorKind::Closed.into())),
            (Ok(Err(_)), _) => Err(ErrorKind::Closed.into()),
        }
    }
}

const fn exhausted(scope: BudgetScope) -> Error {
    Error::new(ErrorKind::BudgetExhausted { scope })
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
        // What a caller that left does not take is dropped, and so returns to its stack.
        drop(caller.send(Ok(Checkout::new(physical, Arc::clone(self), id))));
    }

    fn connect(self: &Arc<Self>, id: StackId) {
        let permit = Permit::connecting(self, id);
        let Some(stack) = self.stack(id) else { return };
        let (dial, generation) = {
            let target = locked(&stack.0.target);
            (Arc::clone(&target.dial), target.generation)
        };
        let attempt = Attempt {
            shared: Arc::clone(self),
            stack: id,
            generation,
            permit: Some(permit),
        };
        self.spawn(async move {
            match dial.connect(Purpose::Work, &attempt.shared.options).await {
                Ok(dialed) => attempt.succeed(dialed, dial),
                Err(not) => attempt.fail(not, &dial).await,
            }
        });
    }

    /// Closes what rests in a stack.
    fn purge(self: &Arc<Self>, id: StackId) {
        self.act(|scheduler, actions| scheduler.purge(id, actions));
    }

    /// Closes a connection whose permit is already marked as closing.
    fn hang_up(self: &Arc<Self>, physical: Physical) {
        self.spawn(cleanup::hang_up(Arc::clone(self), physical));
    }

    /// Whether a permit that is released may be taken at once.
    fn is_at_cap(&self) -> bool {
        self.scheduler().permits() >= self.options.cap.get()
    }

    fn stack(&self, id: StackId) -> Option<Stack> {
        locked(&self.stacks).get(&id)?.upgrade().map(Stack)
    }

    /// Runs a task at home. Without a runtime the process is ending; what the task owns is then dropped, and the socket
    /// of a connection closes with it.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let home = locked(&self.home)
            .as_ref()
            .filter(|home| !home.reaper.is_finished())
            .map(|home| home.runtime.clone());
        if let Some(runtime) = home.or_else(|| Handle::try_current().ok()) {
            runtime.spawn(task);
        }
    }

    /// Makes the caller's runtime the home if there is none, and starts the reaper there.
    fn settle_in(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut home = locked(&self.home);
        if home.as_ref().is_none_or(|home| home.reaper.is_finished()) {
            let reaper = runtime.spawn(cleanup::reap(Arc::downgrade(self)));
            *home = Some(Home { runtime, reaper });
        }
    }

    /// Waits until this is so after some permit was released.
    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let released = self.released.notified();
            if condition(self) {
                return;
            }
            released.await;
        }
    }
}

/// A connection that is being opened. Dropped before it came to an end, with the runtime or by a panic of the
/// credential source, it has failed, or callers would wait for it.
struct Attempt {
    shared: Arc<Shared>,
    stack: StackId,
    generation: Generation,
    permit: Option<Permit>,
}

impl Attempt {
    fn succeed(mut self, dialed: dial::Dialed, dial: Arc<Dial>) {
        let Some(permit) = self.permit.take() else { return };
        let shared = &self.shared;
        shared.counters.opened.fetch_add(1, Relaxed);
        let physical = Physical::new(dialed, dial, self.generation, permit, &shared.options);
        shared.act(|scheduler, actions| scheduler.put(self.stack, Phase::Connecting, physical, actions));
    }

    async fn fail(mut self, not: NotDialed, dial: &Dial) {
        self.report(not.error);
        if let Some(dialed) = not.unfinished {
            cleanup::end_backend(&self.shared, dial, dialed.backend, dialed.connection).await;
        }
        self.permit = None;
    }

    fn report(&self, error: Error) {
        self.shared.counters.failed.fetch_add(1, Relaxed);
        let caller = self.shared.scheduler().fail(self.stack, self.generation);
        if let Some(caller) = caller {
            // A caller that has left needs no answer.
            let _ = caller.send(Err(error));
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.permit.is_some() && !cfg!(biplane_mutant = "lost_attempts_are_forgotten") {
            self.report(ErrorKind::Internal.into());
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that runs under these locks leaves a half-made change behind when it panics.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// That time from now, or as late as there is, for a setting that means never.
fn later(now: Instant, time: Duration) -> Instant {
    const DECADES: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);
    now + time.min(DECADES)
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stack")
            .field(&locked(&self.0.target).dial)
            .finish()
    }
}
