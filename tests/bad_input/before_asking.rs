//! What is refused before anything is asked: names, settings, URLs.

use std::{error::Error as StdError, time::Duration};

use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    keyring::{KeyMaterial, KeyState, Keyring},
    repository::MemoryControl,
    router::CacheOptions,
    settings::{Dsn, Settings},
    tenant::{Domain, PoolSettings, Slug, TenantId},
};

use crate::planes::{CANARY, judge, says_nothing_secret};

#[test]
fn names_that_nobody_can_have() {
    let long = "a".repeat(64);
    for (text, advice) in [
        ("", "at least one character"),
        (long.as_str(), "at most 63 characters"),
        ("no spaces", "letters a to z, digits and hyphens"),
        ("caf\u{e9}", "letters a to z, digits and hyphens"),
        ("-acme", "neither starts nor ends with a hyphen"),
        ("acme\0", "letters a to z, digits and hyphens"),
    ] {
        let error = Error::from(Slug::parse(text).unwrap_err());
        judge(&error, ErrorKind::InvalidName, advice);
    }
    let long = format!("{}.example", "a.".repeat(200));
    for (text, advice) in [
        ("", "at least one character"),
        (long.as_str(), "at most 253 characters"),
        ("localhost", "at least two labels"),
        ("127.0.0.1", "not an IP address"),
        ("shop.example:0", "a port from 1 to 65535"),
        ("sh op.example", "letters, digits and inner hyphens"),
    ] {
        let error = Error::from(Domain::parse(text).unwrap_err());
        judge(&error, ErrorKind::InvalidName, advice);
    }
    let error = Error::from("canary".parse::<TenantId>().unwrap_err());
    judge(&error, ErrorKind::InvalidName, "an id is a UUID such as");
}

#[test]
fn pool_settings_that_cannot_work() {
    for ((min, max), advice) in [
        ((0, 0), "max is 0; a pool needs at least one connection"),
        ((3, 2), "min is larger than max; keep min at or below max"),
    ] {
        let error = Error::from(PoolSettings::new(min, max).unwrap_err());
        judge(&error, ErrorKind::InvalidConfiguration, advice);
        let json = serde_json::json!({ "min": min, "max": max });
        let error = serde_json::from_value::<PoolSettings>(json).unwrap_err();
        assert!(error.to_string().contains(advice), "{error}");
    }
    let error = Dsn::parse("postgres://u:canary-password@db.example/d?connection_limit=0").unwrap_err();
    says_nothing_secret(&error);
    assert_eq!(
        error.to_string(),
        "the parameter connection_limit takes a number of connections, 1 or more"
    );
}

#[test]
fn urls_that_do_not_lead_to_a_database() {
    for (url, advice) in [
        (
            "https://acme.api.example/canary",
            "wanted is the connection string",
        ),
        (
            "postgres://canary@db.example/d",
            "the URL holds no password; add it, or say require_auth=none",
        ),
        ("postgres://canary:@db.example/d", "the URL holds no password"),
        (
            "postgres://u:canary@db.example/d?sslmode=never",
            "sslmode takes disable, prefer, require",
        ),
        (
            "postgres://u:canary@db.example/d?secret=canary",
            "not supported: secret",
        ),
        ("postgres://u:canary@db.example", "names no database"),
    ] {
        let error = Dsn::parse(url).unwrap_err();
        // The texts show the form of a URL, and nothing of this one.
        let said = format!("{error} {error:?}");
        assert!(said.contains(advice), "{said}");
        assert!(
            !said.contains(CANARY) && !said.contains("db.example/d") && !said.contains("acme"),
            "{said}"
        );

        let settings = Settings::from_lookup(|name| (name == "BIPLANE_CONTROL_URL").then(|| url.to_owned()));
        let error = settings.unwrap_err();
        let said = format!("{error} {error:?} {}", error.source().unwrap());
        assert!(
            said.contains("BIPLANE_CONTROL_URL") && said.contains(advice),
            "{said}"
        );
        assert!(!said.contains(CANARY), "{said}");
    }
}

#[test]
fn cache_and_keys_that_cannot_work() {
    let options = CacheOptions::default().fresh_for(Duration::ZERO);
    let router = Biplane::memory(MemoryControl::new(), |_| ())
        .cache(options)
        .build();
    judge(&router.unwrap_err(), ErrorKind::InvalidConfiguration, "fresh_for");
    let error = Keyring::builder().build().unwrap_err();
    assert_eq!(error.to_string(), "no key is primary");
    let pending = Keyring::builder().key(KeyMaterial::generate().unwrap(), KeyState::Pending);
    assert!(pending.build().is_err());
}
