//! What one tenant leaves in a session that it shares with others, and what the next one finds.

use std::sync::atomic::{AtomicUsize, Ordering};

use biplane::{
    error::ErrorKind,
    plane::TenantDb,
    repository::TenantAdmin,
    tenant::{Isolation, TenantStatus},
    testing::wait,
};
use sqlx::{Acquire, Executor, Row};

use crate::{
    data_plane::{LIMIT, World, backend, give_up_after, options},
    homes::{Home, Own, Resident, add, code, count, handle, kind, unaware, world},
};

/// Two tenants who share a database, through one connection.
async fn pair(isolation: Isolation) -> (World<'static>, Resident, Resident, [TenantDb; 2]) {
    let world = world().await;
    let home = Home::new(&world).await;
    let a = home.resident(&world, isolation).await;
    let b = home.resident(&world, isolation).await;
    let biplane = unaware(&world, options(1));
    let dbs = [handle(&biplane, &a).await, handle(&biplane, &b).await];
    (world, a, b, dbs)
}

const SHARED: [Isolation; 2] = [Isolation::Schema, Isolation::Row];

#[tokio::test]
async fn each_sees_its_own_rows_under_the_same_name() {
    for isolation in SHARED {
        let (_world, a, b, [of_a, of_b]) = pair(isolation).await;
        for round in 1..=3 {
            add(&of_a, &a, "a").await;
            add(&of_b, &b, "b").await;
            add(&of_b, &b, "b").await;
            assert_eq!((count(&of_a).await, count(&of_b).await), (round, 2 * round));
        }
        let owners: Vec<String> = sqlx::query_scalar("select distinct owner from note")
            .fetch_all(&of_a)
            .await
            .unwrap();
        assert_eq!(owners, [a.name]);
        let changed = sqlx::query("update note set text = 'changed'")
            .execute(&of_a)
            .await
            .unwrap();
        assert_eq!(changed.rows_affected(), 3);
        let gone = sqlx::query("delete from note").execute(&of_b).await.unwrap();
        assert_eq!(gone.rows_affected(), 6);
        assert_eq!(count(&of_a).await, 3);
    }
}

/// Plain SQL and what it calls, seen and unseen.
#[tokio::test]
async fn nothing_that_a_tenant_left_is_found_by_the_next_one() {
    for isolation in SHARED {
        let (_world, _a, b, [of_a, of_b]) = pair(isolation).await;
        let session = backend(&of_a).await;
        for left in [
            "select hide('of a')",
            "set my.own = 'of a'",
            "set role none; set work_mem = '9MB'",
            "create temporary table loot as select 'of a' as secret",
            "create temporary table note as select 'of a' as owner",
            "select 'of a' as secret into temp loot",
            "select pg_advisory_lock(4711)",
            "listen somewhere",
            "prepare mine as select 'of a'",
            "declare mine cursor with hold for select 'of a'",
            "select nextval('counter')",
            "select set_config('app.tenant_id', 'of a', false)",
            "select set_config('search_path', 'pg_temp', false)",
        ] {
            // Into a transaction that is kept: what is rolled back leaves nothing anyhow.
            let mut tx = of_a.begin().await.unwrap();
            tx.execute(left).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(leftovers(&of_b, &b).await, "", "{isolation}, after: {left}");
            let error = of_b.execute("select lastval()").await.unwrap_err();
            assert_eq!(code(&error), "55000", "{isolation}, after: {left}");
            add(&of_b, &b, "b").await;
            let mut tx = of_b.begin().await.unwrap();
            let error = tx.execute("select secret from loot").await.unwrap_err();
            assert_eq!(code(&error), "42P01", "{isolation}, after: {left}");
            drop(tx);
        }
        assert_eq!(backend(&of_b).await, session, "cleaned, not replaced");
    }
}

/// What differs from a session that is as new, but for what entering sets.
pub(crate) const LEFTOVERS: &str = "
    select concat_ws(', ',
        case when session_user <> $1 then 'a login' end,
        case when current_user <> $2 then 'a role' end,
        case when current_setting('work_mem') <> '4MB' then 'a setting' end,
        case when current_setting('my.own', true) <> '' then 'a setting of its own' end,
        case when current_setting('app.tenant_id') <> $3 then 'a tenant' end,
        case when current_setting('application_name') <> 'biplane ' || $3 then 'a name' end,
        case when current_setting('client_encoding') <> 'UTF8' then 'an encoding' end,
        case when current_setting('datestyle') <> 'ISO, MDY' then 'a way to write dates' end,
        case when current_setting('timezone') <> 'UTC' then 'a time zone' end,
        case when exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
            and mode = 'ExclusiveLock') then 'a lock' end,
        case when exists (select from pg_prepared_statements
            where from_sql and not starts_with(name, 'biplane_' || replace($3, '-', ''))) then 'a prepared statement' end,
        case when exists (select from pg_cursors where is_holdable) then 'a cursor' end,
        case when exists (select from pg_listening_channels()) then 'a channel' end,
        case when exists (select from pg_class where relpersistence = 't' and relnamespace = pg_my_temp_schema())
            then 'a temporary table' end)";

pub(crate) async fn leftovers(db: &TenantDb, resident: &Resident) -> String {
    sqlx::query_scalar(LEFTOVERS)
        .bind(format!("{}_app", resident.database))
        .bind(&resident.role)
        .bind(resident.id.to_string())
        .fetch_one(db)
        .await
        .unwrap()
}

/// A type that each schema has, with other values.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mood(pub(crate) String);

impl sqlx::Type<sqlx::Postgres> for Mood {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        sqlx::postgres::PgTypeInfo::with_name("mood")
    }
}

impl sqlx::Encode<'_, sqlx::Postgres> for Mood {
    fn encode_by_ref(
        &self,
        buffer: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        <&str as sqlx::Encode<sqlx::Postgres>>::encode_by_ref(&self.0.as_str(), buffer)
    }
}

impl<'r> sqlx::Decode<'r, sqlx::Postgres> for Mood {
    fn decode(value: sqlx::postgres::PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        <&str as sqlx::Decode<sqlx::Postgres>>::decode(value).map(|text| Self(text.to_owned()))
    }
}

/// sqlx remembers types by their names, and statements by their text, for a connection.
#[tokio::test]
async fn types_and_statements_of_one_name_are_each_schemas_own() {
    let (_world, a, b, dbs) = pair(Isolation::Schema).await;
    for round in 0..6 {
        for (db, resident) in dbs.iter().zip([&a, &b]) {
            let own = Mood(format!("of {}", resident.name));
            let stored: Mood = sqlx::query_scalar(
                "insert into note (owner, text, mood) values ($1, 'x', $2) returning mood",
            )
            .bind(&resident.name)
            .bind(&own)
            .fetch_one(db)
            .await
            .unwrap();
            assert_eq!(stored, own);
            let found: Vec<Mood> = sqlx::query_scalar("select mood from note where mood = $1")
                .bind(&own)
                .fetch_all(db)
                .await
                .unwrap();
            assert_eq!(found.len(), round + 1);
            // Every second schema has a column more.
            let row = sqlx::query("select * from note where $1")
                .bind(true)
                .fetch_one(db)
                .await
                .unwrap();
            assert_eq!(row.try_get::<String, _>("owner").unwrap(), resident.name);
            assert_eq!(row.try_get::<String, _>("text").unwrap(), "x");
            let added = row.try_get::<i32, _>("added");
            assert!(added.is_err() || added.unwrap() == 7);
        }
    }
}

/// The schemas of both, to see that the columns did differ.
#[tokio::test]
async fn a_schema_that_is_half_migrated_does_not_disturb_its_neighbour() {
    let (world, a, b, [of_a, of_b]) = pair(Isolation::Schema).await;
    for (db, resident) in [(&of_a, &a), (&of_b, &b)] {
        add(db, resident, "x").await;
    }
    let all = "select * from note where $1";
    let columns = async |db: &TenantDb| sqlx::query(all).bind(true).fetch_one(db).await.unwrap().len();
    let (first, second) = (columns(&of_a).await, columns(&of_b).await);
    let schema = a.name.replace('-', "_");
    let migrate = format!("alter table {schema}.note add column once_more int");
    world.cluster.sql(&a.database, &migrate).await.unwrap();
    assert_eq!(columns(&of_b).await, second);
    // A plan of its own that no longer fits is the tenant's own to see; with the neighbour in between it is made anew.
    assert_eq!(columns(&of_a).await, first + 1);
    assert_eq!(columns(&of_b).await, second);
}

#[tokio::test]
async fn with_a_role_of_its_own_a_tenant_cannot_even_name_its_neighbours_tables() {
    let world = world().await;
    let home = Home::new(&world).await;
    let a = home.in_schema(&world, Own::Role).await;
    let b = home.in_schema(&world, Own::Nothing).await;
    let biplane = unaware(&world, options(1));
    let (of_a, of_b) = (handle(&biplane, &a).await, handle(&biplane, &b).await);
    add(&of_a, &a, "a").await;
    add(&of_b, &b, "b").await;
    assert_eq!((count(&of_a).await, count(&of_b).await), (1, 1));
    let user = "select current_user::text";
    let user_of_a: String = sqlx::query_scalar(user).fetch_one(&of_a).await.unwrap();
    let user_of_b: String = sqlx::query_scalar(user).fetch_one(&of_b).await.unwrap();
    assert_eq!((user_of_a, user_of_b), (a.role.clone(), home.login.clone()));
    let theirs = format!("select owner from {}.note", b.name.replace('-', "_"));
    let error = sqlx::raw_sql(sqlx::AssertSqlSafe(theirs))
        .execute(&of_a)
        .await
        .unwrap_err();
    assert_eq!(code(&error), "42501");
    let public = sqlx::query("select owner from public.note")
        .execute(&of_a)
        .await
        .unwrap_err();
    assert_eq!(code(&public), "42501");
}

#[tokio::test]
async fn of_a_shared_database_no_connection_is_held() {
    for isolation in SHARED {
        let (_world, _a, b, [of_a, of_b]) = pair(isolation).await;
        let error = of_a.acquire().await.unwrap_err();
        assert_eq!(kind(&error), ErrorKind::UnsupportedIsolation { isolation });
        assert!(error.to_string().contains("use a transaction"), "{error}");
        add(&of_b, &b, "b").await;
    }
}

/// One after the other: the second has the database for itself, and finds nothing of the first.
#[tokio::test]
async fn a_database_that_changes_hands_is_entered_as_new() {
    let (world, home, first, biplane, db) = crate::homes::one(Isolation::Database).await;
    sqlx::query("select hide('of the first')")
        .execute(&db)
        .await
        .unwrap();
    let session = backend(&db).await;
    let archived = world.record(first.id).await.version;
    let archived = world
        .control
        .set_status(&world.by, first.id, archived, TenantStatus::Archived);
    let archived = archived.await.unwrap();
    world
        .control
        .delete(&world.by, first.id, archived.version)
        .await
        .unwrap();
    world
        .cluster
        .sql(&home.database, "delete from biplane.residence")
        .await
        .unwrap();
    let second = home.resident(&world, Isolation::Database).await;
    let db = handle(&biplane, &second).await;
    assert_eq!(leftovers(&db, &second).await, "");
    assert_eq!(backend(&db).await, session);
}

/// What a function did to a session cannot be seen, and may keep its own tenant from entering again.
#[tokio::test]
async fn a_session_that_a_tenant_has_spoilt_for_itself_is_not_kept() {
    for spoil in [
        "set_config('biplane.tenant', 'somebody', false)",
        "set_config('role', 'pg_monitor', false)",
    ] {
        for isolation in [Isolation::Database, Isolation::Schema, Isolation::Row] {
            let (world, home, resident, _biplane, db) = crate::homes::one(isolation).await;
            let schema = match isolation {
                Isolation::Schema => resident.name.replace('-', "_"),
                _ => "public".to_owned(),
            };
            let function = format!(
                "create function {schema}.spoil() returns text language sql as $$ select {spoil} $$;
                 grant pg_monitor to {}",
                home.login
            );
            world.cluster.sql(&home.database, &function).await.unwrap();
            db.execute("select spoil()").await.unwrap();
            let mut tx = db.begin().await.unwrap();
            tx.execute("select 1").await.unwrap();
            tx.commit().await.unwrap();
        }
    }
}

/// A session of a tenant alone holds ready what its transactions begin with, among the statements that anybody may drop.
#[tokio::test]
async fn a_session_whose_prepared_statements_were_dropped_begins_transactions_all_the_same() {
    let (world, home, _resident, _biplane, db) = crate::homes::one(Isolation::Database).await;
    let forget = "create function public.forget() returns void language plpgsql as $$
        begin execute 'deallocate all'; perform set_config('my.own', 'kept', false); end $$";
    world.cluster.sql(&home.database, forget).await.unwrap();
    for forget in ["deallocate all", "select forget()"] {
        let mut held = db.acquire().await.unwrap();
        held.execute(forget).await.unwrap();
        for _ in 0..2 {
            let mut tx = Acquire::begin(&mut held).await.unwrap();
            tx.execute("select 1").await.unwrap();
            tx.commit().await.unwrap();
        }
    }
    db.execute("select forget()").await.unwrap();
    for _ in 0..2 {
        let mut tx = db.begin().await.unwrap();
        // By text, for sqlx has lost its statements as well.
        let row = tx
            .fetch_one("select current_setting('my.own', true)")
            .await
            .unwrap();
        assert_eq!(
            row.get::<String, _>(0),
            "kept",
            "the session was not given up for that"
        );
        tx.commit().await.unwrap();
    }
}

/// A tenant who is gone, whose old route still leads one router to a database that another tenant has for itself by now, and
/// that one. Both through one connection, which has entered as the second.
async fn gone_and_at_home() -> (World<'static>, Resident, [TenantDb; 2]) {
    let (world, home, first, biplane, gone) = crate::homes::one(Isolation::Row).await;
    let version = world.record(first.id).await.version;
    let archived = world
        .control
        .set_status(&world.by, first.id, version, TenantStatus::Archived)
        .await
        .unwrap();
    world
        .control
        .delete(&world.by, first.id, archived.version)
        .await
        .unwrap();
    let leave = "delete from biplane.residence";
    world.cluster.sql(&home.database, leave).await.unwrap();
    let resident = home.resident(&world, Isolation::Database).await;
    let db = handle(&biplane, &resident).await;
    assert_eq!(leftovers(&db, &resident).await, "");
    (world, resident, [gone, db])
}

#[tokio::test]
async fn a_session_is_entered_again_after_another_tenant_was_refused_in_it() {
    let (_world, resident, [gone, db]) = gone_and_at_home().await;
    let session = backend(&db).await;
    gone.begin().await.unwrap_err();
    assert_eq!(leftovers(&db, &resident).await, "");
    assert_eq!(backend(&db).await, session, "the same, or nothing was shown");
}

/// Whoever gives up does so before, while or after the server does what it was asked. A busy machine may close a session
/// that was given up, and then nothing was shown.
#[tokio::test]
async fn a_session_is_entered_again_after_another_tenant_gave_up_entering() {
    let polls = AtomicUsize::new(0);
    wait::until("one was given up and used again", LIMIT, async || {
        let polls = 1 + polls.fetch_add(1, Ordering::Relaxed) % 2;
        let (_world, resident, [gone, db]) = gone_and_at_home().await;
        let session = backend(&db).await;
        let given_up = give_up_after(polls, gone.begin()).await.is_none();
        assert_eq!(leftovers(&db, &resident).await, "", "after {polls} polls");
        given_up && backend(&db).await == session
    })
    .await
    .unwrap();
}
