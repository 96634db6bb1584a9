//! What a handle costs beside a connection that is held throughout, and beside sqlx's own pool, on a server of its own.

use biplane::{
    Biplane,
    plane::{DataSchema, RoleName, TenantDb},
    repository::{Actor, MemoryControl, MemoryCredentials, NewSource, NewTenant, TenantAdmin},
    secret::Credential,
    tenant::{DatabaseId, Location, Role, Slug, TenantStatus},
    testing::postgres::Cluster,
};
use secrecy::ExposeSecret;
use sqlx::{
    ConnectOptions, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};
use tokio::runtime::Runtime;

use crate::measure::{Claim, Goal, on_one_thread, ratio};

pub(crate) const CLAIMS: &[fn() -> Claim] = &[
    checkout_against_held,
    pool_against_checkout,
    transaction_against_pool,
];

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Round trips in a round: some milliseconds.
pub(crate) const TRIPS: usize = 50;

const SELECT: &str = "select 1";
const UPDATE: &str = "update counter set n = n + 1";

fn checkout_against_held() -> Claim {
    Claim::new("checkout/held", Goal::RatioAtMost(1.10), || {
        let bench = Bench::start();
        let mut held = bench.run(bench.peer.connect()).expect("the server is there");
        ratio(
            || {
                bench.time(async || {
                    sqlx::query(SELECT).execute(&bench.db).await?;
                    Ok(())
                })
            },
            || {
                bench.time(async || {
                    sqlx::query(SELECT).execute(&mut held).await?;
                    Ok(())
                })
            },
        )
    })
}

/// With its defaults, under which it asks the server before each checkout.
fn pool_against_checkout() -> Claim {
    Claim::new("pgpool/checkout", Goal::RatioAtLeast(1.5), || {
        let bench = Bench::start();
        let pool = bench.pool();
        ratio(
            || {
                bench.time(async || {
                    sqlx::query(SELECT).execute(&pool).await?;
                    Ok(())
                })
            },
            || {
                bench.time(async || {
                    sqlx::query(SELECT).execute(&bench.db).await?;
                    Ok(())
                })
            },
        )
    })
}

/// A transaction that enters, which has more to do in the round trip of its BEGIN, against one that asks nobody.
fn transaction_against_pool() -> Claim {
    Claim::new(
        "update_in_fenced_transaction/pgpool",
        Goal::RatioAtMost(0.85),
        || {
            let bench = Bench::start_fenced();
            let pool = bench.pool();
            ratio(
                || {
                    bench.time(async || {
                        let mut tx = bench.db.begin().await?;
                        sqlx::query(UPDATE).execute(&mut tx).await?;
                        tx.commit().await
                    })
                },
                || {
                    bench.time(async || {
                        let mut tx = pool.begin().await?;
                        sqlx::query(UPDATE).execute(&mut *tx).await?;
                        tx.commit().await
                    })
                },
            )
        },
    )
}

/// One thread, as far as the client goes: whatever is compared is done by the same one, and on the same processor as the
/// server. Whether an answer wakes somebody on another processor is up to the system and differs between connections, by
/// more than everything that is compared here.
struct Bench {
    runtime: Runtime,
    db: TenantDb,
    peer: PgConnectOptions,
    _cluster: Cluster,
    _pinned: Pinned,
}

impl Bench {
    fn start() -> Self {
        Self::start_on(async || Ok((Cluster::start().await?, None)))
    }

    fn start_fenced() -> Self {
        Self::start_on(async || {
            let (cluster, id) = (Cluster::start().await?, DatabaseId::new());
            let mut owner = cluster.connect("postgres").await?;
            let login = RoleName::parse(cluster.superuser().username())?;
            DataSchema::install(&mut owner, id, &[login]).await?;
            Ok((cluster, Some(id)))
        })
    }

    fn start_on(server: impl AsyncFnOnce() -> Result<(Cluster, Option<DatabaseId>)>) -> Self {
        let runtime = on_one_thread();
        // The server inherits it.
        let pinned = Pinned::new();
        let (cluster, db) = runtime
            .block_on(async {
                let (cluster, fence) = server().await?;
                let db = handle(&cluster, fence).await?;
                Ok::<_, Box<dyn std::error::Error>>((cluster, db))
            })
            .expect("a server starts");
        let peer = address(&cluster, &cluster.superuser());
        Self {
            runtime,
            db,
            peer,
            _cluster: cluster,
            _pinned: pinned,
        }
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    fn pool(&self) -> PgPool {
        let options = PgPoolOptions::new().max_connections(10);
        self.run(options.connect_with(self.peer.clone()))
            .expect("the server is there")
    }

    fn time(&self, mut trip: impl AsyncFnMut() -> sqlx::Result<()>) -> std::time::Duration {
        self.run(async {
            let begun = std::time::Instant::now();
            for _ in 0..TRIPS {
                trip().await.expect("the server is there");
            }
            begun.elapsed()
        })
    }
}

/// Where a handle connects as well: over TCP, and not by the server's socket.
pub(crate) fn address(cluster: &Cluster, login: &Credential) -> PgConnectOptions {
    let endpoint = cluster.endpoint();
    PgConnectOptions::new_without_pgpass()
        .host(&endpoint.host)
        .port(endpoint.port)
        .username(login.username())
        .password(login.password().map_or("", |password| password.expose_secret()))
        .database("postgres")
        .ssl_mode(PgSslMode::Disable)
        .disable_statement_logging()
}

/// Keeps this thread, and what it starts, on one processor, on systems that can.
pub(crate) struct Pinned {
    #[cfg(target_os = "linux")]
    before: rustix::thread::CpuSet,
}

#[cfg(target_os = "linux")]
impl Pinned {
    pub(crate) fn new() -> Self {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

        let before = sched_getaffinity(None).expect("Linux tells");
        let mut one = CpuSet::new();
        one.set(sched_getcpu());
        sched_setaffinity(None, &one).expect("this thread runs there");
        Self { before }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Pinned {
    fn drop(&mut self) {
        rustix::thread::sched_setaffinity(None, &self.before).expect("it could run there before");
    }
}

#[cfg(not(target_os = "linux"))]
impl Pinned {
    pub(crate) fn new() -> Self {
        Self {}
    }
}

async fn handle(cluster: &Cluster, fence: Option<DatabaseId>) -> Result<TenantDb> {
    let table = "create table counter (n bigint); insert into counter values (0)";
    cluster.sql("postgres", table).await?;
    let control = MemoryControl::new();
    let credentials = MemoryCredentials::new();
    let by = Actor::new("bench", "measuring");
    let mut new = NewSource::new("acme", Location::Server(cluster.server("postgres")));
    new.database_id = fence;
    let source = control.create_source(&by, new).await?;
    credentials.set(source.id, Role::App, cluster.superuser());
    let new = NewTenant::new(Slug::parse("acme")?, source.id);
    let tenant = control.create(&by, new).await?;
    if let Some(database) = fence {
        let residence = format!(
            "insert into biplane.residence (tenant_id, epoch, state, isolation, database_id)
             values ('{}', {}, 'open', 'database', '{database}')",
            tenant.id, tenant.placement.epoch
        );
        cluster.sql("postgres", &residence).await?;
    }
    control
        .set_status(&by, tenant.id, tenant.version, TenantStatus::Active)
        .await?;
    let biplane = Biplane::postgres(control, credentials).build()?;
    Ok(biplane.route(tenant.id).await?)
}
