//! A primary that is lost, its standby that is promoted, and a service between them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod data_plane;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use biplane::{
    error::{Error, ErrorKind},
    plane::{DataSchema, RoleName, TenantDb},
    pool::BreakerOptions,
    tenant::{DatabaseId, Endpoint, Role, Server},
    testing::{postgres::Cluster, wait},
};
use data_plane::{LIMIT, Placed, Wish, World, options};

const UNAVAILABLE: ErrorKind = ErrorKind::DatabaseUnavailable { retry_after: None };

fn kind(error: &sqlx::Error) -> ErrorKind {
    Error::of(error).unwrap().kind()
}

/// At these endpoints, in this order.
fn at(database: &str, endpoints: [Endpoint; 2]) -> Server {
    let [first, second] = endpoints;
    let mut server = Server::new(first, database);
    server.endpoints.push(second);
    server.tls = biplane::tenant::Tls::new(biplane::tenant::TlsMode::Disable);
    server
}

async fn standby_of(primary: &Cluster) -> Cluster {
    let standby = Cluster::builder().setting("cluster_name", "standby");
    standby.standby_of(primary).start().await.unwrap()
}

/// Whether it was answered by a standby.
async fn is_standby(db: &TenantDb) -> sqlx::Result<bool> {
    sqlx::query_scalar("select pg_is_in_recovery()")
        .fetch_one(db)
        .await
}

async fn until_it_follows(primary: &Cluster) {
    let mut owner = primary.connect("postgres").await.unwrap();
    wait::until("the standby has everything", LIMIT, async || {
        sqlx::query_scalar(
            "select coalesce(bool_and(replay_lsn = pg_current_wal_lsn()), false) from pg_stat_replication",
        )
        .fetch_one(&mut owner)
        .await
        .unwrap()
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn who_writes_passes_standbys_over_and_who_reads_does_not() {
    let primary = Cluster::start().await.unwrap();
    let standby = standby_of(&primary).await;
    let world = World::new(&primary);
    primary.create_database("acme").await.unwrap();
    primary
        .sql("acme", "create table note (text text)")
        .await
        .unwrap();
    until_it_follows(&primary).await;
    let standby_first = at("acme", [standby.endpoint(), primary.endpoint()]);
    let wish = Wish {
        server: Some(standby_first),
        ..Wish::default()
    };
    let placed = world.tenant_on("acme", "acme", wish).await;
    world
        .credentials
        .set(placed.source, Role::ReadOnly, primary.superuser());
    let biplane = world.biplane(options(4));
    let db = biplane.route(&placed.slug).await.unwrap();
    for _ in 0..3 {
        let held = [db.begin().await.unwrap(), db.begin().await.unwrap()];
        assert!(!is_standby(&db).await.unwrap());
        drop(held);
    }
    sqlx::query("insert into note values ('written')")
        .execute(&db)
        .await
        .unwrap();
    assert!(is_standby(&db.with_role(Role::ReadOnly)).await.unwrap());

    // With nothing but a standby there is nowhere to write, and the error says why.
    primary.kill().await.unwrap();
    // Connections at rest find that out first.
    wait::until("nobody writes", LIMIT, async || {
        let error = is_standby(&db).await.unwrap_err();
        let ours = Error::of(&error).map(Error::kind);
        matches!(ours, Some(ErrorKind::DatabaseUnavailable { .. }))
    })
    .await
    .unwrap();
    let reader = db.with_role(Role::ReadOnly);
    assert!(is_standby(&reader).await.unwrap(), "whoever reads is served on");
}

#[tokio::test]
async fn with_nothing_but_a_standby_the_error_says_so() {
    let primary = Cluster::start().await.unwrap();
    let standby = standby_of(&primary).await;
    let world = World::new(&standby);
    let wish = Wish {
        server: Some(standby.server("postgres")),
        ..Wish::default()
    };
    let placed = world.tenant_on("acme", "postgres", wish).await;
    let db = world.biplane(options(1)).route(&placed.slug).await.unwrap();
    let error = is_standby(&db).await.unwrap_err();
    assert_eq!(kind(&error), UNAVAILABLE);
    assert!(error.to_string().contains("standby"), "{error}");
}

/// A primary that commits nothing which its standby does not have, with a fenced tenant on both.
async fn fenced<'a>(primary: &'a Cluster, standby: &Cluster) -> (World<'a>, Placed) {
    let world = World::new(primary);
    let id = DatabaseId::new();
    primary.create_database("acme").await.unwrap();
    let table = "create table note (number bigint primary key, at timestamptz default clock_timestamp())";
    primary.sql("acme", table).await.unwrap();
    let mut owner = primary.connect("acme").await.unwrap();
    let login = RoleName::parse(primary.superuser().username()).unwrap();
    DataSchema::install(&mut owner, id, &[login]).await.unwrap();
    let wish = Wish {
        server: Some(at("acme", [primary.endpoint(), standby.endpoint()])),
        database_id: Some(id),
        ..Wish::default()
    };
    let placed = world.tenant_on("acme", "acme", wish).await;
    world.settle(&placed, id).await;
    let follows = "update biplane.database set follows_failover = true; select biplane.keep_stamp()";
    primary.sql("acme", follows).await.unwrap();
    for sql in [
        "alter system set synchronous_standby_names = 'standby'",
        "select pg_reload_conf()",
    ] {
        primary.sql("postgres", sql).await.unwrap();
    }
    until_it_follows(primary).await;
    (world, placed)
}

/// What was told to be committed is there, and nobody has to restart anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_goes_on_at_the_standby_that_is_promoted_and_nothing_is_lost() {
    let primary = Cluster::start().await.unwrap();
    let standby = standby_of(&primary).await;
    let (world, placed) = fenced(&primary, &standby).await;
    let quickly = Duration::from_millis(200);
    let biplane = biplane::Biplane::postgres(world.control.clone(), world.credentials.clone())
        .pool(options(4))
        .breakers(BreakerOptions::default().back_off(quickly, quickly))
        .build()
        .unwrap();
    let db = biplane.route(&placed.slug).await.unwrap();
    let (over, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = tokio::spawn({
        let (db, over, written) = (db.clone(), Arc::clone(&over), Arc::clone(&written));
        async move {
            let mut kept = Vec::new();
            for number in 0_i64.. {
                if over.load(SeqCst) {
                    break;
                }
                let insert = sqlx::query("insert into note (number) values ($1)").bind(number);
                let done = match number % 2 {
                    0 => insert.execute(&db).await.map(drop),
                    _ => match db.begin().await {
                        Ok(mut tx) => match insert.execute(&mut tx).await {
                            Ok(_) => tx.commit().await,
                            Err(error) => Err(error),
                        },
                        Err(error) => Err(error),
                    },
                };
                if done.is_ok() {
                    kept.push(number);
                    written.store(kept.len() as u64, SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            kept
        }
    });
    let more = async |what: &'static str| {
        let before = written.load(SeqCst);
        let enough = async || written.load(SeqCst) >= before + 20;
        wait::until(what, LIMIT, enough).await.unwrap();
    };
    more("it writes").await;
    primary.kill().await.unwrap();
    standby.promote().await.unwrap();
    let alone = "alter system reset synchronous_standby_names";
    standby.sql("postgres", alone).await.unwrap();
    standby.sql("postgres", "select pg_reload_conf()").await.unwrap();
    more("it writes on").await;
    over.store(true, SeqCst);
    let kept = writer.await.unwrap();
    let mut owner = standby.connect("acme").await.unwrap();
    let there: Vec<i64> = sqlx::query_scalar("select number from note")
        .fetch_all(&mut owner)
        .await
        .unwrap();
    let lost: Vec<_> = kept.iter().filter(|number| !there.contains(number)).collect();
    assert!(lost.is_empty(), "told to be committed, and not there: {lost:?}");
}
