//! Holds every line of the worked example of the format's page.

use std::collections::BTreeMap;

use aes::{
    Aes256,
    cipher::{Block, BlockCipherEncrypt},
};
use aes_gcm::{
    Aes256Gcm, Nonce, Tag,
    aead::{AeadInOut, KeyInit},
};
use base64ct::{Base64, Encoding};
use cmac::{Cmac, Mac};
use secrecy::ExposeSecret;

use super::{
    Context, KeyMaterial, KeyState, Keyring, LegacyKey, LegacyOpener, LegacyPolicy, LegacyUse,
    cipher::{self, Cipher},
    encoding,
    envelope::header_of,
};

const PAGE: &str = include_str!("../manual/keyring_format.md");

/// The values of the page by their names. A value may go on in the next lines.
fn page() -> BTreeMap<String, String> {
    let (_, section) = PAGE
        .split_once("## Worked example")
        .expect("the page has the section");
    let (_, block) = section.split_once("```text\n").expect("the section has a block");
    let (block, _) = block.split_once("```").expect("the block ends");
    let mut values: Vec<(String, String)> = Vec::new();
    for line in block.lines().filter(|line| !line.is_empty()) {
        if line.starts_with(' ') {
            let (_, value) = values.last_mut().expect("a value goes on after its beginning");
            value.push_str(line.trim());
        } else {
            let (name, value) = line.split_once("  ").expect("two spaces follow a name");
            values.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    values.into_iter().collect()
}

fn hex(bytes: &[u8]) -> String {
    let mut digits = vec![0; 2 * bytes.len()];
    encoding::write_hex(bytes, &mut digits);
    String::from_utf8(digits).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    let mut bytes = vec![0; text.len() / 2];
    encoding::hex(text.as_bytes(), &mut bytes).unwrap();
    bytes
}

fn aes(key: &[u8; 32], block: [u8; 16]) -> [u8; 16] {
    let mut block = Block::<Aes256>::from(block);
    Aes256::new(key.into()).encrypt_block(&mut block);
    block.into()
}

fn cmac(key: &[u8; 32], message: &[u8]) -> [u8; 16] {
    let mut mac = <Cmac<Aes256> as KeyInit>::new(key.into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn double(block: &[u8; 16]) -> [u8; 16] {
    let number = u128::from_be_bytes(*block);
    (number << 1 ^ if number >> 127 == 1 { 0x87 } else { 0 }).to_be_bytes()
}

#[test]
fn the_worked_example_is_what_the_code_does() {
    let page = page();
    let given = |name: &str| page[name].clone();
    let key: [u8; 32] = unhex(&given("key K")).try_into().unwrap();
    let nonce: [u8; 24] = unhex(&given("nonce N")).try_into().unwrap();
    let (purpose, owner, field) = (given("purpose"), given("owner id"), given("field"));
    let context = Context::new(&purpose, &owner, &field).unwrap();
    let plaintext = given("login").replace("\\0", "\0");

    let material = KeyMaterial::from_bytes(&key).unwrap();
    let id = material.id();
    let keyring = Keyring::builder()
        .key(material, KeyState::Primary)
        .build()
        .unwrap();
    let sealed = keyring
        .seal_with(&context, plaintext.as_bytes(), |out| {
            out.copy_from_slice(&nonce);
            Ok(())
        })
        .unwrap();
    let parts = sealed.parts();
    let code = Cipher::new(&key);
    let message = code.message(&nonce);
    assert_eq!(message.commitment(), parts.commitment);

    let [first, second] = [1, 2].map(|i| [&[0, i, 0x58, 0], &nonce[..12]].concat());
    let [commit_first, commit_second] = [1, 2].map(|i| [b"XCMT", &nonce[..], &[0, 1, 0, i]].concat());
    let message_key: [u8; 32] = [cmac(&key, &first), cmac(&key, &second)]
        .concat()
        .try_into()
        .unwrap();
    let aad = context.with_aad(&header_of(id), <[u8]>::to_vec);
    // The code never has the message key by itself; that this is the one, opening what the code sealed shows.
    let mut opened = parts.ciphertext.to_vec();
    Aes256Gcm::new(&message_key.into())
        .decrypt_inout_detached(
            &Nonce::try_from(&nonce[12..]).unwrap(),
            &aad,
            opened.as_mut_slice().into(),
            &Tag::from(*parts.tag),
        )
        .unwrap();
    assert_eq!(opened, plaintext.as_bytes());
    assert_eq!(cipher::key_id(&key), *id.as_bytes());

    // Node makes legacy values, and `tests/vectors` holds those; these are read by the opener that passes them.
    let (legacy_hex, legacy_base64) = (given("legacy, in hex"), given("legacy, in base64"));
    let opener = LegacyOpener::new(LegacyKey::from_bytes(&key).unwrap(), LegacyPolicy::ImportOnly);
    let segments: Vec<&str> = legacy_hex.split(':').collect();
    let in_base64: Vec<String> = segments
        .iter()
        .map(|segment| Base64::encode_string(&unhex(segment)))
        .collect();
    assert_eq!(in_base64.join(":"), legacy_base64);
    let legacy = opener.open(&legacy_base64, LegacyUse::Import).unwrap();
    assert_eq!(
        opener
            .open(&legacy_hex, LegacyUse::Import)
            .unwrap()
            .expose_secret(),
        legacy.expose_secret()
    );

    let computed = [
        ("purpose", "credential".to_owned()),
        ("owner id", context.owner().to_owned()),
        ("field", "app".to_owned()),
        ("login", "app\\0correct horse".to_owned()),
        ("key K", hex(&key)),
        ("L", hex(&aes(&key, [0; 16]))),
        ("K1", hex(code.k1())),
        ("K2", hex(&double(code.k1()))),
        ("message of the key id", hex(b"\0\x01\x49\0biplane/kid")),
        ("its CMAC", hex(&cmac(&key, b"\0\x01\x49\0biplane/kid"))),
        ("key id", id.to_string()),
        ("nonce N", hex(parts.nonce)),
        ("first derived block", hex(&first)),
        ("second derived block", hex(&second)),
        ("message key", hex(&message_key)),
        ("GCM nonce", hex(&nonce[12..])),
        ("first commitment", hex(&commit_first)),
        ("its CMAC (first)", hex(&message.commitment()[..16])),
        ("second commitment", hex(&commit_second)),
        ("its CMAC (second)", hex(&message.commitment()[16..])),
        (
            "AES of the first block",
            hex(&aes(&key, commit_first[..16].try_into().unwrap())),
        ),
        ("plaintext", hex(plaintext.as_bytes())),
        ("additional data", hex(&aad)),
        ("ciphertext", hex(parts.ciphertext)),
        ("tag", hex(parts.tag)),
        ("envelope", hex(sealed.as_bytes())),
        ("text", sealed.to_text().as_str().to_owned()),
        ("legacy IV", segments[0].to_owned()),
        ("legacy plaintext", hex(legacy.expose_secret())),
        ("legacy, in hex", legacy_hex.clone()),
        ("legacy, in base64", legacy_base64.clone()),
    ];
    let computed: BTreeMap<String, String> = computed
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    assert_eq!(page, computed);
}

/// The written-out forms of the page, beside the libraries' CMAC: with them alone one could do without a library.
#[test]
fn the_written_out_formulas_are_those_of_the_library() {
    let page = page();
    let bytes = |name: &str| unhex(&page[name]);
    let block = |name: &str| <[u8; 16]>::try_from(bytes(name)).unwrap();
    let key: [u8; 32] = bytes("key K").try_into().unwrap();
    let xor = |a: [u8; 16], b: [u8; 16]| (u128::from_ne_bytes(a) ^ u128::from_ne_bytes(b)).to_ne_bytes();

    let (k1, k2) = (block("K1"), block("K2"));
    assert_eq!((double(&block("L")), double(&k1)), (k1, k2));
    let mut padded = bytes("message of the key id");
    padded.push(0x80);
    let padded: [u8; 16] = padded.try_into().unwrap();
    assert_eq!(aes(&key, xor(padded, k2)), block("its CMAC"));
    assert_eq!(
        [
            aes(&key, xor(block("first derived block"), k1)),
            aes(&key, xor(block("second derived block"), k1))
        ]
        .concat(),
        bytes("message key")
    );
    for which in ["first", "second"] {
        let last: [u8; 16] = bytes(&format!("{which} commitment"))[16..].try_into().unwrap();
        let x = xor(xor(block("AES of the first block"), last), k1);
        assert_eq!(aes(&key, x), block(&format!("its CMAC ({which})")));
    }
}
