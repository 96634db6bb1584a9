//! The bytes and the text of a sealed value. `src/manual/keyring_format.md` describes the layout.

use std::fmt;

use base64ct::{Base64UrlUnpadded, Encoding};

use crate::tenant::SealedText;

use super::{
    KeyId, KeyringError,
    cipher::{COMMITMENT_LEN, NONCE_LEN, TAG_LEN},
    encoding,
};

pub(super) const HEADER_LEN: usize = 10;
const VERSION: u8 = 1;
const SUITE: u8 = 1;

/// What follows the ciphertext.
const TRAILER_LEN: usize = TAG_LEN + COMMITMENT_LEN;
const TEXT_PREFIX: &str = "bp1.";
const TEXT_ID_LEN: usize = 16;
/// A nonce fills whole groups of base64, so that what follows decodes on its own.
const TEXT_NONCE_LEN: usize = NONCE_LEN / 3 * 4;

const TOO_SHORT: KeyringError = KeyringError::Malformed("it is too short to be sealed");

/// A sealed value. It is canonical: one value has one binary and one text form.
///
/// Being well-formed says nothing about being genuine; only opening it does. `Debug` prints the id of the key and the
/// length.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Sealed(Box<[u8]>);

/// Where the parts of a binary envelope are.
pub(super) struct Parts<'a> {
    pub(super) id: KeyId,
    pub(super) nonce: &'a [u8; NONCE_LEN],
    pub(super) ciphertext: &'a [u8],
    pub(super) tag: &'a [u8; TAG_LEN],
    pub(super) commitment: &'a [u8; COMMITMENT_LEN],
}

impl Sealed {
    /// How many bytes the binary form is longer than what was sealed.
    pub const OVERHEAD: usize = HEADER_LEN + NONCE_LEN + TRAILER_LEN;

    /// Reads the binary form.
    ///
    /// # Errors
    /// [`KeyringError::Malformed`], [`KeyringError::UnsupportedVersion`] or [`KeyringError::UnsupportedSuite`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyringError> {
        match *bytes {
            [] => return Err(TOO_SHORT),
            [VERSION, SUITE, ..] => {}
            [VERSION] => return Err(TOO_SHORT),
            [VERSION, ..] => return Err(KeyringError::UnsupportedSuite),
            _ => return Err(KeyringError::UnsupportedVersion),
        }
        if bytes.len() < Self::OVERHEAD {
            return Err(TOO_SHORT);
        }
        Ok(Self(bytes.into()))
    }

    /// Reads the text form. No other spelling of the same bytes is accepted: neither upper-case digits in the key id,
    /// nor padding, nor trailing bits that are not zero, nor white space.
    ///
    /// # Errors
    /// [`KeyringError::Malformed`] or [`KeyringError::UnsupportedVersion`].
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let text = Text::parse(text)?;
        let mut bytes =
            vec![0; HEADER_LEN + NONCE_LEN + text.ciphertext_len + TRAILER_LEN].into_boxed_slice();
        let (header, body) = bytes.split_at_mut(HEADER_LEN);
        header.copy_from_slice(&header_of(text.id));
        encoding::base64url(text.body, body).map_err(|_| NOT_BASE64)?;
        Ok(Self(bytes))
    }

    /// The binary form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text form, for a column.
    #[must_use]
    pub fn to_text(&self) -> SealedText {
        let body = &self.0[HEADER_LEN..];
        let body_start = TEXT_PREFIX.len() + TEXT_ID_LEN + 1;
        let mut text = vec![0; body_start + Base64UrlUnpadded::encoded_len(body)];
        text[..TEXT_PREFIX.len()].copy_from_slice(TEXT_PREFIX.as_bytes());
        encoding::write_hex(
            &self.0[2..HEADER_LEN],
            &mut text[TEXT_PREFIX.len()..body_start - 1],
        );
        text[body_start - 1] = b'.';
        Base64UrlUnpadded::encode(body, &mut text[body_start..]).expect("the room for it was counted above");
        SealedText::new(std::str::from_utf8(&text).expect("hex and base64 are ASCII"))
    }

    /// The id of the key that it names.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.parts().id
    }

    /// How long what was sealed is, in bytes. Sealing hides no length.
    #[must_use]
    pub fn plaintext_len(&self) -> usize {
        self.0.len() - Self::OVERHEAD
    }

    /// The envelope of these bytes, which the keyring has put together.
    pub(super) fn from_sealing(bytes: Box<[u8]>) -> Self {
        debug_assert!(bytes.len() >= Self::OVERHEAD && bytes[..2] == [VERSION, SUITE]);
        Self(bytes)
    }

    pub(super) fn parts(&self) -> Parts<'_> {
        const LONG_ENOUGH: &str = "an envelope has at least its overhead";
        let (header, rest) = self.0.split_first_chunk::<HEADER_LEN>().expect(LONG_ENOUGH);
        let (nonce, rest) = rest.split_first_chunk().expect(LONG_ENOUGH);
        let (rest, commitment) = rest.split_last_chunk().expect(LONG_ENOUGH);
        let (ciphertext, tag) = rest.split_last_chunk().expect(LONG_ENOUGH);
        let [_, _, id @ ..] = *header;
        Parts {
            id: KeyId::from_bytes(id),
            nonce,
            ciphertext,
            tag,
            commitment,
        }
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed")
            .field("key", &self.key_id())
            .field("len", &self.0.len())
            .finish()
    }
}

/// The first bytes of every envelope under this key.
pub(super) fn header_of(id: KeyId) -> [u8; HEADER_LEN] {
    let mut header = [VERSION, SUITE, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..].copy_from_slice(id.as_bytes());
    header
}

const NOT_BASE64: KeyringError =
    KeyringError::Malformed("the part after the key id is not canonical base64url without padding");

/// A text form, taken apart but not decoded.
pub(super) struct Text<'a> {
    pub(super) id: KeyId,
    pub(super) ciphertext_len: usize,
    body: &'a [u8],
}

impl<'a> Text<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, KeyringError> {
        let Some(rest) = text.strip_prefix(TEXT_PREFIX) else {
            return Err(other_format(text));
        };
        let (id, body) = rest
            .split_once('.')
            .ok_or(KeyringError::Malformed("it has no second dot"))?;
        let id = id
            .parse()
            .map_err(|_| KeyringError::Malformed("its key id is not 16 lower-case hex digits"))?;
        let decoded = encoding::base64url_len(body.len()).ok_or(NOT_BASE64)?;
        let ciphertext_len = decoded.checked_sub(NONCE_LEN + TRAILER_LEN).ok_or(TOO_SHORT)?;
        Ok(Self {
            id,
            ciphertext_len,
            body: body.as_bytes(),
        })
    }

    /// Decodes the ciphertext straight into the allocation in which it will be opened, so that opening makes no other.
    pub(super) fn decode(&self) -> Result<Decoded, KeyringError> {
        let (nonce, rest) = self.body.split_at(TEXT_NONCE_LEN);
        let mut decoded = Decoded {
            nonce: [0; NONCE_LEN],
            ciphertext: vec![0; self.ciphertext_len].into_boxed_slice(),
            tag: [0; TAG_LEN],
            commitment: [0; COMMITMENT_LEN],
        };
        encoding::base64url(nonce, &mut decoded.nonce).map_err(|_| NOT_BASE64)?;

        // The group in which the ciphertext ends and the tag begins is decoded with the trailer.
        let groups = self.ciphertext_len / 3;
        let (whole, rest) = rest.split_at(4 * groups);
        let (start, end) = decoded.ciphertext.split_at_mut(3 * groups);
        let mut buffer = [0; 2 + TRAILER_LEN];
        let buffer = &mut buffer[..end.len() + TRAILER_LEN];
        encoding::base64url(whole, start).map_err(|_| NOT_BASE64)?;
        encoding::base64url(rest, buffer).map_err(|_| NOT_BASE64)?;
        let (last, trailer) = buffer.split_at(end.len());
        let (tag, commitment) = trailer.split_at(TAG_LEN);
        end.copy_from_slice(last);
        decoded.tag.copy_from_slice(tag);
        decoded.commitment.copy_from_slice(commitment);
        Ok(decoded)
    }
}

/// The decoded parts of a text form, the ciphertext in an allocation of exactly its size.
pub(super) struct Decoded {
    pub(super) nonce: [u8; NONCE_LEN],
    pub(super) ciphertext: Box<[u8]>,
    pub(super) tag: [u8; TAG_LEN],
    pub(super) commitment: [u8; COMMITMENT_LEN],
}

fn other_format(text: &str) -> KeyringError {
    if cfg!(biplane_mutant = "errors_quote_the_input") {
        return KeyringError::Malformed(text.to_owned().leak());
    }
    let version = text
        .strip_prefix("bp")
        .and_then(|rest| rest.split_once('.'))
        .map(|(version, _)| version.as_bytes());
    match version {
        Some([b'1'..=b'9', rest @ ..]) if rest.len() < 4 && rest.iter().all(u8::is_ascii_digit) => {
            KeyringError::UnsupportedVersion
        }
        _ => KeyringError::Malformed("it does not begin with bp1."),
    }
}
