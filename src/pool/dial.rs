//! Opening a connection: from fields to a session that is ready to be lent.

use std::{
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use secrecy::ExposeSecret;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Row,
    postgres::{PgConnectOptions, PgConnection, PgRow, PgSslMode},
    raw_sql,
};
use tokio::time::{Instant, timeout_at};

use super::{
    PoolOptions, StatementLogging,
    attempt::Way,
    breaker::Guard,
    failure::{self, Blame},
    later, locked,
    logins::{Authorisation, Keeper},
    quote::literal,
};
use crate::{
    breaker::BreakerScope,
    error::{Error, ErrorKind},
    secret::Credential,
    settings::forbidden_environment,
    tenant::{Access, CaCertificate, DatabaseId, Endpoint, Pooler, Server, TlsMode},
};

/// All that it takes to open a connection.
pub(crate) struct Dial {
    pub(crate) server: Server,
    pub(crate) logins: Keeper,
    /// Schemas that unqualified names are looked up in; `pg_temp` is added at the end.
    pub(crate) search_path: Arc<str>,
    pub(crate) application_name: Arc<str>,
    /// What the database must say it is.
    pub(crate) database_id: Option<DatabaseId>,
    /// What sessions are for. [`Access::Read`] makes their transactions read-only unless they say otherwise.
    pub(crate) access: Access,
    /// Whether a standby is taken only where no other endpoint answers: a login that writes for tenants can do little there,
    /// and what it reads may be old. A control plane may be read on one as well.
    pub(crate) prefers_primary: bool,
    /// One at a time uses a connection beyond the cap to get here: nobody elsewhere waits for more than one attempt to
    /// reach a server that does not answer.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// The breakers to go by; `None` where none are wanted.
    pub(crate) guard: Option<Guard>,
    /// What its stack went on with, for what is still to be done for connections that were made with this one when its
    /// login is taken no more.
    pub(crate) successor: Successor,
}

/// How many statements sqlx keeps for a connection unless it is told otherwise.
const STATEMENTS: usize = 100;

/// What sqlx announces of itself besides a name, as calls that set it (`establish.rs` of sqlx-postgres 0.9): texts, dates and
/// times mean the same wherever a service runs.
const SQLX_ANNOUNCES: &str = "pg_catalog.set_config('client_encoding', 'UTF8', false), \
     pg_catalog.set_config('datestyle', 'ISO, MDY', false), pg_catalog.set_config('timezone', 'UTC', false)";

/// The dial that took another's place, as long as it is there.
#[derive(Default)]
pub(crate) struct Successor(Mutex<Weak<Dial>>);

impl Successor {
    pub(super) fn set(&self, dial: &Arc<Dial>) {
        *locked(&self.0) = Arc::downgrade(dial);
    }

    fn find(&self) -> Option<Arc<Dial>> {
        locked(&self.0).upgrade()
    }
}

/// A connection, and its backend if that stays the same for its life.
pub(super) struct Dialed {
    pub(super) connection: PgConnection,
    pub(super) backend: Option<Backend>,
    /// Where it leads, if a breaker stands there.
    pub(super) endpoint: Option<BreakerScope>,
    /// How long its login works, if that ends.
    pub(super) authorisation: Option<Authorisation>,
}

/// The server process behind a connection. A process id alone may be another's a moment later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Backend {
    pub(super) pid: i32,
    /// When it started, in microseconds since 1970 by the server's clock.
    pub(super) started: i64,
    /// Whether its server is a standby.
    pub(super) on_standby: bool,
}

/// Why there is no connection.
pub(super) struct NotDialed {
    pub(super) error: Error,
    /// Whether the server had a say in it, or was not even asked.
    pub(super) answered: bool,
    /// Whose fault it is.
    pub(super) blame: Blame,
    /// A connection whose backend may still be at work on what it was asked.
    pub(super) unfinished: Option<Dialed>,
}

impl From<Error> for NotDialed {
    fn from(error: Error) -> Self {
        Self {
            error,
            answered: true,
            blame: Blame::Nobody,
            unfinished: None,
        }
    }
}

/// What a connection is for, which the server shows in its application name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be lent.
    Work,
    /// Beyond the cap, to look after other connections for a moment.
    Reserved,
    /// Beyond the cap, to wait for notifications.
    Listening,
}

impl Dial {
    /// Connects to the first endpoint that answers, and makes the session ready, all within `connect_timeout`. Endpoints
    /// that are in the way of a breaker are passed over; standbys too, where primaries are preferred, unless it turns out
    /// that nothing else answers.
    pub(super) async fn connect(
        &self,
        purpose: Purpose,
        options: &PoolOptions,
        mut way: Way<'_>,
    ) -> Result<Dialed, NotDialed> {
        let deadline = later(Instant::now(), options.connect_timeout);
        let mut logins = self.first_login(deadline).await?;
        let nowhere = NotDialed::from(self.unavailable("no endpoint is left to try"));
        let mut failure = NotDialed {
            answered: false,
            ..nowhere
        };
        let mut standby = None;
        let mut left = u32::try_from(self.server.endpoints.len()).unwrap_or(u32::MAX);
        for (index, endpoint) in self.server.endpoints.iter().enumerate() {
            let Some(pass) = way.to(self, index) else {
                left -= 1;
                continue;
            };
            // An endpoint that does not answer must leave time for the next ones, and for the way back to a standby.
            let tries = left.saturating_add(u32::from(standby.is_some()));
            let share = deadline.saturating_duration_since(Instant::now()) / tries.max(1);
            left -= 1;
            let until = later(Instant::now(), share);
            failure = match logins.connect_to(endpoint, purpose, options, until).await {
                Ok(mut dialed) => {
                    if let Some(pass) = pass {
                        dialed.endpoint = Some(pass.scope().clone());
                        pass.succeed();
                    }
                    if left > 0 && self.would_rather_not(&dialed) {
                        // Before the next one is tried, which has no permit of its own.
                        hang_up(dialed.connection, options.reset_timeout).await;
                        standby = Some((endpoint, dialed.endpoint));
                        continue;
                    }
                    return Ok(dialed);
                }
                Err(not) => not,
            };
            if let Some(pass) = pass {
                pass.judge_endpoint(failure.blame, &failure.error);
            }
            let elsewhere = matches!(failure.error.kind(), ErrorKind::DatabaseUnavailable { .. });
            if failure.unfinished.is_some() || !elsewhere {
                break;
            }
        }
        match standby {
            // Nothing answers but that.
            Some((standby, scope)) if matches!(failure.blame, Blame::Endpoint | Blame::Nobody) => {
                let dialed = logins.connect_to(standby, purpose, options, deadline).await;
                dialed.map(|dialed| Dialed {
                    endpoint: scope,
                    ..dialed
                })
            }
            _ => Err(failure),
        }
    }

    /// Whether somewhere else would be better.
    pub(super) fn would_rather_not(&self, dialed: &Dialed) -> bool {
        let on_standby = dialed.backend.is_some_and(|backend| backend.on_standby);
        self.prefers_primary && on_standby && !cfg!(biplane_mutant = "who_writes_takes_standbys")
    }

    pub(super) async fn connect_to(
        &self,
        endpoint: &Endpoint,
        credential: &Credential,
        purpose: Purpose,
        options: &PoolOptions,
        until: Instant,
    ) -> Result<Dialed, NotDialed> {
        let connecting = self.options(endpoint, credential, purpose, options);
        let connection = match timeout_at(until, connecting.connect()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                if let Some(rejected) = self.rejected_by_pooler(&error) {
                    return Err(NotDialed {
                        blame: Blame::Login,
                        ..rejected.into()
                    });
                }
                return Err(NotDialed {
                    answered: !matches!(error, sqlx::Error::Io(_)),
                    blame: Blame::of(&error),
                    ..self.placed(error).into()
                });
            }
            Err(_) => {
                let silent = self.unavailable("no answer within the time for connecting");
                return Err(NotDialed {
                    answered: false,
                    blame: Blame::Endpoint,
                    ..silent.into()
                });
            }
        };
        let mut dialed = Dialed {
            connection,
            backend: None,
            endpoint: None,
            authorisation: None,
        };
        match timeout_at(until, self.prepare(&mut dialed)).await {
            Ok(Ok(())) => Ok(dialed),
            Ok(Err(error)) => {
                hang_up(dialed.connection, options.reset_timeout).await;
                Err(NotDialed {
                    blame: Blame::of(&error),
                    ..self.placed(error).into()
                })
            }
            Err(_) => Err(NotDialed {
                error: self.unavailable("connected, but the session was not ready in time"),
                answered: true,
                // The server let us in; what keeps this database from answering need not concern the others there.
                blame: Blame::Source,
                unfinished: Some(dialed),
            }),
        }
    }

    /// What a pooler says of a login that it does not take, as a server would have said it.
    fn rejected_by_pooler(&self, error: &sqlx::Error) -> Option<Error> {
        if self.is_direct() || cfg!(biplane_mutant = "poolers_reject_nobody") {
            return None;
        }
        failure::poolers_rejection(error).map(|rejected| rejected.detail(self.whereabouts()))
    }

    /// What leads to the same server by now.
    pub(super) fn successor(&self) -> Option<Arc<Self>> {
        let mut last = self.successor.find()?;
        while let Some(next) = last.successor.find() {
            last = next;
        }
        (last.server == self.server).then_some(last)
    }

    /// Sets the search path of a transaction, where a session is not ours to set up.
    pub(super) fn path_of_transaction(&self) -> String {
        let path = literal(&with_pg_temp(&self.search_path));
        format!("pg_catalog.set_config('search_path', {path}, true)")
    }

    /// Sets what every session of ours has.
    pub(super) fn settings(&self) -> String {
        let path = literal(&with_pg_temp(&self.search_path));
        let mut sql = format!("pg_catalog.set_config('search_path', {path}, false)");
        if self.access == Access::Read {
            sql.push_str(", pg_catalog.set_config('default_transaction_read_only', 'on', false)");
        }
        sql
    }

    /// The same, in a session that was made as new.
    pub(super) fn settings_anew(&self) -> String {
        let mut sql = self.settings();
        if let Some(announced) = self.announced() {
            sql.push_str(", ");
            sql.push_str(&announced);
        }
        sql
    }

    /// Sets what a connection announced when it was opened, where that is lost with `reset all`: a server takes it for what
    /// a session is reset to, and a pooler hands it on by `set`.
    pub(super) fn announced(&self) -> Option<String> {
        if self.is_direct() || cfg!(biplane_mutant = "announcements_are_lost") {
            return None;
        }
        let name = literal(&self.application_name);
        Some(format!(
            "pg_catalog.set_config('application_name', {name}, false), {SQLX_ANNOUNCES}"
        ))
    }

    /// Whether a session is ours for as long as the connection lives.
    pub(crate) fn session_is_ours(&self) -> bool {
        !matches!(self.server.pooler, Pooler::Transaction { .. })
            || cfg!(biplane_mutant = "poolers_lend_sessions")
    }

    /// Whether the process at the other end of the connection is the backend itself.
    pub(super) const fn is_direct(&self) -> bool {
        matches!(self.server.pooler, Pooler::Direct)
    }

    /// Whether a statement may be prepared under a name, to be used again.
    pub(crate) const fn keeps_statements(&self) -> bool {
        !matches!(
            self.server.pooler,
            Pooler::Transaction {
                max_prepared_statements: 0
            }
        )
    }

    /// Host, port and database: what may be shown.
    pub(crate) fn whereabouts(&self) -> String {
        let endpoints: Vec<String> = self.server.endpoints.iter().map(ToString::to_string).collect();
        format!("{}/{}", endpoints.join(","), self.server.database.escape_debug())
    }

    pub(super) fn unavailable(&self, why: &str) -> Error {
        Error::new(ErrorKind::DatabaseUnavailable { retry_after: None })
            .detail(format!("{}: {why}", self.whereabouts()))
    }

    /// One of our own errors as it is, any other with the place where it happened.
    pub(super) fn placed(&self, error: sqlx::Error) -> Error {
        match Error::of(&error) {
            Some(ours) => ours.clone(),
            None => Error::from(error).detail(self.whereabouts()),
        }
    }

    pub(super) fn options(
        &self,
        endpoint: &Endpoint,
        credential: &Credential,
        purpose: Purpose,
        options: &PoolOptions,
    ) -> PgConnectOptions {
        let server = &self.server;
        let application_name = match purpose {
            Purpose::Work => self.application_name.to_string(),
            Purpose::Reserved => format!("{} (reserved)", self.application_name),
            Purpose::Listening => format!("{} (listening)", self.application_name),
        };
        // Without a password sqlx would take PGPASSWORD; an empty one keeps the environment out.
        let password = credential
            .password()
            .map_or("", |password| password.expose_secret());
        let mut open = PgConnectOptions::new_without_pgpass()
            .port(endpoint.port)
            .username(credential.username())
            .password(password)
            .database(&server.database)
            .application_name(&application_name);
        open = match endpoint.host.starts_with('/') {
            // As in libpq: a socket file of this machine is not encrypted.
            true => open
                .host("localhost")
                .socket(&*endpoint.host)
                .ssl_mode(PgSslMode::Disable),
            false => open.host(&endpoint.host).ssl_mode(ssl_mode(server.tls.mode)),
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
                // Where the pooler keeps none, those of one transaction.
                let capacity = match usize::try_from(max_prepared_statements) {
                    Ok(0) | Err(_) => STATEMENTS,
                    Ok(statements) => statements.min(STATEMENTS),
                };
                // A pooler refuses start-up parameters that it does not know.
                open = open.statement_cache_capacity(capacity).extra_float_digits(None);
            }
            Pooler::Session => open = open.extra_float_digits(None),
            Pooler::Direct => {}
        }
        match options.statement_logging {
            StatementLogging::Off => open.disable_statement_logging(),
            // The level for slow statements would stand in for the other one.
            StatementLogging::Debug => open
                .log_statements(log::LevelFilter::Debug)
                .log_slow_statements(log::LevelFilter::Off, Duration::MAX),
        }
    }

    async fn prepare(&self, dialed: &mut Dialed) -> sqlx::Result<()> {
        if self.session_is_ours() {
            dialed.backend = self.settle(&mut dialed.connection, &self.settings()).await?;
        }
        match self.database_id {
            Some(_) if cfg!(biplane_mutant = "any_database_will_do") => Ok(()),
            Some(expected) => self.check_identity(&mut dialed.connection, expected).await,
            None => Ok(()),
        }
    }

    /// Sets what every session starts with, and says which backend serves it.
    ///
    /// Also run after a session was reset, for which it is the proof: code that we did not see may have left answers
    /// unread, and then what comes here is not this row.
    pub(super) async fn settle(
        &self,
        connection: &mut PgConnection,
        settings: &str,
    ) -> sqlx::Result<Option<Backend>> {
        let sql = format!(
            "select pid, (extract(epoch from backend_start) * 1000000)::int8 as started, \
             pg_catalog.pg_is_in_recovery() as on_standby, {settings} \
             from pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())"
        );
        // One round trip, and nothing that another client's statements behind a pooler could be taken for.
        let row: PgRow = raw_sql(AssertSqlSafe(sql)).fetch_one(connection).await?;
        Ok(Some(Backend {
            pid: row.try_get("pid")?,
            started: row.try_get("started")?,
            on_standby: row.try_get("on_standby")?,
        }))
    }

    async fn check_identity(&self, connection: &mut PgConnection, expected: DatabaseId) -> sqlx::Result<()> {
        let wrong = |why: &'static str| {
            sqlx::Error::from(
                Error::new(ErrorKind::WrongDatabase).detail(format!("{}: {why}", self.whereabouts())),
            )
        };
        let found = raw_sql("select biplane.database_v1()")
            .fetch_one(connection)
            .await
            .and_then(|row: PgRow| row.try_get::<Option<uuid::Uuid>, _>(0));
        match found {
            Ok(Some(found)) if DatabaseId::from_uuid(found) == expected => Ok(()),
            Ok(Some(_)) => Err(wrong("it says that it is another one")),
            Ok(None) => Err(wrong("it was never stamped")),
            Err(sqlx::Error::Database(error)) => match error.code().as_deref() {
                Some("3F000" | "42883" | "42P01") => Err(wrong("it has no schema biplane")),
                Some("BP003") => Err(wrong("it is a copy, or was restored")),
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
    let encrypted = matches!(
        server.tls.mode,
        TlsMode::VerifyCa | TlsMode::VerifyFull | TlsMode::Require
    );
    if encrypted && !sqlx_core::net::tls::available() {
        return invalid(
            "the TLS mode needs a TLS stack; build with a tls- feature such as tls-rustls-ring-webpki",
        );
    }
    Ok(())
}

/// Refuses environment variables that sqlx reads into every connection and that nothing can override.
pub(crate) fn check_environment() -> Result<(), Error> {
    forbidden_environment(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
        .map_err(|error| Error::new(ErrorKind::InvalidConfiguration).detail(error.to_string()))
}

/// Ends a session in the way that lets its backend go at once.
pub(super) async fn hang_up(connection: PgConnection, limit: Duration) {
    // A failure means that the other side is gone already, which is what is wanted.
    let _ = tokio::time::timeout(limit, connection.close()).await;
}

/// `pg_temp` last, so that a temporary table never hides a real one.
fn with_pg_temp(search_path: &str) -> String {
    format!("{search_path}, pg_temp")
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
