//! What is promised about values of an older system: its own vectors open, and nothing that it would have let through.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]

use biplane::keyring::{
    Context, KeyMaterial, KeyState, Keyring, KeyringError, LegacyEncoding, LegacyKey, LegacyOpener,
    LegacyPolicy, LegacyUse,
};
use proptest::prelude::*;
use secrecy::ExposeSecret;
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    valid: Vec<Valid>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
struct Valid {
    encoding: String,
    key_hex: String,
    value: String,
    plaintext: String,
}

#[derive(Deserialize)]
struct Invalid {
    why: String,
    key_hex: String,
    value: String,
}

fn vectors() -> Vectors {
    let vectors: Vectors = serde_json::from_str(include_str!("vectors/legacy-node.json")).unwrap();
    assert_eq!((vectors.valid.len(), vectors.invalid.len()), (28, 8));
    vectors
}

const KEY: &str = "04c3b62ac127678cc81083f5e2103cd25ae820bebccd9b59556b9754081e2d08";

fn importer(key: &str) -> LegacyOpener {
    LegacyOpener::new(LegacyKey::from_hex(key).unwrap(), LegacyPolicy::ImportOnly)
}

fn import(opener: &LegacyOpener, value: &str) -> Result<Vec<u8>, KeyringError> {
    opener
        .open(value, LegacyUse::Import)
        .map(|secret| secret.expose_secret().to_vec())
}

/// 12-byte IVs, which the vectors lack: made by Node's crypto as they were, with `createCipheriv('aes-256-gcm', key,
/// iv)` for this key, the IV 000102030405060708090a0b and the plaintext "twelve".
const TWELVE_HEX: &str = "000102030405060708090a0b:84ec3903d2781d9365678f894ce3291d:64e11f6c584c";
const TWELVE_BASE64: &str = "AAECAwQFBgcICQoL:hOw5A9J4HZNlZ4+JTOMpHQ==:ZOEfbFhM";

#[test]
fn every_vector_opens_without_being_told_its_encoding() {
    for vector in vectors().valid {
        let opener = importer(&vector.key_hex);
        assert_eq!(
            import(&opener, &vector.value),
            Ok(vector.plaintext.clone().into_bytes())
        );
        let text = opener.open_string(&vector.value, LegacyUse::Import).unwrap();
        assert_eq!(text.expose_secret(), vector.plaintext);
    }
}

#[test]
fn an_iv_of_12_bytes_opens_in_both_encodings() {
    for value in [TWELVE_HEX, TWELVE_BASE64] {
        assert_eq!(import(&importer(KEY), value), Ok(b"twelve".to_vec()));
    }
}

#[test]
fn every_invalid_vector_is_refused_with_its_error() {
    for vector in vectors().invalid {
        let Ok(key) = LegacyKey::from_hex(&vector.key_hex) else {
            assert_eq!(vector.why, "key of 31 bytes");
            continue;
        };
        let id = key.id();
        let error = import(&LegacyOpener::new(key, LegacyPolicy::ImportOnly), &vector.value).unwrap_err();
        match vector.why.as_str() {
            "ciphertext bit flipped" | "iv and tag swapped" | "wrong key" => {
                assert_eq!(error, KeyringError::Authentication(id), "{}", vector.why);
            }
            _ => assert!(
                matches!(error, KeyringError::Malformed(_)),
                "{}: {error}",
                vector.why
            ),
        }
    }
}

#[test]
fn a_value_in_the_other_encoding_says_which_it_is_in_and_which_was_expected() {
    for vector in vectors().valid {
        let (own, other) = match vector.encoding.as_str() {
            "hex" => (LegacyEncoding::Hex, LegacyEncoding::Base64),
            _ => (LegacyEncoding::Base64, LegacyEncoding::Hex),
        };
        assert!(import(&importer(&vector.key_hex).expecting(own), &vector.value).is_ok());
        let error = import(&importer(&vector.key_hex).expecting(other), &vector.value).unwrap_err();
        assert_eq!(
            error,
            KeyringError::LegacyEncoding {
                found: own,
                expected: other
            }
        );
        assert_eq!(
            error.to_string(),
            format!("the legacy value is in {own} where {other} was expected")
        );
    }
}

#[test]
fn every_policy_allows_what_it_says() {
    let value = "4b8bfad494c9b4c5f915ab6a3590bc08:fe56de0ac0e2441b9a960561326f2ff3:";
    for (policy, import, read) in [
        (LegacyPolicy::Deny, false, false),
        (LegacyPolicy::ImportOnly, true, false),
        (LegacyPolicy::ReadThrough, true, true),
    ] {
        let opener = LegacyOpener::new(LegacyKey::from_hex(KEY).unwrap(), policy);
        for (purpose, allowed) in [(LegacyUse::Import, import), (LegacyUse::Read, read)] {
            let result = opener.open(value, purpose);
            match result {
                Ok(_) => assert!(allowed, "{policy:?} {purpose:?}"),
                Err(error) => {
                    assert!(!allowed, "{policy:?} {purpose:?}");
                    assert_eq!(error, KeyringError::LegacyForbidden);
                }
            }
        }
    }
    assert_eq!(LegacyPolicy::default(), LegacyPolicy::Deny);
}

#[test]
fn a_forbidden_value_is_forbidden_before_it_is_looked_at() {
    let opener = LegacyOpener::new(LegacyKey::from_hex(KEY).unwrap(), LegacyPolicy::Deny);
    assert_eq!(
        import(&opener, "garbage").unwrap_err(),
        KeyringError::LegacyForbidden
    );
}

#[test]
fn reads_are_counted_and_imports_and_failures_are_not() {
    let value = "4b8bfad494c9b4c5f915ab6a3590bc08:fe56de0ac0e2441b9a960561326f2ff3:";
    let opener = LegacyOpener::new(LegacyKey::from_hex(KEY).unwrap(), LegacyPolicy::ReadThrough);
    opener.open(value, LegacyUse::Import).unwrap();
    opener.open("garbage", LegacyUse::Read).unwrap_err();
    assert_eq!(opener.reads(), 0);
    opener.open(value, LegacyUse::Read).unwrap();
    opener.open_string(value, LegacyUse::Read).unwrap();
    assert_eq!(opener.reads(), 2);
}

#[test]
fn what_nodes_decoders_let_through_is_refused() {
    let hex = TWELVE_HEX;
    let base64 = TWELVE_BASE64;
    let broken = [
        format!("{hex}z"),
        format!("{hex}zz"),
        format!("{hex}a"),
        format!("{base64}!!"),
        format!("{base64}\n"),
        format!("{base64}="),
        base64.replacen("AAEC", "AA-_", 1),
        hex.replacen("00", "0x", 1),
        hex.replacen("00", "é", 1),
        format!(" {hex}"),
        format!("{hex}:"),
        format!(":{hex}"),
        "::".to_owned(),
        String::new(),
    ];
    for value in broken {
        let error = import(&importer(KEY), &value).unwrap_err();
        assert!(matches!(error, KeyringError::Malformed(_)), "{value}: {error}");
    }
}

#[test]
fn segments_in_different_encodings_are_refused() {
    let hex: Vec<_> = TWELVE_HEX.split(':').collect();
    let base64: Vec<_> = TWELVE_BASE64.split(':').collect();
    for choice in 1..7 {
        let value: Vec<_> = (0..3)
            .map(|i| if choice >> i & 1 == 0 { hex[i] } else { base64[i] })
            .collect();
        let error = import(&importer(KEY), &value.join(":")).unwrap_err();
        // Twelve hexadecimal digits are also base64, for other bytes; then the tag refuses them.
        let digits_as_base64 = choice == 0b011;
        match error {
            KeyringError::Authentication(_) => assert!(digits_as_base64, "{value:?}"),
            error => assert!(matches!(error, KeyringError::Malformed(_)), "{value:?}: {error}"),
        }
    }
}

#[test]
fn tags_of_any_other_length_are_refused() {
    let [iv, tag, text]: [&str; 3] = TWELVE_HEX.split(':').collect::<Vec<_>>().try_into().unwrap();
    for length in 0..tag.len() {
        let value = format!("{iv}:{}:{text}", &tag[..length]);
        let error = import(&importer(KEY), &value).unwrap_err();
        assert!(matches!(error, KeyringError::Malformed(_)), "{length}: {error}");
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let [iv, tag, text]: [&str; 3] = TWELVE_HEX.split(':').collect::<Vec<_>>().try_into().unwrap();
    let digits = format!("{iv}{tag}{text}");
    for at in 0..digits.len() {
        for bit in 0..4 {
            let value = u8::from_str_radix(&digits[at..=at], 16).unwrap() ^ 1 << bit;
            let changed = format!("{}{value:x}{}", &digits[..at], &digits[at + 1..]);
            let (iv, rest) = changed.split_at(iv.len());
            let (tag, text) = rest.split_at(tag.len());
            let error = import(&importer(KEY), &format!("{iv}:{tag}:{text}")).unwrap_err();
            assert!(matches!(error, KeyringError::Authentication(_)));
        }
    }
}

#[test]
fn a_value_over_the_limit_is_refused_undecoded() {
    let tag = "0".repeat(32);
    let value = format!("{tag}:{tag}:{}", "00".repeat(64 * 1024 + 1));
    assert_eq!(
        import(&importer(KEY), &value).unwrap_err(),
        KeyringError::TooLarge
    );
    let largest = format!("{tag}:{tag}:{}", "00".repeat(64 * 1024));
    assert!(matches!(
        import(&importer(KEY), &largest),
        Err(KeyringError::Authentication(_))
    ));
}

#[test]
fn a_legacy_key_may_be_a_passphrase_but_not_one_byte_repeated() {
    let passphrase = b"correct horse battery staple 123";
    assert!(LegacyKey::from_bytes(passphrase).is_ok());
    assert!(matches!(
        KeyMaterial::from_bytes(passphrase),
        Err(KeyringError::WeakKey { .. })
    ));
    for byte in [0, b'a', 0xff] {
        assert!(matches!(
            LegacyKey::from_bytes(&[byte; 32]),
            Err(KeyringError::WeakKey { .. })
        ));
    }
    for length in [0, 16, 31, 33, 64] {
        assert!(matches!(
            LegacyKey::from_bytes(&vec![1; length]),
            Err(KeyringError::MalformedKey { .. })
        ));
    }
}

#[test]
fn a_legacy_key_is_the_same_in_every_spelling() {
    let hex = LegacyKey::from_hex(KEY).unwrap();
    let base64 = LegacyKey::from_base64("BMO2KsEnZ4zIEIP14hA80lroIL68zZtZVWuXVAgeLQg=").unwrap();
    let text = LegacyKey::parse(&format!("{KEY}\n")).unwrap();
    assert_eq!(hex.id(), base64.id());
    assert_eq!(hex.id(), text.id());
    assert_eq!(hex.id(), KeyMaterial::from_hex(KEY).unwrap().id());
}

#[test]
fn an_imported_value_is_sealed_anew() {
    let keyring = Keyring::builder()
        .key(KeyMaterial::generate().unwrap(), KeyState::Primary)
        .build()
        .unwrap();
    let context = Context::new("setting", "tenant", "stripe").unwrap();
    let opened = importer(KEY).open(TWELVE_HEX, LegacyUse::Import).unwrap();
    let sealed = keyring.seal(&context, opened.expose_secret()).unwrap();
    assert_eq!(
        keyring.open_string(&context, &sealed).unwrap().expose_secret(),
        "twelve"
    );
}

#[test]
fn debug_prints_neither_key_nor_value() {
    let printed = format!("{:?}", importer(KEY));
    for at in 0..58 {
        assert!(!printed.contains(&KEY[at..at + 6]), "{printed}");
    }
}

fn texts(error: &KeyringError) -> String {
    let text = format!("{error} {error:?} {}", error.hint());
    match error.key_id() {
        Some(id) => text.replace(&id.to_string(), ""),
        None => text,
    }
}

proptest! {
    #[test]
    fn arbitrary_values_never_panic_open_or_show(
        value in "\\PC{0,120}|[0-9a-f:]{0,120}|[0-9a-f]{32}:[0-9a-f]{32}:[0-9a-f]{0,64}|[A-Za-z0-9+/]{22}==:[A-Za-z0-9+/]{22}==:[A-Za-z0-9+/=]{0,64}"
    ) {
        let error = import(&importer(KEY), &value).unwrap_err();
        let text = texts(&error);
        for piece in value.as_bytes().windows(6) {
            prop_assert!(!text.as_bytes().windows(6).any(|window| window == piece), "{}", error);
        }
    }
}
