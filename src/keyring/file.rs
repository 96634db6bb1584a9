//! The file that holds a keyring: read on its open descriptor, and replaced whole.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::{KeyringError, KeyringFile, SourceError};

/// A keyring of a few keys takes a few hundred bytes; anything large is another file.
const MAX_FILE: usize = 64 * 1024;

/// Who besides the owner may have a right to a file of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Owner,
    /// Reading by the group of root, on a file of root's: how the mode shows an access control list of systemd's.
    OwnerOrRootsGroup,
}

impl KeyringFile {
    /// Reads a keyring file; the checks are those of [`KeySource::file`](super::KeySource::file).
    ///
    /// # Errors
    /// [`KeyringError::Source`] when the file cannot be read or fails a check, and those of [`KeyringFile::parse`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, KeyringError> {
        Self::parse(&read(path.as_ref(), Access::Owner)?)
    }

    /// Writes a new file in the JSON form, for its owner alone (mode 0600), and never over one that exists.
    ///
    /// # Errors
    /// [`KeyringError::Source`] when there is something at this path, or the file cannot be written.
    pub fn create(path: impl AsRef<Path>, keyring: &Self) -> Result<(), KeyringError> {
        let path = path.as_ref();
        let written = Written::beside(path, keyring, None)?;
        // Unlike a rename, a link does not replace what is there.
        fs::hard_link(&written.0, path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => KeyringError::Source(SourceError::AlreadyExists),
            _ => failed(error),
        })?;
        sync_directory(path)
    }

    /// Changes a file in the JSON form: reads it, calls `change`, and replaces it whole, keeping owner and mode. Somebody
    /// who reads meanwhile sees the old keyring or the new one, also when the machine fails. Two editors wait for each
    /// other, by a lock on the file. When `change` fails, the file stays as it was.
    ///
    /// ```
    /// # use biplane::keyring::{KeyMaterial, KeyringError, KeyringFile};
    /// # fn rotate(path: &std::path::Path) -> Result<(), KeyringError> {
    /// let id = KeyringFile::edit(path, |keys| keys.add(KeyMaterial::generate()?))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`KeyringFile::load`] and of `change`; [`KeyringError::MalformedFile`] for entries, whose comments would
    /// be lost; [`KeyringError::Source`] when the file cannot be written, or keeps being replaced.
    pub fn edit<T>(
        path: impl AsRef<Path>,
        change: impl FnOnce(&mut Self) -> Result<T, KeyringError>,
    ) -> Result<T, KeyringError> {
        // The file that a link leads to is replaced, not the link.
        let path = fs::canonicalize(path).map_err(failed)?;
        let (file, metadata) = lock(&path)?;
        let text = read_open(file.as_ref())?;
        if !text.trim_start().starts_with('{') {
            return Err(KeyringError::MalformedFile {
                line: None,
                what: "it holds entries, and only the JSON form is edited",
            });
        }
        let mut keyring = Self::parse(&text)?;
        let answer = change(&mut keyring)?;
        let written = Written::beside(&path, &keyring, Some(&metadata))?;
        fs::rename(&written.0, &path).map_err(failed)?;
        sync_directory(&path)?;
        Ok(answer)
    }
}

/// Reads a file of keys, checked on the open descriptor.
pub(super) fn read(path: &Path, access: Access) -> Result<Zeroizing<String>, KeyringError> {
    let file = open(path)?;
    check(&file.metadata().map_err(failed)?, access).map_err(KeyringError::Source)?;
    read_open(&file)
}

fn read_open(mut file: &File) -> Result<Zeroizing<String>, KeyringError> {
    // Read into room that never grows, because growing leaves unwiped copies; one byte more than is allowed, so that
    // a file that grows meanwhile is seen to.
    let mut bytes = Zeroizing::new(vec![0; MAX_FILE + 1]);
    let mut length = 0;
    loop {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
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
    options.open(path).map_err(failed)
}

fn check(metadata: &Metadata, access: Access) -> Result<(), SourceError> {
    if !metadata.is_file() {
        return Err(SourceError::NotAFile);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        check_access(
            Rights {
                owner: metadata.uid(),
                group: metadata.gid(),
                mode: metadata.mode(),
            },
            rustix::process::geteuid().as_raw(),
            access,
        )?;
    }
    #[cfg(not(unix))]
    let _ = access;
    if metadata.len() > MAX_FILE as u64 {
        return Err(SourceError::FileTooLarge);
    }
    Ok(())
}

#[cfg(unix)]
#[derive(Clone, Copy)]
struct Rights {
    owner: u32,
    group: u32,
    mode: u32,
}

#[cfg(unix)]
fn check_access(rights: Rights, user: u32, access: Access) -> Result<(), SourceError> {
    const ROOT: u32 = 0;
    const GROUP_AND_OTHERS: u32 = 0o077;
    const GROUP_READS: u32 = 0o040;
    let Rights { owner, group, mode } = rights;
    if owner != user && owner != ROOT {
        return Err(SourceError::ForeignOwner);
    }
    let tolerated = match access {
        Access::OwnerOrRootsGroup if (owner, group) == (ROOT, ROOT) => GROUP_READS,
        Access::OwnerOrRootsGroup | Access::Owner => 0,
    };
    if mode & GROUP_AND_OTHERS & !tolerated != 0 {
        return Err(SourceError::Exposed);
    }
    Ok(())
}

/// The file of this path, locked. Whoever held the lock before may have replaced the file, and what was opened is then
/// the old one.
fn lock(path: &Path) -> Result<(Locked, Metadata), KeyringError> {
    // Editors are people and their programs: more than a few at once are a mistake.
    const ATTEMPTS: usize = 100;
    for _ in 0..ATTEMPTS {
        let file = open(path)?;
        if !cfg!(biplane_mutant = "editors_do_not_wait") {
            file.lock().map_err(failed)?;
        }
        let metadata = file.metadata().map_err(failed)?;
        if is_same(&metadata, &fs::metadata(path).map_err(failed)?) {
            check(&metadata, Access::Owner).map_err(KeyringError::Source)?;
            return Ok((Locked(file), metadata));
        }
    }
    Err(KeyringError::Source(SourceError::Changed))
}

/// Unlocked when dropped, with the descriptor.
struct Locked(File);

impl AsRef<File> for Locked {
    fn as_ref(&self) -> &File {
        &self.0
    }
}

#[cfg(unix)]
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(not(unix))]
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    one.modified().ok() == other.modified().ok() && one.len() == other.len()
}

/// A file that is whole and on its way to its place. It is removed again unless it was moved there.
struct Written(PathBuf);

impl Written {
    fn beside(path: &Path, keyring: &KeyringFile, like: Option<&Metadata>) -> Result<Self, KeyringError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
        let place = path.with_file_name(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&place).map_err(failed)?;
        let written = Self(place);
        if let Some(like) = like {
            keep_rights(&file, like)?;
        }
        file.write_all(keyring.to_text().expose_secret().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        Ok(written)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // After a rename there is nothing to be removed.
        let _ = fs::remove_file(&self.0);
    }
}

/// Before there is anything in the file to be read.
#[cfg(unix)]
fn keep_rights(file: &File, like: &Metadata) -> Result<(), KeyringError> {
    use std::os::unix::fs::MetadataExt;
    let new = file.metadata().map_err(failed)?;
    if (new.uid(), new.gid()) != (like.uid(), like.gid()) {
        std::os::unix::fs::fchown(file, Some(like.uid()), Some(like.gid())).map_err(failed)?;
    }
    file.set_permissions(like.permissions()).map_err(failed)
}

#[cfg(not(unix))]
fn keep_rights(_: &File, _: &Metadata) -> Result<(), KeyringError> {
    Ok(())
}

/// Makes the new name last, where directories can be synced.
fn sync_directory(path: &Path) -> Result<(), KeyringError> {
    #[cfg(unix)]
    {
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err passes on")]
fn failed(error: io::Error) -> KeyringError {
    KeyringError::Source(SourceError::Io(error.kind()))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn checked(owner: u32, group: u32, mode: u32, user: u32, access: Access) -> Result<(), SourceError> {
        let rights = Rights {
            owner,
            group,
            mode: 0o100_000 | mode,
        };
        check_access(rights, user, access)
    }

    #[test]
    fn a_key_file_is_its_users_or_roots_and_nobody_elses() {
        let checked = |owner, mode, user| checked(owner, 1000, mode, user, Access::Owner);
        assert_eq!(checked(1000, 0o400, 1000), Ok(()));
        assert_eq!(checked(0, 0o600, 1000), Ok(()));
        assert_eq!(checked(1001, 0o400, 1000), Err(SourceError::ForeignOwner));
        assert_eq!(checked(1001, 0o400, 0), Err(SourceError::ForeignOwner));
        for bit in 0..6 {
            assert_eq!(checked(1000, 0o600 | 1 << bit, 1000), Err(SourceError::Exposed));
        }
    }

    #[test]
    fn a_credential_of_systemd_may_show_its_list_as_a_right_of_roots_group() {
        let access = Access::OwnerOrRootsGroup;
        assert_eq!(checked(0, 0, 0o440, 1000, access), Ok(()));
        assert_eq!(checked(1000, 1000, 0o400, 1000, access), Ok(()));
        assert_eq!(
            checked(0, 0, 0o440, 1000, Access::Owner),
            Err(SourceError::Exposed)
        );
        assert_eq!(checked(0, 1000, 0o440, 1000, access), Err(SourceError::Exposed));
        assert_eq!(checked(1000, 0, 0o440, 1000, access), Err(SourceError::Exposed));
        for bit in [0, 1, 2, 3, 4] {
            assert_eq!(
                checked(0, 0, 0o400 | 1 << bit, 1000, access),
                Err(SourceError::Exposed)
            );
        }
    }
}
