//! Opening a connection: from fields to a session that is ready to be lent.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use secrecy::ExposeSecret;
use sqlx::{
    ConnectOptions, Connection, Row,
    postgres::{PgConnectOptions, PgConnection, PgSslMode},
};

use super::{PoolOptions, StatementLogging};
use crate::{
    error::{Error, ErrorKind},
    secret::Credential,
    settings::forbidden_environment,
    tenant::{CaCertificate, DatabaseId, Endpoint, Pooler, Server, TlsMode},
};

/// Gives the login for a connection, at the moment when it is made.
#[async_trait]
pub(crate) trait Logins: Send + Sync + 'static {
    async fn login(&self) -> Result<Credential, Error>;
}

/// All that it takes to open a connection.
pub(crate) struct Dial {
    pub(crate) server: Server,
    pub(crate) logins: Box<dyn Logins>,
    /// Schemas that unqualified names are looked up in; `pg_temp` is added at the end.
    pub(crate) search_path: Arc<str>,
    /// What every transaction begins with, where session settings do not last; from [`Dial::enter_for`].
    pub(crate) enter: Option<Arc<str>>,
    pub(crate) application_name: Arc<str>,
    /// What the database must say it is.
    pub(crate) database_id: Option<DatabaseId>,
}

/// A connection, and the process id of its backend if that stays the same for its life.
pub(super) struct Dialed {
    pub(super) connection: PgConnection,
    pub(super) backend: Option<i32>,
}

impl Dial {
    /// Connects to the first endpoint that answers, and makes the session ready.
    pub(super) async fn connect(&self, options: &PoolOptions) -> Result<Dialed, Error> {
        let credential = self.logins.login().await?;
        if credential
            .password()
            .is_some_and(|password| password.expose_secret().is_empty())
        {
            return Err(ErrorKind::MissingPassword.into());
        }
        let mut failure =
            Error::new(ErrorKind::InvalidConfiguration).detail("the data source has no endpoint");
        for endpoint in &self.server.endpoints {
            let open = self.options(endpoint, &credential, options);
            match limited(options.connect_timeout, open.connect()).await {
                Ok(connection) => {
                    drop(credential);
                    return limited(options.connect_timeout, self.prepare(connection)).await;
                }
                Err(error) => failure = error,
            }
            if !matches!(failure.kind(), ErrorKind::DatabaseUnavailable { .. }) {
                break;
            }
        }
        Err(failure.detail(self.whereabouts()))
    }

    /// The statement that sets the search path for one transaction, where a session is not ours to set up.
    pub(crate) fn enter_for(pooler: Pooler, search_path: &str) -> Option<Arc<str>> {
        match pooler {
            Pooler::Transaction { .. } => {
                let quoted = with_pg_temp(search_path).replace('\'', "''");
                Some(format!("select pg_catalog.set_config('search_path', '{quoted}', true)").into())
            }
            Pooler::Direct | Pooler::Session => None,
        }
    }

    /// Whether a session is ours for as long as the connection lives.
    pub(crate) fn session_is_ours(&self) -> bool {
        !matches!(self.server.pooler, Pooler::Transaction { .. })
    }

    /// Host, port and database: what may be shown.
    pub(crate) fn whereabouts(&self) -> String {
        let endpoints: Vec<String> = self.server.endpoints.iter().map(ToString::to_string).collect();
        format!("{}/{}", endpoints.join(","), self.server.database)
    }

    fn options(
        &self,
        endpoint: &Endpoint,
        credential: &Credential,
        options: &PoolOptions,
    ) -> PgConnectOptions {
        let server = &self.server;
        // Without a password sqlx would take PGPASSWORD; an empty one keeps the environment out.
        let password = credential
            .password()
            .map_or("", |password| password.expose_secret());
        let mut open = PgConnectOptions::new_without_pgpass()
            .port(endpoint.port)
            .username(credential.username())
            .password(password)
            .database(&server.database)
            .ssl_mode(ssl_mode(server.tls.mode))
            .application_name(&self.application_name);
        open = match endpoint.host.starts_with('/') {
            true => open.host("localhost").socket(&*endpoint.host),
            false => open.host(&endpoint.host),
        };
        open = match &server.tls.ca {
            Some(CaCertificate::Pem(pem)) => open.ssl_root_cert_from_pem(pem.as_bytes().to_vec()),
            Some(CaCertificate::File(path)) => open.ssl_root_cert(path),
            None => open,
        };
        match server.pooler {
            Pooler::Transaction {
                max_prepared_statements,
            } => {
                let capacity = usize::try_from(max_prepared_statements)
                    .unwrap_or(usize::MAX)
                    .min(100);
                // A pooler refuses start-up parameters that it does not know.
                open = open.statement_cache_capacity(capacity).extra_float_digits(None);
            }
            Pooler::Direct | Pooler::Session => {}
        }
        match options.statement_logging {
            StatementLogging::Off => open.disable_statement_logging(),
            StatementLogging::Debug => open
                .log_statements(log::LevelFilter::Debug)
                .log_slow_statements(log::LevelFilter::Off, Duration::ZERO),
        }
    }

    async fn prepare(&self, mut connection: PgConnection) -> sqlx::Result<Dialed> {
        let backend = if self.session_is_ours() {
            Some(self.settle(&mut connection).await?)
        } else {
            None
        };
        if let Some(expected) = self.database_id {
            self.check_identity(&mut connection, expected).await?;
        }
        Ok(Dialed { connection, backend })
    }

    /// Sets what every session starts with, and says which backend serves it. Also run after a session was reset.
    pub(super) async fn settle(&self, connection: &mut PgConnection) -> sqlx::Result<i32> {
        let row = sqlx::query(
            "select pg_catalog.pg_backend_pid(), pg_catalog.set_config('search_path', $1, false)",
        )
        .bind(with_pg_temp(&self.search_path))
        .persistent(false)
        .fetch_one(connection)
        .await?;
        row.try_get(0)
    }

    async fn check_identity(&self, connection: &mut PgConnection, expected: DatabaseId) -> sqlx::Result<()> {
        let wrong = |why: &'static str| {
            sqlx::Error::from(
                Error::new(ErrorKind::WrongDatabase).detail(format!("{}: {why}", self.whereabouts())),
            )
        };
        let found: Result<Option<uuid::Uuid>, _> = sqlx::query_scalar("select biplane.database_v1()")
            .persistent(false)
            .fetch_one(connection)
            .await;
        match found {
            Ok(Some(found)) if DatabaseId::from_uuid(found) == expected => Ok(()),
            Ok(Some(_)) => Err(wrong("it says that it is another one")),
            Ok(None) => Err(wrong("it was never stamped")),
            Err(sqlx::Error::Database(error)) => match error.code().as_deref() {
                Some("3F000" | "42883" | "42P01") => Err(wrong("it has no schema biplane")),
                Some("42501") => Err(sqlx::Error::from(
                    Error::new(ErrorKind::MissingPrivilege)
                        .detail("USAGE on schema biplane and EXECUTE on its functions"),
                )),
                _ => Err(sqlx::Error::Database(error)),
            },
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dial").field(&self.whereabouts()).finish()
    }
}

/// Refuses what could not work whenever it is used: a server without endpoints, or encryption that is not compiled in.
pub(crate) fn check_server(server: &Server) -> Result<(), Error> {
    let invalid = |why: &'static str| Err(Error::new(ErrorKind::InvalidConfiguration).detail(why));
    if server.endpoints.is_empty() {
        return invalid("the data source has no endpoint; give it a host and a port");
    }
    if !sqlx_core::net::tls::available() {
        if matches!(
            server.tls.mode,
            TlsMode::VerifyCa | TlsMode::VerifyFull | TlsMode::Require
        ) {
            return invalid(
                "the TLS mode needs a TLS stack; build with a tls- feature such as tls-rustls-ring-webpki",
            );
        }
    }
    Ok(())
}

/// Refuses environment variables that sqlx reads into every connection and that nothing can override.
pub(crate) fn check_environment() -> Result<(), Error> {
    forbidden_environment(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
        .map_err(|error| Error::new(ErrorKind::InvalidConfiguration).detail(error.to_string()))
}

/// `pg_temp` last, so that a temporary table never hides a real one.
fn with_pg_temp(search_path: &str) -> String {
    format!("{search_path}, pg_temp")
}

async fn limited<T>(limit: Duration, work: impl Future<Output = sqlx::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(Error::from),
        Err(_) => Err(Error::new(ErrorKind::DatabaseUnavailable { retry_after: None })
            .detail("no answer within the time for connecting")),
    }
}

const fn ssl_mode(mode: TlsMode) -> PgSslMode {
    match mode {
        TlsMode::Disable => PgSslMode::Disable,
        TlsMode::Prefer => PgSslMode::Prefer,
        TlsMode::Require => PgSslMode::Require,
        TlsMode::VerifyCa => PgSslMode::VerifyCa,
        TlsMode::VerifyFull => PgSslMode::VerifyFull,
    }
}

/// Ends a session in the way that lets its backend go at once.
pub(super) async fn hang_up(connection: PgConnection, limit: Duration) {
    // A failure means that the other side is gone already, which is what is wanted.
    let _ = tokio::time::timeout(limit, connection.close()).await;
}
