//! Files that are refused, and what is said of them.

use std::{cell::RefCell, io};

use biplane::{error::ErrorKind, router::Overrides};
use serde_json::{Value, json};

use crate::{
    Desk, file,
    planes::{CANARY, Planes, judge},
    until_overridden, until_refused, with,
};

const TENANT: &str = "00000000-0000-0000-0000-0000000000a1";

fn source(fields: Value) -> Value {
    let source = json!({
        "name": "standby", "endpoints": [{ "host": "db2.example" }], "database": "acme", "tls": "verify-full"
    });
    with(source, fields)
}

fn entry(fields: Value) -> Value {
    with(json!({ "tenant": TENANT, "source": "standby" }), fields)
}

fn parse(sources: Value, tenants: Value) -> Result<Overrides, biplane::error::Error> {
    Overrides::parse(&file(sources, tenants).to_string())
}

#[test]
fn each_mistake_is_named_by_its_place_and_never_by_its_value() {
    let plain = json!({ "id": TENANT, "credentials": { "app": { "version": 1, "sealed": format!("{CANARY}-password") } } });
    for (sources, tenants, place) in [
        (
            json!([source(json!({ "user": CANARY }))]),
            json!([entry(json!({}))]),
            "sources no. 1: there is no field user",
        ),
        (
            json!([source(json!({ format!("{CANARY}://x"): 1 }))]),
            json!([entry(json!({}))]),
            "a field that is none of",
        ),
        (
            json!([source(json!({ "name": format!("postgres://u:{CANARY}@h") }))]),
            json!([entry(json!({ "source": format!("postgres://u:{CANARY}@h") }))]),
            "sources no. 1.name: it is not a name",
        ),
        (
            json!([source(json!({ "name": CANARY })), source(json!({}))]),
            json!([entry(json!({}))]),
            "sources no. 1: no tenant",
        ),
        (
            json!([source(json!({ "ca_file": CANARY, "ca_pem": CANARY }))]),
            json!([entry(json!({}))]),
            "sources no. 1.ca_pem: there is a ca_file",
        ),
        (
            json!([source(json!({ "tls": CANARY }))]),
            json!([entry(json!({}))]),
            "sources no. 1.tls: it is not disable",
        ),
        (
            json!([source(json!({ "tls": 7 }))]),
            json!([entry(json!({}))]),
            "sources no. 1.tls: it is not a text",
        ),
        (
            json!([source(json!({ "endpoints": [] }))]),
            json!([entry(json!({}))]),
            "sources no. 1: it has no endpoints",
        ),
        (
            json!([source(
                json!({ "endpoints": [{ "host": "a" }, { "host": format!("postgres://u:{CANARY}@h") }] })
            )]),
            json!([entry(json!({}))]),
            "sources no. 1.endpoints no. 2: it holds a URL",
        ),
        (
            json!([source(json!({ "endpoints": [{ "host": "a", "port": 0 }] }))]),
            json!([entry(json!({}))]),
            "port",
        ),
        (
            json!([source(json!({ "database": format!("{CANARY}@x") }))]),
            json!([entry(json!({}))]),
            "a URL or a login",
        ),
        (
            json!([source(json!({ "database_id": CANARY }))]),
            json!([entry(json!({}))]),
            "database_id: it is not a UUID",
        ),
        (
            json!([source(json!({ "pooler": "transaction" }))]),
            json!([entry(json!({}))]),
            "pooler",
        ),
        (
            json!([source(plain)]),
            json!([entry(json!({}))]),
            "credentials.app.sealed: it is not a sealed value",
        ),
        (
            json!([source(
                json!({ "credentials": { "app": { "version": 1, "sealed": sealed() } } })
            )]),
            json!([entry(json!({}))]),
            "credentials: they open for one data source alone",
        ),
        (
            json!([source(json!({ "id": TENANT, "login_of": "x" }))]),
            json!([entry(json!({}))]),
            "login_of",
        ),
        (
            json!([source(json!({})), source(json!({}))]),
            json!([entry(json!({}))]),
            "sources no. 2: another data source",
        ),
        (
            json!([source(json!({ "name": "mistyped" }))]),
            json!([entry(json!({}))]),
            "sources no. 1: no tenant",
        ),
        (
            json!([source(json!({}))]),
            json!([entry(json!({})), entry(json!({}))]),
            "tenants no. 2: another entry",
        ),
        (
            json!([]),
            json!([entry(json!({ "tenant": CANARY }))]),
            "tenants no. 1.tenant: it is not the id of a tenant",
        ),
        (
            json!([]),
            json!([entry(json!({ "status": CANARY }))]),
            "tenants no. 1.status: it is not a status",
        ),
        (
            json!([]),
            json!([entry(json!({ "slug": "acme" }))]),
            "tenants no. 1: a tenant with a slug",
        ),
        (
            json!([]),
            json!([entry(json!({ "slug": "A B", "status": "active" }))]),
            "slug: it is not a slug",
        ),
        (
            json!([]),
            json!([entry(json!({ "epoch": 2 }))]),
            "tenants no. 1: domains and epoch",
        ),
        (
            json!([]),
            json!([{ "tenant": TENANT }]),
            "tenants no. 1: the field source is missing",
        ),
        (json!([]), json!([CANARY]), "tenants no. 1: it is not an object"),
        (json!({}), json!([]), "sources: it is not a list"),
    ] {
        let refused = parse(sources, tenants).expect_err(place);
        judge(&refused, ErrorKind::InvalidConfiguration, place);
    }
    let twice = format!(r#"{{ "by": "ann", "by": "{CANARY}", "reason": "x" }}"#);
    let broken = format!("{{\n  \"by\": \"ann\",\n  {CANARY}\n}}");
    for (text, place) in [
        (twice.as_str(), "the field by is there twice"),
        (broken.as_str(), "line 3: it is not JSON"),
        (r#"{ "by": "ann" }"#, "the field reason is missing"),
        ("[]", "it is not an object"),
        ("", "line 1: it is not JSON"),
    ] {
        judge(
            &Overrides::parse(text).expect_err(place),
            ErrorKind::InvalidConfiguration,
            place,
        );
    }
}

/// Of the form of a sealed value; it opens nothing.
fn sealed() -> String {
    format!("bp1.00000000000000aa.{}", "A".repeat(96))
}

#[test]
fn the_example_of_the_manual_is_read() {
    let page = include_str!("../../src/manual/overrides.md");
    let example = page.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let overrides = Overrides::parse(example).unwrap();
    let tenants: Vec<_> = overrides.tenants().collect();
    assert_eq!(
        (tenants.len(), &*tenants[0].source, tenants[0].is_whole),
        (1, "acme-standby", false)
    );
    let whole = parse(
        json!([source(
            json!({ "id": TENANT, "credentials": { "app": { "version": 1, "sealed": sealed() } } })
        )]),
        json!([entry(json!({ "slug": "acme", "status": "active" }))]),
    );
    assert!(whole.unwrap().tenants().all(|tenant| tenant.is_whole));
}

#[tokio::test]
async fn a_file_that_others_may_write_or_whose_sealed_text_they_may_read_is_refused() {
    let planes = Planes::memory().await;
    let desk = Desk::new();
    let biplane = desk.router(&planes);
    let address = file(json!([source(json!({}))]), json!([entry(json!({}))]));
    let with_sealed = file(
        json!([source(
            json!({ "id": TENANT, "credentials": { "app": { "version": 1, "sealed": sealed() } } })
        )]),
        json!([entry(json!({}))]),
    );
    for (text, mode, taken) in [
        (&address, 0o644, true),
        (&address, 0o664, false),
        (&address, 0o600, true),
        (&address, 0o646, false),
        (&with_sealed, 0o600, true),
        (&with_sealed, 0o640, false),
        (&with_sealed, 0o400, true),
        (&with_sealed, 0o604, false),
    ] {
        desk.put(text, mode);
        match taken {
            true => until_overridden(&biplane, 1).await,
            false => until_refused(&biplane).await,
        }
    }
    desk.put("x".repeat(1024 * 1024 + 1), 0o644);
    until_refused(&biplane).await;
    assert_eq!(biplane.overrides().tenants, 1, "what was in force before");
}

thread_local! {
    static HEARD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What this thread logs.
pub(crate) struct Lines;

impl Lines {
    /// For the whole process, because whether a place in the code logs at all is remembered for all threads.
    pub(crate) fn record() -> Self {
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(|| Self)
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        tracing::callsite::rebuild_interest_cache();
        Self
    }

    fn text(&self) -> String {
        HEARD.with_borrow(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// How many lines there are with this in them.
    pub(crate) fn with(&self, piece: &str) -> usize {
        self.text().lines().filter(|line| line.contains(piece)).count()
    }

    pub(crate) fn last(&self, piece: &str) -> String {
        let text = self.text();
        let line = text.lines().rfind(|line| line.contains(piece));
        line.unwrap_or_default().to_owned()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        HEARD.with_borrow_mut(|heard| heard.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
