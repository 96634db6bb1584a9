//! The secrets that are looked for, and what they turn into inside a cipher: round keys, subkeys, keys of messages.
//! All of it is computed here from the published formulas, apart from the code under test.

use aes::{
    Aes256, Block,
    cipher::{BlockCipherEncrypt, KeyInit},
};

use crate::scan;

pub(crate) type Key = [u8; 32];

/// The primary key. Its base64 holds `+` and `/`, so that both alphabets are other texts.
pub(crate) const KEY: Key = [
    0xfb, 0xef, 0xbe, 0x1c, 0x93, 0xd7, 0x46, 0xa8, 0x0b, 0x72, 0xe5, 0x3d, 0xff, 0x61, 0x9a, 0x84, 0x27,
    0xc0, 0x5e, 0xf6, 0x13, 0x8d, 0xb9, 0x4a, 0xd2, 0x35, 0x7f, 0xe8, 0x06, 0xac, 0x59, 0x91,
];
/// The key before it.
pub(crate) const OLD_KEY: Key = [
    0x4d, 0x82, 0xf9, 0x17, 0xa3, 0x6e, 0xc5, 0x30, 0xdb, 0x08, 0x94, 0x7a, 0xe1, 0x5f, 0xb6, 0x2c, 0x89,
    0x43, 0xfe, 0x1d, 0x70, 0xca, 0x96, 0x3b, 0xa7, 0x52, 0xed, 0x0f, 0xb8, 0x64, 0xd1, 0x3e,
];
/// A key of the older system.
pub(crate) const LEGACY_KEY: Key = [
    0xe6, 0x39, 0x0c, 0xb5, 0x78, 0xd4, 0x21, 0x9f, 0x53, 0xaa, 0x07, 0xee, 0x68, 0xbd, 0x14, 0xc7, 0xf2,
    0x4b, 0x90, 0x2d, 0x81, 0xdc, 0x56, 0xa9, 0x0e, 0x73, 0xcb, 0x3f, 0x95, 0xe0, 0x1a, 0x6d,
];
/// What is sealed: text.
pub(crate) const TEXT: &str = "pl4inTxt-Gv9%kQm2^wZ8!hRb5&xYd7*nLc3(tPf6)jSg1";
/// What is sealed: no text, with the offending byte at the end, where everything before it is decoded already.
pub(crate) const BYTES: [u8; 40] = *b"n0tText\xc3\xa9-Wq4#vEu8@iKo2$zAl6+rHs0=yBe9\xff\xfe";
/// What the older system encrypted.
pub(crate) const LEGACY_TEXT: &str = "l3gacyVal-Xp7~aTm4_cRk9.eQh2,gNd5;fWj8:uZb1";
/// A password, and how a URL writes it.
pub(crate) const PASSWORD: &str = "pa5:s@W0rd/Fy6?Ue3#Oi8 Ld1%Gn4";
pub(crate) const PASSWORD_IN_URL: &str = "pa5:s%40W0rd%2FFy6%3FUe3%23Oi8%20Ld1%25Gn4";
/// The tail of a password that was not encoded and ended up among the parameters of a URL.
pub(crate) const PASSWORD_TAIL: &str = "QzT4ilOfAp4sSw0Rd7Hx";

/// What is looked for, in the order of the numbers that the scanner knows.
#[derive(Default)]
pub(crate) struct Canaries(Vec<(String, Vec<u8>)>);

impl Canaries {
    pub(crate) fn all() -> Self {
        let mut canaries = Self::default();
        for (name, key) in [
            ("primary key", KEY),
            ("old key", OLD_KEY),
            ("legacy key", LEGACY_KEY),
        ] {
            canaries.add(name, &key);
            let hex = hex(&key);
            canaries.add(&format!("{name} in hex"), hex.as_bytes());
            canaries.add(&format!("{name} in HEX"), hex.to_uppercase().as_bytes());
            let base64 = base64(&key);
            canaries.add(&format!("{name} in base64"), base64.as_bytes());
            let url = base64.replace('+', "-").replace('/', "_");
            canaries.add(&format!("{name} in base64url"), url.as_bytes());
            canaries.cipher(name, &key);
        }
        canaries.add("sealed text", TEXT.as_bytes());
        canaries.add("sealed bytes", &BYTES);
        canaries.add("legacy text", LEGACY_TEXT.as_bytes());
        canaries.add("password", PASSWORD.as_bytes());
        canaries.add("password in a URL", PASSWORD_IN_URL.as_bytes());
        canaries.add("tail of a password", PASSWORD_TAIL.as_bytes());
        canaries.add(
            "tail of a password in lower case",
            PASSWORD_TAIL.to_lowercase().as_bytes(),
        );
        canaries
    }

    /// The key that one message was sealed with, and what it turns into.
    pub(crate) fn message(&mut self, name: &str, nonce: &[u8; 24]) {
        let key = message_key(&KEY, nonce);
        self.add(name, &key);
        self.cipher(name, &key);
    }

    pub(crate) fn name(&self, number: usize) -> &str {
        &self.0[number].0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, bytes)| (&**name, &**bytes))
    }

    pub(crate) fn numbers(&self, beginning: &str) -> Vec<usize> {
        let all = self.0.iter().enumerate();
        all.filter(|(_, (name, _))| name.starts_with(beginning))
            .map(|(number, _)| number)
            .collect()
    }

    fn add(&mut self, name: &str, bytes: &[u8]) {
        scan::watch(self.0.len(), bytes);
        self.0.push((name.to_owned(), bytes.to_vec()));
    }

    fn cipher(&mut self, name: &str, key: &Key) {
        // The first two round keys are the key itself.
        let later = &schedule(key)[2..];
        self.add(&format!("{name}: round keys"), later.as_flattened());
        let (subkey, hash) = (cmac_subkey(key), polyval_key(key));
        self.add(&format!("{name}: CMAC subkey"), &subkey);
        self.add(&format!("{name}: POLYVAL key"), &hash);
    }
}

/// FIPS 197, section 5.2. The S-box is taken from the definition: the inverse in GF(2⁸), then an affine map.
pub(crate) fn schedule(key: &Key) -> [[u8; 16]; 15] {
    let mut words = [[0; 4]; 60];
    for (word, bytes) in words.iter_mut().zip(key.as_chunks::<4>().0) {
        *word = *bytes;
    }
    let mut constant = 1;
    for i in 8..60 {
        let mut word = words[i - 1];
        if i % 8 == 0 {
            word.rotate_left(1);
            word = word.map(s_box);
            word[0] ^= constant;
            constant = times(constant, 2);
        } else if i % 8 == 4 {
            word = word.map(s_box);
        }
        for (byte, before) in word.iter_mut().zip(words[i - 8]) {
            *byte ^= before;
        }
        words[i] = word;
    }
    let mut keys = [[0; 16]; 15];
    for (key, words) in keys.iter_mut().zip(words.as_chunks::<4>().0) {
        key.copy_from_slice(words.as_flattened());
    }
    keys
}

fn s_box(byte: u8) -> u8 {
    let inverse = (1..=255).find(|other| times(byte, *other) == 1).unwrap_or(0);
    (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
}

fn times(mut a: u8, b: u8) -> u8 {
    let mut product = 0;
    for bit in 0..8 {
        if b >> bit & 1 == 1 {
            product ^= a;
        }
        a = a << 1 ^ if a & 0x80 == 0 { 0 } else { 0x1b };
    }
    product
}

/// K1 of NIST SP 800-38B.
fn cmac_subkey(key: &Key) -> [u8; 16] {
    let l = u128::from_be_bytes(encrypt(key, [0; 16]));
    (l << 1 ^ if l >> 127 == 0 { 0 } else { 0x87 }).to_be_bytes()
}

/// What GHASH's key is to POLYVAL: mulX_POLYVAL(ByteReverse(H)), RFC 8452, appendix A.
fn polyval_key(key: &Key) -> [u8; 16] {
    let h = u128::from_be_bytes(encrypt(key, [0; 16]));
    let doubled = h << 1;
    (doubled ^ if h >> 127 == 0 { 0 } else { 0xc2 << 120 | 1 }).to_le_bytes()
}

/// The derived key of XAES-256-GCM: CMACs of `00 i 58 00` and the first half of the nonce, one block each.
fn message_key(key: &Key, nonce: &[u8; 24]) -> Key {
    let mut derived = [0; 32];
    let subkey = cmac_subkey(key);
    for (counter, half) in [1, 2].into_iter().zip(derived.chunks_exact_mut(16)) {
        let mut block = [0, counter, b'X', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        block[4..].copy_from_slice(&nonce[..12]);
        for (byte, mask) in block.iter_mut().zip(subkey) {
            *byte ^= mask;
        }
        half.copy_from_slice(&encrypt(key, block));
    }
    derived
}

fn encrypt(key: &Key, block: [u8; 16]) -> [u8; 16] {
    let mut block = Block::from(block);
    Aes256::new(key.into()).encrypt_block(&mut block);
    block.into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 4648, section 4.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let value = group
            .iter()
            .enumerate()
            .fold(0, |value, (i, byte)| value | u32::from(*byte) << (16 - 8 * i));
        for place in 0..4 {
            let index = value >> (18 - 6 * place) & 63;
            text.push(if place <= group.len() {
                char::from(ALPHABET[index as usize])
            } else {
                '='
            });
        }
    }
    text
}
