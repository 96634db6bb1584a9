//! What became of the values: reports, progress and errors.

use std::{fmt, sync::Arc};

use crate::{
    error::Error,
    keyring::{KeyId, KeyringError},
};

use super::StillUsed;

/// How a job went. It prints itself for an operator: counts, key ids and owners, and no byte of any value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// One entry for each store, in the order in which they were given. Stores that were not reached have none.
    pub stores: Vec<StoreReport>,
    /// Whether nothing was written on purpose.
    pub dry_run: bool,
}

/// How it went in one store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreReport {
    /// The name of the store.
    pub store: Arc<str>,
    /// How many values were there when the job came to it, whatever they needed.
    pub found: u64,
    /// How many of them needed work.
    pub wanted: u64,
    /// How many values were written, or would have been by a run that is not dry.
    pub done: u64,
    /// How many times somebody else changed a value between reading and writing, so that theirs stayed.
    pub overtaken: u64,
    /// How many values failed, and are as they were.
    pub failed: u64,
    /// The first of those that failed.
    pub failures: Vec<Failure>,
    /// How many values were still held by others when patience ran out, or came anew. Another run finishes them.
    pub busy: u64,
}

/// A value that could not be worked on. It holds no byte of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// Whose value.
    pub owner: Box<str>,
    /// Which of the owner's values.
    pub field: Box<str>,
    /// Why.
    pub error: KeyringError,
}

/// How far a job is, told after each page.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The name of the store.
    pub store: &'a str,
    /// Which pass over it, from 1. A second one is for values that were held by others in the first.
    pub pass: u32,
    /// How many values needed work when the job came to this store.
    pub wanted: u64,
    /// How many values have been looked at, in all passes.
    pub looked: u64,
    /// How many values have been written, or would have been by a run that is not dry.
    pub done: u64,
    /// How many values have failed in this pass.
    pub failed: u64,
    /// How many times somebody else's change came first.
    pub overtaken: u64,
}

/// Why a job did not do all that it should.
///
/// Work that was done stays done in every case, and running the job again goes on where it stopped.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotationError {
    /// A store could not be read or written.
    #[error("the store {store} could not be worked on")]
    Store {
        /// The name of the store.
        store: Arc<str>,
        /// Why.
        source: Error,
        /// What was done before.
        report: Box<Report>,
    },
    /// Values failed, or were held by others for too long.
    #[error("{} values failed and {} were held by others", .0.failed(), .0.busy())]
    Incomplete(Box<Report>),
    /// A store has no value at all where some were expected: most likely it is the wrong one.
    #[error("nothing was found in {}", .stores.join(", "))]
    NothingFound {
        /// The names of the stores.
        stores: Vec<Arc<str>>,
        /// What was done elsewhere.
        report: Box<Report>,
    },
    /// Values are sealed under a key that is pending here. A pending key seals nothing, so somebody has promoted it, and
    /// this keyring would take its values back.
    #[error("values are sealed under key {0}, which is pending in this keyring and primary elsewhere")]
    StaleKeyring(KeyId),
    /// The keyring or the policy forbids the whole job.
    #[error("the job is not possible with these keys")]
    Keyring(#[source] KeyringError),
    /// A key is still in use, or it cannot be told.
    #[error("key {} cannot be shown to be out of use", .0.key)]
    StillUsed(Box<StillUsed>),
    /// It could not be asked which instances live.
    #[error("it could not be asked which instances live")]
    Presence(#[source] Error),
    /// Nobody said what to work on.
    #[error("no store was given")]
    NoStore,
}

impl RotationError {
    /// What was done before it failed.
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::Store { report, .. } | Self::Incomplete(report) | Self::NothingFound { report, .. } => {
                Some(report)
            }
            Self::StaleKeyring(_)
            | Self::Keyring(_)
            | Self::StillUsed(_)
            | Self::Presence(_)
            | Self::NoStore => None,
        }
    }

    /// The next step for an operator.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Store { .. } => "remove the cause and run the job again: it goes on where it stopped",
            Self::Incomplete(_) => {
                "the report names owners and causes: repair those values, then run the job again for the rest"
            }
            Self::NothingFound { .. } => {
                "check database, table and column, or say that the store may be empty"
            }
            Self::StaleKeyring(_) => "load the present keyring before anything else is sealed with this one",
            Self::Keyring(error) => error.hint(),
            Self::Presence(_) => "remove the cause and ask again",
            Self::StillUsed(_) => "wait, re-seal what is left, or upgrade the instances that are named",
            Self::NoStore => "give the job at least one store",
        }
    }
}

impl Report {
    /// How many values were written, or would have been by a run that is not dry.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.stores.iter().map(|store| store.done).sum()
    }

    /// How many values failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.stores.iter().map(|store| store.failed).sum()
    }

    /// How many values others held for too long.
    #[must_use]
    pub fn busy(&self) -> u64 {
        self.stores.iter().map(|store| store.busy).sum()
    }
}

impl StoreReport {
    pub(super) fn new(store: &str, found: u64, wanted: u64) -> Self {
        Self {
            store: store.into(),
            found,
            wanted,
            done: 0,
            overtaken: 0,
            failed: 0,
            failures: Vec::new(),
            busy: 0,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dry_run {
            writeln!(f, "dry run: nothing was written")?;
        }
        for store in &self.stores {
            write!(f, "{store}")?;
        }
        Ok(())
    }
}

impl fmt::Display for StoreReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            store,
            found,
            wanted,
            done,
            overtaken,
            failed,
            busy,
            failures,
        } = self;
        writeln!(
            f,
            "{store}: {found} values, {wanted} to do, {done} done, {failed} failed, {busy} held by others, \
             {overtaken} overtaken"
        )?;
        write_failures(f, failures, *failed)
    }
}

impl fmt::Display for Failure {
    /// The owner as a quoted string, so that an id from a stranger's row cannot look like another line of a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "owner {:?}, field {}: {}", self.owner, self.field, self.error)
    }
}

pub(super) fn write_failures(f: &mut fmt::Formatter<'_>, failures: &[Failure], total: u64) -> fmt::Result {
    for failure in failures {
        writeln!(f, "  {failure} ({})", failure.error.hint())?;
    }
    match total.saturating_sub(failures.len() as u64) {
        0 => Ok(()),
        more => writeln!(f, "  and {more} more"),
    }
}
