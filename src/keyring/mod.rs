//! Seals small secrets (a credential, a key, a connection string) for one owner and one field.
//!
//! The control plane stores what is sealed here, so that reading its database gives no access to any tenant's, and
//! writing to it does not let one tenant's value stand in for another's. Opening does no I/O, and happens only when a
//! connection is made.
//!
//! - [`Keyring`]: the keys of a process, from a variable, a file or a builder.
//! - [`Context`]: what a value is sealed for, and the only place where it opens.
//! - [`Sealed`]: a sealed value, in bytes or as text for a column.
//! - [`LegacyOpener`]: opens what an older system encrypted, so that it can be sealed anew.
//! - [`Fingerprints`]: whether a credential has changed, told without keeping it.
//!
//! # Format, version 1
//! A sealed value is 82 bytes longer than what was sealed:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 1 | version, `0x01` |
//! | 1 | 1 | suite, `0x01`: XAES-256-GCM with key commitment |
//! | 2 | 8 | key id |
//! | 10 | 24 | nonce, random |
//! | 34 | n | ciphertext |
//! | 34 + n | 16 | tag |
//! | 50 + n | 32 | key commitment |
//!
//! As text it is `bp1.<key id>.<the rest>`: the key id as 16 lower-case hexadecimal digits, and the bytes from offset
//! 10 in base64url without padding (RFC 4648). `bp1` stands for version 1 with suite 1; the prefix lets SQL check that
//! a column holds no plaintext, and count values per key. Both forms are canonical.
//!
//! With K the key of 32 bytes, ‖ concatenation, CMAC that of NIST SP 800-38B over AES-256, and LP(x) the length of x in
//! two bytes, big-endian, before x:
//!
//! - Ciphertext and tag: XAES-256-GCM as specified by C2SP (<https://c2sp.org/XAES-256-GCM>) under K and the nonce. Its
//!   nonces are long enough to be random without a limit on the number of messages.
//! - Additional data: LP("biplane.keyring.v1") ‖ bytes 0 to 9 of the envelope ‖ LP(purpose) ‖ LP(owner id) ‖ LP(field).
//! - Key commitment: CMAC_K("XCMT" ‖ nonce ‖ `00 01 00 01`) ‖ CMAC_K("XCMT" ‖ nonce ‖ `00 01 00 02`). It is compared, in
//!   constant time, before anything is decrypted; without it, one can make a ciphertext that opens under two keys.
//! - Key id: the first 8 bytes of CMAC_K(`00 01 49 00` ‖ "biplane/kid").
//!
//! `tests/golden/envelope.mjs` is an independent implementation of these formulas. The envelopes that it made are opened
//! by every release: whatever becomes of later versions, version 1 opens for ever.

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
