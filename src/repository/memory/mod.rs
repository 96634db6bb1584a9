//! The control plane in the memory of one process, under the same rules as in Postgres.

mod instances;
mod state;

use std::{
    fmt,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    error::{Error, ErrorKind},
    tenant::{
        CredentialVersion, DataSource, DataSourceId, Domain, Incarnation, InstanceId, Isolation, Role,
        SealedText, Seq, Slug, Tenant, TenantId, TenantRef, TenantStatus, Version,
    },
};

use super::{
    Actor, AuditEntry, Beat, ChangeHead, ChangeHint, ChangeListener, ChangeLog, ChangePush, ChangeSource,
    Changes, CredentialPlace, CredentialSlot, CredentialStore, Found, Instance, Instances, NewSource,
    NewTenant, Page, Reseal, ResealOutcome, SealedCredential, SourceChange, TenantAdmin, TenantRepository,
    rules::{self, Edit},
};
use state::State;

/// A control plane without a server: tenants, names, data sources, change log and audit in memory, gone with the process.
///
/// It exists so that services and tests run with nothing installed, and refuses whatever the Postgres backend refuses,
/// with the same kinds of error; both pass the same conformance suite. Like a fresh Postgres control plane it holds the
/// data source named `default`, whose address comes from the environment.
///
/// A clone is another handle on the same control plane.
#[derive(Clone)]
pub struct MemoryControl {
    state: Arc<Mutex<State>>,
    /// Where the change log stands, for those who wait for it to grow.
    head: Arc<watch::Sender<ChangeHead>>,
}

impl MemoryControl {
    /// An empty control plane, in a new incarnation.
    #[must_use]
    pub fn new() -> Self {
        let state = State::new();
        Self {
            head: Arc::new(watch::Sender::new(state.head())),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Makes the record of a tenant impossible to understand, as damage in a database would, until
    /// [`MemoryControl::repair`]. For tests of what happens to its neighbours.
    ///
    /// # Errors
    /// [`UnknownTenant`](crate::error::ErrorKind::UnknownTenant).
    pub fn corrupt(&self, tenant: TenantId) -> Result<(), Error> {
        self.with(|state| state.set_malformed(tenant, true))
    }

    /// Undoes [`MemoryControl::corrupt`].
    ///
    /// # Errors
    /// [`UnknownTenant`](crate::error::ErrorKind::UnknownTenant).
    pub fn repair(&self, tenant: TenantId) -> Result<(), Error> {
        self.with(|state| state.set_malformed(tenant, false))
    }

    /// Removes the changes that are older than `keep` from the change log and says how many. Readers that had not yet
    /// seen them are told.
    pub fn prune_changes(&self, keep: Duration) -> u64 {
        self.with(|state| state.prune(keep))
    }

    /// Begins another life of this control plane, as a restored backup would, and returns it.
    pub fn renew_incarnation(&self) -> Incarnation {
        self.with(State::renew_incarnation)
    }

    /// Moves the clock of this control plane on, for tests of what is old or has been silent. Otherwise it goes as the
    /// system's does.
    pub fn advance(&self, by: Duration) {
        self.with(|state| state.advance(by));
    }

    /// The lock is never held across an await. A poisoned one is used on, because every change is checked whole before
    /// anything is written.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let done = work(&mut state);
        let now = state.head();
        self.head
            .send_if_modified(|head| std::mem::replace(head, now) != now);
        done
    }

    fn edit(&self, by: &Actor, id: TenantId, expected: Version, edit: Edit<'_>) -> Result<Tenant, Error> {
        rules::actor(by)?;
        rules::edit(edit)?;
        self.with(|state| state.edit(by, id, expected, edit))
    }
}

impl Default for MemoryControl {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tenants, head) = self.with(|state| (state.tenant_count(), state.head()));
        f.debug_struct("MemoryControl")
            .field("tenants", &tenants)
            .field("head", &head)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl TenantRepository for MemoryControl {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        Ok(self.with(|state| names.iter().map(|name| state.find(name)).collect()))
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        Ok(self.with(|state| state.list(after, limit)))
    }

    async fn find_source(&self, name: &str) -> Result<Option<DataSource>, Error> {
        Ok(self.with(|state| state.source_named(name)))
    }

    async fn unfenced_sources(&self) -> Result<Option<u64>, Error> {
        Ok(Some(self.with(|state| state.unfenced_sources())))
    }

    fn change_source(&self) -> Option<ChangeSource> {
        Some(ChangeSource::pushed(self.clone(), self.clone()))
    }
}

#[async_trait]
impl ChangeLog for MemoryControl {
    async fn head(&self) -> Result<ChangeHead, Error> {
        Ok(self.with(|state| state.head()))
    }

    async fn since(&self, after: Seq, limit: NonZeroU32) -> Result<Changes, Error> {
        Ok(self.with(|state| state.since(after, limit)))
    }
}

#[async_trait]
impl Instances for MemoryControl {
    async fn beat(&self, beat: &Beat) -> Result<(), Error> {
        rules::beat(beat)?;
        self.with(|state| state.beat(beat));
        Ok(())
    }

    async fn leave(&self, instance: InstanceId) -> Result<(), Error> {
        self.with(|state| state.leave(instance));
        Ok(())
    }

    async fn instances(&self) -> Result<Vec<Instance>, Error> {
        Ok(self.with(|state| state.instances()))
    }
}

#[async_trait]
impl CredentialStore for MemoryControl {
    async fn sealed_credentials(
        &self,
        after: Option<CredentialPlace>,
        limit: NonZeroU32,
    ) -> Result<Vec<SealedCredential>, Error> {
        Ok(self.with(|state| state.sealed_credentials(after, limit)))
    }

    async fn reseal_credentials(&self, by: &Actor, batch: &[Reseal]) -> Result<Vec<ResealOutcome>, Error> {
        rules::actor(by)?;
        rules::reseal(batch)?;
        Ok(self.with(|state| batch.iter().map(|one| state.reseal(by, one)).collect()))
    }

    async fn record_opening(&self, by: &Actor, place: CredentialPlace) -> Result<SealedCredential, Error> {
        rules::actor(by)?;
        self.with(|state| state.record_opening(by, place))
    }
}

#[async_trait]
impl ChangePush for MemoryControl {
    async fn listen(&self) -> Result<Box<dyn ChangeListener>, Error> {
        let head = self.head.subscribe();
        let incarnation = head.borrow().incarnation;
        Ok(Box::new(Listener { head, incarnation }))
    }
}

/// Somebody who waits for the change log to grow.
#[derive(Debug)]
struct Listener {
    head: watch::Receiver<ChangeHead>,
    incarnation: Incarnation,
}

#[async_trait]
impl ChangeListener for Listener {
    async fn next(&mut self) -> Result<ChangeHint, Error> {
        // The control plane is gone with its last handle, and then nothing changes any more.
        let gone = |_| Error::new(ErrorKind::ControlPlaneUnavailable);
        self.head.changed().await.map_err(gone)?;
        let head = *self.head.borrow_and_update();
        Ok(match head.incarnation == self.incarnation {
            true => ChangeHint::Reached(head.seq),
            false => ChangeHint::Look,
        })
    }
}

#[async_trait]
impl TenantAdmin for MemoryControl {
    async fn create_source(&self, by: &Actor, source: NewSource) -> Result<DataSource, Error> {
        rules::actor(by)?;
        rules::new_source(&source)?;
        self.with(|state| state.create_source(by, source))
    }

    async fn source(&self, name: &str) -> Result<Option<DataSource>, Error> {
        Ok(self.with(|state| state.source(name)))
    }

    async fn update_source(
        &self,
        by: &Actor,
        id: DataSourceId,
        expected: Version,
        change: SourceChange,
    ) -> Result<DataSource, Error> {
        rules::actor(by)?;
        rules::source_change(&change)?;
        self.with(|state| state.update_source(by, id, expected, change))
    }

    async fn set_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        slot: CredentialSlot,
        expected: Option<CredentialVersion>,
        sealed: SealedText,
    ) -> Result<CredentialVersion, Error> {
        rules::actor(by)?;
        rules::sealed(&sealed)?;
        self.with(|state| state.set_credential(by, source, role, slot, expected, sealed))
    }

    async fn promote_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        current: CredentialVersion,
        next: CredentialVersion,
    ) -> Result<CredentialVersion, Error> {
        rules::actor(by)?;
        self.with(|state| state.promote_credential(by, source, role, (current, next)))
    }

    async fn discard_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        next: CredentialVersion,
    ) -> Result<(), Error> {
        rules::actor(by)?;
        self.with(|state| state.discard_credential(by, source, role, next))
    }

    async fn create(&self, by: &Actor, tenant: NewTenant) -> Result<Tenant, Error> {
        rules::actor(by)?;
        rules::new_tenant(&tenant)?;
        self.with(|state| state.create(by, tenant))
    }

    async fn rename(&self, by: &Actor, id: TenantId, expected: Version, slug: Slug) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::Rename(slug))
    }

    async fn set_status(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        status: TenantStatus,
    ) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::Status(status))
    }

    async fn place(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        source: DataSourceId,
        isolation: Isolation,
    ) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::Place(source, isolation))
    }

    async fn set_settings(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        settings: serde_json::Value,
    ) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::Settings(&settings))
    }

    async fn add_domain(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        domain: Domain,
    ) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::AddDomain(&domain))
    }

    async fn remove_domain(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        domain: &Domain,
    ) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::RemoveDomain(domain))
    }

    async fn delete(&self, by: &Actor, id: TenantId, expected: Version) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::Status(TenantStatus::Deleted))
    }

    async fn release_brake(&self, by: &Actor) -> Result<(), Error> {
        rules::actor(by)?;
        self.with(|state| state.release_brake(by));
        Ok(())
    }

    async fn freeze(&self, by: &Actor) -> Result<(), Error> {
        rules::actor(by)?;
        self.with(|state| state.set_frozen(by, true));
        Ok(())
    }

    async fn thaw(&self, by: &Actor) -> Result<(), Error> {
        rules::actor(by)?;
        self.with(|state| state.set_frozen(by, false));
        Ok(())
    }

    async fn audit(&self, tenant: Option<TenantId>, limit: NonZeroU32) -> Result<Vec<AuditEntry>, Error> {
        Ok(self.with(|state| state.audit(tenant, limit)))
    }
}
