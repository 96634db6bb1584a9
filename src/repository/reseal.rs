//! Sealing stored credentials anew, under another key.

use std::{cmp::Ordering, fmt::Debug, num::NonZeroU32, sync::Arc};

use async_trait::async_trait;

use super::{Actor, CredentialSlot};
use crate::{
    error::Error,
    tenant::{CredentialVersion, DataSourceId, Role, SealedText},
};

/// Reads every sealed credential of the control plane, and replaces those that were sealed anew.
///
/// It exists for what is done to all of them at once, a rotation of keys and a check that they open, and is apart from
/// [`TenantAdmin`](super::TenantAdmin) because neither changes what a credential *is*: the login stays, so its version
/// stays, and no pool connects anew.
///
/// # Contract
/// - A credential is replaced only where the slot still holds what the caller read. Who changed it meanwhile wins, and
///   who is about to may win.
/// - The version of the credential stays. That of its data source rises with each one, and the change log gets an entry of
///   kind [`Credential`](super::ChangeKind::Credential), so that routers take up the new text and leave the old key alone.
/// - The audit names the keys: `{"credential.app.current.key": {"before": "…", "after": "…"}}`.
/// - A batch is one change: whole or not at all.
#[async_trait]
pub trait CredentialStore: Debug + Send + Sync + 'static {
    /// The sealed credentials that come after a place, in the order of [`CredentialPlace`], `limit` at most; beginning at
    /// the first one with `None`. One that was there all the time is on exactly one page, whatever changes meanwhile.
    ///
    /// # Errors
    /// [`ControlPlaneUnavailable`](crate::error::ErrorKind::ControlPlaneUnavailable) when nothing could be asked;
    /// [`MalformedRecord`](crate::error::ErrorKind::MalformedRecord) of a role or slot that nobody knows: left out, it
    /// would look like one that is done.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    async fn sealed_credentials(
        &self,
        after: Option<CredentialPlace>,
        limit: NonZeroU32,
    ) -> Result<Vec<SealedCredential>, Error>;

    /// Replaces credentials by what was sealed anew, and says of each, in the order given, what became of it.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::error::ErrorKind::InvalidInput) without actor or reason, or when one of the new texts is
    /// not a sealed value; [`VersionConflict`](crate::error::ErrorKind::VersionConflict) when another transaction was in
    /// the way, and the batch may be tried again; [`MissingPrivilege`](crate::error::ErrorKind::MissingPrivilege);
    /// [`ControlPlaneUnavailable`](crate::error::ErrorKind::ControlPlaneUnavailable). Nothing was changed then.
    ///
    /// # Cancel safety
    /// A cancelled batch is whole or did not happen. It may be given again: what it replaced is then
    /// [`Changed`](ResealOutcome::Changed).
    async fn reseal_credentials(&self, by: &Actor, batch: &[Reseal]) -> Result<Vec<ResealOutcome>, Error>;

    /// Says in the audit that somebody opens a credential, and gives it, still sealed, once that is stored for good. Nothing
    /// has changed, so the change log gets no entry. [`open_credential`](super::open_credential) opens what this gives.
    ///
    /// The audit names the version and the key: `{"credential.app.current.opened": {"version": 3, "key": "…"}}`.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::error::ErrorKind::InvalidInput) without actor or reason;
    /// [`UnknownDataSource`](crate::error::ErrorKind::UnknownDataSource);
    /// [`MissingCredential`](crate::error::ErrorKind::MissingCredential) when the slot is empty, and then nothing is
    /// written; [`MissingPrivilege`](crate::error::ErrorKind::MissingPrivilege);
    /// [`ControlPlaneUnavailable`](crate::error::ErrorKind::ControlPlaneUnavailable).
    ///
    /// # Cancel safety
    /// A cancelled call gives nothing; the audit may say that it was made.
    async fn record_opening(&self, by: &Actor, place: CredentialPlace) -> Result<SealedCredential, Error>;
}

/// A shared one is one.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: CredentialStore + ?Sized> CredentialStore for Arc<T> {
    async fn sealed_credentials(
        &self,
        after: Option<CredentialPlace>,
        limit: NonZeroU32,
    ) -> Result<Vec<SealedCredential>, Error> {
        T::sealed_credentials(self, after, limit).await
    }

    async fn reseal_credentials(&self, by: &Actor, batch: &[Reseal]) -> Result<Vec<ResealOutcome>, Error> {
        T::reseal_credentials(self, by, batch).await
    }

    async fn record_opening(&self, by: &Actor, place: CredentialPlace) -> Result<SealedCredential, Error> {
        T::record_opening(self, by, place).await
    }
}

/// Where a credential is kept. Ordered by the id of the data source, then by the names of role and slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CredentialPlace {
    /// Whose it is.
    pub source: DataSourceId,
    /// For what.
    pub role: Role,
    /// Which of the two.
    pub slot: CredentialSlot,
}

impl CredentialPlace {
    /// A place.
    #[must_use]
    pub const fn new(source: DataSourceId, role: Role, slot: CredentialSlot) -> Self {
        Self { source, role, slot }
    }

    const fn in_order(&self) -> (DataSourceId, &'static str, &'static str) {
        (self.source, self.role.as_str(), self.slot.as_str())
    }
}

impl Ord for CredentialPlace {
    fn cmp(&self, other: &Self) -> Ordering {
        self.in_order().cmp(&other.in_order())
    }
}

impl PartialOrd for CredentialPlace {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A stored credential.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SealedCredential {
    /// Where it is kept.
    pub place: CredentialPlace,
    /// What people call its data source.
    pub source_name: Arc<str>,
    /// Its version.
    pub version: CredentialVersion,
    /// The sealed value, as found.
    pub sealed: SealedText,
}

impl SealedCredential {
    /// A stored credential.
    #[must_use]
    pub fn new(
        place: CredentialPlace,
        source_name: impl Into<Arc<str>>,
        version: CredentialVersion,
        sealed: SealedText,
    ) -> Self {
        Self {
            place,
            source_name: source_name.into(),
            version,
            sealed,
        }
    }
}

/// A credential that was sealed anew.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reseal {
    /// Where it is kept.
    pub place: CredentialPlace,
    /// What was read there.
    pub before: SealedText,
    /// The same login, sealed under another key.
    pub after: SealedText,
}

impl Reseal {
    /// A credential that was sealed anew. That both open to the same login is for the caller to check: the control plane
    /// has no key.
    #[must_use]
    pub const fn new(place: CredentialPlace, before: SealedText, after: SealedText) -> Self {
        Self { place, before, after }
    }
}

/// What became of a credential that was sealed anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResealOutcome {
    /// The slot holds the new text.
    Replaced,
    /// The slot did not hold the text that was read, or somebody is changing it right now. Read it again.
    Changed,
}
