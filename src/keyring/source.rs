//! Where keys come from: a variable, a file, a credential of systemd's; plain or unwrapped by a key service.

use std::{
    collections::HashMap,
    env,
    ffi::OsString,
    num::NonZeroU32,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::try_join_all;
use secrecy::ExposeSecret;
use zeroize::{Zeroize, Zeroizing};

use super::{
    KeyId, KeyMaterial, KeyState, KeyWrapper, Keyring, KeyringError, KeyringFile, SourceError, WrapperError,
    document::{Bytes, Entry},
    file::{self, Access},
};

impl Keyring {
    /// The variable that holds the keyring, unless another is named.
    pub const VARIABLE: &'static str = "BIPLANE_KEYRING";

    /// The variable that holds the path of the keyring's file, unless another is named.
    pub const FILE_VARIABLE: &'static str = "BIPLANE_KEYRING_FILE";

    /// Reads a keyring from text, in either form that [`KeyringFile::parse`] reads; the bare material of one key will do.
    ///
    /// # Errors
    /// Those of [`KeyringFile::parse`] and [`KeyringFile::into_keyring`].
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        KeyringFile::parse(text)?.into_keyring()
    }

    /// Reads a keyring, as [`Keyring::parse`] does, from a variable.
    ///
    /// The environment of a process stays in its memory, and child processes inherit it; a file does not.
    ///
    /// # Errors
    /// [`KeyringError::Source`] when the variable is unset, empty or not UTF-8: a missing key is never made up. And
    /// those of [`Keyring::parse`].
    pub fn from_env(variable: &str) -> Result<Self, KeyringError> {
        Self::parse(&KeySource::variable(variable).read()?)
    }

    /// Reads a keyring, as [`Keyring::parse`] does, from a file; see [`KeySource::file`].
    ///
    /// # Errors
    /// [`KeyringError::Source`] when the file cannot be read or fails a check, and those of [`Keyring::parse`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, KeyringError> {
        Self::parse(&KeySource::file(path).read()?)
    }

    /// Reads a keyring from one of two variables: the first may hold the keys, the second the path of their file.
    ///
    /// # Errors
    /// [`KeyringError::Source`] also when both are set, because one of them would be ignored; and those of
    /// [`Keyring::from_env`] and [`Keyring::from_file`].
    pub fn from_env_or_file(variable: &str, file_variable: &str) -> Result<Self, KeyringError> {
        Self::parse(&KeySource::variable_or_file(variable, file_variable).read()?)
    }
}

/// A place that a keyring is read from, at the start of a process and whenever it is refreshed.
///
/// ```no_run
/// # use biplane::keyring::{Keyring, KeySource, LiveKeyring};
/// # async fn start() -> Result<(), biplane::keyring::KeyringError> {
/// let source = KeySource::variable_or_file(Keyring::VARIABLE, Keyring::FILE_VARIABLE);
/// let keyring = LiveKeyring::load(source).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct KeySource {
    place: Place,
    wrapper: Option<Arc<dyn KeyWrapper>>,
    unwrap_timeout: Duration,
    max_plaintext: NonZeroU32,
}

#[derive(Clone, Debug)]
enum Place {
    Variable(Arc<str>),
    File(PathBuf),
    VariableOrFile(Arc<str>, Arc<str>),
    Credential(Arc<str>),
}

impl KeySource {
    /// How long one key may take to be unwrapped, unless set otherwise: 10 s, several times what a key service in
    /// another region takes at its worst, and short enough for a supervisor to see a start fail.
    pub const UNWRAP_TIMEOUT: Duration = Duration::from_secs(10);

    /// A variable of the environment, which a process cannot read anew: what it was at the start is what a refresh finds.
    #[must_use]
    pub fn variable(name: impl Into<Arc<str>>) -> Self {
        Self::at(Place::Variable(name.into()))
    }

    /// A file. It is opened once and checked on the open descriptor: a regular file of at most 64 KiB that belongs to
    /// this process's user or to root and that nobody else can read or write. Symbolic links are followed, as secret
    /// stores that mount files use them. Where there are no Unix permissions, owner and permissions are not checked.
    #[must_use]
    pub fn file(path: impl AsRef<Path>) -> Self {
        Self::at(Place::File(path.as_ref().to_owned()))
    }

    /// One of two variables: the first may hold the keys, the second the path of their file.
    #[must_use]
    pub fn variable_or_file(variable: impl Into<Arc<str>>, file_variable: impl Into<Arc<str>>) -> Self {
        Self::at(Place::VariableOrFile(variable.into(), file_variable.into()))
    }

    /// A credential that systemd hands to the service (`LoadCredential=name:…`, `LoadCredentialEncrypted=`): the file of
    /// this name in `$CREDENTIALS_DIRECTORY`, checked as [`KeySource::file`] is, with one difference. Where systemd lets
    /// the service's user read a file of root's by an access control list, the file's mode shows that as a right of the
    /// group; so reading by root's own group is accepted there.
    #[must_use]
    pub fn systemd_credential(name: impl Into<Arc<str>>) -> Self {
        Self::at(Place::Credential(name.into()))
    }

    /// Unwraps keys that are wrapped through this key service.
    #[must_use]
    pub fn unwrapping_with(mut self, service: impl KeyWrapper) -> Self {
        self.wrapper = Some(Arc::new(service));
        self
    }

    /// Sets how long one key may take to be unwrapped; see [`KeySource::UNWRAP_TIMEOUT`]. Keys are unwrapped at once.
    #[must_use]
    pub const fn unwrap_timeout(mut self, timeout: Duration) -> Self {
        self.unwrap_timeout = timeout;
        self
    }

    /// Sets the largest plaintext, in bytes, that the keyring seals or opens; see [`Keyring::MAX_PLAINTEXT`].
    #[must_use]
    pub const fn max_plaintext(mut self, bytes: NonZeroU32) -> Self {
        self.max_plaintext = bytes;
        self
    }

    /// Reads the keyring and unwraps its keys.
    ///
    /// # Errors
    /// [`KeyringError::Source`] when the place cannot be read or fails a check;
    /// [`KeyringError::NoKeyService`] and [`KeyringError::NotUnwrapped`] for a key that stays wrapped;
    /// [`KeyringError::WrongKeyMaterial`] when the key service gives another key than the entry names; and those of
    /// [`KeyringFile::parse`].
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn load(&self) -> Result<Keyring, KeyringError> {
        Ok(self.load_after(None).await?.keyring)
    }

    /// The keyring, for which a key is not unwrapped again if it and its wrap are those of `before`.
    pub(super) async fn load_after(&self, before: Option<&Loaded>) -> Result<Loaded, KeyringError> {
        let file = KeyringFile::parse(&self.read()?)?;
        let unwrapped = file.entries().iter().filter_map(|entry| match &entry.bytes {
            Bytes::Wrapped(wrapped) if entry.state != KeyState::Disabled && !is_ready(before, entry) => {
                Some(self.unwrap_one(entry.id, wrapped))
            }
            _ => None,
        });
        let mut unwrapped: HashMap<KeyId, KeyMaterial> = try_join_all(unwrapped).await?.into_iter().collect();

        let mut builder = Keyring::builder().max_plaintext(self.max_plaintext);
        let mut wraps = HashMap::new();
        for entry in file.into_entries() {
            let ready = before
                .filter(|_| is_ready(before, &entry))
                .and_then(|before| before.keyring.ready(entry.id));
            builder = match (unwrapped.remove(&entry.id), ready) {
                (Some(material), _) if cfg!(biplane_mutant = "unwrapped_keys_are_believed") => {
                    builder.key(material, entry.state)
                }
                (Some(material), _) => builder.key_with_id(entry.id, material, entry.state),
                (None, Some(cipher)) => builder.ready(entry.id, cipher, entry.state),
                (None, None) => {
                    builder = entry.into_builder(builder)?;
                    continue;
                }
            };
            if let Bytes::Wrapped(wrapped) = entry.bytes {
                wraps.insert(entry.id, wrapped);
            }
        }
        let keyring = builder.build()?;
        Ok(Loaded {
            keyring,
            wraps: Arc::new(wraps),
        })
    }

    const fn at(place: Place) -> Self {
        Self {
            place,
            wrapper: None,
            unwrap_timeout: Self::UNWRAP_TIMEOUT,
            max_plaintext: Keyring::MAX_PLAINTEXT,
        }
    }

    async fn unwrap_one(&self, id: KeyId, wrapped: &[u8]) -> Result<(KeyId, KeyMaterial), KeyringError> {
        let service = self.wrapper.as_deref().ok_or(KeyringError::NoKeyService(id))?;
        let failed = |failure| KeyringError::NotUnwrapped { key: id, failure };
        let bytes = tokio::time::timeout(self.unwrap_timeout, service.unwrap_key(id, wrapped))
            .await
            .map_err(|_| failed(WrapperError::TimedOut))?
            .map_err(failed)?;
        let material = match KeyMaterial::from_bytes(bytes.expose_secret()) {
            // Bytes of another length are not this key either.
            Err(KeyringError::MalformedKey { .. }) => return Err(KeyringError::WrongKeyMaterial(id)),
            other => other?,
        };
        Ok((id, material))
    }

    fn read(&self) -> Result<Zeroizing<String>, KeyringError> {
        match &self.place {
            Place::Variable(name) => required(name),
            Place::File(path) => file::read(path, Access::Owner),
            Place::VariableOrFile(variable, file_variable) => read_either(variable, file_variable),
            Place::Credential(name) => {
                let mut parts = Path::new(&**name).components();
                if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                    return Err(KeyringError::Source(SourceError::NotACredentialName));
                }
                let directory = env::var_os("CREDENTIALS_DIRECTORY")
                    .filter(|directory| !directory.is_empty())
                    .ok_or(KeyringError::Source(SourceError::NoCredentialsDirectory))?;
                file::read(&Path::new(&directory).join(&**name), Access::OwnerOrRootsGroup)
            }
        }
    }
}

/// A keyring as it was loaded.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) keyring: Keyring,
    /// What each unwrapped key was unwrapped from.
    wraps: Arc<HashMap<KeyId, Box<[u8]>>>,
}

impl Loaded {
    pub(super) fn swapped_in(keyring: Keyring) -> Self {
        Self {
            keyring,
            wraps: Arc::default(),
        }
    }

    pub(super) fn counting_on(mut self, before: &Keyring) -> Self {
        self.keyring = self.keyring.counting_on(before);
        self
    }
}

/// Whether a key that opens was unwrapped before from the very same bytes.
fn is_ready(before: Option<&Loaded>, entry: &Entry) -> bool {
    match (&entry.bytes, before) {
        (Bytes::Wrapped(wrapped), Some(before)) => {
            entry.state.opens()
                && (before.wraps.get(&entry.id) == Some(wrapped)
                    || cfg!(biplane_mutant = "new_wraps_are_not_looked_at"))
                && before.keyring.ready(entry.id).is_some()
        }
        _ => false,
    }
}

fn read_either(variable: &str, file_variable: &str) -> Result<Zeroizing<String>, KeyringError> {
    let unset = || KeyringError::Source(SourceError::Unset(variable.into()));
    match (env::var_os(variable), env::var_os(file_variable)) {
        (Some(mut keys), Some(_)) => {
            wipe(&mut keys);
            let error = SourceError::Ambiguous(variable.into(), file_variable.into());
            Err(KeyringError::Source(error))
        }
        (None, Some(path)) if path.is_empty() => {
            Err(KeyringError::Source(SourceError::Empty(file_variable.into())))
        }
        (None, Some(path)) => file::read(Path::new(&path), Access::Owner),
        (Some(keys), None) => text_of(keys, variable),
        (None, None) => Err(unset()),
    }
}

/// The text of a variable that must be there.
pub(super) fn required(variable: &str) -> Result<Zeroizing<String>, KeyringError> {
    let value =
        env::var_os(variable).ok_or_else(|| KeyringError::Source(SourceError::Unset(variable.into())))?;
    text_of(value, variable)
}

fn text_of(value: OsString, variable: &str) -> Result<Zeroizing<String>, KeyringError> {
    let variable = || Arc::from(variable);
    let text = String::from_utf8(value.into_encoded_bytes()).map_err(|error| {
        error.into_bytes().zeroize();
        KeyringError::Source(SourceError::VariableNotUtf8(variable()))
    })?;
    let text = Zeroizing::new(text);
    if text.trim().is_empty() {
        return Err(KeyringError::Source(SourceError::Empty(variable())));
    }
    Ok(text)
}

fn wipe(value: &mut OsString) {
    std::mem::take(value).into_encoded_bytes().zeroize();
}
