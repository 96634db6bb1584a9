//! One mover of a tenant at a time.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Fence;
use crate::{
    error::{Error, ErrorKind},
    plane::data_schema::failed,
    tenant::TenantId,
};

/// How often a session that was ended is looked for: it takes about a millisecond to go.
const PAUSE: Duration = Duration::from_millis(5);

/// What movers lock, with the tenant's hash: "bpmv". Not what marks transactions for a drain.
const LOCK: i32 = i32::from_be_bytes(*b"bpmv");

/// Whoever has the lock, and is not this session.
const MOVERS: &str = "
    select held.pid
    from pg_catalog.pg_locks as held
    join pg_catalog.pg_database as mine on mine.oid = held.database
    where mine.datname = pg_catalog.current_database()
        and held.locktype = 'advisory' and held.objsubid = 2 and held.granted
        and held.classid = $1::pg_catalog.int8::pg_catalog.oid
        and held.objid = (pg_catalog.uuid_hash($2)::pg_catalog.int8 & 4294967295)::pg_catalog.oid
        and held.pid <> pg_catalog.pg_backend_pid()";

/// Everything in it is Postgres' own, whatever somebody has put into a schema of the session's path.
fn end_movers() -> &'static str {
    match cfg!(biplane_mutant = "movers_look_everywhere") {
        true => "select pg_catalog.pg_terminate_backend(pid) from unnest($1::int[]) as mover (pid)",
        false => {
            "select pg_catalog.pg_terminate_backend(pid)
             from pg_catalog.unnest($1::pg_catalog.int4[]) as mover (pid)"
        }
    }
}

impl Fence<'_> {
    /// Makes this session the only one that moves a tenant here: ends those of whoever called this before, whether they are
    /// at work, stopped or dead, and is the tenant's mover until the connection closes.
    ///
    /// What a mover sent just before it was killed may still be under way, and one that was stopped goes on some day.
    /// Either could open what its successor has fenced. So a mover calls this first, in each database that it is going to
    /// touch, and only then looks at what its predecessor has done, here and in the control plane.
    ///
    /// # Errors
    /// [`Undrained`](ErrorKind::Undrained) when a session before this one has not ended within `patience`, with its process
    /// id; [`MissingPrivilege`](ErrorKind::MissingPrivilege) when it is not this role's to end.
    ///
    /// # Cancel safety
    /// The sessions before may have been ended, and this one may be the mover's or not: call it again.
    pub async fn take_over(&mut self, tenant: TenantId, patience: Duration) -> Result<(), Error> {
        if cfg!(biplane_mutant = "movers_are_not_succeeded") {
            return Ok(());
        }
        let until = Instant::now() + patience;
        loop {
            let alone: bool =
                sqlx::query_scalar("select pg_catalog.pg_try_advisory_lock($1, pg_catalog.uuid_hash($2))")
                    .bind(LOCK)
                    .bind(*tenant.as_uuid())
                    .fetch_one(&mut *self.connection)
                    .await
                    .map_err(failed)?;
            if alone {
                return Ok(());
            }
            let before: Vec<i32> = sqlx::query_scalar(MOVERS)
                .bind(i64::from(LOCK))
                .bind(*tenant.as_uuid())
                .fetch_all(&mut *self.connection)
                .await
                .map_err(failed)?;
            sqlx::query(end_movers())
                .bind(&before)
                .execute(&mut *self.connection)
                .await
                .map_err(failed)?;
            if Instant::now() >= until {
                let pids: Vec<String> = before.iter().map(i32::to_string).collect();
                return Err(Error::new(ErrorKind::Undrained).detail(format!(
                    "another mover of this tenant has not ended: process ids {}",
                    pids.join(", ")
                )));
            }
            sleep(PAUSE).await;
        }
    }
}
