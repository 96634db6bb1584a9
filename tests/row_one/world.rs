//! Two planes on three servers, three tenants that move, and what tells processes where all that is.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use biplane::{
    keyring::{KeyMaterial, KeyState, Keyring},
    plane::{ControlDb, ControlOptions, DataSchema, Fence, Residence, RoleName, RoleTimeouts, RowPolicy},
    repository::{
        Actor, ControlSchema, CredentialSlot, Grants, NewSource, NewTenant, PgTenantAdmin, PgTenants,
        TenantAdmin, TenantRepository,
    },
    secret::Credential,
    settings::Dsn,
    tenant::{
        DatabaseId, Epoch, Isolation, Location, PoolSettings, Role, Slug, TenantId, TenantRecord, TenantRef,
        TenantStatus,
    },
    testing::postgres::{Authentication, BouncerAuth, Cluster, PgBouncer, PoolMode, RoleAttribute},
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
    raw_sql,
};
use tempfile::TempDir;

use crate::poolers::Profile;

/// Generous: these tests run beside many others on two cores.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// How long a transaction may rest on the server `west`. On the other one it may do so for ever.
const IDLE: Duration = Duration::from_millis(500);
const PASSWORD: &str = "a-password";

/// Whoever serves tenants, and whoever moves them.
pub(crate) const APP: &str = "app";
pub(crate) const REPORTS: &str = "reports";
pub(crate) const MOVER: &str = "mover";

/// What processes are told by. The first two are what any program on biplane reads.
const CONTROL_URL: &str = "BIPLANE_CONTROL_URL";
const KEYRING: &str = Keyring::VARIABLE;
const ADMIN_URL: &str = "BIPLANE_TEST_ROW_ONE_ADMIN_URL";
const LEDGER_URL: &str = "BIPLANE_TEST_ROW_ONE_LEDGER_URL";
const DIRECTORY: &str = "BIPLANE_TEST_ROW_ONE_DIRECTORY";
const PORTS: &str = "BIPLANE_TEST_ROW_ONE_PORTS";
pub(crate) const NAME: &str = "BIPLANE_TEST_ROW_ONE_NAME";
pub(crate) const SEED: &str = "BIPLANE_TEST_ROW_ONE_SEED";

const SERVERS: [&str; 2] = ["east", "west"];
const DATABASES: [&str; 2] = ["alone", "shared"];
/// Who moves, and where each begins. The first one alone may have a database to itself, of which there is one on each server.
pub(crate) const TENANTS: [(&str, Isolation); 3] = [
    ("dora", Isolation::Database),
    ("sam", Isolation::Schema),
    ("rita", Isolation::Row),
];

/// Where a tenant can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) server: usize,
    pub(crate) isolation: Isolation,
}

impl Place {
    pub(crate) const fn new(server: usize, isolation: Isolation) -> Self {
        Self { server, isolation }
    }

    pub(crate) fn parse(source: &str, isolation: &str) -> Self {
        let server = SERVERS.iter().position(|server| source.starts_with(server));
        Self::new(server.unwrap(), isolation.parse().unwrap())
    }

    /// All where this tenant can be.
    pub(crate) fn all(slug: &str) -> Vec<Self> {
        let mut all = Vec::new();
        for server in 0..SERVERS.len() {
            all.extend([Isolation::Schema, Isolation::Row].map(|isolation| Self::new(server, isolation)));
            if slug == TENANTS[0].0 {
                all.push(Self::new(server, Isolation::Database));
            }
        }
        all
    }

    pub(crate) fn database(self) -> &'static str {
        match self.isolation {
            Isolation::Database => DATABASES[0],
            _ => DATABASES[1],
        }
    }

    /// The name of the data source.
    pub(crate) fn source(self) -> String {
        source(self.server, self.database())
    }

    pub(crate) fn table(self, slug: &str) -> String {
        match self.isolation {
            Isolation::Schema => format!("t_{slug}.note"),
            _ => "public.note".to_owned(),
        }
    }

    pub(crate) fn residence(self, tenant: TenantId, slug: &str, epoch: Epoch) -> Residence {
        let residence = Residence::new(tenant, epoch, self.isolation);
        match self.isolation {
            Isolation::Schema => residence.schema(format!("t_{slug}")),
            _ => residence,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.source(), self.isolation)
    }
}

fn source(server: usize, database: &str) -> String {
    format!("{}-{database}", SERVERS[server])
}

/// The names of all data sources.
pub(crate) fn sources() -> impl Iterator<Item = String> {
    (0..SERVERS.len()).flat_map(|server| DATABASES.map(|database| source(server, database)))
}

/// Statements as text, several at once.
pub(crate) async fn run(connection: &mut PgConnection, sql: impl Into<String>) -> sqlx::Result<()> {
    raw_sql(AssertSqlSafe(sql.into()))
        .execute(connection)
        .await
        .map(drop)
}

/// A session of its own, where a data source leads services.
pub(crate) async fn connect(
    record: &biplane::tenant::DataSource,
    user: &str,
    name: &str,
) -> sqlx::Result<PgConnection> {
    let Location::Server(server) = &record.location else {
        panic!("it is on a server");
    };
    connect_to(server.endpoints[0].port, &server.database, user, name).await
}

/// A session of its own at the server of a data source, whatever services go through.
pub(crate) async fn connect_directly(source: &str, user: &str, name: &str) -> sqlx::Result<PgConnection> {
    let (server, database) = source.split_once('-').unwrap();
    let server = SERVERS.iter().position(|known| *known == server).unwrap();
    let ports = env::var(PORTS).unwrap();
    let port = ports.split(',').nth(server).unwrap().parse().unwrap();
    connect_to(port, database, user, name).await
}

pub(crate) async fn connect_to(
    port: u16,
    database: &str,
    user: &str,
    name: &str,
) -> sqlx::Result<PgConnection> {
    PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username(user)
        .password(PASSWORD)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
        // PgBouncer does not take it from a client.
        .extra_float_digits(None)
        .application_name(name)
        .connect()
        .await
}

pub(crate) fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

/// The control plane as a process of these tests reaches it.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    pub(crate) admin: PgTenantAdmin,
    pub(crate) tenants: PgTenants,
    pub(crate) by: Actor,
}

impl Control {
    fn at(url: &str) -> Self {
        let dsn = Dsn::parse(url).unwrap();
        let options = ControlOptions::new(dsn.server().clone(), dsn.credential().clone());
        let db = ControlDb::connect(options).unwrap();
        Self {
            admin: PgTenantAdmin::new(db.clone()),
            tenants: PgTenants::new(db),
            by: Actor::new("mover", "a test"),
        }
    }

    /// As whoever places tenants.
    pub(crate) fn from_env() -> Self {
        Self::at(&env::var(ADMIN_URL).unwrap())
    }

    pub(crate) async fn tenant(&self, name: &str) -> Result<Arc<TenantRecord>, biplane::error::Error> {
        let slug = slug(name);
        let mut found = self.tenants.find(&[TenantRef::Slug(&slug)]).await?;
        Ok(found.pop().unwrap()?.unwrap().record)
    }

    pub(crate) async fn place(&self, name: &str) -> Place {
        let record = self.tenant(name).await.unwrap();
        Place::parse(&record.source.name, record.tenant.placement.isolation.as_str())
    }
}

/// Where movers write what they saw.
pub(crate) async fn ledger() -> sqlx::Result<PgConnection> {
    PgConnection::connect(&env::var(LEDGER_URL).unwrap()).await
}

/// Where processes write what they have been told is committed.
pub(crate) fn directory() -> PathBuf {
    env::var_os(DIRECTORY).unwrap().into()
}

pub(crate) struct World {
    pub(crate) control: Control,
    pub(crate) data: [Cluster; 2],
    pub(crate) keyring: Keyring,
    /// Movers write here what they saw when a drain had returned.
    pub(crate) ledger: PgConnection,
    /// What services go through, one before each data server, if they do not connect directly.
    bouncers: Vec<PgBouncer>,
    /// Whether a connection may be held.
    pub(crate) lends_sessions: bool,
    variables: Vec<(&'static str, String)>,
    directory: TempDir,
    // After the sessions that it serves.
    _plane: Cluster,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::start(None).await
    }

    /// Services go through PgBouncers with so many sessions of the server for each database and login.
    pub(crate) async fn behind(profile: Profile, sessions: u32) -> Self {
        Self::start(Some((profile, sessions))).await
    }

    async fn start(poolers: Option<(Profile, u32)>) -> Self {
        let plane = async { Cluster::builder().max_connections(100).start().await.unwrap() };
        let (plane, east, west) = tokio::join!(plane, data_server(), data_server());
        let mut bouncers = Vec::new();
        if let Some((profile, sessions)) = poolers {
            let logins =
                [APP, REPORTS].map(|user| Credential::new(user, SecretString::from(PASSWORD)).unwrap());
            for cluster in [&east, &west] {
                let bouncer = profile.before(cluster, sessions);
                let trusts = BouncerAuth::Trust(logins.to_vec());
                bouncers.push(bouncer.auth(trusts).start().await.unwrap());
            }
        }
        let ports = format!("{},{}", east.endpoint().port, west.endpoint().port);
        let url = |database, login| plane.url(database, login).expose_secret().to_owned();
        let [router, admin] = ["router", "admin"].map(|role| {
            let (plane, password) = (&plane, SecretString::from(PASSWORD));
            async move { plane.create_role(role, &password, &[]).await.unwrap() }
        });
        let (router, admin) = (router.await, admin.await);
        let books = url("ledger", &admin);
        let (router, admin) = (url("control", &router), url("control", &admin));
        for database in ["control", "ledger"] {
            plane.create_database(database).await.unwrap();
        }
        let grants = Grants::none()
            .router(RoleName::parse("router").unwrap())
            .admin(RoleName::parse("admin").unwrap());
        let mut owner = plane.connect("control").await.unwrap();
        run(&mut owner, ControlSchema::install_sql(&grants))
            .await
            .unwrap();
        let mut ledger = plane.connect("ledger").await.unwrap();
        let sql = "create table drained (tenant_id uuid, epoch bigint, place text, rows uuid[]);
                   grant select, insert on drained to admin";
        run(&mut ledger, sql).await.unwrap();
        let key = KeyMaterial::generate().unwrap();
        let hex = key.to_hex().expose_secret().to_owned();
        let directory = TempDir::new().unwrap();
        let text = directory.path().to_str().unwrap().to_owned();
        let world = Self {
            control: Control::at(&admin),
            data: [east, west],
            keyring: Keyring::builder().key(key, KeyState::Primary).build().unwrap(),
            ledger,
            bouncers,
            lends_sessions: poolers.is_none_or(|(profile, _)| profile.mode == PoolMode::Session),
            variables: vec![
                (CONTROL_URL, router),
                (KEYRING, hex),
                (ADMIN_URL, admin),
                (LEDGER_URL, books),
                (DIRECTORY, text),
                (PORTS, ports),
            ],
            directory,
            _plane: plane,
        };
        world.settle().await;
        world
    }

    /// What a process with this name is told by.
    pub(crate) fn variables(&self, name: &str, seed: u64) -> Vec<(&'static str, String)> {
        let mut variables = self.variables.clone();
        variables.extend([(NAME, name.to_owned()), (SEED, seed.to_string())]);
        variables
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn control_url(&self) -> &str {
        &self.variables[0].1
    }

    /// As the owner of the databases, behind row-level security.
    pub(crate) async fn owner(&self, place: Place) -> PgConnection {
        let port = self.data[place.server].endpoint().port;
        connect_to(port, place.database(), MOVER, "owner").await.unwrap()
    }

    /// Data sources, and tenants on them: each neighbour stays where it is.
    async fn settle(&self) {
        let Control { admin, by, .. } = &self.control;
        for (server, cluster) in self.data.iter().enumerate() {
            for database in DATABASES {
                let name = source(server, database);
                let mut location = cluster.server(database);
                if let Some(bouncer) = self.bouncers.get(server) {
                    location.endpoints = vec![bouncer.endpoint()];
                    location.pooler = bouncer.pooler();
                }
                let mut new = NewSource::new(name, Location::Server(location));
                let id = DatabaseId::new();
                new.database_id = Some(id);
                new.pool = PoolSettings::new(0, 20).unwrap();
                let source = admin.create_source(by, new).await.unwrap().id;
                for (role, user) in [(Role::App, APP), (Role::Service, REPORTS)] {
                    let login = Credential::new(user, SecretString::from(PASSWORD)).unwrap();
                    let sealed = self.keyring.seal_credential(source, role, &login).unwrap();
                    let slot = CredentialSlot::Current;
                    let stored = admin.set_credential(by, source, role, slot, None, sealed);
                    stored.await.unwrap();
                }
                let port = cluster.endpoint().port;
                let mut owner = connect_to(port, database, MOVER, "owner").await.unwrap();
                install(&mut owner, id).await;
                if server == 1 {
                    let timeouts = RoleTimeouts::new().idle_in_transaction(IDLE);
                    let app = RoleName::parse(APP).unwrap();
                    DataSchema::allow(&mut owner, &app, timeouts).await.unwrap();
                }
            }
        }
        for (slug, isolation) in TENANTS {
            self.add(slug, Place::new(0, isolation)).await;
            for place in Place::all(slug) {
                self.furnish(slug, place).await;
            }
        }
        for server in 0..SERVERS.len() {
            self.add(&neighbour(server), Place::new(server, Isolation::Row))
                .await;
        }
    }

    async fn add(&self, name: &str, place: Place) {
        let Control { admin, by, .. } = &self.control;
        let source = admin.source(&place.source()).await.unwrap().unwrap();
        let mut new = NewTenant::new(slug(name), source.id);
        new.isolation = place.isolation;
        let tenant = admin.create(by, new).await.unwrap();
        let open = TenantStatus::Active;
        admin
            .set_status(by, tenant.id, tenant.version, open)
            .await
            .unwrap();
        let mut owner = self.owner(place).await;
        let residence = place.residence(tenant.id, name, Epoch::FIRST);
        Fence::new(&mut owner).place(&residence).await.unwrap();
    }

    /// The table that this tenant has in this place.
    async fn furnish(&self, name: &str, place: Place) {
        let tenant = self.control.tenant(name).await.unwrap().tenant.id;
        let table = place.table(name);
        let before = match place.isolation {
            Isolation::Schema => format!("create schema t_{name}; grant usage on schema t_{name} to {APP};"),
            _ => String::new(),
        };
        let after = match place.isolation {
            Isolation::Row => RowPolicy::new("public", "note", "tenant_id").sql(),
            _ => format!("alter table {table} alter column tenant_id set default '{tenant}';"),
        };
        // Nobody but the database says at which epoch a row was entered, and where.
        let sql = format!(
            "{before}
             create table if not exists {table} (
                id uuid primary key, tenant_id uuid not null, owner uuid not null, way text not null,
                epoch bigint not null default current_setting('row_one.epoch')::bigint,
                born text not null default '{place}');
             {after}
             grant select, insert on {table} to {APP}, {REPORTS}"
        );
        run(&mut self.owner(place).await, sql).await.unwrap();
    }
}

/// The tenant that shares a database with those that move, and stays.
pub(crate) fn neighbour(server: usize) -> String {
    format!("nora-{}", SERVERS[server])
}

/// A server that keeps what it has committed, as a fence demands.
async fn data_server() -> Cluster {
    // Many sessions begin and end here, and how they prove who they are is not what this is about.
    let cluster = Cluster::builder()
        .authentication(Authentication::Trust)
        .max_connections(150)
        .setting("max_prepared_transactions", "50")
        .setting("fsync", "on")
        .start()
        .await
        .unwrap();
    let password = SecretString::from(PASSWORD);
    for role in [APP, REPORTS] {
        cluster.create_role(role, &password, &[]).await.unwrap();
    }
    let copies_all = [RoleAttribute::BypassRowSecurity];
    cluster.create_role(MOVER, &password, &copies_all).await.unwrap();
    let grants = format!("grant pg_read_all_stats, pg_signal_backend to {MOVER}");
    cluster.sql("postgres", &grants).await.unwrap();
    for database in DATABASES {
        cluster.create_database(database).await.unwrap();
        let owner = format!("alter database {database} owner to {MOVER}");
        cluster.sql("postgres", &owner).await.unwrap();
    }
    cluster
}

/// The schema, which keeps in a setting what it always knows: the epoch at which a transaction or session has entered.
async fn install(owner: &mut PgConnection, id: DatabaseId) {
    let logins = [APP, REPORTS].map(|role| RoleName::parse(role).unwrap());
    let mut sql = DataSchema::install_sql(id, &logins);
    let enters = "entered := pg_catalog.set_config('biplane.tenant', tenant_text, true);";
    let stays = "array[here.tenant_setting, ";
    for (there, more) in [
        (
            enters,
            " entered := pg_catalog.set_config('row_one.epoch', epoch::pg_catalog.text, true);",
        ),
        (stays, "'row_one.epoch', "),
    ] {
        assert_eq!(sql.matches(there).count(), 1, "the schema has changed: {there}");
        sql = sql.replace(there, &format!("{there}{more}"));
    }
    run(owner, sql).await.unwrap();
}
