//! Keyring files, key services, and keyrings that are refreshed.

use std::{fs, path::Path};

use async_trait::async_trait;
use biplane::{
    keyring::{
        Distributed, KeyId, KeyMaterial, KeySource, KeyWrapper, KeyringError, KeyringFile, LiveKeyring,
        Refreshed, Unused, WrapperError,
    },
    secret::SecretBytes,
};
use secrecy::{ExposeSecret, SecretBox};

use crate::{
    Report,
    canary::{KEY, LEGACY_KEY, OLD_KEY, base64, hex},
    inputs::{Inputs, field},
};

pub(crate) fn json(report: &mut Report, inputs: &Inputs) {
    let file = KeyringFile::parse(&inputs.entries).unwrap();
    let text = file.to_text().expose_secret().to_owned();
    let in_base64 = text.replace(&hex(&KEY), &base64(&KEY));
    report.of("a keyring file, read, written and shown", || {
        let file = KeyringFile::parse(&text).unwrap();
        assert_eq!(file.to_text().expose_secret(), text);
        drop(format!("{file:?}"));
        drop(KeyringFile::parse(&in_base64).unwrap().into_keyring().unwrap());
    });
    let path = inputs.file("keyring.json", text.as_bytes());
    report.of("a keyring file, edited from a new key to a destroyed one", || {
        let added = KeyringFile::edit(&path, |keys| keys.add(KeyMaterial::from_bytes(&LEGACY_KEY)?)).unwrap();
        KeyringFile::edit(&path, |keys| keys.promote(Distributed::confirmed_by_hand(added))).unwrap();
        let old = KeyMaterial::from_bytes(&OLD_KEY).unwrap().id();
        KeyringFile::edit(&path, |keys| {
            keys.annotate(added, "the new one")?;
            keys.disable(Unused::confirmed_by_hand(old))?;
            keys.destroy(old, &old.to_string())
        })
        .unwrap();
        KeyringFile::load(&path).unwrap().into_keyring().unwrap();
    });
    assert!(!fs::read_to_string(&path).unwrap().contains(&hex(&OLD_KEY)));
    let copy = path.with_file_name("copy.json");
    report.of("a keyring file, created, and refused where there is one", || {
        let file = KeyringFile::load(&path).unwrap();
        KeyringFile::create(&copy, &file).unwrap();
        drop(KeyringFile::create(&copy, &file).unwrap_err());
    });

    let digits = hex(&KEY);
    for (what, text) in [
        (
            "an escape",
            text.replacen(&digits, &format!("\\u00{}{digits}", "41"), 1),
        ),
        (
            "an escape in another text",
            text.replacen("pending", "p\\u0065nding", 1) + "\\",
        ),
        (
            "its end missing",
            text[..text.find(&digits).unwrap() + 40].to_owned(),
        ),
        (
            "no quotation marks",
            text.replace(&format!("\"{digits}\""), &digits),
        ),
        (
            "a key where a field should be",
            text.replace("\"material\"", &format!("\"{digits}\"")),
        ),
        (
            "a key for a state",
            text.replace("\"primary\"", &format!("\"{digits}\"")),
        ),
        (
            "a key for an id",
            text.replacen("\"id\": \"", &format!("\"id\": \"{digits}"), 2),
        ),
        (
            "a key for a version",
            text.replace(": 1,", &format!(": \"{digits}\",")),
        ),
        (
            "a key twice",
            text.replacen(
                "\"material\"",
                &format!("\"material\": \"{digits}\", \"material\""),
                1,
            ),
        ),
        (
            "a list for a key",
            text.replace(&format!("\"{digits}\""), &format!("[\"{digits}\"]")),
        ),
        ("something behind it", text.clone() + &digits),
        (
            "a digit wrong",
            text.replace(&digits, &format!("{}g", &digits[..63])),
        ),
    ] {
        report.of(&format!("refused: a keyring file with {what}"), || {
            let error = KeyringFile::parse(&text).unwrap_err();
            drop(format!("{error} {error:?}"));
        });
    }
    report.of("refused: an edit that fails", || {
        let failed = KeyringFile::edit(&path, |keys| keys.add(KeyMaterial::from_bytes(&KEY)?));
        assert!(matches!(failed.unwrap_err(), KeyringError::DuplicateKey(_)));
    });
}

pub(crate) fn refreshed(report: &mut Report, inputs: &Inputs) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let old = KeyMaterial::from_bytes(&OLD_KEY).unwrap().id();
    let new = KeyMaterial::from_bytes(&KEY).unwrap().id();
    let mut file = KeyringFile::wrapped(old, b"the old key");
    file.add_wrapped(new, b"the new key").unwrap();
    let path = inputs.file("wrapped.json", file.to_text().expose_secret().as_bytes());

    report.of(
        "a keyring from a key service, refreshed after a promotion",
        || {
            runtime.block_on(async {
                let live = LiveKeyring::load(source(&path, Answer::Right)).await.unwrap();
                KeyringFile::edit(&path, |keys| keys.promote(Distributed::confirmed_by_hand(new))).unwrap();
                assert_eq!(live.refresh().await.unwrap(), Refreshed::Changed);
                let opened = live.current().open(&field(), &inputs.text).unwrap();
                drop(opened);
                drop(live.swap(inputs.keyring.clone()));
                drop(format!("{live:?} {:?}", live.health()));
            });
        },
    );
    for (what, answer) in [
        ("another key", Answer::Wrong),
        ("too many bytes", Answer::Long),
        ("no answer", Answer::None),
    ] {
        report.of(&format!("refused: a key service that gives {what}"), || {
            runtime.block_on(async {
                drop(source(&path, answer).load().await.unwrap_err());
            });
        });
    }
}

fn source(path: &Path, answer: Answer) -> KeySource {
    KeySource::file(path).unwrapping_with(Service(answer))
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Right,
    Wrong,
    Long,
    None,
}

#[derive(Debug)]
struct Service(Answer);

#[async_trait]
impl KeyWrapper for Service {
    async fn wrap_key(&self, _: KeyId, _: &SecretBytes) -> Result<Vec<u8>, WrapperError> {
        Err(WrapperError::Refused)
    }

    async fn unwrap_key(&self, _: KeyId, wrapped: &[u8]) -> Result<SecretBytes, WrapperError> {
        let key = match wrapped {
            b"the old key" => OLD_KEY,
            _ => KEY,
        };
        match self.0 {
            Answer::Right => Ok(SecretBox::new(Box::from(key))),
            Answer::Wrong => Ok(SecretBox::new(Box::from(LEGACY_KEY))),
            Answer::Long => Ok(SecretBox::new([key, key].concat().into_boxed_slice())),
            Answer::None => Err(WrapperError::Unavailable),
        }
    }
}
