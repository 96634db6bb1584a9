//! Control planes on a real server: one cluster for a test binary, one database for a test.
#![allow(
    dead_code,
    reason = "each test binary uses a part, and what is unused in one is used in another"
)]

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use biplane::{
    plane::{ControlDb, ControlOptions, RoleName},
    repository::{
        ChangeLog, ChangePush, ControlSchema, CredentialStore, Grants, Instances, PgTenantAdmin, PgTenants,
        TenantAdmin, TenantRepository,
    },
    secret::Credential,
    tenant::{Server, TenantId, TenantRecord},
    testing::{
        conformance::{Backend, PushBackend, ReadBackend, async_trait, seed_through},
        postgres::Cluster,
    },
};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Executor, PgConnection, raw_sql};
use tokio::sync::OnceCell;

pub(crate) const ROUTER: &str = "biplane_router";
pub(crate) const ADMIN: &str = "biplane_admin";
pub(crate) const EAST: &str = "00000000-0000-0000-0000-00000000000e";
pub(crate) const WEST: &str = "00000000-0000-0000-0000-00000000000f";
pub(crate) const ACME: &str = "00000000-0000-0000-0000-0000000000a1";
pub(crate) const OTHER: &str = "00000000-0000-0000-0000-0000000000a2";
pub(crate) const WHO: &str = "set local biplane.actor = 'ann'; set local biplane.reason = 'INC-7';";
const PASSWORD: &str = "a-password";

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();

/// The cluster of this binary, with a role for routers and one for admins.
pub(crate) async fn cluster() -> &'static Cluster {
    CLUSTER
        .get_or_init(|| async {
            let cluster = Cluster::builder().max_connections(200).start().await.unwrap();
            for role in [ROUTER, ADMIN] {
                create_role(&cluster, role).await;
            }
            cluster
        })
        .await
}

pub(crate) async fn create_role(cluster: &Cluster, role: &str) {
    cluster
        .create_role(role, &SecretString::from(PASSWORD), &[])
        .await
        .unwrap();
}

pub(crate) fn login(role: &str) -> Credential {
    Credential::new(role, SecretString::from(PASSWORD)).unwrap()
}

/// A new database without the schema.
pub(crate) async fn database() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let name = format!("control_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    cluster().await.create_database(&name).await.unwrap();
    name
}

pub(crate) fn grants() -> Grants {
    Grants::none()
        .router(RoleName::parse(ROUTER).unwrap())
        .admin(RoleName::parse(ADMIN).unwrap())
}

pub(crate) async fn handle(database: &str, who: Credential) -> ControlDb {
    patient(cluster().await.server(database), who)
}

/// A handle that a machine which is busy with other tests does not keep from its server.
pub(crate) fn patient(server: Server, who: Credential) -> ControlDb {
    let mut options = ControlOptions::new(server, who);
    let minute = Duration::from_secs(60);
    options.pool = options.pool.connect_timeout(minute).wait_timeout(minute);
    ControlDb::connect(options).unwrap()
}

/// A session of the superuser.
pub(crate) async fn owner(database: &str) -> PgConnection {
    cluster().await.connect(database).await.unwrap()
}

pub(crate) async fn run(connection: &mut PgConnection, sql: impl Into<String>) -> sqlx::Result<()> {
    let sql: String = sql.into();
    connection.execute(raw_sql(AssertSqlSafe(sql))).await.map(drop)
}

pub(crate) async fn text(connection: &mut PgConnection, sql: &str) -> String {
    let sql = format!("select ({sql})::text");
    let text: Option<String> = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(connection)
        .await
        .unwrap();
    text.unwrap_or_default()
}

/// A control plane whose reader has the grants of a router and whose writer has those of an admin, exactly.
#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) database: String,
    pub(crate) router: ControlDb,
    pub(crate) admin: ControlDb,
}

pub(crate) async fn postgres() -> Postgres {
    postgres_with(|sql| sql).await
}

/// A control plane whose schema was tampered with.
pub(crate) async fn postgres_with(tamper: impl FnOnce(String) -> String) -> Postgres {
    let database = database().await;
    let sql = tamper(ControlSchema::install_sql(&grants()));
    run(&mut owner(&database).await, sql).await.unwrap();
    Postgres {
        router: handle(&database, login(ROUTER)).await,
        admin: handle(&database, login(ADMIN)).await,
        database,
    }
}

impl Postgres {
    pub(crate) fn pg_tenants(&self) -> PgTenants {
        PgTenants::new(self.router.clone())
    }

    pub(crate) fn pg_admin(&self) -> PgTenantAdmin {
        PgTenantAdmin::new(self.admin.clone())
    }

    /// Waits a random while between a change and its place in the log, and between that and its commit.
    pub(crate) async fn with_slow_commits(self) -> Self {
        let delay = |name: &str| {
            format!(
                "create constraint trigger {name} after insert on biplane_control.audit
                 deferrable initially deferred for each row execute function biplane_control.test_delay();"
            )
        };
        let sql = format!(
            "create function biplane_control.test_delay() returns trigger language plpgsql as $f$
             begin perform pg_sleep(random() * 0.01); return null; end $f$;
             {}{}",
            delay("aa_before"),
            delay("zz_after")
        );
        run(&mut owner(&self.database).await, sql).await.unwrap();
        self
    }
}

#[async_trait]
impl ReadBackend for Postgres {
    fn tenants(&self) -> Arc<dyn TenantRepository> {
        Arc::new(self.pg_tenants())
    }

    async fn seed(&self, tenants: &[TenantRecord]) {
        seed_through(&self.pg_admin(), tenants).await;
    }

    async fn spoil(&self, tenant: TenantId) {
        let mut owner = owner(&self.database).await;
        damage(
            &mut owner,
            "tenant",
            "tenant_status",
            &format!("update biplane_control.tenant set status = 'bogus' where id = '{tenant}'"),
        )
        .await;
    }
}

/// Writes what constraints and triggers forbid.
pub(crate) async fn damage(owner: &mut PgConnection, table: &str, constraint: &str, sql: &str) {
    run(
        owner,
        format!(
            "set session_replication_role = replica;
             alter table biplane_control.{table} drop constraint if exists {constraint};
             {sql};
             reset session_replication_role"
        ),
    )
    .await
    .unwrap();
}

#[async_trait]
impl Backend for Postgres {
    fn admin(&self) -> Arc<dyn TenantAdmin> {
        Arc::new(self.pg_admin())
    }

    fn changes(&self) -> Arc<dyn ChangeLog> {
        Arc::new(self.pg_tenants())
    }

    fn credentials(&self) -> Arc<dyn CredentialStore> {
        Arc::new(self.pg_admin())
    }

    fn instances(&self) -> Arc<dyn Instances> {
        Arc::new(self.pg_tenants())
    }

    async fn pass(&self, time: Duration) {
        let time = format!("interval '{} microseconds'", time.as_micros());
        run(
            &mut owner(&self.database).await,
            format!(
                "update biplane_control.instance set started_at = started_at - {time},
                    seen_at = seen_at - {time}, steady_since = steady_since - {time};
                 update biplane_control.instance_key set used_at = used_at - {time};
                 set session_replication_role = replica;
                 update biplane_control.change set at = at - {time};
                 reset session_replication_role"
            ),
        )
        .await
        .unwrap();
    }

    async fn prune(&self, keep: Duration) {
        self.pg_admin().prune_changes(keep).await.unwrap();
    }
}

#[async_trait]
impl PushBackend for Postgres {
    fn push(&self) -> Arc<dyn ChangePush> {
        Arc::new(self.pg_tenants())
    }
}

/// Runs statements as one transaction that says who and why.
pub(crate) async fn by_hand(connection: &mut PgConnection, sql: &str) -> Result<(), (String, String)> {
    let outcome = run(connection, format!("begin; {WHO} {sql}; commit")).await;
    if outcome.is_err() {
        run(connection, "rollback").await.unwrap();
    }
    outcome.map_err(|error| {
        let refused = error.as_database_error().expect("the server answers");
        let code = refused.code().unwrap_or_default().into_owned();
        (code, format!("{refused:?}"))
    })
}

pub(crate) async fn refused(connection: &mut PgConnection, sql: &str, code: &str) {
    let (got, text) = by_hand(connection, sql).await.expect_err(sql);
    assert_eq!(got, code, "{sql}: {text}");
}

/// A control plane with two data sources and two tenants, all written by hand.
pub(crate) async fn world() -> (Postgres, PgConnection) {
    let backend = postgres().await;
    let mut owner = owner(&backend.database).await;
    by_hand(
        &mut owner,
        &format!(
            "insert into biplane_control.data_source (id, name, location) values
                ('{EAST}', 'east', 'memory'), ('{WEST}', 'west', 'memory');
             insert into biplane_control.tenant (id, slug, domains, data_source_id, isolation) values
                ('{ACME}', 'acme', '{{b.example,a.example}}', '{EAST}', 'row'),
                ('{OTHER}', 'other', '{{}}', '{EAST}', 'row')"
        ),
    )
    .await
    .unwrap();
    (backend, owner)
}

/// Runs a script with psql, as a DBA would.
pub(crate) async fn psql(database: &str, script: &str) -> Result<(), String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, script.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    client(
        "psql",
        database,
        &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", path],
    )
    .await
    .map(drop)
}

/// Dumps a database as SQL.
pub(crate) async fn pg_dump(database: &str, options: &[&str]) -> String {
    client("pg_dump", database, options).await.unwrap()
}

async fn client(program: &str, database: &str, arguments: &[&str]) -> Result<String, String> {
    let cluster = cluster().await;
    let who = cluster.superuser();
    let endpoint = cluster.endpoint();
    let password = who.password().map(secrecy::ExposeSecret::expose_secret);
    let output = Command::new(client_program(program))
        .args(["-h", &endpoint.host, "-p", &endpoint.port.to_string()])
        .args(["-U", who.username(), "-d", database])
        .args(arguments)
        .env("PGPASSWORD", password.unwrap_or_default())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn client_program(program: &str) -> PathBuf {
    let named = std::env::var_os("BIPLANE_PG_BIN").map(PathBuf::from).into_iter();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    named
        .chain(std::env::split_paths(&path))
        .chain(debian)
        .map(|directory| directory.join(program))
        .find(|program| program.exists())
        .unwrap_or_else(|| panic!("install postgresql-client: this test runs {program} as a DBA would"))
}
