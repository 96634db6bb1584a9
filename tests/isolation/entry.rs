//! Entering: what the database is asked before anything of a tenant's runs, and what follows when it refuses.

use std::time::Duration;

use biplane::{
    error::{Error, ErrorKind},
    plane::{DataSchema, IsolationLevel, TenantDb, TenantExecutor, TxOptions},
    repository::TenantAdmin,
    tenant::{DatabaseId, Isolation, TenantStatus},
};
use futures_util::future::join_all;
use sqlx::Executor;

use crate::{
    data_plane::{LIMIT, backend, options},
    homes::{
        Home, MODES, Resident, add, code, count, handle, kind, one, raise_epoch, residence, unaware, world,
    },
};

/// A transaction and a statement by itself, both refused for this reason.
async fn refused(db: &TenantDb) -> ErrorKind {
    let by_begin = kind(&db.begin().await.unwrap_err());
    let by_statement = kind(&sqlx::query("select 1").execute(db).await.unwrap_err());
    assert_eq!(by_begin, by_statement);
    by_begin
}

#[tokio::test]
async fn a_route_that_went_stale_is_refreshed_once_and_the_caller_sees_nothing() {
    for isolation in MODES {
        let (world, home, resident, biplane, db) = one(isolation).await;
        add(&db, &resident, "before").await;
        for _ in 0..3 {
            raise_epoch(&world, &home, &resident).await;
            let loads = biplane.stats().loads;
            let mut tx = db.begin().await.unwrap();
            add(&mut tx, &resident, "in a transaction").await;
            tx.commit().await.unwrap();
            assert_eq!(biplane.stats().loads, loads + 1, "{isolation}");
            raise_epoch(&world, &home, &resident).await;
            // A session that has entered goes on until the mover ends it.
            world.watch(&home.database).await.kill_sessions().await;
            let tx = db.begin().await.unwrap();
            drop(tx);
            add(&db, &resident, "by itself").await;
        }
        assert_eq!(count(&db).await, 7, "{isolation}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_are_refused_at_once_share_a_few_loads() {
    let (world, home, resident, _biplane, _) = one(Isolation::Row).await;
    let biplane = unaware(&world, options(8));
    let db = handle(&biplane, &resident).await;
    assert_eq!(count(&db).await, 0);
    raise_epoch(&world, &home, &resident).await;
    let loads = biplane.stats().loads;
    let crowd = (0..40).map(|_| {
        let (db, resident) = (db.clone(), resident.clone());
        tokio::spawn(async move { add(&db, &resident, "all the same").await })
    });
    for one in join_all(crowd).await {
        one.unwrap();
    }
    assert_eq!(count(&db).await, 40);
    let loads = biplane.stats().loads - loads;
    assert!((1..=16).contains(&loads), "{loads} loads");
}

#[tokio::test]
async fn a_route_that_stays_stale_says_so() {
    for isolation in MODES {
        let (world, _home, resident, biplane, db) = one(isolation).await;
        residence(world.cluster, &resident, "epoch = epoch + 5").await;
        let loads = biplane.stats().loads;
        let told = tokio::time::timeout(LIMIT, refused(&db)).await;
        assert_eq!(told.expect("it is told"), ErrorKind::StaleRoute, "{isolation}");
        // Each of the two asked once, and once more in case that the first answer was under way before.
        assert_eq!(biplane.stats().loads, loads + 4, "{isolation}");
        residence(world.cluster, &resident, "epoch = epoch - 5").await;
        assert_eq!(count(&db).await, 0);
    }
}

#[tokio::test]
async fn a_tenant_that_does_not_live_there_is_refused() {
    for isolation in MODES {
        let (world, home, resident, _biplane, db) = one(isolation).await;
        let leave = format!(
            "delete from biplane.residence where tenant_id = '{}'",
            resident.id
        );
        world.cluster.sql(&home.database, &leave).await.unwrap();
        assert_eq!(refused(&db).await, ErrorKind::StaleRoute, "{isolation}");
    }
}

#[tokio::test]
async fn a_fenced_tenant_is_told_when_to_come_again() {
    for isolation in MODES {
        let (world, _home, resident, biplane, db) = one(isolation).await;
        residence(world.cluster, &resident, "state = 'fenced'").await;
        let loads = biplane.stats().loads;
        let retry_after = Some(Duration::from_secs(1));
        assert_eq!(
            refused(&db).await,
            ErrorKind::Fenced { retry_after },
            "{isolation}"
        );
        if isolation == Isolation::Database {
            let error = db.acquire().await.unwrap_err();
            assert_eq!(kind(&error), ErrorKind::Fenced { retry_after });
        }
        assert_eq!(biplane.stats().loads, loads, "there is nothing newer to know");
        residence(world.cluster, &resident, "state = 'open'").await;
        assert_eq!(count(&db).await, 0);
    }
}

#[tokio::test]
async fn another_database_than_the_one_that_is_meant_is_refused() {
    for isolation in MODES {
        let (world, home, resident, _biplane, db) = one(isolation).await;
        assert_eq!(count(&db).await, 0);
        // The tenant's place was written for another one.
        let other = DatabaseId::new();
        residence(world.cluster, &resident, &format!("database_id = '{other}'")).await;
        assert_eq!(
            kind(&db.begin().await.unwrap_err()),
            ErrorKind::WrongDatabase,
            "{isolation}"
        );
        residence(world.cluster, &resident, &format!("database_id = '{}'", home.id)).await;
        assert_eq!(count(&db).await, 0);
        // The database itself has become another, under connections that are open.
        let mut owner = world.cluster.connect(&home.database).await.unwrap();
        DataSchema::stamp(&mut owner, other).await.unwrap();
        assert_eq!(
            kind(&db.begin().await.unwrap_err()),
            ErrorKind::WrongDatabase,
            "{isolation}"
        );
        world.watch(&home.database).await.kill_sessions().await;
        assert_eq!(
            kind(&db.begin().await.unwrap_err()),
            ErrorKind::WrongDatabase,
            "{isolation}"
        );
    }
}

#[tokio::test]
async fn a_fence_that_is_gone_lets_nobody_in() {
    for isolation in MODES {
        let (world, home, _resident, _biplane, db) = one(isolation).await;
        assert_eq!(count(&db).await, 0);
        world
            .cluster
            .sql(&home.database, DataSchema::uninstall_sql())
            .await
            .unwrap();
        assert_eq!(
            kind(&db.begin().await.unwrap_err()),
            ErrorKind::WrongDatabase,
            "{isolation}"
        );
    }
}

#[tokio::test]
async fn a_login_that_may_not_enter_lacks_a_privilege() {
    for isolation in MODES {
        let (world, home, _resident, _biplane, db) = one(isolation).await;
        let revoke = format!("revoke usage on schema biplane from {}", home.login);
        world.cluster.sql(&home.database, &revoke).await.unwrap();
        assert_eq!(refused(&db).await, ErrorKind::MissingPrivilege, "{isolation}");
    }
}

/// sqlx does not know that a transaction is open in which nothing can be done any more.
#[tokio::test]
async fn a_refused_entry_leaves_the_next_borrower_a_sound_connection() {
    let (world, home, resident, biplane, db) = one(Isolation::Row).await;
    let neighbour = home.resident(&world, Isolation::Schema).await;
    let other = handle(&biplane, &neighbour).await;
    let session = backend(&db).await;
    for change in ["state = 'fenced'", "epoch = epoch + 1", "state = 'open'"] {
        residence(world.cluster, &resident, change).await;
        for _ in 0..3 {
            db.begin().await.unwrap_err();
            add(&other, &neighbour, "at once").await;
            let mut tx = other.begin().await.unwrap();
            add(&mut tx, &neighbour, "at once").await;
            tx.commit().await.unwrap();
        }
    }
    assert_eq!(count(&other).await, 18);
    assert_eq!(backend(&other).await, session, "it was rolled back, not replaced");
    assert_eq!(biplane.stats().connector.connections, 1);
}

/// The connection stays with its holder, who may be let in a moment later.
#[tokio::test]
async fn a_held_connection_that_was_refused_can_enter_later() {
    let (world, _home, resident, biplane, db) = one(Isolation::Database).await;
    add(&db, &resident, "here").await;
    world.status(resident.id, TenantStatus::ReadOnly).await;
    biplane.invalidate(resident.id).await;
    let mut conn = db.acquire().await.unwrap();
    residence(world.cluster, &resident, "state = 'fenced'").await;
    for _ in 0..3 {
        let error = sqlx::query("select 1").execute(&mut conn).await.unwrap_err();
        assert!(matches!(kind(&error), ErrorKind::Fenced { .. }));
    }
    residence(world.cluster, &resident, "state = 'open'").await;
    assert_eq!(count(&mut conn).await, 1);
}

#[tokio::test]
async fn a_connection_found_dead_when_entering_is_replaced_unseen() {
    for isolation in MODES {
        let (world, home, _resident, _biplane, db) = one(isolation).await;
        let mut watch = world.watch(&home.database).await;
        for _ in 0..3 {
            assert_eq!(count(&db).await, 0);
            watch.kill_sessions().await;
            drop(db.begin().await.unwrap());
            watch.kill_sessions().await;
            let mut tx = db.begin().await.unwrap();
            assert_eq!(count(&mut tx).await, 0);
            if isolation != Isolation::Database {
                drop(tx);
                watch.kill_sessions().await;
                assert_eq!(count(&db).await, 0, "{isolation}: a statement enters, too");
            }
        }
    }
}

/// After a statement of the caller's nobody knows what has happened.
#[tokio::test]
async fn after_a_statement_nothing_is_tried_again() {
    for isolation in MODES {
        let (world, _home, resident, _biplane, db) = one(isolation).await;
        let mut tx = db.begin().await.unwrap();
        add(&mut tx, &resident, "lost").await;
        world
            .cluster
            .sql("postgres", &end_sessions(&resident))
            .await
            .unwrap();
        let error = count_or_error(&mut tx).await.unwrap_err();
        assert!(Error::of(&error).is_none(), "{error:?}");
        drop(tx);
        drop(db.begin().await.unwrap());
        assert_eq!(count(&db).await, 0);
    }
}

fn end_sessions(resident: &Resident) -> String {
    format!(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = '{}'",
        resident.database
    )
}

async fn count_or_error<'c>(db: impl TenantExecutor<'c>) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from note")
        .fetch_one(db)
        .await
}

/// Once for a session: what it costs, and what a fence relies on.
#[tokio::test]
async fn a_session_enters_once_for_each_epoch() {
    let (world, home, resident, biplane, db) = one(Isolation::Database).await;
    let track = format!("alter database {} set track_functions = 'all'", home.database);
    world.cluster.sql("postgres", &track).await.unwrap();
    world.watch(&home.database).await.kill_sessions().await;
    drop(db.begin().await.unwrap());
    for _ in 0..20 {
        add(&db, &resident, "unwrapped").await;
    }
    assert_eq!(entries(&world, &home).await, 1);
    raise_epoch(&world, &home, &resident).await;
    biplane.invalidate(resident.id).await;
    for _ in 0..20 {
        add(&db, &resident, "unwrapped").await;
    }
    assert_eq!(entries(&world, &home).await, 2);
}

/// How often sessions have entered, once what a session counts is seen by others.
async fn entries(world: &crate::data_plane::World<'_>, home: &Home) -> i64 {
    // A session says what it counted when it ends.
    world.watch(&home.database).await.kill_sessions().await;
    let mut owner = world.cluster.connect(&home.database).await.unwrap();
    let count = "select calls from pg_stat_user_functions where funcname = 'enter_session_v1'";
    sqlx::query_scalar(count).fetch_one(&mut owner).await.unwrap()
}

#[tokio::test]
async fn a_session_of_an_old_epoch_is_not_used_for_a_new_one_without_entering() {
    let (world, home, resident, biplane, db) = one(Isolation::Database).await;
    add(&db, &resident, "unwrapped").await;
    raise_epoch(&world, &home, &resident).await;
    residence(world.cluster, &resident, "state = 'fenced'").await;
    biplane.invalidate(resident.id).await;
    let error = sqlx::query("select 1").execute(&db).await.unwrap_err();
    assert!(matches!(kind(&error), ErrorKind::Fenced { .. }));
}

/// What the control plane says decides, never what is found there.
#[tokio::test]
async fn whether_there_is_a_fence_is_what_the_control_plane_says() {
    let world = world().await;
    let fenced = Home::new(&world).await;
    let resident = fenced.resident(&world, Isolation::Row).await;
    let open = world.tenant().await;
    let biplane = unaware(&world, options(4));
    assert_eq!(biplane.stats().connector.unfenced, 0);
    count(&handle(&biplane, &resident).await).await;
    assert_eq!(biplane.stats().connector.unfenced, 0);
    backend(&biplane.route(&open.slug).await.unwrap()).await;
    assert_eq!(biplane.stats().connector.unfenced, 1);
    // Nobody who shares a database goes without.
    let shared = world.tenant().await;
    for isolation in [Isolation::Schema, Isolation::Row] {
        let version = world.record(shared.id).await.version;
        let place = world
            .control
            .place(&world.by, shared.id, version, shared.source, isolation);
        place.await.unwrap();
        biplane.invalidate(shared.id).await;
        let db = biplane.route(&shared.slug).await.unwrap();
        assert_eq!(refused(&db).await, ErrorKind::UnsupportedIsolation { isolation });
    }
}

#[tokio::test]
async fn a_transaction_is_named_after_its_tenant_and_as_it_was_asked_for() {
    for isolation in MODES {
        let (_world, _home, resident, _biplane, db) = one(isolation).await;
        let options = TxOptions::new()
            .isolation(IsolationLevel::Serializable)
            .read_only();
        let mut tx = db.begin_with(options).await.unwrap();
        let shown: (String, String, String, String) = sqlx::query_as(
            "select current_setting('application_name'), current_setting('app.tenant_id'),
                current_setting('transaction_isolation'), current_setting('transaction_read_only')",
        )
        .fetch_one(&mut tx)
        .await
        .unwrap();
        assert!(shown.0.contains(&resident.id.to_string()), "{}", shown.0);
        assert_eq!(shown.1, resident.id.to_string());
        assert_eq!((shown.2.as_str(), shown.3.as_str()), ("serializable", "on"));
        let error = tx
            .execute("insert into note (owner, text) values ('x', 'x')")
            .await
            .unwrap_err();
        assert_eq!(code(&error), "25006");
    }
}
