//! What is promised about bringing in what an older system encrypted, and about reading it meanwhile.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;
mod sealed;

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use biplane::{
    keyring::{
        Context, Keyring, KeyringError, LegacyEncoding, LegacyKey, LegacyOpener, LegacyPolicy, LegacyUse,
    },
    plane::ControlPlane,
    rotation::{Import, MemoryStore, PgColumns, Report, Reseal, RotationError, SealedStore},
};
use sealed::{Base, Keys, PURPOSE, base, incomplete, open, seal};
use secrecy::ExposeSecret;
use serde::Deserialize;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    Layer,
    layer::{Context as LayerContext, SubscriberExt},
};

#[derive(Deserialize)]
struct Vectors {
    valid: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    encoding: String,
    key_hex: String,
    value: String,
    plaintext: String,
}

fn vectors() -> Vec<Vector> {
    let vectors: Vectors = serde_json::from_str(include_str!("vectors/legacy-node.json")).unwrap();
    let count = |encoding| {
        vectors
            .valid
            .iter()
            .filter(|vector| vector.encoding == encoding)
            .count()
    };
    assert_eq!((count("hex"), count("base64")), (14, 14));
    vectors.valid
}

fn opener(key_hex: &str, policy: LegacyPolicy) -> LegacyOpener {
    LegacyOpener::new(LegacyKey::from_hex(key_hex).unwrap(), policy)
}

/// Made by Node's crypto, as the vectors: the plaintext "twelve", in both encodings.
const KEY: &str = "04c3b62ac127678cc81083f5e2103cd25ae820bebccd9b59556b9754081e2d08";
const HEX: &str = "000102030405060708090a0b:84ec3903d2781d9365678f894ce3291d:64e11f6c584c";
const BASE64: &str = "AAECAwQFBgcICQoL:hOw5A9J4HZNlZ4+JTOMpHQ==:ZOEfbFhM";

fn importer() -> LegacyOpener {
    opener(KEY, LegacyPolicy::ImportOnly)
}

/// The table `integration` with so many rows, every second one in hex, the others in base64.
async fn integrations(rows: usize) -> Base {
    let mut base = base().await;
    base.sql("create table integration (id int primary key, token text, sealed text)")
        .await;
    for id in 1..=rows {
        let value = if id % 2 == 0 { HEX } else { BASE64 };
        base.sql(&format!("insert into integration values ({id}, '{value}')"))
            .await;
    }
    base
}

fn table(base: &Base) -> PgColumns<ControlPlane> {
    PgColumns::new(base.db.clone(), "public", "integration").purpose(PURPOSE)
}

fn in_place(base: &Base) -> PgColumns<ControlPlane> {
    table(base).column("token", "token")
}

fn keyring() -> Keyring {
    Keys::new().after
}

fn pages_of(rows: u32) -> NonZeroU32 {
    NonZeroU32::new(rows).unwrap()
}

/// Each vector has a key of its own, so each is a store of its own: a row of one table, by its key.
#[tokio::test]
async fn every_vector_of_the_older_system_is_imported_whatever_its_encoding() {
    let keyring = keyring();
    let vectors = vectors();
    let mut base = base().await;
    for (id, vector) in vectors.iter().enumerate() {
        base.sql(&format!("create table old_{id} (id int primary key, token text)"))
            .await;
        base.sql(&format!("insert into old_{id} values ({id}, '{}')", vector.value))
            .await;
        let store = PgColumns::new(base.db.clone(), "public", &format!("old_{id}"))
            .purpose(PURPOSE)
            .column("token", "token");
        let mut job =
            Import::new(opener(&vector.key_hex, LegacyPolicy::ImportOnly), keyring.clone()).store(store);
        assert_eq!(job.run().await.unwrap().done(), 1, "{}", vector.value);
        let text = base
            .texts(&format!("select token from old_{id}"))
            .await
            .remove(0)
            .unwrap();
        assert_eq!(open(&keyring, &id.to_string(), "token", &text), vector.plaintext);
    }
}

#[tokio::test]
async fn a_table_half_in_hex_and_half_in_base64_is_imported_whole() {
    let keyring = keyring();
    let mut base = integrations(20).await;
    let opener = Arc::new(importer());
    let mut job = Import::new(Arc::clone(&opener), keyring.clone())
        .store(in_place(&base))
        .page(pages_of(6));
    let report = job.run().await.unwrap();
    assert_eq!(
        (report.done(), report.stores[0].wanted, report.stores[0].found),
        (20, 20, 20)
    );
    assert_eq!((opener.imports(), opener.reads(), opener.refusals()), (20, 0, 0));
    let texts = base.texts("select token from integration order by id").await;
    for (text, id) in texts.iter().zip(1..) {
        assert_eq!(
            open(&keyring, &i32::to_string(&id), "token", text.as_deref().unwrap()),
            "twelve"
        );
    }
}

/// The outage of the team whose reader expected base64: every row in hex is named, with both encodings.
#[tokio::test]
async fn the_wrong_encoding_is_named_for_each_row_and_the_others_are_done() {
    let base = integrations(10).await;
    let opener = importer().expecting(LegacyEncoding::Base64);
    let report = incomplete(Import::new(opener, keyring()).store(in_place(&base)).run().await);
    assert_eq!((report.done(), report.failed()), (5, 5));
    let owners: Vec<_> = report.stores[0]
        .failures
        .iter()
        .map(|failure| &*failure.owner)
        .collect();
    assert_eq!(owners, ["2", "4", "6", "8", "10"]);
    for failure in &report.stores[0].failures {
        assert_eq!(
            failure.error,
            KeyringError::LegacyEncoding {
                found: LegacyEncoding::Hex,
                expected: LegacyEncoding::Base64,
            }
        );
    }
    assert!(
        report.to_string().contains("is in hex where base64 was expected"),
        "{report}"
    );
}

#[tokio::test]
async fn what_does_not_open_is_named_and_stays_and_is_never_repeated() {
    let mut base = integrations(6).await;
    base.sql(&format!(
        "update integration set token = 'canary: plain text' where id = 1;
         update integration set token = 'canary:{}' where id = 2;
         update integration set token = '{}' where id = 3",
        &HEX[HEX.find(':').unwrap() + 1..],
        HEX.replace("64e1", "64e2"),
    ))
    .await;
    let before = base
        .texts("select token from integration where id < 4 order by id")
        .await;
    let error = Import::new(importer(), keyring())
        .store(in_place(&base))
        .run()
        .await
        .unwrap_err();
    let printed = format!("{error} {error:?} {}", error.report().unwrap());
    assert!(
        !printed.contains("canary") && !printed.contains("64e2"),
        "{printed}"
    );
    let report = incomplete(Err(error));
    assert_eq!((report.done(), report.failed()), (3, 3));
    let errors: Vec<_> = report.stores[0]
        .failures
        .iter()
        .map(|failure| failure.error.clone())
        .collect();
    assert!(
        matches!(errors[0], KeyringError::Malformed(what) if what.contains("three segments")),
        "{errors:?}"
    );
    assert!(
        matches!(errors[1], KeyringError::Malformed(what) if what.contains("IV")),
        "{errors:?}"
    );
    assert!(matches!(errors[2], KeyringError::Authentication(_)), "{errors:?}");
    assert_eq!(
        base.texts("select token from integration where id < 4 order by id")
            .await,
        before
    );
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_finds_the_same() {
    let mut base = integrations(8).await;
    base.sql("update integration set token = 'x' where id = 5").await;
    let before = base
        .texts("select xmin::text || token from integration order by id")
        .await;
    let mut job = Import::new(importer(), keyring())
        .store(in_place(&base))
        .dry_run();
    let report = incomplete(job.run().await);
    assert_eq!((report.done(), report.failed(), report.dry_run), (7, 1, true));
    assert_eq!(
        base.texts("select xmin::text || token from integration order by id")
            .await,
        before
    );
}

#[tokio::test]
async fn running_again_finishes_and_changes_nothing_that_is_done() {
    let keyring = keyring();
    let mut base = integrations(9).await;
    base.sql("begin; update integration set sealed = 'held' where id in (2, 9)")
        .await;
    let mut job = Import::new(importer(), keyring.clone())
        .store(in_place(&base))
        .patience(Duration::ZERO);
    let report = incomplete(job.run().await);
    assert_eq!((report.done(), report.busy()), (7, 2));
    base.sql("rollback").await;
    let first = base
        .texts("select token from integration where id <> 2 and id <> 9 order by id")
        .await;
    assert_eq!(job.run().await.unwrap().done(), 2);
    assert_eq!(job.run().await.unwrap().done(), 0);
    let again = base
        .texts("select token from integration where id <> 2 and id <> 9 order by id")
        .await;
    assert_eq!(first, again);
}

#[tokio::test]
async fn into_another_column_the_older_systems_own_stays_and_only_null_is_filled() {
    let keyring = keyring();
    let mut base = integrations(7).await;
    let there = seal(&keyring, "3", "token", "stored since");
    base.sql(&format!(
        "update integration set sealed = '{there}' where id = 3; update integration set token = null where id = 4"
    ))
    .await;
    let before = base.texts("select token from integration order by id").await;
    let store = Arc::new(table(&base).column_from("token", "sealed", "token"));
    let mut job = Import::new(importer(), keyring.clone())
        .store(Arc::clone(&store))
        .page(pages_of(2));
    assert_eq!(job.run().await.unwrap().done(), 5);
    assert_eq!(job.run().await.unwrap().done(), 0);
    assert_eq!(
        base.texts("select token from integration order by id").await,
        before
    );
    let opened: Vec<_> = (base
        .texts("select sealed from integration order by id")
        .await
        .iter()
        .zip(1..))
    .map(|(text, id)| {
        text.as_deref()
            .map(|text| open(&keyring, &i32::to_string(&id), "token", text))
    })
    .collect();
    let twelve = || Some("twelve".to_owned());
    let stored = Some("stored since".to_owned());
    assert_eq!(
        opened,
        [twelve(), twelve(), stored, None, twelve(), twelve(), twelve()]
    );

    // Later the same store is re-sealed.
    assert_eq!(store.census().await.unwrap().under(keyring.primary()), 6);
    assert_eq!(Reseal::new(keyring).store(store).run().await.unwrap().done(), 0);
}

#[tokio::test]
async fn a_policy_that_denies_refuses_the_whole_job_before_anything_is_read() {
    let nowhere = control::handle("no_such_database", control::cluster().await.superuser()).await;
    let store = PgColumns::new(nowhere, "public", "integration")
        .purpose(PURPOSE)
        .column("token", "token");
    let denied = opener(KEY, LegacyPolicy::Deny);
    let error = Import::new(denied, keyring())
        .store(store)
        .run()
        .await
        .unwrap_err();
    assert!(
        matches!(error, RotationError::Keyring(KeyringError::LegacyForbidden)),
        "{error:?}"
    );
}

#[tokio::test]
async fn nothing_to_import_where_values_were_expected_is_an_error() {
    let base = integrations(0).await;
    let mut job = Import::new(importer(), keyring()).store(in_place(&base));
    assert!(matches!(job.run().await, Err(RotationError::NothingFound { .. })));
}

#[tokio::test]
async fn a_tenants_value_is_sealed_for_its_own_row() {
    let keyring = keyring();
    let mut base = integrations(2).await;
    Import::new(importer(), keyring.clone())
        .store(in_place(&base))
        .run()
        .await
        .unwrap();
    let texts = base.texts("select token from integration order by id").await;
    let of_two = Context::new(PURPOSE, "2", "token").unwrap();
    let swapped = keyring
        .open_text(&of_two, texts[0].as_deref().unwrap())
        .unwrap_err();
    assert_eq!(swapped, KeyringError::Authentication(keyring.primary()));
}

async fn import_in_memory(values: &[(&str, &str)]) -> (MemoryStore, Keyring, Result<Report, RotationError>) {
    let store = MemoryStore::new("integrations", PURPOSE);
    for (owner, value) in values {
        store.insert(owner, "token", *value);
    }
    let keyring = keyring();
    let outcome = Import::new(importer(), keyring.clone())
        .store(store.clone())
        .run()
        .await;
    (store, keyring, outcome)
}

#[tokio::test]
async fn in_memory_it_is_the_same() {
    let (store, keyring, outcome) = import_in_memory(&[("a", HEX), ("b", BASE64)]).await;
    assert_eq!(outcome.unwrap().done(), 2);
    for owner in ["a", "b"] {
        assert_eq!(
            open(&keyring, owner, "token", &store.find(owner, "token").unwrap()),
            "twelve"
        );
    }
    let (store, _, outcome) = import_in_memory(&[("a", "x"), ("b", BASE64)]).await;
    let report = incomplete(outcome);
    assert_eq!((report.done(), &*report.stores[0].failures[0].owner), (1, "a"));
    assert_eq!(store.find("a", "token").as_deref(), Some("x"));
}

#[test]
fn a_column_that_is_half_imported_is_read_through_and_counted() {
    let keyring = keyring();
    let context = Context::new(PURPOSE, "1", "token").unwrap();
    let sealed = seal(&keyring, "1", "token", "sealed");
    let through = opener(KEY, LegacyPolicy::ReadThrough);
    let read = |text: &str| {
        let opened = keyring.open_text_or_legacy(&context, text, &through);
        opened.map(|opened| String::from_utf8(opened.expose_secret().to_vec()).unwrap())
    };
    assert_eq!(read(&sealed), Ok("sealed".to_owned()));
    assert_eq!(through.reads(), 0);
    assert_eq!(read(HEX), Ok("twelve".to_owned()));
    assert_eq!(read(BASE64), Ok("twelve".to_owned()));
    assert_eq!(
        (through.reads(), through.imports(), through.refusals()),
        (2, 0, 0)
    );
}

/// Counts what is logged as a warning about legacy values.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        let about_keys = event.metadata().target().starts_with("biplane::keyring");
        if about_keys && *event.metadata().level() == Level::WARN {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[test]
fn the_first_read_through_is_logged_and_then_it_is_quiet() {
    let warnings = Warnings::default();
    let _recording = tracing::subscriber::set_default(tracing_subscriber::registry().with(warnings.clone()));
    let logged = || warnings.0.load(Ordering::SeqCst);
    let through = opener(KEY, LegacyPolicy::ReadThrough);
    through.open("garbage", LegacyUse::Read).unwrap_err();
    through.open(HEX, LegacyUse::Import).unwrap();
    assert_eq!(logged(), 0);
    for _ in 0..3 {
        through.open(HEX, LegacyUse::Read).unwrap();
    }
    assert_eq!((logged(), through.reads()), (1, 3));
    opener(KEY, LegacyPolicy::ReadThrough)
        .open(BASE64, LegacyUse::Read)
        .unwrap();
    assert_eq!(logged(), 2, "once for each opener");
}

/// What looks sealed is never tried as anything else, so that damage shows as what it is.
#[test]
fn what_looks_sealed_is_never_read_as_legacy() {
    let keyring = keyring();
    let context = Context::new(PURPOSE, "1", "token").unwrap();
    let through = opener(KEY, LegacyPolicy::ReadThrough);
    let of_another = seal(&keyring, "2", "token", "x");
    let cases: HashMap<&str, KeyringError> = HashMap::from([
        (&*of_another, KeyringError::Authentication(keyring.primary())),
        ("bp2.0123456789abcdef.AAAA", KeyringError::UnsupportedVersion),
        ("bp1.oops", KeyringError::Malformed("it has no second dot")),
    ]);
    for (text, expected) in cases {
        let error = keyring.open_text_or_legacy(&context, text, &through).unwrap_err();
        assert_eq!(error, expected, "{text}");
    }
}

#[test]
fn reading_through_is_refused_and_counted_unless_the_policy_allows_it() {
    let keyring = keyring();
    let context = Context::new(PURPOSE, "1", "token").unwrap();
    for policy in [LegacyPolicy::Deny, LegacyPolicy::ImportOnly] {
        let opener = opener(KEY, policy);
        let error = keyring.open_text_or_legacy(&context, HEX, &opener).unwrap_err();
        assert_eq!(error, KeyringError::LegacyForbidden);
        assert_eq!((opener.reads(), opener.refusals()), (0, 1));
        opener.check_policy(LegacyUse::Read).unwrap_err();
        assert_eq!(
            opener.refusals(),
            1,
            "asking about the policy is no use of a value"
        );
    }
}
