//! Waiting for whoever could have entered before the fence.
//!
//! Entering only reads, and costs those who do nothing of one another. A transaction holds a virtual id from before its
//! first snapshot to its end. So whoever could have read "open" holds one when the commit of "fenced" has returned, and
//! whoever does not will read "fenced": as `CREATE INDEX CONCURRENTLY` does, the drain makes a list of those ids then, and
//! waits for each of them.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, sleep};

use super::Fence;
use crate::{
    error::{Error, ErrorKind},
    plane::data_schema::failed,
    tenant::TenantId,
};

/// How often those in the way are asked about: a fraction of a short transaction, and nothing to a server.
const PAUSE: Duration = Duration::from_millis(5);

/// How many are named in an error, which is to be read by somebody.
const NAMED: usize = 20;

/// How a drain goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainOptions {
    /// How long the whole may take, waiting for locks included, and so the tenant be closed in vain: 10 s by default,
    /// within the patience of most callers. Then it is open again. Where the server does not answer any more the call
    /// returns at most 7 s later, and says that it could not open the tenant.
    pub deadline: Duration,
    /// How long transactions may go on in sessions that are to be ended: 5 s by default, longer than a request takes and
    /// half of the deadline, so that their end is seen within it.
    pub grace: Duration,
}

impl Default for DrainOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            grace: Duration::from_secs(5),
        }
    }
}

impl DrainOptions {
    /// Gives up at this time.
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Ends sessions after this time.
    #[must_use]
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }
}

/// What may still be at work as a tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Running {
    /// A transaction.
    Transaction {
        /// Its virtual id, as in `pg_locks`.
        id: String,
        /// The process of the server that runs it.
        pid: i32,
    },
    /// A prepared transaction, which no process runs.
    Prepared {
        /// Its number and name, as in `pg_prepared_xacts`.
        id: String,
    },
    /// A session that may have entered once for all its statements.
    Session {
        /// When it began, which tells it from another with the same process id.
        began: String,
        /// The process of the server that serves it.
        pid: i32,
    },
}

impl Running {
    const fn pid(&self) -> Option<i32> {
        match self {
            Self::Transaction { pid, .. } | Self::Session { pid, .. } => Some(*pid),
            Self::Prepared { .. } => None,
        }
    }

    const fn is_prepared(&self) -> bool {
        matches!(self, Self::Prepared { .. })
    }
}

impl Fence<'_> {
    /// Who runs now and may have entered as this tenant: what a fence would have to wait for.
    ///
    /// # Errors
    /// [`SchemaMismatch`](ErrorKind::SchemaMismatch) when the schema is not installed.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn running(&mut self, tenant: TenantId) -> Result<BTreeSet<Running>, Error> {
        let running = if cfg!(biplane_mutant = "poolers_are_not_drained") {
            "select kind, id, pid from biplane.running_v1($1) where pid is null
                or pid in (select pid from pg_stat_activity where client_addr is not null)"
        } else if cfg!(biplane_mutant = "who_may_not_enter_now_never_did") {
            "select kind, id, pid from biplane.running_v1($1) where pid is null
                or pid in (select pid from pg_stat_activity where biplane.may_enter_v1(usename))"
        } else {
            "select kind, id, pid from biplane.running_v1($1)"
        };
        let rows: Vec<(String, String, Option<i32>)> = sqlx::query_as(running)
            .bind(*tenant.as_uuid())
            .fetch_all(&mut *self.connection)
            .await
            .map_err(failed)?;
        Ok(rows
            .into_iter()
            .filter_map(|(kind, id, pid)| match (kind.as_str(), pid) {
                ("transaction", Some(pid)) => Some(Running::Transaction { id, pid }),
                ("session", Some(pid)) => Some(Running::Session { began: id, pid }),
                ("prepared", _) => Some(Running::Prepared { id }),
                _ => None,
            })
            .collect())
    }

    /// Waits until none is left of those who ran when the fence was committed.
    pub(super) async fn drain(
        &mut self,
        tenant: TenantId,
        listed: Option<BTreeSet<Running>>,
        options: &DrainOptions,
        until: Instant,
    ) -> Result<(), Error> {
        if cfg!(biplane_mutant = "late_writers_pass") {
            return self.lock_out(tenant).await;
        }
        let grace = Instant::now() + options.grace;
        let mut left = match listed {
            Some(listed) => listed,
            None => self.running(tenant).await?,
        };
        let too_early = left.extract_if(.., Running::is_prepared).collect();
        if cfg!(biplane_mutant = "sessions_outlive_the_drain") {
            left.retain(|running| !matches!(running, Running::Session { .. }));
        }
        loop {
            self.end_sessions(&left, Instant::now() >= grace).await?;
            let now = self.running(tenant).await?;
            left.retain(|running| now.contains(running));
            if left.is_empty() {
                break;
            }
            pause(until, &left).await?;
        }
        // After the others: what was prepared meanwhile is there by now.
        let mut left: BTreeSet<Running> = match cfg!(biplane_mutant = "what_is_prepared_is_listed_too_early")
        {
            true => too_early,
            false => self.running(tenant).await?,
        };
        left.retain(Running::is_prepared);
        while !left.is_empty() && !cfg!(biplane_mutant = "prepared_transactions_are_overlooked") {
            pause(until, &left).await?;
            let now = self.running(tenant).await?;
            left.retain(|running| now.contains(running));
        }
        Ok(())
    }

    /// What a drain must not be: whoever has entered holds the marks of its tenant, but who has an old snapshot does not yet.
    async fn lock_out(&mut self, tenant: TenantId) -> Result<(), Error> {
        sqlx::query(
            "select pg_advisory_lock(1651534945, uuid_hash($1)), pg_advisory_unlock(1651534945, uuid_hash($1))",
        )
        .bind(*tenant.as_uuid())
        .execute(&mut *self.connection)
        .await
        .map_err(failed)
        .map(drop)
    }

    /// Ends those sessions that have nothing to finish, and with `all` the others too.
    async fn end_sessions(&mut self, left: &BTreeSet<Running>, all: bool) -> Result<(), Error> {
        let busy: BTreeSet<i32> = left
            .iter()
            .filter(|running| matches!(running, Running::Transaction { .. }))
            .filter_map(Running::pid)
            .collect();
        let sessions: Vec<i32> = left
            .iter()
            .filter(|running| matches!(running, Running::Session { .. }))
            .filter_map(Running::pid)
            .filter(|pid| all || !busy.contains(pid))
            .collect();
        if sessions.is_empty() {
            return Ok(());
        }
        let ended = sqlx::query(
            "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.unnest($1::pg_catalog.int4[]) as session (pid)",
        )
        .bind(sessions)
        .execute(&mut *self.connection)
        .await;
        match ended.map_err(failed) {
            Err(error) if error.kind() == ErrorKind::MissingPrivilege => Err(Error::new(error.kind())
                .detail(
                    "to end the sessions of a run-time role: only a superuser ends those of a superuser",
                )),
            ended => ended.map(drop),
        }
    }

    /// Who has locked what a fence has to write.
    pub(super) async fn locked(&mut self) -> Result<Error, Error> {
        let pids: Vec<i32> = sqlx::query_scalar(
            "select held.pid from pg_catalog.pg_locks as held
             where held.locktype = 'relation' and held.relation = 'biplane.residence'::pg_catalog.regclass
                 and held.database = (select mine.oid from pg_catalog.pg_database as mine
                     where mine.datname = pg_catalog.current_database())
                 and held.granted and held.mode <> 'AccessShareLock'
                 and held.pid <> pg_catalog.pg_backend_pid()",
        )
        .fetch_all(&mut *self.connection)
        .await
        .map_err(failed)?;
        Ok(Error::new(ErrorKind::Undrained).detail(format!(
            "nothing was fenced, because others have locked residences here: {}",
            shown(&pids.into_iter().collect())
        )))
    }

    /// Says which privilege is missing before anything is fenced in vain.
    pub(super) async fn privileges(&mut self) -> Result<(), Error> {
        let (reads, signals): (bool, bool) = sqlx::query_as(
            "select pg_catalog.pg_has_role('pg_read_all_stats', 'usage'),
                pg_catalog.pg_has_role('pg_signal_backend', 'usage')",
        )
        .fetch_one(&mut *self.connection)
        .await
        .map_err(failed)?;
        let missing = |what: &'static str| Err(Error::new(ErrorKind::MissingPrivilege).detail(what));
        match (reads, signals) {
            (false, _) => missing("membership in pg_read_all_stats, to see who is in the way"),
            (_, false) => missing("membership in pg_signal_backend, to end sessions"),
            _ => Ok(()),
        }
    }
}

async fn pause(until: Instant, left: &BTreeSet<Running>) -> Result<(), Error> {
    if Instant::now() >= until {
        return Err(Error::new(ErrorKind::Undrained).detail(names(left)));
    }
    sleep(PAUSE).await;
    Ok(())
}

fn names(left: &BTreeSet<Running>) -> String {
    let mut text = shown(&left.iter().filter_map(Running::pid).collect());
    let prepared = left.iter().filter(|running| running.is_prepared()).count();
    if prepared > 0 {
        let and = if text.is_empty() { "" } else { ", " };
        text.push_str(&format!("{and}{prepared} prepared transactions"));
    }
    text
}

fn shown(pids: &BTreeSet<i32>) -> String {
    let shown: Vec<String> = pids.iter().take(NAMED).map(i32::to_string).collect();
    match pids.len() {
        0 => String::new(),
        all if all > NAMED => format!("process ids {} and {} more", shown.join(", "), all - NAMED),
        _ => format!("process ids {}", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_as_many_as_can_be_read() {
        let session = |pid| Running::Session {
            began: "now".to_owned(),
            pid,
        };
        let prepared = Running::Prepared {
            id: "7 secret".to_owned(),
        };
        let few = BTreeSet::from([session(5), session(4), prepared]);
        assert_eq!(names(&few), "process ids 4, 5, 1 prepared transactions");
        let many = (1..=30).map(session).collect();
        assert!(names(&many).ends_with("19, 20 and 10 more"), "{}", names(&many));
    }
}
