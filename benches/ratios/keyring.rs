//! What sealing and opening cost against AES-256-GCM with a key that is ready: 512 bytes and additional data of the same
//! length, into an allocation of its own; sealed with a random nonce on both sides.

use std::hint::black_box;

use aes_gcm::{Aes256Gcm, AesGcm, Key, KeyInit, Nonce, Tag, aead::AeadInOut, aead::consts::U16, aes::Aes256};
use base64ct::{Base64, Encoding};
use biplane::{
    keyring::{Context, KeyMaterial, KeyState, Keyring, LegacyKey, LegacyOpener, LegacyPolicy, LegacyUse},
    tenant::{DataSourceId, Role},
};

use crate::measure::{Claim, Goal, ratio, time};

pub(crate) const CLAIMS: &[fn() -> Claim] = &[binary, text, seal, seal_to_text, legacy];

const LENGTH: usize = 512;

/// The length of what binds a credential of the role `app`.
const AAD: [u8; 85] = [7; 85];

const KEY: [u8; 32] = *b"\x01\x08\x0f\x16\x1d\x24\x2b\x32\x39\x40\x47\x4e\x55\x5c\x63\x6a\x71\x78\x7f\x86\x8d\x94\x9b\xa2\xa9\xb0\xb7\xbe\xc5\xcc\xd3\xda";

/// Openings in a round: some hundred microseconds.
const OPENINGS: usize = 200;

fn binary() -> Claim {
    Claim::new("keyring_open_binary/aes_256_gcm", Goal::RatioAtMost(2.3), || {
        let (keyring, context) = (keyring(), context());
        let sealed = keyring.seal(&context, &[3; LENGTH]).expect("it is short enough");
        against_gcm(|| {
            black_box(
                keyring
                    .open(black_box(&context), black_box(&sealed))
                    .expect("it was sealed so"),
            );
        })
    })
}

fn text() -> Claim {
    Claim::new("keyring_open_text/aes_256_gcm", Goal::RatioAtMost(3.3), || {
        let (keyring, context) = (keyring(), context());
        let sealed = keyring
            .seal(&context, &[3; LENGTH])
            .expect("it is short enough")
            .to_text();
        against_gcm(|| {
            let text = black_box(sealed.as_str());
            black_box(
                keyring
                    .open_text(black_box(&context), text)
                    .expect("it was sealed so"),
            );
        })
    })
}

fn seal() -> Claim {
    Claim::new("keyring_seal_binary/aes_256_gcm", Goal::RatioAtMost(1.8), || {
        let (keyring, context) = (keyring(), context());
        sealing_against_gcm(|| {
            let sealed = keyring.seal(black_box(&context), black_box(&[3; LENGTH]));
            black_box(sealed.expect("it is short enough"));
        })
    })
}

fn seal_to_text() -> Claim {
    Claim::new("keyring_seal_text/aes_256_gcm", Goal::RatioAtMost(2.5), || {
        let (keyring, context) = (keyring(), context());
        sealing_against_gcm(|| {
            let sealed = keyring.seal(black_box(&context), black_box(&[3; LENGTH]));
            black_box(sealed.expect("it is short enough").to_text());
        })
    })
}

/// Base64 in three parts, and no additional data. Most of it is decoding: in constant time, because it is the decoder that
/// keys are read with, and nothing opens legacy values often.
fn legacy() -> Claim {
    Claim::new("legacy_open/aes_256_gcm", Goal::RatioAtMost(4.5), || {
        let gcm = AesGcm::<Aes256, U16>::new(&Key::<Aes256>::from(KEY));
        let iv = [9; 16];
        let mut ciphertext = vec![3; LENGTH];
        let tag = gcm
            .encrypt_inout_detached(&iv.into(), &[], ciphertext.as_mut_slice().into())
            .expect("it is short enough");
        let value = [&iv[..], &tag[..], &ciphertext[..]]
            .map(Base64::encode_string)
            .join(":");
        let key = LegacyKey::from_bytes(&KEY).expect("the key is not weak");
        let opener = LegacyOpener::new(key, LegacyPolicy::ImportOnly);
        against_gcm(|| {
            black_box(
                opener
                    .open(black_box(&value), LegacyUse::Import)
                    .expect("it was sealed so"),
            );
        })
    })
}

fn sealing_against_gcm(seal: impl Fn()) -> f64 {
    let gcm = Aes256Gcm::new(&Key::<Aes256>::from(KEY));
    let peer = || {
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).expect("the system has random bytes");
        let mut text: Box<[u8]> = black_box(&[3; LENGTH][..]).into();
        let tag = gcm.encrypt_inout_detached(&Nonce::from(nonce), &AAD, (&mut *text).into());
        black_box((tag.expect("it is short enough"), text));
    };
    ratio(
        || time(|| (0..OPENINGS).for_each(|_| seal())),
        || time(|| (0..OPENINGS).for_each(|_| peer())),
    )
}

fn against_gcm(open: impl Fn()) -> f64 {
    let gcm = Aes256Gcm::new(&Key::<Aes256>::from(KEY));
    let nonce = Nonce::from([5; 12]);
    let mut ciphertext = vec![3; LENGTH];
    let sealed = gcm.encrypt_inout_detached(&nonce, &AAD, ciphertext.as_mut_slice().into());
    let tag: Tag = sealed.expect("it is short enough");
    let peer = || {
        let mut text: Box<[u8]> = black_box(&ciphertext[..]).into();
        gcm.decrypt_inout_detached(&nonce, &AAD, (&mut *text).into(), &tag)
            .expect("it was sealed so");
        black_box(text);
    };
    ratio(
        || time(|| (0..OPENINGS).for_each(|_| open())),
        || time(|| (0..OPENINGS).for_each(|_| peer())),
    )
}

fn keyring() -> Keyring {
    let material = KeyMaterial::from_bytes(&KEY).expect("the key is not weak");
    Keyring::builder()
        .key(material, KeyState::Primary)
        .build()
        .expect("there is one primary key")
}

fn context() -> Context<'static> {
    Context::credential(DataSourceId::DEFAULT, Role::App)
}
