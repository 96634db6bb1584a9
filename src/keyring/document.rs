//! The keyring as it is written down: entries of a variable, or a file of JSON.

use std::{fmt, str::FromStr};

use base64ct::{Base64, Encoding};
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::{
    Distributed, KeyId, KeyMaterial, KeyState, Keyring, KeyringBuilder, KeyringError, Unused,
    cipher::KEY_LEN, encoding, json, key::malformed,
};

/// A keyring as it is written down: which keys there are, in which state, with their bytes plain, wrapped by a key
/// service, or gone. It is what a rotation edits, step by step, and what a [`Keyring`] is loaded from.
///
/// # The JSON form
/// What [`KeyringFile::to_text`] writes and [`KeyringFile::parse`] reads:
///
/// ```json
/// {
///   "biplane_keyring": 1,
///   "keys": [
///     {"id": "b0f9b6f9a1d9a8c4", "state": "primary", "material": "<64 hex digits or 44 characters of base64>"},
///     {"id": "5de9045636c871ca", "state": "decrypt-only", "wrapped": "<base64>", "note": "from 2025"},
///     {"id": "03d7e2a51d6c0f11", "state": "destroyed"}
///   ]
/// }
/// ```
///
/// - `biplane_keyring` is the version of this form: 1.
/// - `id` is 16 lower-case hexadecimal digits, and checked against the material.
/// - `state` is that of [`KeyState`]; exactly one key is `primary`.
/// - `material` is what [`KeyMaterial::parse`] reads, or else `wrapped` what a [`KeyWrapper`](super::KeyWrapper) made of
///   the key, in base64 with padding. A destroyed key has neither, every other key one of the two.
/// - `note` is for people. It may be left out.
///
/// The order of keys and of fields means nothing. Unknown fields, repeated fields, and `\` anywhere are refused: what
/// a reader does not know must not be lost in silence, and an escape would leave a copy of a key in the reader's memory.
///
/// # Changing states
/// ```text
/// pending ──► primary ──► decrypt-only ──► disabled ──► destroyed
///    │           ▲             │  ▲            │
///    │           └─────────────┘  └────────────┘
///    └────────────────────────────────────────►
/// ```
///
/// [`promote`](KeyringFile::promote) wants evidence that every process has the key, and
/// [`disable`](KeyringFile::disable) that nothing needs it; `destroy` wants the id said twice.
///
/// `Debug` prints ids and states.
pub struct KeyringFile {
    entries: Vec<Entry>,
}

pub(super) struct Entry {
    pub(super) id: KeyId,
    pub(super) state: KeyState,
    pub(super) bytes: Bytes,
    note: Option<Box<str>>,
}

/// Where the bytes of a key are.
pub(super) enum Bytes {
    Plain(KeyMaterial),
    Wrapped(Box<[u8]>),
    Gone,
}

/// The version of the JSON form.
const VERSION: u64 = 1;

impl KeyringFile {
    /// A keyring of one key, which is primary.
    #[must_use]
    pub fn new(first: KeyMaterial) -> Self {
        let entry = Entry {
            id: first.id(),
            state: KeyState::Primary,
            bytes: Bytes::Plain(first),
            note: None,
        };
        Self { entries: vec![entry] }
    }

    /// A keyring of one key, which is primary, and of which only a wrapped form is written down, as
    /// [`KeyWrapper::wrap_key`](super::KeyWrapper::wrap_key) made it.
    #[must_use]
    pub fn wrapped(id: KeyId, wrapped: &[u8]) -> Self {
        let entry = Entry {
            id,
            state: KeyState::Primary,
            bytes: Bytes::Wrapped(wrapped.into()),
            note: None,
        };
        Self { entries: vec![entry] }
    }

    /// Reads the JSON form, if the text begins with `{`, or else entries separated by newlines or commas, each
    ///
    /// ```text
    /// state:material            primary:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    /// state:key id:material     decrypt-only:5de9045636c871ca:qroTC8anxOQ2hFPyBNf2KgGAZGycPzKVyLqoBUWpL8A=
    /// destroyed:key id          destroyed:03d7e2a51d6c0f11
    /// ```
    ///
    /// where the state is `pending`, `primary`, `decrypt-only` or `disabled`, the material is what
    /// [`KeyMaterial::parse`] reads, and the key id, if given, is checked against the material. A line that begins with
    /// `#` is a comment; white space around an entry means nothing, and neither does the order. A keyring of one key may
    /// be the bare material, which is then the primary key. Entries have no wrapped keys and no notes.
    ///
    /// # Errors
    /// [`KeyringError::MalformedFile`] for what is no JSON, [`KeyringError::MalformedKey`] and
    /// [`KeyringError::WeakKey`] with the number of the entry, [`KeyringError::WrongKeyMaterial`],
    /// [`KeyringError::DuplicateKey`], [`KeyringError::NoPrimary`] and [`KeyringError::SeveralPrimaries`].
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let file = if text.trim_start().starts_with('{') {
            parse_json(text)?
        } else {
            parse_entries(text)?
        };
        file.check()?;
        Ok(file)
    }

    /// The JSON form, keys in ascending order of their ids, in an allocation of exactly its size.
    #[must_use]
    pub fn to_text(&self) -> SecretString {
        let mut length = 0;
        self.write(&mut |part| length += part.len());
        let mut text = String::with_capacity(length);
        self.write(&mut |part| text.push_str(part));
        debug_assert_eq!(text.len(), text.capacity());
        SecretString::from(text)
    }

    /// The ids and states of all keys, in ascending order of their ids.
    pub fn states(&self) -> impl ExactSizeIterator<Item = (KeyId, KeyState)> {
        let mut states: Vec<_> = self.entries.iter().map(|entry| (entry.id, entry.state)).collect();
        states.sort_unstable_by_key(|(id, _)| *id);
        states.into_iter()
    }

    /// The state of one key, if the file names it.
    #[must_use]
    pub fn state(&self, id: KeyId) -> Option<KeyState> {
        self.entries
            .iter()
            .find(|entry| entry.id == id)
            .map(|entry| entry.state)
    }

    /// The key that seals.
    #[must_use]
    pub fn primary(&self) -> KeyId {
        self.entries
            .iter()
            .find(|entry| entry.state == KeyState::Primary)
            .expect("exactly one key is primary, from parsing on")
            .id
    }

    /// The keyring, when no key of it has to be unwrapped.
    ///
    /// # Errors
    /// [`KeyringError::NoKeyService`], which names a key that is wrapped: load it through a [`KeySource`](super::KeySource) that
    /// has a key service.
    pub fn into_keyring(self) -> Result<Keyring, KeyringError> {
        let mut builder = Keyring::builder();
        for entry in self.entries {
            builder = entry.into_builder(builder)?;
        }
        builder.build()
    }

    /// Adds a key, as pending, and returns its id. Nothing is sealed under it before it is promoted.
    ///
    /// # Errors
    /// [`KeyringError::DuplicateKey`], also when the key was destroyed: a destroyed key does not come back.
    pub fn add(&mut self, material: KeyMaterial) -> Result<KeyId, KeyringError> {
        self.push(material.id(), Bytes::Plain(material))
    }

    /// Adds a key of which only a wrapped form is written down, as [`KeyWrapper::wrap_key`](super::KeyWrapper::wrap_key)
    /// made it.
    ///
    /// # Errors
    /// As [`KeyringFile::add`].
    pub fn add_wrapped(&mut self, id: KeyId, wrapped: &[u8]) -> Result<KeyId, KeyringError> {
        self.push(id, Bytes::Wrapped(wrapped.into()))
    }

    /// Sets the note of a key: a line for people, such as the date and the reason. It is kept in plain text.
    ///
    /// # Errors
    /// [`KeyringError::UnknownKey`]; [`KeyringError::MalformedKey`] when it holds a quotation mark, a `\` or a control
    /// character, which the file could not hold without escapes.
    pub fn annotate(&mut self, id: KeyId, note: &str) -> Result<(), KeyringError> {
        if note.chars().any(|c| matches!(c, '"' | '\\') || c.is_control()) {
            return Err(malformed(
                "a note holds no quotation mark, backslash or control character",
            ));
        }
        self.entry(id)?.note = (!note.is_empty()).then(|| note.into());
        Ok(())
    }

    /// Makes a key the primary one; the key that was, opens from now on what it has sealed. A pending key is promoted for
    /// the first time; a decrypt-only one, to go back to it.
    ///
    /// # Errors
    /// [`KeyringError::UnknownKey`]; [`KeyringError::ForbiddenKeyState`] unless it is pending or decrypt-only.
    pub fn promote(&mut self, everywhere: Distributed) -> Result<(), KeyringError> {
        let id = everywhere.key();
        self.check_change(id, KeyState::Primary)?;
        let before = self.primary();
        self.entry(before)?.state = KeyState::DecryptOnly;
        self.entry(id)?.state = KeyState::Primary;
        Ok(())
    }

    /// Switches a key off. It can be [enabled](KeyringFile::enable) again.
    ///
    /// # Errors
    /// [`KeyringError::UnknownKey`]; [`KeyringError::ForbiddenKeyState`] unless it is pending or decrypt-only.
    pub fn disable(&mut self, unused: Unused) -> Result<(), KeyringError> {
        self.change(unused.key(), KeyState::Disabled)
    }

    /// Switches a disabled key on again: it opens, and seals nothing.
    ///
    /// # Errors
    /// [`KeyringError::UnknownKey`]; [`KeyringError::ForbiddenKeyState`] unless it is disabled.
    pub fn enable(&mut self, id: KeyId) -> Result<(), KeyringError> {
        match self.state(id) {
            Some(KeyState::Disabled) => self.change(id, KeyState::DecryptOnly),
            Some(from) => Err(KeyringError::ForbiddenKeyState {
                key: id,
                from,
                to: KeyState::DecryptOnly,
            }),
            None => Err(KeyringError::UnknownKey(id)),
        }
    }

    /// Destroys a disabled key: its bytes are wiped here and left out of the text; its id stays. What is still sealed
    /// under it is lost, and so is what backups hold under it, so the id is asked for twice: `confirmed` is what the
    /// operator typed when asked to repeat it.
    ///
    /// Copies of the keyring file elsewhere, backups among them, are not this function's to destroy.
    ///
    /// # Errors
    /// [`KeyringError::Unconfirmed`] when the two ids differ; [`KeyringError::UnknownKey`];
    /// [`KeyringError::ForbiddenKeyState`] unless it is disabled.
    pub fn destroy(&mut self, id: KeyId, confirmed: &str) -> Result<(), KeyringError> {
        if confirmed.parse() != Ok(id) {
            return Err(KeyringError::Unconfirmed(id));
        }
        self.change(id, KeyState::Destroyed)?;
        self.entry(id)?.bytes = Bytes::Gone;
        Ok(())
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    fn push(&mut self, id: KeyId, bytes: Bytes) -> Result<KeyId, KeyringError> {
        if self.state(id).is_some() {
            return Err(KeyringError::DuplicateKey(id));
        }
        self.entries.push(Entry {
            id,
            state: KeyState::Pending,
            bytes,
            note: None,
        });
        Ok(id)
    }

    fn entry(&mut self, id: KeyId) -> Result<&mut Entry, KeyringError> {
        self.entries
            .iter_mut()
            .find(|entry| entry.id == id)
            .ok_or(KeyringError::UnknownKey(id))
    }

    fn change(&mut self, id: KeyId, to: KeyState) -> Result<(), KeyringError> {
        self.check_change(id, to)?;
        self.entry(id)?.state = to;
        Ok(())
    }

    fn check_change(&self, id: KeyId, to: KeyState) -> Result<(), KeyringError> {
        use KeyState::{DecryptOnly, Destroyed, Disabled, Pending, Primary};
        let from = self.state(id).ok_or(KeyringError::UnknownKey(id))?;
        match (from, to) {
            (Pending | DecryptOnly, Primary | Disabled)
            | (Primary | Disabled, DecryptOnly)
            | (Disabled, Destroyed) => Ok(()),
            _ if cfg!(biplane_mutant = "any_state_follows") => Ok(()),
            _ => Err(KeyringError::ForbiddenKeyState { key: id, from, to }),
        }
    }

    /// What no single entry can say.
    fn check(&self) -> Result<(), KeyringError> {
        for (index, entry) in self.entries.iter().enumerate() {
            if self.entries[..index].iter().any(|other| other.id == entry.id) {
                return Err(KeyringError::DuplicateKey(entry.id));
            }
        }
        let primaries = self
            .entries
            .iter()
            .filter(|entry| entry.state == KeyState::Primary);
        match primaries.count() {
            0 => Err(KeyringError::NoPrimary),
            1 => Ok(()),
            _ => Err(KeyringError::SeveralPrimaries),
        }
    }

    fn write(&self, out: &mut dyn FnMut(&str)) {
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_unstable_by_key(|entry| entry.id);
        out("{\n  \"biplane_keyring\": 1,\n  \"keys\": [\n");
        for (index, entry) in entries.iter().enumerate() {
            entry.write(out);
            out(if index + 1 == entries.len() { "\n" } else { ",\n" });
        }
        out("  ]\n}\n");
    }
}

impl FromStr for KeyringFile {
    type Err = KeyringError;

    fn from_str(text: &str) -> Result<Self, KeyringError> {
        Self::parse(text)
    }
}

impl fmt::Debug for KeyringFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (id, state) in self.states() {
            map.entry(&format_args!("{id}"), &format_args!("{state}"));
        }
        map.finish()
    }
}

impl Entry {
    pub(super) fn into_builder(self, builder: KeyringBuilder) -> Result<KeyringBuilder, KeyringError> {
        Ok(match self.bytes {
            Bytes::Plain(material) => builder.key_with_id(self.id, material, self.state),
            Bytes::Wrapped(_) if self.state == KeyState::Disabled => builder.disabled(self.id),
            Bytes::Wrapped(_) => return Err(KeyringError::NoKeyService(self.id)),
            Bytes::Gone => builder.destroyed(self.id),
        })
    }

    fn write(&self, out: &mut dyn FnMut(&str)) {
        let mut id = [0; 16];
        encoding::write_hex(self.id.as_bytes(), &mut id);
        out("    {\"id\": \"");
        out(ascii(&id));
        out("\", \"state\": \"");
        out(self.state.as_str());
        out("\"");
        match &self.bytes {
            Bytes::Plain(material) => {
                let mut digits = Zeroizing::new([0; 2 * KEY_LEN]);
                encoding::write_hex(material.expose(), &mut *digits);
                out(", \"material\": \"");
                out(ascii(&*digits));
                out("\"");
            }
            Bytes::Wrapped(wrapped) => {
                out(", \"wrapped\": \"");
                out(&Base64::encode_string(wrapped));
                out("\"");
            }
            Bytes::Gone => {}
        }
        if let Some(note) = &self.note {
            out(", \"note\": \"");
            out(note);
            out("\"");
        }
        out("}");
    }
}

fn ascii(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("hex digits are ASCII")
}

fn parse_entries(text: &str) -> Result<KeyringFile, KeyringError> {
    let entries = || {
        text.lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .flat_map(|line| line.split(','))
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
    };
    let alone = entries().count() == 1;
    let mut parsed = Vec::with_capacity(entries().count());
    for (index, entry) in entries().enumerate() {
        let entry = if alone && !entry.contains(':') {
            KeyMaterial::parse(entry).and_then(|material| plain(None, KeyState::Primary, material))
        } else {
            parse_entry(entry)
        };
        parsed.push(entry.map_err(|error| error.in_entry(index + 1))?);
    }
    Ok(KeyringFile { entries: parsed })
}

fn parse_entry(entry: &str) -> Result<Entry, KeyringError> {
    let (state, rest) = entry
        .split_once(':')
        .ok_or(malformed("it does not say its state, as in primary:…"))?;
    let state = parse_state(state)?;
    match rest.split_once(':') {
        None if state == KeyState::Destroyed => Ok(Entry {
            id: parse_id(rest)?,
            state,
            bytes: Bytes::Gone,
            note: None,
        }),
        None => plain(None, state, KeyMaterial::parse(rest)?),
        Some((id, material)) => plain(Some(parse_id(id)?), state, KeyMaterial::parse(material)?),
    }
}

fn plain(expected: Option<KeyId>, state: KeyState, material: KeyMaterial) -> Result<Entry, KeyringError> {
    let id = material.id();
    if let Some(expected) = expected.filter(|expected| *expected != id) {
        return Err(KeyringError::WrongKeyMaterial(expected));
    }
    if state == KeyState::Destroyed {
        return Err(STILL_THERE);
    }
    Ok(Entry {
        id,
        state,
        bytes: Bytes::Plain(material),
        note: None,
    })
}

const STILL_THERE: KeyringError = malformed("a destroyed key has no bytes any more: name its id alone");

fn parse_state(state: &str) -> Result<KeyState, KeyringError> {
    state
        .parse()
        .map_err(|_| malformed("its state is none of pending, primary, decrypt-only, disabled and destroyed"))
}

fn parse_id(id: &str) -> Result<KeyId, KeyringError> {
    id.parse()
        .map_err(|_| malformed("its key id is not 16 lower-case hex digits"))
}

fn parse_json(text: &str) -> Result<KeyringFile, KeyringError> {
    let file = json::parse(text)?;
    let [version, keys] = file
        .fields(["biplane_keyring", "keys"])
        .map_err(|what| KeyringError::MalformedFile { line: None, what })?;
    let wrong = |what| KeyringError::MalformedFile { line: None, what };
    match version.ok_or(wrong("it does not say its version, as in \"biplane_keyring\": 1"))? {
        json::Value::Number(VERSION) => {}
        json::Value::Number(_) => return Err(wrong("it has a version that this release does not know")),
        _ => return Err(wrong("its version is not a number")),
    }
    let Some(json::Value::List(keys)) = keys else {
        return Err(wrong("it has no list of keys"));
    };
    let mut entries = Vec::with_capacity(keys.len());
    for (index, key) in keys.iter().enumerate() {
        entries.push(parse_key(key).map_err(|error| error.in_entry(index + 1))?);
    }
    Ok(KeyringFile { entries })
}

fn parse_key(key: &json::Value<'_>) -> Result<Entry, KeyringError> {
    let [id, state, material, wrapped, note] = key
        .fields(["id", "state", "material", "wrapped", "note"])
        .map_err(malformed)?;
    let id = parse_id(text(id)?.ok_or(malformed("it has no id"))?)?;
    let state = parse_state(text(state)?.ok_or(malformed("it has no state"))?)?;
    let mut entry = match (text(material)?, text(wrapped)?) {
        (None, None) if state == KeyState::Destroyed => Entry {
            id,
            state,
            bytes: Bytes::Gone,
            note: None,
        },
        (None, None) => return Err(malformed("it has neither material nor a wrapped key")),
        _ if state == KeyState::Destroyed => return Err(STILL_THERE),
        (Some(_), Some(_)) => return Err(malformed("it has both material and a wrapped key")),
        (Some(material), None) => plain(Some(id), state, KeyMaterial::parse(material)?)?,
        (None, Some(wrapped)) => Entry {
            id,
            state,
            bytes: Bytes::Wrapped(
                Base64::decode_vec(wrapped)
                    .ok()
                    .filter(|wrapped| !wrapped.is_empty())
                    .ok_or(malformed("its wrapped key is not base64 with padding"))?
                    .into(),
            ),
            note: None,
        },
    };
    entry.note = text(note)?.map(Into::into);
    Ok(entry)
}

fn text<'a>(field: Option<&json::Value<'a>>) -> Result<Option<&'a str>, KeyringError> {
    match field {
        None => Ok(None),
        Some(json::Value::Text(text)) => Ok(Some(text)),
        Some(_) => Err(malformed("its fields are texts")),
    }
}
