//! Reading the file, checked on the open descriptor.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    path::Path,
};

use super::{Overrides, value::refused};
use crate::error::Error;

/// Room for 10,000 tenants; anything larger is another file.
const MAX_FILE: u64 = 1024 * 1024;

/// What is at the path.
pub(super) enum Found {
    Nothing,
    Text(String, Rights),
}

/// Who may do what with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    owner_is_ours: bool,
    mode: u32,
}

/// Reads the file, unless somebody else could have written it: whoever writes it says where tenants' data goes.
pub(super) fn read(path: &Path) -> Result<Found, Error> {
    let mut file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(unreadable(&error)),
    };
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if !metadata.is_file() {
        return Err(refused("", "it is not a file"));
    }
    let rights = rights(&metadata);
    rights.check_writers()?;
    let mut bytes = Vec::new();
    file.by_ref()
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(refused("", "it is larger than 1 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| refused("", "it is not UTF-8"))?;
    Ok(Found::Text(text, rights))
}

impl Rights {
    fn check_writers(self) -> Result<(), Error> {
        const WRITTEN_BY_OTHERS: u32 = 0o022;
        if cfg!(biplane_mutant = "anybody_may_write_overrides") {
            return Ok(());
        }
        if !self.owner_is_ours {
            return Err(refused(
                "",
                "it belongs to somebody else; it must be this user's or root's",
            ));
        }
        if self.mode & WRITTEN_BY_OTHERS != 0 {
            return Err(refused("", "others than its owner may write it; chmod go-w"));
        }
        Ok(())
    }

    /// Sealed is not public.
    pub(super) fn check_readers(self, overrides: &Overrides) -> Result<(), Error> {
        const OTHERS: u32 = 0o077;
        if overrides.holds_sealed_text() && self.mode & OTHERS != 0 {
            return Err(refused(
                "",
                "it holds sealed credentials, and others than its owner may read it; chmod 600",
            ));
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    // Opening a named pipe would otherwise wait for a writer.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        rustix::fs::OFlags::NONBLOCK.bits().cast_signed(),
    );
    options.open(path)
}

#[cfg(unix)]
fn rights(metadata: &std::fs::Metadata) -> Rights {
    use std::os::unix::fs::MetadataExt;
    let owner = metadata.uid();
    Rights {
        owner_is_ours: owner == 0 || owner == rustix::process::geteuid().as_raw(),
        mode: metadata.mode(),
    }
}

#[cfg(not(unix))]
fn rights(_: &std::fs::Metadata) -> Rights {
    Rights {
        owner_is_ours: true,
        mode: 0o600,
    }
}

fn unreadable(error: &io::Error) -> Error {
    refused("", format!("it cannot be read ({})", error.kind()))
}
