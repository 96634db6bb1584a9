//! The schema `biplane` in a data-plane database.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, raw_sql};

use super::{RoleName, sqlstate};
use crate::{
    error::{Error, ErrorKind},
    pool::literal,
    tenant::DatabaseId,
};

/// Every migration, in order; the position counts from 1.
const MIGRATIONS: [&str; 1] = [concat!(
    include_str!("sql/0001_database.sql"),
    include_str!("sql/0001_residence.sql"),
    include_str!("sql/0001_enter.sql"),
    include_str!("sql/0001_fence.sql"),
)];
const BEGIN: &str = include_str!("sql/begin.sql");
const UNINSTALL: &str = include_str!("sql/uninstall.sql");

/// Deliberately wrong variants of the schema: what stands there, and what a mutant has instead.
fn mutants() -> [(bool, &'static str, &'static str); 15] {
    [
        (
            cfg!(biplane_mutant = "everybody_is_waited_for"),
            "and biplane.may_enter_v1(activity.usename)",
            "",
        ),
        (
            cfg!(biplane_mutant = "neighbours_are_waited_for"),
            "(residence.alone or marked.ours is not false)",
            "true",
        ),
        (
            cfg!(biplane_mutant = "the_unmarked_are_not_waited_for"),
            "marked.ours is not false",
            "marked.ours is true",
        ),
        (
            cfg!(biplane_mutant = "copies_are_believed"),
            "biplane.stamped_here_v1() is not true",
            "false",
        ),
        (
            cfg!(biplane_mutant = "standbys_are_remembered"),
            "elsif not pg_catalog.pg_is_in_recovery() then",
            "else",
        ),
        (
            cfg!(biplane_mutant = "copies_are_open_when_stamped"),
            "set state = 'restored'",
            "set state = state",
        ),
        (
            cfg!(biplane_mutant = "any_epoch_enters"),
            "or home.epoch operator(pg_catalog.<>) epoch",
            "",
        ),
        (
            cfg!(biplane_mutant = "any_epoch_enters_again"),
            "and residence.epoch operator(pg_catalog.=) %3$s",
            "",
        ),
        (
            cfg!(biplane_mutant = "the_fenced_enter_again"),
            "and residence.state operator(pg_catalog.=) 'open'",
            "",
        ),
        (
            cfg!(biplane_mutant = "a_second_tenant_enters"),
            "entered operator(pg_catalog.<>) tenant_text",
            "false",
        ),
        (
            cfg!(biplane_mutant = "any_login_enters"),
            "elsif home.role is null then",
            "elsif false then",
        ),
        (
            cfg!(biplane_mutant = "groups_have_no_timeouts"),
            "home.role := biplane.team_v1(session_user)",
            "home.role := case when biplane.team_v1(session_user) is not null then '{}'::pg_catalog.jsonb end",
        ),
        (
            cfg!(biplane_mutant = "places_lock_late"),
            "    lock table biplane.residence in share row exclusive mode;\n    insert into",
            "    insert into",
        ),
        (
            cfg!(biplane_mutant = "fences_lock_the_row_first"),
            "    lock table biplane.residence in row exclusive mode;\n",
            "",
        ),
        (
            cfg!(biplane_mutant = "any_role_is_taken_on"),
            "    perform biplane.check_role_v1(role_name, schema_name);\n",
            "",
        ),
    ]
}

/// A function that somebody has put into `public`, which everybody could up to Postgres 14, may fit better than Postgres' own:
/// it would run with the rights of whoever installs.
const SEARCH_PATH: &str = "set local search_path = pg_catalog, pg_temp;\n";

/// One at a time per database: "bp_data" and a version.
const LOCK: i64 = i64::from_be_bytes(*b"bp_data\x01");

/// What biplane keeps in a data-plane database: which database it is, which tenants live in it since which epoch, and who
/// may enter as one.
///
/// A connection to a data source that has a `database_id` is refused when the database says another one, so that a
/// restored copy, a mistyped address or a recycled host never serves another tenant's rows. The schema is named
/// `biplane`, beside the control plane's `biplane_control`, so both fit into one database.
#[derive(Debug)]
pub enum DataSchema {}

/// The timeouts of a run-time role, which every transaction sets for itself as it enters, so that none inherits another's
/// behind a pooler. Those that are `None`, as by default, are left as the session has them: Postgres' own are none, and what
/// is right depends on the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoleTimeouts {
    /// How long a statement may run.
    pub statement: Option<Duration>,
    /// How long a statement may wait for a lock.
    pub lock: Option<Duration>,
    /// How long a transaction may wait for its next statement.
    pub idle_in_transaction: Option<Duration>,
}

impl RoleTimeouts {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            statement: None,
            lock: None,
            idle_in_transaction: None,
        }
    }

    /// Statements may run for so long. A part of a millisecond counts as a whole one, because 0 would mean for ever.
    #[must_use]
    pub const fn statement(mut self, limit: Duration) -> Self {
        self.statement = Some(limit);
        self
    }

    /// Statements may wait for a lock for so long.
    #[must_use]
    pub const fn lock(mut self, limit: Duration) -> Self {
        self.lock = Some(limit);
        self
    }

    /// Transactions may wait for their next statement for so long.
    #[must_use]
    pub const fn idle_in_transaction(mut self, limit: Duration) -> Self {
        self.idle_in_transaction = Some(limit);
        self
    }
}

impl DataSchema {
    /// SQL that installs the schema into an existing database, says which database it is, and lets these roles enter: the
    /// logins of routers, or groups that they belong to. For a DBA to look at and to run; one transaction that can be run
    /// again. [A page](crate::manual::fence) has the grants as a table.
    ///
    /// It fails without changing anything when the database already says that it is another one.
    #[must_use]
    pub fn install_sql(database: DatabaseId, readers: &[RoleName]) -> String {
        format!("begin;\n{}commit;\n", body(database, readers))
    }

    /// SQL that removes the schema. It drops what biplane made and nothing else, and fails when something else depends on
    /// it or was put into the schema.
    #[must_use]
    pub fn uninstall_sql() -> &'static str {
        UNINSTALL
    }

    /// Installs the schema, as [`DataSchema::install_sql`] does; `connection` logs in as a role that may create schemas,
    /// which run-time roles need not.
    ///
    /// # Errors
    /// [`MissingPrivilege`](ErrorKind::MissingPrivilege), which names the privilege;
    /// [`WrongDatabase`](ErrorKind::WrongDatabase) when the database already says that it is another one;
    /// [`SchemaMismatch`](ErrorKind::SchemaMismatch) when something else has the names.
    ///
    /// # Cancel safety
    /// Safe: whole or not at all. The connection rolls back at its next use.
    pub async fn install(
        connection: &mut PgConnection,
        database: DatabaseId,
        readers: &[RoleName],
    ) -> Result<(), Error> {
        let mut tx = connection.begin().await.map_err(failed)?;
        raw_sql(AssertSqlSafe(body(database, readers)))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    /// Makes the database say that it is this one, here and from now on, whatever it said before: for a copy that becomes a
    /// data source of its own, and for a restored one that is to take the place of the lost one.
    ///
    /// What a copied or restored database knows of tenants is what was so when it was saved. None can be entered before
    /// [`Fence::reconcile`](crate::plane::Fence::reconcile) has held it against the control plane. Who has entered before is
    /// not ended: where services were connected to it meanwhile, as another database, end their sessions.
    ///
    /// # Errors
    /// [`SchemaMismatch`](ErrorKind::SchemaMismatch) when the schema is not installed.
    ///
    /// # Cancel safety
    /// Safe: one statement.
    pub async fn stamp(connection: &mut PgConnection, database: DatabaseId) -> Result<(), Error> {
        sqlx::query("select biplane.stamp_v1($1)")
            .bind(database.as_uuid())
            .execute(connection)
            .await
            .map_err(failed)
            .map(drop)
    }

    /// Lets a login enter, or the members of a group, with these timeouts; told again, with those. Its grants come from
    /// [`DataSchema::install`].
    ///
    /// A login that was named itself, here or when the schema was installed, has its own timeouts, also if those are none.
    /// Any other has those of its groups, and the shortest of several.
    ///
    /// Transactions have them from the next one on. A session that has entered as a whole keeps those of before for single
    /// statements, until it is replaced.
    ///
    /// # Errors
    /// [`SchemaMismatch`](ErrorKind::SchemaMismatch) when the schema is not installed;
    /// [`WrongDatabase`](ErrorKind::WrongDatabase) in a copy that was not stamped.
    ///
    /// # Cancel safety
    /// Safe: one statement.
    pub async fn allow(
        connection: &mut PgConnection,
        role: &RoleName,
        timeouts: RoleTimeouts,
    ) -> Result<(), Error> {
        sqlx::query("select biplane.allow_v1($1::text::name, $2, $3, $4)")
            .bind(role.as_str())
            .bind(timeouts.statement.map(milliseconds))
            .bind(timeouts.lock.map(milliseconds))
            .bind(timeouts.idle_in_transaction.map(milliseconds))
            .execute(connection)
            .await
            .map_err(failed)
            .map(drop)
    }

    /// Which database this says it is; `None` when it does not say.
    ///
    /// # Errors
    /// [`SchemaMismatch`](ErrorKind::SchemaMismatch) when the schema is not installed,
    /// [`WrongDatabase`](ErrorKind::WrongDatabase) when it is a copy, or was restored, and was not stamped since;
    /// [`MissingPrivilege`](ErrorKind::MissingPrivilege) when the role may not ask.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn read(connection: &mut PgConnection) -> Result<Option<DatabaseId>, Error> {
        let said: Option<uuid::Uuid> = sqlx::query_scalar("select biplane.database_v1()")
            .fetch_one(connection)
            .await
            .map_err(failed)?;
        Ok(said.map(DatabaseId::from_uuid))
    }
}

/// Whole milliseconds, as Postgres has timeouts, and never 0, which means none.
fn milliseconds(limit: Duration) -> i32 {
    let whole = limit.as_nanos().div_ceil(1_000_000).max(1);
    i32::try_from(whole).unwrap_or(i32::MAX)
}

fn body(database: DatabaseId, readers: &[RoleName]) -> String {
    let search_path = match cfg!(biplane_mutant = "installers_look_everywhere") {
        true => "",
        false => SEARCH_PATH,
    };
    let mut sql = format!("{search_path}select pg_advisory_xact_lock({LOCK});\n{BEGIN}");
    for (migration, version) in MIGRATIONS.iter().zip(1..) {
        sql.push_str(&format!(
            "do $biplane_install$\nbegin\n    \
             if not exists (select from biplane.migration where version = {version}) then\n        \
             execute $biplane_migration$\n{migration}$biplane_migration$;\n        \
             insert into biplane.migration (version) values ({version});\n    \
             end if;\nend\n$biplane_install$;\n"
        ));
    }
    sql.push_str(&format!(
        "do $biplane_install$\nbegin\n    \
         if not exists (select from biplane.database) then\n        \
         perform biplane.stamp_v1('{database}');\n    \
         end if;\n    \
         if biplane.database_v1() <> '{database}' then\n        \
         raise exception using errcode = 'BP003', message = 'this database says that it is another one',\n            \
         hint = 'Stamp it if it is meant to be this one from now on.';\n    \
         end if;\nend\n$biplane_install$;\n"
    ));
    for (on, right, wrong) in mutants() {
        if on {
            sql = sql.replace(right, wrong);
        }
    }
    for reader in readers {
        let role = reader.quoted();
        sql.push_str(&format!(
            "revoke all on schema biplane from {role};\n\
             revoke all on all tables in schema biplane from {role};\n\
             grant usage on schema biplane to {role};\n\
             revoke all on all functions in schema biplane from {role};\n\
             grant select on biplane.database, biplane.residence to {role};\n\
             grant execute on function biplane.enter_v1(uuid, bigint, uuid), \
             biplane.enter_session_v1(uuid, bigint, uuid), \
             biplane.database_v1(), biplane.may_enter_v1(name), biplane.team_v1(name), \
             biplane.stamped_here_v1(), biplane.directory_v1(), biplane.timeline_v1() to {role};\n\
             select biplane.allow_v1({literal}) from biplane.database where not run_time_roles ? {literal};\n",
            literal = literal(reader.as_str()),
        ));
    }
    sql
}

pub(super) fn failed(error: sqlx::Error) -> Error {
    let sorted = error.as_database_error().and_then(|refused| {
        let code = refused.code().unwrap_or_default();
        sort(&code, refused.constraint(), refused.message())
    });
    sorted.unwrap_or_else(|| error.into())
}

fn sort(code: &str, constraint: Option<&str>, message: &str) -> Option<Error> {
    if let Some(common) = sqlstate::of_schema("biplane", code, constraint) {
        return Some(common);
    }
    Some(match code {
        "42501" => Error::new(ErrorKind::MissingPrivilege)
            .detail("what the schema biplane grants to run-time roles, or to change it, its ownership"),
        "40001" | "40P01" | "55P03" => Error::new(ErrorKind::TransactionConflict)
            .detail("somebody else writes to the residences of this database, and nothing was changed here"),
        "57014" => Error::new(ErrorKind::Database).detail(
            "a statement was cancelled, or took longer than this login's statement_timeout; raise that",
        ),
        "BP001" => Error::new(ErrorKind::VersionConflict)
            .detail("the tenant is not here in that state, at this epoch"),
        "BP003" => ErrorKind::WrongDatabase.into(),
        // Ours, with names of roles at most.
        "BP006" | "BP007" => Error::new(ErrorKind::InvalidInput).detail(message.to_owned()),
        "23505" => Error::new(ErrorKind::InvalidInput)
            .detail("another tenant here has this schema, row key or role, or has the database to itself"),
        "23514" => Error::new(ErrorKind::InvalidInput).detail(match constraint {
            Some("residence_schema") => "a tenant with a schema of its own needs the schema's name",
            Some("residence_schema_name") => "the schema's name is empty, or one that is not a tenant's",
            Some("residence_row_key") => "the row key is empty",
            Some("residence_role") => {
                "a tenant with a database of its own has no role of its own; connect as that role"
            }
            Some("residence_role_name") => "the role is one of Postgres' own, or not a role",
            Some("residence_epoch") => "the epoch is 0, or more than Postgres can hold",
            _ => "the schema biplane does not accept this value",
        }),
        _ => return None,
    })
}
