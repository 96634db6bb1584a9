//! The keyring itself: a snapshot of keys, and how one is put together.

use std::{fmt, num::NonZeroU32, sync::Arc};

use super::{KeyId, KeyMaterial, KeyState, KeyringError, cipher::Cipher};

/// The keys of a process: seals under the primary one and opens under any.
///
/// It is an immutable snapshot, cheap to clone and swapped whole, so that an operation sees one state of the keys from
/// beginning to end. Every key is ready for use: opening computes no key's schedule, does no I/O and allocates nothing
/// but its result. A value names the key it was sealed under, and exactly that key is tried.
///
/// `Debug` prints ids and states.
///
/// ```
/// use biplane::keyring::{Context, KeyMaterial, KeyState, Keyring};
/// use biplane::secret::SecretBytes;
/// # fn main() -> Result<(), biplane::keyring::KeyringError> {
/// let keyring = Keyring::builder()
///     .key(KeyMaterial::generate()?, KeyState::Primary)
///     .build()?;
///
/// let field = Context::new("setting", "018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e57", "mail.password")?;
/// let sealed = keyring.seal(&field, b"correct horse")?;
/// let opened: SecretBytes = keyring.open(&field, &sealed)?;
///
/// let elsewhere = Context::new("setting", "018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e58", "mail.password")?;
/// assert!(keyring.open(&elsewhere, &sealed).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Keyring(Arc<Snapshot>);

struct Snapshot {
    /// In the order of their ids, so that the order in which they were given shows nowhere.
    keys: Box<[Key]>,
    primary: usize,
    max_plaintext: usize,
}

pub(super) struct Key {
    pub(super) id: KeyId,
    state: KeyState,
    pub(super) cipher: Cipher,
}

impl Keyring {
    /// The largest plaintext unless set otherwise: 64 KiB, which holds any credential or certificate chain, and is
    /// small enough that a stranger's row cannot make a process allocate much.
    pub const MAX_PLAINTEXT: NonZeroU32 = NonZeroU32::MIN.saturating_add(64 * 1024 - 1);

    /// Starts an empty keyring.
    pub fn builder() -> KeyringBuilder {
        KeyringBuilder {
            keys: Vec::new(),
            max_plaintext: Self::MAX_PLAINTEXT,
        }
    }

    /// The key that seals.
    #[must_use]
    pub fn primary(&self) -> KeyId {
        self.primary_key().id
    }

    /// The ids of all keys, in ascending order.
    pub fn key_ids(&self) -> impl ExactSizeIterator<Item = KeyId> + '_ {
        self.states().map(|(id, _)| id)
    }

    /// The ids and states of all keys, in ascending order of their ids.
    pub fn states(&self) -> impl ExactSizeIterator<Item = (KeyId, KeyState)> + '_ {
        self.0.keys.iter().map(|key| (key.id, key.state))
    }

    /// The largest plaintext, in bytes, that this keyring seals or opens.
    #[must_use]
    pub fn max_plaintext(&self) -> usize {
        self.0.max_plaintext
    }

    pub(super) fn primary_key(&self) -> &Key {
        &self.0.keys[self.0.primary]
    }

    /// The key of this id, if it may open.
    pub(super) fn opening_key(&self, id: KeyId) -> Result<&Key, KeyringError> {
        let key = self
            .0
            .keys
            .iter()
            .find(|key| key.id == id)
            .ok_or(KeyringError::UnknownKey(id))?;
        key.state.check_opens(id)?;
        Ok(key)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (id, state) in self.states() {
            map.entry(&format_args!("{id}"), &format_args!("{state}"));
        }
        map.finish()
    }
}

/// Puts a [`Keyring`] together. The order of the calls means nothing.
#[derive(Debug)]
#[must_use = "a keyring is made by `build`"]
pub struct KeyringBuilder {
    keys: Vec<GivenKey>,
    max_plaintext: NonZeroU32,
}

#[derive(Debug)]
struct GivenKey {
    expected: Option<KeyId>,
    material: KeyMaterial,
    state: KeyState,
}

impl KeyringBuilder {
    /// Adds a key.
    pub fn key(self, material: KeyMaterial, state: KeyState) -> Self {
        self.given(None, material, state)
    }

    /// Adds a key that must have this id, so that a mistaken copy is found here and not when a value fails to open.
    pub fn key_with_id(self, id: KeyId, material: KeyMaterial, state: KeyState) -> Self {
        self.given(Some(id), material, state)
    }

    /// Sets the largest plaintext, in bytes, that is sealed or opened; see [`Keyring::MAX_PLAINTEXT`]. Values over a
    /// limit that was lowered do not open while it is low.
    pub const fn max_plaintext(mut self, bytes: NonZeroU32) -> Self {
        self.max_plaintext = bytes;
        self
    }

    fn given(mut self, expected: Option<KeyId>, material: KeyMaterial, state: KeyState) -> Self {
        self.keys.push(GivenKey {
            expected,
            material,
            state,
        });
        self
    }

    /// The keyring.
    ///
    /// # Errors
    /// [`KeyringError::WrongKeyMaterial`] when a key has another id than was expected,
    /// [`KeyringError::DuplicateKey`] when two entries hold one key, whatever their states,
    /// [`KeyringError::NoPrimary`] and [`KeyringError::SeveralPrimaries`].
    pub fn build(self) -> Result<Keyring, KeyringError> {
        let mut keys = Vec::with_capacity(self.keys.len());
        for given in &self.keys {
            let id = given.material.id();
            if let Some(expected) = given.expected.filter(|expected| *expected != id) {
                return Err(KeyringError::WrongKeyMaterial(expected));
            }
            keys.push(Key {
                id,
                state: given.state,
                cipher: Cipher::new(given.material.expose()),
            });
        }
        // In place: a stable sort of many keys would leave copies of them in a buffer of its own.
        keys.sort_unstable_by_key(|key| key.id);
        if let Some(pair) = keys.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(KeyringError::DuplicateKey(pair[0].id));
        }
        let mut primaries = keys
            .iter()
            .enumerate()
            .filter(|(_, key)| key.state == KeyState::Primary)
            .map(|(index, _)| index);
        let primary = primaries.next().ok_or(KeyringError::NoPrimary)?;
        if primaries.next().is_some() {
            return Err(KeyringError::SeveralPrimaries);
        }
        Ok(Keyring(Arc::new(Snapshot {
            keys: keys.into_boxed_slice(),
            primary,
            max_plaintext: usize::try_from(self.max_plaintext.get()).unwrap_or(usize::MAX),
        })))
    }
}
