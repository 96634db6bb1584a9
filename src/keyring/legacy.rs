//! Values that an older system encrypted: `iv:authTag:ciphertext`.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use aes::{Aes256Enc, cipher::KeyInit};
use aes_gcm::{
    AesGcm, Nonce, Tag,
    aead::{
        AeadInOut,
        array::ArraySize,
        consts::{U12, U16},
    },
};
use base64ct::{Base64, Encoding};
use secrecy::{ExposeSecret, SecretBox, SecretString};

use crate::secret::SecretBytes;

use super::{
    Context, KeyId, Keyring, KeyringError,
    cipher::{self, KEY_LEN, TAG_LEN},
    encoding, key, seal, source,
};

/// A key of the older system: it opens legacy values, and nothing can be sealed with it.
///
/// Unlike [`KeyMaterial`](super::KeyMaterial) it may be 32 printable characters, because it is what it is. It is cheap
/// to clone, and wiped when the last clone goes. `Debug` prints the id alone.
#[derive(Clone)]
pub struct LegacyKey(Arc<Ciphers>);

/// The ciphers in boxes of their own: beside the id there would be padding, into which boxing copies what the stack held,
/// and which dropping does not wipe.
struct Ciphers {
    id: KeyId,
    iv12: Box<AesGcm<Aes256Enc, U12>>,
    iv16: Box<AesGcm<Aes256Enc, U16>>,
}

impl LegacyKey {
    /// A key given as 32 raw bytes.
    ///
    /// # Errors
    /// [`KeyringError::MalformedKey`], and [`KeyringError::WeakKey`] for one byte repeated.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyringError> {
        Self::checked(&key::raw(bytes)?)
    }

    /// A key given as 64 hexadecimal digits of either case.
    ///
    /// # Errors
    /// As [`LegacyKey::from_bytes`].
    pub fn from_hex(text: &str) -> Result<Self, KeyringError> {
        Self::checked(&key::hex(text)?)
    }

    /// A key given in base64: 43 characters, or 44 with padding, in the standard or in the URL's alphabet.
    ///
    /// # Errors
    /// As [`LegacyKey::from_bytes`].
    pub fn from_base64(text: &str) -> Result<Self, KeyringError> {
        Self::checked(&key::base64(text)?)
    }

    /// A key given as text, by the rule of [`KeyMaterial::parse`](super::KeyMaterial::parse).
    ///
    /// # Errors
    /// As [`LegacyKey::from_bytes`].
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        Self::checked(&key::parse(text)?)
    }

    /// Reads a key, as [`LegacyKey::parse`] does, from a variable.
    ///
    /// # Errors
    /// [`KeyringError::Source`] when the variable is unset, empty or not UTF-8, and those of [`LegacyKey::parse`].
    pub fn from_env(variable: &str) -> Result<Self, KeyringError> {
        Self::parse(&source::required(variable)?)
    }

    /// The id of this key, derived as that of any key. Legacy values do not name it.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.0.id
    }

    fn checked(key: &SecretBox<[u8; KEY_LEN]>) -> Result<Self, KeyringError> {
        key::refuse_repeated(key)?;
        let bytes = key.expose_secret();
        Ok(Self(Arc::new(Ciphers {
            id: key::id_of(bytes),
            iv12: cipher::on_wiped_stack(|| Box::new(AesGcm::new(bytes.into()))),
            iv16: cipher::on_wiped_stack(|| Box::new(AesGcm::new(bytes.into()))),
        })))
    }
}

impl fmt::Debug for LegacyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LegacyKey({})", self.0.id)
    }
}

/// When legacy values may be opened.
///
/// Nothing binds them to their place (they have no additional data), so that whoever can write to the database can
/// swap one tenant's value for another's. Therefore reading them in service is a state to be left soon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LegacyPolicy {
    /// Never. The default, because a service without an older system's values has no use for them.
    #[default]
    Deny,
    /// Only in order to seal them anew.
    ImportOnly,
    /// Also when a request needs one. Each such read is counted, and the first one is logged.
    ReadThrough,
}

/// What a legacy value is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LegacyUse {
    /// To seal it anew.
    Import,
    /// To use it.
    Read,
}

/// How a legacy value writes its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LegacyEncoding {
    /// Hexadecimal digits.
    Hex,
    /// Base64 with padding, in the standard alphabet.
    Base64,
}

impl fmt::Display for LegacyEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hex => "hex",
            Self::Base64 => "base64",
        })
    }
}

/// Opens legacy values under a policy.
///
/// A value is `iv:authTag:ciphertext`, made with AES-256-GCM without additional data: an IV of 16 bytes (or 12), a tag
/// of 16 bytes, and a ciphertext that may be empty, all three in hex or all three in base64. The encoding is told from
/// the length of the IV and confirmed by that of the tag, so that half a table in one and half in the other reads
/// well; say [`expecting`](LegacyOpener::expecting) to have the other one refused instead.
///
/// Decoding is strict where Node's is not: junk characters, odd digits, missing padding and short tags are refused.
///
/// ```
/// use biplane::keyring::{Context, KeyMaterial, Keyring, LegacyKey, LegacyOpener, LegacyPolicy, LegacyUse};
/// use biplane::secret::SecretBytes;
/// # fn main() -> Result<(), biplane::keyring::KeyringError> {
/// let key = LegacyKey::from_hex("04c3b62ac127678cc81083f5e2103cd25ae820bebccd9b59556b9754081e2d08")?;
/// let legacy = LegacyOpener::new(key, LegacyPolicy::ImportOnly);
///
/// let value = "4b8bfad494c9b4c5f915ab6a3590bc08:fe56de0ac0e2441b9a960561326f2ff3:";
/// let opened: SecretBytes = legacy.open(value, LegacyUse::Import)?;
/// assert!(legacy.open(value, LegacyUse::Read).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LegacyOpener {
    key: LegacyKey,
    policy: LegacyPolicy,
    expected: Option<LegacyEncoding>,
    reads: AtomicU64,
    imports: AtomicU64,
    refusals: AtomicU64,
    /// Whether the log has it that values are read through.
    warned: AtomicBool,
}

impl LegacyOpener {
    /// Opens values of this key under this policy, in either encoding.
    #[must_use]
    pub const fn new(key: LegacyKey, policy: LegacyPolicy) -> Self {
        Self {
            key,
            policy,
            expected: None,
            reads: AtomicU64::new(0),
            imports: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            warned: AtomicBool::new(false),
        }
    }

    /// Refuses values in the other encoding, with an error that names both.
    #[must_use]
    pub const fn expecting(mut self, encoding: LegacyEncoding) -> Self {
        self.expected = Some(encoding);
        self
    }

    /// Opens a value.
    ///
    /// # Errors
    /// [`KeyringError::LegacyForbidden`] by the policy, whatever the value; [`KeyringError::Malformed`];
    /// [`KeyringError::LegacyEncoding`]; [`KeyringError::TooLarge`] over [`Keyring::MAX_PLAINTEXT`];
    /// [`KeyringError::Authentication`] when the value was changed or belongs to another key.
    pub fn open(&self, value: &str, purpose: LegacyUse) -> Result<SecretBytes, KeyringError> {
        self.open_value(value, purpose).map(SecretBox::new)
    }

    /// Opens a value that holds text.
    ///
    /// # Errors
    /// Those of [`LegacyOpener::open`], and [`KeyringError::NotUtf8`].
    pub fn open_string(&self, value: &str, purpose: LegacyUse) -> Result<SecretString, KeyringError> {
        seal::into_secret_string(self.open_value(value, purpose)?)
    }

    /// How many values were opened to be used, and not imported, since this opener was made. The policy may become
    /// [`LegacyPolicy::ImportOnly`] when this has stopped rising everywhere.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// How many values were opened to be sealed anew, since this opener was made.
    #[must_use]
    pub fn imports(&self) -> u64 {
        self.imports.load(Ordering::Relaxed)
    }

    /// How many values the policy refused, since this opener was made. When it is [`LegacyPolicy::Deny`], somebody still
    /// stores values as the older system did, or puts them where sealed ones belong.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Whether the policy lets values be opened for this. It counts nothing.
    ///
    /// # Errors
    /// [`KeyringError::LegacyForbidden`].
    pub const fn check_policy(&self, purpose: LegacyUse) -> Result<(), KeyringError> {
        match (self.policy, purpose) {
            (LegacyPolicy::ImportOnly | LegacyPolicy::ReadThrough, LegacyUse::Import)
            | (LegacyPolicy::ReadThrough, LegacyUse::Read) => Ok(()),
            (LegacyPolicy::Deny, _) | (LegacyPolicy::ImportOnly, LegacyUse::Read) => {
                Err(KeyringError::LegacyForbidden)
            }
        }
    }

    fn open_value(&self, value: &str, purpose: LegacyUse) -> Result<Box<[u8]>, KeyringError> {
        if let Err(forbidden) = self.check_policy(purpose) {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            return Err(forbidden);
        }
        let value = Value::parse(value)?;
        if let Some(expected) = self.expected.filter(|expected| *expected != value.encoding) {
            return Err(KeyringError::LegacyEncoding {
                found: value.encoding,
                expected,
            });
        }
        let text = match value.iv_len {
            IvLen::Twelve => decrypt(&self.key.0.iv12, &value),
            IvLen::Sixteen => decrypt(&self.key.0.iv16, &value),
        }?
        .ok_or(KeyringError::Authentication(self.key.id()))?;
        match purpose {
            LegacyUse::Import => self.imports.fetch_add(1, Ordering::Relaxed),
            LegacyUse::Read => {
                self.warn_once();
                self.reads.fetch_add(1, Ordering::Relaxed)
            }
        };
        Ok(text)
    }

    /// The counters tell how many there are; a line for each would drown the log of a service.
    fn warn_once(&self) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                legacy_key = %self.key.id(),
                "values of the older system are read through, which nothing binds to their rows; import them"
            );
        }
    }
}

impl Keyring {
    /// Opens a column's text that may be sealed or still be the older system's, while its values are imported.
    ///
    /// What begins as a sealed value does is never tried as anything else. The rest goes to the opener, to be used, so
    /// that its policy decides and it counts: with [`LegacyPolicy::Deny`] this is [`Keyring::open_text`] with another
    /// error. Nothing binds a value of the older system to this context: until reading through ends, whoever can write
    /// to the column can put another row's old value there.
    ///
    /// # Errors
    /// Those of [`Keyring::open_text`] for a sealed value, of [`LegacyOpener::open`] for any other.
    pub fn open_text_or_legacy(
        &self,
        context: &Context<'_>,
        text: &str,
        legacy: &LegacyOpener,
    ) -> Result<SecretBytes, KeyringError> {
        if looks_sealed(text) {
            self.open_text(context, text)
        } else {
            legacy.open(text, LegacyUse::Read)
        }
    }
}

/// Whether a text has the form of a sealed value of this or any later version. Values of the older system have no dot.
fn looks_sealed(text: &str) -> bool {
    let version = text.strip_prefix("bp").and_then(|rest| rest.split_once('.'));
    version
        .is_some_and(|(version, _)| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A value taken apart, not yet decoded.
struct Value<'a> {
    encoding: LegacyEncoding,
    iv_len: IvLen,
    iv: &'a str,
    tag: &'a str,
    ciphertext: &'a str,
}

#[derive(Clone, Copy)]
enum IvLen {
    Twelve,
    Sixteen,
}

impl<'a> Value<'a> {
    fn parse(value: &'a str) -> Result<Self, KeyringError> {
        let mut segments = value.split(':');
        let (Some(iv), Some(tag), Some(ciphertext), None) =
            (segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return Err(KeyringError::Malformed(
                "a legacy value has three segments: iv:authTag:ciphertext",
            ));
        };
        // Of the IVs only one length is open to doubt: 24 characters are 12 bytes in hex or 16 in base64.
        let (encoding, iv_len) = match (iv.len(), tag.len()) {
            (32, 32) => (LegacyEncoding::Hex, IvLen::Sixteen),
            (24, 32) => (LegacyEncoding::Hex, IvLen::Twelve),
            (24, 24) => (LegacyEncoding::Base64, IvLen::Sixteen),
            (16, 24) => (LegacyEncoding::Base64, IvLen::Twelve),
            (32, 24) | (16, 32) => {
                return Err(KeyringError::Malformed(
                    "its IV and its tag are in different encodings",
                ));
            }
            (16 | 24 | 32, _) => {
                return Err(KeyringError::Malformed(
                    "its tag is not 16 bytes in hex or base64",
                ));
            }
            _ => {
                return Err(KeyringError::Malformed(
                    "its IV is not 16 or 12 bytes in hex or base64",
                ));
            }
        };
        Ok(Self {
            encoding,
            iv_len,
            iv,
            tag,
            ciphertext,
        })
    }

    /// The ciphertext in an allocation of exactly its size, in which it is opened.
    fn ciphertext(&self) -> Result<Box<[u8]>, KeyringError> {
        let text = self.ciphertext;
        let length = match self.encoding {
            LegacyEncoding::Hex => text.len() / 2,
            LegacyEncoding::Base64 => {
                let padding = text
                    .bytes()
                    .rev()
                    .take(2)
                    .take_while(|byte| *byte == b'=')
                    .count();
                (text.len() / 4 * 3).saturating_sub(padding)
            }
        };
        if length > Keyring::MAX_PLAINTEXT.get() as usize {
            return Err(KeyringError::TooLarge);
        }
        let mut bytes = vec![0; length].into_boxed_slice();
        self.decode(text, &mut bytes).map_err(|()| {
            KeyringError::Malformed("its ciphertext is not in the encoding of its IV and tag")
        })?;
        Ok(bytes)
    }

    fn decode(&self, text: &str, out: &mut [u8]) -> Result<(), ()> {
        match self.encoding {
            LegacyEncoding::Hex => encoding::hex(text.as_bytes(), out).map_err(|_| ()),
            LegacyEncoding::Base64 => {
                let length = out.len();
                let decoded = Base64::decode(text, out).map_err(|_| ())?;
                if decoded.len() == length { Ok(()) } else { Err(()) }
            }
        }
    }
}

/// `None` when the value does not authenticate.
fn decrypt<N: ArraySize>(
    cipher: &AesGcm<Aes256Enc, N>,
    value: &Value<'_>,
) -> Result<Option<Box<[u8]>>, KeyringError> {
    let mut iv = Nonce::<N>::default();
    value
        .decode(value.iv, &mut iv)
        .map_err(|()| KeyringError::Malformed("its IV holds characters that are not of its encoding"))?;
    let mut tag = Tag::from([0; TAG_LEN]);
    value
        .decode(value.tag, &mut tag)
        .map_err(|()| KeyringError::Malformed("its tag holds characters that are not of its encoding"))?;
    let mut text = value.ciphertext()?;
    let opened = cipher.decrypt_inout_detached(&iv, &[], (&mut *text).into(), &tag);
    Ok(opened.ok().map(|()| text))
}
