//! A throwaway Postgres server.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    secret::Credential,
    tenant::{Endpoint, Server, Tls, TlsMode},
    testing::port::Port,
};

use super::{
    Certificates, ClusterError,
    account::Account,
    blocking,
    home::{Base, Home, Storage, write_private},
    locate, processes,
    supervisor::{Program, Signal, Supervisor},
    template::{self, Primary},
};

/// A start includes recovery after a kill, on a machine that may be running many other tests.
const START: Duration = Duration::from_secs(60);
/// A fast stop writes out a checkpoint.
const STOP: Duration = Duration::from_secs(60);
/// A promotion ends recovery, which writes little.
const PROMOTE: Duration = Duration::from_secs(60);
/// What is killed is gone at once, and what is to halt halts; this covers a machine under load.
const HALT: Duration = Duration::from_secs(10);
/// Two processes would have to pick the same of 17,000 ports at the same moment, this often.
const PORT_ATTEMPTS: u32 = 5;

/// A Postgres server of its own for a test: started here, gone with this handle.
///
/// It listens on 127.0.0.1 and on a Unix socket in its own directory. Its superuser is `postgres`, with a random
/// password; every login needs a password unless [`ClusterBuilder::authentication`] says otherwise. Text is UTF-8,
/// sorted as in the C locale.
///
/// Dropping the handle ends the server at once, removes its directory and returns when both are done, after some
/// 50 ms for which it blocks the thread.
#[derive(Debug)]
pub struct Cluster {
    inner: Arc<Inner>,
}

/// How a [`Cluster`] is to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct ClusterBuilder {
    bin: Option<PathBuf>,
    settings: Vec<(String, String)>,
    authentication: Authentication,
    encryption: Encryption,
    identity: Identity,
    storage: Storage,
    primary: Option<Primary>,
}

/// How a cluster's users prove who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Authentication {
    /// By password, in Postgres' present way. The default, because it is what production has.
    #[default]
    ScramSha256,
    /// By password, sent as it is. For what cannot do SCRAM.
    Password,
    /// Not at all.
    Trust,
}

#[derive(Clone, Debug)]
enum Encryption {
    Off,
    Offered(Certificates),
    Required(Certificates),
}

#[derive(Clone, Copy, Debug)]
enum Identity {
    Shared,
    Own,
}

impl Cluster {
    /// Starts a cluster with the usual settings.
    ///
    /// # Errors
    /// [`ClusterError::NotInstalled`] without a Postgres server on this machine; otherwise when it does not start.
    ///
    /// # Cancel safety
    /// If the future is dropped, the start goes on to its end and the cluster is then removed.
    pub async fn start() -> Result<Self, ClusterError> {
        Self::builder().start().await
    }

    /// A cluster with settings of its own.
    pub const fn builder() -> ClusterBuilder {
        ClusterBuilder {
            bin: None,
            settings: Vec::new(),
            authentication: Authentication::ScramSha256,
            encryption: Encryption::Off,
            identity: Identity::Shared,
            storage: Storage::Quick,
            primary: None,
        }
    }

    /// Where it listens for TCP. The same for the whole life of the handle, restarts included.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new("127.0.0.1", self.inner.port.number())
    }

    /// The directory of its Unix socket. The socket is named after the port of [`Cluster::endpoint`].
    #[must_use]
    pub fn socket_directory(&self) -> PathBuf {
        self.inner.home.path().join("s")
    }

    /// The directory of its data, log and socket.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.inner.home.path()
    }

    /// What it has written to its log.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn log(&self) -> Result<String, ClusterError> {
        fs::read(self.inner.home.path().join("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .map_err(ClusterError::io("read the server's log"))
    }

    /// The superuser, `postgres`.
    #[must_use]
    pub fn superuser(&self) -> Credential {
        self.inner.superuser.clone()
    }

    /// The certificates it was given.
    #[must_use]
    pub fn certificates(&self) -> Option<&Certificates> {
        self.inner.certificates.as_ref()
    }

    /// A database on it as a data source's location: verified TLS where it has certificates, none otherwise.
    #[must_use]
    pub fn server(&self, database: &str) -> Server {
        let mut server = Server::new(self.endpoint(), database);
        server.tls = match self.certificates() {
            Some(certificates) => Tls::new(TlsMode::VerifyFull).ca(certificates.ca()),
            None => Tls::new(TlsMode::Disable),
        };
        server
    }

    /// A URL for code that is configured by one.
    #[must_use]
    pub fn url(&self, database: &str, credential: &Credential) -> SecretString {
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let mut url = format!("postgres://{}", encode(credential.username()));
        if let Some(password) = credential.password() {
            // Writing to a string cannot fail.
            let _ = write!(url, ":{}", encode(password.expose_secret()));
        }
        let _ = write!(url, "@{}/{}?sslmode=", self.endpoint(), encode(database));
        match self.certificates() {
            Some(_) => {
                let ca = self.inner.home.path().join("ca.pem");
                let _ = write!(url, "verify-full&sslrootcert={}", encode(&ca.to_string_lossy()));
            }
            None => url.push_str("disable"),
        }
        SecretString::from(url)
    }

    /// Stops it in order: sessions are ended, everything is written out. A paused one is resumed for that. Does nothing
    /// if it does not run.
    ///
    /// # Errors
    /// When it has not stopped after a minute.
    ///
    /// # Cancel safety
    /// If the future is dropped, it stops all the same.
    pub async fn stop(&self) -> Result<(), ClusterError> {
        self.blocking(|inner| inner.stop()).await
    }

    /// Kills it as a power cut would: the server and every one of its sessions, with no chance to say good-bye to
    /// clients or to write anything out. Does nothing if it does not run.
    ///
    /// What was committed is there again after [`Cluster::start_again`], also without [`ClusterBuilder::durable`]:
    /// the machine itself has not lost power.
    ///
    /// # Errors
    /// When a process is still there after ten seconds.
    ///
    /// # Cancel safety
    /// If the future is dropped, it is killed all the same.
    pub async fn kill(&self) -> Result<(), ClusterError> {
        self.blocking(|inner| inner.kill()).await
    }

    /// Starts it again after [`Cluster::stop`] or [`Cluster::kill`]: at the same address, with the same data. Does
    /// nothing if it runs.
    ///
    /// # Errors
    /// When it does not start.
    ///
    /// # Cancel safety
    /// If the future is dropped, it starts all the same.
    pub async fn start_again(&self) -> Result<(), ClusterError> {
        self.blocking(|inner| inner.start()).await
    }

    /// Stops it and starts it again.
    ///
    /// # Errors
    /// When it does not stop or does not start.
    ///
    /// # Cancel safety
    /// If the future is dropped, it is restarted all the same.
    pub async fn restart(&self) -> Result<(), ClusterError> {
        self.blocking(|inner| inner.stop().and_then(|()| inner.start()))
            .await
    }

    /// Pauses it, the server and every one of its sessions: what a machine looks like whose disk hangs, or whose
    /// hypervisor has stopped it. Connections stay open, new ones are accepted by the system as long as its queue has
    /// room, and nobody answers. Does nothing if it does not run or is paused already.
    ///
    /// It goes on with [`Cluster::resume`], at the place where it stood. Dropping the handle ends a paused one like any
    /// other, and so does the end of the test process.
    ///
    /// # Errors
    /// When a process has not halted after ten seconds.
    ///
    /// # Cancel safety
    /// If the future is dropped, it is paused all the same.
    pub async fn pause(&self) -> Result<(), ClusterError> {
        self.blocking(|inner| inner.pause()).await
    }

    /// Lets it go on after [`Cluster::pause`]. Does nothing if it is not paused.
    ///
    /// # Errors
    /// When the process table cannot be read.
    ///
    /// # Cancel safety
    /// If the future is dropped, it goes on all the same.
    pub async fn resume(&self) -> Result<(), ClusterError> {
        self.blocking(|inner| inner.with_supervisor(resume)).await
    }

    /// Makes a standby the primary that it followed: it takes writes from here on, on a timeline of its own. Returns when
    /// it does. Whether the old primary still runs is not looked at.
    ///
    /// # Errors
    /// When it is no standby, does not run, or has not been promoted after a minute.
    ///
    /// # Cancel safety
    /// If the future is dropped, it may or may not be promoted.
    pub async fn promote(&self) -> Result<(), ClusterError> {
        if self.ask_to_take_over(PROMOTE).await? {
            return Ok(());
        }
        Err(ClusterError::TimedOut {
            what: "take over",
            limit: PROMOTE,
            log: self.inner.with_supervisor(|supervisor| supervisor.log()),
        })
    }

    async fn blocking(
        &self,
        work: impl FnOnce(&Inner) -> Result<(), ClusterError> + Send + 'static,
    ) -> Result<(), ClusterError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || work(&inner)).await
    }
}

impl ClusterBuilder {
    /// The directory of the Postgres programs, instead of searching for it. For tests on several versions.
    pub fn binaries(mut self, directory: impl Into<PathBuf>) -> Self {
        self.bin = Some(directory.into());
        self
    }

    /// How many sessions it allows. Postgres' own default is 100.
    pub fn max_connections(self, sessions: u32) -> Self {
        self.setting("max_connections", sessions.to_string())
    }

    /// A line of `postgresql.conf`. The last one of a name counts.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Writes through to the disk as production does, for measurements. Off by default: what a test needs is that
    /// the data survive the server, not the machine, and `fsync` is most of the cost of a commit.
    /// It then also keeps its files out of memory.
    pub fn durable(mut self) -> Self {
        self.storage = Storage::Disk;
        self.setting("fsync", "on")
    }

    /// How users prove who they are.
    pub const fn authentication(mut self, authentication: Authentication) -> Self {
        self.authentication = authentication;
        self
    }

    /// Offers TLS with these certificates; clients may do without.
    pub fn tls(mut self, certificates: Certificates) -> Self {
        self.encryption = Encryption::Offered(certificates);
        self
    }

    /// Refuses TCP connections without TLS. The Unix socket, which [`Cluster::connect`] uses, needs none.
    pub fn tls_only(mut self, certificates: Certificates) -> Self {
        self.encryption = Encryption::Required(certificates);
        self
    }

    /// Gives the cluster a system identifier of its own, at the price of an `initdb` (about a second). By default
    /// all clusters are copies of one, and `pg_control_system()` says the same in each.
    pub const fn own_system_identifier(mut self) -> Self {
        self.identity = Identity::Own;
        self
    }

    /// A hot standby of another cluster, which it copies when it starts and follows from then on. Users and their
    /// passwords are those of its primary, and so is everything else that is in there; its settings are its own.
    ///
    /// The primary knows it as `walreceiver`, or as its setting `cluster_name`: for `synchronous_standby_names`.
    pub fn standby_of(mut self, primary: &Cluster) -> Self {
        let password = primary.inner.superuser.password().cloned();
        self.primary = Some(Primary {
            sockets: primary.socket_directory(),
            port: primary.endpoint().port,
            password: password.unwrap_or_default(),
        });
        self
    }

    /// Starts it, and returns when it takes connections.
    ///
    /// # Errors
    /// [`ClusterError::Backup`] when it is to be a standby and cannot copy its primary;
    /// [`ClusterError::NotInstalled`] without a Postgres server on this machine; [`ClusterError::Start`] with the
    /// server's own words when it does not start, for example because of a setting.
    ///
    /// # Cancel safety
    /// If the future is dropped, the start goes on to its end and the cluster is then removed.
    pub async fn start(self) -> Result<Cluster, ClusterError> {
        blocking(move || Inner::create(self)).await.map(|inner| Cluster {
            inner: Arc::new(inner),
        })
    }
}

/// What a handle and the operations that outlive its futures share. The supervisor stands before the home, so that
/// the server is gone before its directory is.
#[derive(Debug)]
struct Inner {
    supervisor: Mutex<Supervisor>,
    home: Home,
    port: Port,
    superuser: Credential,
    certificates: Option<Certificates>,
}

impl Inner {
    fn create(builder: ClusterBuilder) -> Result<Self, ClusterError> {
        let server = match &builder.bin {
            Some(bin) => locate::Server::at(bin)?,
            None => locate::Search::from_environment().server()?,
        };
        let superuser = |password| Credential::new(template::SUPERUSER, password);
        let account = Account::detect()?;
        let base = Base::open(&account, builder.storage)?;
        let home = base.directory("c", &account)?;
        let data = home.path().join("data");
        let program = Program {
            file: server.program("postgres"),
            arguments: vec!["-D".into(), data.clone().into()],
            libraries: server.libraries(),
            // Immediate shutdown: the postmaster takes its children along and frees the shared memory.
            end: Signal::Quit,
        };
        // Before there are any files, so that none is left behind whatever happens.
        let mut supervisor = Supervisor::new(home.path(), &account, &program)?;
        let password = match (&builder.primary, builder.identity) {
            (Some(primary), _) => {
                template::follow(primary, home.path(), &account, &server)?;
                primary.password.clone()
            }
            (None, Identity::Shared) => template::copy(&base, home.path(), &account, &server)?,
            (None, Identity::Own) => template::initialise(home.path(), &account, &server)?,
        };
        let superuser = superuser(password)?;
        let sockets = home.path().join("s");
        fs::create_dir(&sockets)
            .and_then(|()| account.own(&sockets))
            .map_err(ClusterError::io("make the directory of the socket"))?;
        write_private(&data.join("pg_hba.conf"), &builder.access(), &account)?;
        let certificates = builder.encryption.certificates();
        if let Some(certificates) = certificates {
            write_private(&home.path().join("ca.pem"), certificates.ca_pem(), &account)?;
            write_private(&data.join("server.crt"), certificates.certificate_pem(), &account)?;
            let key = certificates.key_pem().expose_secret();
            write_private(&data.join("server.key"), key, &account)?;
        }

        let mut attempt = 1;
        let port = loop {
            let port = Port::reserve().ok_or(ClusterError::NoPort)?;
            let configuration = builder.configuration(port.number(), &sockets);
            write_private(&data.join("postgresql.conf"), &configuration, &account)?;
            match launch(&mut supervisor, &data) {
                Ok(()) => break port,
                // Somebody else took it between our look and the server's.
                Err(ClusterError::Start(log))
                    if attempt < PORT_ATTEMPTS
                        && log.as_str().contains("could not create any TCP/IP sockets") =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        };
        Ok(Self {
            supervisor: Mutex::new(supervisor),
            home,
            port,
            superuser,
            certificates: certificates.cloned(),
        })
    }

    fn start(&self) -> Result<(), ClusterError> {
        self.with_supervisor(|supervisor| match supervisor.running() {
            Some(_) => Ok(()),
            None => launch(supervisor, &self.home.path().join("data")),
        })
    }

    fn stop(&self) -> Result<(), ClusterError> {
        self.with_supervisor(|supervisor| {
            resume(supervisor)?;
            supervisor.signal(Signal::Int, &[])?;
            supervisor.wait_for_exit("stop", STOP)
        })
    }

    fn kill(&self) -> Result<(), ClusterError> {
        self.with_supervisor(|supervisor| {
            let Some(server) = supervisor.running() else {
                return Ok(());
            };
            let sessions = halt(supervisor, server)?;
            supervisor.signal(Signal::Kill, &sessions)?;
            supervisor.wait_for_exit("die", HALT)?;
            supervisor.wait("die with all its sessions", HALT, || {
                sessions
                    .iter()
                    .all(|session| processes::find(*session).is_none_or(|process| process.state == 'Z'))
                    .then_some(Ok(()))
            })
        })
    }

    fn pause(&self) -> Result<(), ClusterError> {
        self.with_supervisor(|supervisor| {
            let Some(server) = supervisor.running() else {
                return Ok(());
            };
            let sessions = halt(supervisor, server)?;
            supervisor.signal(Signal::Stop, &sessions)?;
            supervisor.wait("halt with all its sessions", HALT, || {
                sessions.iter().all(|session| rests(*session)).then_some(Ok(()))
            })
        })
    }

    fn with_supervisor<T>(&self, work: impl FnOnce(&mut Supervisor) -> T) -> T {
        // A panic in another test's thread has not harmed the supervisor.
        work(&mut self.supervisor.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClusterBuilder {
    fn configuration(&self, port: u16, sockets: &Path) -> String {
        let mut lines = String::new();
        let mut set = |name: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(
                lines,
                "{name} = '{}'",
                value.replace('\\', "\\\\").replace('\'', "''")
            );
        };
        set("listen_addresses", "127.0.0.1");
        set("port", &port.to_string());
        set("unix_socket_directories", &sockets.to_string_lossy());
        set("timezone", "UTC");
        set("log_timezone", "UTC");
        // Only the machine's own end could lose what was not flushed. `synchronous_commit` stays on, because without
        // it a killed server loses commits, and so does `full_page_writes`, because a kill can tear a page.
        set("fsync", "off");
        // In the data directory, which goes with the cluster. A killed server would leave segments in /dev/shm.
        set("dynamic_shared_memory_type", "mmap");
        // Postgres' own defaults, which initdb would have scaled down with the small segments of the template.
        set("max_wal_size", "1GB");
        set("min_wal_size", "80MB");
        if self.encryption.certificates().is_some() {
            set("ssl", "on");
        }
        for (name, value) in &self.settings {
            set(name, value);
        }
        lines
    }

    fn access(&self) -> String {
        let method = match self.authentication {
            Authentication::ScramSha256 => "scram-sha-256",
            Authentication::Password => "password",
            Authentication::Trust => "trust",
        };
        let host = match self.encryption {
            Encryption::Off | Encryption::Offered(_) => "host",
            Encryption::Required(_) => "hostssl",
        };
        let mut lines = String::new();
        for database in ["all", "replication"] {
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "local {database} all {method}");
            let _ = writeln!(lines, "{host} {database} all 127.0.0.1/32 {method}");
        }
        lines
    }
}

impl Encryption {
    const fn certificates(&self) -> Option<&Certificates> {
        match self {
            Self::Off => None,
            Self::Offered(certificates) | Self::Required(certificates) => Some(certificates),
        }
    }
}

/// Starts the server and waits until it takes connections.
fn launch(supervisor: &mut Supervisor, data: &Path) -> Result<(), ClusterError> {
    let id = supervisor.start()?;
    supervisor.wait("start", START, || {
        if supervisor.running().is_none() {
            Some(Err(ClusterError::Start(supervisor.log())))
        } else {
            says_ready(data, id).then_some(Ok(()))
        }
    })
}

/// Stops the server's own process, so that it neither starts another session nor collects a dead one, whose process id
/// could then be somebody else's. Returns its sessions, which still run.
fn halt(supervisor: &mut Supervisor, server: u32) -> Result<Vec<u32>, ClusterError> {
    supervisor.signal(Signal::Stop, &[])?;
    supervisor.wait("halt", HALT, || rests(server).then_some(Ok(())))?;
    sessions_of(server)
}

fn resume(supervisor: &mut Supervisor) -> Result<(), ClusterError> {
    match supervisor.running() {
        Some(server) if rests(server) => supervisor.signal(Signal::Cont, &sessions_of(server)?),
        _ => Ok(()),
    }
}

fn sessions_of(server: u32) -> Result<Vec<u32>, ClusterError> {
    processes::below(server).map_err(ClusterError::io("read the process table"))
}

/// Whether a process is stopped, or does nothing any more for a better reason.
fn rests(process: u32) -> bool {
    processes::find(process).is_none_or(|process| process.state == 'T' || process.state == 'Z')
}

/// Whether the server says that it is ready: in the eighth line of the file that holds its process id in the first
/// (since Postgres 10). A file of another process id is what a killed predecessor left.
fn says_ready(data: &Path, id: u32) -> bool {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else {
        return false;
    };
    let mut lines = text.lines().map(str::trim);
    lines.next().and_then(|line| line.parse().ok()) == Some(id) && lines.nth(6) == Some("ready")
}
