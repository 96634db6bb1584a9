//! Many callers at once: how often the control plane is asked, and that nobody suffers for another.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod routing_support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use biplane::{
    Biplane,
    connector::memory::MemoryDb,
    error::ErrorKind,
    router::{CacheOptions, Clock},
    tenant::{TenantName, TenantStatus},
    testing::faulty::{Fault, FaultyRepository},
};
use futures_util::future::join_all;

use routing_support::{MILLISECOND, Notes, Odd, SECOND, World, domain, eventually, kind, names, slug};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_callers_of_one_cold_tenant_are_one_load_of_one_name() {
    let world = World::seeing_with(patient());
    let acme = world.add("acme").await;
    world.plane.set(Fault::Hang);
    let callers: Vec<_> = (0..10_000).map(|_| world.spawn(&acme.slug)).collect();
    world.waiting(10_000).await;
    world.plane.set(Fault::None);
    let mut handles = Vec::new();
    for caller in callers {
        handles.push(caller.await.unwrap().unwrap());
    }
    assert_eq!(world.plane.calls(), 1);
    assert_eq!(world.plane.take_asked(), [TenantName::Slug(acme.slug)]);
    assert!(handles.iter().all(|handle| Arc::ptr_eq(handle, &handles[0])));
    assert_eq!(handles[0].tenant, acme);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_cold_tenants_at_once_are_at_most_twenty_queries() {
    let world = World::with(patient());
    let mut tenants = Vec::new();
    for n in 0..1_000 {
        tenants.push(world.add(&format!("tenant-{n}")).await);
    }
    world.plane.set(Fault::Hang);
    let callers: Vec<_> = tenants.iter().map(|tenant| world.spawn(&tenant.slug)).collect();
    world.waiting(1_000).await;
    world.plane.set(Fault::None);
    for (tenant, caller) in tenants.iter().zip(callers) {
        assert_eq!(caller.await.unwrap().unwrap().tenant(), tenant.id);
    }
    assert!(world.plane.calls() <= 20, "{} queries", world.plane.calls());
    assert_eq!(world.plane.take_asked().len(), 1_000, "each name once");
}

#[tokio::test]
async fn a_thousand_lookups_of_one_task_are_at_most_twenty_queries_of_a_control_plane_that_answers_at_once() {
    let world = World::new();
    let mut tenants = Vec::new();
    for n in 0..1_000 {
        tenants.push(world.add(&format!("tenant-{n}")).await);
    }
    let outcomes = join_all(tenants.iter().map(|tenant| world.biplane.route(&tenant.slug))).await;
    for (tenant, outcome) in tenants.iter().zip(outcomes) {
        assert_eq!(outcome.unwrap().tenant(), tenant.id);
    }
    assert!(world.plane.calls() <= 20, "{} queries", world.plane.calls());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_map_is_called_once_per_route_however_many_ask_by_whatever_name() {
    let (plane, clock) = (FaultyRepository::new(Odd::default()), Clock::manual());
    let mapped = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&mapped);
    let map = move |db: MemoryDb<Notes>| {
        counted.fetch_add(1, Ordering::SeqCst);
        // Gives others every chance to begin as well.
        for _ in 0..1_000 {
            std::thread::yield_now();
        }
        Arc::new(db)
    };
    let biplane = Biplane::memory(plane.clone(), |_| Notes::new())
        .cache(patient())
        .clock(clock.clone())
        .map(map)
        .build()
        .unwrap();
    let world = World {
        plane,
        biplane,
        clock,
    };
    let acme = world.add("acme").await;
    for round in 1..=3 {
        world.plane.set(Fault::Hang);
        let names = names(&acme);
        let callers: Vec<_> = names
            .iter()
            .cycle()
            .take(100)
            .map(|name| world.spawn(name))
            .collect();
        world.waiting(100 * round).await;
        world.plane.set(Fault::None);
        let mut handles = Vec::new();
        for caller in callers {
            handles.push(caller.await.unwrap().unwrap());
        }
        assert!(handles.iter().all(|handle| Arc::ptr_eq(handle, &handles[0])));
        assert_eq!(mapped.load(Ordering::SeqCst) as u64, round);
        world.biplane.invalidate(acme.id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_first_caller_who_is_aborted_harms_no_other() {
    let world = World::with(patient());
    let acme = world.add("acme").await;
    world.plane.set(Fault::Hang);
    let first = world.spawn(&acme.slug);
    world.plane.reached(1).await;
    let others: Vec<_> = (0..100).map(|_| world.spawn(&acme.slug)).collect();
    world.waiting(101).await;
    first.abort();
    assert!(first.await.err().unwrap().is_cancelled());
    world.plane.set(Fault::None);
    for other in others {
        assert_eq!(other.await.unwrap().unwrap().tenant(), acme.id);
    }
    assert_eq!(world.plane.calls(), 1);
}

#[tokio::test]
async fn a_load_that_everybody_has_left_serves_those_who_come_later() {
    let world = World::with(patient());
    let acme = world.add("acme").await;
    world.plane.set(Fault::Hang);
    let callers: Vec<_> = (0..10).map(|_| world.spawn(&acme.slug)).collect();
    world.waiting(10).await;
    for caller in callers {
        caller.abort();
        assert!(caller.await.err().unwrap().is_cancelled());
    }
    let later = world.spawn(&acme.slug);
    world.waiting(11).await;
    world.plane.set(Fault::None);
    assert_eq!(later.await.unwrap().unwrap().tenant(), acme.id);
    assert_eq!(world.plane.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_runs_out_of_time_harms_nobody() {
    let world = World::with(patient());
    let acme = world.add("acme").await;
    world.plane.set(Fault::Hang);
    let hasty = tokio::time::timeout(10 * MILLISECOND, world.biplane.route(&acme.slug)).await;
    assert!(hasty.is_err());
    let patient = world.spawn(&acme.slug);
    world.waiting(2).await;
    world.plane.set(Fault::None);
    assert_eq!(patient.await.unwrap().unwrap().tenant(), acme.id);
    assert_eq!(world.plane.calls(), 1);
}

#[tokio::test]
async fn a_query_that_hangs_holds_up_no_other_tenant() {
    let world = World::with(patient());
    let (slow, quick) = (world.add("slow").await, world.add("quick").await);
    let release = world.odd().hold_next();
    let waiting = world.spawn(&slow.slug);
    world.odd().has_read(1).await;
    for name in names(&quick) {
        assert_eq!(world.biplane.route(&name).await.unwrap().tenant(), quick.id);
    }
    assert!(!waiting.is_finished());
    release.send(()).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().tenant(), slow.id);
}

#[test]
fn a_runtime_that_ends_in_the_middle_of_a_load_leaves_nobody_waiting() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    };
    let (ending, staying) = (runtime(), runtime());
    let world = World::with(patient());
    let acme = staying.block_on(world.add("acme"));
    world.plane.set(Fault::Hang);
    let asked_there = {
        let _entered = ending.enter();
        world.spawn(&acme.slug)
    };
    ending.block_on(world.plane.reached(1));
    let waits_here = {
        let _entered = staying.enter();
        world.spawn(&acme.slug)
    };
    staying.block_on(world.waiting(2));
    drop(ending);
    drop(asked_there);
    assert_eq!(
        kind(staying.block_on(waits_here).unwrap()),
        ErrorKind::ControlPlaneUnavailable
    );
    world.plane.set(Fault::None);
    world.clock.advance(2 * SECOND);
    let db = staying.block_on(async { world.biplane.route(&acme.slug).await.unwrap() });
    assert_eq!(db.tenant(), acme.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_route_that_is_no_longer_fresh_is_asked_for_once_by_a_thousand_callers() {
    let world = World::with(patient());
    let acme = world.add("acme").await;
    world.biplane.route(&acme.slug).await.unwrap();
    world.clock.advance(30 * SECOND);
    world.plane.set(Fault::Hang);
    let callers: Vec<_> = (0..1_000).map(|_| world.spawn(&acme.slug)).collect();
    world.waiting(1_001).await;
    world.plane.set(Fault::None);
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().tenant(), acme.id);
    }
    assert_eq!(world.plane.calls(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failed_load_is_told_to_everybody_who_waits_for_it() {
    let world = World::with(patient());
    let acme = world.add("acme").await;
    world.plane.set(Fault::Hang);
    let callers: Vec<_> = (0..1_000).map(|_| world.spawn(&acme.slug)).collect();
    world.waiting(1_000).await;
    world.plane.set(Fault::Unreachable);
    for caller in callers {
        assert_eq!(kind(caller.await.unwrap()), ErrorKind::ControlPlaneUnavailable);
    }
    assert_eq!(world.plane.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_nobody_gets_what_was_read_before_an_invalidation_returned() {
    let world = World::seeing_with(patient());
    let acme = world.add("acme").await;
    let names = names(&acme);
    let (told, over) = (
        Arc::new(AtomicU64::new(acme.version.value())),
        Arc::new(AtomicBool::new(false)),
    );
    let readers: Vec<_> = (0..8)
        .map(|n| {
            let (biplane, told, over) = (world.biplane.clone(), Arc::clone(&told), Arc::clone(&over));
            let name = names[n % names.len()].clone();
            tokio::spawn(async move {
                let mut lookups = 0_u64;
                while !over.load(Ordering::SeqCst) {
                    let least = told.load(Ordering::SeqCst);
                    let handle = biplane.route(&name).await.unwrap();
                    assert!(handle.tenant.version.value() >= least, "{name} from the cache");
                    let least = told.load(Ordering::SeqCst);
                    let route = handle.current().await.unwrap();
                    assert!(route.tenant().version.value() >= least, "{name} of a held handle");
                    lookups += 1;
                    tokio::task::yield_now().await;
                }
                lookups
            })
        })
        .collect();
    for _ in 0..300 {
        let changed = world.touch(acme.id).await;
        world.biplane.invalidate(acme.id).await;
        told.store(changed.version.value(), Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
    over.store(true, Ordering::SeqCst);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_a_domain_that_changes_hands_leads_to_nobody_who_had_it_before() {
    let world = World::seeing_with(patient());
    let tenants = [world.add("even").await.id, world.add("odd").await.id];
    let moving = domain("even");
    // Even and announced: it is the tenant's whose turn it is. Odd: it is being moved to the next.
    let step = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (biplane, step, over) = (world.biplane.clone(), Arc::clone(&step), Arc::clone(&over));
            let moving = moving.clone();
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let before = step.load(Ordering::SeqCst);
                    let outcome = biplane.route(&moving).await;
                    let after = step.load(Ordering::SeqCst);
                    if before == after && before % 2 == 0 {
                        assert_eq!(outcome.unwrap().tenant.id, tenants[before / 2 % 2]);
                    } else if let Err(error) = outcome {
                        assert_eq!(error.kind(), ErrorKind::UnknownTenant);
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for turn in 0..200 {
        let (from, to) = (tenants[turn % 2], tenants[(turn + 1) % 2]);
        step.fetch_add(1, Ordering::SeqCst);
        world.move_domain(&moving, from, to).await;
        world.biplane.invalidate(from).await;
        world.biplane.invalidate(to).await;
        step.fetch_add(1, Ordering::SeqCst);
        // A reader must get a chance between two moves, or nothing is tried.
        let asked = world.biplane.stats();
        let lookups = asked.hits + asked.misses + asked.known_unknown;
        eventually("a lookup", || {
            let now = world.biplane.stats();
            now.hits + now.misses + now.known_unknown > lookups + 4
        })
        .await;
    }
    over.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_a_close_ends_in_closed_for_everybody() {
    let world = World::with(patient());
    let mut tenants = Vec::new();
    for n in 0..8 {
        tenants.push(world.add(&format!("tenant-{n}")).await);
    }
    let closed = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = tenants
        .iter()
        .cloned()
        .map(|tenant| {
            let (biplane, closed) = (world.biplane.clone(), Arc::clone(&closed));
            tokio::spawn(async move {
                loop {
                    let was_closed = closed.load(Ordering::SeqCst);
                    match biplane.route(&tenant.slug).await {
                        Ok(db) => {
                            assert!(!was_closed, "a handle after the close had returned");
                            if let Err(error) = db.read(Notes::len).await {
                                assert_eq!(error.kind(), ErrorKind::Closed);
                            }
                            biplane.invalidate(tenant.id).await;
                            tokio::task::yield_now().await;
                            if closed.load(Ordering::SeqCst) {
                                assert_eq!(kind(db.read(Notes::len).await), ErrorKind::Closed);
                            }
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Closed);
                            return;
                        }
                    }
                }
            })
        })
        .collect();
    eventually("lookups before the close", || world.biplane.stats().misses > 200).await;
    world.biplane.close(Duration::ZERO).await;
    closed.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(world.biplane.stats().cached_tenants, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn statistics_add_up_under_load() {
    let world = World::with(patient());
    let acme = world.add("acme").await;
    let closed = world.add("closed").await;
    world.set(closed.id, TenantStatus::Suspended).await;
    let callers: Vec<_> = (0..50)
        .map(|n| {
            let biplane = world.biplane.clone();
            let name = [acme.slug, closed.slug, slug("nobody")][n % 3];
            tokio::spawn(async move {
                for _ in 0..200 {
                    let _ = biplane.route(&name).await;
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let stats = world.biplane.stats();
    assert_eq!(stats.hits + stats.misses + stats.known_unknown, 50 * 200);
    assert_eq!(stats.loads, world.plane.calls() as u64);
    assert_eq!(stats.names_loaded, world.plane.take_asked().len() as u64);
    assert_eq!(stats.names_loaded, 3);
    assert_eq!(stats.cached_tenants, 2);
    assert_eq!((stats.failed_loads, stats.served_stale), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_concurrent_transactions_each_that_committed_is_in_the_data() {
    let world = World::with(patient());
    let acme = world.add("acme").await;
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let (biplane, name) = (world.biplane.clone(), acme.slug);
            tokio::spawn(async move {
                let mut committed = Vec::new();
                for m in 0..100 {
                    let db = biplane.route(&name).await.unwrap();
                    let mut tx = db.begin().await.unwrap();
                    let note = format!("{n}-{m}");
                    tx.write().unwrap().push(note.clone());
                    tokio::task::yield_now().await;
                    match tx.commit() {
                        Ok(()) => committed.push(note),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::TransactionConflict),
                    }
                }
                committed
            })
        })
        .collect();
    let mut committed = Vec::new();
    for writer in writers {
        committed.extend(writer.await.unwrap());
    }
    let db = world.biplane.route(&acme.slug).await.unwrap();
    let mut stored = db.read(Notes::clone).await.unwrap();
    stored.sort_unstable();
    committed.sort_unstable();
    assert!(!stored.is_empty());
    assert_eq!(stored, committed);
}

/// A herd takes a while to gather on a busy machine; no load is to be given up meanwhile.
fn patient() -> CacheOptions {
    CacheOptions::default().load_timeout(120 * SECOND)
}
