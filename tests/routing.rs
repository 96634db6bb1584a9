//! What a name leads to, and what a caller is told when it leads nowhere.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod routing_support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use biplane::{
    Biplane, TenantRouter,
    connector::memory::MemoryDb,
    error::{Error, ErrorKind},
    repository::MemoryControl,
    router::{CacheOptions, RouterStats},
    tenant::{Domain, Role, Slug, TenantId, TenantName, TenantRef, TenantStatus},
    testing::faulty::Fault,
};
use futures_util::{FutureExt, future::join_all};

use routing_support::{MILLISECOND, Mood, Notes, Outage, SECOND, World, domain, inactive, kind, names, slug};

// Names.

#[tokio::test]
async fn slug_id_and_domain_lead_to_one_shared_handle() {
    let world = World::seeing();
    let acme = world.add("acme").await;
    let other = world.add("other").await;
    let by_slug = world.biplane.route(&acme.slug).await.unwrap();
    let by_id = world.biplane.route(acme.id).await.unwrap();
    let by_domain = world.biplane.route(&domain("acme")).await.unwrap();
    assert!(Arc::ptr_eq(&by_slug, &by_id) && Arc::ptr_eq(&by_slug, &by_domain));
    assert_eq!(by_slug.tenant, acme);
    for name in names(&acme) {
        assert!(
            Arc::ptr_eq(&world.biplane.cached(&name).unwrap(), &by_slug),
            "{name}"
        );
    }
    assert_eq!(world.biplane.route(&other.slug).await.unwrap().tenant, other);
    assert_eq!(world.biplane.stats().cached_tenants, 2);
}

#[tokio::test]
async fn one_tenants_data_are_nowhere_in_anothers() {
    let world = World::new();
    let (acme, other) = (world.add("acme").await, world.add("other").await);
    let db = world.biplane.route(&acme.slug).await.unwrap();
    db.write(|notes| notes.push("of acme".into())).await.unwrap();
    let by_domain = world.biplane.route(&domain("acme")).await.unwrap();
    assert_eq!(by_domain.read(Notes::len).await.unwrap(), 1);
    assert_eq!(by_domain.tenant(), acme.id);
    let others = world.biplane.route(&other.slug).await.unwrap();
    assert_eq!(others.read(Notes::len).await.unwrap(), 0);
}

#[tokio::test]
async fn nothing_is_cached_before_it_was_routed_to() {
    let world = World::new();
    let acme = world.add("acme").await;
    assert!(world.biplane.cached(&acme.slug).is_none());
    world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(world.biplane.cached(&acme.slug).unwrap().tenant(), acme.id);
    assert_eq!(world.plane.calls(), 1);
}

#[tokio::test]
async fn a_name_that_nobody_has_is_an_unknown_tenant() {
    let world = World::new();
    world.add("acme").await;
    assert_eq!(
        kind(world.biplane.route(&slug("nobody")).await),
        ErrorKind::UnknownTenant
    );
    assert_eq!(
        kind(world.biplane.route(TenantId::new()).await),
        ErrorKind::UnknownTenant
    );
    assert_eq!(
        kind(world.biplane.route(&domain("nobody")).await),
        ErrorKind::UnknownTenant
    );
    assert!(world.biplane.cached(&slug("nobody")).is_none());
}

#[tokio::test]
async fn an_unknown_name_is_asked_for_once_within_unknown_for() {
    let world = World::with(CacheOptions::default().unknown_for(4 * SECOND));
    let nobody = slug("nobody");
    for _ in 0..5 {
        assert_eq!(kind(world.biplane.route(&nobody).await), ErrorKind::UnknownTenant);
    }
    // A quarter of the time may be taken off, so that names do not come due together.
    world.clock.advance(3 * SECOND - MILLISECOND);
    assert_eq!(kind(world.biplane.route(&nobody).await), ErrorKind::UnknownTenant);
    assert_eq!(world.plane.calls(), 1);
    world.clock.advance(SECOND + MILLISECOND);
    world.add("nobody").await;
    assert_eq!(
        world
            .biplane
            .route(&nobody)
            .await
            .unwrap()
            .read(Notes::len)
            .await
            .unwrap(),
        0
    );
    assert_eq!(world.plane.calls(), 2);
}

#[tokio::test]
async fn any_invalidation_makes_unknown_names_asked_for_again() {
    let world = World::new();
    let acme = world.add("acme").await;
    let (later, id, custom) = (slug("later"), TenantId::new(), domain("later"));
    assert_eq!(kind(world.biplane.route(&later).await), ErrorKind::UnknownTenant);
    assert_eq!(kind(world.biplane.route(&custom).await), ErrorKind::UnknownTenant);
    assert_eq!(kind(world.biplane.route(id).await), ErrorKind::UnknownTenant);
    world.add("later").await;
    world.biplane.invalidate(acme.id).await;
    world.biplane.route(&later).await.unwrap();
    world.biplane.route(&custom).await.unwrap();
    let asked = world.plane.calls();
    assert_eq!(kind(world.biplane.route(id).await), ErrorKind::UnknownTenant);
    assert_eq!(world.plane.calls(), asked + 1);
}

#[tokio::test]
async fn a_scan_of_unknown_names_pushes_no_tenant_out() {
    let world = World::with(CacheOptions::default().unknown_names(100));
    let acme = world.add("acme").await;
    world.biplane.route(&acme.slug).await.unwrap();
    let scanned: Vec<Slug> = (0..3_000).map(|n| slug(&format!("scan-{n}"))).collect();
    for outcome in join_all(scanned.iter().map(|name| world.biplane.route(name))).await {
        assert_eq!(kind(outcome), ErrorKind::UnknownTenant);
    }
    let asked = world.plane.calls();
    assert_eq!(world.biplane.cached(&acme.slug).unwrap().tenant(), acme.id);
    world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(world.plane.calls(), asked);
    assert_eq!(world.biplane.stats().cached_tenants, 1);
}

#[tokio::test]
async fn a_text_that_is_no_name_never_reaches_the_router() {
    let world = World::new();
    let ask = async |text: &str| -> Result<TenantId, Error> {
        Ok(world.biplane.route(&Slug::parse(text)?).await?.tenant())
    };
    for text in ["", "two words", "-dash", "ümlaut", "a/b", "'; drop table tenant"] {
        assert_eq!(kind(ask(text).await), ErrorKind::InvalidName, "{text:?}");
    }
    assert_eq!(kind(ask(&"a".repeat(1_000)).await), ErrorKind::InvalidName);
    assert!(Domain::parse("exa mple.com").is_err());
    assert!("4711".parse::<TenantId>().is_err());
    assert_eq!(world.plane.calls(), 0);
}

// A control plane that is out of order.

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_cannot_tell_is_never_an_unknown_tenant() {
    for outage in Outage::ALL {
        let world = World::new();
        let acme = world.add("acme").await;
        let mut wanted = names(&acme);
        wanted.extend([TenantName::Slug(slug("nobody")), TenantName::Id(TenantId::new())]);
        outage.begin(&world);
        for name in &wanted {
            assert_eq!(
                kind(world.biplane.route(name).await),
                outage.kind(),
                "{outage:?} {name}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_router_works_again_when_the_control_plane_does() {
    for outage in Outage::ALL {
        let world = World::new();
        let acme = world.add("acme").await;
        outage.begin(&world);
        assert_eq!(
            kind(world.biplane.route(&acme.slug).await),
            outage.kind(),
            "{outage:?}"
        );
        Outage::end(&world);
        world.clock.advance(SECOND);
        for name in names(&acme) {
            let db = world.biplane.route(&name).await.unwrap();
            assert_eq!(db.tenant(), acme.id, "{outage:?}");
        }
        assert_eq!(
            kind(world.biplane.route(&slug("nobody")).await),
            ErrorKind::UnknownTenant
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_hangs_is_given_up_after_load_timeout() {
    let world = World::with(CacheOptions::default().load_timeout(3 * SECOND));
    let acme = world.add("acme").await;
    world.plane.set(Fault::Hang);
    let began = tokio::time::Instant::now();
    assert_eq!(
        kind(world.biplane.route(&acme.slug).await),
        ErrorKind::ControlPlaneUnavailable
    );
    let waited = began.elapsed();
    assert!(
        (3 * SECOND..3 * SECOND + 10 * MILLISECOND).contains(&waited),
        "{waited:?}"
    );
}

#[tokio::test]
async fn answers_in_the_wrong_order_lead_to_nobody_elses_data() {
    let world = World::new();
    let (acme, other) = (world.add("acme").await, world.add("other").await);
    world.odd().set(Mood::MixedUp);
    let custom = domain("other");
    let both = [world.biplane.route(&acme.slug), world.biplane.route(&custom)];
    for outcome in join_all(both).await {
        assert_eq!(kind(outcome), ErrorKind::Internal);
    }
    assert_eq!(world.plane.calls(), 1);
    assert!(world.biplane.cached(&acme.slug).is_none());
    world.odd().set(Mood::Well);
    world.clock.advance(SECOND);
    assert_eq!(
        world.biplane.route(&domain("other")).await.unwrap().tenant(),
        other.id
    );
    assert_eq!(world.biplane.route(&acme.slug).await.unwrap().tenant(), acme.id);
}

const STALE_FOR: Duration = Duration::from_secs(600);

#[tokio::test(start_paused = true)]
async fn an_open_tenant_is_served_up_to_stale_for_while_the_control_plane_cannot_tell_and_not_beyond() {
    for status in [
        TenantStatus::Active,
        TenantStatus::ReadOnly,
        TenantStatus::Migrating,
    ] {
        for outage in Outage::ALL {
            let world = World::with(CacheOptions::default().stale_for(STALE_FOR));
            let acme = world.add("acme").await;
            if status != TenantStatus::Active {
                world.set(acme.id, status).await;
            }
            let names = names(&acme);
            for name in &names {
                world.biplane.route(name).await.unwrap();
            }
            outage.begin(&world);
            world.clock.advance(STALE_FOR - MILLISECOND);
            for name in &names {
                let db = world.biplane.route(name).await.unwrap();
                assert_eq!(db.tenant(), acme.id, "{status} {outage:?} {name}");
            }
            world.clock.advance(MILLISECOND);
            for name in &names {
                assert!(world.biplane.cached(name).is_none(), "{status} {outage:?} {name}");
                assert_eq!(kind(world.biplane.route(name).await), outage.kind(), "{name}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_handle_works_up_to_stale_for_while_the_control_plane_cannot_tell_and_not_beyond() {
    let world = World::with(CacheOptions::default().stale_for(STALE_FOR));
    let acme = world.add("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    for outage in Outage::ALL {
        outage.begin(&world);
        world.clock.advance(31 * SECOND);
        db.write(|notes| notes.push("still here".into())).await.unwrap();
        Outage::end(&world);
    }
    world.clock.advance(STALE_FOR);
    assert_eq!(db.read(Notes::len).await.unwrap(), 5);
    world.plane.set(Fault::Unreachable);
    world.clock.advance(STALE_FOR);
    assert_eq!(
        kind(db.read(Notes::len).await),
        ErrorKind::ControlPlaneUnavailable
    );
}

#[tokio::test(start_paused = true)]
async fn a_closed_tenant_is_never_served_because_the_control_plane_cannot_tell() {
    for outage in Outage::ALL {
        let world = World::new();
        let acme = world.add("acme").await;
        let held = world.biplane.route(&acme.slug).await.unwrap();
        world.set(acme.id, TenantStatus::Suspended).await;
        world.biplane.invalidate(acme.id).await;
        let suspended = inactive(TenantStatus::Suspended);
        assert_eq!(kind(world.biplane.route(&acme.slug).await), suspended);
        world.set(acme.id, TenantStatus::Active).await;
        outage.begin(&world);
        for _ in 0..3 {
            world.clock.advance(31 * SECOND);
            let told = [
                kind(world.biplane.route(&acme.slug).await),
                kind(held.read(Notes::len).await),
            ];
            let told_so = told
                .iter()
                .all(|told| *told == suspended || *told == outage.kind());
            assert!(told_so, "{outage:?}: {told:?}");
        }
    }
}

#[tokio::test]
async fn a_tenant_that_was_invalidated_is_not_served_because_the_control_plane_cannot_tell() {
    let world = World::new();
    let acme = world.add("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    world.plane.set(Fault::Unreachable);
    world.biplane.invalidate(acme.id).await;
    for name in names(&acme) {
        assert_eq!(
            kind(world.biplane.route(&name).await),
            ErrorKind::ControlPlaneUnavailable
        );
    }
    assert_eq!(
        kind(held.read(Notes::len).await),
        ErrorKind::ControlPlaneUnavailable
    );
}

#[tokio::test]
async fn a_tenant_in_use_asks_an_unreachable_control_plane_once_per_retry_after() {
    let world = World::with(CacheOptions::default().retry_after(5 * SECOND));
    let acme = world.add("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    world.plane.set(Fault::Unreachable);
    world.clock.advance(31 * SECOND);
    for period in 2..5 {
        for _ in 0..10 {
            for name in [TenantRef::Slug(&acme.slug), TenantRef::Id(acme.id)] {
                world.biplane.route(name).await.unwrap();
            }
            held.read(Notes::len).await.unwrap();
        }
        world.clock.advance(5 * SECOND - MILLISECOND);
        world.biplane.route(&acme.slug).await.unwrap();
        assert_eq!(world.plane.calls(), period);
        world.clock.advance(MILLISECOND);
    }
}

#[tokio::test]
async fn a_name_that_is_not_cached_is_asked_for_again_and_found_once_the_control_plane_is_back() {
    let world = World::new();
    let acme = world.add("acme").await;
    world.plane.set(Fault::Unreachable);
    for _ in 0..3 {
        assert_eq!(
            kind(world.biplane.route(&acme.slug).await),
            ErrorKind::ControlPlaneUnavailable
        );
    }
    world.plane.set(Fault::None);
    assert_eq!(world.biplane.route(&acme.slug).await.unwrap().tenant(), acme.id);
}

#[tokio::test]
async fn one_malformed_record_harms_no_other_tenant_of_its_query() {
    let world = World::new();
    let mut tenants = Vec::new();
    for name in ["acme", "broken", "other"] {
        tenants.push(world.add(name).await);
    }
    let broken = tenants[1].id;
    world.control().corrupt(broken).unwrap();
    let outcomes = join_all(tenants.iter().map(|tenant| world.biplane.route(&tenant.slug))).await;
    assert_eq!(world.plane.calls(), 1, "one query for all of them");
    for (tenant, outcome) in tenants.iter().zip(outcomes) {
        if tenant.id == broken {
            assert_eq!(kind(outcome), ErrorKind::MalformedRecord);
        } else {
            assert_eq!(outcome.unwrap().tenant(), tenant.id);
        }
    }
}

#[tokio::test]
async fn a_malformed_record_is_served_as_soon_as_it_is_repaired() {
    let world = World::new();
    let acme = world.add("acme").await;
    world.control().corrupt(acme.id).unwrap();
    for name in names(&acme) {
        assert_eq!(kind(world.biplane.route(&name).await), ErrorKind::MalformedRecord);
    }
    world.control().repair(acme.id).unwrap();
    world.biplane.invalidate(acme.id).await;
    for name in names(&acme) {
        assert_eq!(world.biplane.route(&name).await.unwrap().tenant(), acme.id);
    }
}

#[test]
fn asking_outside_a_runtime_is_an_error_and_no_panic() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let world = World::new();
    let acme = runtime.block_on(world.add("acme"));
    let outcome = world.biplane.route(&acme.slug).now_or_never().unwrap();
    assert_eq!(kind(outcome), ErrorKind::Internal);
    runtime
        .block_on(async { world.biplane.route(&acme.slug).await })
        .unwrap();
    let warm = world.biplane.route(&acme.slug).now_or_never().unwrap();
    assert_eq!(warm.unwrap().tenant(), acme.id);
}

// Status.

#[tokio::test]
async fn a_tenant_that_is_not_open_is_refused_by_every_name() {
    for status in [
        TenantStatus::Provisioning,
        TenantStatus::Suspended,
        TenantStatus::Archived,
        TenantStatus::Deleted,
    ] {
        let world = World::new();
        let mut tenant = world.provision("acme").await;
        if status != TenantStatus::Provisioning {
            world.set(tenant.id, TenantStatus::Active).await;
            tenant = world.set(tenant.id, status).await;
        }
        // Twice: as it is asked for, and from the cache.
        for _ in 0..2 {
            for name in names(&tenant) {
                assert_eq!(kind(world.biplane.route(&name).await), inactive(status), "{name}");
                assert!(world.biplane.cached(&name).is_none(), "{status} {name}");
            }
        }
    }
}

#[tokio::test]
async fn a_read_only_tenant_is_read_and_not_written() {
    let world = World::new();
    let acme = world.add("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    db.write(|notes| notes.push("before".into())).await.unwrap();
    world.set(acme.id, TenantStatus::ReadOnly).await;
    world.biplane.invalidate(acme.id).await;
    for db in [db, world.biplane.route(&acme.slug).await.unwrap()] {
        assert_refuses_writes(&db).await;
        assert_eq!(db.read(Notes::clone).await.unwrap(), ["before"]);
    }
}

#[tokio::test]
async fn the_read_only_role_reads_and_does_not_write() {
    let world = World::new();
    let acme = world.add("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    db.write(|notes| notes.push("before".into())).await.unwrap();
    let reader = db.with_role(Role::ReadOnly);
    assert_eq!((reader.role(), reader.tenant()), (Role::ReadOnly, acme.id));
    assert_refuses_writes(&reader).await;
    assert_eq!(reader.read(Notes::clone).await.unwrap(), ["before"]);
    db.write(|notes| notes.push("after".into())).await.unwrap();
    assert_eq!(reader.read(Notes::len).await.unwrap(), 2);
}

async fn assert_refuses_writes(db: &MemoryDb<Notes>) {
    assert_eq!(kind(db.write(|notes| notes.clear()).await), ErrorKind::ReadOnly);
    let mut tx = db.begin().await.unwrap();
    assert_eq!(tx.read(), &["before"]);
    assert_eq!(kind(tx.write()), ErrorKind::ReadOnly);
    tx.commit().unwrap();
}

#[tokio::test]
async fn a_migrating_tenant_is_read_and_written() {
    let world = World::new();
    let acme = world.add("acme").await;
    world.set(acme.id, TenantStatus::Migrating).await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    db.write(|notes| notes.push("on the way".into())).await.unwrap();
    assert_eq!(db.read(Notes::len).await.unwrap(), 1);
}

// Transactions.

async fn database() -> MemoryDb<Notes> {
    let world = World::new();
    let acme = world.add("acme").await;
    // Leaked, because the tests that use this are about data and not about the router's end.
    let world = Box::leak(Box::new(world));
    world.biplane.route(&acme.slug).await.unwrap()
}

#[tokio::test]
async fn a_transaction_sees_its_own_changes_and_those_from_before_it_began() {
    let db = database().await;
    db.write(|notes| notes.push("before".into())).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    db.write(|notes| notes.push("meanwhile".into())).await.unwrap();
    assert_eq!(tx.read(), &["before"]);
    tx.write().unwrap().push("own".into());
    assert_eq!(tx.read(), &["before", "own"]);
    assert_eq!(db.read(Notes::clone).await.unwrap(), ["before", "meanwhile"]);
}

#[tokio::test]
async fn of_two_transactions_that_write_the_second_conflicts_and_stores_nothing() {
    let db = database().await;
    let (mut first, mut second) = (db.begin().await.unwrap(), db.begin().await.unwrap());
    first.write().unwrap().push("first".into());
    second.write().unwrap().push("second".into());
    first.commit().unwrap();
    assert_eq!(kind(second.commit()), ErrorKind::TransactionConflict);
    assert_eq!(db.read(Notes::clone).await.unwrap(), ["first"]);
    let mut again = db.begin().await.unwrap();
    again.write().unwrap().push("again".into());
    again.commit().unwrap();
    assert_eq!(db.read(Notes::clone).await.unwrap(), ["first", "again"]);
}

#[tokio::test]
async fn a_transaction_conflicts_with_a_single_write_too() {
    let db = database().await;
    let mut tx = db.begin().await.unwrap();
    tx.write().unwrap().push("lost".into());
    db.write(|notes| notes.push("kept".into())).await.unwrap();
    assert_eq!(kind(tx.commit()), ErrorKind::TransactionConflict);
    assert_eq!(db.read(Notes::clone).await.unwrap(), ["kept"]);
}

#[tokio::test]
async fn a_transaction_that_is_dropped_stores_nothing() {
    let db = database().await;
    let mut tx = db.begin().await.unwrap();
    tx.write().unwrap().push("lost".into());
    drop(tx);
    assert_eq!(db.read(Notes::len).await.unwrap(), 0);
    let mut next = db.begin().await.unwrap();
    next.write().unwrap().push("kept".into());
    next.commit().unwrap();
    assert_eq!(db.read(Notes::clone).await.unwrap(), ["kept"]);
}

#[tokio::test]
async fn a_transaction_that_only_read_commits_whatever_others_wrote() {
    let db = database().await;
    let tx = db.begin().await.unwrap();
    db.write(|notes| notes.push("meanwhile".into())).await.unwrap();
    assert_eq!(tx.read().len(), 0);
    tx.commit().unwrap();
    assert_eq!(db.read(Notes::clone).await.unwrap(), ["meanwhile"]);
}

#[tokio::test]
async fn a_write_that_panics_leaves_the_data_as_it_was() {
    let db = database().await;
    db.write(|notes| notes.push("before".into())).await.unwrap();
    let writer = db.clone();
    let panicked = tokio::spawn(async move {
        let write = |notes: &mut Notes| {
            notes.clear();
            panic!("a write that panics on purpose");
        };
        writer.write(write).await
    });
    assert!(panicked.await.unwrap_err().is_panic());
    assert_eq!(db.read(Notes::clone).await.unwrap(), ["before"]);
    db.write(|notes| notes.push("after".into())).await.unwrap();
    assert_eq!(db.read(Notes::len).await.unwrap(), 2);
}

// The types.

#[test]
fn a_router_is_shared_between_threads_and_its_lookups_move_between_them() {
    const fn shared<T: Clone + Send + Sync + 'static>() {}
    const fn sent<T: Send>(_: &T) {}
    shared::<Biplane<MemoryDb<Notes>>>();
    let biplane = Biplane::memory(MemoryControl::new(), |_| Notes::new())
        .build()
        .unwrap();
    sent(&biplane.route(&slug("acme")));
}

#[derive(Clone, Debug, Default)]
struct ByHand {
    closed: Arc<AtomicUsize>,
    invalidated: Arc<AtomicUsize>,
}

#[async_trait]
impl TenantRouter for ByHand {
    type Handle = &'static str;

    fn cached(&self, name: &TenantRef<'_>) -> Option<&'static str> {
        matches!(name, TenantRef::Slug(slug) if slug.as_str() == "warm").then_some("warm")
    }

    async fn route(&self, name: &TenantRef<'_>) -> Result<&'static str, Error> {
        tokio::task::yield_now().await;
        match name {
            TenantRef::Slug(slug) if slug.as_str() == "cold" => Ok("cold"),
            _ => Err(ErrorKind::UnknownTenant.into()),
        }
    }

    async fn invalidate(&self, _: TenantId) {
        self.invalidated.fetch_add(1, Ordering::Relaxed);
    }

    async fn close(&self, _: Duration) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    fn stats(&self) -> RouterStats {
        let mut stats = RouterStats::default();
        stats.hits = 7;
        stats
    }
}

#[tokio::test]
async fn a_router_written_by_hand_works_inside_biplane() {
    let router = ByHand::default();
    let biplane = Biplane::new(router.clone());
    let boxed: Box<dyn TenantRouter<Handle = &'static str>> = Box::new(router.clone());
    assert_eq!(
        boxed.route(&TenantRef::Slug(&slug("cold"))).await.unwrap(),
        "cold"
    );
    assert_eq!(biplane.route(&slug("warm")).await.unwrap(), "warm");
    assert_eq!(biplane.route(&slug("cold")).await.unwrap(), "cold");
    assert_eq!(biplane.cached(&slug("warm")), Some("warm"));
    assert_eq!(biplane.cached(&slug("cold")), None);
    assert_eq!(
        kind(biplane.route(TenantId::new()).await),
        ErrorKind::UnknownTenant
    );
    biplane.invalidate(TenantId::new()).await;
    biplane.clone().close(SECOND).await;
    assert_eq!(biplane.stats().hits, 7);
    assert_eq!(router.invalidated.load(Ordering::Relaxed), 1);
    assert_eq!(router.closed.load(Ordering::Relaxed), 1);
}

#[test]
fn cache_options_that_cannot_work_are_refused() {
    let ok = CacheOptions::default;
    for options in [
        ok().fresh_for(Duration::ZERO),
        ok().load_timeout(Duration::ZERO),
        ok().retry_after(Duration::ZERO),
        ok().stale_for(SECOND),
    ] {
        let builder = Biplane::memory(MemoryControl::new(), |_| Notes::new());
        assert_eq!(
            kind(builder.cache(options).build()),
            ErrorKind::InvalidConfiguration
        );
    }
}
