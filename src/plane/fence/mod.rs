//! The mover's side of the fence: after it, nothing commits as this tenant at this epoch.

mod drain;
mod durable;
mod reconcile;
mod residence;
mod succession;

use std::{fmt, time::Duration};

use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Row, postgres::PgArguments, query::Query};
use tokio::time::{Instant, timeout_at};

pub use self::{
    drain::{DrainOptions, Running},
    reconcile::{Finding, Reconcile, ReconcileMode, Recorded},
    residence::{Residence, ResidenceState},
};
use crate::{
    error::{Error, ErrorKind},
    plane::data_schema::failed,
    tenant::{Epoch, TenantId},
};

/// How much longer than the deadline an answer may take. Those that are under way then come within it, and say who is in
/// the way, also where much is going on.
const SILENCE: Duration = Duration::from_secs(2);

/// How long opening a tenant again may take, which is one row: more means that nobody answers, and the caller is to hear
/// that it stays closed.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// The fence of one data-plane database, seen by whoever moves tenants.
///
/// A route may be old, a process may sleep for an hour and wake up in the middle of a transaction. So a database itself
/// knows which tenants live in it, and since which epoch, and every transaction asks it (`biplane.enter_v1`). A mover that
/// fences a tenant knows afterwards that its rows stand still. [The page](crate::manual::fence) has what that guarantees,
/// what not, the grants and the commands.
///
/// # Contract
/// - Once [`Fence::fence`] has returned, nothing that entered as this tenant at this epoch or an older one can commit, at
///   any isolation level, also not a transaction that was prepared, a session that had entered before, or a process that
///   was stopped meanwhile. That survives the server, and a standby that `synchronous_standby_names` demands.
/// - A mover that dies leaves the tenant fenced or open, and [`Fence::fence`] may be called again, by anybody. Whoever goes
///   on with its work calls [`Fence::take_over`] first, so that nothing of the mover before acts any more.
/// - Nothing waits for dumps, maintenance and, in a shared database, for other tenants' transactions.
///
/// The connection is direct, not through a pooler and not in a transaction, and logs in as the owner of the schema
/// `biplane`, or a member of it, with `pg_read_all_stats` and `pg_signal_backend`.
pub struct Fence<'c> {
    connection: &'c mut PgConnection,
}

impl<'c> Fence<'c> {
    /// The fence of the database that this is a connection to.
    pub const fn new(connection: &'c mut PgConnection) -> Self {
        Self { connection }
    }

    /// Commits "fenced", durably, and waits until nothing is left that could have entered before. Returns how long that
    /// took.
    ///
    /// Transactions may go on to their end; a tenant with a database of its own has its sessions ended, idle ones at once
    /// and others after [`DrainOptions::grace`], because they have entered once for all their statements.
    ///
    /// # Errors
    /// After any of them the tenant is open again, unless the error says otherwise: what another mover had fenced, before or
    /// meanwhile, stays fenced, and so may a tenant whose server cannot be told any more ([`Fence::unfence`] on another
    /// connection).
    ///
    /// [`Undrained`](ErrorKind::Undrained) at the deadline, with the process ids in the way.
    /// [`VersionConflict`](ErrorKind::VersionConflict) when the tenant is not here at this epoch, and when somebody else has
    /// opened or fenced it while this waited: of two who fence at a time the later one goes on.
    /// [`InvalidConfiguration`](ErrorKind::InvalidConfiguration) for a server that loses what it has committed (`fsync` off).
    /// [`MissingPrivilege`](ErrorKind::MissingPrivilege), which names the privilege.
    /// [`DatabaseUnavailable`](ErrorKind::DatabaseUnavailable) when the connection is lost or nothing answers.
    /// [`TransactionConflict`](ErrorKind::TransactionConflict) and [`Database`](ErrorKind::Database) for a statement that the
    /// database gave up.
    ///
    /// # Cancel safety
    /// Nothing is lost, but the tenant may stay fenced: call this again, or [`Fence::unfence`].
    pub async fn fence(
        &mut self,
        tenant: TenantId,
        epoch: Epoch,
        options: &DrainOptions,
    ) -> Result<Duration, Error> {
        let began = Instant::now();
        let until = began + options.deadline;
        // What the fence answered, from just before its commit is asked for: whatever fails later is taken back.
        let mut fenced = None;
        let fencing = async {
            let standbys = self.durability().await?;
            self.privileges().await?;
            let too_early = match cfg!(biplane_mutant = "the_list_is_made_first") {
                true => Some(self.running(tenant).await?),
                false => None,
            };
            self.close(tenant, epoch, until, &mut fenced).await?;
            self.until_replicated(standbys, until).await?;
            let since = self.fenced_since(tenant, epoch).await?;
            if since.is_some() {
                self.drain(tenant, too_early, options, until).await?;
                // Whoever was let in meanwhile was not waited for.
                if self.fenced_since(tenant, epoch).await? == since {
                    return Ok(());
                }
            }
            fenced = None;
            Err(Error::new(ErrorKind::VersionConflict).detail(
                "somebody else has opened or fenced it meanwhile; see who moves it, and fence it again",
            ))
        };
        match answered(until + SILENCE, fencing).await {
            Ok(()) => Ok(began.elapsed()),
            Err(error) => Err(match fenced {
                Some(fenced_at) => self.give_up(tenant, epoch, fenced_at, error).await,
                None => error,
            }),
        }
    }

    /// Lets the tenant be entered again, at the same epoch.
    ///
    /// # Errors
    /// [`VersionConflict`](ErrorKind::VersionConflict) when the tenant is not here at this epoch, or waits to be reconciled.
    ///
    /// # Cancel safety
    /// Whether it took effect is not known; calling it again does no harm.
    pub async fn unfence(&mut self, tenant: TenantId, epoch: Epoch) -> Result<(), Error> {
        self.commit("select biplane.unfence_v1($1, $2)::text", tenant, epoch)
            .await
            .map(drop)
    }

    /// Says that the tenant has left, so that whoever still comes is told to look where it lives. It must be fenced.
    ///
    /// # Errors
    /// [`VersionConflict`](ErrorKind::VersionConflict) when the tenant is not here, fenced, at this epoch.
    ///
    /// # Cancel safety
    /// Whether it took effect is not known; calling it again says so.
    pub async fn leave(&mut self, tenant: TenantId, epoch: Epoch) -> Result<(), Error> {
        self.commit("select biplane.leave_v1($1, $2)::text", tenant, epoch)
            .await
            .map(drop)
    }

    /// Commits "fenced". Waits no longer than until then for whoever has locked the residence.
    async fn close(
        &mut self,
        tenant: TenantId,
        epoch: Epoch,
        until: Instant,
        fenced: &mut Option<Option<String>>,
    ) -> Result<(), Error> {
        let change = sqlx::query("select biplane.fence_v1($1, $2)::text")
            .bind(*tenant.as_uuid())
            .bind(number(epoch));
        let patience = match cfg!(biplane_mutant = "locks_are_waited_for_for_ever") {
            true => None,
            false => Some(until.saturating_duration_since(Instant::now())),
        };
        match self.write(change, patience, fenced).await {
            Err(sqlx::Error::Database(refused)) if refused.code().as_deref() == Some("55P03") => {
                Err(self.locked().await?)
            }
            written => written.map_err(failed),
        }
    }

    /// When it was fenced last, as text, if it still is.
    async fn fenced_since(&mut self, tenant: TenantId, epoch: Epoch) -> Result<Option<String>, Error> {
        if cfg!(biplane_mutant = "fences_are_not_looked_at_again") {
            return Ok(Some(String::new()));
        }
        sqlx::query_scalar(
            "select changed_at::pg_catalog.text from biplane.residence
             where tenant_id = $1 and epoch = $2 and state = 'fenced'",
        )
        .bind(*tenant.as_uuid())
        .bind(number(epoch))
        .fetch_optional(&mut *self.connection)
        .await
        .map_err(failed)
    }

    /// Opens the tenant again, unless the fence is another mover's, who may have returned from it.
    async fn give_up(
        &mut self,
        tenant: TenantId,
        epoch: Epoch,
        fenced_at: Option<String>,
        error: Error,
    ) -> Error {
        if cfg!(biplane_mutant = "deadlines_leave_it_fenced")
            || cfg!(biplane_mutant = "only_deadlines_open_it_again") && error.kind() != ErrorKind::Undrained
        {
            return error;
        }
        let stays = |why: &str| Error::new(error.kind()).detail(format!("{why}; {error}"));
        if fenced_at.is_none() && !cfg!(biplane_mutant = "deadlines_open_anothers_fence") {
            return stays("it was fenced before, and stays so");
        }
        let change = sqlx::query("select biplane.unfence_v1($1, $2, $3::timestamptz)::text")
            .bind(*tenant.as_uuid())
            .bind(number(epoch))
            .bind(fenced_at);
        let opening = async {
            let opened = self.write(change, Some(GIVE_BACK / 2), &mut None).await;
            opened.map_err(failed)
        };
        match answered(Instant::now() + GIVE_BACK, opening).await {
            Ok(()) => error,
            Err(cause) if cause.kind() == ErrorKind::VersionConflict => {
                stays("somebody else has fenced it meanwhile, and it stays so")
            }
            Err(cause) => {
                stays("it could not be opened again and may stay fenced: unfence it on another connection")
                    .caused_by(cause)
            }
        }
    }

    /// One change of a residence, in a transaction of its own.
    async fn commit(
        &mut self,
        sql: &'static str,
        tenant: TenantId,
        epoch: Epoch,
    ) -> Result<Option<String>, Error> {
        let change = sqlx::query(sql).bind(*tenant.as_uuid()).bind(number(epoch));
        self.commit_query(change).await
    }

    /// Returns what the change answers, as text.
    async fn commit_query(
        &mut self,
        change: Query<'_, Postgres, PgArguments>,
    ) -> Result<Option<String>, Error> {
        let mut answer = None;
        self.write(change, None, &mut answer).await.map_err(failed)?;
        Ok(answer.flatten())
    }

    /// Waits for locks as long as it is told, or else as long as the session does. Before it asks for the commit it gives
    /// what the change answered, as text.
    async fn write(
        &mut self,
        change: Query<'_, Postgres, PgArguments>,
        patience: Option<Duration>,
        answer: &mut Option<Option<String>>,
    ) -> sqlx::Result<()> {
        let mut begin = "begin isolation level read committed read write".to_owned();
        if let Some(patience) = patience {
            let milliseconds = patience.as_millis().clamp(1, 1 << 30);
            begin.push_str(&format!("; set local lock_timeout = {milliseconds}"));
        }
        let mut tx = self.connection.begin_with(AssertSqlSafe(begin)).await?;
        let row = change.fetch_one(&mut *tx).await?;
        let answered: Option<String> = row.try_get(0)?;
        // On this server's disk, whatever the session's default is. A commit that waits for a standby cannot be bounded:
        // the fence asks for those by itself, and of the other changes one that a standby lacks leaves a tenant closed.
        let flushed = match cfg!(biplane_mutant = "fences_are_not_flushed") {
            true => "set local synchronous_commit = off",
            false => "set local synchronous_commit = local",
        };
        sqlx::query(flushed).execute(&mut *tx).await?;
        *answer = Some(answered);
        tx.commit().await
    }
}

/// What comes by then. Nobody waits for ever for a server that says nothing, or behind a network that passes nothing on.
async fn answered<T>(by: Instant, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    if cfg!(biplane_mutant = "silence_is_waited_for") {
        return work.await;
    }
    timeout_at(by, work).await.unwrap_or_else(|_| {
        let silent = ErrorKind::DatabaseUnavailable { retry_after: None };
        Err(Error::new(silent).detail("the database did not answer in time"))
    })
}

impl fmt::Debug for Fence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence").finish_non_exhaustive()
    }
}

/// An epoch as Postgres has it.
fn number(epoch: Epoch) -> i64 {
    i64::try_from(epoch.value()).unwrap_or(i64::MAX)
}
