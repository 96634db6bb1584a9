//! What a sealed value promises: it opens for ever, in its own context alone, and in no other form.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]

use std::{collections::HashSet, num::NonZeroU32};

use aes_gcm::{Aes256Gcm, Key, KeyInit, Nonce, aead::AeadInOut, aes::Aes256};
use biplane::{
    keyring::{Context, KeyId, KeyMaterial, KeyState, Keyring, KeyringError, Sealed},
    secret::{Credential, SecretBytes},
    tenant::{DataSourceId, Role, SealedText},
};
use proptest::prelude::*;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    key: String,
    key_id: String,
    purpose: String,
    owner: String,
    field: String,
    plaintext: String,
    envelope: String,
    text: String,
}

fn golden() -> Vec<Case> {
    let golden: Golden = serde_json::from_str(include_str!("vectors/envelope-v1.json")).unwrap();
    assert_eq!(golden.cases.len(), 20);
    golden.cases
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

/// A key whose bytes follow from `seed`.
fn material(seed: u8) -> KeyMaterial {
    let bytes: [u8; 32] = std::array::from_fn(|i| (i as u8).wrapping_mul(37).wrapping_add(seed));
    KeyMaterial::from_bytes(&bytes).unwrap()
}

fn keyring() -> Keyring {
    keyring_in(KeyState::Primary)
}

/// Key 1 in this state, and if that is not the primary one, key 2 as primary.
fn keyring_in(state: KeyState) -> Keyring {
    let builder = Keyring::builder().key(material(1), state);
    match state {
        KeyState::Primary => builder,
        _ => builder.key(material(2), KeyState::Primary),
    }
    .build()
    .unwrap()
}

fn context() -> Context<'static> {
    Context::new("credential", "018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e57", "app").unwrap()
}

fn opened(result: Result<SecretBytes, KeyringError>) -> Result<Vec<u8>, KeyringError> {
    result.map(|secret| secret.expose_secret().to_vec())
}

/// Both forms of a value are opened; they must agree.
fn open(keyring: &Keyring, context: &Context<'_>, bytes: &[u8]) -> Result<Vec<u8>, KeyringError> {
    let sealed = Sealed::from_bytes(bytes)?;
    let binary = opened(keyring.open(context, &sealed));
    let text = sealed.to_text();
    assert_eq!(opened(keyring.open_text(context, text.as_str())), binary);
    assert_eq!(Sealed::parse(text.as_str()).unwrap(), sealed);
    binary
}

#[test]
fn golden_envelopes_open_in_both_forms() {
    for case in golden() {
        let key = KeyMaterial::from_hex(&case.key).unwrap();
        assert_eq!(key.id().to_string(), case.key_id);
        let keyring = Keyring::builder().key(key, KeyState::Primary).build().unwrap();
        let context = Context::new(&case.purpose, &case.owner, &case.field).unwrap();
        let plaintext = unhex(&case.plaintext);
        assert_eq!(
            open(&keyring, &context, &unhex(&case.envelope)),
            Ok(plaintext.clone())
        );
        assert_eq!(
            opened(keyring.open_text(&context, &case.text)),
            Ok(plaintext.clone())
        );

        let sealed = Sealed::parse(&case.text).unwrap();
        assert_eq!(sealed.as_bytes(), unhex(&case.envelope));
        assert_eq!(sealed.to_text().as_str(), case.text);
        assert_eq!(sealed.key_id().to_string(), case.key_id);
        assert_eq!(sealed.plaintext_len(), plaintext.len());
        assert_eq!(sealed.as_bytes().len(), plaintext.len() + 82);
    }
}

#[test]
fn every_flipped_bit_is_refused_with_the_error_of_its_field() {
    let sealed = keyring().seal(&context(), b"a secret of some length").unwrap();
    let id = keyring().primary();
    for bit in 0..8 * sealed.as_bytes().len() {
        let mut bytes = sealed.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = open(&keyring(), &context(), &bytes).unwrap_err();
        let expected = match bit / 8 {
            0 => KeyringError::UnsupportedVersion,
            1 => KeyringError::UnsupportedSuite,
            2..10 => {
                let named: [u8; 8] = bytes[2..10].try_into().unwrap();
                KeyringError::UnknownKey(KeyId::from_bytes(named))
            }
            _ => KeyringError::Authentication(id),
        };
        assert_eq!(error, expected, "bit {bit}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let sealed = keyring().seal(&context(), b"a secret of some length").unwrap();
    for length in 0..sealed.as_bytes().len() {
        let error = open(&keyring(), &context(), &sealed.as_bytes()[..length]).unwrap_err();
        if length < Sealed::OVERHEAD {
            assert!(matches!(error, KeyringError::Malformed(_)), "{length}: {error}");
        } else {
            assert_eq!(
                error,
                KeyringError::Authentication(keyring().primary()),
                "{length}"
            );
        }
    }
    let text = sealed.to_text();
    for length in 0..text.as_str().len() {
        let error = keyring()
            .open_text(&context(), &text.as_str()[..length])
            .unwrap_err();
        assert!(
            matches!(
                error,
                KeyringError::Malformed(_) | KeyringError::Authentication(_)
            ),
            "{length}: {error}"
        );
    }
}

#[test]
fn every_extension_is_refused() {
    let sealed = keyring().seal(&context(), b"secret").unwrap();
    for extra in 1..40 {
        for byte in [0, 0xff] {
            let mut bytes = sealed.as_bytes().to_vec();
            bytes.extend(std::iter::repeat_n(byte, extra));
            assert_eq!(
                open(&keyring(), &context(), &bytes),
                Err(KeyringError::Authentication(keyring().primary()))
            );
        }
    }
}

#[test]
fn a_value_opens_in_its_own_context_alone() {
    let parts = ["credential", "owner", "field"];
    let sealed = keyring()
        .seal(&Context::new(parts[0], parts[1], parts[2]).unwrap(), b"secret")
        .unwrap();
    let others = [
        ["setting", "owner", "field"],
        ["credential", "another", "field"],
        ["credential", "owner", "another"],
        ["credential", "field", "owner"],
        ["owner", "credential", "field"],
        ["owner", "field", "credential"],
        ["field", "owner", "credential"],
        ["field", "credential", "owner"],
        ["Credential", "owner", "field"],
        ["credential", "owner", ""],
        ["", "owner", "field"],
        ["credential", "owner ", "field"],
    ];
    for [purpose, owner, field] in others {
        let context = Context::new(purpose, owner, field).unwrap();
        assert_eq!(
            open(&keyring(), &context, sealed.as_bytes()),
            Err(KeyringError::Authentication(keyring().primary())),
            "{context:?}"
        );
    }
}

#[test]
fn parts_of_a_context_do_not_run_into_each_other() {
    let splits = [
        ["p", "ab", "c"],
        ["p", "a", "bc"],
        ["pa", "b", "c"],
        ["p", "abc", ""],
        ["", "pab", "c"],
    ];
    for sealed_for in splits {
        let [purpose, owner, field] = sealed_for;
        let sealed = keyring()
            .seal(&Context::new(purpose, owner, field).unwrap(), b"secret")
            .unwrap();
        for [purpose, owner, field] in splits {
            let context = Context::new(purpose, owner, field).unwrap();
            let result = open(&keyring(), &context, sealed.as_bytes());
            assert_eq!(result.is_ok(), [purpose, owner, field] == sealed_for);
        }
    }
}

#[test]
fn a_part_of_a_context_has_at_most_65535_bytes() {
    let longest = "x".repeat(65_535);
    let context = Context::new(&longest, &longest, &longest).unwrap();
    let sealed = keyring().seal(&context, b"secret").unwrap();
    assert_eq!(
        open(&keyring(), &context, sealed.as_bytes()),
        Ok(b"secret".to_vec())
    );

    let over = "x".repeat(65_536);
    for [purpose, owner, field] in [[&*over, "", ""], ["", &over, ""], ["", "", &over]] {
        assert_eq!(
            Context::new(purpose, owner, field).unwrap_err(),
            KeyringError::TooLarge
        );
    }
}

#[test]
fn the_context_of_a_credential_is_the_data_source_and_the_role() {
    let source: DataSourceId = "018F4E7A-5C1B-7CC0-8000-2F6A3C1D9E57".parse().unwrap();
    for role in Role::ALL {
        let spelled = Context::new(
            "credential",
            "018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e57",
            role.as_str(),
        )
        .unwrap();
        let context = Context::credential(source, role);
        assert_eq!(context, spelled);
        let of_uuid = Context::of_uuid("credential", source.as_uuid(), role.as_str()).unwrap();
        let sealed = keyring().seal(&context, b"secret").unwrap();
        assert!(keyring().open(&spelled, &sealed).is_ok());
        assert!(keyring().open(&of_uuid, &sealed).is_ok());
    }
}

#[test]
fn a_credential_opens_for_its_data_source_and_role_alone() {
    let (source, other) = (DataSourceId::new(), DataSourceId::new());
    let credential = Credential::new("app", SecretString::from("p@ss:w/ord")).unwrap();
    let sealed = keyring().seal_credential(source, Role::App, &credential).unwrap();

    let back = keyring().open_credential(source, Role::App, &sealed).unwrap();
    assert_eq!(back.username(), "app");
    assert_eq!(back.password().unwrap().expose_secret(), "p@ss:w/ord");
    for (source, role) in [
        (source, Role::Service),
        (source, Role::ReadOnly),
        (other, Role::App),
    ] {
        assert_eq!(
            keyring().open_credential(source, role, &sealed).unwrap_err(),
            KeyringError::Authentication(keyring().primary())
        );
    }
}

#[test]
fn what_is_no_credential_is_not_opened_as_one() {
    let context = Context::credential(DataSourceId::DEFAULT, Role::App);
    let open = |plaintext: &[u8]| {
        let sealed = keyring().seal(&context, plaintext).unwrap().to_text();
        keyring()
            .open_credential(DataSourceId::DEFAULT, Role::App, &sealed)
            .unwrap_err()
    };
    assert_eq!(open(b"user\0\xff"), KeyringError::NotUtf8);
    assert!(matches!(open(b""), KeyringError::Malformed(_)));
    assert!(matches!(open(b"a\0b\0c"), KeyringError::Malformed(_)));
    let plain = SealedText::new("app:password");
    let refused = keyring().open_credential(DataSourceId::DEFAULT, Role::App, &plain);
    assert!(matches!(refused, Err(KeyringError::Malformed(_))));
}

#[test]
fn every_state_opens_and_only_the_primary_key_seals() {
    let sealed = keyring().seal(&context(), b"secret").unwrap();
    for state in [KeyState::Pending, KeyState::Primary, KeyState::DecryptOnly] {
        let keyring = keyring_in(state);
        assert_eq!(
            open(&keyring, &context(), sealed.as_bytes()),
            Ok(b"secret".to_vec()),
            "{state}"
        );
        let new = keyring.seal(&context(), b"new").unwrap();
        let rebound = keyring.rebind(&context(), &context(), &sealed).unwrap();
        let expected = match state {
            KeyState::Primary => material(1).id(),
            _ => material(2).id(),
        };
        assert_eq!((new.key_id(), rebound.key_id()), (expected, expected), "{state}");
        assert_eq!(keyring.primary(), expected);
    }
}

#[test]
fn a_value_under_a_key_that_is_not_there_names_the_key() {
    let sealed = keyring().seal(&context(), b"secret").unwrap();
    let other = Keyring::builder()
        .key(material(2), KeyState::Primary)
        .build()
        .unwrap();
    assert_eq!(
        open(&other, &context(), sealed.as_bytes()),
        Err(KeyringError::UnknownKey(material(1).id()))
    );
}

/// That the commitment refuses even a ciphertext which is made to authenticate under both keys, a unit test of the
/// cipher shows.
#[test]
fn a_value_renamed_to_another_key_does_not_open() {
    let both = Keyring::builder()
        .key(material(1), KeyState::Primary)
        .key(material(2), KeyState::DecryptOnly)
        .build()
        .unwrap();
    let sealed = both.seal(&context(), b"secret").unwrap();
    let mut bytes = sealed.as_bytes().to_vec();
    bytes[2..10].copy_from_slice(material(2).id().as_bytes());
    assert_eq!(
        open(&both, &context(), &bytes),
        Err(KeyringError::Authentication(material(2).id()))
    );
}

/// The commitments of two values are exchanged while nonce, ciphertext and tag stay genuine.
#[test]
fn the_commitment_belongs_to_the_nonce() {
    let (one, two) = (
        keyring().seal(&context(), b"secret").unwrap(),
        keyring().seal(&context(), b"secret").unwrap(),
    );
    let at = one.as_bytes().len() - 32;
    let mixed = [&one.as_bytes()[..at], &two.as_bytes()[at..]].concat();
    assert_eq!(
        open(&keyring(), &context(), &mixed),
        Err(KeyringError::Authentication(keyring().primary()))
    );
}

#[test]
fn rebinding_moves_a_value_and_leaves_the_old_one() {
    let elsewhere = Context::new("credential", "018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e58", "app").unwrap();
    let sealed = keyring().seal(&context(), b"secret").unwrap();
    let moved = keyring().rebind(&context(), &elsewhere, &sealed).unwrap();
    assert_eq!(opened(keyring().open(&elsewhere, &moved)), Ok(b"secret".to_vec()));
    assert!(keyring().open(&context(), &moved).is_err());
    assert!(keyring().rebind(&elsewhere, &context(), &sealed).is_err());
}

#[test]
fn sealing_twice_never_gives_the_same_nonce() {
    let keyring = keyring();
    let nonces: HashSet<[u8; 24]> = (0..1_000)
        .map(|_| {
            keyring.seal(&context(), b"").unwrap().as_bytes()[10..34]
                .try_into()
                .unwrap()
        })
        .collect();
    assert_eq!(nonces.len(), 1_000);
}

#[test]
fn the_limit_holds_for_sealing_and_for_opening() {
    let usual = keyring();
    let largest = vec![7; 64 * 1024];
    let sealed = usual.seal(&context(), &largest).unwrap();
    assert_eq!(open(&usual, &context(), sealed.as_bytes()), Ok(largest));
    assert_eq!(
        usual.seal(&context(), &vec![7; 64 * 1024 + 1]).unwrap_err(),
        KeyringError::TooLarge
    );

    let wider = Keyring::builder()
        .key(material(1), KeyState::Primary)
        .max_plaintext(NonZeroU32::new(64 * 1024 + 1).unwrap())
        .build()
        .unwrap();
    let sealed = wider.seal(&context(), &vec![7; 64 * 1024 + 1]).unwrap();
    assert!(open(&wider, &context(), sealed.as_bytes()).is_ok());
    assert_eq!(
        open(&usual, &context(), sealed.as_bytes()),
        Err(KeyringError::TooLarge)
    );
}

#[test]
fn text_has_one_spelling() {
    // 83 bytes of envelope leave two unused bits in the last character, 84 leave four… all lengths are tried.
    for length in 0..4 {
        let text = keyring().seal(&context(), &vec![1; length]).unwrap().to_text();
        let text = text.as_str();
        let (head, body) = text.rsplit_once('.').unwrap();
        let last = body.chars().next_back().unwrap();
        let mut variants = vec![
            format!("{}.{body}", head.to_uppercase()),
            format!("bp1.{}.{body}", head[4..].to_uppercase()),
            format!("{text}="),
            format!("{text}=="),
            format!("{text}\n"),
            format!(" {text}"),
            format!("{text}."),
            format!("{head}.{} {}", &body[..8], &body[8..]),
            format!("{head}{body}"),
            text.replacen("bp1.", "bp01.", 1),
            text.replacen("bp1.", "bp.", 1),
            text.replacen("bp1.", "", 1),
            text.replacen("bp1.", "bp1.0", 1),
        ];
        if body.contains(['-', '_']) {
            variants.push(format!("{head}.{}", body.replace('-', "+").replace('_', "/")));
        }
        if !body.len().is_multiple_of(4) {
            // The neighbour of the last character differs in bits that stand for nothing.
            let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let at = alphabet.find(last).unwrap();
            let neighbour = &alphabet[at + 1..at + 2];
            variants.push(format!("{head}.{}{neighbour}", &body[..body.len() - 1]));
        }
        for variant in variants {
            let error = keyring().open_text(&context(), &variant).unwrap_err();
            assert!(matches!(error, KeyringError::Malformed(_)), "{variant}: {error}");
            assert_eq!(Sealed::parse(&variant).unwrap_err(), error);
        }
    }
}

#[test]
fn later_versions_are_told_from_garbage() {
    let text = keyring().seal(&context(), b"x").unwrap().to_text();
    for later in ["bp2.", "bp10.", "bp999."] {
        let text = text.as_str().replacen("bp1.", later, 1);
        assert_eq!(
            keyring().open_text(&context(), &text).unwrap_err(),
            KeyringError::UnsupportedVersion
        );
    }
    for other in [
        "",
        "bp1",
        "postgres://app:secret@db/x",
        "enc:v1:abc",
        "bp1.",
        "bp1..",
        "bpx.",
        "bp.1",
    ] {
        let error = keyring().open_text(&context(), other).unwrap_err();
        assert!(matches!(error, KeyringError::Malformed(_)), "{other}: {error}");
    }
}

#[test]
fn text_that_is_not_utf8_is_an_error_of_its_own() {
    let sealed = keyring().seal(&context(), b"\xff\xfe").unwrap();
    assert_eq!(
        keyring().open_string(&context(), &sealed).unwrap_err(),
        KeyringError::NotUtf8
    );
    let sealed = keyring().seal(&context(), "ключ".as_bytes()).unwrap();
    let text = keyring().open_string(&context(), &sealed).unwrap();
    assert_eq!(text.expose_secret(), "ключ");
}

/// The format is more than the cipher it is named after: nothing that plain AES-256-GCM makes under the same key opens.
#[test]
fn plain_aes_gcm_under_the_same_key_does_not_open() {
    let sealed = keyring().seal(&context(), b"secret").unwrap();
    let mut bytes = sealed.as_bytes().to_vec();
    let key: [u8; 32] = std::array::from_fn(|i| (i as u8).wrapping_mul(37).wrapping_add(1));
    let nonce: [u8; 12] = bytes[22..34].try_into().unwrap();
    let mut text = *b"secret";
    let tag = Aes256Gcm::new(&Key::<Aes256>::from(key))
        .encrypt_inout_detached(&Nonce::from(nonce), &[], text.as_mut_slice().into())
        .unwrap();
    bytes[34..40].copy_from_slice(&text);
    bytes[40..56].copy_from_slice(&tag);
    assert!(open(&keyring(), &context(), &bytes).is_err());
}

#[test]
fn debug_prints_neither_secret_nor_sealed_bytes() {
    let canary = b"canary-plaintext-7f3a";
    let sealed = keyring().seal(&context(), canary).unwrap();
    let printed = format!(
        "{:?} {:?} {:?} {:?} {:?}",
        keyring(),
        sealed,
        sealed.to_text(),
        keyring().open(&context(), &sealed).unwrap(),
        material(1),
    );
    assert!(!printed.contains("canary"), "{printed}");
    let text = sealed.to_text();
    let body = text.as_str().rsplit_once('.').unwrap().1;
    for at in 0..body.len() - 6 {
        assert!(!printed.contains(&body[at..at + 6]), "{printed}");
    }
    let hex = material(1).to_hex();
    for at in 0..58 {
        assert!(!printed.contains(&hex.expose_secret()[at..at + 6]), "{printed}");
    }
    assert!(printed.contains(&material(1).id().to_string()), "{printed}");
}

/// Every text that an error has, on every level.
fn texts(error: &KeyringError) -> String {
    let mut all = format!("{error} {error:?} {error:#?} {} ", error.hint());
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        all.push_str(&format!("{cause} {cause:?} "));
        source = cause.source();
    }
    all
}

/// The constant texts of all errors share short words with random input, so pieces are looked for in what is left when
/// the key id, which is public, is taken out, and in input that has none of their letters.
fn holds_a_piece(error: &KeyringError, input: &[u8]) -> bool {
    let mut text = texts(error);
    if let Some(id) = error.key_id() {
        text = text.replace(&id.to_string(), "");
    }
    input
        .windows(6)
        .any(|piece| text.as_bytes().windows(6).any(|window| window == piece))
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_never_show(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Err(error) = Sealed::from_bytes(&bytes) {
            prop_assert!(!holds_a_piece(&error, &bytes), "{}", error);
        }
    }

    #[test]
    fn bytes_with_a_genuine_head_never_open(rest in prop::collection::vec(any::<u8>(), 0..300)) {
        let sealed = keyring().seal(&context(), b"").unwrap();
        let bytes = [&sealed.as_bytes()[..10], &rest].concat();
        let error = open(&keyring(), &context(), &bytes).unwrap_err();
        prop_assert!(!holds_a_piece(&error, &rest), "{}", error);
    }

    #[test]
    fn arbitrary_text_never_panics_and_never_shows(text in "\\PC{0,200}|(bp1\\.)?[0-9a-zA-Z_.=-]{0,200}") {
        let error = keyring().open_text(&context(), &text).unwrap_err();
        prop_assert!(!holds_a_piece(&error, text.as_bytes()), "{}", error);
        prop_assert_eq!(Sealed::parse(&text).err(), Some(error));
    }

    #[test]
    fn text_with_a_genuine_head_never_opens(body in "[0-9a-zA-Z_-]{0,200}") {
        let text = format!("bp1.{}.{body}", keyring().primary());
        let error = keyring().open_text(&context(), &text).unwrap_err();
        prop_assert!(!holds_a_piece(&error, body.as_bytes()), "{}", error);
    }

    #[test]
    fn what_is_sealed_opens(plaintext in prop::collection::vec(any::<u8>(), 0..400), parts: [String; 3]) {
        let context = Context::new(&parts[0], &parts[1], &parts[2]).unwrap();
        let sealed = keyring().seal(&context, &plaintext).unwrap();
        prop_assert_eq!(open(&keyring(), &context, sealed.as_bytes()), Ok(plaintext));
    }

    #[test]
    fn any_other_context_is_refused(parts: [String; 3], other: [String; 3]) {
        prop_assume!(parts != other);
        let sealed = keyring().seal(&Context::new(&parts[0], &parts[1], &parts[2]).unwrap(), b"x").unwrap();
        let other = Context::new(&other[0], &other[1], &other[2]).unwrap();
        prop_assert_eq!(
            open(&keyring(), &other, sealed.as_bytes()),
            Err(KeyringError::Authentication(keyring().primary()))
        );
    }
}
