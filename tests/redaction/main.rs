//! No public type of the crate speaks of a secret, and no event or error does: with every type on a list that cannot
//! fall behind.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod at_work;
mod canary;
mod events;
mod public_types;
mod samples;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use canary::{Shown, given_away};
use public_types::Source;
use values::{How, NEVER_SERIALIZED, types};

#[test]
fn every_public_type_is_on_the_list_and_nothing_else_is() {
    let source = Source::read();
    let listed: BTreeSet<String> = types().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(listed.len(), types().count(), "a type is on the list twice");
    let missing: Vec<String> = source
        .types
        .difference(&listed)
        .map(|path| format!("    (\"{path}\", Public(\"why it can hold no secret\")), or Show(|shown| …)"))
        .collect();
    assert!(
        missing.is_empty(),
        "add to the lists in tests/redaction/values/, as tests/redaction/values.rs says:\n{}",
        missing.join("\n")
    );
    let gone: Vec<&String> = listed.difference(&source.types).collect();
    assert!(
        gone.is_empty(),
        "remove from the lists in tests/redaction/values/, as there is no such public type: {gone:?}"
    );
    let never: Vec<&&str> = NEVER_SERIALIZED
        .iter()
        .filter(|path| !source.types.contains(**path))
        .collect();
    assert!(never.is_empty(), "remove from NEVER_SERIALIZED: {never:?}");
    // A walk that lost its way finds little.
    assert!(source.types.len() >= 150, "{:?}", source.types);
}

#[test]
fn a_type_that_is_excused_has_a_reason() {
    for (path, how) in types() {
        if let How::Public(reason) = how {
            assert!(reason.len() >= 10, "{path}: say why it can hold no secret");
        }
    }
}

#[test]
fn no_public_type_shows_a_secret() {
    let source = Source::read();
    for (path, how) in types() {
        if let How::Show(show) = how {
            let mut shown = Shown::default();
            show(&mut shown);
            check(&source, path, &shown);
        }
    }
}

#[test]
fn nothing_at_work_shows_a_secret() {
    let source = Source::read();
    let (shown, events) = at_work::everything();
    let expected: BTreeSet<&str> = types()
        .filter(|(_, how)| matches!(how, How::AtWork))
        .map(|(path, _)| *path)
        .collect();
    let found: BTreeSet<&str> = shown.keys().copied().collect();
    assert_eq!(
        found, expected,
        "what at_work.rs shows, and what the lists say that it does"
    );
    for (path, shown) in &shown {
        check(&source, path, shown);
    }
    assert!(
        events.contains("the keyring was not refreshed"),
        "the events are not recorded:\n{events}"
    );
    assert_eq!(given_away(&events), None, "{events}");
}

#[test]
fn what_holds_secrets_is_never_serialized() {
    let source = Source::read();
    for path in NEVER_SERIALIZED {
        for wanted in ["Serialize", "Deserialize"] {
            assert!(!source.implements(path, wanted), "{path} has {wanted}");
        }
    }
}

/// What a type shows, in every way that it has, is no secret.
fn check(source: &Source, path: &str, shown: &Shown) {
    assert!(!shown.texts.is_empty(), "{path} was not shown");
    for wanted in ["Debug", "Display", "Error", "Serialize"] {
        assert!(
            !source.implements(path, wanted) || shown.by.contains(&wanted),
            "{path} has {wanted}: show that as well"
        );
    }
    for text in &shown.texts {
        assert_eq!(given_away(text), None, "{path} shows {text}");
    }
}

/// What was shown of each type at work.
pub(crate) type AtWork = BTreeMap<&'static str, Shown>;
