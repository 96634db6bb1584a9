//! Slug, id and domain, and whom they belong to.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use biplane::{
    Biplane,
    error::ErrorKind,
    repository::{MemoryControl, TenantAdmin, TenantRepository},
    router::CacheOptions,
    tenant::{Resolved, TenantName, TenantRef},
};

use crate::support::{Steps, by, domain, gated, kind, seconds, settle, slug, world};

#[tokio::test]
async fn each_kind_of_name_leads_to_the_same_data() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let other = world.control.tenant("other").await;

    let db = world.biplane.route(&acme.slug).await.unwrap();
    db.write(|notes| notes.push("hello")).await.unwrap();
    for name in [
        TenantName::Id(acme.id),
        TenantName::Slug(acme.slug),
        TenantName::Domain(domain("acme.example")),
    ] {
        let db = world.biplane.route(&name).await.unwrap();
        assert_eq!(db.tenant(), acme.id);
        assert_eq!(db.read(|notes| notes.clone()).await.unwrap(), ["hello"]);
    }
    let db = world.biplane.route(&other.slug).await.unwrap();
    assert_eq!(db.tenant(), other.id);
    assert!(db.read(|notes| notes.is_empty()).await.unwrap());
    assert_eq!(world.biplane.stats().cached_tenants, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_names_share_one_handle_that_is_made_once() {
    for _ in 0..50 {
        let control = MemoryControl::new();
        let acme = control.tenant("acme").await;
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let biplane: Biplane<Arc<usize>> = Biplane::memory(control, |_| ())
            .map(move |_| Arc::new(count.fetch_add(1, Ordering::SeqCst)))
            .build()
            .unwrap();
        let names = [
            TenantName::Id(acme.id),
            TenantName::Slug(acme.slug),
            TenantName::Domain(domain("acme.example")),
        ];
        let callers: Vec<_> = (0..100)
            .map(|n| {
                let (biplane, name) = (biplane.clone(), names[n % 3].clone());
                tokio::spawn(async move { biplane.route(&name).await })
            })
            .collect();
        let mut handles = Vec::new();
        for caller in callers {
            handles.push(caller.await.unwrap().unwrap());
        }
        assert!(handles.iter().all(|handle| Arc::ptr_eq(handle, &handles[0])));
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_rename_that_is_announced_frees_the_old_slug_at_once() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.biplane.route(&acme.slug).await.unwrap();

    world.control.renamed(acme.id, "zeta").await;
    world.biplane.invalidate(acme.id).await;
    assert_eq!(
        kind(world.biplane.route(&slug("acme")).await),
        Some(ErrorKind::UnknownTenant)
    );
    let db = world.biplane.route(&slug("zeta")).await.unwrap();
    assert_eq!(db.tenant(), acme.id);

    let heir = world.control.tenant("acme-2").await;
    world.control.renamed(heir.id, "acme").await;
    world.biplane.invalidate(heir.id).await;
    let db = world.biplane.route(&slug("acme")).await.unwrap();
    assert_eq!(db.tenant(), heir.id);
}

#[tokio::test]
async fn a_rename_that_is_not_announced_acts_when_the_route_is_no_longer_fresh() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.biplane.route(&acme.slug).await.unwrap();
    world.control.renamed(acme.id, "zeta").await;
    world.clock.advance(CacheOptions::default().fresh_for);
    // Who comes first is served, and has it found out for those who come next.
    world.biplane.route(&slug("acme")).await.unwrap();
    settle().await;
    assert_eq!(
        kind(world.biplane.route(&slug("acme")).await),
        Some(ErrorKind::UnknownTenant)
    );
}

#[tokio::test]
async fn a_rename_seen_through_one_name_acts_on_all() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.biplane.route(&acme.slug).await.unwrap();
    world.control.renamed(acme.id, "zeta").await;
    // The new slug is looked up, and with it comes a newer version of the tenant.
    world.biplane.route(&slug("zeta")).await.unwrap();
    assert_eq!(
        kind(world.biplane.route(&slug("acme")).await),
        Some(ErrorKind::UnknownTenant)
    );
}

#[tokio::test]
async fn a_slug_that_moved_leads_to_its_new_tenant() {
    let world = world();
    let old = world.control.tenant("acme").await;
    let new = world.control.tenant("other").await;
    assert_eq!(world.biplane.route(&slug("acme")).await.unwrap().tenant(), old.id);

    world.control.renamed(old.id, "acme-old").await;
    world.control.renamed(new.id, "acme").await;
    world.biplane.invalidate(old.id).await;
    world.biplane.invalidate(new.id).await;
    assert_eq!(world.biplane.route(&slug("acme")).await.unwrap().tenant(), new.id);
    assert_eq!(
        world.biplane.route(&slug("acme-old")).await.unwrap().tenant(),
        old.id
    );
}

#[tokio::test]
async fn a_domain_that_moved_leads_to_its_new_tenant() {
    let world = world();
    let old = world.control.tenant("old").await;
    let new = world.control.tenant("new").await;
    let shop = domain("old.example");
    assert_eq!(world.biplane.route(&shop).await.unwrap().tenant(), old.id);

    let control = &world.control;
    let taken = control.remove_domain(&by(), old.id, old.version, &shop).await;
    taken.unwrap();
    let given = control.add_domain(&by(), new.id, new.version, shop.clone()).await;
    given.unwrap();
    world.biplane.invalidate(old.id).await;
    world.biplane.invalidate(new.id).await;
    assert_eq!(world.biplane.route(&shop).await.unwrap().tenant(), new.id);
}

/// A slug moves from one tenant to another; what the control plane says of it before and after.
async fn moved_slug(control: &MemoryControl) -> (Resolved, Resolved) {
    let found = async || {
        let acme = slug("acme");
        let mut found = control.find(&[TenantRef::Slug(&acme)]).await.unwrap();
        found.pop().unwrap().unwrap().unwrap()
    };
    let old = control.tenant("acme").await;
    let new = control.tenant("other").await;
    let before = found().await;
    control.renamed(old.id, "acme-old").await;
    control.renamed(new.id, "acme").await;
    (before, found().await)
}

#[tokio::test]
async fn a_name_follows_its_own_version_when_a_copy_of_the_control_plane_lags_behind() {
    let world = gated();
    let (before, after) = moved_slug(&world.control).await;
    let new = after.record.tenant.id;

    let caller = world.caller(&slug("acme")).await;
    world.gate.call().await.answer_with(Ok(vec![Ok(Some(after))]));
    assert_eq!(caller.await.unwrap().unwrap().0.id, new);

    world.clock.advance(CacheOptions::default().refresh_for);
    let caller = world.caller(&slug("acme")).await;
    world.gate.call().await.answer_with(Ok(vec![Ok(Some(before))]));
    // The older answer is no answer: what is known is served as if the control plane could not be asked.
    assert_eq!(caller.await.unwrap().unwrap().0.id, new);
    assert_eq!(world.biplane.cached(&slug("acme")).unwrap().0.id, new);
    assert_eq!(world.biplane.stats().served_stale, 1);
}

#[tokio::test]
async fn of_two_answers_for_a_name_the_later_question_counts_whichever_comes_first() {
    let world = gated();
    let old = world.control.tenant("acme").await;
    let new = world.control.tenant("other").await;
    let first = world.caller(&slug("acme")).await;
    let first_call = world.gate.call().await;
    first_call.read().await;

    world.control.renamed(old.id, "acme-old").await;
    world.control.renamed(new.id, "acme").await;
    // Only the new owner is announced, so that nothing speaks against the old one but the name.
    world.biplane.invalidate(new.id).await;
    assert_eq!(world.route(&slug("acme")).await.unwrap().0.id, new.id);

    first_call.answer();
    let _ = first.await.unwrap();
    settle().await;
    assert_eq!(world.route(&slug("acme")).await.unwrap().0.id, new.id);
    // Nor after the new owner's route is gone again.
    world.biplane.invalidate(new.id).await;
    assert_eq!(world.route(&slug("acme")).await.unwrap().0.id, new.id);
}

#[tokio::test]
async fn a_name_whose_answer_was_overtaken_leads_nowhere_until_it_is_asked_for_again() {
    let world = gated();
    let old = world.control.tenant("acme").await;
    let new = world.control.tenant("other").await;
    let first = world.caller(&slug("acme")).await;
    let first_call = world.gate.call().await;
    first_call.read().await;
    world.control.renamed(old.id, "acme-old").await;
    world.control.renamed(new.id, "acme").await;
    world.biplane.invalidate(new.id).await;
    first_call.answer();
    assert_eq!(first.await.unwrap().unwrap().0.id, old.id);
    assert_eq!(world.route(&slug("acme")).await.unwrap().0.id, new.id);
}

#[tokio::test]
async fn a_repository_that_mixes_up_its_answers_leads_nobody_astray() {
    let world = gated();
    let acme = world.control.tenant("acme").await;
    let zeta = world.control.tenant("zeta").await;
    // Occupies both workers, so that the two that matter share the next query.
    let (_a, _b) = (world.caller(&slug("x")).await, world.caller(&slug("y")).await);
    let (x, y) = (world.gate.call().await, world.gate.call().await);
    let by_slug = world.caller(&acme.slug).await;
    let by_id = world.caller(zeta.id).await;
    let by_domain = world.caller(&domain("acme.example")).await;
    x.answer();
    let call = world.gate.call().await;
    assert_eq!(call.names.len(), 3);
    let names: Vec<TenantRef<'_>> = call.names.iter().map(TenantName::as_ref).collect();
    let mut found = world.control.find(&names).await.unwrap();
    found.swap(0, 1);
    let zeta_by_domain = found[0].clone();
    found[2] = zeta_by_domain;
    call.answer_with(Ok(found));
    y.answer();
    for caller in [by_slug, by_id, by_domain] {
        assert_eq!(kind(caller.await.unwrap()), Some(ErrorKind::Internal));
    }
    // And nothing of it was kept.
    assert_eq!(world.route(&acme.slug).await.unwrap().0.id, acme.id);
    assert_eq!(world.route(zeta.id).await.unwrap().0.id, zeta.id);
    world.clock.advance(seconds(1));
}
