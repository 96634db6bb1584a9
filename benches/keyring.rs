//! What sealing costs against AES-256-GCM with a key that is ready, over the same 512 bytes and with additional data
//! of the same length, opened as we open: into an allocation of its own.
//!
//! `cargo bench --bench keyring`. The gates are: `open/binary` at most 2.3 times, `open/text` at most 3.3 times
//! `open/aes-256-gcm`.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]

use std::hint::black_box;

use aes_gcm::{Aes256Gcm, AesGcm, Key, KeyInit, Nonce, Tag, aead::AeadInOut, aead::consts::U16, aes::Aes256};
use biplane::{
    keyring::{
        Context, KeyMaterial, KeyState, Keyring, LegacyEncoding, LegacyKey, LegacyOpener, LegacyPolicy,
        LegacyUse,
    },
    tenant::{DataSourceId, Role},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const LENGTH: usize = 512;
/// What binds a credential of the role `app`.
const AAD: [u8; 85] = [7; 85];

fn key() -> [u8; 32] {
    std::array::from_fn(|i| (i * 7) as u8)
}

fn keyring() -> Keyring {
    let material = KeyMaterial::from_bytes(&key()).unwrap();
    Keyring::builder()
        .key(material, KeyState::Primary)
        .build()
        .unwrap()
}

fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    group.throughput(Throughput::Bytes(LENGTH as u64));

    let gcm = Aes256Gcm::new(&Key::<Aes256>::from(key()));
    let nonce = Nonce::from([5; 12]);
    let mut ciphertext = vec![3; LENGTH];
    let tag: Tag = gcm
        .encrypt_inout_detached(&nonce, &AAD, ciphertext.as_mut_slice().into())
        .unwrap();
    group.bench_function("aes-256-gcm", |bencher| {
        bencher.iter(|| {
            let mut text: Box<[u8]> = black_box(&ciphertext[..]).into();
            gcm.decrypt_inout_detached(&nonce, &AAD, (&mut *text).into(), &tag)
                .unwrap();
            text
        });
    });

    let keyring = keyring();
    let context = Context::credential(DataSourceId::DEFAULT, Role::App);
    let sealed = keyring.seal(&context, &[3; LENGTH]).unwrap();
    let text = sealed.to_text();
    group.bench_function("binary", |bencher| {
        bencher.iter(|| keyring.open(black_box(&context), black_box(&sealed)).unwrap());
    });
    group.bench_function("text", |bencher| {
        bencher.iter(|| {
            keyring
                .open_text(black_box(&context), black_box(text.as_str()))
                .unwrap()
        });
    });
    group.finish();
}

fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    group.throughput(Throughput::Bytes(LENGTH as u64));

    let gcm = Aes256Gcm::new(&Key::<Aes256>::from(key()));
    group.bench_function("aes-256-gcm", |bencher| {
        bencher.iter(|| {
            let mut nonce = Nonce::default();
            getrandom::fill(&mut nonce).unwrap();
            let mut text: Box<[u8]> = black_box(&[3; LENGTH][..]).into();
            let tag = gcm
                .encrypt_inout_detached(&nonce, &AAD, (&mut *text).into())
                .unwrap();
            (text, tag)
        });
    });

    let keyring = keyring();
    let context = Context::credential(DataSourceId::DEFAULT, Role::App);
    let plaintext = [3; LENGTH];
    group.bench_function("binary", |bencher| {
        bencher.iter(|| keyring.seal(black_box(&context), black_box(&plaintext)).unwrap());
    });
    group.bench_function("text", |bencher| {
        bencher.iter(|| {
            keyring
                .seal(black_box(&context), black_box(&plaintext))
                .unwrap()
                .to_text()
        });
    });
    group.finish();
}

fn legacy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("legacy");
    group.throughput(Throughput::Bytes(LENGTH as u64));

    let gcm = AesGcm::<Aes256, U16>::new(&Key::<Aes256>::from(key()));
    let iv = [9; 16];
    let mut text = vec![3; LENGTH];
    let tag = gcm
        .encrypt_inout_detached(&iv.into(), &[], text.as_mut_slice().into())
        .unwrap();
    let opener = LegacyOpener::new(LegacyKey::from_bytes(&key()).unwrap(), LegacyPolicy::ReadThrough);
    for encoding in [LegacyEncoding::Hex, LegacyEncoding::Base64] {
        let value = [&iv[..], &tag[..], &text[..]]
            .map(|part| encode(part, encoding))
            .join(":");
        group.bench_function(encoding.to_string(), |bencher| {
            bencher.iter(|| opener.open(black_box(&value), LegacyUse::Read).unwrap());
        });
    }
    group.finish();
}

fn encode(bytes: &[u8], encoding: LegacyEncoding) -> String {
    use base64ct::{Base64, Encoding};
    match encoding {
        LegacyEncoding::Base64 => Base64::encode_string(bytes),
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

criterion_group!(benches, open, seal, legacy);
criterion_main!(benches);
