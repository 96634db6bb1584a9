//! The targets. `tests/fuzz/main.rs` drives them, and so does libFuzzer through `tests/fuzz/libfuzzer`.

pub(crate) mod keys;
pub(crate) mod legacy;
pub(crate) mod sealed;

use std::{
    collections::HashSet,
    error::Error,
    fs,
    path::Path,
    sync::{LazyLock, Mutex, PoisonError},
};

use biplane::keyring::KeyringError;

/// What an input led to: the names of errors, or of what was read. It panics where a promise is broken.
pub(crate) type Target = fn(&[u8]) -> Vec<&'static str>;

/// The name of an error, once it is known that it shows nothing of the input.
pub(crate) fn refused(error: &KeyringError, input: &[u8]) -> &'static str {
    let mut all = format!("{error}\n{error:?}\n{}\n", error.hint());
    let mut cause = error.source();
    while let Some(error) = cause {
        all.push_str(&format!("{error}\n{error:?}\n"));
        cause = error.source();
    }
    // A key's id is public, and what tells an operator which key it is about.
    if let Some(id) = error.key_id() {
        all = all.replace(&id.to_string(), "");
    }
    if let Some(piece) = shown(&all, input) {
        panic!("{piece:?} of the input is shown: {all}");
    }
    match error {
        KeyringError::Malformed(_) => "Malformed",
        KeyringError::UnsupportedVersion => "UnsupportedVersion",
        KeyringError::UnsupportedSuite => "UnsupportedSuite",
        KeyringError::UnknownKey(_) => "UnknownKey",
        KeyringError::KeyDisabled(_) => "KeyDisabled",
        KeyringError::KeyDestroyed(_) => "KeyDestroyed",
        KeyringError::WrongKeyMaterial(_) => "WrongKeyMaterial",
        KeyringError::Authentication(_) => "Authentication",
        KeyringError::LegacyForbidden => "LegacyForbidden",
        KeyringError::LegacyEncoding { .. } => "LegacyEncoding",
        KeyringError::TooLarge => "TooLarge",
        KeyringError::NoKeyService(_) => "NoKeyService",
        KeyringError::MalformedKey { .. } => "MalformedKey",
        KeyringError::WeakKey { .. } => "WeakKey",
        KeyringError::MalformedFile { .. } => "MalformedFile",
        KeyringError::DuplicateKey(_) => "DuplicateKey",
        KeyringError::NoPrimary => "NoPrimary",
        KeyringError::SeveralPrimaries => "SeveralPrimaries",
        other => panic!("no input leads to this error: {other}"),
    }
}

const PIECE: usize = 6;

/// The first six bytes in a row that the text shares with the input, but for our own words.
///
/// Those are what stands in the source of the keyring, which an input may hold by chance or because they are words of the
/// format; and any text that came before from an input which did not hold them. A text that repeats its input is new with
/// each input.
pub(crate) fn shown(text: &str, input: &[u8]) -> Option<String> {
    static OURS: LazyLock<HashSet<[u8; PIECE]>> = LazyLock::new(our_words);
    static SEEN: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
    const MOST: usize = 10_000;
    let text = without_numbers(text);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.contains(&text) {
        return None;
    }
    let foreign: HashSet<&[u8; PIECE]> = text
        .as_bytes()
        .array_windows()
        .filter(|piece| !OURS.contains(*piece))
        .collect();
    let shown = input.array_windows().find(|piece| foreign.contains(piece));
    if shown.is_none() {
        seen.insert(text);
        assert!(seen.len() < MOST, "texts that are not constant");
    }
    shown.map(|piece| String::from_utf8_lossy(piece).into_owned())
}

/// Numbers of lines, entries and bytes are not the input's. Longer ones might be.
fn without_numbers(text: &str) -> String {
    text.split_inclusive(|c: char| !c.is_ascii_digit())
        .map(|part| {
            let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
            if part.len() - rest.len() < PIECE {
                rest
            } else {
                part
            }
        })
        .collect()
}

fn our_words() -> HashSet<[u8; PIECE]> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = manifest
        .ancestors()
        .map(|above| above.join("src/keyring"))
        .find(|folder| folder.is_dir())
        .expect("the sources are there");
    let mut words = HashSet::new();
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let source = fs::read_to_string(entry.expect("it can be listed").path()).expect("sources are text");
        // Tests and documentation have keys and values, which are not ours to say.
        let code = source.split("mod tests {").next().unwrap_or_default();
        let mut text = String::new();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            match line.strip_suffix('\\') {
                Some(goes_on) => text.push_str(goes_on.trim_start()),
                None => {
                    text.push_str(line.trim_start());
                    text.push('\n');
                }
            }
        }
        for text in [text.replace("\\\"", "\""), text] {
            words.extend(text.as_bytes().array_windows::<PIECE>());
        }
    }
    words
}

// ------------------------------------------------------- decoders of our own, which share nothing with those of the crate

pub(crate) fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|value| value as u8))
        .collect();
    let digits = digits?;
    digits
        .len()
        .is_multiple_of(2)
        .then(|| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Clone, Copy)]
pub(crate) enum Alphabet {
    Standard,
    Url,
}

impl Alphabet {
    const fn characters(self) -> &'static [u8; 64] {
        match self {
            Self::Standard => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
            Self::Url => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
        }
    }
}

/// Unpadded base64 in its one spelling.
pub(crate) fn base64(text: &str, alphabet: Alphabet) -> Option<Vec<u8>> {
    let characters = alphabet.characters();
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for character in text.bytes() {
        let value = characters.iter().position(|known| *known == character)?;
        bits = bits << 6 | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (count < 6 && bits == 0).then_some(bytes)
}

/// Padded base64 in its one spelling.
pub(crate) fn padded_base64(text: &str, alphabet: Alphabet) -> Option<Vec<u8>> {
    let unpadded = text.trim_end_matches('=');
    let padding = text.len() - unpadded.len();
    (text.len().is_multiple_of(4) && padding == (4 - unpadded.len() % 4) % 4)
        .then(|| base64(unpadded, alphabet))
        .flatten()
}
