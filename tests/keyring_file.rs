//! The keyring as a file of JSON: what is read, what is refused and how, and how it is edited.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]

use biplane::keyring::{
    Distributed, KeyId, KeyMaterial, KeyState, Keyring, KeyringError, KeyringFile, SourceError, Unused,
};
use secrecy::ExposeSecret;

const HEX: &str = "aaba130bc6c7a4e4368453f204d7f62a01806c649c3f3295c8baa80545a92fc0";
const BASE64: &str = "qroTC8bHpOQ2hFPyBNf2KgGAbGScPzKVyLqoBUWpL8A=";
const ID: &str = "5de9045636c871ca";
const HEX_2: &str = "11a0b12e6691be09bbd51925efa72961017825ef1fcf2ee47769ca044de80f3d";
const ID_2: &str = "573872e5341f1dd0";

fn id(text: &str) -> KeyId {
    text.parse().unwrap()
}

fn file(keys: &str) -> String {
    format!(r#"{{"biplane_keyring": 1, "keys": [{keys}]}}"#)
}

fn primary() -> String {
    format!(r#"{{"id": "{ID}", "state": "primary", "material": "{HEX}"}}"#)
}

fn error(text: &str) -> KeyringError {
    KeyringFile::parse(text).unwrap_err()
}

#[test]
fn order_of_keys_and_fields_spelling_of_material_and_white_space_mean_nothing() {
    let other =
        format!(r#"{{"id":"{ID_2}","state":"disabled","material":"{HEX_2}","note":"from 2025: old"}}"#);
    let gone = r#"{"state":"destroyed","id":"03d7e2a51d6c0f11"}"#;
    let texts = [
        file(&format!("{}, {other}, {gone}", primary())),
        file(&format!("{gone},{other},{}", primary())),
        format!(
            "\n  {{ \"keys\" : [ {gone}, {{\"material\": \"{BASE64}\", \"state\": \"primary\", \"id\": \"{ID}\"}},\n\
             {other} ],\r\n \"biplane_keyring\": 1 }}\n"
        ),
    ];
    for text in texts {
        let states: Vec<_> = Keyring::parse(&text).unwrap().states().collect();
        assert_eq!(
            states,
            [
                (id("03d7e2a51d6c0f11"), KeyState::Destroyed),
                (id(ID_2), KeyState::Disabled),
                (id(ID), KeyState::Primary),
            ]
        );
    }
}

#[test]
fn what_is_written_is_read_again_with_notes_and_wraps() {
    let mut keys = KeyringFile::parse(&file(&primary())).unwrap();
    keys.annotate(id(ID), "made on 2026-11-20, INC-7").unwrap();
    keys.add(KeyMaterial::from_hex(HEX_2).unwrap()).unwrap();
    keys.add_wrapped(id("03d7e2a51d6c0f11"), b"\x00\xffwrapped")
        .unwrap();
    let text = keys.to_text();
    let text = text.expose_secret();
    assert!(text.contains(r#""note": "made on 2026-11-20, INC-7""#), "{text}");
    assert!(text.contains(r#""wrapped": "AP93cmFwcGVk""#), "{text}");
    let again = KeyringFile::parse(text).unwrap();
    assert_eq!(again.to_text().expose_secret(), text);
    assert!(again.states().eq(keys.states()));
    // Any reader of JSON reads it.
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(value["keys"].as_array().unwrap().len(), 3);
}

#[test]
fn a_note_that_would_need_escapes_is_refused() {
    let mut keys = KeyringFile::parse(&file(&primary())).unwrap();
    for note in ["say \"x\"", "a\\b", "two\nlines", "bell\u{7}"] {
        let refused = keys.annotate(id(ID), note).unwrap_err();
        assert!(matches!(refused, KeyringError::MalformedKey { .. }), "{refused}");
    }
    assert_eq!(
        keys.annotate(id(ID_2), "x").unwrap_err(),
        KeyringError::UnknownKey(id(ID_2))
    );
}

#[test]
fn what_is_not_of_the_form_is_refused_with_the_rule() {
    let key = primary();
    for (text, rule) in [
        ("{".to_owned(), "in line 1: it is not JSON"),
        (
            format!("{{\n\"biplane_keyring\": 1\n \"keys\": [{key}]}}"),
            "in line 3: it is not JSON",
        ),
        (format!("{}x", file(&key)), "in line 1: it is not JSON"),
        (
            format!("{{\n\"a\\u0041\": 1, {key}"),
            "in line 2: it holds a backslash",
        ),
        (format!(r#"{{"keys": [{key}]}}"#), "it does not say its version"),
        (
            format!(r#"{{"biplane_keyring": "1", "keys": [{key}]}}"#),
            "its version is not a number",
        ),
        (
            format!(r#"{{"biplane_keyring": 2, "keys": [{key}]}}"#),
            "a version that this release does not know",
        ),
        (r#"{"biplane_keyring": 1}"#.to_owned(), "it has no list of keys"),
        (
            format!(r#"{{"biplane_keyring": 1, "keys": "{HEX}"}}"#),
            "it has no list of keys",
        ),
        (
            format!(r#"{{"biplane_keyring": 1, "keys": [{key}], "{HEX}": 1}}"#),
            "it has a field that this release does not know",
        ),
        (
            format!(r#"{{"biplane_keyring": 1, "biplane_keyring": 1, "keys": [{key}]}}"#),
            "it has a field twice",
        ),
    ] {
        let error = error(&text);
        assert!(matches!(error, KeyringError::MalformedFile { .. }), "{error}");
        assert!(error.to_string().contains(rule), "{text}: {error}");
    }
}

#[test]
fn an_entry_that_is_wrong_is_named_by_its_number_and_rule() {
    for (entry, rule) in [
        (format!("\"{HEX_2}\""), "it is not an object"),
        (
            format!(r#"{{"state": "pending", "material": "{HEX_2}"}}"#),
            "it has no id",
        ),
        (
            format!(r#"{{"id": "{ID_2}", "material": "{HEX_2}"}}"#),
            "it has no state",
        ),
        (
            format!(r#"{{"id": "{ID_2}", "state": "pending"}}"#),
            "it has neither material nor a wrapped key",
        ),
        (
            format!(r#"{{"id": "{ID_2}", "state": "pending", "material": "{HEX_2}", "wrapped": "AAAA"}}"#),
            "it has both",
        ),
        (
            format!(r#"{{"id": "{ID_2}", "state": "destroyed", "material": "{HEX_2}"}}"#),
            "a destroyed key has no bytes any more",
        ),
        (
            format!(r#"{{"id": "{ID_2}", "state": "destroyed", "wrapped": "AAAA"}}"#),
            "a destroyed key has no bytes any more",
        ),
        (
            format!(r#"{{"id": "{ID_2}", "state": "Pending", "material": "{HEX_2}"}}"#),
            "its state is none of",
        ),
        (
            format!(
                r#"{{"id": "{}", "state": "pending", "material": "{HEX_2}"}}"#,
                ID_2.to_uppercase()
            ),
            "its key id is not",
        ),
        (
            format!(
                r#"{{"id": "{ID_2}", "state": "pending", "material": "{}"}}"#,
                &HEX_2[2..]
            ),
            "a key is 64 hex digits",
        ),
        (
            format!(r#"{{"id": "{ID_2}", "state": "pending", "wrapped": "AAA"}}"#),
            "not base64 with padding",
        ),
        (
            format!(r#"{{"id": "{ID_2}", "state": "pending", "wrapped": ""}}"#),
            "not base64 with padding",
        ),
        (
            format!(r#"{{"id": "{ID_2}", "state": "pending", "material": 7}}"#),
            "its fields are texts",
        ),
        (
            format!(r#"{{"id": "{ID_2}", "state": "pending", "material": "{HEX_2}", "key": "x"}}"#),
            "a field that this release does not know",
        ),
        (
            format!(r#"{{"id": "{ID_2}", "state": "pending", "state": "pending", "material": "{HEX_2}"}}"#),
            "it has a field twice",
        ),
    ] {
        let error = error(&file(&format!("{}, {entry}", primary())));
        assert!(
            matches!(error, KeyringError::MalformedKey { entry: Some(2), .. }),
            "{entry}: {error}"
        );
        assert!(error.to_string().contains(rule), "{entry}: {error}");
    }
    let weak = format!(
        r#"{{"id": "{ID_2}", "state": "pending", "material": "{}"}}"#,
        "00".repeat(32)
    );
    let error = error(&file(&format!("{}, {weak}", primary())));
    assert!(
        matches!(error, KeyringError::WeakKey { entry: Some(2), .. }),
        "{error}"
    );
}

#[test]
fn what_no_single_key_shows_is_refused() {
    let (primary, pending) = (primary(), primary().replace("primary", "pending"));
    let wrong = primary.replace(ID, ID_2);
    assert_eq!(error(&file("")), KeyringError::NoPrimary);
    assert_eq!(error(&file(&pending)), KeyringError::NoPrimary);
    assert_eq!(error(&file(&wrong)), KeyringError::WrongKeyMaterial(id(ID_2)));
    assert_eq!(
        error(&file(&format!("{primary}, {pending}"))),
        KeyringError::DuplicateKey(id(ID))
    );
    let second = format!(r#"{{"id": "{ID_2}", "state": "primary", "material": "{HEX_2}"}}"#);
    assert_eq!(
        error(&file(&format!("{primary}, {second}"))),
        KeyringError::SeveralPrimaries
    );
}

#[test]
fn a_wrapped_key_needs_a_key_service() {
    let wrapped = |state| format!(r#"{{"id": "{ID_2}", "state": "{state}", "wrapped": "AAAA"}}"#);
    let text = file(&format!("{}, {}", primary(), wrapped("decrypt-only")));
    let refused = Keyring::parse(&text).unwrap_err();
    assert_eq!(refused, KeyringError::NoKeyService(id(ID_2)));
    assert!(refused.hint().contains("key service"));
    // One that opens nothing needs none.
    let text = file(&format!("{}, {}", primary(), wrapped("disabled")));
    assert_eq!(
        Keyring::parse(&text).unwrap().state(id(ID_2)),
        Some(KeyState::Disabled)
    );
}

#[cfg(unix)]
mod on_disk {
    use std::{
        fs::{self, Permissions},
        io::ErrorKind,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
        path::{Path, PathBuf},
    };

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn with_keyring() -> Self {
            let place = Self::new();
            KeyringFile::create(
                place.path(),
                &KeyringFile::new(KeyMaterial::from_hex(HEX).unwrap()),
            )
            .unwrap();
            place
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("keys.json")
        }

        fn files(&self) -> Vec<String> {
            let mut names: Vec<_> = fs::read_dir(self.0.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_new_file_is_its_owners_alone_and_replaces_nothing() {
        let place = Place::with_keyring();
        assert_eq!(mode(&place.path()), 0o600);
        assert_eq!(place.files(), ["keys.json"]);
        assert_eq!(Keyring::from_file(place.path()).unwrap().primary(), id(ID));

        let other = KeyringFile::new(KeyMaterial::from_hex(HEX_2).unwrap());
        assert_eq!(
            KeyringFile::create(place.path(), &other).unwrap_err(),
            KeyringError::Source(SourceError::AlreadyExists)
        );
        assert_eq!(KeyringFile::load(place.path()).unwrap().primary(), id(ID));
        assert_eq!(place.files(), ["keys.json"]);
    }

    #[test]
    fn a_file_that_cannot_be_written_says_so() {
        let missing = Path::new("/nonexistent/keys.json");
        let keys = KeyringFile::new(KeyMaterial::from_hex(HEX).unwrap());
        let not_found = KeyringError::Source(SourceError::Io(ErrorKind::NotFound));
        assert_eq!(KeyringFile::create(missing, &keys).unwrap_err(), not_found);
        assert_eq!(KeyringFile::edit(missing, |_| Ok(())).unwrap_err(), not_found);
        assert_eq!(KeyringFile::load(missing).unwrap_err(), not_found);
    }

    #[test]
    fn an_edit_replaces_the_file_whole_and_keeps_its_rights() {
        let place = Place::with_keyring();
        fs::set_permissions(place.path(), Permissions::from_mode(0o400)).unwrap();
        let new = KeyringFile::edit(place.path(), |keys| {
            keys.add(KeyMaterial::from_hex(HEX_2).unwrap())
        })
        .unwrap();
        assert_eq!(new, id(ID_2));
        KeyringFile::edit(place.path(), |keys| {
            keys.promote(Distributed::confirmed_by_hand(new))
        })
        .unwrap();
        assert_eq!(mode(&place.path()), 0o400);
        assert_eq!(place.files(), ["keys.json"]);
        assert_eq!(Keyring::from_file(place.path()).unwrap().primary(), new);
    }

    #[test]
    fn an_edit_that_is_refused_leaves_the_file_as_it_was() {
        let place = Place::with_keyring();
        let before = fs::read(place.path()).unwrap();
        let refused = KeyringFile::edit(place.path(), |keys| {
            keys.add(KeyMaterial::from_hex(HEX_2).unwrap())?;
            keys.disable(Unused::confirmed_by_hand(id(ID)))
        });
        assert_eq!(
            refused.unwrap_err(),
            KeyringError::ForbiddenKeyState {
                key: id(ID),
                from: KeyState::Primary,
                to: KeyState::Disabled,
            }
        );
        assert_eq!(fs::read(place.path()).unwrap(), before);
        assert_eq!(place.files(), ["keys.json"]);
    }

    #[test]
    fn entries_with_their_comments_are_not_rewritten() {
        let place = Place::new();
        fs::write(place.path(), format!("# made by ann\nprimary:{HEX}\n")).unwrap();
        fs::set_permissions(place.path(), Permissions::from_mode(0o600)).unwrap();
        let refused = KeyringFile::edit(place.path(), |_| Ok(())).unwrap_err();
        assert!(
            refused.to_string().contains("only the JSON form is edited"),
            "{refused}"
        );
        assert!(fs::read_to_string(place.path()).unwrap().contains("made by ann"));
    }

    #[test]
    fn a_file_that_others_could_change_is_not_edited() {
        let place = Place::with_keyring();
        fs::set_permissions(place.path(), Permissions::from_mode(0o620)).unwrap();
        let exposed = KeyringError::Source(SourceError::Exposed);
        assert_eq!(KeyringFile::load(place.path()).unwrap_err(), exposed);
        assert_eq!(KeyringFile::edit(place.path(), |_| Ok(())).unwrap_err(), exposed);
    }

    #[test]
    fn a_link_goes_on_leading_to_the_file() {
        let place = Place::with_keyring();
        let link = place.0.path().join("link");
        symlink(place.path(), &link).unwrap();
        KeyringFile::edit(&link, |keys| keys.annotate(id(ID), "through the link")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(
            fs::read_to_string(place.path())
                .unwrap()
                .contains("through the link")
        );
    }

    /// Two operators who add keys at the same moment both find theirs in the file; and a process that reads meanwhile
    /// never sees half a file.
    #[test]
    fn editors_at_once_lose_nothing_and_readers_see_whole_files() {
        const EDITORS: usize = 4;
        const KEYS: usize = 8;
        let place = Place::with_keyring();
        std::thread::scope(|scope| {
            let editors: Vec<_> = (0..EDITORS)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..KEYS {
                            KeyringFile::edit(place.path(), |keys| keys.add(KeyMaterial::generate()?))
                                .unwrap();
                        }
                    })
                })
                .collect();
            while !editors.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                KeyringFile::load(place.path()).unwrap();
            }
        });
        let keys = KeyringFile::load(place.path()).unwrap();
        assert_eq!(keys.states().len(), 1 + EDITORS * KEYS);
        assert_eq!(place.files(), ["keys.json"]);
    }
}
