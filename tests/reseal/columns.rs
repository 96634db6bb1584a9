//! The columns of a table.

use std::{
    collections::BTreeSet,
    num::NonZeroU32,
    sync::{Arc, Mutex},
};

use biplane::{
    keyring::{KeyState, KeyringError},
    plane::ControlDb,
    rotation::{Decision, Mode, PgColumns, Reseal, RotationError, SealedStore, Visit, Wanted},
    testing::tenant_db,
};
use sqlx::PgPool;

use crate::{
    control,
    sealed::{Keys, PURPOSE, assert_all_under, base, columns, incomplete, keyring, open, seal, settings},
};

fn pages_of(rows: u32) -> NonZeroU32 {
    NonZeroU32::new(rows).unwrap()
}

#[tokio::test]
async fn every_value_comes_under_the_primary_key_and_stays_what_it_was() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 50).await;
    let report = Reseal::new(keys.after.clone())
        .store(store)
        .page(pages_of(7))
        .run()
        .await
        .unwrap();
    assert_eq!((report.done(), report.failed(), report.busy()), (50, 0, 0));
    assert_eq!((report.stores[0].found, report.stores[0].wanted), (50, 50));
    assert_all_under(&mut base, &keys.after, 50).await;
}

#[tokio::test]
async fn several_columns_are_sealed_each_for_its_field_and_null_is_no_value() {
    let keys = Keys::new();
    let mut base = base().await;
    base.sql("create table public.login (id uuid primary key, key text, password varchar(500))")
        .await;
    let ids = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
    for (id, key, password) in [
        (ids[0], Some("k0"), Some("p0")),
        (ids[1], None, Some("p1")),
        (ids[2], None, None),
    ] {
        let seal =
            |field, text: Option<&str>| text.map(|text| seal(&keys.before, &id.to_string(), field, text));
        sqlx::query("insert into login values ($1, $2, $3)")
            .bind(id)
            .bind(seal("api.key", key))
            .bind(seal("mail.password", password))
            .execute(&mut base.owner)
            .await
            .unwrap();
    }
    let store = PgColumns::new(base.db.clone(), "public", "login")
        .purpose(PURPOSE)
        .column("key", "api.key")
        .column("password", "mail.password");
    let report = Reseal::new(keys.after.clone())
        .store(store)
        .page(pages_of(1))
        .run()
        .await
        .unwrap();
    assert_eq!(report.done(), 3);

    let only_new = keyring(&[(&keys.hex[1], KeyState::Primary)]);
    for (index, field, column, expected) in [
        (0, "api.key", "key", Some("k0")),
        (0, "mail.password", "password", Some("p0")),
        (1, "api.key", "key", None),
        (1, "mail.password", "password", Some("p1")),
        (2, "api.key", "key", None),
    ] {
        let id = ids[index].to_string();
        let sql = format!("select {column}::text from login where id = '{id}'");
        let text = base.texts(&sql).await.remove(0);
        let opened = text.map(|text| open(&only_new, &id, field, &text));
        assert_eq!(opened.as_deref(), expected);
    }
}

#[tokio::test]
async fn what_is_under_the_primary_key_is_not_touched_again() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 20).await;
    let store = Arc::new(store);
    Reseal::new(keys.after.clone())
        .store(Arc::clone(&store))
        .run()
        .await
        .unwrap();
    let versions = "select xmin::text || token from app.setting order by id";
    let before = base.texts(versions).await;
    let report = Reseal::new(keys.after.clone()).store(store).run().await.unwrap();
    assert_eq!(
        (report.done(), report.stores[0].wanted, report.stores[0].found),
        (0, 0, 20)
    );
    assert_eq!(base.texts(versions).await, before);
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_says_what_it_would_do() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 20).await;
    base.sql("update app.setting set token = 'bp1.oops' where id = 3")
        .await;
    let before = base
        .texts("select xmin::text || token from app.setting order by id")
        .await;
    let mut job = Reseal::new(keys.after.clone())
        .store(store)
        .page(pages_of(6))
        .dry_run();
    let report = incomplete(job.run().await);
    assert!(report.dry_run);
    assert_eq!((report.done(), report.failed(), report.busy()), (19, 1, 0));
    assert!(
        report.to_string().starts_with("dry run: nothing was written\n"),
        "{report}"
    );
    let after = base
        .texts("select xmin::text || token from app.setting order by id")
        .await;
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_dry_run_needs_no_privilege_to_write_and_waits_for_nobody() {
    let keys = Keys::new();
    let (mut base, _) = settings(&keys, 5).await;
    base.sql(&format!(
        "grant usage on schema app to {0}; grant select (id, token) on app.setting to {0};",
        control::ROUTER
    ))
    .await;
    base.sql("begin; update app.setting set note = 'held'").await;
    let reader = control::handle(&base.database, control::login(control::ROUTER)).await;
    let mut job = Reseal::new(keys.after.clone()).store(columns(&reader)).dry_run();
    assert_eq!(job.run().await.unwrap().done(), 5);
}

#[tokio::test]
async fn values_that_fail_are_named_and_their_neighbours_are_done() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 12).await;
    let stranger = Keys::new();
    let unknown = seal(&stranger.before, "5", "token", "x");
    base.sql(&format!(
        "update app.setting set token = 'canary: a password in plain text' where id = 2;
         update app.setting set token = (select token from app.setting where id = 4) where id = 3;
         update app.setting set token = '{unknown}' where id = 5;
         update app.setting set token = 'bp2.later' where id = 6"
    ))
    .await;
    let mut job = Reseal::new(keys.after.clone()).store(store).page(pages_of(4));
    let error = job.run().await.unwrap_err();
    assert_eq!(error.to_string(), "4 values failed and 0 were held by others");
    let printed = format!("{error:?} {}", error.report().unwrap());
    assert!(
        !printed.contains("canary") && !printed.contains(&unknown),
        "{printed}"
    );

    let report = incomplete(Err(error));
    assert_eq!((report.done(), report.failed()), (8, 4));
    let failures: Vec<_> = report.stores[0]
        .failures
        .iter()
        .map(|failure| (&*failure.owner, &*failure.field, failure.error.clone()))
        .collect();
    assert!(
        matches!(failures[0], ("2", "token", KeyringError::Malformed(_))),
        "{failures:?}"
    );
    assert_eq!(
        failures[1..],
        [
            ("3", "token", KeyringError::Authentication(keys.old)),
            ("5", "token", KeyringError::UnknownKey(stranger.old)),
            ("6", "token", KeyringError::UnsupportedVersion),
        ]
    );
    let left = format!(
        "select count(*) from app.setting where token not like 'bp1.{}.%'",
        keys.new
    );
    assert_eq!(base.count(&left).await, 4);
}

#[tokio::test]
async fn failures_are_kept_up_to_a_limit_and_all_counted() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 30).await;
    base.sql("update app.setting set token = 'x' where id > 3").await;
    let mut job = Reseal::new(keys.after.clone())
        .store(store)
        .page(pages_of(4))
        .keep_failures(5);
    let report = incomplete(job.run().await);
    assert_eq!((report.failed(), report.stores[0].failures.len()), (27, 5));
    assert!(report.to_string().ends_with("  and 22 more\n"), "{report}");
}

#[tokio::test]
async fn nothing_where_values_were_expected_is_an_error() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 0).await;
    base.sql("insert into app.setting (id) values (1)").await;
    let error = Reseal::new(keys.after.clone())
        .store(store)
        .run()
        .await
        .unwrap_err();
    assert!(matches!(error, RotationError::NothingFound { .. }), "{error:?}");
    assert_eq!(error.to_string(), "nothing was found in app.setting");

    let mut job = Reseal::new(keys.after.clone()).store_that_may_be_empty(columns(&base.db));
    assert_eq!(job.run().await.unwrap().done(), 0);
}

#[tokio::test]
async fn nothing_in_one_store_does_not_keep_the_others_from_being_done() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 9).await;
    base.sql("create table app.empty (id int primary key, token text)")
        .await;
    let empty = PgColumns::new(base.db.clone(), "app", "empty")
        .purpose(PURPOSE)
        .column("token", "token");
    let error = Reseal::new(keys.after.clone())
        .store(empty)
        .store(store)
        .run()
        .await
        .unwrap_err();
    let RotationError::NothingFound { stores, report } = error else {
        panic!("{error:?}")
    };
    assert_eq!((&*stores[0], stores.len(), report.done()), ("app.empty", 1, 9));
    assert_all_under(&mut base, &keys.after, 9).await;
}

#[tokio::test]
async fn a_job_without_a_store_is_an_error() {
    let error = Reseal::new(Keys::new().after).run().await.unwrap_err();
    assert!(matches!(error, RotationError::NoStore));
}

/// Otherwise a process that was not told of a promotion would take everything back.
#[tokio::test]
async fn values_under_a_key_that_is_pending_here_stop_the_job() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 3).await;
    let promoted = seal(&keys.after, "2", "token", "x");
    base.sql(&format!(
        "update app.setting set token = '{promoted}' where id = 2"
    ))
    .await;
    let error = Reseal::new(keys.before.clone())
        .store(store)
        .run()
        .await
        .unwrap_err();
    assert!(
        matches!(error, RotationError::StaleKeyring(key) if key == keys.new),
        "{error:?}"
    );
}

#[tokio::test]
async fn progress_is_told_after_each_page() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 10).await;
    base.sql("update app.setting set token = 'x' where id = 9").await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&told);
    let mut job = Reseal::new(keys.after.clone())
        .store(store)
        .page(pages_of(4))
        .on_progress(move |progress| {
            assert_eq!(
                (progress.store, progress.pass, progress.wanted),
                ("app.setting", 1, 10)
            );
            listener
                .lock()
                .unwrap()
                .push((progress.looked, progress.done, progress.failed));
        });
    incomplete(job.run().await);
    assert_eq!(*told.lock().unwrap(), [(4, 4, 0), (8, 8, 0), (10, 9, 1)]);
}

#[tokio::test]
async fn the_owner_may_be_another_column_and_be_made_of_it() {
    let keys = Keys::new();
    let mut base = base().await;
    base.sql("create table note (id int primary key, tenant text not null, token text)")
        .await;
    let sealed = seal(&keys.before, "tenant-acme", "token", "x");
    base.sql(&format!("insert into note values (1, 'ACME', '{sealed}')"))
        .await;
    let store = PgColumns::new(base.db.clone(), "public", "note")
        .purpose(PURPOSE)
        .column("token", "token")
        .owner_column("tenant")
        .owner_from(|tenant| format!("tenant-{}", tenant.to_lowercase()))
        .named("notes");
    let report = Reseal::new(keys.after.clone()).store(store).run().await.unwrap();
    assert_eq!((report.done(), &*report.stores[0].store), (1, "notes"));
    let text = base.texts("select token from note").await.remove(0).unwrap();
    assert_eq!(open(&keys.after, "tenant-acme", "token", &text), "x");
}

/// Shows pages of three and returns the owners as they came.
async fn shown(store: &dyn SealedStore, mode: Mode) -> Vec<String> {
    let mut owners = Vec::new();
    let mut after = None;
    loop {
        let visited = store
            .visit(
                &Visit::new(Wanted::All, mode, after.as_ref(), pages_of(3)),
                &mut |value| {
                    owners.push(value.owner().to_owned());
                    Decision::Keep
                },
            )
            .await
            .unwrap();
        after = visited.next;
        if after.is_none() {
            return owners;
        }
    }
}

/// Ten rows with keys of this type; each must be shown once, whatever the type.
async fn keys_of_type(prepare: &str, key_type: &str, key: &str) {
    let mut base = base().await;
    base.sql(&format!(
        "{prepare}; create table item (key {key_type} primary key, token text);
         insert into item select {key}, 'bp1.x' from generate_series(1, 10) as n"
    ))
    .await;
    let store = PgColumns::new(base.db.clone(), "public", "item")
        .purpose(PURPOSE)
        .key("key")
        .column("token", "token");
    let expected = base
        .texts("select item.key::text from item order by item.key")
        .await;
    let expected: Vec<String> = expected.into_iter().flatten().collect();
    assert_eq!(expected.iter().collect::<BTreeSet<_>>().len(), 10);
    for mode in [Mode::Look, Mode::Change] {
        assert_eq!(shown(&store, mode).await, expected, "{key_type} {mode:?}");
    }
}

macro_rules! key_types {
    ($($name:ident: $prepare:expr, $key_type:expr, $key:expr;)+) => {$(
        #[tokio::test]
        async fn $name() {
            keys_of_type($prepare, $key_type, $key).await;
        }
    )+};
}

key_types! {
    integer_keys_page_in_their_order: "select 1", "int", "n - 5";
    text_keys_page_in_the_order_of_their_collation: "select 1", "text", "chr(60 + (n * 7 % 40)::int) || '''\"-' || n";
    text_keys_of_any_collation_are_told_apart:
        "create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        "text collate loose", "chr(60 + n::int) || n";
    uuid_keys_page: "select 1", "uuid", "md5(n::text)::uuid";
    padded_keys_page: "select 1", "char(12)", "'k' || n * 3";
    keys_of_limited_length_page: "select 1", "varchar(4)", "'k' || n * 3";
    times_page_to_the_microsecond: "select 1", "timestamptz", "'2024-03-31 00:59:59.999995+00'::timestamptz + n * interval '1 microsecond'";
    fractions_page_exactly: "select 1", "double precision", "1.0::float8 + n * 2.220446049250313e-16::float8";
    numbers_page_exactly: "select 1", "numeric", "n / 7.0";
    domains_page: "create domain code as text check (value <> '')", "code", "'c' || n";
    enumerations_page: "create type stage as enum ('j','i','h','g','f','e','d','c','b','a')", "stage", "chr(96 + n::int)::stage";
    bytes_page: "select 1", "bytea", "decode(md5(n::text), 'hex')";
}

#[tokio::test]
async fn names_are_names_whatever_they_hold() {
    let keys = Keys::new();
    let mut base = base().await;
    base.sql(
        r#"create table victim (id int);
           create schema "a""; drop table victim; --";
           create table "a""; drop table victim; --"."select * from victim" (
               "Key$1 '%s" int primary key, "token""); drop table victim" text, "order" text not null)"#,
    )
    .await;
    let sealed = seal(&keys.before, "o'wner\"", "token", "x");
    base.sql(&format!(
        r#"insert into "a""; drop table victim; --"."select * from victim" values (1, '{sealed}', 'o''wner"')"#
    ))
    .await;
    let store = PgColumns::new(
        base.db.clone(),
        r#"a"; drop table victim; --"#,
        "select * from victim",
    )
    .purpose(PURPOSE)
    .key("Key$1 '%s")
    .column(r#"token"); drop table victim"#, "token")
    .owner_column("order");
    let report = Reseal::new(keys.after.clone()).store(store).run().await.unwrap();
    assert_eq!(report.done(), 1);
    assert_eq!(base.count("select count(*) from victim").await, 0);
}

#[tokio::test]
async fn a_table_of_a_tenant_is_re_sealed_through_its_handle() {
    let keys = Keys::new();
    let (mut base, _) = settings(&keys, 8).await;
    let cluster = control::cluster().await;
    let url = cluster.url(&base.database, &cluster.superuser());
    let pool = PgPool::connect_lazy(secrecy::ExposeSecret::expose_secret(&url)).unwrap();
    let tenant = tenant_db(&pool).await.unwrap();
    let store = PgColumns::new(tenant, "app", "setting")
        .purpose(PURPOSE)
        .column("token", "token");
    Reseal::new(keys.after.clone())
        .store(store)
        .page(pages_of(3))
        .run()
        .await
        .unwrap();
    assert_all_under(&mut base, &keys.after, 8).await;
}

#[tokio::test]
async fn partitions_are_gone_over_as_one_table() {
    let keys = Keys::new();
    let mut base = base().await;
    base.sql(
        "create schema app;
         create table app.setting (id bigint primary key, token text) partition by hash (id);
         create table app.setting_0 partition of app.setting for values with (modulus 2, remainder 0);
         create table app.setting_1 partition of app.setting for values with (modulus 2, remainder 1)",
    )
    .await;
    for id in 1..=9 {
        let sealed = seal(&keys.before, &id.to_string(), "token", &format!("token of {id}"));
        base.sql(&format!("insert into app.setting values ({id}, '{sealed}')"))
            .await;
    }
    let store = columns(&base.db);
    Reseal::new(keys.after.clone())
        .store(store)
        .page(pages_of(2))
        .run()
        .await
        .unwrap();
    assert_all_under(&mut base, &keys.after, 9).await;
}

/// A collation that takes `A` for `a` must neither hide a change nor take one key's values for another's.
#[tokio::test]
async fn a_loose_collation_does_not_blur_values() {
    let keys = Keys::new();
    let (mut base, _) = settings(&keys, 6).await;
    base.sql(
        "create collation loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         alter table app.setting alter token type text collate loose",
    )
    .await;
    let db: &ControlDb = &base.db;
    Reseal::new(keys.after.clone())
        .store(columns(db))
        .run()
        .await
        .unwrap();
    assert_all_under(&mut base, &keys.after, 6).await;
}
