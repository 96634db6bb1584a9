//! A control plane in memory over real servers: what the tests of pool, handles and clean return share.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test file uses a part of it"
)]

use std::{
    collections::BTreeSet,
    future::poll_fn,
    pin::pin,
    sync::atomic::{AtomicU32, Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use biplane::{
    Biplane,
    plane::TenantDb,
    pool::PoolOptions,
    repository::{Actor, MemoryControl, MemoryCredentials, NewSource, NewTenant, SourceChange, TenantAdmin},
    secret::Credential,
    tenant::{
        DataSourceId, DatabaseId, Isolation, Location, PoolSettings, Pooler, Role, Server, Slug, Tenant,
        TenantId, TenantRef, TenantStatus,
    },
    testing::{postgres::Cluster, wait},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;

/// Generous: these tests run beside many others on two cores.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The server that tests share which leave it alone. Each has databases of its own on it.
pub async fn shared() -> &'static Cluster {
    static SHARED: OnceCell<Cluster> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            Cluster::builder()
                .max_connections(400)
                .setting("log_min_error_statement", "panic")
                .start()
                .await
                .unwrap()
        })
        .await
}

/// A control plane, and a cluster for the tenants' databases.
pub struct World<'a> {
    pub cluster: &'a Cluster,
    pub control: MemoryControl,
    pub credentials: MemoryCredentials,
    pub by: Actor,
}

/// A tenant with a database of its own, which holds the table `note (id, text)`.
#[derive(Clone, Debug)]
pub struct Placed {
    pub id: TenantId,
    pub slug: Slug,
    pub source: DataSourceId,
    pub source_name: String,
    pub database: String,
}

/// How a tenant's data source is to be.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub min: u32,
    pub max: Option<u32>,
    pub database_id: Option<DatabaseId>,
    pub server: Option<Server>,
    pub credential: Option<Credential>,
}

impl Wish {
    pub fn max(max: u32) -> Self {
        Self {
            max: Some(max),
            ..Self::default()
        }
    }
}

/// Options under which nothing takes long.
pub fn options(cap: u32) -> PoolOptions {
    let mut options = PoolOptions::default();
    options.cap = cap.try_into().unwrap();
    options.wait_timeout = Duration::from_secs(30);
    options.connect_timeout = Duration::from_secs(20);
    options
}

impl<'a> World<'a> {
    pub fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            control: MemoryControl::new(),
            credentials: MemoryCredentials::new(),
            by: Actor::new("ann", "a test"),
        }
    }

    pub async fn tenant(&self) -> Placed {
        self.tenant_with(Wish::default()).await
    }

    pub async fn tenant_with(&self, wish: Wish) -> Placed {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let database = format!("{name}_{}", std::process::id());
        self.cluster.create_database(&database).await.unwrap();
        self.cluster
            .sql(
                &database,
                "create table note (id bigint generated always as identity primary key, text text not null)",
            )
            .await
            .unwrap();
        self.tenant_on(&name, &database, wish).await
    }

    /// A tenant on a database that exists, or not.
    pub async fn tenant_on(&self, name: &str, database: &str, wish: Wish) -> Placed {
        let server = wish.server.unwrap_or_else(|| self.cluster.server(database));
        let mut source = NewSource::new(name, Location::Server(server));
        source.pool = PoolSettings::new(wish.min, wish.max.unwrap_or(10)).unwrap();
        source.database_id = wish.database_id;
        let source = self.control.create_source(&self.by, source).await.unwrap();
        let credential = wish.credential.unwrap_or_else(|| self.cluster.superuser());
        self.credentials.set(source.id, Role::App, credential);
        let (id, slug) = self.tenant_at(name, source.id, Isolation::Database).await;
        Placed {
            id,
            slug,
            source: source.id,
            source_name: name.to_owned(),
            database: database.to_owned(),
        }
    }

    /// An active tenant on a data source that exists.
    pub async fn tenant_at(
        &self,
        name: &str,
        source: DataSourceId,
        isolation: Isolation,
    ) -> (TenantId, Slug) {
        let slug = Slug::parse(name).unwrap();
        let mut tenant = NewTenant::new(slug, source);
        tenant.isolation = isolation;
        let tenant = self.control.create(&self.by, tenant).await.unwrap();
        self.status(tenant.id, TenantStatus::Active).await;
        (tenant.id, slug)
    }

    /// Says in a tenant's own database that it lives there.
    pub async fn settle(&self, placed: &Placed, database: DatabaseId) {
        let epoch = self.record(placed.id).await.placement.epoch;
        let sql = format!(
            "insert into biplane.residence (tenant_id, epoch, state, isolation, database_id)
             values ('{}', {epoch}, 'open', 'database', '{database}')",
            placed.id
        );
        self.cluster.sql(&placed.database, &sql).await.unwrap();
    }

    pub fn biplane(&self, pool: PoolOptions) -> Biplane {
        Biplane::postgres(self.control.clone(), self.credentials.clone())
            .pool(pool)
            .build()
            .unwrap()
    }

    /// A router, and a handle on a tenant of its own.
    pub async fn one(&self, pool: PoolOptions) -> (Biplane, Placed, TenantDb) {
        let placed = self.tenant().await;
        let biplane = self.biplane(pool);
        let db = biplane.route(&placed.slug).await.unwrap();
        (biplane, placed, db)
    }

    pub async fn record(&self, id: TenantId) -> Tenant {
        use biplane::repository::TenantRepository;
        let found = self.control.find(&[TenantRef::Id(id)]).await.unwrap().remove(0);
        found.unwrap().unwrap().record.tenant.clone()
    }

    pub async fn status(&self, id: TenantId, status: TenantStatus) {
        let version = self.record(id).await.version;
        self.control
            .set_status(&self.by, id, version, status)
            .await
            .unwrap();
    }

    pub async fn change_source(&self, placed: &Placed, change: SourceChange) {
        let source = self.control.source(&placed.source_name).await.unwrap().unwrap();
        self.control
            .update_source(&self.by, source.id, source.version, change)
            .await
            .unwrap();
    }

    /// What the server says about the sessions of a database, this one's own left out.
    pub async fn watch(&self, database: &str) -> Watch {
        Watch {
            connection: self.cluster.connect("postgres").await.unwrap(),
            databases: vec![database.to_owned()],
        }
    }

    pub async fn watch_all(&self, placed: &[Placed]) -> Watch {
        Watch {
            connection: self.cluster.connect("postgres").await.unwrap(),
            databases: placed.iter().map(|placed| placed.database.clone()).collect(),
        }
    }
}

/// Looks at `pg_stat_activity` from outside.
pub struct Watch {
    connection: PgConnection,
    databases: Vec<String>,
}

impl Watch {
    async fn count(&mut self, condition: &'static str) -> i64 {
        let sql = format!(
            "select count(*) from pg_stat_activity
             where datname = any($1) and backend_type = 'client backend' and {condition}"
        );
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(&self.databases)
            .fetch_one(&mut self.connection)
            .await
            .unwrap()
    }

    pub async fn sessions(&mut self) -> i64 {
        self.count("true").await
    }

    pub async fn active(&mut self) -> i64 {
        self.count("state = 'active'").await
    }

    pub async fn in_transaction(&mut self) -> i64 {
        self.count("xact_start is not null").await
    }

    /// The sessions that count against a cap.
    pub async fn pids(&mut self) -> BTreeSet<i32> {
        let pids: Vec<i32> = sqlx::query_scalar(
            "select pid from pg_stat_activity
             where datname = any($1) and backend_type = 'client backend'
                and application_name not like '%(reserved)'",
        )
        .bind(&self.databases)
        .fetch_all(&mut self.connection)
        .await
        .unwrap();
        pids.into_iter().collect()
    }

    /// Waits until that many sessions are in `pg_sleep`.
    pub async fn until_asleep(&mut self, sessions: i64) {
        wait::until(format!("{sessions} sessions sleep"), LIMIT, async || {
            self.count("wait_event = 'PgSleep'").await == sessions
        })
        .await
        .unwrap();
    }

    /// When the sessions beyond the cap have asked something last, each.
    pub async fn last_asked_by_reserved(&mut self) -> Vec<String> {
        sqlx::query_scalar(
            "select query_start::text from pg_stat_activity
             where datname = any($1) and application_name like '%(reserved)' and query_start is not null",
        )
        .bind(&self.databases)
        .fetch_all(&mut self.connection)
        .await
        .unwrap()
    }

    pub async fn kill_sessions(&mut self) {
        sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where datname = any($1)")
            .bind(&self.databases)
            .execute(&mut self.connection)
            .await
            .unwrap();
        self.until_sessions(0).await;
    }

    pub async fn until_sessions(&mut self, sessions: i64) {
        wait::until(format!("{sessions} sessions"), LIMIT, async || {
            self.sessions().await == sessions
        })
        .await
        .unwrap();
    }

    pub async fn until_idle(&mut self) {
        wait::until("nothing runs or is in a transaction", LIMIT, async || {
            self.active().await == 0 && self.in_transaction().await == 0
        })
        .await
        .unwrap();
    }

    /// Waits until that many sessions run a statement which begins like this.
    pub async fn until_running(&mut self, statement: &str, sessions: i64) {
        wait::until(
            format!("{sessions} sessions run {statement}"),
            LIMIT,
            async || {
                let running: i64 = sqlx::query_scalar(
                    "select count(*) from pg_stat_activity
                 where datname = any($1) and state = 'active' and starts_with(query, $2)",
                )
                .bind(&self.databases)
                .bind(statement)
                .fetch_one(&mut self.connection)
                .await
                .unwrap();
                running == sessions
            },
        )
        .await
        .unwrap();
    }

    pub async fn close(self) {
        self.connection.close().await.unwrap();
    }
}

pub async fn backend(db: &TenantDb) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(db)
        .await
        .unwrap()
}

pub async fn notes(db: &TenantDb) -> i64 {
    sqlx::query_scalar("select count(*) from note")
        .fetch_one(db)
        .await
        .unwrap()
}

/// How long something took.
pub async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    (work.await, began.elapsed())
}

pub fn through(mut server: Server, pooler: Pooler, endpoint: biplane::tenant::Endpoint) -> Server {
    server.endpoints = vec![endpoint];
    server.pooler = pooler;
    server
}

/// Lets a future run for so many turns of the runtime, which gives it up where the network is in the way.
pub async fn give_up_in_turn<T>(turns: usize, future: impl Future<Output = T>) -> Option<T> {
    let patience = async {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        done = future => Some(done),
        () = patience => None,
    }
}

/// Polls a future that many times and then drops it. `None` if it had not finished.
pub async fn give_up_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
