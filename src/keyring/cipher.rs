//! XAES-256-GCM as C2SP specifies it (<https://c2sp.org/XAES-256-GCM>), with the key commitment beside it.
//!
//! XAES-256-GCM is AES-256-GCM under a key that two calls of CMAC derive. They are written out here, over the block
//! cipher and `aes-gcm`, for speed: the derivation and the commitment share the schedule of the key and its CMAC
//! subkey, both kept in the snapshot; the derived key needs the encrypting half of a schedule alone; and independent
//! blocks go through the processor's pipeline together. Published vectors, the crate `xaes-256-gcm` and the crate
//! `cmac` hold it in place in the tests.

use aes::{
    Aes256Enc, Block,
    cipher::{
        BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, Key, KeyInit,
        consts::U16,
    },
};
use aes_gcm::{
    AesGcm, Nonce, Tag,
    aead::{AeadInOut, consts::U12},
};
use cmac::{Cmac, Mac};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing, zeroize_stack};

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
    commitment: [[u8; 16]; 2],
}

/// The first eight bytes of a CMAC with a prefix of its own: it tells nothing about the key, and no nonce makes the
/// derivation or the commitment meet it.
pub(super) fn key_id(key: &[u8; KEY_LEN]) -> [u8; 8] {
    on_wiped_stack(|| {
        let mut mac = <Cmac<Aes256Enc> as KeyInit>::new(key.into());
        mac.update(&[0, 1, 0x49, 0]);
        mac.update(b"biplane/kid");
        let mac = mac.finalize().into_bytes();
        std::array::from_fn(|i| mac[i])
    })
}

/// Does what expands a key, and wipes the part of the stack that it used.
///
/// Expanding leaves copies of round keys in dead stack frames, and from there they get into the padding of structs that
/// are boxed later, where nothing wipes them. It costs too much for every message, and is for keys that are loaded.
pub(super) fn on_wiped_stack<T>(work: impl FnOnce() -> T) -> T {
    // Several times what the deepest of these uses in a build without optimisation.
    const DEPTH: usize = 16 * 1024;

    #[inline(never)]
    fn in_a_frame_of_its_own<T>(work: impl FnOnce() -> T) -> T {
        work()
    }

    let done = in_a_frame_of_its_own(work);
    if !cfg!(biplane_mutant = "stacks_are_left") {
        zeroize_stack::<DEPTH>();
    }
    done
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

    /// For the worked example, which shows it.
    #[cfg(test)]
    pub(super) fn k1(&self) -> &[u8; 16] {
        &self.k1.0
    }

    pub(super) fn message(&self, nonce: &[u8; NONCE_LEN]) -> MessageCipher {
        let mut key = Zeroizing::new([Block::default(); 2]);
        let mut commitment = [Block::default(); 2];
        self.aes.encrypt_with_backend(Derivation {
            k1: &self.k1,
            nonce,
            key: &mut key,
            commitment: &mut commitment,
        });
        let mut bytes = Zeroizing::new(Key::<Aes256Enc>::default());
        bytes[..16].copy_from_slice(&key[0]);
        bytes[16..].copy_from_slice(&key[1]);
        MessageCipher {
            gcm: AesGcm::new(&bytes),
            nonce: Nonce::try_from(&nonce[NONCE_LEN / 2..]).expect("half of a nonce has 12 bytes"),
            commitment: commitment.map(|block| block.0),
        }
    }
}

/// The derivation and the commitment of one message, in one call of the block cipher: every call readies the key for
/// the processor's widest instructions anew.
struct Derivation<'a> {
    k1: &'a Block,
    nonce: &'a [u8; NONCE_LEN],
    key: &'a mut [Block; 2],
    commitment: &'a mut [Block; 2],
}

impl BlockSizeUser for Derivation<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Derivation<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let (first, second) = self.nonce.split_at(NONCE_LEN / 2);
        let block = |prefix: [u8; 4], rest: &[u8]| {
            let mut block = Block::default();
            block[..4].copy_from_slice(&prefix);
            block[4..].copy_from_slice(rest);
            block
        };
        // Both messages of the derivation are one block; those of the commitment are two, and begin alike.
        let [low, high] = self.key;
        *low = xor(&block([0, 1, b'X', 0], first), self.k1);
        *high = xor(&block([0, 2, b'X', 0], first), self.k1);
        let mut chain = block(*b"XCMT", first);
        backend.encrypt_block((&mut chain).into());
        backend.encrypt_block(low.into());
        backend.encrypt_block(high.into());

        chain = xor(&chain, self.k1);
        for (counter, block) in [1, 2].into_iter().zip(self.commitment) {
            let mut last = Block::default();
            last[..12].copy_from_slice(second);
            last[12..].copy_from_slice(&[0, 1, 0, counter]);
            *block = xor(&chain, &last);
            backend.encrypt_block(block.into());
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
        self.commitment
            .as_flattened()
            .try_into()
            .expect("a commitment is two blocks")
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
        // As two numbers: by bytes, the barriers against the optimiser take longer than the comparison.
        let (given, []) = commitment.as_chunks::<16>() else {
            return Err(Forged);
        };
        let equal = |i: usize| u128::from_ne_bytes(self.commitment[i]).ct_eq(&u128::from_ne_bytes(given[i]));
        if !bool::from(equal(0) & equal(1)) && !cfg!(biplane_mutant = "any_commitment_will_do") {
            return Err(Forged);
        }
        let tag: &Tag = tag.into();
        self.gcm
            .decrypt_inout_detached(&self.nonce, aad, text.into(), tag)
            .map_err(|_| Forged)
    }
}

#[inline(always)]
fn xor(a: &Block, b: &Block) -> Block {
    (u128::from_ne_bytes(a.0) ^ u128::from_ne_bytes(b.0))
        .to_ne_bytes()
        .into()
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
    #[ignore = "minutes without --release: cargo test --release --lib accumulator -- --ignored"]
    fn published_accumulator_of_1_000_000() {
        assert_eq!(
            accumulated(1_000_000),
            "2163ae1445985a30b60585ee67daa55674df06901b890593e824b8a7c885ab15"
        );
    }

    /// Project Wycheproof's vectors for AES-256-GCM with IVs of 96 bits, which are those of XAES: through the very code
    /// that seals and opens messages, the additional data included. `tests/wycheproof.rs` has the legacy opener.
    #[test]
    fn wycheproofs_vectors_of_aes_256_gcm() {
        let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
        let groups = set
            .test_groups
            .iter()
            .filter(|group| (group.key_size, group.nonce_size, group.tag_size) == (256, 96, 128));
        let (mut valid, mut invalid, mut with_aad) = (0, 0, 0);
        for test in groups.flat_map(|group| &group.tests) {
            let message = MessageCipher {
                gcm: AesGcm::new_from_slice(&test.key).unwrap(),
                nonce: Nonce::try_from(&test.nonce[..]).unwrap(),
                commitment: [[7; 16]; 2],
            };
            let tag: &[u8; TAG_LEN] = test.tag[..].try_into().unwrap();
            let mut text = test.ct.to_vec();
            let opened = message.open(&test.aad, &mut text, tag, &[7; COMMITMENT_LEN]);
            let mut sealed = test.pt.to_vec();
            let sealed_tag = message.seal(&test.aad, &mut sealed);
            if test.result.must_fail() {
                invalid += 1;
                assert_eq!(opened, Err(Forged), "{}", test.tc_id);
                assert_eq!(text, test.ct[..], "{}", test.tc_id);
                assert_ne!((&sealed[..], &sealed_tag), (&test.ct[..], tag), "{}", test.tc_id);
            } else {
                valid += 1;
                with_aad += usize::from(!test.aad.is_empty());
                assert_eq!((opened, &text[..]), (Ok(()), &test.pt[..]), "{}", test.tc_id);
                assert_eq!((&sealed[..], &sealed_tag), (&test.ct[..], tag), "{}", test.tc_id);
            }
        }
        // As many as version 0.7 of the crate has: no set that came out empty passes.
        assert_eq!((valid, invalid, with_aad), (39, 27, 18));
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

    /// GCM alone lets anyone who has two keys make one ciphertext and tag that authenticate under both: the tag is linear
    /// in a block of ciphertext. The commitment is what refuses it.
    #[test]
    fn a_ciphertext_made_for_two_keys_opens_under_one() {
        let nonce = [5; NONCE_LEN];
        let messages = [1, 2].map(|key| Cipher::new(&[key; 32]).message(&nonce));
        let aads = [b"names key one".as_slice(), b"names key two"];
        // The tag of a given ciphertext, by sealing what it decrypts to.
        let tag = |i: usize, ciphertext: u128| {
            let mut text = [0; 16];
            messages[i].seal(aads[i], &mut text);
            for (byte, wanted) in text.iter_mut().zip(ciphertext.to_ne_bytes()) {
                *byte ^= wanted;
            }
            let tag = messages[i].seal(aads[i], &mut text);
            assert_eq!(text, ciphertext.to_ne_bytes());
            u128::from_ne_bytes(tag)
        };
        let difference = |ciphertext| tag(0, ciphertext) ^ tag(1, ciphertext);

        // Solve for the ciphertext whose tags do not differ, by elimination over bits.
        let offset = difference(0);
        let mut rows: Vec<(u128, u128)> = Vec::new();
        for bit in 0..128 {
            let mut row = (difference(1 << bit) ^ offset, 1 << bit);
            for known in &rows {
                if row.0 & (1 << known.0.trailing_zeros()) != 0 {
                    row = (row.0 ^ known.0, row.1 ^ known.1);
                }
            }
            assert_ne!(row.0, 0, "the map can be inverted");
            rows.push(row);
        }
        let (mut left, mut ciphertext) = (offset, 0);
        for row in &rows {
            if left & (1 << row.0.trailing_zeros()) != 0 {
                left ^= row.0;
                ciphertext ^= row.1;
            }
        }
        assert_eq!(left, 0);
        let tag_of_both = tag(0, ciphertext).to_ne_bytes();
        assert_eq!(tag(1, ciphertext).to_ne_bytes(), tag_of_both);

        let open = |i: usize, commitment: usize| {
            let mut text = ciphertext.to_ne_bytes();
            let commitment = messages[commitment].commitment();
            messages[i].open(aads[i], &mut text, &tag_of_both, commitment)
        };
        assert_eq!((open(0, 0), open(1, 1)), (Ok(()), Ok(())), "it is made for both");
        assert_eq!((open(0, 1), open(1, 0)), (Err(Forged), Err(Forged)));
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
