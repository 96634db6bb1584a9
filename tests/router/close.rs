//! A closed router gives nothing out, and neither do its handles.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use biplane::{error::ErrorKind, tenant::TenantName, testing::faulty::Fault};

use crate::support::{Steps, domain, kind, seconds, settle, slug, world};

const CLOSED: Option<ErrorKind> = Some(ErrorKind::Closed);

#[tokio::test]
async fn later_calls_and_older_handles_are_refused() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    world.biplane.route(&domain("acme.example")).await.unwrap();
    world.biplane.close(Duration::ZERO).await;
    for name in [
        TenantName::Id(acme.id),
        TenantName::Slug(acme.slug),
        TenantName::Domain(domain("acme.example")),
        TenantName::Slug(slug("nobody")),
    ] {
        assert!(world.biplane.cached(&name).is_none());
        assert_eq!(kind(world.biplane.route(&name).await), CLOSED);
    }
    assert_eq!(kind(held.read(|_| ()).await), CLOSED);
    assert_eq!(kind(held.write(|_| ()).await), CLOSED);
    assert_eq!(kind(held.begin().await), CLOSED);
    assert_eq!(world.biplane.stats().cached_tenants, 0);
    // Again changes nothing.
    world.biplane.close(Duration::ZERO).await;
    world.biplane.invalidate(acme.id).await;
    assert_eq!(kind(world.biplane.route(&acme.slug).await), CLOSED);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_control_plane_that_hangs_is_told_at_once() {
    let world = world();
    world.repository.set(Fault::Hang);
    let begun = tokio::time::Instant::now();
    let callers: Vec<_> = (0..10)
        .map(|n| {
            let biplane = world.biplane.clone();
            // Some are under way, the others wait for their turn.
            tokio::spawn(async move { biplane.route(&slug(&format!("tenant-{n}"))).await })
        })
        .collect();
    settle().await;
    world.biplane.close(Duration::ZERO).await;
    for caller in callers {
        assert_eq!(kind(caller.await.unwrap()), CLOSED);
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn an_answer_that_comes_after_is_not_kept() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.repository.set(Fault::HoldAnswer);
    let biplane = world.biplane.clone();
    let caller = tokio::spawn(async move { biplane.route(acme.id).await });
    world.repository.reached(1).await;
    world.biplane.close(Duration::ZERO).await;
    world.repository.set(Fault::None);
    assert_eq!(kind(caller.await.unwrap()), CLOSED);
    settle().await;
    assert_eq!(world.biplane.stats().cached_tenants, 0);
    assert!(world.biplane.cached(acme.id).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_a_race_each_call_is_served_or_refused_and_none_is_served_after() {
    for _ in 0..20 {
        let world = world();
        let mut slugs = Vec::new();
        for n in 0..20 {
            slugs.push(world.control.tenant(&format!("tenant-{n}")).await.slug);
        }
        let closed = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..8_usize)
            .map(|caller| {
                let (biplane, slugs, closed) = (world.biplane.clone(), slugs.clone(), Arc::clone(&closed));
                tokio::spawn(async move {
                    for n in 0_usize.. {
                        let slug = &slugs[(n * 7 + caller) % slugs.len()];
                        let over = closed.load(Ordering::SeqCst);
                        let used = match biplane.route(slug).await {
                            Ok(db) => db.write(|notes| notes.push("x")).await,
                            Err(error) => Err(error),
                        };
                        assert!(used.is_err() || !over, "served after the router was closed");
                        assert!(matches!(kind(used), None | CLOSED));
                        if over {
                            return;
                        }
                    }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        world.biplane.close(seconds(1)).await;
        closed.store(true, Ordering::SeqCst);
        for caller in callers {
            caller.await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_transaction_under_way_may_end_before_the_deadline() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.write().unwrap().push("in time");
    let biplane = world.biplane.clone();
    let begun = tokio::time::Instant::now();
    let closing = tokio::spawn(async move { biplane.close(seconds(10)).await });
    settle().await;
    assert!(!closing.is_finished(), "it waits for work in progress");
    tokio::time::sleep(seconds(3)).await;
    tx.commit().unwrap();
    closing.await.unwrap();
    assert_eq!(begun.elapsed(), seconds(3));
}

#[tokio::test(start_paused = true)]
async fn a_transaction_still_open_at_the_deadline_cannot_commit() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.write().unwrap().push("too late");
    let begun = tokio::time::Instant::now();
    world.biplane.close(seconds(10)).await;
    assert_eq!(begun.elapsed(), seconds(10));
    assert_eq!(kind(tx.commit()), CLOSED);
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_cancelled_has_closed() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    let _tx = db.begin().await.unwrap();
    let closing = tokio::time::timeout(seconds(1), world.biplane.close(seconds(10))).await;
    assert!(closing.is_err());
    assert_eq!(kind(world.biplane.route(&acme.slug).await), CLOSED);
    assert_eq!(kind(db.read(|_| ()).await), CLOSED);
}
