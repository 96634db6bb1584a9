//! A connection while it is lent: what it is in the middle of, and the way back.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use sqlx::{
    Connection, Executor,
    postgres::{PgConnection, PgTransactionManager},
};
use sqlx_core::transaction::TransactionManager;
use tokio::time::Instant;

use super::{
    Shared, cleanup,
    dial::{Backend, Dial, Dialed},
    entry::Memory,
    failure::Damage,
    later, locked,
    logins::Authorisation,
    outdated::Made,
    scheduler::{Generation, Phase, Rest, StackId},
    session::{self, Protocol},
};
use crate::{breaker::BreakerScope, error::Error, tenant::Endpoint};

/// The right to hold a physical connection. Dropping it says that the backend is gone.
pub(super) struct Permit {
    shared: Weak<Shared>,
    stack: StackId,
    phase: Phase,
    made_with: Made,
}

impl Permit {
    pub(super) fn connecting(shared: &Arc<Shared>, stack: StackId, made_with: Made) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            stack,
            phase: Phase::Connecting,
            made_with,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.made_with.end();
        if let Some(shared) = self.shared.upgrade() {
            shared.act(|scheduler, actions| scheduler.release(self.stack, self.phase, actions));
            shared.released.notify_waiters();
        }
    }
}

/// A physical connection with its permit.
pub(super) struct Physical {
    pub(super) connection: PgConnection,
    /// Its backend, if that stays the same for its life.
    pub(super) backend: Option<Backend>,
    /// What it was made with.
    pub(super) dial: Arc<Dial>,
    generation: Generation,
    expires: Instant,
    since: Instant,
    permit: Permit,
    endpoint: Option<Beyond>,
    authorisation: Option<Authorisation>,
    /// Of those it was lent to.
    pub(super) memory: Memory,
}

/// What is at the other end, where a breaker stands.
struct Beyond {
    scope: BreakerScope,
    /// Whether the breaker is open.
    tripped: Arc<AtomicBool>,
}

impl Physical {
    pub(super) fn new(
        dialed: Dialed,
        dial: Arc<Dial>,
        generation: Generation,
        mut permit: Permit,
        shared: &Shared,
    ) -> Self {
        permit.phase = Phase::Open;
        let now = Instant::now();
        let mut life = shared.options.max_lifetime.mul_f64(1.0 - random_tenth());
        if dial.would_rather_not(&dialed) {
            // Soon there may be a primary again.
            life = life.min(shared.options.probe_after);
        }
        let endpoint = dialed.endpoint.map(|scope| Beyond {
            tripped: shared.breakers.tripped(&scope, now),
            scope,
        });
        Self {
            connection: dialed.connection,
            backend: dialed.backend,
            dial,
            generation,
            expires: later(now, life),
            since: now,
            permit,
            endpoint,
            authorisation: dialed.authorisation,
            memory: Memory::default(),
        }
    }

    /// Whether it leads to one of these.
    pub(super) fn is_at(&self, endpoints: &[Endpoint]) -> bool {
        match self.endpoint.as_ref().map(|beyond| &beyond.scope) {
            Some(BreakerScope::Endpoint(endpoint)) => endpoints.contains(endpoint),
            _ => false,
        }
    }

    /// Whether what it leads to cannot be reached anew just now.
    fn is_doubtful(&self) -> bool {
        self.endpoint
            .as_ref()
            .is_some_and(|beyond| beyond.tripped.load(Relaxed))
    }

    /// The connection alone, and its permit, which the caller drops once the backend is gone.
    pub(super) fn part(self) -> (PgConnection, Permit) {
        (self.connection, self.permit)
    }

    /// Marks the permit as that of a connection that is being closed.
    pub(super) fn closing(self, shared: &Shared) -> Self {
        shared.scheduler().discard();
        self.noted_closing()
    }

    /// The same where the scheduler knows already.
    pub(super) const fn noted_closing(mut self) -> Self {
        self.permit.phase = Phase::Closing;
        self
    }

    pub(super) fn is_expired(&self, now: Instant) -> bool {
        now >= self.expires || self.is_unauthorised()
    }

    /// Whether the login that it was made with is over, or soon will be.
    fn is_unauthorised(&self) -> bool {
        self.authorisation
            .is_some_and(|authorisation| authorisation.is_over(&self.dial.logins))
    }
}

impl Rest for Physical {
    fn since(&self) -> Instant {
        self.since
    }

    fn generation(&self) -> Generation {
        self.generation
    }
}

/// How a lent connection is ended over its holder's head.
pub(super) struct Lent {
    pub(super) dial: Arc<Dial>,
    pub(super) backend: Option<Backend>,
    pub(super) stack: StackId,
    pub(super) generation: Generation,
    /// Since when it is known that its stack goes on with another login or address.
    pub(super) outdated: Option<Instant>,
}

/// What a connection is in the middle of, or was left with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    /// A statement was sent and its answer has not been read to the end.
    pub(super) busy: bool,
    /// A transaction of ours is open, or may be.
    pub(super) in_transaction: bool,
    /// A statement may have failed inside the transaction.
    may_have_failed: bool,
    /// Something other than plain queries ran: the session may have other settings than it started with.
    pub(super) altered: bool,
    pub(super) health: Health,
}

/// Whether a connection is of further use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Health {
    #[default]
    Sound,
    /// It is not, and its backend may still be there.
    Suspect,
    /// It is not, and its backend has gone.
    Gone,
}

impl State {
    fn is_clean(self) -> bool {
        !self.busy && !self.in_transaction && !self.altered && self.health == Health::Sound
    }
}

/// A connection on loan. Dropping it gives it back: at once if it is clean, after a task has cleaned it if not.
///
/// It holds its pool and not its stack, which ends with its handles: what comes back after that is closed.
pub(crate) struct Checkout {
    physical: Option<Physical>,
    shared: Arc<Shared>,
    stack: StackId,
    state: State,
    number: Option<u64>,
}

impl Checkout {
    pub(super) fn new(physical: Physical, shared: Arc<Shared>, stack: StackId) -> Self {
        Self {
            physical: Some(physical),
            shared,
            stack,
            state: State::default(),
            number: None,
        }
    }

    /// The connection, for a statement announced by [`Checkout::start`].
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.physical_mut().connection
    }

    /// What the connection was made with.
    pub(crate) fn dial(&self) -> &Dial {
        &self.physical.as_ref().expect("taken on drop only").dial
    }

    pub(crate) const fn is_in_transaction(&self) -> bool {
        self.state.in_transaction
    }

    /// Announces a statement, so that one which is abandoned or leaves something behind is noticed. If the one before
    /// was abandoned, its answer is read first: it must not be taken for the answer to this one.
    ///
    /// # Cancel safety
    /// Safe: the connection stays known as busy.
    pub(crate) async fn start(&mut self, sql: &str, protocol: Protocol) -> sqlx::Result<()> {
        self.state.altered |= session::may_alter(sql, protocol);
        self.be_busy().await
    }

    /// The answer to the statement has been read to its end.
    pub(crate) const fn finish(&mut self) {
        self.state.busy = false;
    }

    /// The statement failed. A refusal by the database has been read to its end; anything else has not.
    pub(crate) fn fail(&mut self, error: &sqlx::Error) {
        self.state.may_have_failed = true;
        if matches!(error, sqlx::Error::Io(_)) && Error::of(error).is_none() {
            self.suspect_endpoint();
        }
        if matches!(error, sqlx::Error::Database(_)) && cfg!(biplane_mutant = "refused_statements_count") {
            let dial = Arc::clone(&self.physical_mut().dial);
            self.shared.count_against(&dial);
        }
        match Damage::of(error) {
            Damage::Refused => self.state.busy = false,
            Damage::Unread => {}
            Damage::Suspect => self.state.health = Health::Suspect,
            Damage::Gone => {
                self.state.health = Health::Gone;
                // What ended this session, such as a restart of the server, has ended those at rest as well.
                if !cfg!(biplane_mutant = "dead_connections_rest_on") {
                    self.shared.purge(self.stack);
                }
            }
        }
    }

    /// The connection is given to code that we do not see, and that may leave a statement running.
    pub(crate) fn hand_over(&mut self) -> &mut PgConnection {
        self.state.altered = true;
        self.state.may_have_failed = true;
        self.state.busy = true;
        self.connection()
    }

    /// A transaction is about to be opened.
    pub(super) const fn begins(&mut self) {
        self.state.in_transaction = true;
        self.state.may_have_failed = false;
    }

    /// No transaction is open after all.
    pub(super) const fn ends(&mut self) {
        self.state.in_transaction = false;
    }

    /// Has the session made as new, or closed, when it comes back.
    pub(super) const fn distrust(&mut self) {
        self.state.altered = true;
    }

    /// Whether something other than plain queries has run.
    pub(crate) const fn is_altered(&self) -> bool {
        self.state.altered
    }

    pub(super) fn remembers(&self) -> &Memory {
        &self.physical.as_ref().expect("taken on drop only").memory
    }

    pub(super) fn memory(&mut self) -> &mut Memory {
        &mut self.physical_mut().memory
    }

    /// Commits. Postgres answers the COMMIT of a failed transaction with success and rolls back, so if a statement may
    /// have failed the server is asked first.
    ///
    /// # Cancel safety
    /// Whether a cancelled commit took effect is not known.
    pub(crate) async fn commit(&mut self) -> sqlx::Result<()> {
        self.be_busy().await?;
        let committed = self.check_and_commit().await;
        self.state.in_transaction = committed.is_err();
        self.judge(committed)
    }

    async fn check_and_commit(&mut self) -> sqlx::Result<()> {
        if self.state.may_have_failed && !cfg!(biplane_mutant = "failed_transactions_commit") {
            // A failed transaction refuses even this with 25P02.
            self.connection().execute("select").await?;
        }
        PgTransactionManager::commit(self.connection()).await
    }

    /// Rolls back.
    ///
    /// # Cancel safety
    /// Safe: the connection rolls back when it is dropped.
    pub(crate) async fn rollback(&mut self) -> sqlx::Result<()> {
        self.be_busy().await?;
        let rolled_back = self.roll_back().await;
        self.state.in_transaction = rolled_back.is_err();
        self.judge(rolled_back)
    }

    /// A transaction that could not be entered is open, and has failed, and sqlx does not know of it.
    async fn roll_back(&mut self) -> sqlx::Result<()> {
        let counted = PgTransactionManager::get_transaction_depth(self.connection()) > 0;
        if counted || !self.state.in_transaction || cfg!(biplane_mutant = "refused_entries_stay_open") {
            PgTransactionManager::rollback(self.connection()).await
        } else {
            self.connection().execute("rollback").await.map(drop)
        }
    }

    /// Begins another exchange with the server, after reading what is left of one that was abandoned. How that one
    /// ended does not matter to the caller, unless the connection went with it.
    pub(super) async fn be_busy(&mut self) -> sqlx::Result<()> {
        let abandoned = std::mem::replace(&mut self.state.busy, true);
        if abandoned && !cfg!(biplane_mutant = "given_up_answers_are_left") {
            self.state.may_have_failed = true;
            if let Err(error) = catch_up(self.connection()).await {
                self.fail(&error);
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn judge<T>(&mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        match &result {
            Ok(_) => self.finish(),
            Err(error) => self.fail(error),
        }
        result
    }

    /// Whether the connection can be lent: it answers a probe, if it has rested for long.
    pub(super) async fn is_fit(&mut self) -> bool {
        if self.physical_mut().is_unauthorised() {
            return false;
        }
        let options = &self.shared.options;
        let (probe_after, limit) = (options.probe_after, options.reset_timeout);
        let rested = Instant::now().saturating_duration_since(self.physical_mut().since);
        let doubtful = self.physical_mut().is_doubtful();
        if rested < probe_after && !doubtful {
            return true;
        }
        self.state.busy = true;
        match tokio::time::timeout(limit, self.connection().ping()).await {
            Ok(answer) => self.judge(answer).is_ok(),
            Err(_) => {
                self.state.health = Health::Suspect;
                self.suspect_endpoint();
                self.shared.purge(self.stack);
                false
            }
        }
    }

    /// Enters the connection among those that are lent.
    pub(super) fn lend(&mut self) {
        let shared = &self.shared;
        let physical = self.physical.as_ref().expect("taken on drop only");
        let number = shared.counters.lent.fetch_add(1, Relaxed);
        let lent = Lent {
            dial: Arc::clone(&physical.dial),
            backend: physical.backend,
            stack: self.stack,
            generation: physical.generation,
            outdated: None,
        };
        locked(&shared.lent).insert(number, lent);
        self.number = Some(number);
    }

    /// The session was lost, which says something about its endpoint.
    fn suspect_endpoint(&self) {
        let physical = self.physical.as_ref().expect("taken on drop only");
        if let Some(beyond) = &physical.endpoint {
            self.shared.breakers.suspect(&beyond.scope, Instant::now());
        }
    }

    fn physical_mut(&mut self) -> &mut Physical {
        self.physical.as_mut().expect("taken on drop only")
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let shared = &self.shared;
        if let Some(number) = self.number {
            locked(&shared.lent).remove(&number);
        }
        if let Some(physical) = self.physical.take() {
            if self.state.is_clean() || cfg!(biplane_mutant = "returned_as_it_is") {
                give_back(shared, self.stack, physical);
            } else {
                shared.counters.rescued.fetch_add(1, Relaxed);
                cleanup::rescue(Arc::clone(shared), self.stack, physical, self.state);
            }
        }
    }
}

/// Puts a clean connection on its stack, or closes it if its life is over.
pub(super) fn give_back(shared: &Arc<Shared>, stack: StackId, mut physical: Physical) {
    let now = Instant::now();
    if physical.is_expired(now) {
        shared.hang_up(physical.closing(shared));
        return;
    }
    physical.since = now;
    shared.act(|scheduler, actions| scheduler.put(stack, Phase::Open, physical, actions));
}

/// Reads what the server still has to say, refusals included.
pub(super) async fn catch_up(connection: &mut PgConnection) -> sqlx::Result<()> {
    loop {
        match connection.ping().await {
            Err(error) if Damage::of(&error).spares_connection() => {}
            done => return done,
        }
    }
}

/// Between 0 and 0.1; chance enough to keep connections from expiring together.
fn random_tenth() -> f64 {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    f64::from(random) / f64::from(u32::MAX) / 10.0
}
