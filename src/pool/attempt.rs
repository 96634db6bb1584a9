//! Attempts to connect: which are made, how they are judged, and what follows for those who wait.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    Actions, Caller, Shared, Stack,
    breaker::{Admission, Guard, Outcome, Ticket, Weight},
    cleanup,
    connection::{Permit, Physical},
    dial::{Dial, Dialed, NotDialed, Purpose},
    failure::Blame,
    locked,
    scheduler::{Generation, Leave, Phase, StackId},
};
use crate::{
    breaker::BreakerScope,
    error::{BudgetScope, Error, ErrorKind},
};

/// How often the log is told that a server takes no more connections.
const TELL_CROWDED_EVERY: Duration = Duration::from_secs(60);

/// Asks whether what the connections of a stack are made with has changed. Kept by the stack, so it must not keep that
/// alive.
#[async_trait]
pub(crate) trait Renewal: Send + Sync + 'static {
    /// Asks where the truth is, and renews the stack if it says something else than the stack has.
    async fn renew(&self);
}

/// Looks after the stacks of a pool, for whoever made them.
pub(crate) trait Upkeep: Send + Sync + 'static {
    /// Called once a second. Renews stacks of which it is known that they should lead elsewhere, and lets those go that
    /// nobody wants; whatever takes its time is for a task.
    fn look_after(self: Arc<Self>);
}

/// By which breakers somebody goes who connects.
pub(super) enum Way<'a> {
    /// By none.
    Free,
    /// Where breakers are closed, without a say in whether they stay so.
    Known(&'a Shared),
    /// By those of the trial, whose outcome they are told.
    Trial(&'a mut Trial),
}

impl Way<'_> {
    /// Whether to connect there, and whom to tell how it went.
    pub(super) fn to(&mut self, dial: &Dial, index: usize) -> Option<Option<Pass>> {
        match (self, &dial.guard) {
            (Self::Free, _) | (_, None) => Some(None),
            (Self::Known(shared), Some(guard)) => {
                let open = shared.breakers.is_open(guard.endpoint(index));
                (!open).then_some(None)
            }
            (Self::Trial(_), _) if cfg!(biplane_mutant = "open_endpoints_are_tried") && index == 0 => {
                Some(None)
            }
            (Self::Trial(trial), Some(guard)) => trial.to(guard, index).map(Some),
        }
    }
}

/// An attempt that breakers let through.
pub(super) struct Trial {
    shared: Arc<Shared>,
    first: (usize, Option<Pass>),
    login: Pass,
}

impl Trial {
    fn to(&mut self, guard: &Guard, index: usize) -> Option<Pass> {
        let (first, pass) = &mut self.first;
        if index < *first {
            return None;
        }
        if index == *first {
            return pass.take();
        }
        let endpoint = guard.endpoint(index);
        let ticket = self.shared.breakers.admit_to(endpoint, Instant::now())?;
        Some(Pass::new(&self.shared, endpoint, ticket))
    }
}

/// The right to one attempt. Dropped, the attempt has said nothing.
pub(super) struct Pass {
    shared: Arc<Shared>,
    scope: BreakerScope,
    ticket: Option<Ticket>,
}

impl Pass {
    fn new(shared: &Arc<Shared>, scope: &BreakerScope, ticket: Ticket) -> Self {
        Self {
            shared: Arc::clone(shared),
            scope: scope.clone(),
            ticket: Some(ticket),
        }
    }

    pub(super) fn scope(&self) -> &BreakerScope {
        &self.scope
    }

    /// Says how the attempt went, as far as the endpoint is concerned.
    pub(super) fn judge_endpoint(self, blame: Blame, error: &Error) {
        match blame {
            Blame::Endpoint => self.fail(Weight::Counted, error),
            // It answered, whatever it said.
            Blame::Login | Blame::Source | Blame::Crowd | Blame::Refusal => self.succeed(),
            Blame::Nobody => drop(self),
        }
    }

    /// Says how the attempt went, as far as the login is concerned.
    fn judge_login(self, blame: Blame, error: &Error) {
        match blame {
            Blame::Login => self.fail(Weight::Conclusive, error),
            Blame::Source => self.fail(Weight::Counted, error),
            Blame::Refusal => self.succeed(),
            Blame::Endpoint | Blame::Crowd | Blame::Nobody => drop(self),
        }
    }

    pub(super) fn succeed(mut self) {
        self.end(Outcome::Succeeded, None);
    }

    fn fail(mut self, weight: Weight, error: &Error) {
        self.end(Outcome::Failed(weight), Some(error));
    }

    fn end(&mut self, outcome: Outcome, reason: Option<&Error>) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.end_trial(&self.scope, ticket, outcome, reason);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.end(Outcome::Abandoned, None);
    }
}

impl Shared {
    /// Begins to open a connection for a stack, whose permit is taken, unless its breakers are against it.
    pub(super) fn connect(self: &Arc<Self>, id: StackId, actions: &mut Actions) {
        let target = self.stack(id).map(|stack| {
            let target = locked(&stack.0.target);
            (
                Arc::clone(&target.dial),
                Arc::clone(&stack.0.alive),
                target.generation,
                stack.0.renewal.clone(),
            )
        });
        let Some((dial, alive, generation, renewal)) = target else {
            self.scheduler().release(id, Phase::Connecting, actions);
            self.released.notify_waiters();
            return;
        };
        let trial = match self.admit(&dial) {
            Admission::Granted(trial) => trial,
            Admission::Hold => {
                {
                    let mut scheduler = self.scheduler();
                    scheduler.hold(id, actions);
                    scheduler.release(id, Phase::Connecting, actions);
                }
                self.released.notify_waiters();
                return self.hold(id, &dial, actions);
            }
            Admission::Refused(time) => {
                let callers = self.scheduler().refuse(id, actions);
                self.released.notify_waiters();
                return self.tell_refused(callers, &dial, time);
            }
        };
        if trial.is_some() && self.scheduler().is_held(id) {
            self.hold(id, &dial, actions);
        }
        let attempt = Attempt {
            permit: Some(Permit::connecting(self, id, alive.add(generation))),
            shared: Arc::clone(self),
            stack: id,
            generation,
            renewal,
        };
        self.spawn(attempt.make(dial, trial));
    }

    /// Whether an attempt would be made for a dial just now.
    pub(super) fn look(&self, dial: &Dial) -> Admission<()> {
        match &dial.guard {
            Some(guard) => self.breakers.look(guard, Instant::now()),
            None => Admission::Granted(()),
        }
    }

    /// What callers are told whose attempt is not made before that time has passed.
    pub(super) fn refusal(&self, dial: &Dial, time: Duration) -> Error {
        let error = Error::new(ErrorKind::DatabaseUnavailable {
            // Never 0, at which a caller would try again at once.
            retry_after: Some(time.max(Duration::from_millis(1))),
        })
        .detail(format!(
            "{}: it failed and is left alone for now",
            dial.whereabouts()
        ));
        match dial.guard.as_ref().and_then(|guard| self.breakers.reason(guard)) {
            Some(reason) => error.caused_by(reason),
            None => error,
        }
    }

    /// Keeps a stack waiting that the scheduler has been told to hold, for as long as its breakers say.
    pub(super) fn hold(self: &Arc<Self>, id: StackId, dial: &Dial, actions: &mut Actions) {
        let held = dial
            .guard
            .as_ref()
            .is_some_and(|guard| self.breakers.hold(id, guard, Instant::now()));
        if !held {
            self.scheduler().let_go(id, Leave::All, actions);
        }
    }

    /// Looks after what only time changes.
    pub(super) fn tick(self: &Arc<Self>) {
        for scope in self.breakers.tick(Instant::now()) {
            self.let_go(&scope);
        }
        self.act(|scheduler, actions| scheduler.lift_ceilings(actions));
    }

    fn admit(self: &Arc<Self>, dial: &Dial) -> Admission<Option<Trial>> {
        let Some(guard) = &dial.guard else {
            return Admission::Granted(None);
        };
        match self.breakers.admit(guard, Instant::now()) {
            Admission::Granted(granted) => {
                let endpoint = guard.endpoint(granted.index);
                Admission::Granted(Some(Trial {
                    first: (granted.index, Some(Pass::new(self, endpoint, granted.endpoint))),
                    login: Pass::new(self, guard.login(), granted.login),
                    shared: Arc::clone(self),
                }))
            }
            Admission::Hold => Admission::Hold,
            Admission::Refused(time) => Admission::Refused(time),
        }
    }

    /// Counts a failure where there was no attempt, as nobody but a mutant does.
    pub(super) fn count_against(self: &Arc<Self>, dial: &Dial) {
        if let Admission::Granted(Some(trial)) = self.admit(dial)
            && let Some(pass) = trial.first.1
        {
            pass.judge_endpoint(Blame::Endpoint, &dial.unavailable("the queue"));
        }
    }

    fn end_trial(
        self: &Arc<Self>,
        scope: &BreakerScope,
        ticket: Ticket,
        outcome: Outcome,
        reason: Option<&Error>,
    ) {
        let effects = self.breakers.end(scope, ticket, outcome, reason, Instant::now());
        effects.write();
        if effects.opened && !cfg!(biplane_mutant = "who_waits_is_not_told") {
            self.tell_waiting(scope);
        }
        self.let_go(scope);
    }

    /// Tells everybody who waits for what has just been found dead, and for nothing else.
    fn tell_waiting(self: &Arc<Self>, scope: &BreakerScope) {
        let stacks: Vec<(StackId, Stack)> = locked(&self.stacks)
            .iter()
            .filter_map(|(id, listed)| Some((*id, Stack(listed.stack.upgrade()?))))
            .collect();
        for (id, stack) in stacks {
            let dial = Arc::clone(&locked(&stack.0.target).dial);
            let concerned = dial
                .guard
                .as_ref()
                .filter(|guard| guard.all().any(|one| one == scope));
            let refused = concerned.and_then(|guard| self.breakers.refuses(guard, Instant::now()));
            if let Some(time) = refused {
                let callers = self.act(|scheduler, actions| scheduler.turn_all_away(id, actions));
                self.tell_refused(callers, &dial, time);
            }
        }
    }

    fn tell_refused(&self, callers: Vec<Caller>, dial: &Dial, time: Duration) {
        if callers.is_empty() {
            return;
        }
        if let Some(guard) = &dial.guard {
            self.breakers.count_refused(guard, callers.len(), Instant::now());
        }
        tell(callers, &self.refusal(dial, time));
    }

    /// Lets stacks go on that a breaker held, as many as it lets through now.
    fn let_go(self: &Arc<Self>, scope: &BreakerScope) {
        // No more than there are: one that is held again at once is not asked twice.
        for _ in 0..self.breakers.held(scope) {
            let Some((id, leave)) = self.breakers.let_go(scope, Instant::now()) else {
                return;
            };
            self.act(|scheduler, actions| scheduler.let_go(id, leave, actions));
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
    renewal: Option<Arc<dyn Renewal>>,
}

impl Attempt {
    async fn make(self, dial: Arc<Dial>, mut trial: Option<Trial>) {
        let way = trial.as_mut().map_or(Way::Free, Way::Trial);
        let dialed = dial.connect(Purpose::Work, &self.shared.options, way).await;
        let login = trial.map(|trial| trial.login);
        match dialed {
            Ok(dialed) => {
                if let Some(login) = login {
                    login.succeed();
                }
                self.succeed(dialed, dial);
            }
            Err(not) => self.fail(not, &dial, login).await,
        }
    }

    fn succeed(mut self, dialed: Dialed, dial: Arc<Dial>) {
        let Some(permit) = self.permit.take() else { return };
        let shared = &self.shared;
        shared.counters.opened.fetch_add(1, Relaxed);
        let physical = Physical::new(dialed, dial, self.generation, permit, shared);
        shared.act(|scheduler, actions| scheduler.put(self.stack, Phase::Connecting, physical, actions));
    }

    async fn fail(mut self, not: NotDialed, dial: &Arc<Dial>, login: Option<Pass>) {
        match (not.blame, login) {
            (Blame::Login, Some(login)) => return self.be_rejected(not.error, dial, login).await,
            (Blame::Crowd, _) => self.be_crowded_out(not.error, dial),
            (blame, login) => {
                self.report(not.error.clone());
                if let Some(login) = login {
                    login.judge_login(blame, &not.error);
                }
            }
        }
        if let Some(dialed) = not.unfinished {
            cleanup::end_backend(&self.shared, dial, dialed.backend, dialed.connection).await;
        }
        self.permit = None;
    }

    /// The server does not know this login or database. It may have changed since the route was read, so before that is
    /// believed the control plane is asked once, by one attempt. Meanwhile nobody tries, and nobody who waits is told.
    async fn be_rejected(mut self, error: Error, dial: &Arc<Dial>, login: Pass) {
        let shared = Arc::clone(&self.shared);
        let asked_already = !shared.breakers.question(login.scope(), Instant::now());
        shared.counters.failed.fetch_add(1, Relaxed);
        shared.act(|scheduler, actions| {
            scheduler.hold(self.stack, actions);
        });
        // The server has closed the connection; while the control plane is asked, the permit is for others.
        self.permit = None;
        let question = (!asked_already).then(|| Question {
            shared: Arc::clone(&shared),
            scope: login.scope().clone(),
        });
        shared.perform(|actions| shared.hold(self.stack, dial, actions));
        let Some(_question) = question else { return };
        if let Some(renewal) = &self.renewal
            && !self.has_other_logins(dial)
            && !cfg!(biplane_mutant = "rejections_are_final")
        {
            renewal.renew().await;
        }
        if !self.has_other_logins(dial) {
            // Taken out first, so that it is told what the server said, and told when everybody is.
            let caller = shared.scheduler().fail(self.stack, self.generation);
            login.judge_login(Blame::Login, &error);
            tell(caller, &error);
        }
    }

    /// The server has no room: the stack makes do with the connections that it has.
    fn be_crowded_out(&self, error: Error, dial: &Dial) {
        let shared = &self.shared;
        shared.counters.failed.fetch_add(1, Relaxed);
        let here = |physical: &Physical| physical.is_at(&dial.server.endpoints);
        let callers =
            shared.act(|scheduler, actions| scheduler.crowded(self.stack, self.generation, here, actions));
        let scope = BudgetScope::Server;
        let full = Error::new(ErrorKind::BudgetExhausted { scope })
            .detail(dial.whereabouts())
            .caused_by(error);
        tell(callers, &full);
        let now = Instant::now();
        let tell_log = {
            let mut told = locked(&shared.told_crowded);
            let long_ago = told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_CROWDED_EVERY);
            if long_ago {
                *told = Some(now);
            }
            long_ago
        };
        if tell_log {
            tracing::warn!(
                database = %dial.whereabouts(),
                "the server takes no more connections; going on with those that are open"
            );
        }
    }

    /// Whether its stack has another address, login or next login by now.
    fn has_other_logins(&self, dial: &Arc<Dial>) -> bool {
        let stack = self.shared.stack(self.stack);
        stack.is_none_or(|stack| !Arc::ptr_eq(&locked(&stack.0.target).dial, dial))
    }

    fn report(&self, error: Error) {
        self.shared.counters.failed.fetch_add(1, Relaxed);
        let caller = self.shared.scheduler().fail(self.stack, self.generation);
        tell(caller, &error);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.permit.is_some() && !cfg!(biplane_mutant = "lost_attempts_are_forgotten") {
            self.report(ErrorKind::Internal.into());
        }
    }
}

/// While it is found out whether a login was rejected for good.
struct Question {
    shared: Arc<Shared>,
    scope: BreakerScope,
}

impl Drop for Question {
    fn drop(&mut self) {
        self.shared.breakers.answered(&self.scope);
        self.shared.let_go(&self.scope);
    }
}

fn tell(callers: impl IntoIterator<Item = Caller>, error: &Error) {
    for caller in callers {
        // A caller that has left needs no answer.
        let _ = caller.send(Err(error.clone()));
    }
}
