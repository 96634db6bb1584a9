//! Sealing and opening, under our keys and the older system's.

use std::num::NonZeroU32;

use biplane::{
    keyring::{
        Context, KeyMaterial, KeyState, Keyring, KeyringError, LegacyEncoding, LegacyKey, LegacyOpener,
        LegacyPolicy, LegacyUse, Sealed,
    },
    rotation::{Import, MemoryStore, Reseal, doctor},
    secret::Credential,
    tenant::{DataSourceId, Role},
};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    Report,
    canary::{BYTES, KEY, LEGACY_KEY, LEGACY_TEXT, OLD_KEY, PASSWORD, TEXT, base64, hex},
    inputs::{FIELD, Inputs, almost, elsewhere, field},
    keys::{set, unset},
};

pub(crate) fn sealed(report: &mut Report, inputs: &Inputs) {
    let keyring = &inputs.keyring;
    report.of("sealing", || {
        let sealed = keyring.seal(&field(), TEXT.as_bytes()).unwrap();
        drop(sealed.to_text());
        drop(keyring.seal(&field(), &BYTES).unwrap());
        drop(format!("{sealed:?}"));
    });
    report.of("opening", || {
        let opened = keyring.open(&field(), &inputs.bytes).unwrap();
        assert_eq!(opened.expose_secret(), BYTES);
        drop(format!("{opened:?}"));
    });
    let text = inputs.text.to_text();
    report.of("opening from text", || {
        let opened = keyring.open_text(&field(), text.as_str()).unwrap();
        assert_eq!(opened.expose_secret(), TEXT.as_bytes());
    });
    report.of("opening as text", || {
        let opened = keyring.open_string(&field(), &inputs.text).unwrap();
        assert_eq!(opened.expose_secret(), TEXT);
    });
    report.of("sealing for another field", || {
        keyring.rebind(&field(), &elsewhere(), &inputs.text).unwrap();
    });
    report.of("a credential, sealed and opened", || {
        let credential = Credential::new("app", SecretString::from(PASSWORD)).unwrap();
        let sealed = keyring
            .seal_credential(inputs.source, Role::App, &credential)
            .unwrap();
        for sealed in [&sealed, &inputs.credential] {
            let opened = keyring.open_credential(inputs.source, Role::App, sealed).unwrap();
            assert_eq!(opened.password().unwrap().expose_secret(), PASSWORD);
        }
    });
}

pub(crate) fn refused(report: &mut Report, inputs: &Inputs) {
    let keyring = &inputs.keyring;
    report.of("refused: bytes opened as text", || {
        let error = keyring.open_string(&field(), &inputs.bytes).unwrap_err();
        assert_eq!(error, KeyringError::NotUtf8);
    });
    report.of("refused: what is sealed for another field", || {
        is_forged(keyring.open(&elsewhere(), &inputs.text));
        is_forged(keyring.rebind(&elsewhere(), &field(), &inputs.text));
        is_forged(keyring.open_credential(DataSourceId::new(), Role::App, &inputs.credential));
    });
    let mut bytes = inputs.text.as_bytes().to_vec();
    // Each part that can be flipped behind the nonce: ciphertext, tag, commitment.
    let end = bytes.len();
    for place in [34, end - 33, end - 1] {
        bytes[place] ^= 1;
        let sealed = Sealed::from_bytes(&bytes).unwrap();
        bytes[place] ^= 1;
        report.of(&format!("refused: a bit flipped at {place}"), || {
            is_forged(keyring.open(&field(), &sealed));
            is_forged(keyring.open_text(&field(), sealed.to_text().as_str()));
        });
    }
    report.of("refused: a key that is not there, or below a limit", || {
        let lowered = Keyring::builder()
            .key(KeyMaterial::from_bytes(&OLD_KEY).unwrap(), KeyState::Primary)
            .build()
            .unwrap();
        assert!(matches!(
            lowered.open(&field(), &inputs.text).unwrap_err(),
            KeyringError::UnknownKey(_)
        ));
        let small = Keyring::builder()
            .key(KeyMaterial::from_bytes(&KEY).unwrap(), KeyState::Primary)
            .max_plaintext(NonZeroU32::MIN)
            .build()
            .unwrap();
        assert_eq!(
            small.open(&field(), &inputs.text).unwrap_err(),
            KeyringError::TooLarge
        );
        assert_eq!(
            small.seal(&field(), TEXT.as_bytes()).unwrap_err(),
            KeyringError::TooLarge
        );
    });
    report.of("refused: opened, and no credential", || {
        let error = keyring
            .open_credential(inputs.source, Role::App, &inputs.no_credential)
            .unwrap_err();
        assert!(matches!(error, KeyringError::Malformed(_)));
    });
    let context = Context::credential(inputs.source, Role::App);
    let not_text = keyring.seal(&context, &BYTES).unwrap().to_text();
    report.of("refused: opened, and no text for a credential", || {
        let error = keyring
            .open_credential(inputs.source, Role::App, &not_text)
            .unwrap_err();
        assert_eq!(error, KeyringError::NotUtf8);
    });
}

pub(crate) fn legacy(report: &mut Report, inputs: &Inputs) {
    let (digits, characters) = (hex(&LEGACY_KEY), base64(&LEGACY_KEY));
    report.of("a legacy key from bytes, hex and base64", || {
        let key = LegacyKey::from_bytes(&LEGACY_KEY).unwrap();
        drop(key.clone());
        drop(format!("{key:?}"));
        LegacyKey::from_hex(&digits).unwrap();
        LegacyKey::from_base64(&characters).unwrap();
        LegacyKey::parse(&digits).unwrap();
        LegacyKey::parse(&characters).unwrap();
    });
    set("ALLOCATOR_LEGACY_KEY", &characters);
    report.of("a legacy key from a variable", || {
        LegacyKey::from_env("ALLOCATOR_LEGACY_KEY").unwrap();
    });
    unset("ALLOCATOR_LEGACY_KEY");

    let opener = |policy| LegacyOpener::new(LegacyKey::from_bytes(&LEGACY_KEY).unwrap(), policy);
    for (what, value) in [("hex", &inputs.legacy_hex), ("base64", &inputs.legacy_base64)] {
        report.of(&format!("a legacy value in {what}, opened"), || {
            let legacy = opener(LegacyPolicy::ReadThrough);
            let opened = legacy.open(value, LegacyUse::Read).unwrap();
            assert_eq!(opened.expose_secret(), LEGACY_TEXT.as_bytes());
            let opened = legacy.open_string(value, LegacyUse::Read).unwrap();
            assert_eq!(opened.expose_secret(), LEGACY_TEXT);
        });
        report.of(&format!("a legacy value in {what}, imported"), || {
            let legacy = opener(LegacyPolicy::ImportOnly);
            let opened = legacy.open(value, LegacyUse::Import).unwrap();
            let sealed = inputs.keyring.seal(&field(), opened.expose_secret()).unwrap();
            drop(sealed.to_text());
        });
        report.of(&format!("refused: a legacy value in {what}"), || {
            let denied = opener(LegacyPolicy::Deny).open(value, LegacyUse::Import);
            assert_eq!(denied.unwrap_err(), KeyringError::LegacyForbidden);
            let other = LegacyKey::from_bytes(&almost(&LEGACY_KEY)).unwrap();
            is_forged(LegacyOpener::new(other, LegacyPolicy::ImportOnly).open(value, LegacyUse::Import));
            let other = match what {
                "hex" => LegacyEncoding::Base64,
                _ => LegacyEncoding::Hex,
            };
            let expecting = opener(LegacyPolicy::ImportOnly).expecting(other);
            drop(expecting.open(value, LegacyUse::Import).unwrap_err());
            let cut = &value[..value.len() - 1];
            drop(
                opener(LegacyPolicy::ImportOnly)
                    .open(cut, LegacyUse::Import)
                    .unwrap_err(),
            );
        });
    }
    report.of("refused: a legacy value opened as text", || {
        let opened = opener(LegacyPolicy::ReadThrough).open_string(&inputs.legacy_bytes, LegacyUse::Read);
        assert_eq!(opened.unwrap_err(), KeyringError::NotUtf8);
    });
}

/// The jobs that go over a table, on a store in memory.
pub(crate) fn jobs(report: &mut Report, inputs: &Inputs) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let (purpose, owner, name) = FIELD;
    let store = MemoryStore::new("settings", purpose);
    let importing = |policy| {
        let opener = LegacyOpener::new(LegacyKey::from_bytes(&LEGACY_KEY).unwrap(), policy);
        Import::new(opener, inputs.keyring.clone()).store(store.clone())
    };
    for (what, value) in [("hex", &inputs.legacy_hex), ("base64", &inputs.legacy_base64)] {
        report.of(&format!("a table of values in {what}, imported"), || {
            store.insert(owner, name, value.as_str());
            runtime
                .block_on(importing(LegacyPolicy::ImportOnly).run())
                .unwrap();
        });
        let text = store.find(owner, name).unwrap();
        let opened = inputs.keyring.open_text(&field(), &text).unwrap();
        assert_eq!(opened.expose_secret(), LEGACY_TEXT.as_bytes());
    }
    report.of("refused: an import by the policy, and of what is cut", || {
        store.insert(owner, name, &inputs.legacy_hex[..inputs.legacy_hex.len() - 1]);
        drop(runtime.block_on(importing(LegacyPolicy::Deny).run()).unwrap_err());
        drop(
            runtime
                .block_on(importing(LegacyPolicy::ImportOnly).run())
                .unwrap_err(),
        );
    });
    let new = |keyring: &[u8; 32], state| {
        Keyring::builder()
            .key(KeyMaterial::from_bytes(keyring).unwrap(), state)
            .key(KeyMaterial::generate().unwrap(), KeyState::Primary)
            .build()
            .unwrap()
    };
    report.of("a table, sealed anew and examined", || {
        store.insert(owner, name, inputs.text.to_text().as_str());
        let keyring = new(&KEY, KeyState::DecryptOnly);
        runtime
            .block_on(Reseal::new(keyring.clone()).store(store.clone()).run())
            .unwrap();
        let diagnosis = runtime.block_on(doctor(&keyring, &[&store])).unwrap();
        assert!(diagnosis.is_healthy());
    });
    report.of("refused: a table under a key that is disabled", || {
        store.insert(owner, name, inputs.text.to_text().as_str());
        let keyring = new(&KEY, KeyState::Disabled);
        drop(
            runtime
                .block_on(Reseal::new(keyring.clone()).store(store.clone()).run())
                .unwrap_err(),
        );
        let diagnosis = runtime.block_on(doctor(&keyring, &[&store])).unwrap();
        assert!(!diagnosis.is_healthy());
    });
}

fn is_forged<T>(result: Result<T, KeyringError>) {
    assert!(matches!(result.err(), Some(KeyringError::Authentication(_))));
}
