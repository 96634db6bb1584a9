//! Tables that cannot be worked on say why, before anything is read.

use biplane::{
    error::{Error, ErrorKind},
    plane::ControlPlane,
    rotation::{Mode, PgColumns, Reseal, RotationError, SealedStore, Visit, Wanted},
};

use crate::{
    control,
    sealed::{Base, Keys, PURPOSE, base, columns, seal, settings},
};

async fn table(sql: &str) -> Base {
    let mut base = base().await;
    base.sql(&format!("create schema app; {sql}")).await;
    base
}

async fn refusal(store: PgColumns<ControlPlane>) -> Error {
    match Reseal::new(Keys::new().after).store(store).run().await {
        Err(RotationError::Store { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_says(error: &Error, kind: ErrorKind, parts: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "{error}");
    }
}

const SETTINGS: ErrorKind = ErrorKind::InvalidConfiguration;

#[tokio::test]
async fn a_key_that_is_not_unique() {
    for (index, what) in [
        ("", "no index"),
        ("create unique index on app.setting (id, token)", "of two columns"),
        ("create unique index on app.setting (id) where id > 0", "partial"),
        (
            "create unique index on app.setting ((id + 1))",
            "of an expression",
        ),
    ] {
        let base = table(&format!(
            "create table app.setting (id int not null, token text); {index}"
        ))
        .await;
        let error = refusal(columns(&base.db)).await;
        assert_says(
            &error,
            SETTINGS,
            &["column \"id\" of app.setting must be not null and have a unique index"],
        );
        assert!(!what.is_empty());
    }
}

#[tokio::test]
async fn a_key_that_may_be_null() {
    let base = table("create table app.setting (id int unique, token text)").await;
    assert_says(
        &refusal(columns(&base.db)).await,
        SETTINGS,
        &["\"id\"", "not null"],
    );
}

#[tokio::test]
async fn an_owner_that_may_be_null() {
    let base = table("create table app.setting (id int primary key, tenant text, token text)").await;
    let store = columns(&base.db).owner_column("tenant");
    assert_says(
        &refusal(store).await,
        SETTINGS,
        &["\"tenant\"", "must be not null"],
    );
}

#[tokio::test]
async fn what_does_not_exist() {
    let base = table("create table app.setting (id int primary key, token text)").await;
    let of = |schema: &str, table: &str, column: &str| {
        PgColumns::new(base.db.clone(), schema, table)
            .purpose(PURPOSE)
            .column(column, "token")
    };
    let missing = ErrorKind::SchemaMismatch;
    assert_says(
        &refusal(of("ap", "setting", "token")).await,
        missing,
        &["no schema \"ap\""],
    );
    assert_says(
        &refusal(of("app", "Setting", "token")).await,
        missing,
        &["no table \"Setting\" in schema \"app\""],
    );
    let error = refusal(of("app", "setting", "tokens")).await;
    assert_says(&error, missing, &["table app.setting has no column \"tokens\""]);
}

#[tokio::test]
async fn columns_that_hold_no_text() {
    let base = table("create table app.setting (id int primary key, token bytea)").await;
    assert_says(
        &refusal(columns(&base.db)).await,
        SETTINGS,
        &["\"token\"", "type bytea"],
    );
}

#[tokio::test]
async fn a_column_that_is_computed() {
    let base = table(
        "create table app.setting (id int primary key, raw text, token text generated always as (raw || 'x') stored)",
    )
    .await;
    assert_says(
        &refusal(columns(&base.db)).await,
        SETTINGS,
        &["\"token\"", "generated"],
    );
}

#[tokio::test]
async fn a_view() {
    let base = table(
        "create table app.base (id int primary key, token text); create view app.setting as select * from app.base",
    )
    .await;
    assert_says(
        &refusal(columns(&base.db)).await,
        SETTINGS,
        &["app.setting is a view"],
    );
}

#[tokio::test]
async fn missing_privileges_are_named() {
    let keys = Keys::new();
    let (mut base, _) = settings(&keys, 1).await;
    let limited = || async {
        let db = control::handle(&base.database, control::login(control::ROUTER)).await;
        refusal(columns(&db)).await
    };
    let missing = ErrorKind::MissingPrivilege;
    assert_says(&limited().await, missing, &["USAGE on schema \"app\""]);
    let role = control::ROUTER;
    control::run(&mut base.owner, format!("grant usage on schema app to {role}"))
        .await
        .unwrap();
    let limited = || async {
        let db = control::handle(&base.database, control::login(control::ROUTER)).await;
        refusal(columns(&db)).await
    };
    assert_says(
        &limited().await,
        missing,
        &["SELECT on column \"id\" of app.setting"],
    );
    control::run(&mut base.owner, format!("grant select on app.setting to {role}"))
        .await
        .unwrap();
    let db = control::handle(&base.database, control::login(role)).await;
    let visit = Visit::new(Wanted::All, Mode::Change, None, std::num::NonZeroU32::MIN);
    let error = columns(&db)
        .visit(&visit, &mut |_| panic!("nothing is shown"))
        .await
        .unwrap_err();
    assert_says(&error, missing, &["UPDATE on column \"token\" of app.setting"]);

    // No more than what it said it needs.
    control::run(
        &mut base.owner,
        format!("grant update (token) on app.setting to {role}"),
    )
    .await
    .unwrap();
    let mut job = Reseal::new(keys.after.clone()).store(columns(&db));
    assert_eq!(job.run().await.unwrap().done(), 1);
}

#[tokio::test]
async fn rows_that_row_level_security_hides() {
    let keys = Keys::new();
    let (mut base, _) = settings(&keys, 2).await;
    let role = control::ROUTER;
    base.sql(&format!(
        "grant usage on schema app to {role}; grant select, update on app.setting to {role};
         alter table app.setting enable row level security;
         create policy one on app.setting using (id = 1)"
    ))
    .await;
    let db = control::handle(&base.database, control::login(role)).await;
    let error = refusal(columns(&db)).await;
    assert_says(
        &error,
        ErrorKind::MissingPrivilege,
        &["row-level security of app.setting hides rows"],
    );
}

#[tokio::test]
async fn settings_that_say_too_little_or_the_same_twice() {
    let base = table("create table app.setting (id int primary key, token text)").await;
    let plain = || PgColumns::new(base.db.clone(), "app", "setting");
    let cases = [
        (plain().purpose(PURPOSE), "which columns"),
        (plain().column("token", "token"), "which purpose"),
        (
            columns(&base.db).column("token", "other"),
            "\"token\" is named twice",
        ),
        (columns(&base.db).key("token"), "is the key"),
        (columns(&base.db).column("", "x"), "\"\" is no name"),
        (columns(&base.db).column("a\0b", "x"), "is no name"),
        (columns(&base.db).column(&"x".repeat(64), "x"), "1 to 63 bytes"),
    ];
    for (store, expected) in cases {
        assert_says(&refusal(store).await, SETTINGS, &[expected]);
    }
}

#[tokio::test]
async fn a_column_too_short_for_what_is_sealed() {
    let keys = Keys::new();
    let sealed = seal(&keys.before, "1", "token", "x");
    let mut base = table("create table app.setting (id int primary key, token varchar(30), long text)").await;
    base.sql("insert into app.setting values (1, null, '')").await;
    sqlx::query("update app.setting set long = $1")
        .bind(sealed)
        .execute(&mut base.owner)
        .await
        .unwrap();
    // What a store may be told to write is checked by the database alone.
    let store = PgColumns::new(base.db.clone(), "app", "setting")
        .purpose(PURPOSE)
        .column_from("long", "token", "token");
    let visit = Visit::new(Wanted::ToImport, Mode::Change, None, std::num::NonZeroU32::MIN);
    let error = store
        .visit(&visit, &mut |value| {
            biplane::rotation::Decision::Replace(biplane::tenant::SealedText::new(value.text()))
        })
        .await
        .unwrap_err();
    assert_says(&error, ErrorKind::InvalidInput, &["too short for a sealed value"]);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_and_no_empty_table() {
    let keys = Keys::new();
    let (_base, _) = settings(&keys, 1).await;
    let nowhere = control::handle("no_such_database", control::cluster().await.superuser()).await;
    let error = Reseal::new(keys.after.clone())
        .store(columns(&nowhere))
        .run()
        .await
        .unwrap_err();
    assert!(matches!(error, RotationError::Store { .. }), "{error:?}");
}

#[tokio::test]
async fn a_table_that_changes_between_two_runs_is_said_to_have() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 1).await;
    let mut job = Reseal::new(keys.after.clone()).store(store);
    job.run().await.unwrap();
    base.sql("alter table app.setting rename token to secret").await;
    let RotationError::Store { source, .. } = job.run().await.unwrap_err() else {
        panic!("the column is gone")
    };
    assert_says(&source, ErrorKind::SchemaMismatch, &["app.setting has changed"]);
}
