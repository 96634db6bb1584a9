//! Legacy values. The seeds are Node's; nothing opens but those, each under its key, in hex of either case or in base64.

use std::{collections::HashMap, sync::LazyLock};

use biplane::keyring::{KeyringError, LegacyEncoding, LegacyKey, LegacyOpener, LegacyPolicy, LegacyUse};
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::{Alphabet, hex, padded_base64, refused, shown};

const VECTORS: &str = include_str!("../../vectors/legacy-node.json");
/// The keys of the first vectors: each value is tried under all of them.
const KEYS: usize = 6;

#[derive(Deserialize)]
struct Vectors {
    valid: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    key_hex: String,
    value: String,
    plaintext: String,
}

type Decoded = [Vec<u8>; 3];

struct World {
    openers: Vec<LegacyOpener>,
    of_hex: LegacyOpener,
    of_base64: LegacyOpener,
    forbidding: LegacyOpener,
    /// By IV, tag and ciphertext: the opener's number, and what was encrypted.
    genuine: HashMap<Decoded, (usize, String)>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let mut vectors: Vectors = serde_json::from_str(VECTORS).expect("the vectors are JSON");
    vectors.valid.truncate(KEYS);
    // With an IV of 12 bytes, which the file has none of; `tests/keyring_legacy.rs` says how it was made.
    vectors.valid.push(Vector {
        key_hex: vectors.valid[1].key_hex.clone(),
        value: "000102030405060708090a0b:84ec3903d2781d9365678f894ce3291d:64e11f6c584c".to_owned(),
        plaintext: "twelve".to_owned(),
    });
    let keys: Vec<String> = vectors.valid[..KEYS]
        .iter()
        .map(|vector| vector.key_hex.clone())
        .collect();
    let opener = |policy| LegacyOpener::new(key(&keys[0]), policy);
    World {
        openers: keys
            .iter()
            .map(|key| LegacyOpener::new(self::key(key), LegacyPolicy::ReadThrough))
            .collect(),
        of_hex: opener(LegacyPolicy::ImportOnly).expecting(LegacyEncoding::Hex),
        of_base64: opener(LegacyPolicy::ImportOnly).expecting(LegacyEncoding::Base64),
        forbidding: opener(LegacyPolicy::Deny),
        genuine: vectors
            .valid
            .iter()
            .map(|vector| {
                let number = keys
                    .iter()
                    .position(|key| *key == vector.key_hex)
                    .expect("it is one of them");
                let shape = Shape::of(&vector.value).expect("the vectors are well-formed");
                let decoded = shape.decode().expect("the vectors are well-formed");
                (decoded, (number, vector.plaintext.clone()))
            })
            .collect(),
    }
});

fn key(hex: &str) -> LegacyKey {
    LegacyKey::from_hex(hex).expect("the vectors have keys")
}

pub(crate) fn value(input: &[u8]) -> Vec<&'static str> {
    let text = &*String::from_utf8_lossy(input);
    let world = &*WORLD;
    let shape = Shape::of(text);
    let decoded = shape.as_ref().map_err(|refused| *refused).and_then(Shape::decode);

    let mut met = Vec::new();
    for (number, opener) in world.openers.iter().enumerate() {
        let expected = decoded.as_ref().map_err(|refused| *refused).and_then(|decoded| {
            let genuine = world.genuine.get(decoded).filter(|(key, _)| *key == number);
            genuine
                .map(|(_, plaintext)| plaintext.as_str())
                .ok_or("Authentication")
        });
        let before = opener.reads();
        let name = outcome(opener, LegacyUse::Read, text, expected);
        assert_eq!(opener.reads() - before, u64::from(name == "Opened"));
        met.push(name);
        if !matches!(name, "Opened" | "Authentication") {
            // The key makes no difference to any other error.
            break;
        }
    }
    for (opener, own) in [
        (&world.of_hex, Encoding::Hex),
        (&world.of_base64, Encoding::Base64),
    ] {
        let encoding = shape.as_ref().map(|shape| shape.encoding);
        if encoding.is_ok_and(|encoding| encoding != own) {
            met.push(outcome(opener, LegacyUse::Import, text, Err("LegacyEncoding")));
        }
    }
    met.push(outcome(
        &world.forbidding,
        LegacyUse::Import,
        text,
        Err("LegacyForbidden"),
    ));
    met
}

fn outcome(
    opener: &LegacyOpener,
    purpose: LegacyUse,
    value: &str,
    expected: Result<&str, &'static str>,
) -> &'static str {
    assert_eq!(shown(&format!("{opener:?}"), value.as_bytes()), None);
    let result: Result<Vec<u8>, KeyringError> = opener
        .open(value, purpose)
        .map(|secret| secret.expose_secret().to_vec());
    match (result, expected) {
        (Ok(opened), Ok(expected)) => {
            assert_eq!(opened, expected.as_bytes());
            "Opened"
        }
        (Err(error), Err(expected)) => {
            assert_eq!(refused(&error, value.as_bytes()), expected);
            expected
        }
        (Ok(_), Err(expected)) => panic!("opened, and should be {expected}"),
        (Err(error), Ok(_)) => panic!("refused: {error}"),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Hex,
    Base64,
}

/// What the page of the format says of a value that was not opened yet.
struct Shape<'a> {
    encoding: Encoding,
    segments: [&'a str; 3],
}

impl<'a> Shape<'a> {
    fn of(value: &'a str) -> Result<Self, &'static str> {
        let segments: Vec<&str> = value.split(':').collect();
        let segments: [&str; 3] = segments.try_into().map_err(|_| "Malformed")?;
        let encoding = match (segments[0].len(), segments[1].len()) {
            (32 | 24, 32) => Encoding::Hex,
            (24 | 16, 24) => Encoding::Base64,
            _ => return Err("Malformed"),
        };
        Ok(Self { encoding, segments })
    }

    fn decode(&self) -> Result<Decoded, &'static str> {
        const LARGEST: usize = 64 * 1024;
        let decode = |text: &str| {
            match self.encoding {
                Encoding::Hex => hex(text),
                Encoding::Base64 => padded_base64(text, Alphabet::Standard),
            }
            .ok_or("Malformed")
        };
        let [iv, tag, ciphertext] = self.segments;
        let (iv, tag) = (decode(iv)?, decode(tag)?);
        // The same number of characters of base64 is more bytes with less padding.
        if tag.len() != 16 || !matches!(iv.len(), 12 | 16) {
            return Err("Malformed");
        }
        let padding = ciphertext
            .bytes()
            .rev()
            .take(2)
            .take_while(|last| *last == b'=')
            .count();
        let length = match self.encoding {
            Encoding::Hex => ciphertext.len() / 2,
            Encoding::Base64 => (ciphertext.len() / 4 * 3).saturating_sub(padding),
        };
        if length > LARGEST {
            return Err("TooLarge");
        }
        Ok([iv, tag, decode(ciphertext)?])
    }
}
