//! The schema `biplane` in a data-plane database.

use sqlx::{AssertSqlSafe, Connection, PgConnection, raw_sql};

use super::RoleName;
use crate::{
    error::{Error, ErrorKind},
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

/// One at a time per database: "bp_data" and a version.
const LOCK: i64 = i64::from_be_bytes(*b"bp_data\x01");

/// What biplane keeps in a data-plane database: which database it is.
///
/// A connection to a data source that has a `database_id` is refused when the database says another one, so that a
/// restored copy, a mistyped address or a recycled host never serves another tenant's rows. The schema is named
/// `biplane`, beside the control plane's `biplane_control`, so both fit into one database.
#[derive(Debug)]
pub enum DataSchema {}

impl DataSchema {
    /// SQL that installs the schema into an existing database, says which database it is, and lets these roles read
    /// that; for a DBA to look at and to run. One transaction that can be run again.
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

    /// Makes the database say that it is this one, whatever it said before: for a copy that becomes a data source of its
    /// own, and for a restored one that is to take the place of the lost one.
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

    /// Which database this says it is; `None` when it does not say.
    ///
    /// # Errors
    /// [`SchemaMismatch`](ErrorKind::SchemaMismatch) when the schema is not installed,
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

fn body(database: DatabaseId, readers: &[RoleName]) -> String {
    let mut sql = format!("select pg_advisory_xact_lock({LOCK});\n{BEGIN}");
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
    for reader in readers {
        let role = reader.quoted();
        sql.push_str(&format!(
            "revoke all on schema biplane from {role};\n\
             revoke all on all tables in schema biplane from {role};\n\
             grant usage on schema biplane to {role};\n\
             revoke all on all functions in schema biplane from {role};\n\
             grant select on biplane.database, biplane.residence to {role};\n\
             grant execute on function biplane.enter_v1(uuid, bigint, uuid), \
             biplane.enter_session_v1(uuid, bigint, uuid), biplane.database_v1(), biplane.may_enter_v1(name), \
             biplane.stamped_here_v1(), biplane.directory_v1(), biplane.timeline_v1() to {role};\n\
             select biplane.allow_v1({literal}) from biplane.database where not run_time_roles ? {literal};\n",
            literal = reader.literal(),
        ));
    }
    sql
}

fn failed(error: sqlx::Error) -> Error {
    let refused = error.as_database_error().map(|refused| {
        let code = refused.code().unwrap_or_default().into_owned();
        (code, refused.constraint().map(str::to_owned))
    });
    let Some((code, constraint)) = refused else {
        return error.into();
    };
    match code.as_str() {
        "42501" => Error::new(ErrorKind::MissingPrivilege).detail(match constraint.as_deref() {
            Some("create_on_database") => "CREATE on the database",
            Some("owner_of_schema") => "ownership of the schema biplane",
            _ => "what the schema biplane grants to run-time roles, or to install it, its ownership",
        }),
        "BP003" => ErrorKind::WrongDatabase.into(),
        "42704" => {
            Error::new(ErrorKind::InvalidInput).detail("a role that is to read the schema does not exist")
        }
        "42P01" | "42883" | "3F000" => Error::new(ErrorKind::SchemaMismatch)
            .detail("the schema biplane is not installed in this database"),
        "42P07" | "42723" | "42710" => Error::new(ErrorKind::SchemaMismatch)
            .detail("something else has a name that the schema biplane needs"),
        _ => error.into(),
    }
}
