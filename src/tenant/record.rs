//! The records that a repository returns.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{DataSource, Domain, Placement, Slug, TenantId, TenantStatus, Version};

/// What the control plane knows of a tenant.
///
/// `Debug` prints how many settings there are and none of them.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tenant {
    /// Immutable.
    pub id: TenantId,
    /// The current slug.
    pub slug: Slug,
    /// Custom domains, sorted.
    pub domains: Vec<Domain>,
    /// What the tenant may do.
    pub status: TenantStatus,
    /// Where its rows are.
    pub placement: Placement,
    /// Free-form settings that travel with the tenant (a JSON object). The audit keeps them before and after each change,
    /// so they are no place for secrets.
    pub settings: serde_json::Value,
    /// Rises with every change of this tenant.
    pub version: Version,
}

impl Tenant {
    /// A tenant that is being provisioned, at version 1, with no domains and empty settings.
    #[must_use]
    pub fn new(id: TenantId, slug: Slug, placement: Placement) -> Self {
        Self {
            id,
            slug,
            domains: Vec::new(),
            status: TenantStatus::Provisioning,
            placement,
            settings: serde_json::Value::Object(serde_json::Map::new()),
            version: Version::FIRST,
        }
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant")
            .field("id", &self.id)
            .field("slug", &self.slug)
            .field("domains", &self.domains)
            .field("status", &self.status)
            .field("placement", &self.placement)
            .field("settings", &Counted(&self.settings))
            .field("version", &self.version)
            .finish()
    }
}

/// How much there is of what the caller may say anything in, and nothing of it.
pub(crate) struct Counted<'a>(pub(crate) &'a serde_json::Value);

impl fmt::Debug for Counted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if cfg!(biplane_mutant = "settings_are_printed") {
            return self.0.fmt(f);
        }
        match self.0 {
            serde_json::Value::Object(fields) => write!(f, "{{{} of them}}", fields.len()),
            _ => f.write_str("…"),
        }
    }
}

/// A tenant joined with the data source of its placement: all that a route needs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TenantRecord {
    /// The tenant.
    pub tenant: Tenant,
    /// The data source that its placement names; one copy is shared by the tenants of a lookup.
    pub source: Arc<DataSource>,
}

impl TenantRecord {
    /// Joins a tenant with its data source.
    #[must_use]
    pub fn new(tenant: Tenant, source: Arc<DataSource>) -> Self {
        Self { tenant, source }
    }
}

/// What a lookup of one name found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Resolved {
    /// The record.
    pub record: Arc<TenantRecord>,
    /// The version of the name that was looked up, which rises when the name changes hands; `None` for an id.
    pub name_version: Option<Version>,
}

impl Resolved {
    /// Found by id.
    #[must_use]
    pub fn by_id(record: Arc<TenantRecord>) -> Self {
        Self {
            record,
            name_version: None,
        }
    }

    /// Found by a slug or domain whose row has this version.
    #[must_use]
    pub fn by_name(record: Arc<TenantRecord>, name_version: Version) -> Self {
        Self {
            record,
            name_version: Some(name_version),
        }
    }
}
