//! XAES-256-GCM as C2SP specifies it (<https://c2sp.org/XAES-256-GCM>), with the key commitment beside it.
//!
//! XAES-256-GCM is AES-256-GCM under a key that two calls of CMAC derive. They are written out here, over the block
//! cipher and `aes-gcm`, for speed: the derivation and the commitment share the schedule of the key and its CMAC
//! subkey, both kept in the snapshot; the derived key needs the encrypting half of a schedule alone; and independent
//! blocks go through the processor's pipeline together. Published vectors, the crate `xaes-256-gcm` and the crate
//! `cmac` hold it in place in the tests.

use aes::{
    Aes256Enc, Block,
    cipher::{BlockCipherEncrypt, KeyInit},
};
use aes_gcm::{
    AesGcm, Nonce, Tag,
    aead::{AeadInOut, consts::U12},
};
use cmac::{Cmac, Mac};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

pub(super) const KEY_LEN: usize = 32;
pub(super) const NONCE_LEN: usize = 24;
pub(super) const TAG_LEN: usize = 16;
pub(super) const COMMITMENT_LEN: usize = 32;

/// Bytes that authenticate as nothing that was sealed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Forged;

/// A key, ready to derive the keys of messages.
pub(super) struct Cipher {
    aes: Aes256Enc,
    /// The subkey for complete last blocks (K1 of NIST SP 800-38B).
    k1: Block,
}

/// What one message is sealed with.
pub(super) struct MessageCipher {
    gcm: AesGcm<Aes256Enc, U12>,
    nonce: Nonce<U12>,
    commitment: [u8; COMMITMENT_LEN],
}

/// The first eight bytes of a CMAC with a prefix of its own: it tells nothing about the key, and no nonce makes the
/// derivation or the commitment meet it.
pub(super) fn key_id(key: &[u8; KEY_LEN]) -> [u8; 8] {
    let mut mac = <Cmac<Aes256Enc> as KeyInit>::new(key.into());
    mac.update(&[0, 1, 0x49, 0]);
    mac.update(b"biplane/kid");
    let mac = mac.finalize().into_bytes();
    std::array::from_fn(|i| mac[i])
}

impl Cipher {
    pub(super) fn new(key: &[u8; KEY_LEN]) -> Self {
        let aes = Aes256Enc::new(key.into());
        let mut l = Block::default();
        aes.encrypt_block(&mut l);
        let mut doubled = u128::from_be_bytes(l.0);
        // Multiplication by x in GF(2^128): a bit that falls out at the top comes back as the polynomial.
        doubled = doubled << 1 ^ (0x87 & (doubled >> 127).wrapping_neg());
        let k1 = Block::from(doubled.to_be_bytes());
        l.zeroize();
        doubled.zeroize();
        Self { aes, k1 }
    }

    pub(super) fn message(&self, nonce: &[u8; NONCE_LEN]) -> MessageCipher {
        let (first, second) = nonce.split_at(NONCE_LEN / 2);
        let block = |prefix: [u8; 4], rest: &[u8]| {
            let mut block = Block::default();
            block[..4].copy_from_slice(&prefix);
            block[4..].copy_from_slice(rest);
            block
        };

        // Both messages of the derivation are one block; those of the commitment are two, and begin alike.
        let mut blocks = [
            xor(block([0, 1, b'X', 0], first), &self.k1),
            xor(block([0, 2, b'X', 0], first), &self.k1),
            block(*b"XCMT", first),
        ];
        self.aes.encrypt_blocks(&mut blocks);
        let [mut low, mut high, state] = blocks;

        let chained = xor(state, &self.k1);
        let mut last = [1, 2].map(|counter| {
            let mut block = chained;
            for (byte, nonce) in block.iter_mut().zip(second) {
                *byte ^= nonce;
            }
            block[13] ^= 1;
            block[15] ^= counter;
            block
        });
        self.aes.encrypt_blocks(&mut last);
        let mut commitment = [0; COMMITMENT_LEN];
        commitment[..16].copy_from_slice(&last[0]);
        commitment[16..].copy_from_slice(&last[1]);

        let mut key = Zeroizing::new([0; KEY_LEN]);
        key[..16].copy_from_slice(&low);
        key[16..].copy_from_slice(&high);
        low.zeroize();
        high.zeroize();
        blocks.zeroize();
        MessageCipher {
            gcm: AesGcm::new((&*key).into()),
            nonce: Nonce::try_from(second).expect("the second half of a nonce has 12 bytes"),
            commitment,
        }
    }
}

impl Drop for Cipher {
    fn drop(&mut self) {
        self.k1.zeroize();
    }
}

impl MessageCipher {
    pub(super) fn commitment(&self) -> &[u8; COMMITMENT_LEN] {
        &self.commitment
    }

    /// Encrypts in place and returns the tag.
    pub(super) fn seal(&self, aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        self.gcm
            .encrypt_inout_detached(&self.nonce, aad, text.into())
            .expect("a keyring's limits are far below those of GCM")
            .into()
    }

    /// Decrypts in place. `text` is untouched unless key, commitment, tag and `aad` agree.
    pub(super) fn open(
        &self,
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
        commitment: &[u8; COMMITMENT_LEN],
    ) -> Result<(), Forged> {
        if !bool::from(self.commitment.ct_eq(commitment)) {
            return Err(Forged);
        }
        let tag: &Tag = tag.into();
        self.gcm
            .decrypt_inout_detached(&self.nonce, aad, text.into(), tag)
            .map_err(|_| Forged)
    }
}

fn xor(mut block: Block, with: &Block) -> Block {
    for (byte, with) in block.iter_mut().zip(with) {
        *byte ^= with;
    }
    block
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shake::{
        Shake128,
        digest::{ExtendableOutput, XofReader},
    };
    use xaes_256_gcm::Xaes256Gcm;

    use super::*;

    fn sealed(key: &[u8; 32], nonce: &[u8; 24], plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
        let message = Cipher::new(key).message(nonce);
        let mut text = plaintext.to_vec();
        let tag = message.seal(aad, &mut text);
        let mut back = text.clone();
        message.open(aad, &mut back, &tag, message.commitment()).unwrap();
        assert_eq!(back, plaintext);
        text.extend(tag);
        text
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The vectors printed in C2SP's specification.
    #[test]
    fn published_vectors() {
        let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
        assert_eq!(
            hex(&sealed(&[1; 32], nonce, b"XAES-256-GCM", b"")),
            "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"
        );
        assert_eq!(
            hex(&sealed(
                &[3; 32],
                nonce,
                b"XAES-256-GCM",
                b"c2sp.org/XAES-256-GCM"
            )),
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"
        );
        assert_eq!(hex(&Cipher::new(&[1; 32]).k1), "e531954aca063d5b8d9c47a47d4cc6f0");
        assert_eq!(hex(&Cipher::new(&[3; 32]).k1), "23810ec50edb99f374409466ed1f4b7b");
    }

    fn accumulated(iterations: usize) -> String {
        let mut random = Shake128::default().finalize_xof();
        let mut accumulator = Shake128::default();
        for _ in 0..iterations {
            let (mut key, mut nonce, mut length) = ([0; 32], [0; 24], [0]);
            random.read(&mut key);
            random.read(&mut nonce);
            random.read(&mut length);
            let mut plaintext = vec![0; usize::from(length[0])];
            random.read(&mut plaintext);
            random.read(&mut length);
            let mut aad = vec![0; usize::from(length[0])];
            random.read(&mut aad);
            shake::digest::Update::update(&mut accumulator, &sealed(&key, &nonce, &plaintext, &aad));
        }
        let mut digest = [0; 32];
        accumulator.finalize_xof().read(&mut digest);
        hex(&digest)
    }

    /// From C2SP's specification.
    #[test]
    fn published_accumulator_of_10_000() {
        assert_eq!(
            accumulated(10_000),
            "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
        );
    }

    /// From C2SP's specification.
    #[test]
    #[ignore = "minutes without optimisation: cargo test --release --lib accumulator -- --ignored"]
    fn published_accumulator_of_1_000_000() {
        assert_eq!(
            accumulated(1_000_000),
            "2163ae1445985a30b60585ee67daa55674df06901b890593e824b8a7c885ab15"
        );
    }

    #[test]
    fn another_commitment_is_refused_before_anything_is_decrypted() {
        let message = Cipher::new(&[1; 32]).message(&[2; 24]);
        let mut text = *b"sixteen bytes...";
        let tag = message.seal(b"aad", &mut text);
        let before = text;
        for bit in 0..8 * COMMITMENT_LEN {
            let mut other = *message.commitment();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(message.open(b"aad", &mut text, &tag, &other), Err(Forged));
            assert_eq!(text, before);
        }
    }

    proptest! {
        #[test]
        fn it_is_xaes_256_gcm(
            key: [u8; 32], nonce: [u8; 24],
            plaintext in prop::collection::vec(any::<u8>(), 0..300),
            aad in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut expected = plaintext.clone();
            let tag = Xaes256Gcm::new(&key.into())
                .encrypt_inout_detached(&nonce.into(), &aad, expected.as_mut_slice().into())
                .unwrap();
            expected.extend(tag);
            prop_assert_eq!(sealed(&key, &nonce, &plaintext, &aad), expected);
        }

        #[test]
        fn the_commitment_is_two_cmacs(key: [u8; 32], nonce: [u8; 24]) {
            let cmac = |counter: u8| {
                let mut mac = <Cmac<aes::Aes256> as KeyInit>::new(&key.into());
                mac.update(b"XCMT");
                mac.update(&nonce);
                mac.update(&[0, 1, 0, counter]);
                mac.finalize().into_bytes()
            };
            let message = Cipher::new(&key).message(&nonce);
            prop_assert_eq!(&message.commitment()[..16], &cmac(1)[..]);
            prop_assert_eq!(&message.commitment()[16..], &cmac(2)[..]);
        }
    }
}
