//! One stack of a pool, as whoever uses it sees it: borrowing, waiting, and being led elsewhere.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    Checkout, Dial, Renewal, Shared,
    breaker::Admission,
    check_server, later, locked,
    outdated::Alive,
    scheduler::{Generation, HeldUpBy, Leave, Offer, Refusal, StackId},
};
use crate::error::{BudgetScope, Error, ErrorKind};

/// A stack of a pool: connections that are alike. Its connections are drained when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Stack(pub(super) Arc<StackInner>);

pub(super) struct StackInner {
    pub(super) id: StackId,
    /// Its connections, by what they were made with.
    pub(super) alive: Arc<Alive>,
    pub(super) target: Mutex<Target>,
    /// How to find out whether that is out of date, if it can be.
    pub(super) renewal: Option<Arc<dyn Renewal>>,
    pub(super) shared: Arc<Shared>,
}

/// Where a stack's connections lead, for now.
pub(super) struct Target {
    pub(super) dial: Arc<Dial>,
    pub(super) generation: Generation,
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
    ///
    /// `is_other_login` says that the login is another one though its version may be the same: what is known against the
    /// old one does not count.
    pub(crate) fn renew(
        &self,
        dial: Dial,
        max: NonZeroU32,
        keep: u32,
        is_other_login: bool,
    ) -> Result<(), Error> {
        check_server(&dial.server)?;
        let (old, new, generation) = {
            let mut target = locked(&self.0.target);
            let old = self.replace(&mut target, dial);
            target.generation = target.generation.next();
            (old, Arc::clone(&target.dial), target.generation)
        };
        let breakers = &self.0.shared.breakers;
        if let (Some(old), Some(new)) = (&old.guard, &new.guard) {
            if cfg!(biplane_mutant = "breaker_forgets_with_the_pool") {
                breakers.forget(old);
            }
            if old.login() != new.login() || is_other_login {
                breakers.retire(old.login());
            }
        }
        self.0.alive.begin(generation);
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        self.0.shared.act(|scheduler, actions| {
            scheduler.renew(self.0.id, generation, max.get(), keep, actions);
        });
        Ok(())
    }

    /// Makes new connections with this from now on, which leads to where the stack leads, with the same login: its sealed
    /// text or the one that is to follow may be another. What was opened before stays as it is.
    pub(crate) fn refresh(&self, dial: Dial) {
        self.replace(&mut locked(&self.0.target), dial);
    }

    fn replace(&self, target: &mut Target, dial: Dial) -> Arc<Dial> {
        dial.logins.count_in(&self.0.shared.counters.logins);
        let dial = Arc::new(dial);
        target.dial.successor.set(&dial);
        std::mem::replace(&mut target.dial, dial)
    }

    /// Whether anything of it is connected or being connected, or somebody else has a handle on it.
    pub(crate) fn is_in_use(&self) -> bool {
        !self.0.alive.is_empty() || Arc::strong_count(&self.0) > 1
    }

    /// Closes what rests.
    pub(crate) fn put_away(&self) {
        self.0.shared.purge(self.0.id);
    }

    async fn wait(&self, deadline: Instant) -> Result<Checkout, Error> {
        let shared = &self.0.shared;
        let id = self.0.id;
        let dial = Arc::clone(&locked(&self.0.target).dial);
        let looked = shared.look(&dial);
        if let Admission::Refused(time) = looked
            && !cfg!(biplane_mutant = "refused_callers_wait")
        {
            // Who calls again and again must not keep its runtime from whatever it is waiting for.
            tokio::task::consume_budget().await;
            return Err(shared.refusal(&dial, time));
        }
        shared.settle_in();
        let (caller, mut answer) = oneshot::channel();
        let queued = shared.act(|scheduler, actions| {
            match looked {
                Admission::Hold => scheduler.hold(id, actions),
                _ if scheduler.is_held(id) => scheduler.let_go(id, Leave::All, actions),
                _ => {}
            }
            scheduler.wait(id, caller, actions)
        });
        if looked == Admission::Hold {
            shared.perform(|actions| shared.hold(id, &dial, actions));
        }
        let number = match queued {
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
        // Whoever was in the queue when a breaker opened has been told; this caller may have come just after.
        if let Admission::Refused(time) = shared.look(&dial)
            && !cfg!(biplane_mutant = "refused_callers_wait")
            && place.leave_unless_tried_for()
        {
            return Err(shared.refusal(&dial, time));
        }
        let answered = timeout_at(deadline, &mut answer).await;
        let left = place.leave();
        if answered.is_err() && cfg!(biplane_mutant = "breaker_counts_queue_timeouts") {
            shared.count_against(&dial);
        }
        if answered.is_err()
            && cfg!(biplane_mutant = "waiting_in_vain_asks_for_routes")
            && let Some(renewal) = &self.0.renewal
        {
            renewal.renew().await;
        }
        match (answered, left) {
            (Ok(Ok(answer)), _) => answer,
            (Err(_), Some(HeldUpBy::Stack)) => Err(exhausted(BudgetScope::DataSource)),
            (Err(_), Some(HeldUpBy::Server)) => Err(exhausted(BudgetScope::Server)),
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

    /// Leaves, unless an attempt to connect is under way for this place: the probe's own caller waits for the probe.
    fn leave_unless_tried_for(&mut self) -> bool {
        let (id, shared) = (self.stack.0.id, &self.stack.0.shared);
        let tried_for = self
            .number
            .is_some_and(|number| shared.scheduler().is_tried_for(id, number));
        !tried_for && self.leave().is_some()
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

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stack")
            .field(&locked(&self.0.target).dial)
            .finish()
    }
}
