//! A place that keeps sealed values.

use std::{collections::BTreeMap, fmt, fmt::Debug, num::NonZeroU32, sync::Arc};

use async_trait::async_trait;

use crate::{
    error::Error,
    keyring::{Context, KeyId, KeyringError},
    tenant::SealedText,
};

/// What every sealed value in text form begins with, in this version of the format.
pub(super) const SEALED: &str = "bp1.";

/// A place that keeps sealed values: the columns of a table, the control plane's credentials, a map in a test.
///
/// Everything in this room works through it, so that a place of your own is re-sealed, examined and counted like the
/// ones that come with the crate.
///
/// # Contract
/// - A page is one transaction: it shows values to `decide` and writes what `decide` returns, or changes nothing.
/// - Each value is written only if it still is what was shown ([`Visited::written`] counts those that were), so that a
///   concurrent write wins.
/// - Pages come in one total order of keys, and every value that nobody touches meanwhile is shown in exactly one page
///   of a pass. Values that others hold locked may be left out of a page of [`Mode::Change`], never of [`Mode::Look`].
/// - [`Mode::Look`] writes nothing, whatever `decide` returns, and needs no privilege to write.
/// - Empty places (SQL's null) are no values.
#[async_trait]
pub trait SealedStore: Debug + Send + Sync + 'static {
    /// What reports call it.
    fn name(&self) -> &str;

    /// How many values there are under each key.
    ///
    /// # Errors
    /// Whatever keeps the place from being asked.
    ///
    /// # Cancel safety
    /// Must be safe: it only reads.
    async fn census(&self) -> Result<Census, Error>;

    /// How many values there are of this kind, those that others hold locked included.
    ///
    /// # Errors
    /// Whatever keeps the place from being asked.
    ///
    /// # Cancel safety
    /// Must be safe: it only reads.
    async fn count(&self, wanted: Wanted) -> Result<u64, Error>;

    /// Shows a page of values to `decide`, and writes what it returns.
    ///
    /// `decide` computes and does not wait. It may be called again for the same value when a page is tried again.
    ///
    /// # Errors
    /// Whatever keeps the page from being read or written; nothing of it is then written, unless the commit itself was
    /// cut off. [`TransactionConflict`](crate::error::ErrorKind::TransactionConflict) means that the same page may be
    /// tried again at once.
    ///
    /// # Cancel safety
    /// Must be safe: the page is written whole or not at all.
    async fn visit(&self, page: &Visit<'_>, decide: &mut Decide<'_>) -> Result<Visited, Error>;
}

/// Decides about a value that a store shows.
pub type Decide<'a> = dyn FnMut(&StoredValue<'_>) -> Decision + Send + 'a;

/// A shared one is one.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: SealedStore + ?Sized> SealedStore for Arc<T> {
    fn name(&self) -> &str {
        T::name(self)
    }

    async fn census(&self) -> Result<Census, Error> {
        T::census(self).await
    }

    async fn count(&self, wanted: Wanted) -> Result<u64, Error> {
        T::count(self, wanted).await
    }

    async fn visit(&self, page: &Visit<'_>, decide: &mut Decide<'_>) -> Result<Visited, Error> {
        T::visit(self, page, decide).await
    }
}

/// Which values a page shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Wanted {
    /// Every value, sealed or not.
    All,
    /// Those that are not sealed under this key, unsealed ones included.
    NotUnder(KeyId),
    /// Those that are still to be imported from an older system.
    ToImport,
}

impl Wanted {
    /// Whether a value in its sealed place is of this kind. A store that keeps values of an older system in another
    /// place than sealed ones decides for [`Wanted::ToImport`] by itself.
    #[must_use]
    pub fn includes(self, text: &str) -> bool {
        match self {
            Self::All => true,
            Self::NotUnder(key) => key_of(text) != Some(key),
            Self::ToImport => !text.starts_with(SEALED),
        }
    }
}

/// Whether a page may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Reads, and takes no lock.
    Look,
    /// Locks the rows that it shows, passing over those that others hold, and writes.
    Change,
}

/// Which page.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Visit<'a> {
    /// Which values.
    pub wanted: Wanted,
    /// Whether it may be written to.
    pub mode: Mode,
    /// Where the page before ended.
    pub after: Option<&'a Cursor>,
    /// How many rows it has at most.
    pub limit: NonZeroU32,
}

impl<'a> Visit<'a> {
    /// The page of at most so many rows that follows this position, or the first one.
    #[must_use]
    pub const fn new(wanted: Wanted, mode: Mode, after: Option<&'a Cursor>, limit: NonZeroU32) -> Self {
        Self {
            wanted,
            mode,
            after,
            limit,
        }
    }
}

/// Where a page ended: the key of its last row, in a form that the store understands.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Cursor(Box<str>);

impl Cursor {
    /// A position.
    #[must_use]
    pub fn new(key: impl Into<Box<str>>) -> Self {
        Self(key.into())
    }

    /// What it was made of.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cursor(…)")
    }
}

/// A value that a store shows. `Debug` prints whose it is, and no byte of it: what should be sealed may not be.
#[derive(Clone, Copy)]
pub struct StoredValue<'a> {
    purpose: &'a str,
    owner: &'a str,
    field: &'a str,
    label: &'a str,
    text: &'a str,
}

impl<'a> StoredValue<'a> {
    /// The text of a value, and the three parts of the [`Context`] in which it is to open.
    #[must_use]
    pub const fn new(purpose: &'a str, owner: &'a str, field: &'a str, text: &'a str) -> Self {
        Self {
            purpose,
            owner,
            field,
            label: field,
            text,
        }
    }

    /// Reports call the field this, where its name alone does not say enough.
    #[must_use]
    pub const fn labelled(mut self, label: &'a str) -> Self {
        self.label = label;
        self
    }

    /// What reports call the field.
    #[must_use]
    pub const fn label(&self) -> &'a str {
        self.label
    }

    /// Where it is to open.
    ///
    /// # Errors
    /// [`KeyringError::TooLarge`].
    pub fn context(&self) -> Result<Context<'a>, KeyringError> {
        Context::new(self.purpose, self.owner, self.field)
    }

    /// Whose it is.
    #[must_use]
    pub const fn owner(&self) -> &'a str {
        self.owner
    }

    /// Which of the owner's values.
    #[must_use]
    pub const fn field(&self) -> &'a str {
        self.field
    }

    /// The value as it is stored.
    #[must_use]
    pub const fn text(&self) -> &'a str {
        self.text
    }

    /// The key that the value says it is sealed under; `None` when it is not sealed in this version of the format.
    #[must_use]
    pub fn key_id(&self) -> Option<KeyId> {
        key_of(self.text)
    }
}

impl Debug for StoredValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredValue")
            .field("owner", &self.owner)
            .field("field", &self.field)
            .field("key", &self.key_id())
            .finish_non_exhaustive()
    }
}

/// What becomes of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// It stays as it is.
    Keep,
    /// This takes its place.
    Replace(SealedText),
}

/// What became of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Visited {
    /// How many values were written. Of those that were to be, the others had changed since they were shown.
    pub written: u64,
    /// Where the next page begins; `None` when this was the last of the pass.
    pub next: Option<Cursor>,
}

impl Visited {
    /// A page in which so many values were written, and which ended here.
    #[must_use]
    pub const fn new(written: u64, next: Option<Cursor>) -> Self {
        Self { written, next }
    }
}

/// How many values there are under each key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    keys: BTreeMap<KeyId, u64>,
    unsealed: u64,
}

impl Census {
    /// Counts more values: under a key, or not sealed in this version of the format.
    pub fn add(&mut self, key: Option<KeyId>, values: u64) {
        match key {
            Some(key) => *self.keys.entry(key).or_default() += values,
            None => self.unsealed += values,
        }
    }

    /// How many values are sealed under this key.
    #[must_use]
    pub fn under(&self, key: KeyId) -> u64 {
        self.keys.get(&key).copied().unwrap_or_default()
    }

    /// The keys that values are sealed under, in ascending order, with their numbers of values.
    pub fn keys(&self) -> impl Iterator<Item = (KeyId, u64)> + '_ {
        self.keys.iter().map(|(key, values)| (*key, *values))
    }

    /// How many values are not sealed, or not in a version that this release knows.
    #[must_use]
    pub const fn unsealed(&self) -> u64 {
        self.unsealed
    }

    /// How many values there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.keys.values().sum::<u64>() + self.unsealed
    }
}

/// The key that a text says it is sealed under.
pub(super) fn key_of(text: &str) -> Option<KeyId> {
    text.strip_prefix(SEALED)?.split_once('.')?.0.parse().ok()
}
