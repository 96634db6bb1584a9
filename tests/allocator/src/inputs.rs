//! What the deeds work on, made before anybody looks.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf};

use aes_gcm::{
    AesGcm, Nonce,
    aead::{Aead, KeyInit, consts::U16},
    aes::Aes256,
};
use biplane::{
    keyring::{Context, KeyMaterial, KeyState, Keyring, Sealed},
    secret::Credential,
    tenant::{DataSourceId, Role, SealedText},
};
use secrecy::SecretString;

use crate::canary::{BYTES, KEY, Key, LEGACY_KEY, LEGACY_TEXT, OLD_KEY, PASSWORD, TEXT, base64, hex};

pub(crate) const FIELD: (&str, &str, &str) =
    ("setting", "018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e57", "mail.password");

pub(crate) fn field() -> Context<'static> {
    Context::new(FIELD.0, FIELD.1, FIELD.2).unwrap()
}

pub(crate) fn elsewhere() -> Context<'static> {
    Context::new(FIELD.0, FIELD.1, "mail.user").unwrap()
}

pub(crate) struct Inputs {
    /// Two keys, the second of which seals.
    pub(crate) entries: String,
    pub(crate) keyring: Keyring,
    pub(crate) text: Sealed,
    pub(crate) bytes: Sealed,
    pub(crate) source: DataSourceId,
    pub(crate) credential: SealedText,
    /// No login: it has two NUL characters.
    pub(crate) no_credential: SealedText,
    pub(crate) legacy_hex: String,
    pub(crate) legacy_base64: String,
    pub(crate) legacy_bytes: String,
    folder: PathBuf,
}

impl Inputs {
    pub(crate) fn new() -> Self {
        let keyring = Keyring::builder()
            .key(KeyMaterial::from_bytes(&KEY).unwrap(), KeyState::Primary)
            .key(KeyMaterial::from_bytes(&OLD_KEY).unwrap(), KeyState::DecryptOnly)
            .build()
            .unwrap();
        let source = DataSourceId::new();
        let credential = Credential::new("app", SecretString::from(PASSWORD)).unwrap();
        let no_credential = format!("app\0{PASSWORD}\0");
        let context = Context::credential(source, Role::App);
        let folder = std::env::temp_dir().join(format!("biplane-allocator-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        Self {
            entries: format!(
                "# the keys of a test\ndecrypt-only:{}\nprimary:{}\n",
                base64(&OLD_KEY),
                hex(&KEY)
            ),
            text: keyring.seal(&field(), TEXT.as_bytes()).unwrap(),
            bytes: keyring.seal(&field(), &BYTES).unwrap(),
            source,
            credential: keyring.seal_credential(source, Role::App, &credential).unwrap(),
            no_credential: keyring
                .seal(&context, no_credential.as_bytes())
                .unwrap()
                .to_text(),
            legacy_hex: legacy(LEGACY_TEXT.as_bytes(), hex),
            legacy_base64: legacy(LEGACY_TEXT.as_bytes(), base64),
            legacy_bytes: legacy(&BYTES, base64),
            keyring,
            folder,
        }
    }

    /// The nonces of what is opened, by which the keys of those messages are known.
    pub(crate) fn nonces(&self) -> Vec<(&'static str, [u8; 24])> {
        let nonce = |sealed: &Sealed| sealed.as_bytes()[10..34].try_into().unwrap();
        let credential = Sealed::parse(self.credential.as_str()).unwrap();
        vec![
            ("message key of the text", nonce(&self.text)),
            ("message key of the bytes", nonce(&self.bytes)),
            ("message key of the credential", nonce(&credential)),
        ]
    }

    /// A file that only its owner may read.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        self.file_with_mode(name, content, 0o600)
    }

    pub(crate) fn file_with_mode(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = self.folder.join(name);
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .unwrap();
        file.write_all(content).unwrap();
        path
    }
}

impl Drop for Inputs {
    fn drop(&mut self) {
        // What is left of the folder of a process that failed is in the way of nobody.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn legacy(plaintext: &[u8], encode: fn(&[u8]) -> String) -> String {
    let iv = *b"sixteen bytes IV";
    let cipher = AesGcm::<Aes256, U16>::new(&LEGACY_KEY.into());
    let sealed = cipher.encrypt(&Nonce::<U16>::from(iv), plaintext).unwrap();
    let (ciphertext, tag) = sealed.split_at(plaintext.len());
    format!("{}:{}:{}", encode(&iv), encode(tag), encode(ciphertext))
}

/// The key with its last byte changed.
pub(crate) fn almost(key: &Key) -> Key {
    let mut key = *key;
    key[31] ^= 1;
    key
}
