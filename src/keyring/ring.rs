//! The keyring itself: a snapshot of keys, and how one is put together.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    KeyId, KeyMaterial, KeyState, KeyringError,
    cipher::{self, Cipher},
    key,
};

/// The keys of a process: seals under the primary one and opens under any that may open.
///
/// It is an immutable snapshot, cheap to clone and swapped whole, so that an operation sees one state of the keys from
/// beginning to end; a process that runs through a rotation holds a [`LiveKeyring`](super::LiveKeyring). Every key is
/// ready for use: opening computes no key's schedule, does no I/O and allocates nothing but its result. A value names
/// the key it was sealed under, and exactly that key is tried.
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

/// A key of a snapshot. Snapshots that follow one another share what stays.
#[derive(Clone)]
struct Key {
    id: KeyId,
    state: KeyState,
    /// There for every key that opens, and for no other: what may not open cannot.
    cipher: Option<Arc<Cipher>>,
    used: Arc<Used>,
}

/// How often a key was used.
#[derive(Default)]
struct Used {
    opens: AtomicU64,
    seals: AtomicU64,
    refused: AtomicU64,
}

/// A key of a keyring: its state, and how often it was used since this process first loaded it.
///
/// The counts survive a swap of the keyring. A rotation looks at them: a key under which nothing is opened any more, in
/// any process, can be disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyStatus {
    /// Which key.
    pub id: KeyId,
    /// What it may be used for.
    pub state: KeyState,
    /// How many values were opened under it.
    pub opens: u64,
    /// How many values were sealed under it.
    pub seals: u64,
    /// How many values under it were refused because it is disabled or destroyed.
    pub refused: u64,
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

    /// The state of one key, if the keyring names it.
    #[must_use]
    pub fn state(&self, id: KeyId) -> Option<KeyState> {
        self.key(id).map(|key| key.state)
    }

    /// All keys with how often each was used, in ascending order of their ids.
    pub fn status(&self) -> impl ExactSizeIterator<Item = KeyStatus> + '_ {
        self.0.keys.iter().map(|key| KeyStatus {
            id: key.id,
            state: key.state,
            opens: key.used.opens.load(Ordering::Relaxed),
            seals: key.used.seals.load(Ordering::Relaxed),
            refused: key.used.refused.load(Ordering::Relaxed),
        })
    }

    /// The largest plaintext, in bytes, that this keyring seals or opens.
    #[must_use]
    pub fn max_plaintext(&self) -> usize {
        self.0.max_plaintext
    }

    fn primary_key(&self) -> &Key {
        &self.0.keys[self.0.primary]
    }

    fn key(&self, id: KeyId) -> Option<&Key> {
        self.0.keys.iter().find(|key| key.id == id)
    }

    /// The key that seals.
    pub(super) fn sealing_key(&self) -> ReadyKey<'_> {
        let key = self.primary_key();
        let cipher = key.cipher.as_deref();
        let cipher = cipher.expect("the primary key has been made ready");
        ReadyKey { key, cipher }
    }

    /// The key of this id, if it may open.
    pub(super) fn opening_key(&self, id: KeyId) -> Result<ReadyKey<'_>, KeyringError> {
        let key = self.key(id).ok_or(KeyringError::UnknownKey(id))?;
        match &key.cipher {
            Some(cipher) => Ok(ReadyKey { key, cipher }),
            None => {
                key.used.refused.fetch_add(1, Ordering::Relaxed);
                Err(match key.state {
                    KeyState::Destroyed => KeyringError::KeyDestroyed(id),
                    _ => KeyringError::KeyDisabled(id),
                })
            }
        }
    }

    /// The key of this id, made ready before; for a keyring that follows this one.
    pub(super) fn ready(&self, id: KeyId) -> Option<Arc<Cipher>> {
        self.key(id).and_then(|key| key.cipher.clone())
    }

    /// This keyring, which goes on counting where `before` is.
    pub(super) fn counting_on(&self, before: &Self) -> Self {
        let mut keys = self.0.keys.clone();
        for key in &mut keys {
            if let Some(known) = before.key(key.id)
                && !cfg!(biplane_mutant = "a_swap_forgets_uses")
            {
                key.used = Arc::clone(&known.used);
            }
        }
        Self(Arc::new(Snapshot { keys, ..*self.0 }))
    }
}

/// A key that may be used.
pub(super) struct ReadyKey<'a> {
    key: &'a Key,
    pub(super) cipher: &'a Cipher,
}

impl ReadyKey<'_> {
    pub(super) const fn id(&self) -> KeyId {
        self.key.id
    }

    pub(super) fn count_open(&self) {
        self.key.used.opens.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_seal(&self) {
        self.key.used.seals.fetch_add(1, Ordering::Relaxed);
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
    keys: Vec<Given>,
    max_plaintext: NonZeroU32,
}

struct Given {
    id: Option<KeyId>,
    state: KeyState,
    held: Held,
}

enum Held {
    Material(KeyMaterial),
    Ready(Arc<Cipher>),
    Nothing,
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = match &self.held {
            Held::Material(material) => Some(material.id()),
            Held::Ready(_) | Held::Nothing => self.id,
        };
        match id {
            Some(id) => write!(f, "{id}: {}", self.state),
            None => write!(f, "{}", self.state),
        }
    }
}

impl KeyringBuilder {
    /// Adds a key.
    pub fn key(self, material: KeyMaterial, state: KeyState) -> Self {
        self.given(None, state, Held::Material(material))
    }

    /// Adds a key that must have this id, so that a mistaken copy is found here and not when a value fails to open.
    pub fn key_with_id(self, id: KeyId, material: KeyMaterial, state: KeyState) -> Self {
        self.given(Some(id), state, Held::Material(material))
    }

    /// Adds the tombstone of a destroyed key.
    pub fn destroyed(self, id: KeyId) -> Self {
        self.given(Some(id), KeyState::Destroyed, Held::Nothing)
    }

    /// Sets the largest plaintext, in bytes, that is sealed or opened; see [`Keyring::MAX_PLAINTEXT`]. Values over a
    /// limit that was lowered do not open while it is low.
    pub const fn max_plaintext(mut self, bytes: NonZeroU32) -> Self {
        self.max_plaintext = bytes;
        self
    }

    /// Adds a disabled key whose bytes stay where they are, wrapped.
    pub(super) fn disabled(self, id: KeyId) -> Self {
        self.given(Some(id), KeyState::Disabled, Held::Nothing)
    }

    /// Adds a key that an earlier keyring has made ready.
    pub(super) fn ready(self, id: KeyId, cipher: Arc<Cipher>, state: KeyState) -> Self {
        self.given(Some(id), state, Held::Ready(cipher))
    }

    fn given(mut self, id: Option<KeyId>, state: KeyState, held: Held) -> Self {
        self.keys.push(Given { id, state, held });
        self
    }

    /// The keyring.
    ///
    /// # Errors
    /// [`KeyringError::WrongKeyMaterial`] when a key has another id than was expected,
    /// [`KeyringError::DuplicateKey`] when two entries name one key, whatever their states,
    /// [`KeyringError::MalformedKey`] when a destroyed key comes with its bytes,
    /// [`KeyringError::NoPrimary`] and [`KeyringError::SeveralPrimaries`].
    pub fn build(self) -> Result<Keyring, KeyringError> {
        let mut keys = Vec::with_capacity(self.keys.len());
        for given in self.keys {
            keys.push(given.into_key()?);
        }
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

impl Given {
    fn into_key(self) -> Result<Key, KeyringError> {
        let (id, cipher) = match (self.held, self.id) {
            (Held::Material(material), expected) => {
                let id = material.id();
                if let Some(expected) = expected.filter(|expected| *expected != id) {
                    return Err(KeyringError::WrongKeyMaterial(expected));
                }
                if self.state == KeyState::Destroyed {
                    return Err(key::malformed(
                        "a destroyed key has no bytes any more: name its id alone",
                    ));
                }
                let cipher = (self.state.opens() || cfg!(biplane_mutant = "disabled_keys_open"))
                    .then(|| cipher::on_wiped_stack(|| Arc::new(Cipher::new(material.expose()))));
                (id, cipher)
            }
            (Held::Ready(cipher), Some(id)) => (id, Some(cipher)),
            (Held::Nothing, Some(id)) => (id, None),
            (Held::Ready(_) | Held::Nothing, None) => {
                return Err(key::malformed("it has neither bytes nor an id"));
            }
        };
        Ok(Key {
            id,
            state: self.state,
            cipher,
            used: Arc::default(),
        })
    }
}
