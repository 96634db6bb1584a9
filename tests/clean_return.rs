//! What a borrower leaves behind is gone before the next one comes, and at once.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod data_plane;

use std::{sync::Arc, time::Duration};

use biplane::{
    Biplane,
    plane::TenantDb,
    testing::{postgres::Cluster, wait},
};
use data_plane::{
    LIMIT, Placed, Wish, World, backend, give_up_after, give_up_in_turn, notes, options, shared, timed,
};
use futures_util::{StreamExt, TryStreamExt};
use sqlx::{Acquire, AssertSqlSafe, Connection, Executor, Row};

/// What a session was left with; null when it is as new.
const LEFTOVERS: &str = "
    select nullif(concat_ws(', ',
        case when now() <> statement_timestamp() then 'a transaction' end,
        case when current_user <> session_user then 'a role' end,
        case when current_setting('search_path') <> 'public, pg_temp' then 'a search path' end,
        case when current_setting('work_mem') <> '4MB' then 'a setting' end,
        case when current_setting('my.own', true) <> '' then 'a setting of its own' end,
        case when exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())
            then 'a lock' end,
        case when exists (select from pg_prepared_statements where name not like 'sqlx%')
            then 'a prepared statement' end,
        case when exists (select from pg_cursors where is_holdable) then 'a cursor' end,
        case when exists (select from pg_listening_channels()) then 'a channel' end,
        case when exists (select from pg_class where relpersistence = 't' and relnamespace = pg_my_temp_schema())
            then 'a temporary table' end
    ), '')";

async fn leftovers(db: &TenantDb) -> Option<String> {
    // As text, for which the two clocks agree outside of a transaction.
    let row = sqlx::raw_sql(LEFTOVERS).fetch_one(db).await.unwrap();
    row.try_get(0).unwrap()
}

async fn one_connection(world: &World<'_>) -> (Biplane, Placed, TenantDb) {
    world.one(options(1)).await
}

#[tokio::test]
async fn nothing_that_a_session_was_left_with_reaches_the_next_borrower() {
    let world = World::new(shared().await);
    let (_biplane, placed, db) = one_connection(&world).await;
    let role = "create role left_behind; grant all on note to left_behind";
    world.cluster.sql(&placed.database, role).await.unwrap();
    let first = backend(&db).await;
    for left in [
        "set work_mem = '9MB'",
        "set my.own = 'x'",
        "select set_config('my.own', 'x', false)",
        "set role left_behind",
        "set session authorization left_behind",
        "set search_path = pg_catalog",
        "create temporary table leftover (x int)",
        "select 1 as x into temp leftover",
        "listen somewhere",
        "select pg_advisory_lock(7)",
        "select pg_try_advisory_lock(7)",
        "prepare mine as select 1",
        "begin",
        "start transaction",
        "select 1; set work_mem = '9MB'",
        "begin; insert into note (text) values ('lost')",
        "begin; declare mine cursor with hold for select 1; commit",
        "/* a comment first */ set work_mem = '9MB'",
        "do $$ begin perform set_config('my.own', 'x', false); end $$",
    ] {
        sqlx::raw_sql(left).execute(&db).await.unwrap();
        assert_eq!(leftovers(&db).await, None, "after: {left}");
    }
    assert_eq!(notes(&db).await, 0);
    assert_eq!(backend(&db).await, first, "it was cleaned, not replaced");
}

#[tokio::test]
async fn the_same_of_transactions_and_held_connections() {
    let world = World::new(shared().await);
    let (_biplane, _, db) = one_connection(&world).await;
    let first = backend(&db).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute("set work_mem = '9MB'").await.unwrap();
    tx.execute("create temporary table leftover (x int)")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(leftovers(&db).await, None);

    let mut tx = db.begin().await.unwrap();
    tx.dangerous_connection()
        .execute("set work_mem = '9MB'")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(leftovers(&db).await, None);

    let mut conn = db.acquire().await.unwrap();
    conn.execute("begin").await.unwrap();
    conn.execute("select pg_advisory_lock(3)").await.unwrap();
    drop(conn);
    assert_eq!(leftovers(&db).await, None);

    let mut conn = db.acquire().await.unwrap();
    let bare = conn.dangerous_connection().unwrap();
    std::mem::forget(Connection::begin(bare).await.unwrap());
    drop(conn);
    assert_eq!(leftovers(&db).await, None);

    // Nested twice, and left there.
    let mut conn = db.acquire().await.unwrap();
    let mut outer = conn.begin().await.unwrap();
    let mut inner = outer.begin().await.unwrap();
    inner
        .execute("insert into note (text) values ('lost')")
        .await
        .unwrap();
    std::mem::forget(inner);
    std::mem::forget(outer);
    drop(conn);
    assert_eq!(leftovers(&db).await, None);
    assert_eq!(notes(&db).await, 0);
    assert_eq!(backend(&db).await, first);
}

#[tokio::test]
async fn a_dropped_transaction_is_rolled_back_at_once() {
    let world = World::new(shared().await);
    let (_biplane, placed, db) = one_connection(&world).await;
    let mut watch = world.watch(&placed.database).await;
    let mut tx = db.begin().await.unwrap();
    sqlx::query("insert into note (text) values ('lost')")
        .execute(&mut tx)
        .await
        .unwrap();
    assert_eq!(watch.in_transaction().await, 1);
    drop(tx);
    // Before anybody borrows it again.
    watch.until_idle().await;
    assert_eq!(notes(&db).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_panics_leaves_no_transaction_open() {
    let world = World::new(shared().await);
    let (_biplane, placed, db) = one_connection(&world).await;
    let mut watch = world.watch(&placed.database).await;
    let task = tokio::spawn({
        let db = db.clone();
        async move {
            let mut tx = db.begin().await.unwrap();
            sqlx::query("insert into note (text) values ('lost')")
                .execute(&mut tx)
                .await
                .unwrap();
            panic!("on purpose");
        }
    });
    assert!(task.await.unwrap_err().is_panic());
    watch.until_idle().await;
    assert_eq!(notes(&db).await, 0);
}

#[tokio::test]
async fn a_begin_that_is_given_up_anywhere_leaves_no_transaction() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = one_connection(&world).await;
    let mut watch = world.watch(&placed.database).await;
    let mut finished = 0;
    for round in 0..300 {
        let begun = match round % 2 {
            0 => give_up_after(round / 2 % 6, db.begin()).await,
            _ => give_up_in_turn(round / 2 % 30, db.begin()).await,
        };
        finished += usize::from(begun.is_some());
        drop(begun);
        if round % 3 != 0 {
            assert_eq!(leftovers(&db).await, None, "round {round}");
        }
    }
    assert!(
        (1..300).contains(&finished),
        "{finished} of 300 were not given up"
    );
    watch.until_idle().await;
    assert_eq!(biplane.stats().connector.connections, 1);
}

#[tokio::test]
async fn a_statement_that_is_given_up_anywhere_answers_nobody_else() {
    let world = World::new(shared().await);
    let (_biplane, placed, db) = one_connection(&world).await;
    let mut watch = world.watch(&placed.database).await;
    for round in 0..300_i32 {
        let turns = usize::try_from(round / 3 % 25).unwrap();
        // A statement of its own each time, so that it is prepared, too.
        let text = format!("select $1::int4, {round}, generate_series(1, 50)");
        let query = sqlx::query(AssertSqlSafe(text)).bind(-1);
        match round % 3 {
            0 => drop(give_up_after(turns / 3, db.fetch_all(query)).await),
            1 => drop(give_up_in_turn(turns, db.fetch_all(query)).await),
            _ => {
                let mut rows = db.fetch(query);
                for _ in 0..turns {
                    assert!(rows.try_next().await.unwrap().is_some());
                }
            }
        }
        let answer: i32 = sqlx::query_scalar("select $1::int4")
            .bind(round)
            .fetch_one(&db)
            .await
            .unwrap();
        assert_eq!(answer, round);
        let answer: i32 = sqlx::query_scalar(AssertSqlSafe(format!("select {round}")))
            .fetch_one(&db)
            .await
            .unwrap();
        assert_eq!(answer, round);
    }
    watch.until_idle().await;
}

#[tokio::test]
async fn statements_given_up_inside_a_transaction_answer_no_later_one() {
    let world = World::new(shared().await);
    let (_biplane, _, db) = one_connection(&world).await;
    for round in 0..100_i32 {
        let mut tx = db.begin().await.unwrap();
        sqlx::query("insert into note (text) values ('kept')")
            .execute(&mut tx)
            .await
            .unwrap();
        let turns = usize::try_from(round % 20).unwrap();
        let text = format!("select {round} as x, generate_series(1, 50)");
        drop(give_up_in_turn(turns, tx.fetch_all(sqlx::query(AssertSqlSafe(text)))).await);
        let answer: i32 = sqlx::query_scalar("select $1::int4")
            .bind(round)
            .fetch_one(&mut tx)
            .await
            .unwrap();
        assert_eq!(answer, round);
        tx.commit().await.unwrap();
        assert_eq!(notes(&db).await, i64::from(round) + 1);
    }
}

/// An error that nobody waited for belongs to the statement that was given up, not to the one after it.
#[tokio::test]
async fn the_error_of_a_statement_given_up_is_not_the_next_ones() {
    let world = World::new(shared().await);
    let (_biplane, _, db) = one_connection(&world).await;
    let mut conn = db.acquire().await.unwrap();
    for round in 0..60 {
        let failing = sqlx::raw_sql("select 1 / 0").execute(&mut conn);
        drop(give_up_in_turn(round % 6, failing).await);
        let answer: i32 = sqlx::query_scalar("select $1::int4")
            .bind(7)
            .fetch_one(&mut conn)
            .await
            .unwrap();
        assert_eq!(answer, 7);
    }
}

#[tokio::test]
async fn a_commit_that_is_given_up_happens_or_does_not_and_leaves_nothing_open() {
    let world = World::new(shared().await);
    let (_biplane, placed, db) = one_connection(&world).await;
    let mut watch = world.watch(&placed.database).await;
    let mut stored = 0;
    for round in 0..300 {
        let mut tx = db.begin().await.unwrap();
        sqlx::query("insert into note (text) values ('perhaps')")
            .execute(&mut tx)
            .await
            .unwrap();
        let committed = match round % 2 {
            0 => give_up_after(round / 2 % 4, tx.commit()).await,
            _ => give_up_in_turn(round / 2 % 20, tx.commit()).await,
        };
        let found = notes(&db).await;
        assert!(found == stored || found == stored + 1);
        if let Some(committed) = committed {
            committed.unwrap();
            assert_eq!(found, stored + 1, "what was committed is there");
        }
        stored = found;
        assert_eq!(leftovers(&db).await, None, "round {round}");
    }
    assert!((1..300).contains(&stored), "{stored} of 300");
    watch.until_idle().await;
}

#[tokio::test]
async fn a_statement_that_runs_on_after_its_caller_left_is_cancelled() {
    let world = World::new(shared().await);
    let (_biplane, placed, db) = one_connection(&world).await;
    let mut watch = world.watch(&placed.database).await;
    let first = backend(&db).await;
    for round in 0..5 {
        let task = tokio::spawn({
            let db = db.clone();
            async move {
                if round % 2 == 0 {
                    return sqlx::query("select pg_sleep(600)").execute(&db).await.map(drop);
                }
                let mut tx = db.begin().await?;
                sqlx::query("select pg_sleep(600)")
                    .execute(&mut tx)
                    .await
                    .map(drop)
            }
        });
        watch.until_running("select pg_sleep", 1).await;
        task.abort();
        let (next, took) = timed(backend(&db)).await;
        assert_eq!(next, first, "the connection is used again");
        assert!(took < Duration::from_secs(20), "{took:?}");
        assert_eq!(leftovers(&db).await, None);
    }
}

/// Code that we do not see may leave a statement running on the bare connection.
#[tokio::test]
async fn the_same_of_a_statement_on_a_bare_connection() {
    let world = World::new(shared().await);
    let (_biplane, placed, db) = one_connection(&world).await;
    let mut watch = world.watch(&placed.database).await;
    let first = backend(&db).await;
    let task = tokio::spawn({
        let db = db.clone();
        async move {
            let mut conn = db.acquire().await.unwrap();
            conn.dangerous_connection()
                .unwrap()
                .execute("select pg_sleep(600)")
                .await
                .map(drop)
        }
    });
    watch.until_running("select pg_sleep", 1).await;
    task.abort();
    assert_eq!(backend(&db).await, first);
}

#[tokio::test]
async fn rows_that_nobody_reads_do_not_keep_the_connection() {
    let world = World::new(shared().await);
    let (_biplane, placed, db) = one_connection(&world).await;
    let mut watch = world.watch(&placed.database).await;
    let first = backend(&db).await;
    {
        let mut rows = sqlx::query("select repeat('x', 1000) from generate_series(1, 100000000)").fetch(&db);
        assert!(rows.next().await.unwrap().is_ok());
    }
    assert_eq!(backend(&db).await, first);
    watch.until_idle().await;
}

/// sqlx loses count of the answers when a COPY is given up.
#[tokio::test]
async fn a_copy_that_is_given_up_anywhere_answers_nobody_else() {
    let world = World::new(shared().await);
    let mut options = options(1);
    // In the middle of a COPY the server heeds no cancel, so the session has to be ended.
    options.reset_timeout = Duration::from_millis(300);
    let (_biplane, _, db) = world.one(options).await;
    for round in 0..60_i32 {
        let turns = usize::try_from(round / 2).unwrap();
        let mut conn = db.acquire().await.unwrap();
        let bare = conn.dangerous_connection().unwrap();
        let copy = async {
            let mut copy = bare.copy_in_raw("copy note (text) from stdin").await?;
            copy.send(&b"one\ntwo\n"[..]).await?;
            if round % 2 == 0 {
                copy.finish().await.map(drop)
            } else {
                Ok(())
            }
        };
        drop(give_up_in_turn(turns, copy).await);
        drop(conn);
        for answer in [round, -round, round * 7] {
            let got: i32 = sqlx::query_scalar("select $1::int4")
                .bind(answer)
                .fetch_one(&db)
                .await
                .unwrap();
            assert_eq!(got, answer);
        }
        assert_eq!(leftovers(&db).await, None);
    }
    assert_eq!(notes(&db).await % 2, 0, "whole or not at all");
}

/// Not every end of a session has a code of its own class.
#[tokio::test]
async fn a_session_that_the_server_ended_is_not_lent_again() {
    let world = World::new(shared().await);
    let (_biplane, placed, db) = one_connection(&world).await;
    let mut watch = world.watch(&placed.database).await;
    let first = backend(&db).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute("set local idle_in_transaction_session_timeout = '30ms'")
        .await
        .unwrap();
    watch.until_sessions(0).await;
    let error = tx.execute("select 1").await.unwrap_err();
    assert_eq!(
        error
            .as_database_error()
            .and_then(|error| error.code())
            .as_deref(),
        Some("25P03")
    );
    drop(tx);
    assert_ne!(backend(&db).await, first);
}

/// A server's log must not fill with complaints about what the pool does as a matter of course.
#[tokio::test]
async fn cleaning_up_is_quiet() {
    let cluster = Cluster::builder()
        .setting("log_min_messages", "warning")
        .start()
        .await
        .unwrap();
    let world = World::new(&cluster);
    let (_biplane, placed, db) = one_connection(&world).await;
    for left in [
        "set work_mem = '9MB'",
        "begin",
        "create temporary table leftover (x int)",
    ] {
        sqlx::raw_sql(left).execute(&db).await.unwrap();
        assert_eq!(leftovers(&db).await, None);
    }
    drop(db.begin().await.unwrap());
    for polls in 0..5 {
        drop(give_up_after(polls, db.begin()).await);
        backend(&db).await;
    }
    let mut watch = world.watch(&placed.database).await;
    watch.until_idle().await;
    drop((_biplane, db));
    watch.until_sessions(0).await;
    let log = cluster.log().unwrap();
    for complaint in [
        "no transaction in progress",
        "already a transaction",
        "FATAL",
        "unexpected EOF",
    ] {
        assert!(!log.contains(complaint), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_that_gives_up_all_the_time_harms_nobody() {
    let world = World::new(shared().await);
    let placed = world.tenant_with(Wish::max(3)).await;
    let biplane = world.biplane(options(3));
    let db = Arc::new(biplane.route(&placed.slug).await.unwrap());
    let crowd: Vec<_> = (0..12_i32)
        .map(|number| {
            let db = Arc::clone(&db);
            tokio::spawn(async move {
                for round in 0..25_i32 {
                    let turns = usize::try_from((number + round * 7) % 40).unwrap();
                    match (number + round) % 4 {
                        0 => drop(give_up_in_turn(turns, db.begin()).await),
                        1 => {
                            let set = sqlx::query("set my.own = 'x'").execute(&*db);
                            drop(give_up_in_turn(turns, set).await);
                        }
                        2 => {
                            let mut tx = db.begin().await.unwrap();
                            let rows = tx.fetch_all("select 99, generate_series(1, 90)");
                            drop(give_up_in_turn(turns, rows).await);
                        }
                        _ => assert_eq!(leftovers(&db).await, None),
                    }
                    let answer = number * 1_000 + round;
                    let got = sqlx::query_scalar::<_, i32>("select $1::int4")
                        .bind(answer)
                        .fetch_one(&*db);
                    assert_eq!(got.await.unwrap(), answer);
                }
            })
        })
        .collect();
    for one in crowd {
        one.await.unwrap();
    }
    world.watch(&placed.database).await.until_idle().await;
    wait::until("everything rests", LIMIT, async || {
        let stats = biplane.stats().connector;
        stats.connections == stats.resting
    })
    .await
    .unwrap();
}
