//! Names that lead nowhere.

use std::num::NonZeroU32;

use biplane::{
    Biplane,
    error::ErrorKind,
    repository::MemoryControl,
    router::{CacheOptions, Clock},
    tenant::{Tenant, TenantId, TenantName},
    testing::faulty::FaultyRepository,
};

use crate::support::{Steps, domain, gated, kind, settle, slug, world};

const UNKNOWN: Option<ErrorKind> = Some(ErrorKind::UnknownTenant);

#[tokio::test]
async fn an_unknown_name_of_each_kind_is_asked_for_once() {
    let world = world();
    let names = [
        TenantName::Slug(slug("nobody")),
        TenantName::Id(TenantId::new()),
        TenantName::Domain(domain("nobody.example")),
    ];
    for name in &names {
        assert_eq!(kind(world.biplane.route(name).await), UNKNOWN);
    }
    let calls = world.repository.calls();
    for _ in 0..100 {
        for name in &names {
            assert_eq!(kind(world.biplane.route(name).await), UNKNOWN);
        }
    }
    assert_eq!(world.repository.calls(), calls);
    assert_eq!(world.biplane.stats().known_unknown, 300);
}

#[tokio::test]
async fn a_tenant_that_is_created_and_announced_is_found_under_names_that_were_unknown() {
    let world = world();
    assert_eq!(kind(world.biplane.route(&slug("acme")).await), UNKNOWN);
    assert_eq!(kind(world.biplane.route(&domain("acme.example")).await), UNKNOWN);
    let acme = world.control.tenant("acme").await;
    world.biplane.invalidate(acme.id).await;
    let db = world.biplane.route(&slug("acme")).await.unwrap();
    assert_eq!(db.tenant(), acme.id);
    let db = world.biplane.route(&domain("acme.example")).await.unwrap();
    assert_eq!(db.tenant(), acme.id);
}

#[tokio::test]
async fn an_unknown_name_is_asked_for_again_after_its_time() {
    let world = world();
    let for_time = CacheOptions::default().unknown_for;
    world.biplane.route(&slug("acme")).await.unwrap_err();
    let acme = world.control.tenant("acme").await;
    // Less a quarter at most, so that not all are asked for at the same moment.
    world
        .clock
        .advance(for_time * 3 / 4 - std::time::Duration::from_millis(1));
    assert_eq!(kind(world.biplane.route(&slug("acme")).await), UNKNOWN);
    world
        .clock
        .advance(for_time / 4 + std::time::Duration::from_millis(1));
    let db = world.biplane.route(&slug("acme")).await.unwrap();
    assert_eq!(db.tenant(), acme.id);
}

#[tokio::test]
async fn unknown_names_do_not_all_run_out_at_once() {
    let world = world();
    let names: Vec<_> = (0..200).map(|n| slug(&format!("nobody-{n}"))).collect();
    for name in &names {
        world.biplane.route(name).await.unwrap_err();
    }
    let for_time = CacheOptions::default().unknown_for;
    world.clock.advance(for_time * 7 / 8);
    let before = world.biplane.stats().names_loaded;
    for name in &names {
        world.biplane.route(name).await.unwrap_err();
    }
    let again = world.biplane.stats().names_loaded - before;
    assert!((50..150).contains(&again), "{again} of 200 at half of the spread");
}

#[tokio::test]
async fn a_scan_neither_fills_memory_nor_pushes_tenants_out() {
    let control = MemoryControl::new();
    let acme = control.tenant("acme").await;
    let repository = FaultyRepository::new(control);
    let biplane = Biplane::memory(repository.clone(), |_: &Tenant| ())
        .clock(Clock::manual())
        .cache(
            CacheOptions::default()
                .unknown_names(100)
                .unknown_lookups(NonZeroU32::MAX),
        )
        .build()
        .unwrap();
    biplane.route(&acme.slug).await.unwrap();
    let scan = async || {
        for n in 0..5_000 {
            let name = slug(&format!("scan-{n}"));
            assert_eq!(kind(biplane.route(&name).await), UNKNOWN);
        }
    };
    scan().await;
    let before = repository.calls();
    assert!(biplane.cached(&acme.slug).is_some());
    biplane.route(&acme.slug).await.unwrap();
    assert_eq!(repository.calls(), before);
    let remembered = biplane.stats().known_unknown;
    scan().await;
    // The cache makes room in batches of its own.
    let remembered = biplane.stats().known_unknown - remembered;
    assert!(remembered <= 1_000, "{remembered} names were remembered, not 100");
}

#[tokio::test]
async fn a_late_no_is_not_remembered_past_an_announcement() {
    let world = gated();
    let early = world.caller(&slug("acme")).await;
    let call = world.gate.call().await;
    call.read().await;
    let acme = world.control.tenant("acme").await;
    world.biplane.invalidate(acme.id).await;
    call.answer();
    assert_eq!(kind(early.await.unwrap()), UNKNOWN);
    assert_eq!(world.route(&slug("acme")).await.unwrap().0.id, acme.id);
}

#[tokio::test]
async fn a_late_no_does_not_take_away_a_tenant_that_was_found_meanwhile() {
    let world = gated();
    let id = TenantId::new();
    let early = world.caller(id).await;
    let call = world.gate.call().await;
    call.read().await;

    world.clock.advance(std::time::Duration::from_millis(1));
    let acme = {
        use biplane::repository::{NewTenant, TenantAdmin};
        let mut new = NewTenant::new(slug("acme"), biplane::tenant::DataSourceId::DEFAULT);
        new.id = id;
        let created = world.control.create(&crate::support::by(), new).await.unwrap();
        world
            .control
            .turn(created.id, biplane::tenant::TenantStatus::Active)
            .await
    };
    assert_eq!(world.route(&acme.slug).await.unwrap().0.id, id);
    call.answer();
    assert_eq!(kind(early.await.unwrap()), UNKNOWN);
    settle().await;
    assert!(world.biplane.cached(&acme.slug).is_some());
    assert!(world.biplane.cached(id).is_some());
}

#[tokio::test]
async fn a_slug_found_to_be_free_no_longer_leads_anywhere() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    world.route(&acme.slug).await.unwrap();
    // A load by id reads the tenant before it is renamed, and is slow.
    world.clock.advance(CacheOptions::default().refresh_for);
    let by_id = world.caller(acme.id).await;
    let slow = world.gate.call().await;
    slow.read().await;
    world.control.renamed(acme.id, "zeta").await;
    assert_eq!(kind(world.route(&slug("acme")).await), UNKNOWN);
    slow.answer();
    by_id.await.unwrap().unwrap();
    settle().await;
    // The slow load confirms the tenant of old, and must not bring its slug back.
    assert_eq!(kind(world.route(&slug("acme")).await), UNKNOWN);
}

#[tokio::test]
async fn a_flood_of_unknown_names_is_refused_and_leaves_the_control_plane_and_tenants_alone() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let zeta = world.control.tenant("zeta").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    let mut refused = 0;
    for n in 0..20_000 {
        match kind(world.biplane.route(&slug(&format!("scan-{n}"))).await) {
            UNKNOWN => {}
            Some(ErrorKind::TooManyUnknownNames) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    let in_ten_seconds = 10 * usize::try_from(CacheOptions::default().unknown_lookups.get()).unwrap();
    assert_eq!(20_000 - refused, in_ten_seconds);
    assert_eq!(world.repository.calls(), 1 + in_ten_seconds);
    // Those in use notice nothing, not even when their route is no longer fresh or has to be waited for.
    world.biplane.cached(&acme.slug).unwrap();
    world.biplane.route(&acme.slug).await.unwrap();
    world.biplane.route(acme.id).await.unwrap();
    world.biplane.invalidate(acme.id).await;
    held.read(|_| ()).await.unwrap();
    assert_eq!(world.biplane.stats().not_asked, refused as u64);
    // One that is not known here is told so by name, until the flood is over.
    assert_eq!(
        kind(world.biplane.route(&zeta.slug).await),
        Some(ErrorKind::TooManyUnknownNames)
    );
    world.clock.advance(std::time::Duration::from_secs(1));
    world.biplane.route(&zeta.slug).await.unwrap();
}

#[tokio::test]
async fn names_that_are_somebodys_cost_nothing_of_what_unknown_ones_may() {
    let control = MemoryControl::new();
    let repository = FaultyRepository::new(control.clone());
    let biplane = Biplane::memory(repository, |_: &Tenant| ())
        .clock(Clock::manual())
        .cache(CacheOptions::default().unknown_lookups(NonZeroU32::MIN))
        .build()
        .unwrap();
    for n in 0..100 {
        let tenant = control.tenant(&format!("tenant-{n}")).await;
        biplane.route(&tenant.slug).await.unwrap();
    }
}
