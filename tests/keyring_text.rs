//! The text form of a sealed value, changed anywhere, does not open. `tests/keyring_envelope.rs` has the bytes.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]

use biplane::keyring::{Context, KeyMaterial, KeyState, Keyring, KeyringError};

fn keyring() -> Keyring {
    let bytes: [u8; 32] = std::array::from_fn(|i| (i as u8).wrapping_mul(37).wrapping_add(1));
    let key = KeyMaterial::from_bytes(&bytes).unwrap();
    Keyring::builder().key(key, KeyState::Primary).build().unwrap()
}

fn context() -> Context<'static> {
    Context::new("credential", "018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e57", "app").unwrap()
}

#[test]
fn every_other_character_anywhere_in_the_text_is_refused_with_the_error_of_its_place() {
    let sealed = keyring()
        .seal(&context(), b"a secret of some length")
        .unwrap()
        .to_text();
    let (text, id) = (sealed.as_str(), keyring().primary());
    let replacements: Vec<char> = ('\0'..='\x7f').chain(['é', '🔑']).collect();
    for at in 0..text.len() {
        for other in replacements
            .iter()
            .filter(|other| !text[at..].starts_with(**other))
        {
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            let error = keyring().open_text(&context(), &changed).unwrap_err();
            let expected = match (at, other) {
                (2, '2'..='9') => matches!(error, KeyringError::UnsupportedVersion),
                (0..4 | 20, _) => matches!(error, KeyringError::Malformed(_)),
                (4..20, '0'..='9' | 'a'..='f') => matches!(error, KeyringError::UnknownKey(_)),
                (4..20, _) => matches!(error, KeyringError::Malformed(_)),
                (_, 'A'..='Z' | 'a'..='z' | '0'..='9' | '-' | '_') => {
                    error == KeyringError::Authentication(id)
                        // The last character has bits that stand for nothing.
                        || at + 1 == text.len() && matches!(error, KeyringError::Malformed(_))
                }
                _ => matches!(error, KeyringError::Malformed(_)),
            };
            assert!(expected, "{other:?} at {at}: {error}");
        }
    }
}

#[test]
fn every_extension_of_the_text_is_refused() {
    for length in 0..4 {
        let sealed = keyring().seal(&context(), &vec![1; length]).unwrap().to_text();
        for extra in 1..20 {
            for piece in ["A", "_", "=", ".", "\n", "\0"] {
                for changed in [
                    format!("{}{}", sealed.as_str(), piece.repeat(extra)),
                    format!("{}{}", piece.repeat(extra), sealed.as_str()),
                ] {
                    let error = keyring().open_text(&context(), &changed).unwrap_err();
                    let genuine_alphabet = changed.starts_with("bp1.") && matches!(piece, "A" | "_");
                    match error {
                        KeyringError::Malformed(_) => {}
                        KeyringError::Authentication(_) => assert!(genuine_alphabet, "{changed}"),
                        other => panic!("{changed}: {other}"),
                    }
                }
            }
        }
    }
}
