//! Installing the schema `biplane_control`.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Postgres, raw_sql};

use super::{Grants, failure::failed};
use crate::{
    error::{Error, ErrorKind},
    plane::{ControlDb, IsolationLevel, TxOptions},
};

/// Every migration, in order; the position counts from 1.
const MIGRATIONS: [&str; 1] = [include_str!("sql/0001_core.sql")];
const BEGIN: &str = include_str!("sql/begin.sql");
const UNINSTALL: &str = include_str!("sql/uninstall.sql");

/// One at a time per database: "bp_inst" and a version.
const LOCK: i64 = i64::from_be_bytes(*b"bp_inst\x01");

/// Constraints keep the functions that they were created with, and a function that somebody has put into `public` may fit
/// better than Postgres' own: it would run as the owner of the schema.
const SEARCH_PATH: &str = "set local search_path = pg_catalog, pg_temp";

/// Each time, because a restore without privileges leaves the functions to everybody.
const PUBLIC: &str = "revoke all on schema biplane_control from public;
revoke all on all tables in schema biplane_control from public;
revoke all on all sequences in schema biplane_control from public;
revoke all on all functions in schema biplane_control from public;
";

/// Triggers must see what others have just committed, whatever the server's default is.
const LEVEL: &str = "begin isolation level read committed";

/// The schema of the control plane: data sources, tenants, names, sealed credentials, change log, audit, and which
/// processes live.
///
/// It lives in the user's own Postgres, 13 or newer, in a schema of its own beside whatever is there. Its tables may be
/// written by hand: triggers keep versions, names, audit and change log, and refuse what must never be. The header of
/// [`ControlSchema::install_sql`] says how.
///
/// # Backups
/// `pg_dump` takes all of it, `psql` and `pg_restore` bring it back into a database that does not have it (data alone
/// would meet the triggers). Roles and their grants are the server's: run [`ControlSchema::install_sql`] afterwards, also
/// where the restore left out privileges. Then begin another life of the control plane, as the owner:
/// `update biplane_control.meta set incarnation = gen_random_uuid()`. Versions and positions in the change log may have
/// fallen, and by the new incarnation readers know to accept that once.
///
/// Where processes go on meanwhile, restore the dump and set the incarnation in one transaction (`begin` before the text
/// of `pg_dump`, the update and `commit` after it): whoever reads half a control plane is told, truly, that a tenant is
/// not there.
///
/// Which processes live is in a backup too, and means nothing there: rows of another day are forgotten with the first beat
/// after the restore.
///
/// # By hand
/// A key rotation seals credentials anew with `biplane_control.reseal_credentials(…)`, which keeps their versions; a plain
/// `update` of a sealed value raises the version, as for another login. `select biplane_control.leave('…')` takes a process
/// that is known to be dead off the list of those that a key has to reach.
///
/// `select biplane_control.release_brake()` lets a bulk change past the brakes of all routers
/// ([`BrakeOptions`](crate::router::BrakeOptions)): everything that was committed before it or by its own transaction, so
/// it belongs at the end of the transaction of a change that is meant. `select biplane_control.freeze()` and `thaw()` keep
/// open tenants where they are and let them go. All three are audited, and say who and why as every change does.
///
/// # What waits
/// Commits of changes wait for each other, also for one that another session has forced early (`set constraints all
/// immediate`), and, because they notify, for those of other databases of the server that do. A change cannot be prepared
/// (`prepare transaction`): Postgres refuses that of whatever notifies. What bounds this wait is `lock_timeout` of the
/// writing role; `statement_timeout` is over when Postgres commits. Reading waits for none of them.
///
/// # Versions
/// A release works with the schema of its own version and of those one below and one above, so that services and schema
/// can be upgraded in either order.
#[derive(Debug)]
pub enum ControlSchema {}

impl ControlSchema {
    /// The version that this release installs.
    pub const VERSION: u32 = MIGRATIONS.len() as u32;

    /// SQL that installs the schema into an existing database, or brings it up to date, and grants; for a DBA to look at
    /// and to run. One transaction that can be run again, and by several at once.
    #[must_use]
    pub fn install_sql(grants: &Grants) -> String {
        format!("{LEVEL};\n{}commit;\n", body(grants))
    }

    /// SQL that removes the schema **with all tenants, credentials and the audit**. It drops what biplane made and nothing
    /// else, and fails when something else depends on it or was put into the schema.
    #[must_use]
    pub fn uninstall_sql() -> &'static str {
        UNINSTALL
    }

    /// Installs the schema or brings it up to date, as [`ControlSchema::install_sql`] does, through a handle whose role
    /// may do so.
    ///
    /// # Errors
    /// [`MissingPrivilege`](ErrorKind::MissingPrivilege), which names the privilege;
    /// [`SchemaMismatch`](ErrorKind::SchemaMismatch) when a newer release has installed it or something else has its
    /// names; [`InvalidInput`](ErrorKind::InvalidInput) when a role of the grants does not exist;
    /// [`ControlPlaneUnavailable`](ErrorKind::ControlPlaneUnavailable).
    ///
    /// # Cancel safety
    /// Safe: whole or not at all.
    pub async fn install(control: &ControlDb, grants: &Grants) -> Result<(), Error> {
        let options = TxOptions::new().isolation(IsolationLevel::ReadCommitted);
        let mut tx = control.begin_with(options).await.map_err(failed)?;
        run(&mut tx, grants).await?;
        tx.commit().await.map_err(failed)
    }

    /// The same on a connection of the caller's own, which logs in as a role that routers and admins are not.
    ///
    /// # Errors
    /// As [`ControlSchema::install`].
    ///
    /// # Cancel safety
    /// Safe: whole or not at all. The connection rolls back at its next use.
    pub async fn install_on(connection: &mut PgConnection, grants: &Grants) -> Result<(), Error> {
        let mut tx = connection.begin_with(LEVEL).await.map_err(failed)?;
        run(&mut *tx, grants).await?;
        tx.commit().await.map_err(failed)
    }

    /// The version of the installed schema, if this release works with it.
    ///
    /// # Errors
    /// [`SchemaMismatch`](ErrorKind::SchemaMismatch) when it does not, or when the schema is not installed;
    /// [`MissingPrivilege`](ErrorKind::MissingPrivilege) when the role may not look;
    /// [`ControlPlaneUnavailable`](ErrorKind::ControlPlaneUnavailable).
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn check(control: &ControlDb) -> Result<u32, Error> {
        let installed: Option<i32> = sqlx::query_scalar("select max(version) from biplane_control.migration")
            .fetch_one(control)
            .await
            .map_err(failed)?;
        let version = installed.and_then(|version| u32::try_from(version).ok());
        match version {
            Some(version) if version > 0 && version.abs_diff(Self::VERSION) <= 1 => Ok(version),
            Some(version) => Err(Error::new(ErrorKind::SchemaMismatch).detail(format!(
                "schema biplane_control is at version {version}, and this release works with {} to {}",
                Self::VERSION.saturating_sub(1).max(1),
                Self::VERSION + 1
            ))),
            None => Err(Error::new(ErrorKind::SchemaMismatch)
                .detail("the schema biplane_control is not installed in this database")),
        }
    }
}

async fn run<'c>(executor: impl Executor<'c, Database = Postgres>, grants: &Grants) -> Result<(), Error> {
    raw_sql(AssertSqlSafe(body(grants)))
        .execute(executor)
        .await
        .map_err(failed)
        .map(drop)
}

fn body(grants: &Grants) -> String {
    let newest = ControlSchema::VERSION + 1;
    let mut sql = format!("{SEARCH_PATH};\nselect pg_advisory_xact_lock({LOCK});\n{BEGIN}");
    sql.push_str(&format!(
        "do $biplane_install$\nbegin\n    \
         if exists (select from biplane_control.migration where version > {newest}) then\n        \
         raise exception using errcode = 'BC009',\n            \
         message = 'the schema biplane_control was installed by a release that is too new for this one';\n    \
         end if;\nend\n$biplane_install$;\n"
    ));
    for (migration, version) in MIGRATIONS.iter().zip(1..) {
        sql.push_str(&format!(
            "do $biplane_install$\nbegin\n    \
             if not exists (select from biplane_control.migration where version = {version}) then\n        \
             execute $biplane_migration$\n{migration}$biplane_migration$;\n        \
             insert into biplane_control.migration (version) values ({version});\n    \
             end if;\nend\n$biplane_install$;\n"
        ));
    }
    sql.push_str(PUBLIC);
    sql.push_str(&grants.sql());
    sql
}
