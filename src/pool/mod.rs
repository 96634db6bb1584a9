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

mod attempt;
mod breaker;
mod cleanup;
mod connection;
mod dial;
mod entry;
mod failure;
mod listen;
mod logins;
mod options;
mod outdated;
mod quote;
mod scheduler;
mod session;
mod stack;

use std::{
    collections::{HashMap, HashSet},
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
    task::JoinHandle,
    time::{Instant, timeout},
};

pub use self::{
    breaker::BreakerOptions,
    options::{PoolOptions, StatementLogging},
};

pub(crate) use self::{
    attempt::{Renewal, Upkeep},
    breaker::Guard,
    connection::Checkout,
    dial::{Dial, Successor, check_environment, check_server},
    entry::Entry,
    failure::Damage,
    listen::Listening,
    logins::{Keeper, Logins, Passport},
    quote::{identifier, literal},
    session::Protocol,
    stack::Stack,
};
use self::{
    breaker::Breakers,
    connection::{Lent, Physical},
    logins::LoginCounts,
    outdated::Alive,
    scheduler::{Action, Generation, Scheduler, StackId},
    stack::{StackInner, Target},
};
use crate::{
    breaker::BreakerStatus,
    error::{Error, ErrorKind},
};

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
    /// Breakers that are open: endpoints and logins that are left alone for now.
    pub open_breakers: usize,
    /// Callers that were refused at once because a breaker was open.
    pub refused: u64,
    /// Connections that were made with a login or an address which has been replaced, and whose backends are not gone yet.
    /// When it is 0, nothing of this process is logged in with what was replaced.
    pub outdated: u32,
    /// Connections that were made with the next login so far, because the server rejected the current one.
    pub next_logins: u64,
    /// Logins that were renewed before they expired.
    pub renewed_logins: u64,
    /// Attempts to renew a login that failed while the old one still worked.
    pub failed_renewals: u64,
}

/// A stack as its pool knows it.
struct Listed {
    stack: Weak<StackInner>,
    alive: Arc<Alive>,
}

/// What is locked here is locked for moments, and never two at a time, but for the count of a stack's connections, under
/// which nothing else is.
struct Shared {
    options: PoolOptions,
    breakers: Breakers,
    scheduler: Mutex<Scheduler<Physical, Caller>>,
    stacks: Mutex<HashMap<StackId, Listed>>,
    /// The connections that are lent, by number of checkout.
    lent: Mutex<HashMap<u64, Lent>>,
    reserved: Semaphore,
    home: Mutex<Option<Home>>,
    released: Notify,
    /// When the log was last told that a server is full.
    told_crowded: Mutex<Option<Instant>>,
    counters: Counters,
    /// Stacks whose login is being renewed before it expires.
    renewing: Mutex<HashSet<StackId>>,
    upkeep: OnceLock<Weak<dyn Upkeep>>,
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
    logins: Arc<LoginCounts>,
}

impl Pool {
    /// A pool without connections.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfiguration`] when an option is 0 that cannot be, or the environment holds a variable that
    /// sqlx would read into every connection.
    pub fn new(options: PoolOptions) -> Result<Self, Error> {
        Self::with_breakers(options, BreakerOptions::default())
    }

    /// The same with other breakers.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn with_breakers(options: PoolOptions, breakers: BreakerOptions) -> Result<Self, Error> {
        options.check()?;
        breakers.check()?;
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
            breakers: Breakers::new(breakers),
            released: Notify::new(),
            told_crowded: Mutex::default(),
            counters: Counters::default(),
            renewing: Mutex::default(),
            upkeep: OnceLock::new(),
            options,
        })))
    }

    /// How the pool is doing.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let counters = &self.0.counters;
        let (open_breakers, refused) = self.0.breakers.count();
        let outdated = self.0.outdated();
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
            open_breakers,
            refused,
            outdated,
            next_logins: counters.logins.next.load(Relaxed),
            renewed_logins: counters.logins.renewed.load(Relaxed),
            failed_renewals: counters.logins.not_renewed.load(Relaxed),
        }
    }

    /// Waits until no connection is left that was made with a login or an address which has been replaced:
    /// [`PoolStats::outdated`] is 0. What is lent is waited for until `drain_timeout` has passed since it was replaced, and
    /// then ended.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn drained(&self) {
        self.0.until(|shared| shared.outdated() == 0).await;
    }

    /// How each breaker is doing that stands before something in use, or that is open.
    #[must_use]
    pub fn breakers(&self) -> Vec<BreakerStatus> {
        self.0.breakers.status(Instant::now())
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

    /// Has its stacks looked after by whoever makes them, once a second while there is a runtime.
    pub(crate) fn be_looked_after(&self, upkeep: Weak<dyn Upkeep>) {
        // A pool has one owner.
        let _ = self.0.upkeep.set(upkeep);
    }

    /// Runs a task where the pool's run.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(task);
    }

    /// For how long connections rest that nobody wants.
    pub(crate) fn idle_timeout(&self) -> Duration {
        self.0.options.idle_timeout
    }

    /// A new stack of at most `max` connections, of which `keep` rest for as long as they like.
    pub(crate) fn stack(
        &self,
        dial: Dial,
        max: NonZeroU32,
        keep: u32,
        renewal: Option<Arc<dyn Renewal>>,
    ) -> Result<Stack, Error> {
        check_server(&dial.server)?;
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        let id = self.0.scheduler().add_stack(max.get(), keep);
        dial.logins.count_in(&self.0.counters.logins);
        let stack = Arc::new(StackInner {
            id,
            alive: Arc::default(),
            target: Mutex::new(Target {
                dial: Arc::new(dial),
                generation: Generation::default(),
            }),
            renewal,
            shared: Arc::clone(&self.0),
        });
        let listed = Listed {
            stack: Arc::downgrade(&stack),
            alive: Arc::clone(&stack.alive),
        };
        locked(&self.0.stacks).insert(id, listed);
        Ok(Stack(stack))
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
        self.perform(|actions| change(&mut self.scheduler(), actions))
    }

    /// Performs what `begin` wants done, and what follows from that.
    fn perform<T>(self: &Arc<Self>, begin: impl FnOnce(&mut Actions) -> T) -> T {
        let mut actions = Actions::new();
        let result = begin(&mut actions);
        while !actions.is_empty() {
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Deliver(id, caller, physical) => self.deliver(id, caller, physical),
                    Action::Connect(id) => self.connect(id, &mut actions),
                    Action::Close(physical) => self.hang_up(physical.noted_closing()),
                }
            }
        }
        result
    }

    fn deliver(self: &Arc<Self>, id: StackId, caller: Caller, physical: Physical) {
        // What a caller that left does not take is dropped, and so returns to its stack.
        drop(caller.send(Ok(Checkout::new(physical, Arc::clone(self), id))));
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
        locked(&self.stacks).get(&id)?.stack.upgrade().map(Stack)
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
