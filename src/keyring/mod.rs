//! Seals small secrets (a credential, a key, a connection string) for one owner and one field.
//!
//! The control plane stores what is sealed here, so that reading its database gives no access to any tenant's, and
//! writing to it does not let one tenant's value stand in for another's. Opening does no I/O, and happens only when a
//! connection is made.
//!
//! - [`Keyring`]: a snapshot of keys, from a variable, a file or a builder.
//! - [`LiveKeyring`]: the keys of a running process, loaded from a [`KeySource`] and swapped while requests go on.
//! - [`KeyringFile`]: the keys as they are written down, which a rotation edits step by step; wrapped by a key service
//!   ([`KeyWrapper`]), where there is one.
//! - [`Context`]: what a value is sealed for, and the only place where it opens.
//! - [`Sealed`]: a sealed value, in bytes or as text for a column.
//! - [`LegacyOpener`]: opens what an older system encrypted, so that it can be sealed anew.
//! - [`Fingerprints`]: whether a credential has changed, told without keeping it.
//!
//! # Format
//! A sealed value is 82 bytes longer than what was sealed: version, suite, key id, nonce, ciphertext, tag and key
//! commitment. As text for a column it is `bp1.<16 hexadecimal digits of the key id>.<base64url>`, so that SQL can check
//! that a column holds no plaintext, and count values per key. The cipher is XAES-256-GCM, whose nonces are long enough to
//! be random without a limit on the number of messages; the commitment keeps a value from opening under two keys; and the
//! additional data bind it to its [`Context`].
//!
//! [The page of the format](crate::manual::keyring_format) has every byte, formula and check, for other languages and for
//! review. Whatever becomes of later versions, version 1 opens for ever: the envelopes in `tests/vectors`, made by an
//! independent implementation, are opened by every release.

mod cipher;
mod context;
mod document;
mod encoding;
mod envelope;
mod error;
mod evidence;
mod file;
mod fingerprint;
mod json;
mod key;
mod legacy;
mod live;
mod ring;
mod seal;
mod source;
#[cfg(test)]
mod worked_example;
mod wrapper;

pub use context::Context;
pub use document::KeyringFile;
pub use envelope::Sealed;
pub use error::{KeyringError, SourceError};
pub use evidence::{Distributed, Unused};
pub use fingerprint::{Fingerprint, Fingerprints};
pub use key::{KeyId, KeyIdError, KeyMaterial, KeyState, UnknownKeyState};
pub use legacy::{LegacyEncoding, LegacyKey, LegacyOpener, LegacyPolicy, LegacyUse};
pub use live::{KeepFresh, KeyringHealth, LiveKeyring, Refreshed};
pub use ring::{KeyStatus, Keyring, KeyringBuilder};
pub use source::KeySource;
pub use wrapper::{KeyWrapper, WrapperError};
