//! A connection while it is lent: what it is in the middle of, and the way back.

use std::sync::{Arc, Weak, atomic::Ordering::Relaxed};

use sqlx::{
    AssertSqlSafe, Connection, Executor, SqlSafeStr,
    postgres::{PgConnection, PgTransactionManager},
};
use sqlx_core::transaction::TransactionManager;
use tokio::time::Instant;

use super::{
    Shared, Stack, cleanup,
    dial::Dialed,
    failure::breaks_connection,
    locked,
    options::PoolOptions,
    scheduler::{Phase, Rest, StackId},
};

/// The right to hold a physical connection. Dropping it says that the backend is gone.
pub(super) struct Permit {
    shared: Weak<Shared>,
    stack: StackId,
    phase: Phase,
}

impl Permit {
    pub(super) fn connecting(shared: &Arc<Shared>, stack: StackId) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            stack,
            phase: Phase::Connecting,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.act(|scheduler, actions| scheduler.release(self.stack, self.phase, actions));
            shared.released.notify_waiters();
        }
    }
}

/// A physical connection with its permit.
pub(super) struct Physical {
    pub(super) connection: PgConnection,
    /// The process id of its backend, if that stays the same for its life.
    pub(super) backend: Option<i32>,
    expires: Instant,
    since: Instant,
    permit: Permit,
}

impl Physical {
    pub(super) fn new(dialed: Dialed, mut permit: Permit, options: &PoolOptions) -> Self {
        permit.phase = Phase::Open;
        let now = Instant::now();
        Self {
            connection: dialed.connection,
            backend: dialed.backend,
            expires: now + options.max_lifetime.mul_f64(1.0 - random_tenth()),
            since: now,
            permit,
        }
    }

    /// The connection alone, and its permit, which the caller drops once the backend is gone.
    pub(super) fn part(self) -> (PgConnection, Permit) {
        (self.connection, self.permit)
    }

    /// Marks the permit as that of a connection that is being closed.
    pub(super) fn closing(mut self, shared: &Shared) -> Self {
        if self.permit.phase != Phase::Closing {
            self.permit.phase = Phase::Closing;
            shared.scheduler().discard();
        }
        self
    }

    pub(super) fn noted_closing(mut self) -> Self {
        self.permit.phase = Phase::Closing;
        self
    }

    pub(super) fn is_expired(&self, now: Instant) -> bool {
        now >= self.expires
    }
}

impl Rest for Physical {
    fn since(&self) -> Instant {
        self.since
    }
}

/// Who holds a lent connection.
pub(super) struct Lent {
    pub(super) stack: Weak<super::StackInner>,
    pub(super) backend: Option<i32>,
}

/// What a connection is in the middle of, or was left with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    /// A statement was sent and its answer has not been read to the end.
    pub(super) busy: bool,
    /// A transaction of ours is open, or may be.
    pub(super) in_transaction: bool,
    /// A statement may have failed inside the transaction.
    pub(super) may_have_failed: bool,
    /// Something other than plain queries ran: the session may have other settings than it started with.
    pub(super) altered: bool,
    /// Of no further use.
    pub(super) broken: bool,
}

/// A connection on loan. Dropping it gives it back: at once if it is clean, after a task has cleaned it if not.
pub(crate) struct Checkout {
    physical: Option<Physical>,
    stack: Stack,
    state: State,
    number: Option<u64>,
}

impl Checkout {
    pub(super) fn new(physical: Physical, stack: Stack) -> Self {
        Self {
            physical: Some(physical),
            stack,
            state: State::default(),
            number: None,
        }
    }

    /// The connection, for a statement announced by [`Checkout::start`].
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.physical.as_mut().expect("taken on drop only").connection
    }

    pub(crate) fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Announces a statement, so that one which is abandoned or leaves something behind is noticed.
    pub(crate) fn start(&mut self, sql: &str) {
        self.interrupt();
        self.state.altered |= may_alter_session(sql);
    }

    /// The answer to the statement has been read to its end.
    pub(crate) fn finish(&mut self) {
        self.state.busy = false;
    }

    /// The statement failed. A refusal by the database has been read to its end; anything else has not.
    pub(crate) fn fail(&mut self, error: &sqlx::Error) {
        self.state.may_have_failed = true;
        if breaks_connection(error) {
            self.state.broken = true;
        } else if matches!(error, sqlx::Error::Database(_)) {
            self.state.busy = false;
        }
    }

    /// Begins another exchange with the server. How one that was abandoned ended is not known.
    const fn interrupt(&mut self) {
        self.state.may_have_failed |= self.state.busy;
        self.state.busy = true;
    }

    /// The connection is given to code that we do not see.
    pub(crate) fn hand_over(&mut self) -> &mut PgConnection {
        self.state.altered = true;
        self.state.may_have_failed = true;
        self.connection()
    }

    /// Opens a transaction with this text, which begins with `BEGIN` and may have statements after it, all in one round
    /// trip.
    ///
    /// # Cancel safety
    /// A cancelled or failed call leaves the connection to be cleaned when it is dropped.
    pub(crate) async fn begin(&mut self, text: String) -> sqlx::Result<()> {
        self.state.in_transaction = true;
        self.state.may_have_failed = false;
        self.state.busy = true;
        let begun =
            PgTransactionManager::begin(self.connection(), Some(AssertSqlSafe(text).into_sql_str())).await;
        match &begun {
            Ok(()) => self.state.busy = false,
            Err(error) => self.fail(error),
        }
        begun
    }

    /// Commits. Postgres answers the COMMIT of a failed transaction with success and rolls back, so if a statement may
    /// have failed the server is asked first.
    ///
    /// # Cancel safety
    /// Whether a cancelled commit took effect is not known.
    pub(crate) async fn commit(&mut self) -> sqlx::Result<()> {
        self.interrupt();
        let committed = self.check_and_commit().await;
        match &committed {
            Ok(()) => {
                self.state.busy = false;
                self.state.in_transaction = false;
            }
            Err(error) => self.fail(error),
        }
        committed
    }

    async fn check_and_commit(&mut self) -> sqlx::Result<()> {
        if self.state.may_have_failed {
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
        self.state.busy = true;
        let rolled_back = PgTransactionManager::rollback(self.connection()).await;
        match &rolled_back {
            Ok(()) => {
                self.state.busy = false;
                self.state.in_transaction = false;
            }
            Err(error) => self.fail(error),
        }
        rolled_back
    }

    /// Whether the connection can be lent: it answers a probe, if it has rested for long.
    pub(super) async fn is_fit(&mut self) -> bool {
        let options = &self.stack.0.shared.options;
        let (probe_after, limit) = (options.probe_after, options.reset_timeout);
        let physical = self.physical.as_mut().expect("taken on drop only");
        let now = Instant::now();
        if now.saturating_duration_since(physical.since) < probe_after {
            return true;
        }
        self.state.busy = true;
        match tokio::time::timeout(limit, physical.connection.ping()).await {
            Ok(Ok(())) => {
                self.state.busy = false;
                true
            }
            Ok(Err(_)) | Err(_) => {
                self.state.broken = true;
                false
            }
        }
    }

    /// Enters the connection among those that are lent.
    pub(super) fn lend(&mut self) {
        let shared = &self.stack.0.shared;
        let number = shared.counters.lent.fetch_add(1, Relaxed);
        let backend = self.physical.as_ref().and_then(|physical| physical.backend);
        locked(&shared.lent).insert(
            number,
            Lent {
                stack: Arc::downgrade(&self.stack.0),
                backend,
            },
        );
        self.number = Some(number);
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let shared = &self.stack.0.shared;
        if let Some(number) = self.number {
            locked(&shared.lent).remove(&number);
        }
        if let Some(physical) = self.physical.take() {
            let State {
                busy,
                in_transaction,
                altered,
                broken,
                ..
            } = self.state;
            if busy || in_transaction || altered || broken {
                shared.counters.rescued.fetch_add(1, Relaxed);
                cleanup::rescue(self.stack.clone(), physical, self.state);
            } else {
                give_back(&self.stack, physical);
            }
        }
    }
}

/// Puts a clean connection on its stack, or closes it if its life is over.
pub(super) fn give_back(stack: &Stack, mut physical: Physical) {
    let shared = &stack.0.shared;
    let now = Instant::now();
    if physical.is_expired(now) {
        shared.hang_up(physical.closing(shared));
        return;
    }
    physical.since = now;
    shared.act(|scheduler, actions| scheduler.put(stack.0.id, Phase::Open, physical, actions));
}

/// Whether a statement may leave the session other than it found it. Plain queries do not; whatever is not known to be
/// one is taken to. What a function called by a query does is not seen here.
fn may_alter_session(sql: &str) -> bool {
    const PLAIN: [&str; 8] = [
        "select", "insert", "update", "delete", "with", "values", "table", "merge",
    ];
    const SUSPECT: [&str; 4] = ["set_config", "pg_advisory", "pg_try_advisory", "temp"];
    let text = sql.trim_start();
    let plain = PLAIN.iter().any(|word| {
        text.get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word))
            && !text[word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
    });
    !plain
        || text.trim_end().trim_end_matches(';').contains(';')
        || SUSPECT.iter().any(|word| contains_ignoring_case(text, word))
}

fn contains_ignoring_case(text: &str, word: &str) -> bool {
    text.as_bytes()
        .windows(word.len())
        .any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}

/// Between 0 and 0.1; chance enough to keep connections from expiring together.
fn random_tenth() -> f64 {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    f64::from(random) / f64::from(u32::MAX) / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_queries_leave_the_session_alone() {
        for sql in [
            "select 1",
            " SELECT 1 ;",
            "with a as (select 1) table a",
            "insert into t values (1)",
            "values(1)",
        ] {
            assert!(!may_alter_session(sql), "{sql}");
        }
    }

    #[test]
    fn whatever_else_is_suspect() {
        for sql in [
            "set search_path = x",
            "select set_config('a', 'b', false)",
            "select PG_ADVISORY_LOCK(1)",
            "select 1 into temp t",
            "select 1; set role x",
            "begin",
            "listen x",
            "selectx",
            "",
            "/* hint */ select 1",
        ] {
            assert!(may_alter_session(sql), "{sql}");
        }
    }
}
