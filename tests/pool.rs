//! The pool on real servers: caps, order, growth, faults and what follows them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod data_plane;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use biplane::{
    error::{BudgetScope, Error, ErrorKind},
    plane::TenantDb,
    repository::SourceChange,
    tenant::Location,
    testing::{
        postgres::Cluster,
        proxy::{Direction, FaultProxy, NetworkFault},
        wait,
    },
};
use data_plane::{LIMIT, Wish, World, backend, options, shared, timed};
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};

fn kind<T: std::fmt::Debug>(result: sqlx::Result<T>) -> ErrorKind {
    let error = result.unwrap_err();
    Error::of(&error)
        .unwrap_or_else(|| panic!("not one of ours: {error:?}"))
        .kind()
}

async fn sleep(db: &TenantDb, seconds: f64) -> sqlx::Result<()> {
    sqlx::query("select pg_sleep($1)")
        .bind(seconds)
        .execute(db)
        .await
        .map(drop)
}

#[tokio::test]
async fn the_last_connection_used_is_the_first_one_lent() {
    let world = World::new(shared().await);
    let (_biplane, _, db) = world.one(options(3)).await;
    let (mut a, b) = (db.acquire().await.unwrap(), db.acquire().await.unwrap());
    let a_pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut a)
        .await
        .unwrap();
    drop(b);
    drop(a);
    for _ in 0..10 {
        assert_eq!(backend(&db).await, a_pid);
    }
}

#[tokio::test]
async fn connections_are_opened_side_by_side() {
    let world = World::new(shared().await);
    let proxy = FaultProxy::start(&world.cluster.endpoint()).await.unwrap();
    let placed = world.tenant().await;
    let mut server = world.cluster.server(&placed.database);
    server.endpoints = vec![proxy.endpoint()];
    let elsewhere = SourceChange::default().location(Location::Server(server));
    world.change_source(&placed, elsewhere).await;
    let biplane = world.biplane(options(8));
    let db = biplane.route(&placed.slug).await.unwrap();
    // The server hears nothing before all are there, so that none is open while another is begun.
    proxy.set(Direction::ToServer, NetworkFault::Stall);
    let all = join_all((0..8).map(|_| db.acquire()));
    let let_in = async {
        let there = tokio::time::timeout(LIMIT, proxy.reached(8)).await;
        proxy.set(Direction::ToServer, NetworkFault::None);
        there.unwrap();
    };
    let ((), lent) = tokio::join!(let_in, all);
    lent.into_iter().for_each(|lent| drop(lent.unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_cap_of_the_process_holds_while_data_sources_take_turns() {
    const CAP: u32 = 3;
    let world = World::new(shared().await);
    let mut placed = Vec::new();
    for _ in 0..5 {
        placed.push(world.tenant_with(Wish::max(2)).await);
    }
    let biplane = world.biplane(options(CAP));
    let mut watch = world.watch_all(&placed).await;
    let done = Arc::new(AtomicBool::new(false));
    let most = Arc::new(AtomicI64::new(0));
    let sampling = tokio::spawn({
        let (done, most) = (Arc::clone(&done), Arc::clone(&most));
        async move {
            let mut samples = 0;
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(watch.sessions().await, Ordering::Relaxed);
                samples += 1;
            }
            samples
        }
    });
    let work = placed
        .iter()
        .cycle()
        .take(20)
        .enumerate()
        .map(|(number, placed)| {
            let (biplane, slug) = (biplane.clone(), placed.slug);
            tokio::spawn(async move {
                let db = biplane.route(&slug).await.unwrap();
                for round in 0..15 {
                    match (number + round) % 4 {
                        // Abandoned, which ends a connection or cancels a statement.
                        0 => drop(tokio::time::timeout(Duration::from_millis(3), sleep(&db, 0.2)).await),
                        1 => drop(db.begin().await.unwrap()),
                        _ => sleep(&db, 0.001).await.unwrap(),
                    }
                }
            })
        });
    for worker in work.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(sampling.await.unwrap() > 20);
    let most = most.load(Ordering::Relaxed);
    // One more than the cap may cancel abandoned statements; the default of `reserved`.
    assert!(most <= i64::from(CAP) + 1, "{most} sessions");
    wait::until("everything rests", LIMIT, async || {
        let stats = biplane.stats().connector;
        stats.waiting == 0 && stats.connections == stats.resting
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_cap_holds_exactly_while_connections_are_closed_to_make_room() {
    const CAP: u32 = 2;
    let world = World::new(shared().await);
    let mut placed = Vec::new();
    for _ in 0..4 {
        placed.push(world.tenant().await);
    }
    let biplane = world.biplane(options(CAP));
    let mut watch = world.watch_all(&placed).await;
    let mut seen = BTreeSet::new();
    let work = placed.iter().map(|placed| {
        let (biplane, slug) = (biplane.clone(), placed.slug);
        tokio::spawn(async move {
            let db = biplane.route(&slug).await.unwrap();
            for _ in 0..25 {
                backend(&db).await;
            }
        })
    });
    let work: Vec<_> = work.collect();
    while !work.iter().all(|worker| worker.is_finished()) {
        let pids = watch.pids().await;
        assert!(pids.len() <= CAP as usize, "{pids:?}");
        seen.extend(pids);
    }
    for worker in work {
        worker.await.unwrap();
    }
    assert!(
        seen.len() > 4,
        "connections were closed for one another: {seen:?}"
    );
}

/// A statement that cannot be cancelled keeps its backend busy after its caller has left and the connection is lost.
/// A process that is stopped cannot be ended, so that there is time to look.
#[tokio::test]
async fn a_permit_is_held_until_the_backend_is_gone() {
    // Of its own: whatever a stopped process holds, others would wait for.
    let cluster = Cluster::start().await.unwrap();
    let world = World::new(&cluster);
    let (biplane, placed, db) = world
        .one({
            let mut options = options(1);
            options.cancel_after = Duration::ZERO;
            options.reset_timeout = Duration::from_millis(100);
            options.leak_after = LIMIT;
            options
        })
        .await;
    let mut watch = world.watch(&placed.database).await;
    let abandoned = tokio::spawn({
        let db = db.clone();
        async move { sleep(&db, 600.0).await }
    });
    watch.until_running("select pg_sleep", 1).await;
    watch.until_asleep(1).await;
    let busy = *watch.pids().await.first().unwrap();
    let process = Pid::from_raw(busy).unwrap();
    kill_process(process, Signal::STOP).unwrap();
    abandoned.abort();
    let next = tokio::spawn({
        let db = db.clone();
        async move { backend(&db).await }
    });
    // Whoever is to end it asks again and again, which takes longer than connecting does.
    let mut asked = BTreeSet::new();
    wait::until("it was asked for ten times", LIMIT, async || {
        asked.extend(watch.last_asked_by_reserved().await);
        asked.len() >= 10
    })
    .await
    .unwrap();
    assert!(!next.is_finished(), "nobody gets in beside it");
    assert_eq!(watch.pids().await, BTreeSet::from([busy]));
    kill_process(process, Signal::CONT).unwrap();
    let next = next.await.unwrap();
    assert_ne!(next, busy);
    assert_eq!(watch.pids().await, BTreeSet::from([next]));
    assert_eq!(biplane.stats().connector.connections, 1);
}

#[tokio::test]
async fn what_was_opened_for_a_caller_that_left_serves_the_next() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(4)).await;
    let mut watch = world.watch(&placed.database).await;
    // As long as it takes to begin to connect, and no longer.
    assert!(
        tokio::time::timeout(Duration::from_micros(200), backend(&db))
            .await
            .is_err()
    );
    wait::until("the connection rests", LIMIT, async || {
        biplane.stats().connector.resting == 1
    })
    .await
    .unwrap();
    let opened = watch.pids().await;
    assert_eq!(opened, BTreeSet::from([backend(&db).await]));
}

#[tokio::test]
async fn who_waits_too_long_is_told_which_cap_was_in_the_way() {
    let world = World::new(shared().await);
    let (small, other) = (
        world.tenant_with(Wish::max(1)).await,
        world.tenant_with(Wish::max(5)).await,
    );
    let mut options = options(2);
    options.wait_timeout = Duration::from_millis(50);
    options.connect_timeout = Duration::from_secs(20);
    let biplane = world.biplane(options);
    let small = biplane.route(&small.slug).await.unwrap();
    let other = biplane.route(&other.slug).await.unwrap();
    // A first connection may take longer than this pool waits.
    let hold = async |db: &TenantDb| {
        wait::until_some("a connection", LIMIT, async || db.acquire().await.ok())
            .await
            .unwrap()
    };
    let _held = hold(&small).await;
    let scope = BudgetScope::DataSource;
    assert_eq!(kind(small.acquire().await), ErrorKind::BudgetExhausted { scope });
    let _held_too = hold(&other).await;
    let scope = BudgetScope::Process;
    assert_eq!(kind(other.acquire().await), ErrorKind::BudgetExhausted { scope });
    assert_eq!(kind(other.begin().await), ErrorKind::BudgetExhausted { scope });
    assert_eq!(
        kind(sqlx::query("select 1").execute(&other).await),
        ErrorKind::BudgetExhausted { scope }
    );
}

#[tokio::test]
async fn no_more_wait_than_may() {
    let world = World::new(shared().await);
    let mut options = options(1);
    options.max_waiting = 2;
    let (biplane, _, db) = world.one(options).await;
    let held = db.acquire().await.unwrap();
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let db = db.clone();
            tokio::spawn(async move { backend(&db).await })
        })
        .collect();
    wait::until("two wait", LIMIT, async || biplane.stats().connector.waiting == 2)
        .await
        .unwrap();
    let (refused, took) = timed(db.acquire()).await;
    let scope = BudgetScope::Queue;
    assert_eq!(kind(refused), ErrorKind::BudgetExhausted { scope });
    assert!(took < Duration::from_secs(1));
    drop(held);
    for caller in waiting {
        caller.await.unwrap();
    }
}

#[tokio::test]
async fn callers_are_served_in_the_order_in_which_they_came() {
    let world = World::new(shared().await);
    let (biplane, _, db) = world.one(options(1)).await;
    let held = db.acquire().await.unwrap();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut callers = Vec::new();
    for number in 0..10 {
        let (db, order) = (db.clone(), Arc::clone(&order));
        callers.push(tokio::spawn(async move {
            let conn = db.acquire().await.unwrap();
            order.lock().unwrap().push(number);
            drop(conn);
        }));
        wait::until("it waits", LIMIT, async || {
            biplane.stats().connector.waiting == number + 1
        })
        .await
        .unwrap();
    }
    drop(held);
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_dead_server_is_reported_at_once_and_the_pool_recovers_by_itself() {
    let cluster = Cluster::start().await.unwrap();
    let world = World::new(&cluster);
    let (_biplane, _, db) = world.one(options(4)).await;
    backend(&db).await;
    cluster.kill().await.unwrap();
    // The first may find the connection that has died.
    drop(sqlx::query("select 1").execute(&db).await);
    for _ in 0..3 {
        let (refused, took) = timed(db.begin()).await;
        assert!(matches!(kind(refused), ErrorKind::DatabaseUnavailable { .. }));
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    cluster.start_again().await.unwrap();
    wait::until("it is back", LIMIT, async || {
        sqlx::query("insert into note (text) values ('back')")
            .execute(&db)
            .await
            .is_ok()
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_dead_server_keeps_no_permit_from_the_others() {
    let (dying, living) = (Cluster::start().await.unwrap(), shared().await);
    let world = World::new(&dying);
    let here = world.tenant().await;
    let database = format!("neighbour_{}", std::process::id());
    living.create_database(&database).await.unwrap();
    let wish = Wish {
        server: Some(living.server(&database)),
        credential: Some(living.superuser()),
        ..Wish::default()
    };
    let there = world.tenant_on("neighbour", &database, wish).await;
    let mut options = options(1);
    options.leak_after = LIMIT;
    let biplane = world.biplane(options);
    let here = biplane.route(&here.slug).await.unwrap();
    let there = biplane.route(&there.slug).await.unwrap();
    backend(&here).await;
    dying.kill().await.unwrap();
    let (_, took) = timed(backend(&there)).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn a_hundred_callers_of_a_dead_server_all_hear_of_it() {
    let cluster = Cluster::start().await.unwrap();
    let world = World::new(&cluster);
    let (biplane, _, db) = world.one(options(4)).await;
    cluster.kill().await.unwrap();
    let (all, took) = timed(join_all((0..100).map(|_| db.begin()))).await;
    for one in all {
        assert!(matches!(kind(one), ErrorKind::DatabaseUnavailable { .. }));
    }
    assert!(took < Duration::from_secs(10), "{took:?}");
    // They hear of it as soon as it is clear; attempts that were under way then are still to end.
    wait::until("no permit is held", LIMIT, async || {
        biplane.stats().connector.connections == 0
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn resting_connections_that_a_restart_killed_are_replaced_unseen() {
    let cluster = Cluster::start().await.unwrap();
    let world = World::new(&cluster);
    let (biplane, _, db) = world.one(options(5)).await;
    let held = join_all((0..5).map(|_| db.acquire())).await;
    drop(held);
    assert_eq!(biplane.stats().connector.resting, 5);
    cluster.restart().await.unwrap();
    // All five rest, and all are dead.
    let begun = join_all((0..5).map(|_| db.begin())).await;
    for tx in begun {
        tx.unwrap().commit().await.unwrap();
    }
}

/// As above, where each waits for the one before it, so that every dead connection is met by somebody.
#[tokio::test]
async fn one_dead_connection_tells_of_the_others() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(5)).await;
    drop(join_all((0..5).map(|_| db.acquire())).await);
    let mut watch = world.watch(&placed.database).await;
    watch.kill_sessions().await;
    let first = sqlx::query("select 1").execute(&db).await;
    assert!(first.is_err(), "a statement is never sent twice");
    for _ in 0..5 {
        backend(&db).await;
    }
    assert!(biplane.stats().connector.resting <= 1);
}

#[tokio::test]
async fn a_connection_that_rested_for_long_is_probed_first() {
    let world = World::new(shared().await);
    let mut options = options(3);
    options.probe_after = Duration::ZERO;
    let (_biplane, placed, db) = world.one(options).await;
    let first = backend(&db).await;
    assert_eq!(backend(&db).await, first, "a connection that answers is used");
    world.watch(&placed.database).await.kill_sessions().await;
    assert_ne!(
        backend(&db).await,
        first,
        "one that does not is replaced, unseen by a single statement"
    );
}

#[tokio::test]
async fn connections_at_rest_are_closed_but_for_those_to_be_kept() {
    let world = World::new(shared().await);
    let placed = world
        .tenant_with(Wish {
            min: 2,
            ..Wish::default()
        })
        .await;
    let mut options = options(5);
    options.idle_timeout = Duration::from_millis(50);
    let biplane = world.biplane(options);
    let db = biplane.route(&placed.slug).await.unwrap();
    let mut watch = world.watch(&placed.database).await;
    let mut held: Vec<_> = join_all((0..5).map(|_| db.acquire())).await;
    watch.until_sessions(5).await;
    let mut last = held.pop().unwrap().unwrap();
    let last_pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut last)
        .await
        .unwrap();
    drop(held);
    drop(last);
    watch.until_sessions(2).await;
    assert!(
        watch.pids().await.contains(&last_pid),
        "the last one used is kept"
    );
    assert_eq!(biplane.stats().connector.resting, 2);
}

#[tokio::test]
async fn a_connection_is_replaced_at_the_end_of_its_life() {
    let world = World::new(shared().await);
    let placed = world
        .tenant_with(Wish {
            min: 1,
            ..Wish::default()
        })
        .await;
    let mut options = options(1);
    options.max_lifetime = Duration::from_millis(300);
    let biplane = world.biplane(options);
    let db = biplane.route(&placed.slug).await.unwrap();
    let first = backend(&db).await;
    wait::until("another connection, in steady use", LIMIT, async || {
        backend(&db).await != first
    })
    .await
    .unwrap();
    let mut watch = world.watch(&placed.database).await;
    watch.until_sessions(0).await;
    wait::until("no permit is held", LIMIT, async || {
        biplane.stats().connector.connections == 0
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_pool_outlives_the_runtime_that_it_was_first_used_in() {
    let world = World::new(shared().await);
    let (biplane, _, db) = world.one(options(2)).await;
    let first = {
        let db = db.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async { backend(&db).await })
        })
    };
    assert!(
        tokio::task::spawn_blocking(|| first.join().unwrap())
            .await
            .unwrap()
            > 0
    );
    // Its connection died with that runtime.
    wait::until("a connection in this one", LIMIT, async || {
        sqlx::query("select 1").execute(&db).await.is_ok()
    })
    .await
    .unwrap();
    assert_eq!(biplane.stats().connector.waiting, 0);
}
