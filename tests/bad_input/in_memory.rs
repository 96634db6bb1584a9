//! Tenants' data in memory is refused for the same reasons, with the same kinds.

use std::time::Duration;

use biplane::{
    Biplane,
    connector::memory::MemoryDb,
    error::ErrorKind,
    repository::NewSource,
    tenant::{DatabaseId, Location, Tenant, TenantStatus},
    testing::faulty::{Fault, FaultyRepository},
};

use crate::{
    control::{ROUTER, login},
    planes::{self, Home, Planes, judge, slug},
    set_status,
};

type Store = MemoryDb<Vec<String>>;

struct Memory {
    planes: Planes,
    faulty: FaultyRepository<planes::Shared>,
    biplane: Biplane<Store>,
    tenant: Tenant,
    db: Store,
}

/// A control plane and data in memory, and a handle on a tenant.
async fn memory() -> Memory {
    let planes = Planes::memory().await;
    let (tenant, _) = planes
        .place("acme", NewSource::new("acme", Location::Memory))
        .await;
    let faulty = FaultyRepository::new(planes.tenants.clone());
    let biplane = Biplane::memory(faulty.clone(), |_| Vec::new()).build().unwrap();
    let db = biplane.route(&tenant.slug).await.unwrap();
    db.write(|notes: &mut Vec<String>| notes.push("first".into()))
        .await
        .unwrap();
    Memory {
        planes,
        faulty,
        biplane,
        tenant,
        db,
    }
}

async fn refused_in_memory(db: &Store, kind: ErrorKind, advice: &str) {
    judge(&db.read(Vec::len).await.unwrap_err(), kind, advice);
    judge(&db.write(Vec::clear).await.unwrap_err(), kind, advice);
    judge(&db.begin().await.unwrap_err(), kind, advice);
}

#[tokio::test]
async fn in_memory_an_unknown_name() {
    let memory = memory().await;
    let unknown = memory.biplane.route(&slug("nobody")).await.unwrap_err();
    judge(&unknown, ErrorKind::UnknownTenant, "no such tenant");
}

#[tokio::test]
async fn in_memory_a_control_plane_that_cannot_be_asked() {
    let memory = memory().await;
    memory.faulty.set(Fault::Unreachable);
    memory.biplane.invalidate(memory.tenant.id).await;
    let (kind, advice) = (ErrorKind::ControlPlaneUnavailable, "try again");
    judge(
        &memory.biplane.route(&slug("nobody")).await.unwrap_err(),
        kind,
        advice,
    );
    refused_in_memory(&memory.db, kind, advice).await;
    memory.faulty.set(Fault::None);
    // It is left alone for a moment after it could not be asked.
    let patience = Duration::from_secs(60);
    let length = biplane::testing::wait::until_some("it works again", patience, async || {
        memory.db.read(Vec::len).await.ok()
    });
    assert_eq!(length.await.unwrap(), 1);
}

#[tokio::test]
async fn in_memory_a_malformed_record() {
    let memory = memory().await;
    let (other, source) = (slug("other"), NewSource::new("other", Location::Memory));
    memory.planes.place("other", source).await;
    let home = Home {
        tenant: memory.tenant.clone(),
        source: memory.tenant.placement.source,
        database: String::new(),
        database_id: DatabaseId::new(),
        login: login(ROUTER),
    };
    memory.planes.spoil(&home).await;
    memory.biplane.invalidate(memory.tenant.id).await;
    refused_in_memory(&memory.db, ErrorKind::MalformedRecord, "correct it there").await;
    let neighbour = memory.biplane.route(&other).await.unwrap();
    assert_eq!(neighbour.read(Vec::len).await.unwrap(), 0);
}

#[tokio::test]
async fn in_memory_a_tenant_that_is_not_open() {
    let memory = memory().await;
    let tenant = set_status(&memory.planes, &memory.tenant, TenantStatus::ReadOnly).await;
    memory.biplane.invalidate(tenant.id).await;
    assert_eq!(memory.db.read(Vec::len).await.unwrap(), 1);
    let refused = memory.db.write(Vec::clear).await.unwrap_err();
    judge(&refused, ErrorKind::ReadOnly, "open for reads only");
    let status = TenantStatus::Suspended;
    set_status(&memory.planes, &tenant, status).await;
    memory.biplane.invalidate(tenant.id).await;
    refused_in_memory(&memory.db, ErrorKind::Inactive { status }, "suspended").await;
}

#[tokio::test]
async fn in_memory_a_closed_router() {
    let memory = memory().await;
    memory.biplane.close(Duration::from_secs(1)).await;
    let (kind, advice) = (ErrorKind::Closed, "the router is closed");
    judge(
        &memory.biplane.route(&memory.tenant.slug).await.unwrap_err(),
        kind,
        advice,
    );
    refused_in_memory(&memory.db, kind, advice).await;
}
