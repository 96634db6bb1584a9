//! Behind each PgBouncer in transaction mode, as declared, and in session mode.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod data_plane;
mod poolers;

use std::time::Duration;

use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    plane::{DataSchema, IsolationLevel, RoleName, TenantDb, TxOptions},
    tenant::{DatabaseId, TenantStatus},
    testing::postgres::{Cluster, PgBouncer},
};
use data_plane::{Placed, Wish, World, backend, notes, options, shared, through};
use futures_util::TryStreamExt;
use poolers::{Profile, behind_each_pgbouncer, behind_each_pgbouncer_in_session_mode};
use sqlx::{Executor, Row, SqlSafeStr, Statement};

struct Behind<'a> {
    world: World<'a>,
    bouncer: PgBouncer,
}

/// A PgBouncer with so few sessions of its own that clients have to share them.
async fn behind(profile: Profile, sessions: u32) -> Behind<'static> {
    let cluster: &'static Cluster = shared().await;
    Behind {
        world: World::new(cluster),
        bouncer: profile.start(cluster, sessions).await,
    }
}

impl Behind<'_> {
    async fn tenant(&self, database_id: Option<DatabaseId>) -> Placed {
        let Self { world, bouncer } = self;
        // The database first, without a tenant on it.
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let name = format!("b{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let database = format!("{name}_{}", std::process::id());
        world.cluster.create_database(&database).await.unwrap();
        let table =
            "create table note (id bigint generated always as identity primary key, text text not null)";
        world.cluster.sql(&database, table).await.unwrap();
        if let Some(id) = database_id {
            let mut owner = world.cluster.connect(&database).await.unwrap();
            let login = RoleName::parse(world.cluster.superuser().username()).unwrap();
            DataSchema::install(&mut owner, id, &[login]).await.unwrap();
        }
        let wish = Wish {
            server: Some(through(
                world.cluster.server(&database),
                bouncer.pooler(),
                bouncer.endpoint(),
            )),
            database_id,
            ..Wish::default()
        };
        let placed = world.tenant_on(&name, &database, wish).await;
        if let Some(id) = database_id {
            world.settle(&placed, id).await;
        }
        placed
    }

    async fn one(&self) -> (Biplane, Placed, TenantDb) {
        let placed = self.tenant(None).await;
        let biplane = self.world.biplane(options(8));
        let db = biplane.route(&placed.slug).await.unwrap();
        (biplane, placed, db)
    }
}

fn kind(error: &sqlx::Error) -> Option<ErrorKind> {
    Error::of(error).map(Error::kind)
}

behind_each_pgbouncer!(
    many_clients_of_few_sessions_get_their_own_answers,
    a_statement_sees_the_schemas_that_the_settings_name,
    transactions_are_whole_or_nothing,
    a_transaction_that_is_dropped_costs_no_connection,
    a_held_connection_is_refused,
    a_read_only_tenant_is_not_written_to,
    statements_are_prepared_and_described_by_many,
    types_of_ones_own_are_read_and_written,
    a_statement_that_is_given_up_takes_no_other_with_it,
    the_identity_of_a_database_is_asked_for_through_it,
    a_pooler_that_dies_is_unavailable_and_comes_back,
);

behind_each_pgbouncer_in_session_mode!(in_session_mode_a_connection_can_be_held_and_is_cleaned);

async fn many_clients_of_few_sessions_get_their_own_answers(profile: Profile) {
    let behind = behind(profile, 2).await;
    let tenants = [behind.tenant(None).await, behind.tenant(None).await];
    let biplane = behind.world.biplane(options(12));
    let crowd: Vec<_> = (0..12_i32)
        .map(|number| {
            let biplane = biplane.clone();
            let placed = tenants[usize::try_from(number % 2).unwrap()].clone();
            tokio::spawn(async move {
                let db = biplane.route(&placed.slug).await.unwrap();
                for round in 0..30_i32 {
                    let asked = number * 1_000 + round;
                    let sql = "select $1::int4, current_database()::text";
                    let answer: (i32, String) = match round % 3 {
                        0 => sqlx::query_as(sql).bind(asked).fetch_one(&db).await.unwrap(),
                        1 => {
                            let mut tx = db.begin().await.unwrap();
                            let row = sqlx::query_as(sql).bind(asked).fetch_one(&mut tx).await.unwrap();
                            if round % 2 == 0 {
                                tx.commit().await.unwrap();
                            }
                            row
                        }
                        _ => {
                            let rows: Vec<_> = sqlx::query_as(sql)
                                .bind(asked)
                                .fetch(&db)
                                .try_collect()
                                .await
                                .unwrap();
                            rows.into_iter().next().unwrap()
                        }
                    };
                    assert_eq!(answer, (asked, placed.database.clone()));
                }
            })
        })
        .collect();
    for client in crowd {
        client.await.unwrap();
    }
}

async fn a_statement_sees_the_schemas_that_the_settings_name(profile: Profile) {
    let behind = behind(profile, 1).await;
    let (_biplane, placed, db) = behind.one().await;
    let hide = "create schema postgres; create table postgres.note (wrong int)";
    behind.world.cluster.sql(&placed.database, hide).await.unwrap();
    let path: String = sqlx::query_scalar("select current_setting('search_path')")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(path, "public, pg_temp");
    sqlx::query("insert into note (text) values ($1)")
        .bind("a")
        .execute(&db)
        .await
        .unwrap();
    assert_eq!(notes(&db).await, 1);
}

async fn transactions_are_whole_or_nothing(profile: Profile) {
    let behind = behind(profile, 1).await;
    let (_biplane, _, db) = behind.one().await;
    let serializable = TxOptions::new().isolation(IsolationLevel::Serializable);
    let mut tx = db.begin_with(serializable).await.unwrap();
    tx.execute("insert into note (text) values ('kept')")
        .await
        .unwrap();
    let level: String = sqlx::query_scalar("select current_setting('transaction_isolation')")
        .fetch_one(&mut tx)
        .await
        .unwrap();
    assert_eq!(level, "serializable");
    tx.commit().await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.execute("insert into note (text) values ('lost')")
        .await
        .unwrap();
    drop(tx);
    assert_eq!(notes(&db).await, 1);
    let mut tx = db.begin().await.unwrap();
    tx.execute("select 1 / 0").await.unwrap_err();
    assert_eq!(
        kind(&tx.commit().await.unwrap_err()),
        Some(ErrorKind::TransactionAborted)
    );
    sqlx::query("select 1 / 0").execute(&db).await.unwrap_err();
    assert_eq!(notes(&db).await, 1);
}

/// It would cost PgBouncer a session of its own each time.
async fn a_transaction_that_is_dropped_costs_no_connection(profile: Profile) {
    let behind = behind(profile, 1).await;
    let (biplane, _, db) = behind.one().await;
    let session = backend(&db).await;
    for _ in 0..5 {
        let mut tx = db.begin().await.unwrap();
        tx.execute("insert into note (text) values ('lost')")
            .await
            .unwrap();
        drop(tx);
        assert_eq!(backend(&db).await, session);
    }
    assert!(biplane.stats().connector.connections <= 2);
}

async fn a_held_connection_is_refused(profile: Profile) {
    let behind = behind(profile, 1).await;
    let (_biplane, _, db) = behind.one().await;
    assert_eq!(
        kind(&db.acquire().await.unwrap_err()),
        Some(ErrorKind::InvalidConfiguration)
    );
    assert_eq!(notes(&db).await, 0);
}

async fn a_read_only_tenant_is_not_written_to(profile: Profile) {
    let behind = behind(profile, 1).await;
    let (biplane, placed, db) = behind.one().await;
    behind.world.status(placed.id, TenantStatus::ReadOnly).await;
    biplane.invalidate(placed.id).await;
    let write = "insert into note (text) values ('no')";
    assert_eq!(
        kind(&db.execute(write).await.unwrap_err()),
        Some(ErrorKind::ReadOnly)
    );
    let mut tx = db.begin().await.unwrap();
    assert_eq!(
        kind(&tx.execute(write).await.unwrap_err()),
        Some(ErrorKind::ReadOnly)
    );
    drop(tx);
    assert_eq!(notes(&db).await, 0);
}

/// Names would collide, because the clients count alike.
async fn statements_are_prepared_and_described_by_many(profile: Profile) {
    let behind = behind(profile, 1).await;
    let (_biplane, placed, db) = behind.one().await;
    let crowd: Vec<_> = (0..6_i64)
        .map(|number| {
            let db = db.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    let prepared = (&db).prepare("select $1::int8 + 1".into_sql_str()).await.unwrap();
                    let answer: i64 = prepared.query_scalar().bind(number).fetch_one(&db).await.unwrap();
                    assert_eq!(answer, number + 1);
                    let described = (&db)
                        .describe("select id, text from note".into_sql_str())
                        .await
                        .unwrap();
                    assert_eq!(described.columns.len(), 2);
                }
                let mut tx = db.begin().await.unwrap();
                let prepared = tx.prepare("select $1::int8 + 2".into_sql_str()).await.unwrap();
                let answer: i64 = prepared
                    .query_scalar()
                    .bind(number)
                    .fetch_one(&mut tx)
                    .await
                    .unwrap();
                assert_eq!(answer, number + 2);
                tx.commit().await.unwrap();
            })
        })
        .collect();
    for client in crowd {
        client.await.unwrap();
    }
    // As text, so that asking prepares nothing.
    let left = sqlx::raw_sql("select count(*) from pg_prepared_statements");
    let left: i64 = left.fetch_one(&db).await.unwrap().try_get(0).unwrap();
    let kept = 0..=i64::from(profile.prepared);
    assert!(kept.contains(&left), "{left} in {}", placed.database);
    assert_eq!(left > 0, profile.prepared > 0, "they are kept where they may be");
}

/// sqlx asks about a type that it does not know while the statement is under way.
async fn types_of_ones_own_are_read_and_written(profile: Profile) {
    let behind = behind(profile, 2).await;
    let (_biplane, placed, db) = behind.one().await;
    let types = "create type mood as enum ('good', 'bad'); create domain name_of as text;
        create type pair as (a int, b text); create table typed (mood mood, name name_of, pair pair)";
    behind.world.cluster.sql(&placed.database, types).await.unwrap();
    for round in 1..=4_i64 {
        sqlx::query("insert into typed values ('good', $1, row (1, 'b'::text)::pair)")
            .bind("name")
            .execute(&db)
            .await
            .unwrap();
        let mut tx = db.begin().await.unwrap();
        for _ in 0..2 {
            let rows = sqlx::query("select * from typed where $1")
                .bind(true)
                .fetch_all(&mut tx)
                .await
                .unwrap();
            assert_eq!(i64::try_from(rows.len()).unwrap(), round);
            let sorted: Vec<String> =
                sqlx::query_scalar("select mood::text from typed where mood = $1::text::mood")
                    .bind("good")
                    .fetch_all(&mut tx)
                    .await
                    .unwrap();
            assert_eq!(i64::try_from(sorted.len()).unwrap(), round);
        }
        tx.commit().await.unwrap();
        let row = sqlx::query("select mood, pair from typed where $1 limit 1")
            .bind(true)
            .fetch_one(&db)
            .await
            .unwrap();
        assert_eq!(row.len(), 2);
    }
}

async fn a_statement_that_is_given_up_takes_no_other_with_it(profile: Profile) {
    let behind = behind(profile, 3).await;
    let (_biplane, _, db) = behind.one().await;
    let working: Vec<_> = (0..3_i32)
        .map(|number| {
            let db = db.clone();
            tokio::spawn(async move {
                for round in 0..20_i32 {
                    let asked = number * 100 + round;
                    let sql = "select $1::int4 from pg_sleep(0.02)";
                    let answer: i32 = sqlx::query_scalar(sql).bind(asked).fetch_one(&db).await.unwrap();
                    assert_eq!(answer, asked);
                }
            })
        })
        .collect();
    for round in 0..12_u64 {
        let sleeping = sqlx::query("select pg_sleep(0.3)").execute(&db);
        assert!(
            tokio::time::timeout(Duration::from_millis(5 + round), sleeping)
                .await
                .is_err()
        );
    }
    for worker in working {
        worker.await.unwrap();
    }
}

async fn the_identity_of_a_database_is_asked_for_through_it(profile: Profile) {
    let behind = behind(profile, 1).await;
    let right = behind.tenant(Some(DatabaseId::new())).await;
    let wrong = behind.tenant(Some(DatabaseId::new())).await;
    let mut owner = behind.world.cluster.connect(&wrong.database).await.unwrap();
    DataSchema::stamp(&mut owner, DatabaseId::new()).await.unwrap();
    let biplane = behind.world.biplane(options(4));
    backend(&biplane.route(&right.slug).await.unwrap()).await;
    let wrong = biplane.route(&wrong.slug).await.unwrap();
    assert_eq!(
        kind(&wrong.begin().await.unwrap_err()),
        Some(ErrorKind::WrongDatabase)
    );
}

async fn a_pooler_that_dies_is_unavailable_and_comes_back(profile: Profile) {
    let behind = behind(profile, 2).await;
    let (_biplane, _, db) = behind.one().await;
    backend(&db).await;
    behind.bouncer.kill().await.unwrap();
    let unavailable = ErrorKind::DatabaseUnavailable { retry_after: None };
    assert_eq!(kind(&db.begin().await.unwrap_err()), Some(unavailable));
    behind.bouncer.start_again().await.unwrap();
    // Every statement is wrapped, so that a connection found dead is replaced unseen.
    backend(&db).await;
}

async fn in_session_mode_a_connection_can_be_held_and_is_cleaned(profile: Profile) {
    let behind = behind(profile, 3).await;
    let placed = behind.tenant(None).await;
    let db = behind
        .world
        .biplane(options(1))
        .route(&placed.slug)
        .await
        .unwrap();
    let mut conn = db.acquire().await.unwrap();
    conn.execute("set work_mem = '9MB'").await.unwrap();
    drop(conn);
    let setting: String = sqlx::query_scalar("select current_setting('work_mem')")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(setting, "4MB");
    let session = backend(&db).await;
    let sleeping = tokio::spawn({
        let db = db.clone();
        async move { sqlx::query("select pg_sleep(600)").execute(&db).await }
    });
    let mut watch = behind.world.watch(&placed.database).await;
    watch.until_running("select pg_sleep", 1).await;
    sleeping.abort();
    assert_eq!(backend(&db).await, session);
}
