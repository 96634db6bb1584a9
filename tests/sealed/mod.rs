//! Keys and tables with sealed values, for tests of rotation and import.
#![allow(
    dead_code,
    reason = "each test binary uses a part, and what is unused in one is used in another"
)]

use biplane::{
    keyring::{Context, KeyId, KeyMaterial, KeyState, Keyring},
    plane::{ControlDb, ControlPlane},
    rotation::{PgColumns, Report, RotationError},
};
use secrecy::ExposeSecret;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::control;

pub(crate) const PURPOSE: &str = "setting";

/// The keyring before and after a key is promoted.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) before: Keyring,
    pub(crate) after: Keyring,
    pub(crate) old: KeyId,
    pub(crate) new: KeyId,
    /// Old and new, in hex.
    pub(crate) hex: [String; 2],
}

impl Keys {
    pub(crate) fn new() -> Self {
        let hex = || {
            KeyMaterial::generate()
                .unwrap()
                .to_hex()
                .expose_secret()
                .to_owned()
        };
        Self::of([hex(), hex()])
    }

    pub(crate) fn of(hex: [String; 2]) -> Self {
        let before = keyring(&[(&hex[0], KeyState::Primary), (&hex[1], KeyState::Pending)]);
        let after = keyring(&[(&hex[0], KeyState::DecryptOnly), (&hex[1], KeyState::Primary)]);
        Self {
            old: before.primary(),
            new: after.primary(),
            before,
            after,
            hex,
        }
    }

    /// The new key as the primary one, and the old one in this state.
    pub(crate) fn with_old(&self, state: KeyState) -> Keyring {
        keyring(&[(&self.hex[0], state), (&self.hex[1], KeyState::Primary)])
    }
}

pub(crate) fn keyring(keys: &[(&str, KeyState)]) -> Keyring {
    let mut builder = Keyring::builder();
    for (hex, state) in keys {
        builder = builder.key(KeyMaterial::from_hex(hex).unwrap(), *state);
    }
    builder.build().unwrap()
}

pub(crate) fn seal(keyring: &Keyring, owner: &str, field: &str, plaintext: &str) -> String {
    let context = Context::new(PURPOSE, owner, field).unwrap();
    let sealed = keyring.seal(&context, plaintext.as_bytes()).unwrap();
    sealed.to_text().as_str().to_owned()
}

pub(crate) fn open(keyring: &Keyring, owner: &str, field: &str, text: &str) -> String {
    let context = Context::new(PURPOSE, owner, field).unwrap();
    let opened = keyring.open_text(&context, text).unwrap();
    String::from_utf8(opened.expose_secret().to_vec()).unwrap()
}

/// A database of its own, with a session of its owner.
pub(crate) struct Base {
    pub(crate) database: String,
    pub(crate) db: ControlDb,
    pub(crate) owner: PgConnection,
}

pub(crate) async fn base() -> Base {
    let database = control::database().await;
    let superuser = control::cluster().await.superuser();
    Base {
        db: control::handle(&database, superuser).await,
        owner: control::owner(&database).await,
        database,
    }
}

impl Base {
    pub(crate) async fn sql(&mut self, sql: &str) {
        control::run(&mut self.owner, sql).await.unwrap();
    }

    /// One column of text, in the order of another.
    pub(crate) async fn texts(&mut self, sql: &str) -> Vec<Option<String>> {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_all(&mut self.owner)
            .await
            .unwrap()
    }

    pub(crate) async fn count(&mut self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&mut self.owner)
            .await
            .unwrap()
    }
}

/// The table `app.setting` with so many rows, of which `token` is sealed for each, and the columns of it.
pub(crate) async fn settings(keys: &Keys, rows: usize) -> (Base, PgColumns<ControlPlane>) {
    let mut base = base().await;
    base.sql(
        "create schema app;
         create table app.setting (id bigint primary key, token text, note text not null default '')",
    )
    .await;
    let ids: Vec<i64> = (1..).take(rows).collect();
    let tokens: Vec<String> = ids
        .iter()
        .map(|id| seal(&keys.before, &id.to_string(), "token", &format!("token of {id}")))
        .collect();
    sqlx::query("insert into app.setting (id, token) select * from unnest($1::bigint[], $2::text[])")
        .bind(ids)
        .bind(tokens)
        .execute(&mut base.owner)
        .await
        .unwrap();
    let store = columns(&base.db);
    (base, store)
}

pub(crate) fn columns(db: &ControlDb) -> PgColumns<ControlPlane> {
    PgColumns::new(db.clone(), "app", "setting")
        .purpose(PURPOSE)
        .column("token", "token")
}

/// Every row opens to what it was filled with, under this key.
pub(crate) async fn assert_all_under(base: &mut Base, keyring: &Keyring, rows: usize) {
    let tokens = base.texts("select token from app.setting order by id").await;
    assert_eq!(tokens.len(), rows);
    for (token, id) in tokens.iter().zip(1..) {
        let token = token.as_deref().unwrap();
        assert!(
            token.starts_with(&format!("bp1.{}.", keyring.primary())),
            "row {id}"
        );
        assert_eq!(
            open(keyring, &id.to_string(), "token", token),
            format!("token of {id}")
        );
    }
}

/// The report of a job that could not finish.
pub(crate) fn incomplete(outcome: Result<Report, RotationError>) -> Report {
    match outcome {
        Err(RotationError::Incomplete(report)) => *report,
        other => panic!("{other:?}"),
    }
}
