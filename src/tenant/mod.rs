//! Names and records: who the tenants are and where their data lives. Parsing only, no I/O.

mod counter;
mod domain;
mod id;
mod name;
mod placement;
mod record;
mod slug;
mod source;
mod status;

pub use counter::{CredentialVersion, Epoch, Seq, Version};
pub use domain::{Domain, DomainError};
pub use id::{DataSourceId, DatabaseId, IdError, Incarnation, InstanceId, TenantId};
pub use name::{TenantName, TenantRef};
pub use placement::{Isolation, Placement, UnknownIsolation};
pub(crate) use record::Counted;
pub use record::{Resolved, Tenant, TenantRecord};
pub use slug::{Slug, SlugError};
pub use source::{
    CaCertificate, DataSource, Endpoint, Location, PoolSettings, PoolSettingsError, Pooler, Role,
    RoleCredentials, SealedText, Server, StoredCredential, Tls, TlsMode, UnknownRole, UnknownTlsMode,
};
pub use status::{Access, TenantStatus, UnknownStatus};
