//! Keys: their ids, their bytes and their states.

use std::{fmt, str::FromStr};

use base64ct::{Base64Unpadded, Base64UrlUnpadded, Encoding};
use secrecy::{ExposeSecret, ExposeSecretMut, SecretBox, SecretString};

use crate::secret::SecretBytes;

use super::{
    KeyringError,
    cipher::{self, KEY_LEN},
    encoding,
};

/// Which key. It is derived from the key's bytes, so that it cannot be given to another key, and tells nothing about
/// them.
///
/// It is written as 16 lower-case hexadecimal digits, and no other spelling is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

/// The text is not a key id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key id is 16 lower-case hex digits")]
pub struct KeyIdError;

impl KeyId {
    /// The id of these bytes, which come from an envelope or from a note about a key.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = KeyIdError;

    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        let mut bytes = [0; 8];
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(KeyIdError);
        }
        encoding::hex(text.as_bytes(), &mut bytes).map_err(|_| KeyIdError)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 16];
        encoding::write_hex(&self.0, &mut digits);
        f.pad(std::str::from_utf8(&digits).expect("hex digits are ASCII"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// What a key may be used for.
///
/// | state | seals | opens |
/// |---|---|---|
/// | pending | no | yes |
/// | primary, exactly one | yes | yes |
/// | decrypt-only | no | yes |
/// | disabled | no | [`KeyDisabled`](KeyringError::KeyDisabled) |
/// | destroyed | no | [`KeyDestroyed`](KeyringError::KeyDestroyed) |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyState {
    /// On its way in: it opens, and nothing is sealed under it until every process has it.
    Pending,
    /// The one key that seals. It opens too.
    Primary,
    /// On its way out: it opens what was sealed under it.
    DecryptOnly,
    /// Switched off, and kept to be switched on again: the proof that nothing needs it before it is destroyed.
    Disabled,
    /// Gone for good. Its id stays as a tombstone, so that a value sealed under it is told from one whose key is missing
    /// by mistake.
    Destroyed,
}

/// The text is not a key state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key state is pending, primary, decrypt-only, disabled or destroyed")]
pub struct UnknownKeyState;

impl KeyState {
    /// The name used in text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Primary => "primary",
            Self::DecryptOnly => "decrypt-only",
            Self::Disabled => "disabled",
            Self::Destroyed => "destroyed",
        }
    }

    /// Whether a key in this state opens what was sealed under it.
    #[must_use]
    pub const fn opens(self) -> bool {
        match self {
            Self::Pending | Self::Primary | Self::DecryptOnly => true,
            Self::Disabled | Self::Destroyed => false,
        }
    }
}

impl FromStr for KeyState {
    type Err = UnknownKeyState;

    fn from_str(text: &str) -> Result<Self, UnknownKeyState> {
        match text {
            "pending" => Ok(Self::Pending),
            "primary" => Ok(Self::Primary),
            "decrypt-only" => Ok(Self::DecryptOnly),
            "disabled" => Ok(Self::Disabled),
            "destroyed" => Ok(Self::Destroyed),
            _ => Err(UnknownKeyState),
        }
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The 32 bytes of a key, wiped when dropped. `Debug` prints the id alone.
///
/// Bytes that nobody drew at random are refused: all zero, one byte repeated, or 32 printable characters, which are a
/// passphrase (random bytes are all printable once in 10¹⁵ keys).
pub struct KeyMaterial(SecretBox<[u8; KEY_LEN]>);

impl KeyMaterial {
    /// A new key from the operating system's random numbers. Nothing calls this for you: a process that made up a key
    /// because it found none would seal what no other process can open.
    ///
    /// # Errors
    /// [`KeyringError::Rng`].
    pub fn generate() -> Result<Self, KeyringError> {
        let mut key = empty();
        getrandom::fill(key.expose_secret_mut()).map_err(|_| KeyringError::Rng)?;
        Self::checked(key)
    }

    /// A key given as raw bytes.
    ///
    /// # Errors
    /// [`KeyringError::MalformedKey`] unless there are 32, [`KeyringError::WeakKey`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyringError> {
        Self::checked(raw(bytes)?)
    }

    /// A key given as 64 hexadecimal digits of either case.
    ///
    /// # Errors
    /// [`KeyringError::MalformedKey`], [`KeyringError::WeakKey`].
    pub fn from_hex(text: &str) -> Result<Self, KeyringError> {
        Self::checked(hex(text)?)
    }

    /// A key given in base64: 43 characters, or 44 with padding, in the standard or in the URL's alphabet.
    ///
    /// # Errors
    /// [`KeyringError::MalformedKey`], [`KeyringError::WeakKey`].
    pub fn from_base64(text: &str) -> Result<Self, KeyringError> {
        Self::checked(base64(text)?)
    }

    /// A key given as text, in hex or base64, told apart by length alone: 64 characters are hex (they would also be
    /// base64, for 48 wrong bytes), 43 or 44 are base64. One newline at the end is dropped.
    ///
    /// # Errors
    /// [`KeyringError::MalformedKey`], [`KeyringError::WeakKey`].
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        Self::checked(parse(text)?)
    }

    /// The id of this key.
    #[must_use]
    pub fn id(&self) -> KeyId {
        id_of(self.expose())
    }

    /// The 32 bytes, for a key service that wraps them.
    #[must_use]
    pub fn to_bytes(&self) -> SecretBytes {
        SecretBox::new(Box::<[u8]>::from(self.expose().as_slice()))
    }

    /// The key as 64 hexadecimal digits, to be stored where keys are kept.
    #[must_use]
    pub fn to_hex(&self) -> SecretString {
        let mut digits = vec![0; 2 * KEY_LEN];
        encoding::write_hex(self.expose(), &mut digits);
        // The digits stay in the allocation in which they were written.
        SecretString::from(String::from_utf8(digits).expect("hex digits are ASCII"))
    }

    pub(super) fn expose(&self) -> &[u8; KEY_LEN] {
        self.0.expose_secret()
    }

    fn checked(key: SecretBox<[u8; KEY_LEN]>) -> Result<Self, KeyringError> {
        refuse_repeated(&key)?;
        if key.expose_secret().iter().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(weak("its 32 bytes are printable, as a passphrase's are"));
        }
        Ok(Self(key))
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyMaterial({})", self.id())
    }
}

pub(super) fn id_of(key: &[u8; KEY_LEN]) -> KeyId {
    KeyId(cipher::key_id(key))
}

/// Refuses what no source of random bytes gives.
pub(super) fn refuse_repeated(key: &SecretBox<[u8; KEY_LEN]>) -> Result<(), KeyringError> {
    let key = key.expose_secret();
    if key.iter().all(|byte| *byte == 0) {
        return Err(weak("its bytes are all zero"));
    }
    if key.iter().all(|byte| *byte == key[0]) {
        return Err(weak("it is one byte repeated"));
    }
    Ok(())
}

pub(super) fn raw(bytes: &[u8]) -> Result<SecretBox<[u8; KEY_LEN]>, KeyringError> {
    if bytes.len() != KEY_LEN {
        return Err(malformed("a key has 32 bytes"));
    }
    let mut key = empty();
    key.expose_secret_mut().copy_from_slice(bytes);
    Ok(key)
}

pub(super) fn hex(text: &str) -> Result<SecretBox<[u8; KEY_LEN]>, KeyringError> {
    let mut key = empty();
    encoding::hex(text.as_bytes(), key.expose_secret_mut())
        .map_err(|_| malformed("a key in hex is 64 digits from 0 to 9 and a to f"))?;
    Ok(key)
}

pub(super) fn base64(text: &str) -> Result<SecretBox<[u8; KEY_LEN]>, KeyringError> {
    const PADDED: usize = 44;
    let not_base64 = || malformed("a key in base64 is 43 characters, or 44 with padding, for 32 bytes");
    let mut key = empty();
    let out = key.expose_secret_mut();
    let unpadded = match text.len() {
        PADDED => text.strip_suffix('=').ok_or_else(not_base64)?,
        _ => text,
    };
    if unpadded.len() != PADDED - 1 {
        return Err(not_base64());
    }
    let decoded = if unpadded.contains(['-', '_']) {
        Base64UrlUnpadded::decode(unpadded, out)
    } else {
        Base64Unpadded::decode(unpadded, out)
    };
    if decoded.map_err(|_| not_base64())?.len() != KEY_LEN {
        return Err(not_base64());
    }
    Ok(key)
}

pub(super) fn parse(text: &str) -> Result<SecretBox<[u8; KEY_LEN]>, KeyringError> {
    let text = text
        .strip_suffix("\r\n")
        .or_else(|| text.strip_suffix('\n'))
        .unwrap_or(text);
    match text.len() {
        64 => hex(text),
        43 | 44 => base64(text),
        _ => Err(malformed(
            "a key is 64 hex digits or 43 or 44 characters of base64",
        )),
    }
}

pub(super) const fn malformed(what: &'static str) -> KeyringError {
    KeyringError::MalformedKey { entry: None, what }
}

const fn weak(what: &'static str) -> KeyringError {
    KeyringError::WeakKey { entry: None, what }
}

/// Filled in place, so that no copy of a key is left on the stack.
fn empty() -> SecretBox<[u8; KEY_LEN]> {
    SecretBox::new(Box::new([0; KEY_LEN]))
}
