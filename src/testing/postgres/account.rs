//! Who runs the servers.

use std::{
    io,
    os::unix::{fs::lchown, process::CommandExt},
    path::Path,
    process::Command,
};

use super::ClusterError;

/// The users that root may become, in order of preference. The first comes with Postgres' packages, the second with
/// every system.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// The user and group that the servers run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) user: u32,
    group: u32,
    /// Whether this process is another user, namely root, and so has to step down.
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Stay,
    Down,
}

impl Account {
    /// This process's own user, or an unprivileged one if that is root.
    ///
    /// # Errors
    /// When root finds no user to step down to.
    pub(super) fn detect() -> Result<Self, ClusterError> {
        let ids = |name: Option<&str>| {
            Some(Self {
                user: id("-u", name)?,
                group: id("-g", name)?,
                step: name.map_or(Step::Stay, |_| Step::Down),
            })
        };
        match ids(None) {
            Some(own) if own.user != 0 => Ok(own),
            _ => UNPRIVILEGED
                .iter()
                .filter_map(|name| ids(Some(name)))
                .find(|account| account.user != 0)
                .ok_or(ClusterError::NoUser),
        }
    }

    /// Lets a command run as this user, in a directory that the user may enter.
    pub(super) fn apply<'c>(&self, command: &'c mut Command, directory: &Path) -> &'c mut Command {
        if self.step == Step::Down {
            command.uid(self.user).gid(self.group);
        }
        command.current_dir(directory)
    }

    /// Hands a file or directory over to this user.
    pub(super) fn own(&self, path: &Path) -> io::Result<()> {
        match self.step {
            Step::Stay => Ok(()),
            Step::Down => lchown(path, Some(self.user), Some(self.group)),
        }
    }

    /// Whether a directory found in a place open to everyone may be trusted: its owner is this user, or root if that
    /// is who asks.
    pub(super) fn trusts(&self, owner: u32) -> bool {
        owner == self.user || (self.step == Step::Down && owner == 0)
    }
}

/// Asks `id`, because the standard library does not say who we are.
fn id(which: &str, name: Option<&str>) -> Option<u32> {
    let output = Command::new("id").arg(which).args(name).output().ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}
