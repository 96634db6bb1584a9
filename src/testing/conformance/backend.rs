//! What a backend under test offers.

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::support::by;
use crate::{
    repository::{
        ChangeLog, ChangePush, CredentialStore, Instances, NewSource, NewTenant, TenantAdmin,
        TenantRepository,
    },
    tenant::{DataSource, Tenant, TenantId, TenantRecord, TenantStatus},
};

/// A control plane, fresh and without tenants for each test, behind the trait that reads.
#[async_trait]
pub trait ReadBackend: Debug + Send + Sync + 'static {
    /// The repository under test.
    fn tenants(&self) -> Arc<dyn TenantRepository>;

    /// Stores these tenants, with their data sources, so that the repository finds them. Versions are the backend's own;
    /// everything else must come back as given. Credentials are not part of it.
    ///
    /// # Panics
    /// When they cannot be stored.
    ///
    /// # Cancel safety
    /// Not needed: the suite does not cancel it.
    async fn seed(&self, tenants: &[TenantRecord]);

    /// Makes what is stored of this tenant impossible to understand, such as a status that nobody knows, and leaves its
    /// names as they are.
    ///
    /// # Panics
    /// When it cannot.
    ///
    /// # Cancel safety
    /// Not needed: the suite does not cancel it.
    async fn spoil(&self, tenant: TenantId);
}

/// A control plane that can be written and followed as well, and knows who lives.
#[async_trait]
pub trait Backend: ReadBackend {
    /// The writing trait under test.
    fn admin(&self) -> Arc<dyn TenantAdmin>;

    /// The change log under test.
    fn changes(&self) -> Arc<dyn ChangeLog>;

    /// The store of sealed credentials under test.
    fn credentials(&self) -> Arc<dyn CredentialStore>;

    /// The presence of instances under test.
    fn instances(&self) -> Arc<dyn Instances>;

    /// Lets time pass by the control plane's clock, as far as instances, their keys and the change log go: moves the clock
    /// on, or what it has written back.
    ///
    /// # Panics
    /// When it cannot.
    ///
    /// # Cancel safety
    /// Not needed: the suite does not cancel it.
    async fn pass(&self, time: Duration);

    /// Removes from the change log what is older than this.
    ///
    /// # Panics
    /// When it cannot.
    ///
    /// # Cancel safety
    /// Not needed: the suite does not cancel it.
    async fn prune(&self, keep: Duration);
}

/// A control plane that also tells when its change log has grown. Not every one can: behind some poolers nobody listens.
#[async_trait]
pub trait PushBackend: Backend {
    /// The push under test, beside the log of [`Backend::changes`].
    fn push(&self) -> Arc<dyn ChangePush>;
}

/// Implements [`ReadBackend::seed`] for whoever has a [`TenantAdmin`]: creates the data sources that are missing and the
/// tenants, and takes each tenant to its status.
///
/// # Panics
/// When a write is refused.
///
/// # Cancel safety
/// Not safe: part of the tenants may have been written.
pub async fn seed_through(admin: &dyn TenantAdmin, tenants: &[TenantRecord]) {
    for record in tenants {
        let known = admin
            .source(&record.source.name)
            .await
            .expect("data sources can be looked up");
        if known.is_none() {
            seed_source(admin, &record.source).await;
        }
        seed_tenant(admin, &record.tenant).await;
    }
}

async fn seed_source(admin: &dyn TenantAdmin, source: &DataSource) {
    let mut new = NewSource::new(Arc::clone(&source.name), source.location.clone());
    new.id = source.id;
    new.pool = source.pool;
    new.database_id = source.database_id;
    admin
        .create_source(&by(), new)
        .await
        .expect("a new data source is accepted");
}

async fn seed_tenant(admin: &dyn TenantAdmin, tenant: &Tenant) {
    let mut new = NewTenant::new(tenant.slug, tenant.placement.source);
    new.id = tenant.id;
    new.domains = tenant.domains.clone();
    new.isolation = tenant.placement.isolation;
    new.settings = tenant.settings.clone();
    let mut stored = admin.create(&by(), new).await.expect("a new tenant is accepted");
    for status in way_to(tenant.status) {
        stored = admin
            .set_status(&by(), stored.id, stored.version, *status)
            .await
            .expect("each step is an edge");
    }
    while stored.placement.epoch < tenant.placement.epoch {
        let place = stored.placement;
        stored = admin
            .place(&by(), stored.id, stored.version, place.source, place.isolation)
            .await
            .expect("a tenant can be placed where it is");
    }
}

/// The statuses to pass through after [`TenantStatus::Provisioning`].
pub(super) const fn way_to(status: TenantStatus) -> &'static [TenantStatus] {
    use TenantStatus::{Active, Archived, Deleted, Migrating, Provisioning, ReadOnly, Suspended};
    match status {
        Provisioning => &[],
        Active => &[Active],
        ReadOnly => &[Active, ReadOnly],
        Suspended => &[Active, Suspended],
        Migrating => &[Active, Migrating],
        Archived => &[Active, Archived],
        Deleted => &[Deleted],
    }
}
