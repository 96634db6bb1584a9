//! What the pool costs beside a connection that is held throughout, and beside sqlx's own pool.
//!
//! `cargo bench --bench checkout --features testing` starts a server of its own and prints a line for each claim:
//!
//! ```text
//! ratio <ours>/<peer> <measured> <=<goal>
//! ```
//!
//! The exit code is 1 when a claim misses its goal. A line without a goal is for information.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use biplane::{
    Biplane,
    plane::TenantDb,
    repository::{Actor, MemoryControl, MemoryCredentials, NewSource, NewTenant, TenantAdmin},
    secret::Credential,
    tenant::{Location, Role, Slug, TenantStatus},
    testing::postgres::Cluster,
};
use secrecy::ExposeSecret;
use sqlx::{
    ConnectOptions, Connection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};

type Failure = Box<dyn std::error::Error>;

/// Pieces of work in a round, and rounds. The median of as many is steady to a hundredth on a busy machine.
const WORK: u32 = 100;
const ROUNDS: usize = 201;

fn main() -> Result<ExitCode, Failure> {
    // As a service runs: one of two threads has the network, the other the server has for itself.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let met = runtime.block_on(measure())?;
    Ok(ExitCode::from(u8::from(!met)))
}

async fn measure() -> Result<bool, Failure> {
    let cluster = Cluster::start().await?;
    cluster
        .sql(
            "postgres",
            "create table counter (n bigint); insert into counter values (0)",
        )
        .await?;
    let superuser = cluster.superuser();
    let control = MemoryControl::new();
    let credentials = MemoryCredentials::new();
    let db = handle(&cluster, &superuser, &control, &credentials).await?;
    let options = peer_options(&cluster, &superuser);
    let mut held = options.clone().connect().await?;
    let pool: PgPool = PgPoolOptions::new()
        .max_connections(10)
        .connect_with(options)
        .await?;

    let mut met = true;
    let ratio = ratio(
        async || sqlx::query("select 1").execute(&db).await.map(drop),
        async || sqlx::query("select 1").execute(&mut held).await.map(drop),
    )
    .await?;
    met &= print("checkout/held", ratio, Some(1.10));
    let ratio = self::ratio(
        async || sqlx::query("select 1").execute(&db).await.map(drop),
        async || sqlx::query("select 1").execute(&pool).await.map(drop),
    )
    .await?;
    print("checkout/pgpool", ratio, None);
    let update = "update counter set n = n + 1";
    let ratio = self::ratio(
        async || {
            let mut tx = db.begin().await?;
            sqlx::query(update).execute(&mut tx).await?;
            tx.commit().await
        },
        async || {
            let mut tx = pool.begin().await?;
            sqlx::query(update).execute(&mut *tx).await?;
            tx.commit().await
        },
    )
    .await?;
    print("update_in_transaction/pgpool", ratio, None);
    held.close().await?;
    Ok(met)
}

async fn handle(
    cluster: &Cluster,
    superuser: &Credential,
    control: &MemoryControl,
    credentials: &MemoryCredentials,
) -> Result<TenantDb, Failure> {
    let by = Actor::new("bench", "measuring");
    let new = NewSource::new("acme", Location::Server(cluster.server("postgres")));
    let source = control.create_source(&by, new).await?;
    credentials.set(source.id, Role::App, superuser.clone());
    let tenant = control
        .create(&by, NewTenant::new(Slug::parse("acme")?, source.id))
        .await?;
    control
        .set_status(&by, tenant.id, tenant.version, TenantStatus::Active)
        .await?;
    let biplane = Biplane::postgres(control.clone(), credentials.clone()).build()?;
    Ok(biplane.route(tenant.id).await?)
}

fn peer_options(cluster: &Cluster, superuser: &Credential) -> PgConnectOptions {
    let endpoint = cluster.endpoint();
    PgConnectOptions::new_without_pgpass()
        .host(&endpoint.host)
        .port(endpoint.port)
        .username(superuser.username())
        .password(
            superuser
                .password()
                .map_or("", |password| password.expose_secret()),
        )
        .database("postgres")
        .ssl_mode(PgSslMode::Disable)
        .disable_statement_logging()
}

/// How many times as long `ours` takes as `theirs`: the median over rounds in which they take turns, so that whatever
/// slows the machine down for longer than a round slows both.
async fn ratio(
    mut ours: impl AsyncFnMut() -> sqlx::Result<()>,
    mut theirs: impl AsyncFnMut() -> sqlx::Result<()>,
) -> Result<f64, Failure> {
    let mut ratios = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS + 10 {
        let (one, other) = if round % 2 == 0 {
            let one = time(&mut ours).await?;
            (one, time(&mut theirs).await?)
        } else {
            let other = time(&mut theirs).await?;
            (time(&mut ours).await?, other)
        };
        // The first rounds fill caches.
        if round >= 10 {
            ratios.push(one.as_secs_f64() / other.as_secs_f64());
        }
    }
    ratios.sort_by(f64::total_cmp);
    Ok(ratios[ROUNDS / 2])
}

async fn time(work: &mut impl AsyncFnMut() -> sqlx::Result<()>) -> sqlx::Result<Duration> {
    let begun = Instant::now();
    for _ in 0..WORK {
        work().await?;
    }
    Ok(begun.elapsed())
}

#[expect(clippy::print_stdout, reason = "the lines are what this program is for")]
fn print(name: &str, measured: f64, goal: Option<f64>) -> bool {
    match goal {
        Some(goal) => {
            println!("ratio {name} {measured:.2} <={goal:.2}");
            measured <= goal
        }
        None => {
            println!("ratio {name} {measured:.2}");
            true
        }
    }
}
