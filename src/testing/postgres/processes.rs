//! Reading the process table.

use std::io;

/// A process, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) id: u32,
    pub(super) parent: u32,
    /// The first letter of what `ps` prints: `T` is stopped, `Z` is dead and not yet collected by its parent.
    pub(super) state: char,
}

/// All processes that this user may see.
#[cfg(target_os = "linux")]
pub(super) fn all() -> io::Result<Vec<Process>> {
    // Not `ps`: small images come without it.
    Ok(std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(find)
        .collect())
}

/// A process's children, their children, and so on.
pub(super) fn below(id: u32) -> io::Result<Vec<u32>> {
    let all = all()?;
    let mut family = vec![id];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(
            all.iter()
                .filter(|process| process.parent == parent)
                .map(|process| process.id),
        );
        next += 1;
    }
    family.remove(0);
    Ok(family)
}

/// One process, if it is there.
#[cfg(target_os = "linux")]
pub(super) fn find(id: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name stands in parentheses and may hold spaces and parentheses itself.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    Some(Process {
        id,
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
}

/// All processes that this user may see.
#[cfg(not(target_os = "linux"))]
pub(super) fn all() -> io::Result<Vec<Process>> {
    let output = std::process::Command::new("ps")
        .args(["-A", "-o", "pid=", "-o", "ppid=", "-o", "stat="])
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            Some(Process {
                id: fields.next()?.parse().ok()?,
                parent: fields.next()?.parse().ok()?,
                state: fields.next()?.chars().next()?,
            })
        })
        .collect())
}

/// One process, if it is there.
#[cfg(not(target_os = "linux"))]
pub(super) fn find(id: u32) -> Option<Process> {
    all().ok()?.into_iter().find(|process| process.id == id)
}
