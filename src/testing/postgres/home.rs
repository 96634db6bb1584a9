//! Where servers keep their files.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{ClusterError, account::Account, locate};

/// A socket's path may be 103 bytes long on macOS and 107 on Linux; this leaves room for a cluster's directory and
/// the socket in it.
const LONGEST_BASE: usize = 70;

/// Where Linux keeps files in memory.
const MEMORY: &str = "/dev/shm";

/// What must be free there. A cluster begins with 30 MB and may grow by 1 GB of write-ahead log; containers often
/// have 64 MB in all.
const MEMORY_KIB: u64 = 4 * 1024 * 1024;

/// The directory under which all servers of one user live. Nobody else may look into it.
#[derive(Clone, Debug)]
pub(super) struct Base(PathBuf);

/// What a server's files are to be kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    /// Whatever is quick: a cluster is a thousand files, which some file systems take a second to create.
    Quick,
    /// What survives the machine, as far as the directory for temporary files does.
    Disk,
}

impl Base {
    /// Finds or makes it: in memory, if there is plenty and `TMPDIR` does not name another place; otherwise under
    /// the directory for temporary files; otherwise, where the server's user cannot get there, under `/tmp` or
    /// `/var/tmp`.
    ///
    /// # Errors
    /// When the server's user can write to none of them.
    pub(super) fn open(account: &Account, storage: Storage) -> Result<Self, ClusterError> {
        let mut parents = vec![env::temp_dir(), "/tmp".into(), "/var/tmp".into()];
        let free = || free_kib(Path::new(MEMORY)).unwrap_or(0);
        if storage == Storage::Quick && env::var_os("TMPDIR").is_none() && free() >= MEMORY_KIB {
            parents.insert(0, MEMORY.into());
        }
        let mut tried = Vec::new();
        for parent in parents {
            let base = parent.join(format!("biplane-postgres-{}", account.user));
            if base.as_os_str().len() <= LONGEST_BASE
                && prepare(&base, account).is_ok()
                && writable(&base, account)
            {
                return Ok(Self(base));
            }
            tried.push(base);
        }
        Err(ClusterError::NoDirectory {
            tried,
            longest: LONGEST_BASE,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A new, empty directory that belongs to the account.
    pub(super) fn directory(&self, prefix: &str, account: &Account) -> Result<Home, ClusterError> {
        let made = tempfile::Builder::new()
            .prefix(prefix)
            .rand_bytes(8)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&self.0)
            .map_err(ClusterError::io("make a directory for the server"))?;
        let home = Home(made.keep());
        account
            .own(&home.0)
            .map_err(ClusterError::io("hand the directory over to the server's user"))?;
        Ok(home)
    }
}

/// A directory that is removed with its value.
#[derive(Debug)]
pub(super) struct Home(PathBuf);

impl Home {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Usually the supervisor was quicker.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes a file that only the account may read.
pub(super) fn write_private(path: &Path, text: &str, account: &Account) -> Result<(), ClusterError> {
    let write = || {
        fs::write(path, "")?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        fs::write(path, text)?;
        account.own(path)
    };
    write().map_err(ClusterError::io(format!(
        "write the server's {}",
        path.file_name().unwrap_or_default().to_string_lossy()
    )))
}

/// Makes the base or accepts the one that is there, but only a real directory of an owner whom we trust: `/tmp` is
/// open to everyone.
fn prepare(base: &Path, account: &Account) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(base) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(base)?;
    if !found.is_dir() || !account.trusts(found.uid()) || found.mode() & 0o077 != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    account.own(base)
}

/// Lets the account itself try: permissions of all the directories above, access lists and mount options included.
fn writable(base: &Path, account: &Account) -> bool {
    let mut probe = locate::command(Path::new("/bin/sh"), None);
    probe
        .arg("-c")
        .arg("probe=$(mktemp ./probe.XXXXXX) && rm -f \"$probe\"")
        .stderr(std::process::Stdio::null());
    account
        .apply(&mut probe, base)
        .status()
        .is_ok_and(|status| status.success())
}

/// The space that is left, asked of `df` because the standard library does not say.
fn free_kib(directory: &Path) -> Option<u64> {
    let output = locate::command(Path::new("df"), None)
        .arg("-Pk")
        .arg(directory)
        .stderr(std::process::Stdio::null())
        .output()
        .ok()?;
    let printed = String::from_utf8(output.stdout).ok()?;
    printed
        .lines()
        .nth(1)?
        .split_ascii_whitespace()
        .nth(3)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_made_and_found_again() {
        let account = Account::detect().unwrap();
        let parent = tempfile::tempdir().unwrap();
        let base = parent.path().join("base");
        for _ in 0..2 {
            prepare(&base, &account).unwrap();
            let made = fs::metadata(&base).unwrap();
            assert_eq!((made.mode() & 0o777, made.uid()), (0o700, account.user));
        }
    }

    #[test]
    fn what_somebody_else_has_put_in_the_place_of_a_base_is_refused() {
        let account = Account::detect().unwrap();
        let parent = tempfile::tempdir().unwrap();
        let open = parent.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        for place in [open, link, file] {
            assert!(prepare(&place, &account).is_err(), "{}", place.display());
        }
    }
}
