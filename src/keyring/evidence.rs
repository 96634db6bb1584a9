//! What has to be known before a key changes its state.

use super::KeyId;

/// Evidence that every process has a key, without which it is not [promoted](super::KeyringFile::promote): a process
/// that lacked it could not open what the others seal.
#[derive(Debug)]
#[must_use = "evidence is for KeyringFile::promote"]
pub struct Distributed(KeyId);

impl Distributed {
    /// Somebody has made sure, where processes do not report which keys they have. Say so only after every process was
    /// restarted, or has refreshed its keyring, with the key in it.
    pub const fn confirmed_by_hand(key: KeyId) -> Self {
        Self(key)
    }

    /// Every process has reported it.
    pub(crate) const fn proven(key: KeyId) -> Self {
        Self(key)
    }

    /// Which key.
    #[must_use]
    pub const fn key(&self) -> KeyId {
        self.0
    }
}

/// Evidence that nothing needs a key any more, without which it is not [disabled](super::KeyringFile::disable).
#[derive(Debug)]
#[must_use = "evidence is for KeyringFile::disable"]
pub struct Unused(KeyId);

impl Unused {
    /// Somebody has made sure, or takes the loss: a key that has become known to others is disabled at once, whatever is
    /// still sealed under it.
    pub const fn confirmed_by_hand(key: KeyId) -> Self {
        Self(key)
    }

    /// No value is under it, and nobody has opened one lately.
    pub(crate) const fn proven(key: KeyId) -> Self {
        Self(key)
    }

    /// Which key.
    #[must_use]
    pub const fn key(&self) -> KeyId {
        self.0
    }
}
