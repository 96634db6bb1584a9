//! A throwaway PgBouncer.

use std::{
    fmt::{self, Write as _},
    fs, io,
    net::{Ipv4Addr, TcpStream},
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::Stdio,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use secrecy::ExposeSecret;

use crate::{
    secret::Credential,
    tenant::{Endpoint, Pooler},
    testing::port::Port,
};

use super::{
    Cluster, ClusterError, ServerLog,
    account::Account,
    blocking,
    home::{Base, Home, Storage, write_private},
    locate,
    supervisor::{Program, Signal, Supervisor},
};

/// It starts in a few milliseconds; this covers a machine under load.
const START: Duration = Duration::from_secs(30);
/// As for a cluster: two processes would have to pick the same port at the same moment, this often.
const PORT_ATTEMPTS: u32 = 5;

/// A PgBouncer in front of a [`Cluster`], for as long as this handle lives.
///
/// It listens on 127.0.0.1, takes any database of the cluster, and knows the cluster's users unless
/// [`PgBouncerBuilder::auth`] says otherwise.
#[derive(Debug)]
pub struct PgBouncer {
    inner: Arc<Inner>,
}

/// How a [`PgBouncer`] is to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct PgBouncerBuilder {
    server: Endpoint,
    superuser: Credential,
    mode: PoolMode,
    auth: BouncerAuth,
    newer: bool,
    prepared_statements: Option<NonZeroU32>,
    settings: Vec<(String, String)>,
}

/// For how long a client keeps its server session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolMode {
    /// For a transaction. The default here, because it is the one that code has to be written for.
    #[default]
    Transaction,
    /// Until it disconnects. PgBouncer's own default.
    Session,
}

/// How PgBouncer knows its users.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum BouncerAuth {
    /// It asks the cluster (`auth_query`), so that every role of the cluster may log in with its password.
    #[default]
    Query,
    /// These alone, with their passwords (`auth_file`).
    Known(Vec<Credential>),
    /// These alone, and it believes them without a password (`auth_type = trust`).
    Trust(Vec<Credential>),
}

/// A version of PgBouncer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgBouncerVersion {
    major: u32,
    minor: u32,
}

/// The text is not a version of PgBouncer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a version of PgBouncer is two numbers and a dot between them")]
pub struct UnknownVersion;

impl PgBouncer {
    /// A PgBouncer in front of this cluster. It reaches the cluster by its Unix socket, so the cluster may insist on
    /// TLS for everyone else.
    pub fn builder(cluster: &Cluster) -> PgBouncerBuilder {
        let sockets = cluster.socket_directory().to_string_lossy().into_owned();
        PgBouncerBuilder {
            server: Endpoint::new(sockets, cluster.endpoint().port),
            superuser: cluster.superuser(),
            mode: PoolMode::default(),
            auth: BouncerAuth::default(),
            newer: false,
            prepared_statements: None,
            settings: Vec::new(),
        }
    }

    /// Where it listens. The same for the whole life of the handle.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new("127.0.0.1", self.inner.port.number())
    }

    /// What to declare about it in a data source.
    #[must_use]
    pub fn pooler(&self) -> Pooler {
        self.inner.pooler
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> PgBouncerVersion {
        self.inner.version
    }

    /// What it has written to its log.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn log(&self) -> Result<String, ClusterError> {
        fs::read(self.inner.home.path().join("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .map_err(ClusterError::io("read PgBouncer's log"))
    }

    /// Kills it. Every connection through it is gone. Does nothing if it does not run.
    ///
    /// # Errors
    /// When it is still there after some time.
    ///
    /// # Cancel safety
    /// If the future is dropped, it is killed all the same.
    pub async fn kill(&self) -> Result<(), ClusterError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            inner.with_supervisor(|supervisor| {
                supervisor.signal(Signal::Kill, &[])?;
                supervisor.wait_for_exit("die", START)
            })
        })
        .await
    }

    /// Starts it again after [`PgBouncer::kill`], at the same address. Does nothing if it runs.
    ///
    /// # Errors
    /// When it does not start.
    ///
    /// # Cancel safety
    /// If the future is dropped, it starts all the same.
    pub async fn start_again(&self) -> Result<(), ClusterError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            inner.with_supervisor(|supervisor| match supervisor.running() {
                Some(_) => Ok(()),
                None => launch(supervisor, inner.port.number()),
            })
        })
        .await
    }

    /// Gives it these users in the place of those it knows, and lets it read them: what is done with a PgBouncer that
    /// has an `auth_file` when a login is added or replaced. Those who are connected stay.
    ///
    /// Meant for [`BouncerAuth::Known`] and [`BouncerAuth::Trust`]. One that asks the cluster needs its superuser in there.
    ///
    /// # Errors
    /// When the file cannot be written, or PgBouncer does not read it in time.
    ///
    /// # Cancel safety
    /// If the future is dropped, it reads them all the same.
    pub async fn know(&self, users: &[Credential]) -> Result<(), ClusterError> {
        let (inner, lines) = (Arc::clone(&self.inner), lines_of(users));
        blocking(move || inner.with_supervisor(|supervisor| inner.reload(supervisor, &lines))).await
    }
}

impl PgBouncerBuilder {
    /// For how long a client keeps its server session.
    pub const fn pool_mode(mut self, mode: PoolMode) -> Self {
        self.mode = mode;
        self
    }

    /// How it knows its users.
    pub fn auth(mut self, auth: BouncerAuth) -> Self {
        self.auth = auth;
        self
    }

    /// A version that knows prepared statements in transaction mode (1.21), also if this machine's own is older. Whether it
    /// keeps any is another matter.
    pub const fn newer(mut self) -> Self {
        self.newer = true;
        self
    }

    /// How many prepared statements it keeps per server session in transaction mode, for which it has to be a
    /// [newer](Self::newer) one. Off by default, whatever the version, because that is what code has to expect.
    pub const fn max_prepared_statements(mut self, statements: NonZeroU32) -> Self {
        self.prepared_statements = Some(statements);
        self.newer()
    }

    /// How many server sessions it opens per database and user. PgBouncer's own default is 20.
    pub fn pool_size(self, sessions: NonZeroU32) -> Self {
        self.setting("default_pool_size", sessions.to_string())
    }

    /// A line of the section `[pgbouncer]`. The last one of a name counts.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Starts it, and returns when it takes connections.
    ///
    /// # Errors
    /// [`ClusterError::NotInstalled`] without PgBouncer on this machine, or without one that is new enough for what was
    /// asked; [`ClusterError::Start`] with its own words when it does not start, for example because of a setting.
    ///
    /// # Cancel safety
    /// If the future is dropped, the start goes on to its end and it is then removed.
    pub async fn start(self) -> Result<PgBouncer, ClusterError> {
        blocking(move || Inner::create(&self))
            .await
            .map(|inner| PgBouncer {
                inner: Arc::new(inner),
            })
    }

    /// The first program that will do, and its version.
    fn choose(&self) -> Result<(locate::Bouncer, PgBouncerVersion), ClusterError> {
        let search = locate::Search::from_environment();
        let (bouncers, oldest) = match self.newer {
            true => (search.newer_bouncers(), PgBouncerVersion::PREPARED_STATEMENTS),
            false => (search.bouncers(), PgBouncerVersion { major: 0, minor: 0 }),
        };
        for bouncer in bouncers.found {
            let version = version(&bouncer)?;
            if version >= oldest {
                return Ok((bouncer, version));
            }
        }
        Err(ClusterError::NotInstalled(Box::new(bouncers.missing)))
    }

    fn configuration(&self, port: u16, version: PgBouncerVersion) -> String {
        let mut lines = String::new();
        let mut line = |name: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{name} = {value}");
        };
        line(
            "[databases]\n*",
            &format!("host={} port={}", self.server.host, self.server.port),
        );
        line("[pgbouncer]\nlisten_addr", "127.0.0.1");
        line("listen_port", &port.to_string());
        line("unix_socket_dir", "");
        line("auth_file", "users.txt");
        match self.auth {
            BouncerAuth::Query => {
                line("auth_type", "scram-sha-256");
                line("auth_user", self.superuser.username());
            }
            BouncerAuth::Known(_) => line("auth_type", "scram-sha-256"),
            BouncerAuth::Trust(_) => line("auth_type", "trust"),
        }
        line(
            "pool_mode",
            match self.mode {
                PoolMode::Transaction => "transaction",
                PoolMode::Session => "session",
            },
        );
        if version >= PgBouncerVersion::PREPARED_STATEMENTS {
            let statements = self.prepared_statements.map_or(0, NonZeroU32::get);
            line("max_prepared_statements", &statements.to_string());
        }
        // Sent by sqlx and by others on connecting; PgBouncer would refuse them over it.
        line("ignore_startup_parameters", "extra_float_digits");
        // A test that waits for a server to come back waits for PgBouncer to try again, which is every 15 s otherwise.
        line("server_login_retry", "1");
        for (name, value) in &self.settings {
            line(name, value);
        }
        lines
    }

    fn users(&self) -> String {
        let users = match &self.auth {
            BouncerAuth::Query => std::slice::from_ref(&self.superuser),
            BouncerAuth::Known(users) | BouncerAuth::Trust(users) => users,
        };
        lines_of(users)
    }

    fn pooler(&self) -> Pooler {
        match self.mode {
            PoolMode::Session => Pooler::Session,
            PoolMode::Transaction => Pooler::Transaction {
                max_prepared_statements: self.prepared_statements.map_or(0, NonZeroU32::get),
            },
        }
    }
}

impl PgBouncerVersion {
    /// The first one with prepared statements in transaction mode.
    pub const PREPARED_STATEMENTS: Self = Self { major: 1, minor: 21 };

    /// The first number.
    #[must_use]
    pub const fn major(self) -> u32 {
        self.major
    }

    /// The second number, which is the one that rises.
    #[must_use]
    pub const fn minor(self) -> u32 {
        self.minor
    }
}

impl FromStr for PgBouncerVersion {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        let mut numbers = text.split(|character: char| !character.is_ascii_digit());
        let mut number = || {
            numbers
                .next()
                .and_then(|digits| digits.parse().ok())
                .ok_or(UnknownVersion)
        };
        Ok(Self {
            major: number()?,
            minor: number()?,
        })
    }
}

impl fmt::Display for PgBouncerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The supervisor stands before the home, so that the server is gone before its directory is.
#[derive(Debug)]
struct Inner {
    supervisor: Mutex<Supervisor>,
    home: Home,
    account: Account,
    port: Port,
    pooler: Pooler,
    version: PgBouncerVersion,
}

impl Inner {
    fn create(builder: &PgBouncerBuilder) -> Result<Self, ClusterError> {
        let account = Account::detect()?;
        let base = Base::open(&account, Storage::Quick)?;
        let home = base.directory("b", &account)?;
        let (bouncer, version) = builder.choose()?;
        let program = Program {
            file: reachable(&bouncer, &account, home.path())?,
            arguments: vec!["pgbouncer.ini".into()],
            libraries: bouncer.libraries(),
            // It has no children and keeps nothing.
            end: Signal::Kill,
        };
        let mut supervisor = Supervisor::new(home.path(), &account, &program)?;
        write_private(&home.path().join("users.txt"), &builder.users(), &account)?;
        let mut attempt = 1;
        let port = loop {
            let port = Port::reserve().ok_or(ClusterError::NoPort)?;
            let configuration = builder.configuration(port.number(), version);
            write_private(&home.path().join("pgbouncer.ini"), &configuration, &account)?;
            match launch(&mut supervisor, port.number()) {
                Ok(()) => break port,
                // Somebody else took it between our look and PgBouncer's.
                Err(ClusterError::Start(log))
                    if attempt < PORT_ATTEMPTS && log.as_str().contains("Address already in use") =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        };
        Ok(Self {
            supervisor: Mutex::new(supervisor),
            home,
            account,
            port,
            pooler: builder.pooler(),
            version,
        })
    }

    fn reload(&self, supervisor: &mut Supervisor, users: &str) -> Result<(), ClusterError> {
        let (new, file) = (
            self.home.path().join("users.new"),
            self.home.path().join("users.txt"),
        );
        write_private(&new, users, &self.account)?;
        // It tells files apart by their inodes; two of one size, written within one second, are the same to it.
        fs::rename(&new, &file).map_err(ClusterError::io("replace PgBouncer's users"))?;
        let log = || fs::read(self.home.path().join("log")).unwrap_or_default();
        let read = log().len();
        supervisor.signal(Signal::Hup, &[])?;
        // It does nothing else between this line and the end of its reading.
        let word = b"re-reading config";
        supervisor.wait("read its users", START, || {
            let log = log();
            let new = log.get(read..).unwrap_or_default();
            new.windows(word.len())
                .any(|piece| piece == word)
                .then_some(Ok(()))
        })
    }

    fn with_supervisor<T>(&self, work: impl FnOnce(&mut Supervisor) -> T) -> T {
        // A panic in another test's thread has not harmed the supervisor.
        work(&mut self.supervisor.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts PgBouncer and waits until it takes connections.
fn launch(supervisor: &mut Supervisor, port: u16) -> Result<(), ClusterError> {
    supervisor.start()?;
    supervisor.wait("start", START, || {
        if supervisor.running().is_none() {
            Some(Err(ClusterError::Start(supervisor.log())))
        } else {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                .is_ok()
                .then_some(Ok(()))
        }
    })
}

/// The program where the server's user can run it: what root has built in its own home is copied.
fn reachable(bouncer: &locate::Bouncer, account: &Account, home: &Path) -> Result<PathBuf, ClusterError> {
    let mut command = locate::command(bouncer.program(), bouncer.libraries());
    let runs = account
        .apply(command.arg("--version").stdout(Stdio::null()), home)
        .status();
    match runs {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let copy = home.join("pgbouncer");
            // Not by this process: what it has open for writing, a process that another thread starts meanwhile may have
            // open, too, for a moment in which nobody can run it ("text file busy").
            let copied = locate::command(Path::new("cp"), None)
                .arg(bouncer.program())
                .arg(&copy)
                .status()
                .and_then(|status| match status.success() {
                    true => account.own(&copy),
                    false => Err(io::Error::other("cp failed")),
                });
            copied.map_err(ClusterError::io("copy pgbouncer for the server's user"))?;
            Ok(copy)
        }
        _ => Ok(bouncer.program().into()),
    }
}

fn version(bouncer: &locate::Bouncer) -> Result<PgBouncerVersion, ClusterError> {
    let output = locate::command(bouncer.program(), bouncer.libraries())
        .arg("--version")
        .output()
        .map_err(ClusterError::io("run pgbouncer"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    printed
        .strip_prefix("PgBouncer ")
        .and_then(|rest| rest.parse().ok())
        .ok_or_else(|| {
            let complaint = String::from_utf8_lossy(&output.stderr);
            ClusterError::Start(ServerLog::new(&format!("{printed}\n{complaint}")))
        })
}

/// An `auth_file`.
fn lines_of(users: &[Credential]) -> String {
    let mut lines = String::new();
    for user in users {
        let password = user.password().map_or("", |password| password.expose_secret());
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{} {}", quoted(user.username()), quoted(password));
    }
    lines
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        let version = |text: &str| text.parse::<PgBouncerVersion>();
        assert!(version("1.18.0").unwrap() < PgBouncerVersion::PREPARED_STATEMENTS);
        assert!(version("1.9.1").unwrap() < version("1.21.0").unwrap());
        assert!(version("1.21.0\nlibevent 2.1.12").unwrap() >= PgBouncerVersion::PREPARED_STATEMENTS);
        assert_eq!(version("unknown"), Err(UnknownVersion));
    }
}
