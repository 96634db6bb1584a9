//! A fence that was committed is still there after the server was killed, and after a failover.

use std::time::Duration;

use sqlx::Row;
use tokio::time::{Instant, sleep};

use super::Fence;
use crate::{
    error::{Error, ErrorKind},
    plane::data_schema::failed,
};

/// How often standbys are asked about. They answer within a round trip, unless something is wrong.
const PAUSE: Duration = Duration::from_millis(10);

/// How many standbys the server waits for, and none if it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standbys(i64);

impl Fence<'_> {
    /// Refuses a server that forgets what it has committed.
    pub(super) async fn durability(&mut self) -> Result<Standbys, Error> {
        let (fsync, standby, names): (bool, bool, String) = sqlx::query_as(
            "select pg_catalog.current_setting('fsync')::boolean, pg_catalog.pg_is_in_recovery(),
                pg_catalog.current_setting('synchronous_standby_names')",
        )
        .fetch_one(&mut *self.connection)
        .await
        .map_err(failed)?;
        let invalid = |why: &'static str| Err(Error::new(ErrorKind::InvalidConfiguration).detail(why));
        // As text, which is one message, so that the two are the same moment unless a transaction has begun before.
        let alone: bool =
            sqlx::raw_sql("select pg_catalog.transaction_timestamp() = pg_catalog.statement_timestamp()")
                .fetch_one(&mut *self.connection)
                .await
                .and_then(|row| row.try_get(0))
                .map_err(failed)?;
        if !alone {
            return invalid(
                "the connection is in a transaction, in which nothing would be committed; end it first",
            );
        }
        if standby {
            return invalid("this server is a standby; connect to its primary");
        }
        if !fsync {
            return invalid(
                "the server runs with fsync off, and would lose a fence with its power; turn it on",
            );
        }
        Ok(demanded(&names))
    }

    /// Waits until the standbys that the server demands have flushed what was committed. The server does not do that: its
    /// own wait has no end, and when somebody cancels it, it says that it has committed.
    pub(super) async fn until_replicated(&mut self, standbys: Standbys, until: Instant) -> Result<(), Error> {
        if standbys == Standbys(0) || cfg!(biplane_mutant = "standbys_are_not_asked") {
            return Ok(());
        }
        let position: String = sqlx::query_scalar("select pg_catalog.pg_current_wal_insert_lsn()::text")
            .fetch_one(&mut *self.connection)
            .await
            .map_err(failed)?;
        loop {
            let there: i64 = sqlx::query_scalar(
                "select pg_catalog.count(*) from pg_catalog.pg_stat_replication
                 where sync_state in ('sync', 'quorum') and flush_lsn >= $1::pg_catalog.pg_lsn",
            )
            .bind(&position)
            .fetch_one(&mut *self.connection)
            .await
            .map_err(failed)?;
            if there >= standbys.0 {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Error::new(ErrorKind::Undrained)
                    .detail("the synchronous standbys did not confirm the fence in time"));
            }
            sleep(PAUSE).await;
        }
    }
}

/// Reads `synchronous_standby_names`: `FIRST n (…)`, `ANY n (…)`, `n (…)`, or a list, of which one is waited for.
fn demanded(names: &str) -> Standbys {
    let names = names.trim();
    if names.is_empty() {
        return Standbys(0);
    }
    let Some((before, _)) = names.split_once('(') else {
        return Standbys(1);
    };
    let number = before
        .split_whitespace()
        .last()
        .and_then(|word| word.parse().ok());
    Standbys(number.unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_standbys_is_read_from_each_form_of_the_setting() {
        for (names, number) in [
            ("", 0),
            ("  ", 0),
            ("*", 1),
            ("a, b", 1),
            ("FIRST 2 (a, b, c)", 2),
            ("any 3 (a, b, c)", 3),
            ("2(a,b)", 2),
            ("\"odd (name\"", 1),
        ] {
            assert_eq!(demanded(names), Standbys(number), "{names}");
        }
    }
}
