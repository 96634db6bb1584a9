//! The control plane in memory passes the suite, and the suite finds control planes that are wrong.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{sync::Arc, time::Duration};

use biplane::{
    error::ErrorKind,
    repository::{
        Actor, ChangeLog, ChangePush, CredentialStore, Instances, MemoryControl, NewTenant, TenantAdmin,
        TenantRepository,
    },
    tenant::{DataSourceId, Location, Slug, TenantId, TenantRecord, TenantRef},
    testing::{
        conformance::{Backend, PushBackend, ReadBackend, async_trait, seed_through},
        faulty::FaultyRepository,
    },
};

#[derive(Debug, Default)]
struct Memory(MemoryControl);

#[async_trait]
impl ReadBackend for Memory {
    fn tenants(&self) -> Arc<dyn TenantRepository> {
        Arc::new(self.0.clone())
    }

    async fn seed(&self, tenants: &[TenantRecord]) {
        seed_through(&self.0, tenants).await;
    }

    async fn spoil(&self, tenant: TenantId) {
        self.0.corrupt(tenant).unwrap();
    }
}

#[async_trait]
impl Backend for Memory {
    fn admin(&self) -> Arc<dyn TenantAdmin> {
        Arc::new(self.0.clone())
    }

    fn changes(&self) -> Arc<dyn ChangeLog> {
        Arc::new(self.0.clone())
    }

    fn credentials(&self) -> Arc<dyn CredentialStore> {
        Arc::new(self.0.clone())
    }

    fn instances(&self) -> Arc<dyn Instances> {
        Arc::new(self.0.clone())
    }

    async fn pass(&self, time: Duration) {
        self.0.advance(time);
    }

    async fn prune(&self, keep: Duration) {
        self.0.prune_changes(keep);
    }
}

#[async_trait]
impl PushBackend for Memory {
    fn push(&self) -> Arc<dyn ChangePush> {
        Arc::new(self.0.clone())
    }
}

async fn memory() -> Memory {
    Memory::default()
}

biplane::repository_conformance!(memory_control, memory);
biplane::push_conformance!(memory_push, memory);

/// A wrapper without a fault is what it wraps.
#[derive(Debug)]
struct Wrapped(FaultyRepository<MemoryControl>);

#[async_trait]
impl ReadBackend for Wrapped {
    fn tenants(&self) -> Arc<dyn TenantRepository> {
        Arc::new(self.0.clone())
    }

    async fn seed(&self, tenants: &[TenantRecord]) {
        seed_through(self.0.inner(), tenants).await;
    }

    async fn spoil(&self, tenant: TenantId) {
        self.0.inner().corrupt(tenant).unwrap();
    }
}

#[async_trait]
impl Backend for Wrapped {
    fn admin(&self) -> Arc<dyn TenantAdmin> {
        Arc::new(self.0.inner().clone())
    }

    fn changes(&self) -> Arc<dyn ChangeLog> {
        Arc::new(self.0.clone())
    }

    fn credentials(&self) -> Arc<dyn CredentialStore> {
        Arc::new(self.0.inner().clone())
    }

    fn instances(&self) -> Arc<dyn Instances> {
        Arc::new(self.0.clone())
    }

    async fn pass(&self, time: Duration) {
        self.0.inner().advance(time);
    }

    async fn prune(&self, keep: Duration) {
        self.0.inner().prune_changes(keep);
    }
}

async fn wrapped() -> Wrapped {
    Wrapped(FaultyRepository::new(MemoryControl::new()))
}

biplane::repository_conformance!(faulty_repository, wrapped);

#[tokio::test]
async fn the_data_source_of_the_environment_is_there_from_the_start() {
    let control = MemoryControl::new();
    let source = control.source("default").await.unwrap().unwrap();
    assert_eq!(source.id, DataSourceId::DEFAULT);
    assert_eq!(source.location, Location::Environment);
}

#[tokio::test]
async fn a_clone_is_the_same_control_plane() {
    let control = MemoryControl::new();
    let slug = Slug::parse("acme").unwrap();
    let new = NewTenant::new(slug, DataSourceId::DEFAULT);
    control
        .clone()
        .create(&Actor::new("ann", "a test"), new)
        .await
        .unwrap();
    assert!(
        control.find(&[TenantRef::Slug(&slug)]).await.unwrap()[0]
            .as_ref()
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn a_malformed_record_can_be_repaired_and_is_not_written_to() {
    let control = MemoryControl::new();
    let by = Actor::new("ann", "a test");
    let new = NewTenant::new(Slug::parse("acme").unwrap(), DataSourceId::DEFAULT);
    let acme = control.create(&by, new).await.unwrap();
    control.corrupt(acme.id).unwrap();
    let renamed = control
        .rename(&by, acme.id, acme.version, Slug::parse("other").unwrap())
        .await;
    assert_eq!(renamed.unwrap_err().kind(), ErrorKind::MalformedRecord);
    control.repair(acme.id).unwrap();
    let found = control.find(&[TenantRef::Id(acme.id)]).await.unwrap();
    assert_eq!(found[0].as_ref().unwrap().as_ref().unwrap().record.tenant, acme);
    let unknown = control.corrupt(TenantId::new()).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::UnknownTenant);
}

#[tokio::test]
async fn another_life_has_another_incarnation_and_the_same_tenants() {
    let control = MemoryControl::new();
    let before = control.head().await.unwrap();
    let renewed = control.renew_incarnation();
    let after = control.head().await.unwrap();
    assert_ne!(before.incarnation, after.incarnation);
    assert_eq!((after.incarnation, after.seq), (renewed, before.seq));
}
