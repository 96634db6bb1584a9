//! The three servers, and what an administrator does on them.

use std::{fmt, sync::Mutex};

use biplane::{
    secret::Credential,
    settings::Dsn,
    tenant::{CaCertificate, Endpoint, Server, TlsMode},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
    raw_sql,
};

use crate::Result;

const VARIABLES: [&str; 3] = [
    "BIPLANE_EXAMPLE_CONTROL_URL",
    "BIPLANE_EXAMPLE_DATA_1_URL",
    "BIPLANE_EXAMPLE_DATA_2_URL",
];

/// One server for the control plane, two for the data plane.
pub(crate) struct Servers {
    pub(crate) control: AdminServer,
    pub(crate) data: [AdminServer; 2],
    prefix: String,
    whose: &'static str,
    /// Servers of this run's own end with it.
    #[cfg(unix)]
    _throwaway: Vec<biplane::testing::postgres::Cluster>,
}

impl Servers {
    /// The servers that the environment names, or throwaway ones when it names none.
    pub(crate) async fn find() -> Result<Self> {
        let given: Vec<String> = VARIABLES
            .iter()
            .filter_map(|name| std::env::var(name).ok())
            .collect();
        match given.len() {
            3 => Self::new("given by URL", &given),
            0 => Self::throwaway().await,
            _ => Err(format!("set all of {}, or none", VARIABLES.join(", ")).into()),
        }
    }

    /// A name on these servers that nobody else uses.
    pub(crate) fn name(&self, what: &str) -> String {
        format!("{}_{what}", self.prefix)
    }

    /// The server of the data plane that has this address.
    pub(crate) fn data_server(&self, server: &Server) -> Result<&AdminServer> {
        self.data
            .iter()
            .find(|data| data.dsn.server().endpoints == server.endpoints)
            .ok_or_else(|| "no server of the data plane has this address".into())
    }

    /// Drops what was created.
    pub(crate) async fn clean_up(&self) -> Result {
        for server in [&self.control, &self.data[0], &self.data[1]] {
            server.clean_up().await?;
        }
        Ok(())
    }

    fn new(whose: &'static str, urls: &[String]) -> Result<Self> {
        let server = |place: usize| -> Result<AdminServer> {
            let dsn = Dsn::parse(&urls[place])
                .map_err(|error| format!("{} holds no usable URL: {error}", VARIABLES[place]))?;
            Ok(AdminServer {
                dsn,
                created: Mutex::default(),
            })
        };
        let (control, data) = (server(0)?, [server(1)?, server(2)?]);
        let random = uuid::Uuid::new_v4().simple().to_string();
        Ok(Self {
            control,
            data,
            prefix: format!("two_planes_{}", &random[..6]),
            whose,
            #[cfg(unix)]
            _throwaway: Vec::new(),
        })
    }

    #[cfg(unix)]
    async fn throwaway() -> Result<Self> {
        use biplane::testing::postgres::Cluster;

        let (control, one, two) = tokio::try_join!(Cluster::start(), Cluster::start(), Cluster::start())?;
        let clusters = vec![control, one, two];
        let url = |cluster: &Cluster| {
            cluster
                .url("postgres", &cluster.superuser())
                .expose_secret()
                .to_owned()
        };
        let mut servers = Self::new("throwaway", &clusters.iter().map(url).collect::<Vec<_>>())?;
        servers._throwaway = clusters;
        Ok(servers)
    }

    #[cfg(not(unix))]
    async fn throwaway() -> Result<Self> {
        Err(format!("throwaway servers need Unix; set {}", VARIABLES.join(", ")).into())
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = |server: &AdminServer| server.dsn.server().endpoints[0].to_string();
        write!(
            f,
            "Servers ({}): control plane {}; data plane {} and {}",
            self.whose,
            address(&self.control),
            address(&self.data[0]),
            address(&self.data[1])
        )
    }
}

/// A server, and a login on it that may create databases and roles.
pub(crate) struct AdminServer {
    dsn: Dsn,
    created: Mutex<Vec<String>>,
}

impl AdminServer {
    /// Connects directly, past everything that biplane does.
    pub(crate) async fn connect(&self, database: &str) -> Result<PgConnection> {
        let (server, login) = (self.dsn.server(), self.dsn.credential());
        let endpoint = &server.endpoints[0];
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&endpoint.host)
            .port(endpoint.port)
            .username(login.username())
            .password(login.password().map_or("", |password| password.expose_secret()))
            .database(database)
            .disable_statement_logging()
            .ssl_mode(match server.tls.mode {
                TlsMode::Disable => PgSslMode::Disable,
                TlsMode::Require => PgSslMode::Require,
                TlsMode::VerifyCa => PgSslMode::VerifyCa,
                TlsMode::VerifyFull => PgSslMode::VerifyFull,
                _ => PgSslMode::Prefer,
            });
        if let Some(CaCertificate::File(path)) = &server.tls.ca {
            options = options.ssl_root_cert(path);
        }
        Ok(options.connect().await?)
    }

    /// A database of this server, as biplane names it.
    pub(crate) fn server(&self, database: &str) -> Server {
        let mut server = self.dsn.server().clone();
        server.database = database.into();
        server
    }

    pub(crate) async fn create_database(&self, name: &str) -> Result {
        self.administer(&format!("create database {name}")).await?;
        // Forced, because the pool of a service that was stopped half-way may still hold a connection.
        self.remember(format!("drop database {name} with (force)"));
        Ok(())
    }

    /// Creates a role that may log in.
    pub(crate) async fn create_role(&self, name: &str, password: &str) -> Result<Credential> {
        let quoted = password.replace('\'', "''");
        self.administer(&format!("create role {name} login password '{quoted}'"))
            .await?;
        self.remember(format!("drop role {name}"));
        Ok(Credential::new(name, SecretString::from(password))?)
    }

    /// Runs statements in a database.
    pub(crate) async fn sql(&self, database: &str, statements: &str) -> Result {
        let mut connection = self.connect(database).await?;
        connection
            .execute(raw_sql(AssertSqlSafe(statements.to_owned())))
            .await?;
        Ok(connection.close().await?)
    }

    /// The URL that an older system would have for a database here. Without a password, that is kept elsewhere.
    pub(crate) fn url(&self, user: &str, password: Option<&str>, database: &str, parameters: &str) -> String {
        let Endpoint { host, port, .. } = &self.dsn.server().endpoints[0];
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_string()
        };
        let password = password.map_or(String::new(), |password| format!(":{}", encode(password)));
        let tls = &self.dsn.server().tls;
        let ca = match &tls.ca {
            Some(CaCertificate::File(path)) => format!("&sslrootcert={}", encode(&path.to_string_lossy())),
            _ => String::new(),
        };
        format!(
            "postgresql://{user}{password}@{host}:{port}/{database}?sslmode={}{ca}{parameters}",
            tls.mode
        )
    }

    async fn administer(&self, statement: &str) -> Result {
        self.sql(&self.dsn.server().database, statement).await
    }

    fn remember(&self, undo: String) {
        self.created
            .lock()
            .expect("nothing panics while it holds this lock")
            .push(undo);
    }

    async fn clean_up(&self) -> Result {
        let created = std::mem::take(
            &mut *self
                .created
                .lock()
                .expect("nothing panics while it holds this lock"),
        );
        // Databases first: roles that are granted something in them cannot go before.
        let (databases, roles): (Vec<_>, Vec<_>) =
            created.iter().partition(|undo| undo.starts_with("drop database"));
        for undo in databases.into_iter().chain(roles) {
            self.administer(undo).await?;
        }
        Ok(())
    }
}

/// A password that nobody has guessed, with characters that break URLs which are put together carelessly.
pub(crate) fn new_password() -> String {
    format!("{}}}|<?@:/", uuid::Uuid::new_v4().simple())
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
