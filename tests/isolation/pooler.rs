//! The same behind each PgBouncer in transaction mode, where two tenants share one session of the server.

use biplane::{Biplane, error::ErrorKind, plane::TenantDb, tenant::Isolation, testing::postgres::PgBouncer};
use sqlx::{Executor, SqlSafeStr};

use crate::{
    data_plane::{World, backend, give_up_in_turn, options, through},
    homes::{Home, Resident, Seat, add, code, count, handle, kind, raise_epoch, residence, unaware, world},
    poolers::{Profile, behind_each_pgbouncer, behind_each_pgbouncer_in_session_mode},
    sessions::{Mood, leftovers},
};

struct Behind {
    world: World<'static>,
    home: Home,
    residents: [Resident; 2],
    dbs: [TenantDb; 2],
    biplane: Biplane,
    _bouncer: PgBouncer,
}

/// Two tenants, each with two connections to a pooler that has one to the server.
async fn behind(profile: Profile, modes: [Isolation; 2]) -> Behind {
    let world = world().await;
    let bouncer = profile.start(world.cluster, 1).await;
    let home = Home::reached_by(&world, |server| {
        through(server, bouncer.pooler(), bouncer.endpoint())
    })
    .await;
    let residents = [
        home.resident(&world, modes[0]).await,
        home.resident(&world, modes[1]).await,
    ];
    let biplane = unaware(&world, options(4));
    let dbs = [
        handle(&biplane, &residents[0]).await,
        handle(&biplane, &residents[1]).await,
    ];
    Behind {
        world,
        home,
        residents,
        dbs,
        biplane,
        _bouncer: bouncer,
    }
}

behind_each_pgbouncer!(
    two_tenants_on_one_server_session_see_their_own_rows,
    what_one_left_in_the_servers_session_is_not_found_by_the_other,
    types_and_statements_of_one_name_are_each_schemas_own,
    the_fence_holds_and_a_stale_route_is_refreshed,
    a_tenant_alone_is_fenced_there_as_well,
);

const PAIRS: [[Isolation; 2]; 3] = [
    [Isolation::Schema, Isolation::Schema],
    [Isolation::Row, Isolation::Row],
    [Isolation::Schema, Isolation::Row],
];

async fn two_tenants_on_one_server_session_see_their_own_rows(profile: Profile) {
    for modes in PAIRS {
        let behind = behind(profile, modes).await;
        assert_eq!(backend(&behind.dbs[0]).await, backend(&behind.dbs[1]).await);
        let work = behind
            .dbs
            .iter()
            .zip(&behind.residents)
            .flat_map(|one| [one, one])
            .map(|(db, me)| {
                let (db, me) = (db.clone(), me.clone());
                tokio::spawn(async move {
                    for round in 0..25_usize {
                        add(&db, &me, "kept").await;
                        let mut tx = db.begin().await.unwrap();
                        add(&mut tx, &me, "lost").await;
                        let owners: Vec<String> = sqlx::query_scalar("select distinct owner from note")
                            .fetch_all(&mut tx)
                            .await
                            .unwrap();
                        assert_eq!(owners, std::slice::from_ref(&me.name));
                        drop(tx);
                        let _ = give_up_in_turn(round, count(&db)).await;
                    }
                })
            });
        for done in futures_util::future::join_all(work).await {
            done.unwrap();
        }
        for db in &behind.dbs {
            assert_eq!(count(db).await, 50);
        }
    }
}

async fn what_one_left_in_the_servers_session_is_not_found_by_the_other(profile: Profile) {
    for modes in PAIRS {
        let behind = behind(profile, modes).await;
        let [of_a, of_b] = &behind.dbs;
        for left in [
            "select hide('of a')",
            "set my.own = 'of a'",
            "set work_mem = '9MB'",
            "set search_path = pg_temp",
            "create temporary table loot as select 'of a' as secret",
            "create temporary table note as select 'of a' as owner",
            "select pg_advisory_lock(4711)",
            "listen somewhere",
            "declare mine cursor with hold for select 'of a'",
            "prepare mine as select 'of a'",
            "select prepare_mine()",
            "select nextval('counter')",
        ] {
            let mut tx = of_a.begin().await.unwrap();
            tx.execute(left).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(
                leftovers(of_b, &behind.residents[1]).await,
                "",
                "{modes:?}, after: {left}"
            );
            let mut tx = of_b.begin().await.unwrap();
            let error = tx.execute("select secret from loot").await.unwrap_err();
            assert_eq!(code(&error), "42P01", "{modes:?}, after: {left}");
            drop(tx);
            let owners: i64 = sqlx::query_scalar("select count(*) from note where owner = 'of a'")
                .fetch_one(of_b)
                .await
                .unwrap();
            assert_eq!(owners, 0);
            let error = of_b.execute("select lastval()").await.unwrap_err();
            assert_eq!(code(&error), "55000", "{modes:?}, after: {left}");
        }
    }
}

async fn types_and_statements_of_one_name_are_each_schemas_own(profile: Profile) {
    let behind = behind(profile, [Isolation::Schema, Isolation::Schema]).await;
    for _ in 0..4 {
        for (db, me) in behind.dbs.iter().zip(&behind.residents) {
            let own = Mood(format!("of {}", me.name));
            let stored: Mood = sqlx::query_scalar(
                "insert into note (owner, text, mood) values ($1, 'x', $2) returning mood",
            )
            .bind(&me.name)
            .bind(&own)
            .fetch_one(db)
            .await
            .unwrap();
            assert_eq!(stored, own);
            let row = sqlx::query("select * from note where $1")
                .bind(true)
                .fetch_one(db)
                .await
                .unwrap();
            assert_eq!(sqlx::Row::try_get::<String, _>(&row, "owner").unwrap(), me.name);
            let described = db.describe("select mood from note".into_sql_str()).await.unwrap();
            assert_eq!(described.columns.len(), 1);
        }
    }
    // As text, so that asking prepares nothing.
    let left = sqlx::raw_sql("select count(*) from pg_prepared_statements");
    let left = left.fetch_one(&behind.dbs[0]).await.unwrap();
    assert!(sqlx::Row::get::<i64, _>(&left, 0) <= i64::from(profile.prepared));
}

async fn the_fence_holds_and_a_stale_route_is_refreshed(profile: Profile) {
    for isolation in [Isolation::Schema, Isolation::Row] {
        let behind = behind(profile, [isolation, Isolation::Row]).await;
        let (db, me) = (&behind.dbs[0], &behind.residents[0]);
        add(db, me, "before").await;
        raise_epoch(&behind.world, &behind.home, me).await;
        let loads = behind.biplane.stats().loads;
        add(db, me, "after").await;
        assert_eq!(behind.biplane.stats().loads, loads + 1);
        residence(behind.world.cluster, me, "state = 'fenced'").await;
        for _ in 0..4 {
            let error = db.begin().await.unwrap_err();
            assert!(matches!(kind(&error), ErrorKind::Fenced { .. }));
            add(&behind.dbs[1], &behind.residents[1], "meanwhile").await;
        }
        residence(behind.world.cluster, me, "state = 'open'").await;
        assert_eq!(count(db).await, 2);
    }
}

/// A tenant with a database of its own is asked for at each transaction, too.
async fn a_tenant_alone_is_fenced_there_as_well(profile: Profile) {
    let world = world().await;
    let bouncer = profile.start(world.cluster, 1).await;
    let home = Home::reached_by(&world, |server| {
        through(server, bouncer.pooler(), bouncer.endpoint())
    })
    .await;
    let me = home.resident(&world, Isolation::Database).await;
    let biplane = unaware(&world, options(2));
    let db = handle(&biplane, &me).await;
    add(&db, &me, "before").await;
    residence(world.cluster, &me, "state = 'fenced'").await;
    let error = sqlx::query("select 1").execute(&db).await.unwrap_err();
    assert!(matches!(kind(&error), ErrorKind::Fenced { .. }));
    assert!(db.acquire().await.is_err());
    residence(world.cluster, &me, "state = 'open'").await;
    assert_eq!(count(&db).await, 1);
}

behind_each_pgbouncer_in_session_mode!(a_session_that_was_reset_says_who_it_is_and_writes_times_as_before);

/// What a connection announced of itself a pooler has set in the server's session, where a reset loses it.
async fn a_session_that_was_reset_says_who_it_is_and_writes_times_as_before(profile: Profile) {
    let seat = Seat::new(Some(profile), Isolation::Database, 1).await;
    let db = &seat.db;
    let session = backend(db).await;
    for _ in 0..2 {
        db.execute("set work_mem = '9MB'; set timezone = 'Asia/Tokyo'")
            .await
            .unwrap();
        assert_eq!(leftovers(db, &seat.resident).await, "");
    }
    assert_eq!(backend(db).await, session, "reset, not replaced");
}
