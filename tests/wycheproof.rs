//! Project Wycheproof's vectors for AES-256-GCM, through the opener of legacy values. Those with additional data, which
//! legacy values lack, go through the cipher of the envelope in a unit test of `src/keyring/cipher.rs`.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]

use biplane::keyring::{KeyringError, LegacyEncoding, LegacyKey, LegacyOpener, LegacyPolicy, LegacyUse};
use secrecy::ExposeSecret;
use wycheproof::aead::{Test, TestName, TestSet};

/// The vectors that a legacy value can be made of, with the size of their IV in bits.
fn vectors() -> Vec<(usize, Test)> {
    TestSet::load(TestName::AesGcm)
        .unwrap()
        .test_groups
        .into_iter()
        .filter(|group| (group.key_size, group.tag_size) == (256, 128))
        .flat_map(|group| {
            let size = group.nonce_size;
            group.tests.into_iter().map(move |test| (size, test))
        })
        .filter(|(_, test)| test.aad.is_empty())
        .collect()
}

fn values(test: &Test) -> [(LegacyEncoding, String); 2] {
    let parts = [&test.nonce, &test.tag, &test.ct];
    let hex = parts.map(|part| part.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let base64 = parts.map(|part| base64(part));
    [
        (LegacyEncoding::Hex, hex.join(":")),
        (LegacyEncoding::Base64, base64.join(":")),
    ]
}

/// Independent of the decoder that is tested.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bytes
        .chunks(3)
        .flat_map(|group| {
            let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or_default());
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            (0..4).map(move |i| match i <= group.len() {
                true => ALPHABET[(bits >> (18 - 6 * i) & 63) as usize] as char,
                false => '=',
            })
        })
        .collect()
}

fn opener(test: &Test) -> LegacyOpener {
    LegacyOpener::new(
        LegacyKey::from_bytes(&test.key).unwrap(),
        LegacyPolicy::ImportOnly,
    )
}

fn open(opener: &LegacyOpener, value: &str) -> Result<Vec<u8>, KeyringError> {
    opener
        .open(value, LegacyUse::Import)
        .map(|secret| secret.expose_secret().to_vec())
}

#[test]
fn valid_vectors_open_and_modified_ones_do_not_authenticate() {
    let (mut valid_96, mut valid_128, mut invalid) = (0, 0, 0);
    for (size, test) in vectors().iter().filter(|(size, _)| matches!(size, 96 | 128)) {
        let opener = opener(test);
        let id = LegacyKey::from_bytes(&test.key).unwrap().id();
        let expected = match (test.result.must_fail(), size) {
            (true, _) => {
                invalid += 1;
                Err(KeyringError::Authentication(id))
            }
            (false, 96) => {
                valid_96 += 1;
                Ok(test.pt.to_vec())
            }
            (false, _) => {
                valid_128 += 1;
                Ok(test.pt.to_vec())
            }
        };
        for (encoding, value) in values(test) {
            assert_eq!(open(&opener, &value), expected, "{} in {encoding}", test.tc_id);
        }
    }
    // As many as version 0.7 of the crate has: no set that came out empty passes.
    assert_eq!((valid_96, valid_128, invalid), (21, 19, 27));
}

/// AES-256-GCM can do with an IV of any length, and the older system made them of 16 bytes: any other is damage.
#[test]
fn vectors_with_other_ivs_are_malformed_however_valid() {
    let mut seen = 0;
    for (size, test) in vectors().iter().filter(|(size, _)| !matches!(size, 96 | 128)) {
        for (encoding, value) in values(test) {
            let error = open(&opener(test), &value).unwrap_err();
            // Eight bytes of base64 are no IV; neither may a length be read as the other encoding's by accident.
            assert!(
                matches!(error, KeyringError::Malformed(_)),
                "{} of {size} bits in {encoding}: {error}",
                test.tc_id
            );
        }
        seen += 1;
    }
    assert_eq!(seen, 20);
}
