//! What an override file comes to, once its data sources are known.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    Overrides,
    document::{Entry, Listed, LoginOf},
    value::refused,
};
use crate::{
    error::Error,
    tenant::{
        DataSource, DatabaseId, Isolation, Location, Placement, Tenant, TenantId, TenantName, TenantRecord,
        TenantStatus, Version,
    },
};

/// The overrides that are in force, all of one file.
#[derive(Debug, Default)]
pub(in crate::router) struct InForce {
    pub(in crate::router) tenants: BTreeMap<TenantId, Override>,
    /// The names that the file gives to tenants whom it can serve by itself.
    names: HashMap<TenantName, TenantId>,
    /// How much had been heard of the control plane's data sources when those that it rests on were looked up, if there are
    /// any.
    heard: Option<u64>,
}

/// What is said of one tenant instead of what the control plane says.
#[derive(Debug, PartialEq)]
pub(in crate::router) struct Override {
    place: Place,
    status: Option<TenantStatus>,
    /// The tenant, for whom the control plane knows nothing of.
    whole: Option<Tenant>,
}

#[derive(Debug, PartialEq)]
enum Place {
    /// A data source as it is.
    Source(Arc<DataSource>),
    /// Another server, with the login of a data source: of this one, or of the tenant's.
    Server {
        location: Location,
        database_id: Option<DatabaseId>,
        login: Option<Arc<DataSource>>,
    },
}

impl InForce {
    /// What a file says, with the data sources of the control plane that it names, looked up when so much had been heard.
    pub(super) fn new(
        file: &Overrides,
        known: &HashMap<Arc<str>, Arc<DataSource>>,
        heard: u64,
    ) -> Result<Self, Error> {
        let mut force = Self::default();
        for entry in &file.tenants {
            let place = match file.sources.get(&*entry.source) {
                Some(listed) => place(listed, known)?,
                None => Place::Source(named(&entry.source, known)?),
            };
            let whole = place.source().and_then(|source| whole(entry, source));
            if let Some(tenant) = &whole {
                let slug = TenantName::Slug(tenant.slug);
                let domains = tenant.domains.iter().cloned().map(TenantName::Domain);
                let names = [TenantName::Id(tenant.id), slug].into_iter().chain(domains);
                force.names.extend(names.map(|name| (name, tenant.id)));
            }
            let said = Override {
                place,
                status: entry.status,
                whole,
            };
            force.tenants.insert(entry.tenant, said);
        }
        force.heard = (!known.is_empty()).then_some(heard);
        Ok(force)
    }

    /// Whom the file gives a name to, if it can serve that tenant by itself.
    pub(in crate::router) fn named(&self, name: &TenantName) -> Option<TenantId> {
        self.names.get(name).copied()
    }

    pub(in crate::router) fn names(&self) -> impl Iterator<Item = (&TenantName, TenantId)> {
        self.names.iter().map(|(name, tenant)| (name, *tenant))
    }

    /// Whether a data source that it rests on may have changed since, now that so much was heard.
    pub(in crate::router) fn is_outdated(&self, heard: u64) -> bool {
        self.heard.is_some_and(|then| then != heard)
    }
}

impl Override {
    /// The record of a tenant as it is served. Whatever the file does not say stays as the control plane says it; above
    /// all a status that lets nothing through.
    pub(in crate::router) fn applied_to(&self, base: &TenantRecord) -> Arc<TenantRecord> {
        let mut tenant = base.tenant.clone();
        tenant.status = self.status.unwrap_or(tenant.status);
        if cfg!(biplane_mutant = "overrides_resurrect") {
            tenant.status = TenantStatus::Active;
        }
        let (mut source, said) = match &self.place {
            Place::Source(source) => (DataSource::clone(source), source.database_id),
            Place::Server {
                location,
                database_id,
                login,
            } => {
                let mut source = DataSource::clone(login.as_ref().unwrap_or(&base.source));
                source.location = location.clone();
                (source, *database_id)
            }
        };
        source.database_id = said.or(base.source.database_id);
        if cfg!(biplane_mutant = "overrides_are_not_fenced") {
            source.database_id = None;
        }
        tenant.placement.source = source.id;
        Arc::new(TenantRecord::new(tenant, Arc::new(source)))
    }

    /// The record of a tenant of whom the control plane says nothing, if the file says enough.
    pub(in crate::router) fn record(&self) -> Option<Arc<TenantRecord>> {
        let tenant = self.whole.clone()?;
        let source = self.place.source()?;
        Some(Arc::new(TenantRecord::new(tenant, source)))
    }
}

impl Place {
    /// The data source, if it is the same for every tenant.
    fn source(&self) -> Option<Arc<DataSource>> {
        match self {
            Self::Source(source) => Some(Arc::clone(source)),
            Self::Server {
                location,
                database_id,
                login,
            } => {
                let mut source = DataSource::clone(login.as_ref()?);
                source.location = location.clone();
                source.database_id = database_id.or(source.database_id);
                Some(Arc::new(source))
            }
        }
    }
}

fn place(listed: &Listed, known: &HashMap<Arc<str>, Arc<DataSource>>) -> Result<Place, Error> {
    let location = Location::Server(listed.server.clone());
    let login = match &listed.login {
        LoginOf::Itself(id, credentials) => {
            let mut source = DataSource::new(*id, Arc::clone(&listed.name), location);
            source.database_id = listed.database_id;
            source.credentials = credentials.clone();
            return Ok(Place::Source(Arc::new(source)));
        }
        LoginOf::Source(name) => Some(named(name, known)?),
        LoginOf::Tenant => None,
    };
    Ok(Place::Server {
        location,
        database_id: listed.database_id,
        login,
    })
}

fn named(name: &str, known: &HashMap<Arc<str>, Arc<DataSource>>) -> Result<Arc<DataSource>, Error> {
    let source = known.get(name).cloned();
    // A name is looked for, and so may be a password that was put in its place.
    source.ok_or_else(|| {
        refused(
            "",
            "it names a data source that is neither in it nor known to the control plane",
        )
    })
}

fn whole(entry: &Entry, source: Arc<DataSource>) -> Option<Tenant> {
    let mut placement = Placement::new(source.id, Isolation::Database);
    placement.epoch = entry.epoch.unwrap_or(placement.epoch);
    let mut tenant = Tenant::new(entry.tenant, entry.slug?, placement);
    tenant.domains.clone_from(&entry.domains);
    tenant.domains.sort_unstable();
    tenant.status = entry.status?;
    // Below every version that a control plane gives.
    tenant.version = Version::ZERO;
    Some(tenant)
}
