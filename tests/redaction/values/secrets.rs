//! Keys, credentials, settings and errors.

use biplane::{
    error::{Error, ErrorKind},
    keyring::{
        Distributed, Fingerprints, KeyId, KeySource, KeyState, KeyringError, KeyringFile, LegacyKey,
        LiveKeyring, SourceError, Unused,
    },
    secret::{Credential, SecretBytes},
    settings::Dsn,
};
use secrecy::{SecretBox, SecretString};

use super::{
    How::{self, AtWork, Public, Show},
    WORD,
};
use crate::{
    canary::{KEY, SECRET, hex},
    samples::{
        builder, context, credential, key, keyring, keyring_errors, legacy, sealed, settings,
        settings_errors, urls, wrong_urls,
    },
};

pub(super) const TYPES: &[(&str, How)] = &[
    ("error::BudgetScope", Public(WORD)),
    (
        "error::Error",
        Show(|shown| {
            for kind in [
                ErrorKind::CredentialUnreadable { key: None },
                ErrorKind::InvalidConfiguration,
            ] {
                for cause in keyring_errors() {
                    shown.error(&Error::new(kind).caused_by(cause));
                }
            }
            for text in wrong_urls() {
                shown.error(&Error::from(Dsn::parse(&text).unwrap_err()));
            }
        }),
    ),
    (
        "error::ErrorKind",
        Public("a word, with a status, a role or a key id"),
    ),
    (
        "keyring::Context",
        Public("immutable ids and logical names, as its contract says"),
    ),
    (
        "keyring::Distributed",
        Show(|shown| {
            shown.debug(&Distributed::confirmed_by_hand(key().id()));
        }),
    ),
    (
        "keyring::Fingerprint",
        Show(|shown| {
            shown.debug(&Fingerprints::new().unwrap().of(&credential()));
        }),
    ),
    (
        "keyring::Fingerprints",
        Show(|shown| {
            shown.debug(&Fingerprints::new().unwrap());
        }),
    ),
    ("keyring::KeepFresh", AtWork),
    (
        "keyring::KeyId",
        Show(|shown| {
            shown.debug(&key().id()).display(&key().id());
        }),
    ),
    (
        "keyring::KeyIdError",
        Show(|shown| {
            shown.error(&SECRET.parse::<KeyId>().unwrap_err());
            shown.error(&hex(&KEY).parse::<KeyId>().unwrap_err());
        }),
    ),
    (
        "keyring::KeyMaterial",
        Show(|shown| {
            shown
                .debug(&key())
                .debug(&key().to_hex())
                .debug(&key().to_bytes());
        }),
    ),
    (
        "keyring::KeySource",
        Show(|shown| {
            shown.debug(&KeySource::variable("BIPLANE_KEYRING"));
        }),
    ),
    ("keyring::KeyState", Public(WORD)),
    ("keyring::KeyStatus", Public("an id, a state and figures")),
    (
        "keyring::Keyring",
        Show(|shown| {
            shown.debug(&keyring());
        }),
    ),
    (
        "keyring::KeyringBuilder",
        Show(|shown| {
            shown.debug(&builder());
        }),
    ),
    (
        "keyring::KeyringError",
        Show(|shown| {
            for error in keyring_errors() {
                shown.error(&error).debug(error.hint());
            }
            shown.debug(KeyringError::PUBLIC_TEXT);
        }),
    ),
    (
        "keyring::KeyringFile",
        Show(|shown| {
            let mut file = KeyringFile::new(key());
            file.add_wrapped(KeyId::from_bytes([7; 8]), SECRET.as_bytes())
                .unwrap();
            shown.debug(&file).debug(&file.to_text());
        }),
    ),
    ("keyring::KeyringHealth", AtWork),
    ("keyring::LegacyEncoding", Public(WORD)),
    (
        "keyring::LegacyKey",
        Show(|shown| {
            shown.debug(&LegacyKey::from_bytes(&KEY).unwrap());
        }),
    ),
    (
        "keyring::LegacyOpener",
        Show(|shown| {
            shown.debug(&legacy());
        }),
    ),
    ("keyring::LegacyPolicy", Public(WORD)),
    ("keyring::LegacyUse", Public(WORD)),
    (
        "keyring::LiveKeyring",
        Show(|shown| {
            shown.debug(&LiveKeyring::new(keyring()));
        }),
    ),
    ("keyring::Refreshed", Public(WORD)),
    (
        "keyring::Sealed",
        Show(|shown| {
            shown.debug(&sealed());
        }),
    ),
    (
        "keyring::SourceError",
        Show(|shown| {
            shown.error(&SourceError::Unset("BIPLANE_KEYRING".into()));
            for error in keyring_errors() {
                if let KeyringError::Source(source) = error {
                    shown.error(&source);
                }
            }
        }),
    ),
    (
        "keyring::UnknownKeyState",
        Show(|shown| {
            shown.error(&SECRET.parse::<KeyState>().unwrap_err());
        }),
    ),
    (
        "keyring::Unused",
        Show(|shown| {
            shown.debug(&Unused::confirmed_by_hand(key().id()));
        }),
    ),
    ("keyring::WrapperError", Public(WORD)),
    (
        "secret::Credential",
        Show(|shown| {
            shown.debug(&credential()).debug(&credential().password());
            shown.debug(&Credential::new(SECRET, SecretString::from(SECRET)).unwrap());
            let plaintext = credential().to_plaintext();
            shown.debug(&plaintext);
        }),
    ),
    (
        "secret::CredentialError",
        Show(|shown| {
            shown.error(&Credential::new("app", SecretString::from(format!("{SECRET}\0"))).unwrap_err());
            let bytes: SecretBytes = SecretBox::new([SECRET.as_bytes(), b"\xff"].concat().into_boxed_slice());
            shown.error(&Credential::from_plaintext(&bytes).unwrap_err());
        }),
    ),
    (
        "secret::SecretBytes",
        Show(|shown| {
            let bytes: SecretBytes = SecretBox::new(SECRET.as_bytes().into());
            shown.debug(&bytes);
            shown.debug(&keyring().open(&context(), &sealed()).unwrap());
        }),
    ),
    (
        "settings::Dsn",
        Show(|shown| {
            for text in urls() {
                let dsn = Dsn::parse(&text).unwrap();
                shown.debug(&dsn).display(&dsn);
            }
        }),
    ),
    (
        "settings::DsnError",
        Show(|shown| {
            for text in wrong_urls() {
                shown.error(&Dsn::parse(&text).unwrap_err());
            }
        }),
    ),
    ("settings::Mode", Public(WORD)),
    ("settings::Parameter", Public(WORD)),
    (
        "settings::Settings",
        Show(|shown| {
            shown.debug(&settings());
        }),
    ),
    (
        "settings::SettingsError",
        Show(|shown| {
            for error in settings_errors() {
                shown.error(&error);
            }
        }),
    ),
    (
        "settings::UnknownParameters",
        Show(|shown| {
            for text in wrong_urls() {
                if let biplane::settings::DsnError::UnknownParameters(unknown) =
                    Dsn::parse(&text).unwrap_err()
                {
                    shown.debug(&unknown).display(&unknown);
                }
            }
        }),
    ),
    ("settings::UrlPart", Public(WORD)),
    ("settings::VariableNames", Public("names of variables")),
    ("settings::WithoutPassword", Public(WORD)),
];
