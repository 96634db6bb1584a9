//! Keys, loaded in every way, and every way in which that fails.

use std::{env, ffi::OsStr, os::unix::ffi::OsStrExt};

use biplane::keyring::{KeyId, KeyMaterial, KeyState, Keyring, KeyringError, LegacyKey};

use crate::{
    Report,
    canary::{KEY, LEGACY_KEY, OLD_KEY, base64, hex},
    inputs::{Inputs, almost},
};

const VARIABLE: &str = "ALLOCATOR_KEYRING";
const FILE_VARIABLE: &str = "ALLOCATOR_KEYRING_FILE";

pub(crate) fn set(variable: &str, value: impl AsRef<OsStr>) {
    #[inline(never)]
    fn in_a_frame_of_its_own(variable: &str, value: &OsStr) {
        // SAFETY: this program has one thread.
        unsafe { env::set_var(variable, value) };
    }

    in_a_frame_of_its_own(variable, value.as_ref());
    // The standard library puts the value on the stack on its way to the C library. It would be found in the padding of
    // what is boxed next.
    zeroize::zeroize_stack::<{ 16 * 1024 }>();
}

pub(crate) fn unset(variable: &str) {
    // SAFETY: this program has one thread.
    unsafe { env::remove_var(variable) };
}

pub(crate) fn material(report: &mut Report) {
    report.of("a key from bytes", || {
        KeyMaterial::from_bytes(&KEY).unwrap();
    });
    for (what, text) in [
        ("hex", hex(&KEY)),
        ("HEX", hex(&KEY).to_uppercase()),
        ("hex with a newline", hex(&KEY) + "\n"),
        ("base64", base64(&KEY)),
        ("base64url", base64(&KEY).replace('+', "-").replace('/', "_")),
        (
            "base64 without padding",
            base64(&KEY).trim_end_matches('=').to_owned(),
        ),
    ] {
        report.of(&format!("a key from {what}"), || {
            let key = KeyMaterial::parse(&text).unwrap();
            assert_eq!(key.id(), id(&KEY));
        });
    }
    let text = hex(&KEY);
    report.of("a key from from_hex, written as hex and shown", || {
        let key = KeyMaterial::from_hex(&text).unwrap();
        drop(key.to_hex());
        drop(format!("{key:?}"));
    });
    let text = base64(&KEY);
    report.of("a key from from_base64", || {
        KeyMaterial::from_base64(&text).unwrap();
    });
}

pub(crate) fn keyrings(report: &mut Report, inputs: &Inputs) {
    report.of("a keyring from a builder", || {
        let keyring = Keyring::builder()
            .key(KeyMaterial::from_bytes(&KEY).unwrap(), KeyState::Primary)
            .key(KeyMaterial::from_bytes(&OLD_KEY).unwrap(), KeyState::DecryptOnly)
            .key(KeyMaterial::from_bytes(&almost(&KEY)).unwrap(), KeyState::Pending)
            .key(
                KeyMaterial::from_bytes(&almost(&OLD_KEY)).unwrap(),
                KeyState::Pending,
            )
            .key(KeyMaterial::from_bytes(&LEGACY_KEY).unwrap(), KeyState::Pending)
            .build()
            .unwrap();
        drop(keyring.clone());
        drop(format!("{keyring:?}"));
    });
    report.of("a builder that is dropped", || {
        let builder = Keyring::builder().key(KeyMaterial::from_bytes(&KEY).unwrap(), KeyState::Primary);
        drop(format!("{builder:?}"));
    });
    report.of("a keyring from text", || {
        Keyring::parse(&inputs.entries).unwrap();
    });
    let alone = base64(&KEY);
    report.of("a keyring of one bare key", || {
        Keyring::parse(&alone).unwrap();
    });
    set(VARIABLE, &inputs.entries);
    report.of("a keyring from a variable", || {
        Keyring::from_env(VARIABLE).unwrap();
        Keyring::from_env_or_file(VARIABLE, FILE_VARIABLE).unwrap();
    });
    unset(VARIABLE);
    let path = inputs.file("keyring", inputs.entries.as_bytes());
    set(FILE_VARIABLE, &path);
    report.of("a keyring from a file", || {
        Keyring::from_file(&path).unwrap();
        Keyring::from_env_or_file(VARIABLE, FILE_VARIABLE).unwrap();
    });
    unset(FILE_VARIABLE);
}

/// Keys that are refused have been in memory too.
pub(crate) fn refused(report: &mut Report, inputs: &Inputs) {
    let digits = hex(&KEY);
    let characters = base64(&KEY);
    let wrong_digit = format!("{}g", &digits[..63]);
    let wrong_character = format!("{}!=", &characters[..42]);
    let stray_bits = format!("{}=", stray(&characters));
    for (what, text) in [
        ("a wrong digit at the end", &wrong_digit),
        ("a digit too many", &format!("{digits}0")),
        ("a wrong character at the end", &wrong_character),
        ("stray bits at the end", &stray_bits),
        (
            "a space within",
            &format!("{} {}", &characters[..30], &characters[30..]),
        ),
    ] {
        report.of(&format!("refused: a key with {what}"), || {
            drop(KeyMaterial::parse(text).unwrap_err());
            drop(LegacyKey::parse(text).unwrap_err());
            drop(KeyMaterial::from_hex(text).unwrap_err());
            drop(KeyMaterial::from_base64(text).unwrap_err());
            drop(format!("{:?}", Keyring::parse(text).unwrap_err()));
        });
    }
    let long = [&KEY[..], &KEY[..]].concat();
    report.of("refused: twice the bytes", || {
        drop(KeyMaterial::from_bytes(&long).unwrap_err());
        drop(LegacyKey::from_bytes(&long).unwrap_err());
    });

    let entries = &inputs.entries;
    for (what, text, expected) in [
        (
            "a broken entry after good ones",
            format!("{entries}pending:{wrong_digit}\n"),
            "entry 3",
        ),
        (
            "an unknown state",
            format!("{entries}secondary:{digits}\n"),
            "entry 3",
        ),
        (
            "an entry without a state",
            format!("{entries}{digits}\n"),
            "entry 3",
        ),
        (
            "one key twice",
            format!("{entries}pending:{characters}\n"),
            "twice",
        ),
        ("no primary", format!("pending:{digits}"), "primary"),
        (
            "two primaries",
            format!("primary:{}\n{entries}", hex(&LEGACY_KEY)),
            "primary",
        ),
        (
            "another key's id",
            format!("{entries}pending:{}:{}", id(&KEY), hex(&LEGACY_KEY)),
            "another key",
        ),
    ] {
        report.of(&format!("refused: a keyring with {what}"), || {
            let error = Keyring::parse(&text).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        });
    }

    let not_text = [inputs.entries.as_bytes(), b"\xff"].concat();
    set(VARIABLE, OsStr::from_bytes(&not_text));
    report.of("refused: a variable that is not UTF-8", || {
        is_source(Keyring::from_env(VARIABLE));
        is_source(Keyring::from_env_or_file(VARIABLE, FILE_VARIABLE));
        drop(LegacyKey::from_env(VARIABLE).unwrap_err());
    });
    set(VARIABLE, &inputs.entries);
    set(FILE_VARIABLE, "/nowhere");
    report.of("refused: a variable and a file", || {
        is_source(Keyring::from_env_or_file(VARIABLE, FILE_VARIABLE));
    });
    unset(VARIABLE);
    unset(FILE_VARIABLE);
    let large = [inputs.entries.as_bytes(), &[b'#'; 64 * 1024]].concat();
    for (name, content, mode) in [
        ("not-text", not_text, 0o600),
        ("too-large", large, 0o600),
        ("exposed", inputs.entries.clone().into_bytes(), 0o644),
        ("broken", wrong_digit.clone().into_bytes(), 0o600),
    ] {
        let path = inputs.file_with_mode(name, &content, mode);
        report.of(&format!("refused: a file that is {name}"), || {
            drop(Keyring::from_file(&path).unwrap_err());
        });
    }
}

fn is_source(result: Result<Keyring, KeyringError>) {
    assert!(matches!(result.unwrap_err(), KeyringError::Source(_)));
}

fn id(key: &[u8]) -> KeyId {
    KeyMaterial::from_bytes(key).unwrap().id()
}

/// The text of a key with bits set that stand for nothing.
fn stray(base64: &str) -> String {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let last = ALPHABET.find(&base64[42..43]).unwrap();
    format!("{}{}", &base64[..42], &ALPHABET[last + 1..last + 2])
}
