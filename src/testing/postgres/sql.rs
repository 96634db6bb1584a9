//! Asking a throwaway server: logins, databases, roles.

use std::{env, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};

use crate::secret::Credential;

use super::{Cluster, ClusterError};

/// The database that every cluster has and that nobody's data belong in.
const MAINTENANCE: &str = "postgres";

/// What a role may do beyond logging in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RoleAttribute {
    /// Everything.
    Superuser,
    /// Create databases.
    CreateDatabase,
    /// Create roles.
    CreateRole,
    /// See rows in spite of row-level security.
    BypassRowSecurity,
    /// Replicate.
    Replication,
    /// Have so many sessions at once.
    ConnectionLimit(u32),
}

impl Cluster {
    /// Connects as the superuser, through the Unix socket.
    ///
    /// No `PG*` variable of the environment changes this connection.
    ///
    /// # Errors
    /// When the server refuses or does not run, and when the environment sets `PGOPTIONS`, which sqlx would send.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn connect(&self, database: &str) -> Result<PgConnection, ClusterError> {
        self.connect_as(&self.superuser(), database).await
    }

    /// Connects as somebody else. Otherwise as [`Cluster::connect`].
    ///
    /// # Errors
    /// As [`Cluster::connect`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection.
    pub async fn connect_as(&self, who: &Credential, database: &str) -> Result<PgConnection, ClusterError> {
        if env::var_os("PGOPTIONS").is_some_and(|options| !options.is_empty()) {
            return Err(ClusterError::Environment("PGOPTIONS"));
        }
        let password = who.password().map_or("", |password| password.expose_secret());
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.endpoint().port)
            .socket(self.socket_directory())
            .username(who.username())
            .password(password)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
            .application_name("biplane testing")
            // Statements may hold passwords.
            .disable_statement_logging()
            .connect()
            .await
            .map_err(refused("let a connection in"))
    }

    /// Runs statements in a database, as the superuser: one, or several separated by semicolons, which are then one
    /// transaction.
    ///
    /// # Errors
    /// When the server refuses one of them; none of them has then happened.
    ///
    /// # Cancel safety
    /// If the future is dropped, the statements may or may not have happened.
    pub async fn sql(&self, database: &str, sql: &str) -> Result<(), ClusterError> {
        self.run(database, sql.to_owned(), "run the statements").await
    }

    /// Whether the standby was promoted in this time.
    pub(super) async fn ask_to_take_over(&self, limit: Duration) -> Result<bool, ClusterError> {
        let seconds = i32::try_from(limit.as_secs()).unwrap_or(i32::MAX);
        let mut connection = self.connect(MAINTENANCE).await?;
        sqlx::query_scalar("select pg_catalog.pg_promote(true, $1)")
            .bind(seconds)
            .fetch_one(&mut connection)
            .await
            .map_err(refused("promote a standby"))
    }

    /// Creates a database. The name may hold any character.
    ///
    /// # Errors
    /// When there is one of that name.
    ///
    /// # Cancel safety
    /// If the future is dropped, the database may or may not have been created.
    pub async fn create_database(&self, name: &str) -> Result<(), ClusterError> {
        let sql = format!("create database {}", identifier(name));
        self.run(MAINTENANCE, sql, "create a database").await
    }

    /// Creates a role that may log in, and returns its credential. Name and password may hold any character.
    ///
    /// # Errors
    /// When there is one of that name, and when either holds a NUL character.
    ///
    /// # Cancel safety
    /// If the future is dropped, the role may or may not have been created.
    pub async fn create_role(
        &self,
        name: &str,
        password: &SecretString,
        attributes: &[RoleAttribute],
    ) -> Result<Credential, ClusterError> {
        let credential = Credential::new(name, password.clone())?;
        let attributes: String = attributes.iter().map(|attribute| attribute.sql()).collect();
        let sql = format!(
            "create role {} login password {}{attributes}",
            identifier(name),
            literal(password.expose_secret()),
        );
        self.run(MAINTENANCE, sql, "create a role").await?;
        Ok(credential)
    }

    async fn run(&self, database: &str, sql: String, doing: &'static str) -> Result<(), ClusterError> {
        let mut connection = self.connect(database).await?;
        // Reviewed: the caller's own statements for a throwaway server, or names and literals quoted here.
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .map_err(refused(doing))?;
        connection.close().await.map_err(refused(doing))
    }
}

impl RoleAttribute {
    fn sql(self) -> String {
        match self {
            Self::Superuser => " superuser".into(),
            Self::CreateDatabase => " createdb".into(),
            Self::CreateRole => " createrole".into(),
            Self::BypassRowSecurity => " bypassrls".into(),
            Self::Replication => " replication".into(),
            Self::ConnectionLimit(sessions) => format!(" connection limit {sessions}"),
        }
    }
}

fn refused(doing: &'static str) -> impl FnOnce(sqlx::Error) -> ClusterError {
    move |source| ClusterError::Sql { doing, source }
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `E''`, so that it means the same whatever `standard_conforming_strings` says.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
