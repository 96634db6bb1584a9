//! The mover's side of the fence: after it, nothing commits as this tenant at this epoch.

mod drain;
mod durable;
mod reconcile;
mod residence;
mod succession;

use std::{fmt, time::Duration};

use sqlx::{Connection, PgConnection, Postgres, Row, postgres::PgArguments, query::Query};
use tokio::time::Instant;

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
/// The connection is direct, not through a pooler and not in a transaction, and logs in as the owner of the schema `biplane`, or a member of it,
/// with `pg_read_all_stats` and `pg_signal_backend`.
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
    /// [`Undrained`](ErrorKind::Undrained) at the deadline, with the process ids in the way; the tenant is then open again,
    /// unless the error says otherwise: what another mover had fenced, before or meanwhile, stays fenced. [`VersionConflict`](ErrorKind::VersionConflict) when the tenant is not
    /// here at this epoch. [`InvalidConfiguration`](ErrorKind::InvalidConfiguration) for a server that loses what it has
    /// committed (`fsync` off). [`MissingPrivilege`](ErrorKind::MissingPrivilege), which names the privilege. When the
    /// connection is lost the tenant may be fenced: call again.
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
        let standbys = self.durability().await?;
        self.privileges().await?;
        let too_early = match cfg!(biplane_mutant = "the_list_is_made_first") {
            true => Some(self.running(tenant).await?),
            false => None,
        };
        let fenced_at = self
            .commit("select biplane.fence_v1($1, $2)::text", tenant, epoch)
            .await?;
        let drained = match self.until_replicated(standbys, until).await {
            Ok(()) => self.drain(tenant, too_early, options, until).await,
            Err(lagging) => Err(lagging),
        };
        match drained {
            Ok(()) => Ok(began.elapsed()),
            Err(error) if error.kind() == ErrorKind::Undrained => {
                Err(self.give_up(tenant, epoch, fenced_at, error).await)
            }
            Err(error) => Err(error),
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

    /// Opens the tenant again, unless the fence is another mover's, who may have returned from it.
    async fn give_up(
        &mut self,
        tenant: TenantId,
        epoch: Epoch,
        fenced_at: Option<String>,
        error: Error,
    ) -> Error {
        if cfg!(biplane_mutant = "deadlines_leave_it_fenced") {
            return error;
        }
        let stays = |why: &str| Error::new(ErrorKind::Undrained).detail(format!("{why}; {error}"));
        if fenced_at.is_none() && !cfg!(biplane_mutant = "deadlines_open_anothers_fence") {
            return stays("it was fenced before, and stays so");
        }
        let change = sqlx::query("select biplane.unfence_v1($1, $2, $3::timestamptz)::text")
            .bind(*tenant.as_uuid())
            .bind(number(epoch))
            .bind(fenced_at);
        match self.commit_query(change).await {
            Ok(_) => error,
            Err(cause) if cause.kind() == ErrorKind::VersionConflict => {
                stays("somebody else has fenced it meanwhile, and it stays so")
            }
            Err(cause) => stays("it could not be opened again, and stays fenced").caused_by(cause),
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
        let mut tx = self
            .connection
            .begin_with("begin isolation level read committed read write")
            .await
            .map_err(failed)?;
        let answer = change.fetch_one(&mut *tx).await.map_err(failed)?;
        let answer: Option<String> = answer.try_get(0).map_err(failed)?;
        // On this server's disk, whatever the session's default is. A commit that waits for a standby cannot be bounded:
        // the fence asks for those by itself, and of the other changes one that a standby lacks leaves a tenant closed.
        let flushed = match cfg!(biplane_mutant = "fences_are_not_flushed") {
            true => "set local synchronous_commit = off",
            false => "set local synchronous_commit = local",
        };
        sqlx::query(flushed).execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(answer)
    }
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
