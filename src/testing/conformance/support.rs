//! What the behaviours share: names, records and short ways to write.

use std::{future::Future, num::NonZeroU32, sync::Arc, time::Duration};

use serde_json::json;

use super::{Backend, ReadBackend, backend::way_to};
use crate::{
    error::{Error, ErrorKind},
    repository::{Actor, CredentialStore, Found, NewSource, NewTenant, TenantAdmin, TenantRepository},
    tenant::{
        CaCertificate, DataSource, DataSourceId, DatabaseId, Domain, Endpoint, Isolation, Location,
        Placement, PoolSettings, Pooler, SealedText, Server, Slug, Tenant, TenantId, TenantRecord, TenantRef,
        TenantStatus, Tls, TlsMode, Version,
    },
};

/// The key that [`sealed`] names.
pub(super) const OLD_KEY: &str = "0123456789abcdef";
pub(super) const NEW_KEY: &str = "fedcba9876543210";

/// Runs a behaviour, and fails it when it has not ended after a minute: no behaviour here takes seconds, so one that
/// does is stuck.
///
/// # Panics
/// When the time is over.
///
/// # Cancel safety
/// That of `behaviour`.
pub async fn within_a_minute(behaviour: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(60), behaviour)
        .await
        .expect("the behaviour ends within a minute");
}

/// Tenants of every status, with and without domains, one alone in its database and the others sharing one by schema and
/// by row; what the reading behaviours [seed](ReadBackend::seed).
#[must_use]
pub fn example_tenants() -> Vec<TenantRecord> {
    let shared = Arc::new(example_source("shared", 1));
    let own = Arc::new(example_source("own", 2));
    // Not in the order in which they are stored, so that the order of a list is told from that of insertion.
    let mut ids: Vec<TenantId> = (0..8).map(|_| TenantId::new()).collect();
    ids.rotate_left(3);
    let mut records: Vec<TenantRecord> = TenantStatus::ALL
        .into_iter()
        .zip(1u16..)
        .zip(&ids)
        .map(|((status, n), id)| {
            let isolation = if n % 2 == 0 {
                Isolation::Schema
            } else {
                Isolation::Row
            };
            let placement = Placement::new(shared.id, isolation);
            let mut tenant = Tenant::new(*id, slug(&format!("tenant-{n}")), placement);
            tenant.status = status;
            tenant.settings = json!({ "colour": "red", "nested": { "limits": [n, 2.5, null, true] } });
            if n % 2 == 1 && status != TenantStatus::Deleted {
                tenant.domains = vec![
                    domain(&format!("a{n}.example")),
                    domain(&format!("xn--bcher-kva.b{n}.example")),
                ];
            }
            TenantRecord::new(tenant, Arc::clone(&shared))
        })
        .collect();
    let mut alone = Tenant::new(ids[7], slug("alone"), Placement::new(own.id, Isolation::Database));
    alone.status = TenantStatus::Active;
    alone.placement.epoch = alone.placement.epoch.next().next();
    records.push(TenantRecord::new(alone, own));
    records
}

/// A data source that uses every field.
pub(super) fn example_source(name: &str, n: u16) -> DataSource {
    let mut source = DataSource::new(
        DataSourceId::new(),
        name,
        Location::Server(example_server(name, n)),
    );
    source.pool = PoolSettings::new(2, 10).expect("2 is at most 10");
    source.database_id = Some(DatabaseId::new());
    source
}

pub(super) fn example_server(name: &str, n: u16) -> Server {
    let mut server = Server::new(
        Endpoint::new(format!("{name}.db.example"), 5432),
        format!("data_{n}"),
    );
    server.endpoints.push(Endpoint::new("2001:db8::1", 6432));
    server.cluster = "east".into();
    server.region = Some("eu-central-1".into());
    server.tls = Tls::new(TlsMode::VerifyFull).ca(CaCertificate::Pem("-----BEGIN CERTIFICATE-----".into()));
    server.pooler = Pooler::Transaction {
        max_prepared_statements: 200,
    };
    server
}

pub(super) fn by() -> Actor {
    Actor::new("conformance", "a test")
}

pub(super) fn slug(text: &str) -> Slug {
    Slug::parse(text).expect("the tests name valid slugs")
}

pub(super) fn domain(text: &str) -> Domain {
    Domain::parse(text).expect("the tests name valid domains")
}

pub(super) fn at_most(limit: u32) -> NonZeroU32 {
    NonZeroU32::new(limit).expect("the tests ask for at least one")
}

/// A text of the form that a sealed credential has, which opens nothing.
pub(super) fn sealed(mark: char) -> SealedText {
    sealed_under(OLD_KEY, mark)
}

/// The same as if sealed under this key.
pub(super) fn sealed_under(key: &str, mark: char) -> SealedText {
    SealedText::new(format!("bp1.{key}.{}", mark.to_string().repeat(100)))
}

#[track_caller]
pub(super) fn expect_kind<T: std::fmt::Debug>(result: Result<T, Error>, kind: ErrorKind) {
    match result {
        Ok(value) => panic!("expected {kind:?}, and it succeeded with {value:?}"),
        Err(error) => assert_eq!(error.kind(), kind, "{error}"),
    }
}

/// Seeds the example tenants and returns them with the repository.
pub(super) async fn seeded(backend: &dyn ReadBackend) -> (Arc<dyn TenantRepository>, Vec<TenantRecord>) {
    let examples = example_tenants();
    backend.seed(&examples).await;
    (backend.tenants(), examples)
}

pub(super) async fn find_one(tenants: &dyn TenantRepository, name: TenantRef<'_>) -> Found {
    let mut found = tenants.find(&[name]).await.expect("the control plane answers");
    assert_eq!(found.len(), 1, "one name, one outcome");
    found.remove(0)
}

/// The tenant that a name leads to, which must exist.
pub(super) async fn tenant_of(tenants: &dyn TenantRepository, name: TenantRef<'_>) -> Tenant {
    let found = find_one(tenants, name).await.expect("the record is readable");
    found
        .unwrap_or_else(|| panic!("{name} names a tenant"))
        .record
        .tenant
        .clone()
}

/// The id of the tenant that a name leads to, with the version of the name.
pub(super) async fn owner_of(
    tenants: &dyn TenantRepository,
    name: TenantRef<'_>,
) -> Option<(TenantId, Version)> {
    let found = find_one(tenants, name).await.expect("the record is readable")?;
    let version = found.name_version.expect("a slug or domain has a version");
    Some((found.record.tenant.id, version))
}

/// Short ways to write, on a backend without tenants.
pub(super) struct World {
    pub(super) admin: Arc<dyn TenantAdmin>,
    pub(super) credentials: Arc<dyn CredentialStore>,
    pub(super) tenants: Arc<dyn TenantRepository>,
}

impl World {
    pub(super) fn of(backend: &dyn Backend) -> Self {
        Self {
            admin: backend.admin(),
            credentials: backend.credentials(),
            tenants: backend.tenants(),
        }
    }

    pub(super) async fn source(&self, name: &str) -> DataSourceId {
        let server = Server::new(Endpoint::new("db.example", 5432), name);
        let new = NewSource::new(name, Location::Server(server));
        self.admin
            .create_source(&by(), new)
            .await
            .expect("a new data source is accepted")
            .id
    }

    /// A tenant of rows, so that any number fit on a data source.
    pub(super) async fn tenant(&self, name: &str, source: DataSourceId) -> Tenant {
        self.admin
            .create(&by(), new_tenant(name, source))
            .await
            .expect("a new tenant is accepted")
    }

    pub(super) async fn tenant_in(&self, name: &str, source: DataSourceId, status: TenantStatus) -> Tenant {
        let tenant = self.tenant(name, source).await;
        self.bring(tenant, status).await
    }

    /// Takes a tenant that is being provisioned to a status.
    pub(super) async fn bring(&self, mut tenant: Tenant, status: TenantStatus) -> Tenant {
        for step in way_to(status) {
            tenant = self
                .admin
                .set_status(&by(), tenant.id, tenant.version, *step)
                .await
                .expect("each step is an edge");
        }
        tenant
    }

    /// The tenant as the repository has it now.
    pub(super) async fn read(&self, id: TenantId) -> Tenant {
        tenant_of(&*self.tenants, TenantRef::Id(id)).await
    }
}

pub(super) fn new_tenant(name: &str, source: DataSourceId) -> NewTenant {
    let mut new = NewTenant::new(slug(name), source);
    new.isolation = Isolation::Row;
    new
}
