//! Keys as text: one key, the entries of a variable, and the file of JSON.

use std::collections::BTreeMap;

use biplane::keyring::{KeyMaterial, Keyring, KeyringError, KeyringFile, LegacyKey};
use secrecy::ExposeSecret;
use serde_json::Value;

use super::{Alphabet, base64, hex, padded_base64, refused, shown, to_hex};

pub(crate) fn input(input: &[u8]) -> Vec<&'static str> {
    let text = &*String::from_utf8_lossy(input);
    let mut met = one_key(text);
    // What begins with a brace is a file of JSON, which is another target.
    if !text.trim_start().starts_with('{') {
        met.extend(entries(text));
    }
    met
}

fn one_key(text: &str) -> Vec<&'static str> {
    let bytes = key_bytes(text);
    let expected = bytes.as_ref().ok_or("MalformedKey");
    let is_repeated = |bytes: &Vec<u8>| bytes.iter().all(|byte| *byte == bytes[0]);
    let is_printable = |bytes: &Vec<u8>| bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
    let strong = expected.and_then(|bytes| match is_repeated(bytes) || is_printable(bytes) {
        true => Err("WeakKey"),
        false => Ok(bytes),
    });
    let legacy = expected.and_then(|bytes| {
        if is_repeated(bytes) {
            Err("WeakKey")
        } else {
            Ok(bytes)
        }
    });

    let mut met = Vec::new();
    met.push(match (KeyMaterial::parse(text), strong) {
        (Ok(key), Ok(bytes)) => {
            assert_eq!(key.to_hex().expose_secret(), to_hex(bytes));
            assert_eq!(
                key.id(),
                KeyMaterial::from_bytes(bytes).expect("it is a key").id()
            );
            assert_nothing_is_printed(&key, text);
            "Key"
        }
        (Err(error), Err(expected)) => {
            assert_eq!(refused(&error, text.as_bytes()), expected);
            expected
        }
        (Ok(_), Err(expected)) => panic!("read, and should be {expected}"),
        (Err(error), Ok(_)) => panic!("refused: {error}"),
    });
    match (LegacyKey::parse(text), legacy) {
        (Ok(key), Ok(bytes)) => {
            assert_eq!(key.id(), LegacyKey::from_bytes(bytes).expect("it is a key").id());
            assert_nothing_is_printed(&key, text);
        }
        (Err(error), Err(expected)) => assert_eq!(refused(&error, text.as_bytes()), expected),
        (Ok(_), Err(expected)) => panic!("read, and should be {expected}"),
        (Err(error), Ok(_)) => panic!("refused: {error}"),
    }
    met
}

fn entries(text: &str) -> Vec<&'static str> {
    let read = read_file(text);
    if let Ok(file) = &read {
        assert_eq!(written(file), entries_as_documented(text));
    }
    vec![outcome(text, read.as_ref())]
}

pub(crate) fn file(input: &[u8]) -> Vec<&'static str> {
    let text = &*String::from_utf8_lossy(input);
    if !text.trim_start().starts_with('{') {
        return Vec::new();
    }
    let read = read_file(text);
    match &read {
        Ok(file) => {
            let given: Value = serde_json::from_str(text).expect("what was read is JSON");
            assert_eq!(
                written(file),
                by_id(&given),
                "what was written is not what was read"
            );
            assert!(!text.contains('\\'));
            // serde_json keeps the last of two fields of one name.
            let fields = |object: &Value| object.as_object().expect("it is an object").len();
            let keys = given["keys"].as_array().expect("it has keys");
            let kept = fields(&given) + keys.iter().map(fields).sum::<usize>();
            assert_eq!(kept, names(text), "a field is there twice");
        }
        Err(KeyringError::MalformedFile { line: Some(line), .. }) => {
            assert!((1..=text.split('\n').count()).contains(line), "line {line}");
            if let Some((before, _)) = text.split_once('\\') {
                assert_eq!(*line, before.split('\n').count());
            }
        }
        Err(error) => {
            // Only what is no JSON, or has no place for a line, may be refused without one.
            assert!(!text.contains('\\'), "an escape was read before this: {error}");
        }
    }
    vec![outcome(text, read.as_ref())]
}

/// How many names of fields there are in JSON without escapes: texts that a colon follows.
fn names(json: &str) -> usize {
    let parts: Vec<&str> = json.split('"').collect();
    // Every other part is inside of quotation marks.
    (1..parts.len())
        .step_by(2)
        .filter(|text| parts[text + 1].trim_start().starts_with(':'))
        .count()
}

/// Reads it, and what was read again from the form in which it is written, which must say the same.
fn read_file(text: &str) -> Result<KeyringFile, KeyringError> {
    let file = KeyringFile::parse(text)?;
    let canonical = file.to_text();
    let again = KeyringFile::parse(canonical.expose_secret()).expect("what is written is read");
    assert_eq!(again.to_text().expose_secret(), canonical.expose_secret());
    assert!(file.states().eq(again.states()));
    assert!(file.states().any(|(id, _)| id == file.primary()));
    assert_nothing_is_printed(&file, text);
    Ok(file)
}

fn outcome(text: &str, file: Result<&KeyringFile, &KeyringError>) -> &'static str {
    match (Keyring::parse(text), file) {
        (Ok(keyring), Ok(file)) => {
            assert!(file.states().eq(keyring.states()));
            assert_eq!(keyring.primary(), file.primary());
            assert_nothing_is_printed(&keyring, text);
            "Keyring"
        }
        (Err(error), Ok(_)) => {
            let name = refused(&error, text.as_bytes());
            assert_eq!(name, "NoKeyService", "the file was read: {error}");
            name
        }
        (Err(error), Err(same)) => {
            assert_eq!(&error, same);
            refused(&error, text.as_bytes())
        }
        (Ok(_), Err(error)) => panic!("the file was refused, and the keyring read: {error}"),
    }
}

/// Ids and states are printed, and they are words of ours or public.
fn assert_nothing_is_printed(value: &impl std::fmt::Debug, text: &str) {
    let printed = format!("{value:?}");
    let without_ids: String = printed
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty() && (word.len() != 16 || hex(word).is_none()))
        .collect::<Vec<_>>()
        .join(" ");
    assert_eq!(shown(&without_ids, text.as_bytes()), None);
}

/// The bytes of a key that is written as the documentation of `KeyMaterial::parse` says.
fn key_bytes(text: &str) -> Option<Vec<u8>> {
    let text = match text.strip_suffix('\n') {
        Some(line) => line.strip_suffix('\r').unwrap_or(line),
        None => text,
    };
    let either = |decode: &dyn Fn(Alphabet) -> Option<Vec<u8>>| {
        decode(Alphabet::Standard).or_else(|| decode(Alphabet::Url))
    };
    match text.len() {
        64 => hex(text),
        43 => either(&|alphabet| base64(text, alphabet)),
        44 => either(&|alphabet| padded_base64(text, alphabet)),
        _ => None,
    }
    .filter(|bytes| bytes.len() == 32)
}

/// State, and the bytes of the key, wrapped or not, by its id; and the note.
type Keys = BTreeMap<String, (String, Option<Vec<u8>>, Option<Vec<u8>>, Option<String>)>;

/// What the form says that the file is written in.
fn written(file: &KeyringFile) -> Keys {
    by_id(&serde_json::from_str(file.to_text().expose_secret()).expect("the form is JSON"))
}

fn by_id(file: &Value) -> Keys {
    let keys = file["keys"].as_array().expect("it has keys");
    let by_id: Keys = keys
        .iter()
        .map(|key| {
            let text = |name: &str| {
                key.get(name)
                    .map(|value| value.as_str().expect("it is a text").to_owned())
            };
            let material = text("material").map(|text| key_bytes(&text).expect("it is a key"));
            let wrapped =
                text("wrapped").map(|text| padded_base64(&text, Alphabet::Standard).expect("it is base64"));
            let state = text("state").expect("it has a state");
            (
                text("id").expect("it has an id"),
                (state, material, wrapped, text("note")),
            )
        })
        .collect();
    assert_eq!(by_id.len(), keys.len(), "an id is there twice");
    by_id
}

/// The entries that the documentation of `KeyringFile::parse` finds in a text.
fn entries_as_documented(text: &str) -> Keys {
    let entries: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .collect();
    let by_id: Keys = entries
        .iter()
        .map(|entry| {
            let parts: Vec<&str> = entry.split(':').collect();
            let id_of = |bytes: &[u8]| {
                KeyMaterial::from_bytes(bytes)
                    .expect("it is a key")
                    .id()
                    .to_string()
            };
            let key = |text: &str| key_bytes(text).expect("it is a key");
            match parts[..] {
                [material] if entries.len() == 1 => {
                    let bytes = key(material);
                    (id_of(&bytes), ("primary".to_owned(), Some(bytes), None, None))
                }
                ["destroyed", id] => (id.to_owned(), ("destroyed".to_owned(), None, None, None)),
                [state, material] => {
                    let bytes = key(material);
                    (id_of(&bytes), (state.to_owned(), Some(bytes), None, None))
                }
                [state, id, material] => {
                    let bytes = key(material);
                    assert_eq!(id, id_of(&bytes));
                    (id.to_owned(), (state.to_owned(), Some(bytes), None, None))
                }
                _ => panic!("it has an entry that is none"),
            }
        })
        .collect();
    assert_eq!(by_id.len(), entries.len(), "an id is there twice");
    by_id
}
