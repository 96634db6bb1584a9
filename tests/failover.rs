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
    connector::postgres::PgServers,
    error::{Error, ErrorKind},
    plane::{DataSchema, RoleName, TenantDb},
    pool::BreakerOptions,
    repository::DataServers,
    tenant::{DataSource, DataSourceId, DatabaseId, Endpoint, Location, Role, Server, Tls, TlsMode},
    testing::{postgres::Cluster, wait},
};
use data_plane::{LIMIT, Placed, Wish, World, options};

const SOON: Duration = Duration::from_millis(200);

/// At these endpoints, in this order.
fn at(database: &str, endpoints: [Endpoint; 2]) -> Server {
    let [first, second] = endpoints;
    let mut server = Server::new(first, database);
    server.endpoints.push(second);
    server.tls = Tls::new(TlsMode::Disable);
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
async fn who_writes_prefers_the_primary_wherever_it_stands_and_reads_at_a_standby_without_it() {
    let primary = Cluster::start().await.unwrap();
    let standby = standby_of(&primary).await;
    let world = World::new(&primary);
    primary.create_database("acme").await.unwrap();
    primary
        .sql("acme", "create table note (text text)")
        .await
        .unwrap();
    until_it_follows(&primary).await;
    let mut pool = options(4);
    pool.probe_after = SOON;
    for endpoints in [
        [standby.endpoint(), primary.endpoint()],
        [primary.endpoint(), standby.endpoint()],
    ] {
        let wish = Wish {
            server: Some(at("acme", endpoints.clone())),
            ..Wish::default()
        };
        let name = format!("acme-{}", endpoints[0].port);
        let placed = world.tenant_on(&name, "acme", wish).await;
        world
            .credentials
            .set(placed.source, Role::ReadOnly, primary.superuser());
        let biplane = biplane::Biplane::postgres(world.control.clone(), world.credentials.clone())
            .pool(pool.clone())
            .breakers(BreakerOptions::default().back_off(SOON, SOON))
            .build()
            .unwrap();
        let db = biplane.route(&placed.slug).await.unwrap();
        let write = "insert into note values ('written')";
        let held = [db.begin().await.unwrap(), db.begin().await.unwrap()];
        assert!(!is_standby(&db).await.unwrap());
        drop(held);
        sqlx::query(write).execute(&db).await.unwrap();
        let reader = db.with_role(Role::ReadOnly);
        assert_eq!(
            is_standby(&reader).await.unwrap(),
            endpoints[0] == standby.endpoint(),
            "whoever only reads takes the first"
        );

        primary.kill().await.unwrap();
        wait::until("reads go on", LIMIT, async || {
            is_standby(&db).await.is_ok_and(|standby| standby)
        })
        .await
        .unwrap();
        let error = sqlx::query(write).execute(&db).await.unwrap_err();
        assert_eq!(Error::from(error).kind(), ErrorKind::ReadOnly);
        wait::until("whoever only reads is served on", LIMIT, async || {
            is_standby(&reader).await.is_ok_and(|standby| standby)
        })
        .await
        .unwrap();

        primary.start_again().await.unwrap();
        wait::until("writes go on", LIMIT, async || {
            sqlx::query(write).execute(&db).await.is_ok()
        })
        .await
        .unwrap();
    }
}

/// A standby knows of no session at the primary.
#[tokio::test]
async fn whoever_asks_for_sessions_asks_where_services_are() {
    let primary = Cluster::start().await.unwrap();
    let standby = standby_of(&primary).await;
    let login = primary.superuser();
    let _held = primary.connect("postgres").await.unwrap();
    let server = at("postgres", [standby.endpoint(), primary.endpoint()]);
    let source = DataSource::new(DataSourceId::new(), "acme", Location::Server(server));
    let servers = PgServers::new();
    let sessions = servers
        .sessions(&source, Role::App, &login, login.username())
        .await;
    assert!(sessions.unwrap() >= 1, "the one that is held");
    let mut primaries = PgServers::new().patience(Duration::MAX);
    primaries.log_in(&source, Role::App, &login).await.unwrap();
    primaries = primaries.patience(Duration::from_secs(20));
    primary.kill().await.unwrap();
    primaries.log_in(&source, Role::App, &login).await.unwrap();
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
    wait::until("commits wait for the standby", LIMIT, async || {
        let in_step = "select count(*) from pg_stat_replication where sync_state = 'sync'";
        let in_step: i64 = sqlx::query_scalar(in_step).fetch_one(&mut owner).await.unwrap();
        in_step == 1
    })
    .await
    .unwrap();
    (world, placed)
}

/// What was told to be committed is there, and nobody has to restart anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_goes_on_at_the_standby_that_is_promoted_and_nothing_is_lost() {
    let primary = Cluster::start().await.unwrap();
    let standby = standby_of(&primary).await;
    let (world, placed) = fenced(&primary, &standby).await;
    let biplane = biplane::Biplane::postgres(world.control.clone(), world.credentials.clone())
        .pool(options(4))
        .breakers(BreakerOptions::default().back_off(SOON, SOON))
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
