//! Writing tenants and data sources.

use std::{
    fmt::{self, Debug},
    num::NonZeroU32,
    sync::Arc,
    time::SystemTime,
};

use async_trait::async_trait;

use super::Subject;
use crate::{
    error::Error,
    tenant::{
        Counted, CredentialVersion, DataSource, DataSourceId, DatabaseId, Domain, Isolation, Location,
        PoolSettings, Role, RoleCredentials, SealedText, Slug, StoredCredential, Tenant, TenantId,
        TenantStatus, Version,
    },
};

/// Who changes something, and why. Both are kept in the audit, so neither may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Actor {
    /// A person or a service.
    pub name: Arc<str>,
    /// The reason, such as a ticket.
    pub reason: Arc<str>,
}

impl Actor {
    /// An actor with a reason. A backend refuses an empty one of either.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, reason: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            reason: reason.into(),
        }
    }
}

/// Changes what the control plane knows. A router never needs this.
///
/// # Contract
/// - Every change of an existing record is a compare-and-set on the version that the caller read; of two writers one
///   wins and the other gets [`VersionConflict`](crate::error::ErrorKind::VersionConflict).
/// - A change is whole or did not happen, and appends one entry or more to the change log and one to the audit in the
///   same transaction. What leaves every fact as it was (the same settings again, a domain that the tenant already has)
///   succeeds without raising the version and without entries.
/// - A deleted tenant stays as it is: everything but a change of status is refused with
///   [`Inactive`](crate::error::ErrorKind::Inactive).
/// - Status follows the edges of [`TenantStatus::can_become`]; versions and epochs only rise.
/// - A database is one tenant's alone in [`Isolation::Database`]: no second tenant can be placed on its data source
///   until that tenant is deleted.
///
/// Each method fails with [`UnknownTenant`](crate::error::ErrorKind::UnknownTenant) or
/// [`UnknownDataSource`](crate::error::ErrorKind::UnknownDataSource) when what it changes does not exist, with
/// [`InvalidInput`](crate::error::ErrorKind::InvalidInput) for a value that the control plane does not accept, and with
/// [`ControlPlaneUnavailable`](crate::error::ErrorKind::ControlPlaneUnavailable) when it could not be asked.
///
/// # Cancel safety
/// A cancelled change is whole or did not happen, but the caller does not know which: read the record again.
#[async_trait]
pub trait TenantAdmin: Debug + Send + Sync + 'static {
    /// Adds a data source without credentials.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::error::ErrorKind::AlreadyExists) when the id, the name or the `database_id` is taken.
    async fn create_source(&self, by: &Actor, source: NewSource) -> Result<DataSource, Error>;

    /// Finds a data source by its name, its sealed credentials included.
    ///
    /// # Errors
    /// [`MalformedRecord`](crate::error::ErrorKind::MalformedRecord).
    async fn source(&self, name: &str) -> Result<Option<DataSource>, Error>;

    /// Changes address, pool settings or identity of a data source.
    ///
    /// # Errors
    /// [`VersionConflict`](crate::error::ErrorKind::VersionConflict).
    async fn update_source(
        &self,
        by: &Actor,
        id: DataSourceId,
        expected: Version,
        change: SourceChange,
    ) -> Result<DataSource, Error>;

    /// Stores a sealed credential of a data source and role in a slot; its version is one above every version that this
    /// source and role ever had. `expected` is the version in the slot, or `None` when the slot is empty.
    ///
    /// # Errors
    /// [`VersionConflict`](crate::error::ErrorKind::VersionConflict);
    /// [`InvalidInput`](crate::error::ErrorKind::InvalidInput) when the text is not a sealed value, or a next credential
    /// is to be stored where there is no current one.
    async fn set_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        slot: CredentialSlot,
        expected: Option<CredentialVersion>,
        sealed: SealedText,
    ) -> Result<CredentialVersion, Error>;

    /// Makes the prepared credential of a data source and role the current one, and empties the slot of the next one, in one
    /// change; its version is one above every version that this source and role ever had. `current` and `next` are the
    /// versions that the caller looked at in the two slots: what is promoted is what was checked, and nothing else.
    ///
    /// # Errors
    /// [`VersionConflict`](crate::error::ErrorKind::VersionConflict) when a slot holds another version, or none.
    async fn promote_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        current: CredentialVersion,
        next: CredentialVersion,
    ) -> Result<CredentialVersion, Error>;

    /// Empties the slot of the next credential of a data source and role, which held the version `next`: a rotation that is
    /// given up.
    ///
    /// # Errors
    /// [`VersionConflict`](crate::error::ErrorKind::VersionConflict) when it holds another version, or none.
    async fn discard_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        next: CredentialVersion,
    ) -> Result<(), Error>;

    /// Adds a tenant, in status [`Provisioning`](TenantStatus::Provisioning), at version 1 and epoch 1.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::error::ErrorKind::AlreadyExists) when the id, the slug or a domain is taken;
    /// [`InvalidInput`](crate::error::ErrorKind::InvalidInput) when the placement would put two tenants into one
    /// database that is one tenant's alone, or the settings are not a JSON object.
    async fn create(&self, by: &Actor, tenant: NewTenant) -> Result<Tenant, Error>;

    /// Gives a tenant another slug. The old one is free for others, whose name then has a higher version.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::error::ErrorKind::AlreadyExists),
    /// [`VersionConflict`](crate::error::ErrorKind::VersionConflict).
    async fn rename(&self, by: &Actor, id: TenantId, expected: Version, slug: Slug) -> Result<Tenant, Error>;

    /// Changes a tenant's status.
    ///
    /// # Errors
    /// [`ForbiddenTransition`](crate::error::ErrorKind::ForbiddenTransition),
    /// [`VersionConflict`](crate::error::ErrorKind::VersionConflict).
    async fn set_status(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        status: TenantStatus,
    ) -> Result<Tenant, Error>;

    /// Says where a tenant's rows are; the epoch rises by one.
    ///
    /// # Errors
    /// [`VersionConflict`](crate::error::ErrorKind::VersionConflict), and
    /// [`InvalidInput`](crate::error::ErrorKind::InvalidInput) as for [`TenantAdmin::create`].
    async fn place(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        source: DataSourceId,
        isolation: Isolation,
    ) -> Result<Tenant, Error>;

    /// Replaces a tenant's settings, a JSON object.
    ///
    /// # Errors
    /// [`VersionConflict`](crate::error::ErrorKind::VersionConflict).
    async fn set_settings(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        settings: serde_json::Value,
    ) -> Result<Tenant, Error>;

    /// Gives a tenant a custom domain.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::error::ErrorKind::AlreadyExists) when another tenant has it,
    /// [`VersionConflict`](crate::error::ErrorKind::VersionConflict).
    async fn add_domain(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        domain: Domain,
    ) -> Result<Tenant, Error>;

    /// Takes a custom domain from a tenant; others may then have it.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::error::ErrorKind::InvalidInput) when the tenant does not have it,
    /// [`VersionConflict`](crate::error::ErrorKind::VersionConflict).
    async fn remove_domain(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        domain: &Domain,
    ) -> Result<Tenant, Error>;

    /// Deletes a tenant: the record stays as a tombstone, its slug stays reserved, its domains are free.
    ///
    /// # Errors
    /// [`ForbiddenTransition`](crate::error::ErrorKind::ForbiddenTransition) unless the tenant is archived or still
    /// being provisioned, [`VersionConflict`](crate::error::ErrorKind::VersionConflict).
    async fn delete(&self, by: &Actor, id: TenantId, expected: Version) -> Result<Tenant, Error>;

    /// Lets everything that was committed before this through the brakes of all routers, also what they have not seen
    /// yet: those that hold changes apply them, and those that would have do not begin to.
    ///
    /// # Errors
    /// Those of every method.
    async fn release_brake(&self, by: &Actor) -> Result<(), Error>;

    /// Freezes routing in all processes: open tenants that are cached stay where they are, until
    /// [`thaw`](TenantAdmin::thaw). Others are loaded as usual.
    ///
    /// # Errors
    /// Those of every method.
    async fn freeze(&self, by: &Actor) -> Result<(), Error>;

    /// Lets routing go on: whatever has changed since it was frozen acts.
    ///
    /// # Errors
    /// Those of every method.
    async fn thaw(&self, by: &Actor) -> Result<(), Error>;

    /// The latest audit entries about a tenant or, with `None`, about everything; newest first.
    ///
    /// # Errors
    /// Those of every method.
    async fn audit(&self, tenant: Option<TenantId>, limit: NonZeroU32) -> Result<Vec<AuditEntry>, Error>;
}

/// A data source to be added.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewSource {
    /// Its id.
    pub id: DataSourceId,
    /// What people call it: 1 to 63 letters, digits, `-`, `_` and `.`.
    pub name: Arc<str>,
    /// Where it is.
    pub location: Location,
    /// Limits per process.
    pub pool: PoolSettings,
    /// What the database must say it is.
    pub database_id: Option<DatabaseId>,
}

impl NewSource {
    /// A data source with a new id, default pool settings and no `database_id`.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, location: Location) -> Self {
        Self {
            id: DataSourceId::new(),
            name: name.into(),
            location,
            pool: PoolSettings::default(),
            database_id: None,
        }
    }
}

/// What to change about a data source; `None` leaves a part as it is.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SourceChange {
    /// Where it is.
    pub location: Option<Location>,
    /// Limits per process.
    pub pool: Option<PoolSettings>,
    /// What the database must say it is.
    pub database_id: Option<DatabaseId>,
}

impl SourceChange {
    /// Says where it is.
    #[must_use]
    pub fn location(mut self, location: Location) -> Self {
        self.location = Some(location);
        self
    }

    /// Limits its connections per process.
    #[must_use]
    pub fn pool(mut self, pool: PoolSettings) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Says what the database must say it is.
    #[must_use]
    pub fn database_id(mut self, database_id: DatabaseId) -> Self {
        self.database_id = Some(database_id);
        self
    }

    /// The data source with this change, at the version that it had.
    pub(super) fn applied_to(self, source: &DataSource) -> DataSource {
        let mut changed = source.clone();
        if let Some(location) = self.location {
            changed.location = location;
        }
        if let Some(pool) = self.pool {
            changed.pool = pool;
        }
        if let Some(database_id) = self.database_id {
            changed.database_id = Some(database_id);
        }
        changed
    }
}

/// Which of a role's two credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CredentialSlot {
    /// The one in use.
    Current,
    /// The one that a rotation has prepared.
    Next,
}

impl CredentialSlot {
    /// The name used in SQL and in the audit.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Next => "next",
        }
    }

    /// What is in this slot of a role's.
    pub(crate) fn of(self, logins: Option<&RoleCredentials>) -> Option<&StoredCredential> {
        logins.and_then(|logins| match self {
            Self::Current => Some(&logins.current),
            Self::Next => logins.next.as_ref(),
        })
    }
}

/// A tenant to be added.
///
/// `Debug` prints how many settings there are and none of them.
#[derive(Clone)]
#[non_exhaustive]
pub struct NewTenant {
    /// Its id.
    pub id: TenantId,
    /// Its slug.
    pub slug: Slug,
    /// Its custom domains.
    pub domains: Vec<Domain>,
    /// The data source of its rows.
    pub source: DataSourceId,
    /// What keeps them apart.
    pub isolation: Isolation,
    /// Free-form settings, a JSON object.
    pub settings: serde_json::Value,
}

impl NewTenant {
    /// A tenant with a new id, in a database of its own, without domains and settings.
    #[must_use]
    pub fn new(slug: Slug, source: DataSourceId) -> Self {
        Self {
            id: TenantId::new(),
            slug,
            domains: Vec::new(),
            source,
            isolation: Isolation::Database,
            settings: serde_json::Value::Object(serde_json::Map::new()),
        }
    }
}

impl Debug for NewTenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewTenant")
            .field("id", &self.id)
            .field("slug", &self.slug)
            .field("domains", &self.domains)
            .field("source", &self.source)
            .field("isolation", &self.isolation)
            .field("settings", &Counted(&self.settings))
            .finish()
    }
}

/// An entry of the audit: append-only, and without secrets.
///
/// `Debug` prints the names of what changed, without the values.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct AuditEntry {
    /// When, by the control plane's clock.
    pub at: SystemTime,
    /// Who.
    pub actor: Arc<str>,
    /// Why.
    pub reason: Arc<str>,
    /// The tenant it is about, if it is about one.
    pub tenant: Option<TenantId>,
    /// The data source it is about, if it is about one.
    pub source: Option<DataSourceId>,
    /// What changed: the names of the changed facts with their values before and after, credentials as versions only:
    /// `{"status": {"before": "active", "after": "suspended"}}`, `{"credential.app.current": {"before": 1, "after": 2}}`,
    /// `{"frozen": {"before": false, "after": true}}`, `{"brake": {"before": null, "after": "released"}}`.
    pub changed: serde_json::Value,
}

impl AuditEntry {
    /// An entry.
    #[must_use]
    pub fn new(at: SystemTime, by: Actor, subject: Subject, changed: serde_json::Value) -> Self {
        let (tenant, source) = match subject {
            Subject::Tenant(tenant) => (Some(tenant), None),
            Subject::Source(source) => (None, Some(source)),
            Subject::Routing => (None, None),
        };
        Self {
            at,
            actor: by.name,
            reason: by.reason,
            tenant,
            source,
            changed,
        }
    }
}

impl Debug for AuditEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self
            .changed
            .as_object()
            .into_iter()
            .flat_map(serde_json::Map::keys);
        f.debug_struct("AuditEntry")
            .field("at", &self.at)
            .field("actor", &self.actor)
            .field("reason", &self.reason)
            .field("tenant", &self.tenant)
            .field("source", &self.source)
            .field("changed", &names.collect::<Vec<_>>())
            .finish()
    }
}
