//! Transactions and statements as a tenant's code writes them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod data_plane;

use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    plane::{IsolationLevel, TenantDb, TxOptions},
    tenant::TenantStatus,
};
use data_plane::{Placed, World, backend, give_up_after, notes, options, shared};
use futures_util::TryStreamExt;
use sqlx::{Acquire, Executor, Row};

async fn one_connection(world: &World<'_>) -> (Biplane, Placed, TenantDb) {
    world.one(options(1)).await
}

#[tokio::test]
async fn a_commit_of_what_has_failed_is_an_error_and_stores_nothing() {
    let world = World::new(shared().await);
    let (_biplane, _, db) = one_connection(&world).await;
    let failing = [
        "select 1 / 0",
        "select nothing from nowhere",
        "insert into note (text) values (null)",
    ];
    for failing in failing {
        for polls in [1, 2, 100] {
            let mut tx = db.begin().await.unwrap();
            sqlx::query("insert into note (text) values ('lost')")
                .execute(&mut tx)
                .await
                .unwrap();
            // Given up early, the error comes when nobody listens any more.
            if let Some(failed) = give_up_after(polls, sqlx::raw_sql(failing).execute(&mut tx)).await {
                assert!(failed.unwrap_err().as_database_error().is_some());
            }
            let error = tx.commit().await.unwrap_err();
            let kind = Error::of(&error).map(Error::kind);
            assert_eq!(kind, Some(ErrorKind::TransactionAborted), "{failing}, {error:?}");
            assert_eq!(notes(&db).await, 0);
        }
    }
    let mut tx = db.begin().await.unwrap();
    sqlx::query("select 1 / 0").execute(&mut tx).await.unwrap_err();
    tx.rollback().await.unwrap();
}

#[tokio::test]
async fn a_savepoint_that_was_rolled_back_to_does_not_spoil_the_commit() {
    let world = World::new(shared().await);
    let (_biplane, _, db) = one_connection(&world).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute("insert into note (text) values ('kept')")
        .await
        .unwrap();
    tx.execute("savepoint here").await.unwrap();
    tx.execute("select 1 / 0").await.unwrap_err();
    tx.execute("rollback to savepoint here").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(notes(&db).await, 1);
}

#[tokio::test]
async fn a_commit_that_the_database_refuses_keeps_the_databases_reason() {
    let world = World::new(shared().await);
    let (_biplane, placed, db) = one_connection(&world).await;
    let deferred =
        "create table pair (a int unique, b int references pair (a) deferrable initially deferred)";
    world.cluster.sql(&placed.database, deferred).await.unwrap();
    let first = backend(&db).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute("insert into pair values (1, 2)").await.unwrap();
    let error = tx.commit().await.unwrap_err();
    assert!(
        error.as_database_error().unwrap().is_foreign_key_violation(),
        "{error:?}"
    );
    assert_eq!(backend(&db).await, first);
}

#[tokio::test]
async fn a_transaction_begins_as_asked() {
    let world = World::new(shared().await);
    let (_biplane, _, db) = one_connection(&world).await;
    let show = async |options: TxOptions| {
        let mut tx = db.begin_with(options).await.unwrap();
        let shown = "select concat_ws(' ', current_setting('transaction_isolation'),
            current_setting('transaction_read_only'), current_setting('transaction_deferrable'))";
        let shown: String = sqlx::query_scalar(shown).fetch_one(&mut tx).await.unwrap();
        tx.rollback().await.unwrap();
        shown
    };
    let new = TxOptions::new();
    assert_eq!(show(new).await, "read committed off off");
    assert_eq!(
        show(new.isolation(IsolationLevel::ReadCommitted)).await,
        "read committed off off"
    );
    assert_eq!(
        show(new.isolation(IsolationLevel::RepeatableRead)).await,
        "repeatable read off off"
    );
    let serializable = new.isolation(IsolationLevel::Serializable);
    assert_eq!(show(serializable).await, "serializable off off");
    assert_eq!(show(new.read_only()).await, "read committed on off");
    assert_eq!(
        show(serializable.read_only().deferrable()).await,
        "serializable on on"
    );
    let mut tx = db.begin_with(new.read_only()).await.unwrap();
    let error = tx
        .execute("insert into note (text) values ('no')")
        .await
        .unwrap_err();
    assert_eq!(
        error.as_database_error().unwrap().code().as_deref(),
        Some("25006")
    );
}

#[tokio::test]
async fn a_tenant_that_is_read_only_is_never_written_to() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = one_connection(&world).await;
    let writer = "create function write_one() returns bigint volatile language sql
        as $$ insert into public.note (text) values ('by a function') returning id $$";
    world.cluster.sql(&placed.database, writer).await.unwrap();
    sqlx::query("insert into note (text) values ('before')")
        .execute(&db)
        .await
        .unwrap();
    world.status(placed.id, TenantStatus::ReadOnly).await;
    biplane.invalidate(placed.id).await;

    let refused = |error: sqlx::Error, what: &str| {
        let kind = Error::of(&error).map(Error::kind);
        assert_eq!(kind, Some(ErrorKind::ReadOnly), "{what}: {error:?}");
    };
    for write in [
        "insert into note (text) values ('no')",
        "insert into note (text) values ('no') returning id",
        "with added as (insert into note (text) values ('no') returning id) select id from added",
        "select write_one()",
        "update note set text = 'no'",
        "delete from note",
        "truncate note",
        "create table no ()",
        "select * into another from note",
    ] {
        refused(sqlx::query(write).execute(&db).await.unwrap_err(), write);
        refused(sqlx::query(write).fetch_optional(&db).await.unwrap_err(), write);
        refused(sqlx::query(write).fetch_all(&db).await.unwrap_err(), write);
        refused(sqlx::raw_sql(write).execute(&db).await.unwrap_err(), write);
        let mut tx = db.begin().await.unwrap();
        refused(sqlx::query(write).execute(&mut tx).await.unwrap_err(), write);
        drop(tx);
        let mut conn = db.acquire().await.unwrap();
        // A connection goes on after a statement that failed.
        for _ in 0..2 {
            refused(sqlx::query(write).execute(&mut conn).await.unwrap_err(), write);
            refused(
                sqlx::query(write).fetch_optional(&mut conn).await.unwrap_err(),
                write,
            );
        }
        let count: i64 = sqlx::query_scalar("select count(*) from note")
            .fetch_one(&mut conn)
            .await
            .unwrap();
        assert_eq!(count, 1);
        refused(sqlx::query(write).execute(&mut conn).await.unwrap_err(), write);
        let mut tx = conn.begin().await.unwrap();
        let error = tx.execute(write).await.unwrap_err();
        assert_eq!(
            error.as_database_error().unwrap().code().as_deref(),
            Some("25006"),
            "{write}"
        );
    }
    let mut conn = db.acquire().await.unwrap();
    refused(
        conn.dangerous_connection().map(drop).unwrap_err(),
        "a bare connection",
    );
    refused(
        Acquire::acquire(&mut conn).await.map(drop).unwrap_err(),
        "a bare connection",
    );
    drop(conn);
    assert_eq!(notes(&db).await, 1, "reading goes on");

    world.status(placed.id, TenantStatus::Active).await;
    biplane.invalidate(placed.id).await;
    sqlx::query("insert into note (text) values ('after')")
        .execute(&db)
        .await
        .unwrap();
    assert_eq!(notes(&db).await, 2);
}

#[tokio::test]
async fn whatever_sqlx_can_do_works_on_all_three() {
    use sqlx::{SqlSafeStr as _, Statement as _};
    let world = World::new(shared().await);
    let (_biplane, _, db) = world.one(options(3)).await;
    let add = "insert into note (text) values ($1) returning id, text";
    let mut tx = db.begin().await.unwrap();
    let mut conn = db.acquire().await.unwrap();
    macro_rules! works {
        ($executor:expr) => {{
            let (_, text): (i64, String) = sqlx::query_as(add).bind("a").fetch_one($executor).await.unwrap();
            assert_eq!(text, "a");
            let none = sqlx::query("select id from note where false")
                .fetch_optional($executor)
                .await
                .unwrap();
            assert!(none.is_none());
            let not_found = sqlx::query("select 1 where false")
                .fetch_one($executor)
                .await
                .unwrap_err();
            assert!(matches!(not_found, sqlx::Error::RowNotFound));
            let many: Vec<i32> = sqlx::query_scalar::<_, i32>("select generate_series(1, 1000)")
                .fetch($executor)
                .try_collect()
                .await
                .unwrap();
            assert_eq!(many.len(), 1000);
            let change = sqlx::query("update note set text = 'b' where text = 'a'");
            assert_eq!(change.execute($executor).await.unwrap().rows_affected(), 1);
            sqlx::query("delete from note").execute($executor).await.unwrap();
            let several = sqlx::raw_sql("select 1; select 2; select 3")
                .fetch_all($executor)
                .await
                .unwrap();
            assert_eq!(several.len(), 3);
            let row = $executor.fetch_one("select 4").await.unwrap();
            assert_eq!(row.try_get::<i32, _>(0).unwrap(), 4);
            let prepared = $executor
                .prepare("select $1::int8 + 1".into_sql_str())
                .await
                .unwrap();
            assert_eq!(prepared.parameters().unwrap().left().unwrap().len(), 1);
            for number in 0..3_i64 {
                let got: i64 = prepared
                    .query_scalar()
                    .bind(number)
                    .fetch_one($executor)
                    .await
                    .unwrap();
                assert_eq!(got, number + 1);
            }
            let described = $executor
                .describe("select id from note".into_sql_str())
                .await
                .unwrap();
            assert_eq!(described.columns.len(), 1);
        }};
    }
    works!(&db);
    works!(&mut tx);
    works!(&mut conn);
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_prepared_statement_is_of_use_on_every_connection() {
    use sqlx::{SqlSafeStr as _, Statement as _};
    let world = World::new(shared().await);
    let (_biplane, _, db) = world.one(options(3)).await;
    let prepared = (&db).prepare("select $1::int4".into_sql_str()).await.unwrap();
    let mut held = Vec::new();
    for number in 0..3 {
        let mut conn = db.acquire().await.unwrap();
        let got: i32 = prepared
            .query_scalar()
            .bind(number)
            .fetch_one(&mut conn)
            .await
            .unwrap();
        assert_eq!(got, number);
        held.push(conn);
    }
}

#[tokio::test]
async fn sqlx_transactions_of_a_held_connection_are_real_ones() {
    async fn add<'c>(executor: impl Acquire<'c, Database = sqlx::Postgres>, text: &str, keep: bool) {
        let mut tx = executor.begin().await.unwrap();
        let add = sqlx::query("insert into note (text) values ($1)").bind(text);
        add.execute(&mut *tx).await.unwrap();
        if keep {
            tx.commit().await.unwrap();
        }
    }
    let world = World::new(shared().await);
    let (_biplane, _, db) = one_connection(&world).await;
    let mut conn = db.acquire().await.unwrap();
    add(&mut conn, "kept", true).await;
    add(&mut conn, "lost", false).await;
    add(&mut conn, "kept", true).await;
    let count: i64 = sqlx::query_scalar("select count(*) from note")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    assert_eq!(count, 2);
    drop(conn);
    assert_eq!(notes(&db).await, 2);
}

#[tokio::test]
async fn copy_works_on_a_held_connection() {
    let world = World::new(shared().await);
    let (_biplane, _, db) = one_connection(&world).await;
    let mut conn = db.acquire().await.unwrap();
    let bare = conn.dangerous_connection().unwrap();
    let mut copy = bare.copy_in_raw("copy note (text) from stdin").await.unwrap();
    copy.send(&b"one\ntwo\n"[..]).await.unwrap();
    assert_eq!(copy.finish().await.unwrap(), 2);
    let out = bare
        .copy_out_raw("copy (select text from note order by id) to stdout")
        .await
        .unwrap();
    let out: Vec<_> = out.try_collect().await.unwrap();
    assert_eq!(out.concat(), b"one\ntwo\n");
    drop(conn);
    // As a plain statement it cannot work, and must not stop the next one.
    sqlx::query("copy note (text) from stdin")
        .execute(&db)
        .await
        .unwrap_err();
    sqlx::query("copy note (text) to stdout")
        .execute(&db)
        .await
        .unwrap_err();
    assert_eq!(notes(&db).await, 2);
}
