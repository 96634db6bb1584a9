//! A control plane that cannot be asked, or answers nonsense: never "no such tenant", and no reason to let go of tenants
//! that are in use.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    repository::{Found, MemoryControl, Page, TenantRepository},
    router::CacheOptions,
    tenant::{TenantId, TenantRef, TenantStatus},
    testing::{faulty::Fault, wait},
};

use crate::support::{Slow, Steps, domain, gated, kind, seconds, slug, world};

const UNAVAILABLE: Option<ErrorKind> = Some(ErrorKind::ControlPlaneUnavailable);

#[tokio::test]
async fn what_could_not_be_asked_is_not_unknown_and_not_remembered() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.repository.set(Fault::Unreachable);
    assert_eq!(kind(world.biplane.route(&acme.slug).await), UNAVAILABLE);
    assert_eq!(kind(world.biplane.route(acme.id).await), UNAVAILABLE);
    assert_eq!(kind(world.biplane.route(&slug("nobody")).await), UNAVAILABLE);
    world.repository.set(Fault::None);
    world.clock.advance(CacheOptions::default().retry_after);
    world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(
        kind(world.biplane.route(&slug("nobody")).await),
        Some(ErrorKind::UnknownTenant)
    );
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_hangs_is_unavailable_after_the_time_limit() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.repository.set(Fault::Hang);
    let begun = tokio::time::Instant::now();
    assert_eq!(kind(world.biplane.route(&acme.slug).await), UNAVAILABLE);
    let limit = CacheOptions::default().load_timeout;
    assert!(begun.elapsed() >= limit && begun.elapsed() < limit + seconds(1));
    world.repository.set(Fault::None);
    world.clock.advance(CacheOptions::default().retry_after);
    world.biplane.route(&acme.slug).await.unwrap();
}

#[tokio::test]
async fn a_control_plane_that_could_not_be_asked_is_asked_once_in_a_while_for_all_who_have_nothing() {
    let retry_after = CacheOptions::default().retry_after;
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.repository.set(Fault::Unreachable);
    for round in 1..4 {
        for n in 0..100 {
            assert_eq!(
                kind(world.biplane.route(&slug(&format!("t-{n}"))).await),
                UNAVAILABLE
            );
            assert_eq!(kind(world.biplane.route(acme.id).await), UNAVAILABLE);
        }
        assert_eq!(world.repository.calls(), round);
        world.clock.advance(retry_after);
    }
    assert_eq!(world.biplane.stats().not_asked, 3 * 200 - 3);
    world.repository.set(Fault::None);
    world.biplane.route(&acme.slug).await.unwrap();
    // An answer ends it for all.
    let zeta = world.control.tenant("zeta").await;
    world.biplane.route(&zeta.slug).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_counts_within_the_time_limit_and_not_after() {
    for (time, refused) in [(90, None), (110, UNAVAILABLE)] {
        let control = MemoryControl::new();
        let acme = control.tenant("acme").await;
        let biplane = Biplane::memory(Slow(control, Duration::from_millis(time)), |_| ())
            .cache(CacheOptions::default().load_timeout(Duration::from_millis(100)))
            .build()
            .unwrap();
        assert_eq!(kind(biplane.route(&acme.slug).await), refused);
    }
}

#[tokio::test]
async fn an_open_tenant_is_served_without_the_control_plane_until_stale_for() {
    let options = CacheOptions::default();
    let world = world();
    let acme = world.control.tenant("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    world.repository.set(Fault::Unreachable);
    world.clock.advance(options.refresh_for);
    let age = options.refresh_for;

    world.biplane.route(&acme.slug).await.unwrap();
    held.write(|notes| notes.push("still here")).await.unwrap();
    assert_eq!(held.route_age(), Some(age));
    world.biplane.route(acme.id).await.unwrap();
    assert!(world.biplane.stats().served_stale >= 1);

    world
        .clock
        .advance(options.stale_for - age - Duration::from_millis(1));
    world.biplane.route(&acme.slug).await.unwrap();
    held.read(|_| ()).await.unwrap();
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(kind(world.biplane.route(&acme.slug).await), UNAVAILABLE);
    assert_eq!(kind(held.read(|_| ()).await), UNAVAILABLE);

    world.repository.set(Fault::None);
    world.clock.advance(options.retry_after);
    world.biplane.route(&acme.slug).await.unwrap();
    held.read(|_| ()).await.unwrap();
}

#[tokio::test]
async fn a_control_plane_that_could_not_tell_is_left_alone_for_a_while() {
    let options = CacheOptions::default();
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.biplane.route(&acme.slug).await.unwrap();
    world.repository.set(Fault::Unreachable);
    world.clock.advance(options.refresh_for);
    world.biplane.route(&acme.slug).await.unwrap();
    let calls = world.repository.calls();
    for _ in 0..100 {
        world.biplane.route(&acme.slug).await.unwrap();
    }
    assert_eq!(world.repository.calls(), calls);
    world.clock.advance(options.retry_after);
    world.repository.set(Fault::None);
    world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(world.repository.calls(), calls + 1);
}

#[tokio::test]
async fn a_tenant_known_to_be_closed_is_never_served_from_memory() {
    for status in [
        TenantStatus::Suspended,
        TenantStatus::Archived,
        TenantStatus::Deleted,
    ] {
        let world = world();
        let acme = world.control.tenant("acme").await;
        let held = world.biplane.route(&acme.slug).await.unwrap();
        world.control.turn(acme.id, status).await;
        world.biplane.invalidate(acme.id).await;
        let refused = Some(ErrorKind::Inactive { status });
        assert_eq!(kind(world.biplane.route(&acme.slug).await), refused);

        world.repository.set(Fault::Unreachable);
        world.clock.advance(CacheOptions::default().fresh_for);
        assert_eq!(kind(world.biplane.route(&acme.slug).await), UNAVAILABLE);
        assert_eq!(kind(held.read(|_| ()).await), UNAVAILABLE);
    }
}

#[tokio::test]
async fn what_was_invalidated_is_not_served_because_nothing_newer_can_be_had() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    world.repository.set(Fault::Unreachable);
    world.biplane.invalidate(acme.id).await;
    assert_eq!(kind(world.biplane.route(&acme.slug).await), UNAVAILABLE);
    assert_eq!(kind(world.biplane.route(acme.id).await), UNAVAILABLE);
    assert_eq!(kind(held.read(|_| ()).await), UNAVAILABLE);
}

#[tokio::test]
async fn no_failure_of_any_kind_takes_a_tenant_away_or_means_unknown() {
    let failures = [
        ErrorKind::ControlPlaneUnavailable,
        ErrorKind::MissingPrivilege,
        ErrorKind::SchemaMismatch,
        ErrorKind::Database,
        ErrorKind::Internal,
        ErrorKind::MalformedRecord,
    ];
    for failure in failures {
        let world = gated();
        let acme = world.control.tenant("acme").await;
        let cold = world.caller(&acme.slug).await;
        world.gate.call().await.answer_with(Err(failure.into()));
        assert_eq!(kind(cold.await.unwrap()), Some(failure));

        world.clock.advance(CacheOptions::default().retry_after);
        world.route(&acme.slug).await.unwrap();
        world.clock.advance(CacheOptions::default().refresh_for);
        let warm = world.caller(&acme.slug).await;
        world.gate.call().await.answer_with(Err(failure.into()));
        warm.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn one_malformed_record_harms_nobody_else_in_its_query() {
    let world = gated();
    let mut tenants = Vec::new();
    for name in ["a", "b", "c"] {
        tenants.push(world.control.tenant(name).await);
    }
    world.control.corrupt(tenants[1].id).unwrap();
    // Both workers are busy, so that the three share a query.
    let (_x, _y) = (world.caller(&slug("x")).await, world.caller(&slug("y")).await);
    let (x, y) = (world.gate.call().await, world.gate.call().await);
    let mut callers = Vec::new();
    for tenant in &tenants {
        callers.push(world.caller(&tenant.slug).await);
    }
    x.answer();
    let shared = world.gate.call().await;
    assert_eq!(shared.names.len(), 3);
    shared.answer();
    let outcomes = futures_util::future::join_all(callers).await;
    let kinds: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| kind(outcome.unwrap()))
        .collect();
    assert_eq!(kinds, [None, Some(ErrorKind::MalformedRecord), None]);
    y.answer();

    world.control.repair(tenants[1].id).unwrap();
    world.route(&tenants[1].slug).await.unwrap();
}

/// Panics when it is told to, or leaves an answer out.
#[derive(Debug)]
struct Broken {
    inner: MemoryControl,
    panics: Arc<AtomicBool>,
    forgets: Arc<AtomicBool>,
}

#[async_trait]
impl TenantRepository for Broken {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        assert!(!self.panics.load(Ordering::SeqCst), "told to panic");
        let mut found = self.inner.find(names).await?;
        if self.forgets.load(Ordering::SeqCst) {
            found.pop();
        }
        Ok(found)
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        self.inner.list(after, limit).await
    }
}

#[tokio::test]
async fn a_repository_that_panics_or_miscounts_is_an_internal_error_and_no_more() {
    let control = MemoryControl::new();
    let acme = control.tenant("acme").await;
    let (panics, forgets) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let biplane = Biplane::memory(
        Broken {
            inner: control,
            panics: Arc::clone(&panics),
            forgets: Arc::clone(&forgets),
        },
        |_| (),
    )
    .build()
    .unwrap();
    for fault in [&panics, &forgets] {
        fault.store(true, Ordering::SeqCst);
        // More often than there are workers: none of them may be lost.
        for _ in 0..5 {
            let outcome = biplane.route(&acme.slug).await;
            assert_eq!(kind(outcome), Some(ErrorKind::Internal));
        }
        fault.store(false, Ordering::SeqCst);
    }
    biplane.route(&acme.slug).await.unwrap();
    biplane.route(&domain("acme.example")).await.unwrap();
}

#[test]
fn a_runtime_that_is_shut_down_while_it_asks_keeps_nobody_on_another_waiting() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let world = world();
    let (doomed, healthy) = (runtime(), runtime());
    let acme = healthy.block_on(world.control.tenant("acme"));
    world.repository.set(Fault::Hang);
    let ask = |name: &str| {
        let (biplane, name) = (world.biplane.clone(), slug(name));
        async move { biplane.route(&name).await.map(|db| db.tenant()) }
    };
    // Both workers are started on the doomed runtime, and hang.
    doomed.spawn(ask("one"));
    doomed.block_on(world.repository.reached(1));
    doomed.spawn(ask("two"));
    doomed.block_on(world.repository.reached(2));
    // One waits for a query that is under way, the other for the next.
    let waiting = [healthy.spawn(ask("two")), healthy.spawn(ask("acme"))];
    healthy
        .block_on(wait::until("both wait", seconds(10), async || {
            world.biplane.stats().misses == 4
        }))
        .unwrap();
    doomed.shutdown_background();
    for caller in waiting {
        let outcome = healthy.block_on(async { tokio::time::timeout(seconds(10), caller).await });
        assert_eq!(
            kind(outcome.expect("nobody waits for ever").unwrap()),
            UNAVAILABLE
        );
    }
    world.repository.set(Fault::None);
    let found = healthy.block_on(async { tokio::time::timeout(seconds(10), ask("acme")).await });
    assert_eq!(found.expect("somebody asks").unwrap(), acme.id);
}

#[test]
fn outside_of_a_runtime_a_cold_lookup_is_an_error_and_harms_no_later_one() {
    use futures_util::FutureExt;

    let world = world();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let acme = runtime.block_on(world.control.tenant("acme"));
    for _ in 0..5 {
        let outcome = world.biplane.route(&acme.slug).now_or_never();
        assert_eq!(
            kind(outcome.expect("it does not wait")),
            Some(ErrorKind::Internal)
        );
    }
    let found = runtime.block_on(async { world.biplane.route(&acme.slug).await });
    assert_eq!(found.unwrap().tenant(), acme.id);
}
