//! Databases with tenants in them, logins that enter, and a mover.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use biplane::{
    error::{Error, ErrorKind},
    plane::{DataSchema, DrainOptions, Fence, Residence, RoleName},
    secret::Credential,
    tenant::{DatabaseId, Endpoint, Epoch, Isolation, TenantId},
    testing::postgres::{Cluster, ClusterBuilder},
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    AssertSqlSafe, ConnectOptions, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
    raw_sql,
};
use tokio::sync::OnceCell;

/// Generous: these tests run beside many others on two cores.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// For a fence that is to fail.
pub(crate) const SHORT: Duration = Duration::from_millis(200);
pub(crate) const APP: &str = "app";
pub(crate) const LEVELS: [&str; 3] = ["read committed", "repeatable read", "serializable"];
const PASSWORD: &str = "a-password";

/// A server that keeps what it has committed, as a fence demands.
pub(crate) fn builder() -> ClusterBuilder {
    Cluster::builder()
        .max_connections(200)
        .setting("max_prepared_transactions", "50")
        .setting("fsync", "on")
}

pub(crate) async fn cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER
        .get_or_init(|| async {
            let cluster = builder().start().await.unwrap();
            create_login(&cluster, APP).await;
            cluster
        })
        .await
}

pub(crate) async fn create_login(cluster: &Cluster, name: &str) {
    cluster
        .create_role(name, &SecretString::from(PASSWORD), &[])
        .await
        .unwrap();
}

pub(crate) fn login(name: &str) -> Credential {
    Credential::new(name, SecretString::from(PASSWORD)).unwrap()
}

/// A session of the run-time login through a pooler, with simple queries alone.
pub(crate) async fn through(pooler: &Endpoint, database: &str) -> sqlx::Result<PgConnection> {
    let login = login(APP);
    let password = login.password().map_or("", ExposeSecret::expose_secret);
    PgConnectOptions::new_without_pgpass()
        .host(&pooler.host)
        .port(pooler.port)
        .username(login.username())
        .password(password)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
        .extra_float_digits(None)
        .connect()
        .await
}

/// Statements as text, several at once.
pub(crate) async fn run(connection: &mut PgConnection, sql: impl Into<String>) -> sqlx::Result<()> {
    raw_sql(AssertSqlSafe(sql.into()))
        .execute(connection)
        .await
        .map(drop)
}

/// The SQLSTATE with which statements are refused.
pub(crate) async fn refused(connection: &mut PgConnection, sql: impl Into<String>) -> String {
    let error = run(connection, sql).await.unwrap_err();
    error.as_database_error().unwrap().code().unwrap().into_owned()
}

pub(crate) async fn text(connection: &mut PgConnection, sql: &str) -> String {
    let found: Option<String> = sqlx::query_scalar(AssertSqlSafe(format!("select ({sql})::text")))
        .fetch_one(connection)
        .await
        .unwrap();
    found.unwrap_or_default()
}

/// A database with the schema, one tenant, and a table whose rows carry tenant and epoch.
pub(crate) struct Home<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) database: String,
    pub(crate) id: DatabaseId,
    pub(crate) tenant: TenantId,
}

impl Home<'static> {
    pub(crate) async fn new(isolation: Isolation) -> Self {
        Home::on(cluster().await, isolation).await
    }
}

impl<'a> Home<'a> {
    pub(crate) async fn on(cluster: &'a Cluster, isolation: Isolation) -> Self {
        let home = Self::empty(cluster).await;
        home.place(home.tenant, isolation).await;
        home
    }

    /// Without a tenant.
    pub(crate) async fn empty(cluster: &'a Cluster) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let database = format!("home_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        cluster.create_database(&database).await.unwrap();
        let home = Self {
            cluster,
            database,
            id: DatabaseId::new(),
            tenant: TenantId::new(),
        };
        let mut owner = home.owner().await;
        let app = [RoleName::parse(APP).unwrap()];
        DataSchema::install(&mut owner, home.id, &app).await.unwrap();
        let table = format!(
            "create table public.note (tenant text not null default current_setting('app.tenant_id'), epoch bigint);
             grant select, insert on public.note to {APP}"
        );
        run(&mut owner, table).await.unwrap();
        home
    }

    pub(crate) async fn place(&self, tenant: TenantId, isolation: Isolation) {
        let mut residence = Residence::new(tenant, Epoch::FIRST, isolation);
        if isolation == Isolation::Schema {
            residence = residence.schema(format!("t_{tenant}"));
        }
        Fence::new(&mut self.owner().await)
            .place(&residence)
            .await
            .unwrap();
    }

    /// The same tenant in another database.
    pub(crate) fn elsewhere(&self, database: String) -> Self {
        Self { database, ..*self }
    }

    /// Another tenant in the same database.
    pub(crate) async fn neighbour(&self) -> TenantId {
        let tenant = TenantId::new();
        self.place(tenant, Isolation::Row).await;
        tenant
    }

    pub(crate) async fn owner(&self) -> PgConnection {
        self.cluster.connect(&self.database).await.unwrap()
    }

    pub(crate) async fn app(&self) -> PgConnection {
        self.login(APP).await
    }

    pub(crate) async fn login(&self, name: &str) -> PgConnection {
        self.cluster
            .connect_as(&login(name), &self.database)
            .await
            .unwrap()
    }

    pub(crate) fn enter_as(&self, tenant: TenantId, epoch: u64) -> String {
        format!("select biplane.enter_v1('{tenant}', {epoch}, '{}')", self.id)
    }

    pub(crate) fn enter(&self, epoch: u64) -> String {
        self.enter_as(self.tenant, epoch)
    }

    pub(crate) fn enter_session(&self, epoch: u64) -> String {
        format!(
            "select biplane.enter_session_v1('{}', {epoch}, '{}')",
            self.tenant, self.id
        )
    }

    pub(crate) fn enter_again(&self, epoch: u64) -> String {
        format!("execute biplane_{}_{epoch}", self.tenant.as_uuid().simple())
    }

    /// A transaction of the tenant that has written and not committed, and its process.
    pub(crate) async fn writing(&self, level: &str) -> (PgConnection, i32) {
        let mut app = self.app().await;
        let sql = format!(
            "begin isolation level {level}; {}; insert into public.note (epoch) values (1)",
            self.enter(1)
        );
        run(&mut app, sql).await.unwrap();
        let pid = pid(&mut app).await;
        (app, pid)
    }

    pub(crate) async fn fence(&self, epoch: u64, options: DrainOptions) -> Result<Duration, Error> {
        let mut owner = self.owner().await;
        Fence::new(&mut owner)
            .fence(self.tenant, Epoch::new(epoch), &options)
            .await
    }

    /// Fences with all the time there is.
    pub(crate) async fn fence_patiently(&self) {
        self.fence(1, patient()).await.unwrap();
    }

    /// Fences in vain, and returns what the error says of it.
    pub(crate) async fn fence_in_vain(&self) -> String {
        let error = self.fence(1, hasty()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Undrained, "{error}");
        error.to_string()
    }

    pub(crate) async fn unfence(&self) {
        Fence::new(&mut self.owner().await)
            .unfence(self.tenant, Epoch::FIRST)
            .await
            .unwrap();
    }

    pub(crate) async fn state(&self) -> String {
        let sql = format!(
            "select state from biplane.residence where tenant_id = '{}'",
            self.tenant
        );
        text(&mut self.owner().await, &sql).await
    }

    pub(crate) async fn notes(&self) -> String {
        text(&mut self.owner().await, "select count(*) from public.note").await
    }
}

pub(crate) fn patient() -> DrainOptions {
    DrainOptions::default()
        .deadline(LIMIT)
        .grace(Duration::from_millis(50))
}

pub(crate) fn hasty() -> DrainOptions {
    DrainOptions::default().deadline(SHORT).grace(LIMIT)
}

pub(crate) async fn pid(connection: &mut PgConnection) -> i32 {
    text(connection, "select pg_backend_pid()").await.parse().unwrap()
}

/// A client program of Postgres, for a database, as the superuser.
pub(crate) fn client(cluster: &Cluster, program: &str) -> Command {
    let directory = std::env::var_os("BIPLANE_PG_BIN").map(Into::into).into_iter();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let file = directory
        .chain(std::env::split_paths(&path))
        .chain(debian)
        .map(|directory: std::path::PathBuf| directory.join(program))
        .find(|file| file.exists())
        .unwrap_or_else(|| panic!("install the client programs of Postgres: this test runs {program}"));
    let (who, endpoint) = (cluster.superuser(), cluster.endpoint());
    let mut command = Command::new(file);
    command
        .env("PGHOST", &*endpoint.host)
        .env("PGPORT", endpoint.port.to_string())
        .env("PGUSER", who.username())
        .env(
            "PGPASSWORD",
            who.password().map_or("", ExposeSecret::expose_secret),
        );
    command
}
