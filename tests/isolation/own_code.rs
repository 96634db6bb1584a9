//! What a tenant's own code may do in each mode, directly and behind each PgBouncer.

use biplane::{
    error::ErrorKind,
    plane::{IsolationLevel, TenantDb, TxOptions},
    tenant::Isolation,
};
use futures_util::{StreamExt, TryStreamExt};
use sqlx::{Acquire, Executor};

use crate::{
    data_plane::LIMIT,
    homes::{MODES, Seat, add, code, count, handle, kind, residence},
    poolers::{Profile, behind_each_pgbouncer, behind_each_pgbouncer_in_session_mode},
};

async fn savepoints_work_in_each_mode(way: impl Into<Option<Profile>>) {
    let way = way.into();
    for isolation in MODES {
        let seat = Seat::new(way, isolation, 1).await;
        let (db, resident) = (&seat.db, &seat.resident);
        let mut tx = db.begin().await.unwrap();
        add(&mut tx, resident, "kept").await;
        tx.execute("savepoint here").await.unwrap();
        add(&mut tx, resident, "lost").await;
        tx.execute("select 1 / 0").await.unwrap_err();
        tx.execute("rollback to savepoint here").await.unwrap();
        assert_eq!(count(&mut tx).await, 1, "{isolation}: still the tenant");
        // By sqlx, through the connection inside.
        let mut inner = tx.dangerous_connection().begin().await.unwrap();
        inner.execute("delete from note").await.unwrap();
        inner.rollback().await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(count(db).await, 1);
    }
}

/// In its own database a statement runs by itself, and takes effect when it was sent; in a shared one it runs in a
/// transaction, which is committed when its answer has been read.
async fn a_returning_stream_that_is_dropped_early_commits_unwrapped_and_rolls_back_wrapped(
    way: impl Into<Option<Profile>>,
) {
    let way = way.into();
    for isolation in MODES {
        let seat = Seat::new(way, isolation, 1).await;
        let (db, resident) = (&seat.db, &seat.resident);
        let insert =
            "insert into note (owner, text) select $1, 'many' from generate_series(1, 5) returning id";
        {
            let mut rows = sqlx::query(insert).bind(&resident.name).fetch(db);
            assert!(rows.try_next().await.unwrap().is_some());
        }
        let expected = if seat.alone { 5 } else { 0 };
        assert_eq!(count(db).await, expected, "{isolation}");
        let read = sqlx::query(insert)
            .bind(&resident.name)
            .fetch_all(db)
            .await
            .unwrap();
        assert_eq!(read.len(), 5);
        assert_eq!(count(db).await, expected + 5);
        // What asks for one row alone reads the rest by itself.
        sqlx::query(insert)
            .bind(&resident.name)
            .fetch_one(db)
            .await
            .unwrap();
        assert_eq!(count(db).await, expected + 10);
        // In a transaction it counts if that does.
        let mut tx = db.begin().await.unwrap();
        {
            let mut rows = sqlx::query(insert).bind(&resident.name).fetch(&mut tx);
            assert!(rows.try_next().await.unwrap().is_some());
        }
        tx.commit().await.unwrap();
        assert_eq!(count(db).await, expected + 15);
    }
}

async fn several_statements_in_one_text_are_all_or_nothing(way: impl Into<Option<Profile>>) {
    let way = way.into();
    for isolation in MODES {
        let seat = Seat::new(way, isolation, 1).await;
        let (db, resident) = (&seat.db, &seat.resident);
        let text = format!(
            "insert into note (owner, text) values ('{}', 'lost'); select 1 / 0",
            resident.name
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(text))
            .execute(db)
            .await
            .unwrap_err();
        assert_eq!(count(db).await, 0, "{isolation}");
    }
}

/// They need a statement by itself, which there is where the database is the tenant's own.
async fn vacuum_and_concurrent_indexes_work_in_a_database_of_ones_own_alone(way: impl Into<Option<Profile>>) {
    let way = way.into();
    for isolation in MODES {
        let seat = Seat::new(way, isolation, 1).await;
        let (db, world, home) = (&seat.db, &seat.world, &seat.home);
        let own = format!(
            "alter table note owner to {}; grant create on schema public to {}",
            home.login, home.login
        );
        world.cluster.sql(&home.database, &own).await.unwrap();
        for statement in ["vacuum note", "create index concurrently by_text on note (text)"] {
            let done = db.execute(statement).await;
            match seat.alone {
                true => drop(done.unwrap()),
                false => assert_eq!(code(&done.unwrap_err()), "25001", "{isolation}: {statement}"),
            }
            let mut tx = db.begin().await.unwrap();
            assert_eq!(code(&tx.execute(statement).await.unwrap_err()), "25001");
        }
    }
}

async fn streams_and_early_drops_leave_a_transaction_as_it_is(way: impl Into<Option<Profile>>) {
    let way = way.into();
    for isolation in MODES {
        let seat = Seat::new(way, isolation, 1).await;
        let (db, resident) = (&seat.db, &seat.resident);
        let mut tx = db.begin().await.unwrap();
        for _ in 0..3 {
            let mut rows = sqlx::query_scalar::<_, i32>("select generate_series(1, 10000)").fetch(&mut tx);
            assert_eq!(rows.next().await.unwrap().unwrap(), 1);
            drop(rows);
            add(&mut tx, resident, "in between").await;
        }
        tx.commit().await.unwrap();
        assert_eq!(count(db).await, 3, "{isolation}");
    }
}

/// Postgres itself refuses COPY into a table behind row-level security.
async fn copy_works_in_a_transaction_and_into_shared_tables_not_at_all(way: impl Into<Option<Profile>>) {
    let way = way.into();
    for isolation in MODES {
        let seat = Seat::new(way, isolation, 1).await;
        let (db, resident) = (&seat.db, &seat.resident);
        let mut tx = db.begin().await.unwrap();
        let bare = tx.dangerous_connection();
        match bare.copy_in_raw("copy note (owner, text) from stdin").await {
            Ok(mut copy) => {
                copy.send(format!("{0}\tone\n{0}\ttwo\n", resident.name).into_bytes())
                    .await
                    .unwrap();
                assert_eq!(copy.finish().await.unwrap(), 2);
                assert_ne!(isolation, Isolation::Row);
            }
            Err(error) => {
                assert_eq!((isolation, code(&error).as_str()), (Isolation::Row, "0A000"));
                continue;
            }
        }
        let out = bare
            .copy_out_raw("copy (select text from note order by id) to stdout")
            .await
            .unwrap();
        let out: Vec<_> = out.try_collect().await.unwrap();
        assert_eq!(out.concat(), b"one\ntwo\n");
        tx.commit().await.unwrap();
        assert_eq!(count(db).await, 2);
    }
}

async fn what_is_copied_out_of_shared_tables_is_the_tenants_own(way: impl Into<Option<Profile>>) {
    let way = way.into();
    let seat = Seat::new(way, Isolation::Row, 1).await;
    let (db, resident, home) = (&seat.db, &seat.resident, &seat.home);
    let neighbour = home.resident(&seat.world, Isolation::Row).await;
    add(&handle(&seat.biplane, &neighbour).await, &neighbour, "theirs").await;
    add(db, resident, "mine").await;
    let mut tx = db.begin().await.unwrap();
    let out = tx
        .dangerous_connection()
        .copy_out_raw("copy note (text) to stdout")
        .await
        .unwrap();
    let out: Vec<_> = out.try_collect().await.unwrap();
    assert_eq!(out.concat(), b"mine\n");
}

/// Those of a transaction go with it; those of a session need a connection that is held.
async fn advisory_locks_are_a_transactions_or_a_held_connections(way: impl Into<Option<Profile>>) {
    let way = way.into();
    for isolation in MODES {
        let seat = Seat::new(way, isolation, 3).await;
        let db = &seat.db;
        let mut tx = db.begin().await.unwrap();
        tx.execute("select pg_advisory_xact_lock(1)").await.unwrap();
        assert!(!try_lock(db).await, "{isolation}");
        tx.commit().await.unwrap();
        assert!(try_lock(db).await);
        if seat.alone {
            let mut conn = db.acquire().await.unwrap();
            conn.execute("select pg_advisory_lock(1)").await.unwrap();
            assert!(!try_lock(db).await);
            drop(conn);
            until_free(db).await;
        } else if isolation != Isolation::Database {
            // It would outlive the transaction, and ends when the session is used again.
            db.execute("select pg_advisory_lock(1)").await.unwrap();
            until_free(db).await;
        }
    }
}

async fn try_lock(db: &TenantDb) -> bool {
    let mut tx = db.begin().await.unwrap();
    sqlx::query_scalar("select pg_try_advisory_xact_lock(1)")
        .fetch_one(&mut tx)
        .await
        .unwrap()
}

async fn until_free(db: &TenantDb) {
    biplane::testing::wait::until("the lock is free", LIMIT, async || try_lock(db).await)
        .await
        .unwrap();
}

async fn temporary_tables_last_to_the_end_of_a_transaction_or_of_a_held_connection(
    way: impl Into<Option<Profile>>,
) {
    let way = way.into();
    for isolation in MODES {
        let seat = Seat::new(way, isolation, 1).await;
        let mut tx = seat.db.begin().await.unwrap();
        tx.execute("create temporary table draft on commit drop as select 1 as number")
            .await
            .unwrap();
        let number: i32 = sqlx::query_scalar("select number from draft")
            .fetch_one(&mut tx)
            .await
            .unwrap();
        assert_eq!(number, 1, "{isolation}");
        tx.commit().await.unwrap();
        match (seat.alone, seat.db.acquire().await) {
            (true, Ok(mut conn)) => {
                conn.execute("create temporary table draft ()").await.unwrap();
                conn.execute("insert into draft default values").await.unwrap();
            }
            (false, Err(error)) => assert!(matches!(
                (isolation, kind(&error)),
                (Isolation::Database, ErrorKind::InvalidConfiguration)
                    | (_, ErrorKind::UnsupportedIsolation { .. })
            )),
            (_, other) => panic!("{isolation}: {other:?}"),
        }
        let error = seat.db.execute("table draft").await.unwrap_err();
        assert_eq!(code(&error), "42P01", "{isolation}");
    }
}

/// The server sends notifications to it; sqlx gives them to a `PgListener` alone.
async fn a_held_connection_can_listen_and_stops_when_it_is_given_back(way: impl Into<Option<Profile>>) {
    let way = way.into();
    let seat = Seat::new(way, Isolation::Database, 1).await;
    let db = &seat.db;
    let channels = "select count(*) from pg_listening_channels()";
    let mut conn = db.acquire().await.unwrap();
    conn.execute("listen somewhere").await.unwrap();
    let listening: i64 = sqlx::query_scalar(channels).fetch_one(&mut conn).await.unwrap();
    assert_eq!(listening, 1);
    drop(conn);
    let listening: i64 = sqlx::query_scalar(channels).fetch_one(db).await.unwrap();
    assert_eq!(listening, 0);
}

/// So that code which wants a transaction of sqlx's own has one that is entered.
async fn a_transaction_of_sqlxs_own_on_a_held_connection_is_entered(way: impl Into<Option<Profile>>) {
    let way = way.into();
    let seat = Seat::new(way, Isolation::Database, 1).await;
    let (db, resident) = (&seat.db, &seat.resident);
    let mut conn = db.acquire().await.unwrap();
    let mut tx = Acquire::begin(&mut conn).await.unwrap();
    let tenant = "select current_setting('app.tenant_id')";
    let tenant: String = sqlx::query_scalar(tenant).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(tenant, resident.id.to_string());
    tx.rollback().await.unwrap();
    residence(seat.world.cluster, resident, "state = 'fenced'").await;
    let error = Acquire::begin(&mut conn).await.unwrap_err();
    assert!(matches!(kind(&error), ErrorKind::Fenced { .. }), "{error:?}");
    drop(conn);
    residence(seat.world.cluster, resident, "state = 'open'").await;
    assert_eq!(count(db).await, 0);
}

async fn each_isolation_level_enters(way: impl Into<Option<Profile>>) {
    let way = way.into();
    for isolation in MODES {
        let seat = Seat::new(way, isolation, 1).await;
        let (db, resident) = (&seat.db, &seat.resident);
        let new = TxOptions::new();
        for level in [
            IsolationLevel::ReadCommitted,
            IsolationLevel::RepeatableRead,
            IsolationLevel::Serializable,
        ] {
            let mut tx = db.begin_with(new.isolation(level)).await.unwrap();
            add(&mut tx, resident, "kept").await;
            tx.commit().await.unwrap();
        }
        let mut tx = db
            .begin_with(
                new.isolation(IsolationLevel::Serializable)
                    .read_only()
                    .deferrable(),
            )
            .await
            .unwrap();
        assert_eq!(count(&mut tx).await, 3, "{isolation}");
    }
}

/// A test of each function: of the first ones with nothing in between and behind each PgBouncer, of the others where
/// a session lasts.
macro_rules! own_code {
    (everywhere: $($test:ident),+; where_a_session_lasts: $($held:ident),+ $(,)?) => {
        mod directly {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(None::<crate::poolers::Profile>).await;
                }
            )+
            $(
                #[tokio::test]
                async fn $held() {
                    super::$held(None::<crate::poolers::Profile>).await;
                }
            )+
        }
        behind_each_pgbouncer!($($test),+);
        behind_each_pgbouncer_in_session_mode!($($test),+, $($held),+);
    };
}

own_code!(
    everywhere:
    savepoints_work_in_each_mode,
    a_returning_stream_that_is_dropped_early_commits_unwrapped_and_rolls_back_wrapped,
    several_statements_in_one_text_are_all_or_nothing,
    vacuum_and_concurrent_indexes_work_in_a_database_of_ones_own_alone,
    streams_and_early_drops_leave_a_transaction_as_it_is,
    copy_works_in_a_transaction_and_into_shared_tables_not_at_all,
    what_is_copied_out_of_shared_tables_is_the_tenants_own,
    advisory_locks_are_a_transactions_or_a_held_connections,
    temporary_tables_last_to_the_end_of_a_transaction_or_of_a_held_connection,
    each_isolation_level_enters;
    where_a_session_lasts:
    a_held_connection_can_listen_and_stops_when_it_is_given_back,
    a_transaction_of_sqlxs_own_on_a_held_connection_is_entered,
);
