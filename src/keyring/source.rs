//! Where keys come from: text, a variable, a file.

use std::{
    env,
    ffi::OsString,
    fs::{File, Metadata, OpenOptions},
    io::Read,
    path::Path,
    sync::Arc,
};

use zeroize::{Zeroize, Zeroizing};

use super::{KeyMaterial, KeyState, Keyring, KeyringBuilder, KeyringError, SourceError, key::malformed};

/// A keyring of a few keys takes a few hundred bytes; anything large is another file.
const MAX_FILE: usize = 64 * 1024;

impl Keyring {
    /// The variable that holds the keyring, unless another is named.
    pub const VARIABLE: &'static str = "BIPLANE_KEYRING";

    /// The variable that holds the path of the keyring's file, unless another is named.
    pub const FILE_VARIABLE: &'static str = "BIPLANE_KEYRING_FILE";

    /// Reads a keyring from text: entries separated by newlines or commas, each
    ///
    /// ```text
    /// state:material            primary:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    /// state:key id:material     decrypt-only:5de9045636c871ca:qroTC8anxOQ2hFPyBNf2KgGAZGycPzKVyLqoBUWpL8A=
    /// ```
    ///
    /// where the state is `pending`, `primary` or `decrypt-only`, the material is what [`KeyMaterial::parse`] reads,
    /// and the key id, if given, is checked against the material. A line that begins with `#` is a comment; white
    /// space around an entry means nothing, and neither does the order. A keyring of one key may be the bare material,
    /// which is then the primary key.
    ///
    /// # Errors
    /// [`KeyringError::MalformedKey`] and [`KeyringError::WeakKey`] with the number of the entry, and those of
    /// [`KeyringBuilder::build`].
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let entries = || {
            text.lines()
                .filter(|line| !line.trim_start().starts_with('#'))
                .flat_map(|line| line.split(','))
                .map(str::trim)
                .filter(|entry| !entry.is_empty())
        };
        let mut builder = Self::builder();
        let alone = entries().count() == 1;
        for (index, entry) in entries().enumerate() {
            builder = if alone && !entry.contains(':') {
                KeyMaterial::parse(entry).map(|material| builder.key(material, KeyState::Primary))
            } else {
                add_entry(builder, entry)
            }
            .map_err(|error| error.in_entry(index + 1))?;
        }
        builder.build()
    }

    /// Reads a keyring, as [`Keyring::parse`] does, from a variable.
    ///
    /// The environment of a process stays in its memory, and child processes inherit it; a file does not.
    ///
    /// # Errors
    /// [`KeyringError::Source`] when the variable is unset, empty or not UTF-8: a missing key is never made up. And
    /// those of [`Keyring::parse`].
    pub fn from_env(variable: &str) -> Result<Self, KeyringError> {
        Self::parse(&required(variable)?)
    }

    /// Reads a keyring, as [`Keyring::parse`] does, from a file, which is opened once and checked on the open
    /// descriptor: a regular file of at most 64 KiB that belongs to this process's user or to root and that nobody
    /// else can read or write. Symbolic links are followed, as secret stores that mount files use them. Where there
    /// are no Unix permissions, owner and permissions are not checked.
    ///
    /// # Errors
    /// [`KeyringError::Source`] when the file cannot be read or fails a check, and those of [`Keyring::parse`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, KeyringError> {
        Self::parse(&read_file(path.as_ref())?)
    }

    /// Reads a keyring from the first variable, or from the file whose path the second holds. Usually these are
    /// [`Keyring::VARIABLE`] and [`Keyring::FILE_VARIABLE`].
    ///
    /// # Errors
    /// [`KeyringError::Source`] when neither is set or both are, as it is not for us to guess which one is meant; and
    /// those of [`Keyring::from_env`] and [`Keyring::from_file`].
    pub fn from_env_or_file(variable: &str, file_variable: &str) -> Result<Self, KeyringError> {
        match (env::var_os(variable), env::var_os(file_variable)) {
            (Some(mut keys), Some(_)) => {
                wipe(&mut keys);
                let error = SourceError::Ambiguous(variable.into(), file_variable.into());
                Err(KeyringError::Source(error))
            }
            (None, Some(path)) if path.is_empty() => {
                Err(KeyringError::Source(SourceError::Empty(file_variable.into())))
            }
            (None, Some(path)) => Self::from_file(path),
            (Some(keys), None) => Self::parse(&text_of(keys, variable)?),
            (None, None) => Err(KeyringError::Source(SourceError::Unset(variable.into()))),
        }
    }
}

fn add_entry(builder: KeyringBuilder, entry: &str) -> Result<KeyringBuilder, KeyringError> {
    let (state, rest) = entry
        .split_once(':')
        .ok_or(malformed("it does not say its state, as in primary:…"))?;
    let state: KeyState = state
        .parse()
        .map_err(|_| malformed("its state is none of pending, primary and decrypt-only"))?;
    match rest.split_once(':') {
        None => Ok(builder.key(KeyMaterial::parse(rest)?, state)),
        Some((id, material)) => {
            let id = id
                .parse()
                .map_err(|_| malformed("its key id is not 16 lower-case hex digits"))?;
            Ok(builder.key_with_id(id, KeyMaterial::parse(material)?, state))
        }
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
    if text.trim().is_empty() {
        return Err(KeyringError::Source(SourceError::Empty(variable())));
    }
    Ok(Zeroizing::new(text))
}

fn wipe(value: &mut OsString) {
    std::mem::take(value).into_encoded_bytes().zeroize();
}

fn read_file(path: &Path) -> Result<Zeroizing<String>, KeyringError> {
    let mut file = open(path)?;
    let io = |error: std::io::Error| KeyringError::Source(SourceError::Io(error.kind()));
    check(&file.metadata().map_err(io)?).map_err(KeyringError::Source)?;

    // Read into room that never grows, because growing leaves unwiped copies; one byte more than is allowed, so that
    // a file that grows meanwhile is seen to.
    let mut bytes = Zeroizing::new(vec![0; MAX_FILE + 1]);
    let mut length = 0;
    loop {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io(error)),
        }
    }
    if length > MAX_FILE {
        return Err(KeyringError::Source(SourceError::FileTooLarge));
    }
    let text =
        std::str::from_utf8(&bytes[..length]).map_err(|_| KeyringError::Source(SourceError::FileNotUtf8))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn open(path: &Path) -> Result<File, KeyringError> {
    let mut options = OpenOptions::new();
    options.read(true);
    // Opening a named pipe would otherwise wait for a writer, and never come to see that it is no file.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        rustix::fs::OFlags::NONBLOCK.bits().cast_signed(),
    );
    options
        .open(path)
        .map_err(|error| KeyringError::Source(SourceError::Io(error.kind())))
}

fn check(metadata: &Metadata) -> Result<(), SourceError> {
    if !metadata.is_file() {
        return Err(SourceError::NotAFile);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        check_access(
            metadata.uid(),
            metadata.mode(),
            rustix::process::geteuid().as_raw(),
        )?;
    }
    if metadata.len() > MAX_FILE as u64 {
        return Err(SourceError::FileTooLarge);
    }
    Ok(())
}

#[cfg(unix)]
const fn check_access(owner: u32, mode: u32, user: u32) -> Result<(), SourceError> {
    const ROOT: u32 = 0;
    const GROUP_AND_OTHERS: u32 = 0o077;
    if owner != user && owner != ROOT {
        return Err(SourceError::ForeignOwner);
    }
    if mode & GROUP_AND_OTHERS != 0 {
        return Err(SourceError::Exposed);
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_its_users_or_roots_and_nobody_elses() {
        assert_eq!(check_access(1000, 0o100_400, 1000), Ok(()));
        assert_eq!(check_access(0, 0o100_600, 1000), Ok(()));
        assert_eq!(
            check_access(1001, 0o100_400, 1000),
            Err(SourceError::ForeignOwner)
        );
        assert_eq!(check_access(1001, 0o100_400, 0), Err(SourceError::ForeignOwner));
        for bit in 0..6 {
            assert_eq!(
                check_access(1000, 0o100_600 | 1 << bit, 1000),
                Err(SourceError::Exposed)
            );
        }
    }
}
