//! What can go wrong with keys and sealed values.

use std::{fmt, io, sync::Arc};

use super::{KeyId, KeyState, LegacyEncoding, WrapperError};

/// Why a value was not sealed or opened, or keys were not loaded.
///
/// Its texts are constant but for key ids and the names of variables. They hold no byte of the input, and no cause
/// whose `Debug` prints it, so that an error may be logged. Clients get [`KeyringError::PUBLIC_TEXT`] and operators
/// besides the error its [`hint`](KeyringError::hint).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// Not a sealed value, or a damaged one; no key was tried.
    #[error("the value is malformed: {0}")]
    Malformed(&'static str),
    /// Sealed by a later release.
    #[error("the sealed value has a version that this release does not know")]
    UnsupportedVersion,
    /// Sealed with an algorithm of a later release.
    #[error("the sealed value has a cipher suite that this release does not know")]
    UnsupportedSuite,
    /// Sealed under a key that the keyring does not hold.
    #[error("key {0} is not in the keyring")]
    UnknownKey(KeyId),
    /// Sealed under a key that is switched off.
    #[error("key {0} is disabled")]
    KeyDisabled(KeyId),
    /// Sealed under a key that was destroyed.
    #[error("key {0} is destroyed")]
    KeyDestroyed(KeyId),
    /// The bytes given for this key are another key's. Found when keys are loaded, never when a value is opened.
    #[error("the bytes given for key {0} are those of another key")]
    WrongKeyMaterial(KeyId),
    /// Tampered with, or sealed for another context: which of them cannot be told.
    #[error("the value does not authenticate under key {0}")]
    Authentication(KeyId),
    /// The policy does not let this legacy value be opened.
    #[error("the policy forbids opening a legacy value here")]
    LegacyForbidden,
    /// A legacy value in the other encoding than its reader expects.
    #[error("the legacy value is in {found} where {expected} was expected")]
    LegacyEncoding {
        /// The encoding of the value.
        found: LegacyEncoding,
        /// The encoding that was asked for.
        expected: LegacyEncoding,
    },
    /// A plaintext over the keyring's limit, or part of a context over 65,535 bytes.
    #[error("the value or a part of its context is too large")]
    TooLarge,
    /// Opened, but not text.
    #[error("the opened value is not UTF-8 text")]
    NotUtf8,
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Rng,
    /// The place that the keys come from could not be read.
    #[error("the keys could not be read")]
    Source(#[source] SourceError),
    /// This key is wrapped, and there is no key service to unwrap it.
    #[error("key {0} is wrapped, and no key service was given")]
    NoKeyService(KeyId),
    /// The key service did not unwrap this key.
    #[error("key {key} was not unwrapped")]
    NotUnwrapped {
        /// Which key.
        key: KeyId,
        /// What the service said.
        #[source]
        failure: WrapperError,
    },
    /// Not a key, or not an entry of a keyring.
    #[error("{}is malformed: {what}", Place(*entry))]
    MalformedKey {
        /// Which entry of the keyring's text, counted from 1.
        entry: Option<usize>,
        /// The rule that was broken.
        what: &'static str,
    },
    /// 32 bytes that nobody drew at random.
    #[error("{}is weak: {what}", Place(*entry))]
    WeakKey {
        /// Which entry of the keyring's text, counted from 1.
        entry: Option<usize>,
        /// What gives it away.
        what: &'static str,
    },
    /// A keyring file that is not of its form.
    #[error("the keyring file is malformed{}: {what}", Line(*line))]
    MalformedFile {
        /// Which line, counted from 1, where that is known.
        line: Option<usize>,
        /// The rule that was broken.
        what: &'static str,
    },
    /// The same key twice.
    #[error("key {0} is given twice")]
    DuplicateKey(KeyId),
    /// No key seals.
    #[error("no key is primary")]
    NoPrimary,
    /// More than one key would seal.
    #[error("more than one key is primary")]
    SeveralPrimaries,
    /// A key cannot come to this state from the one it is in.
    #[error("key {key} cannot go from {from} to {to}")]
    ForbiddenKeyState {
        /// Which key.
        key: KeyId,
        /// Its state.
        from: KeyState,
        /// The state it was to have.
        to: KeyState,
    },
    /// A key was to be destroyed, and its id was not repeated.
    #[error("the destruction of key {0} was not confirmed")]
    Unconfirmed(KeyId),
    /// The keyring in use names this key and the one that was to follow it does not.
    #[error("key {0} is in the keyring in use and missing from the one that was to follow")]
    KeyVanished(KeyId),
}

/// Why the place that keys come from could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The variable is not set.
    #[error("the variable {0} is not set")]
    Unset(Arc<str>),
    /// The variable is set to nothing.
    #[error("the variable {0} is empty")]
    Empty(Arc<str>),
    /// The variable holds bytes that are not UTF-8.
    #[error("the variable {0} does not hold UTF-8 text")]
    VariableNotUtf8(Arc<str>),
    /// The keys and the path of their file are both given.
    #[error("the variables {0} and {1} are both set")]
    Ambiguous(Arc<str>, Arc<str>),
    /// The key file could not be opened or read.
    #[error("the key file cannot be read: {0}")]
    Io(io::ErrorKind),
    /// The path leads to a directory, a device or a pipe.
    #[error("the key file is not a regular file")]
    NotAFile,
    /// Somebody else could exchange the file.
    #[error("the key file belongs neither to this user nor to root")]
    ForeignOwner,
    /// Somebody else could read or change the file.
    #[error("the key file is accessible to its group or to others")]
    Exposed,
    /// Over 64 KiB.
    #[error("the key file is larger than 64 KiB")]
    FileTooLarge,
    /// The file holds bytes that are not UTF-8.
    #[error("the key file does not hold UTF-8 text")]
    FileNotUtf8,
    /// There are no credentials of systemd's: `$CREDENTIALS_DIRECTORY` is not set.
    #[error("the variable CREDENTIALS_DIRECTORY is not set")]
    NoCredentialsDirectory,
    /// The name of a credential is the name of a file in one directory.
    #[error("the name of the credential is not that of a file")]
    NotACredentialName,
    /// The file is there already, and was to be new.
    #[error("the key file exists already")]
    AlreadyExists,
    /// Somebody else has written the file since it was read.
    #[error("the key file was changed since it was read")]
    Changed,
    /// The keyring was put together in code, so that there is no place to read it from again.
    #[error("the keyring has no source to be refreshed from")]
    NoSource,
}

impl KeyringError {
    /// What a client may be told about any of these errors: nothing about keys, and nothing that tells one from
    /// another.
    pub const PUBLIC_TEXT: &'static str = "a protected value is unavailable";

    /// The next step for an operator.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Malformed(_) => {
                "look at how the column was written: it holds no sealed value (bp1.…), or one that was cut or edited"
            }
            Self::UnsupportedVersion | Self::UnsupportedSuite => {
                "a newer release sealed this value: upgrade this process before it reads the value"
            }
            Self::UnknownKey(_) => {
                "add this key to the keyring of this process as decrypt-only, or restore the keyring that has it"
            }
            Self::KeyDisabled(_) => {
                "enable the key again, or re-seal the value where the key is still enabled"
            }
            Self::KeyDestroyed(_) => "the key is gone for good: store the value anew",
            Self::WrongKeyMaterial(_) => {
                "the keyring names one key and holds another: correct the id or the bytes of this entry"
            }
            Self::Authentication(_) => {
                "the value was changed, or belongs to another owner, field or purpose: restore the row, or rebind \
                 the value if it was moved on purpose"
            }
            Self::LegacyForbidden => {
                "import legacy values first (LegacyPolicy::ImportOnly), or let them be read for a while \
                 (LegacyPolicy::ReadThrough)"
            }
            Self::LegacyEncoding { .. } => {
                "set the encoding that the values are in, or none, so that each value tells its own"
            }
            Self::TooLarge => {
                "sealed values are small: store large data elsewhere, or raise the keyring's limit"
            }
            Self::NotUtf8 => "read the value as bytes, or look at what was sealed",
            Self::Rng => "the system's random number generator failed: nothing was sealed; try again",
            Self::Source(source) => source.hint(),
            Self::NoKeyService(_) => "load the keyring through a KeySource that is given the key service",
            Self::NotUnwrapped { failure, .. } => failure.hint(),
            Self::MalformedKey { .. } => {
                "an entry is state:material or state:keyid:material, the state pending, primary, decrypt-only or \
                 disabled, the material 64 hex digits or 44 characters of base64; of a destroyed key, destroyed:keyid"
            }
            Self::MalformedFile { .. } => {
                "a keyring file is {\"biplane_keyring\": 1, \"keys\": [{\"id\": …, \"state\": …, \"material\": …}]}; \
                 see KeyringFile"
            }
            Self::WeakKey { .. } => "draw a key at random, for example with: openssl rand -hex 32",
            Self::DuplicateKey(_) => "remove one of the two entries",
            Self::NoPrimary => "mark exactly one key as primary",
            Self::SeveralPrimaries => "keep one key primary and make the others pending or decrypt-only",
            Self::ForbiddenKeyState { .. } => {
                "a key goes from pending to primary to decrypt-only to disabled to destroyed; promote another key to \
                 replace the primary one, and disable a key before it is destroyed"
            }
            Self::Unconfirmed(_) => "repeat the id of the key that is to be destroyed",
            Self::KeyVanished(_) => {
                "put the key back; a key leaves by being disabled and destroyed, and its tombstone stays"
            }
        }
    }

    /// The key that the error is about.
    #[must_use]
    pub const fn key_id(&self) -> Option<KeyId> {
        match self {
            Self::UnknownKey(id)
            | Self::KeyDisabled(id)
            | Self::KeyDestroyed(id)
            | Self::WrongKeyMaterial(id)
            | Self::Authentication(id)
            | Self::DuplicateKey(id)
            | Self::ForbiddenKeyState { key: id, .. }
            | Self::Unconfirmed(id)
            | Self::KeyVanished(id)
            | Self::NoKeyService(id)
            | Self::NotUnwrapped { key: id, .. } => Some(*id),
            _ => None,
        }
    }

    /// The same, said of one entry of a keyring's text.
    pub(super) fn in_entry(self, number: usize) -> Self {
        let entry = Some(number);
        match self {
            Self::MalformedKey { what, .. } => Self::MalformedKey { entry, what },
            Self::WeakKey { what, .. } => Self::WeakKey { entry, what },
            other => other,
        }
    }
}

impl SourceError {
    const fn hint(&self) -> &'static str {
        match self {
            Self::Unset(_) | Self::Empty(_) => {
                "set the variable to a keyring; a first key comes from: openssl rand -hex 32"
            }
            Self::VariableNotUtf8(_) | Self::FileNotUtf8 => {
                "write keys in hex or base64; raw bytes are not read from here"
            }
            Self::Ambiguous(..) => "unset one of the two variables",
            Self::Io(_) => "check that the path exists and that this user may read it",
            Self::NotAFile => "point at a regular file (a symbolic link to one will do)",
            Self::ForeignOwner => "chown the file to the user that this process runs as, or to root",
            Self::Exposed => "chmod 0400 the file",
            Self::FileTooLarge => "the path leads to something other than a keyring",
            Self::NoCredentialsDirectory => {
                "start the service with systemd's LoadCredential= or LoadCredentialEncrypted="
            }
            Self::NotACredentialName => "name the credential as in LoadCredential=name:path, without a slash",
            Self::AlreadyExists => {
                "load the keyring that is there and add a key to it, or choose another path"
            }
            Self::Changed => "load the file again, and make the change again",
            Self::NoSource => "swap in a new keyring, or load the keyring from a KeySource",
        }
    }
}

/// The line of a file that an error is in.
struct Line(Option<usize>);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(line) => write!(f, " in line {line}"),
            None => Ok(()),
        }
    }
}

/// Where in a keyring's text an error is, as the beginning of a sentence.
struct Place(Option<usize>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(entry) => write!(f, "entry {entry} of the keyring "),
            None => f.write_str("the key "),
        }
    }
}
