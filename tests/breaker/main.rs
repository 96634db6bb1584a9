//! Breakers on real servers: what is dead is left alone, what is not goes on, and what comes back is not run over.
//!
//! Attempts are counted at a door before the server, and nothing here is timed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../data_plane/mod.rs"]
mod data_plane;
mod door;
mod logins;
mod quiet;
mod seen;

use std::{num::NonZeroU32, time::Duration};

use biplane::{
    Biplane,
    error::{BudgetScope, Error, ErrorKind},
    plane::TenantDb,
    pool::{BreakerOptions, PoolOptions},
    repository::SourceChange,
    router::CacheOptions,
    tenant::{Endpoint, PoolSettings},
    testing::{postgres::Cluster, wait},
};
use data_plane::{LIMIT, Placed, Wish, World, backend, give_up_after, options, shared};
use door::{Door, Mode};
use futures_util::future::join_all;

/// Longer than any test runs.
const LONG: Duration = Duration::from_secs(600);

/// What opens stays open.
fn for_good() -> BreakerOptions {
    BreakerOptions::default().back_off(LONG, LONG)
}

/// What opens does so after one failure, and is tried again at once.
fn hasty() -> BreakerOptions {
    let short = Duration::from_millis(1);
    BreakerOptions::default()
        .failures(NonZeroU32::MIN)
        .back_off(short, short * 2)
}

fn biplane(world: &World<'_>, pool: PoolOptions, breakers: BreakerOptions) -> Biplane {
    Biplane::postgres(world.control.clone(), world.credentials.clone())
        .pool(pool)
        .breakers(breakers)
        .build()
        .unwrap()
}

fn kind<T: std::fmt::Debug>(result: sqlx::Result<T>) -> ErrorKind {
    let error = result.unwrap_err();
    Error::of(&error)
        .unwrap_or_else(|| panic!("not one of ours: {error:?}"))
        .kind()
}

/// Whether a call was refused with the time to try again.
fn is_refused(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DatabaseUnavailable { retry_after: Some(after) } if after > Duration::ZERO)
}

fn is_unavailable(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DatabaseUnavailable { .. })
}

/// Calls until a breaker opens.
async fn until_refused(db: &TenantDb) {
    wait::until("it is left alone", LIMIT, async || {
        let kind = kind(db.begin().await);
        assert!(is_unavailable(kind), "{kind:?}");
        is_refused(kind)
    })
    .await
    .unwrap();
}

async fn behind(world: &World<'_>, door: &Door) -> Placed {
    behind_with(world, &[&door.endpoint], Wish::default()).await
}

/// A tenant with a database of its own, reached by these endpoints.
async fn behind_with(world: &World<'_>, endpoints: &[&Endpoint], wish: Wish) -> Placed {
    let placed = world.tenant_with(wish).await;
    let mut server = world.cluster.server(&placed.database);
    server.endpoints = endpoints.iter().copied().cloned().collect();
    let change = SourceChange::default().location(biplane::tenant::Location::Server(server));
    world.change_source(&placed, change).await;
    placed
}

#[tokio::test]
async fn a_dead_server_is_left_alone_and_callers_are_told_until_when() {
    let cluster = Cluster::start().await.unwrap();
    let world = World::new(&cluster);
    let door = Door::before(cluster.endpoint()).await;
    let placed = behind(&world, &door).await;
    let biplane = biplane(&world, options(4), for_good());
    let db = biplane.route(&placed.slug).await.unwrap();
    backend(&db).await;
    cluster.kill().await.unwrap();
    until_refused_after_loss(&db).await;
    let came = door.came();
    for _ in 0..300 {
        assert!(is_refused(kind(db.begin().await)));
    }
    assert_eq!(door.came(), came, "nobody tries");
    let stats = biplane.stats().connector;
    assert_eq!(stats.open_breakers, 1);
    assert!(stats.refused >= 300, "{stats:?}");
    wait::until("no place is taken, and no permit", LIMIT, async || {
        let stats = biplane.stats().connector;
        (stats.waiting, stats.connections) == (0, 0)
    })
    .await
    .unwrap();
}

/// The first statement may find the connection that has died.
async fn until_refused_after_loss(db: &TenantDb) {
    drop(sqlx::query("select 1").execute(db).await);
    until_refused(db).await;
}

#[tokio::test]
async fn a_server_that_comes_back_is_taken_back() {
    let cluster = Cluster::start().await.unwrap();
    let world = World::new(&cluster);
    let placed = world.tenant().await;
    let breakers = BreakerOptions::default().back_off(Duration::from_millis(50), Duration::from_millis(800));
    let biplane = biplane(&world, options(4), breakers);
    let db = biplane.route(&placed.slug).await.unwrap();
    backend(&db).await;
    cluster.kill().await.unwrap();
    until_refused_after_loss(&db).await;
    cluster.start_again().await.unwrap();
    wait::until("it is back", LIMIT, async || db.begin().await.is_ok())
        .await
        .unwrap();
    backend(&db).await;
    assert_eq!(biplane.stats().connector.open_breakers, 0);
}

#[tokio::test]
async fn a_dead_server_takes_nothing_from_the_others() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    door.set(Mode::Shut);
    let mut dead = Vec::new();
    for _ in 0..5 {
        dead.push(behind(&world, &door).await);
    }
    let living = world.tenant().await;
    let biplane = biplane(&world, options(1), for_good());
    let living = biplane.route(&living.slug).await.unwrap();
    let first = biplane.route(&dead[0].slug).await.unwrap();
    until_refused(&first).await;
    let came = door.came();
    let pid = backend(&living).await;
    for _ in 0..20 {
        for placed in &dead {
            let db = biplane.route(&placed.slug).await.unwrap();
            assert!(is_refused(kind(db.begin().await)));
        }
        assert_eq!(backend(&living).await, pid, "nobody makes room for what is dead");
    }
    assert_eq!(
        door.came(),
        came,
        "the other tenants of the dead server know as well"
    );
}

/// A call that waits, as one of so many.
async fn waiter(biplane: &Biplane, placed: &Placed, waiting: usize) -> tokio::task::JoinHandle<ErrorKind> {
    let db = biplane.route(&placed.slug).await.unwrap();
    let call = tokio::spawn(async move { kind(db.begin().await) });
    wait::until("it waits", LIMIT, async || {
        biplane.stats().connector.waiting == waiting
    })
    .await
    .unwrap();
    call
}

#[tokio::test]
async fn who_waits_is_told_when_it_opens() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    door.set(Mode::Silent);
    let (trying, waiting) = (behind(&world, &door).await, behind(&world, &door).await);
    let living = world.tenant().await;
    let mut options = options(2);
    options.connect_timeout = Duration::from_secs(2);
    options.wait_timeout = Duration::from_secs(20);
    let biplane = biplane(&world, options, for_good().failures(NonZeroU32::MIN));
    let living = biplane.route(&living.slug).await.unwrap();
    let held = wait::until_some("a connection", LIMIT, async || living.acquire().await.ok())
        .await
        .unwrap();
    let trying = waiter(&biplane, &trying, 1).await;
    // The next permit is for this one, who came first and keeps it.
    let next = tokio::spawn(async move { living.acquire().await.unwrap() });
    wait::until("it waits", LIMIT, async || biplane.stats().connector.waiting == 2)
        .await
        .unwrap();
    let waiting = waiter(&biplane, &waiting, 3).await;
    assert!(is_refused(trying.await.unwrap()));
    assert!(
        is_refused(waiting.await.unwrap()),
        "and not that there were too few connections"
    );
    drop((held, next.await.unwrap()));
}

#[tokio::test]
async fn one_probe_is_let_through_and_the_others_are_refused() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    door.set(Mode::Shut);
    let mut tenants = Vec::new();
    for _ in 0..5 {
        tenants.push(behind(&world, &door).await);
    }
    let biplane = biplane(&world, options(50), hasty());
    let mut handles = Vec::new();
    for placed in &tenants {
        handles.push(biplane.route(&placed.slug).await.unwrap());
    }
    assert!(is_unavailable(kind(handles[0].begin().await)));
    let came = door.came();
    door.set(Mode::Silent);
    let probe = tokio::spawn({
        let db = handles[0].clone();
        // Its time may not have come yet.
        async move { while is_refused(kind(db.begin().await)) {} }
    });
    wait::until("the probe is under way", LIMIT, async || door.came() > came)
        .await
        .unwrap();
    for kind in join_all(handles.iter().cycle().take(100).map(|db| db.begin())).await {
        let kind = self::kind(kind);
        assert!(is_refused(kind), "{kind:?}");
    }
    assert_eq!(door.came(), came + 1, "and nothing beside it");
    probe.abort();
}

#[tokio::test]
async fn a_probe_whose_caller_leaves_goes_on() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    door.set(Mode::Shut);
    let placed = behind(&world, &door).await;
    let biplane = biplane(&world, options(2), hasty());
    let db = biplane.route(&placed.slug).await.unwrap();
    assert!(is_unavailable(kind(db.begin().await)));
    let came = door.came();
    door.set(Mode::Through);
    wait::until("a probe has begun, without a caller", LIMIT, async || {
        drop(give_up_after(2, db.begin()).await);
        door.came() > came
    })
    .await
    .unwrap();
    wait::until("it ended well", LIMIT, async || {
        let stats = biplane.stats().connector;
        stats.open_breakers == 0 && stats.resting > 0
    })
    .await
    .unwrap();
    backend(&db).await;
}

#[tokio::test]
async fn a_server_that_comes_back_is_not_run_over() {
    const TENANTS: usize = 30;
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    let mut tenants = Vec::new();
    for _ in 0..TENANTS {
        tenants.push(behind(&world, &door).await);
    }
    // A slow start ends by itself after the longest back-off.
    let breakers = hasty().back_off(Duration::from_millis(1), LONG);
    let biplane = biplane(&world, options(50), breakers);
    door.set(Mode::Shut);
    let first = biplane.route(&tenants[0].slug).await.unwrap();
    assert!(is_unavailable(kind(first.begin().await)));
    door.set(Mode::Guarded);
    let done = tokio::sync::watch::Sender::new(false);
    let mut callers = Vec::new();
    for placed in &tenants {
        let db = biplane.route(&placed.slug).await.unwrap();
        let mut done = done.subscribe();
        callers.push(tokio::spawn(async move {
            // Refused while it is probed, and then let in with the others.
            let held = loop {
                match db.acquire().await {
                    Ok(held) => break held,
                    Err(error) => {
                        let kind = Error::of(&error).unwrap().kind();
                        assert!(is_unavailable(kind), "{kind:?}");
                        tokio::task::yield_now().await;
                    }
                }
            };
            done.wait_for(|done| *done).await.unwrap();
            drop(held);
        }));
    }
    for number in 1..=TENANTS {
        wait::until("somebody stands at the door", LIMIT, async || door.standing() > 0)
            .await
            .unwrap();
        door.let_in();
        wait::until("one went in", LIMIT, async || door.went_in() == number)
            .await
            .unwrap();
    }
    wait::until("all are in", LIMIT, async || {
        biplane.stats().connector.connections == TENANTS && door.standing() == 0
    })
    .await
    .unwrap();
    done.send_replace(true);
    for caller in callers {
        caller.await.unwrap();
    }
    // The probe makes room for two, and each that got in for one more; the one being let in may still be counted.
    assert!(door.crowd() <= 3, "{} at once", door.crowd());
}

#[tokio::test]
async fn an_endpoint_that_is_dead_is_passed_over() {
    let world = World::new(shared().await);
    let (dead, living) = (
        Door::before(world.cluster.endpoint()).await,
        Door::before(world.cluster.endpoint()).await,
    );
    dead.set(Mode::Shut);
    let both = [&dead.endpoint, &living.endpoint];
    let placed = behind_with(&world, &both, Wish::default()).await;
    let biplane = biplane(&world, options(10), for_good().failures(NonZeroU32::MIN));
    let db = biplane.route(&placed.slug).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(db.acquire().await.unwrap());
    }
    assert_eq!((dead.came(), living.came()), (1, 6));
    assert_eq!(biplane.stats().connector.open_breakers, 1);
}

#[tokio::test]
async fn a_breaker_outlives_the_pool_that_it_guarded() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    door.set(Mode::Shut);
    let placed = behind(&world, &door).await;
    let biplane = biplane(&world, options(4), for_good());
    let db = biplane.route(&placed.slug).await.unwrap();
    until_refused(&db).await;
    let came = door.came();
    let change = SourceChange::default().pool(PoolSettings::new(0, 7).unwrap());
    world.change_source(&placed, change).await;
    biplane.invalidate(placed.id).await;
    assert!(is_refused(kind(db.begin().await)));
    assert_eq!(door.came(), came);
}

#[tokio::test]
async fn connections_that_work_are_lent_while_no_new_ones_can_be_had() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    let placed = behind(&world, &door).await;
    let biplane = biplane(&world, options(4), for_good());
    let db = biplane.route(&placed.slug).await.unwrap();
    let held = db.acquire().await.unwrap();
    door.set(Mode::Shut);
    until_refused(&db).await;
    drop(held);
    let pid = backend(&db).await;
    assert_eq!(backend(&db).await, pid);
    // One that has died meanwhile is not lent.
    world.watch(&placed.database).await.kill_sessions().await;
    assert!(is_refused(kind(sqlx::query("select 1").execute(&db).await)));
}

#[tokio::test]
async fn waiting_in_vain_for_our_own_connections_says_nothing_about_the_server() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    let placed = behind_with(&world, &[&door.endpoint], Wish::max(1)).await;
    let mut options = options(2);
    options.wait_timeout = Duration::from_millis(20);
    // Nothing else asks the control plane again.
    let biplane = Biplane::postgres(world.control.clone(), world.credentials.clone())
        .pool(options)
        .breakers(for_good().failures(NonZeroU32::MIN))
        .cache(CacheOptions::default().fresh_for(LONG))
        .without_changes()
        .build()
        .unwrap();
    let db = biplane.route(&placed.slug).await.unwrap();
    let held = wait::until_some("a connection", LIMIT, async || db.acquire().await.ok())
        .await
        .unwrap();
    let loads = biplane.stats().loads;
    for _ in 0..5 {
        let scope = BudgetScope::DataSource;
        assert_eq!(kind(db.begin().await), ErrorKind::BudgetExhausted { scope });
        assert!(give_up_after(2, db.begin()).await.is_none());
    }
    assert_eq!(biplane.stats().connector.open_breakers, 0);
    assert_eq!(biplane.stats().loads, loads, "nor about where the data is");
    drop(held);
    backend(&db).await;
}

#[tokio::test]
async fn what_a_statement_is_refused_for_says_nothing_about_the_server() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    let placed = behind(&world, &door).await;
    let biplane = biplane(&world, options(4), for_good().failures(NonZeroU32::MIN));
    let db = biplane.route(&placed.slug).await.unwrap();
    for _ in 0..10 {
        for sql in [
            "select 1 / 0",
            "select no_such_column",
            "not sql at all",
            "do $$ begin raise exception 'as if it were starting' using errcode = '57P03'; end $$",
            "do $$ begin raise exception 'as if the password were wrong' using errcode = '28P01'; end $$",
        ] {
            sqlx::query(sql).execute(&db).await.unwrap_err();
        }
    }
    assert_eq!(biplane.stats().connector.open_breakers, 0);
    backend(&db).await;
}

#[tokio::test]
async fn callers_that_leave_while_connecting_say_nothing_about_the_server() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    let placed = behind(&world, &door).await;
    let biplane = biplane(&world, options(4), for_good().failures(NonZeroU32::MIN));
    let db = biplane.route(&placed.slug).await.unwrap();
    for polls in 0..20 {
        drop(give_up_after(polls, sqlx::query("select pg_sleep(0.01)").execute(&db)).await);
    }
    assert_eq!(biplane.stats().connector.open_breakers, 0);
    backend(&db).await;
}

#[tokio::test]
async fn a_server_that_cannot_serve_anybody_yet_is_left_alone() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    door.set(Mode::Says("57P03"));
    let (here, also_here) = (behind(&world, &door).await, behind(&world, &door).await);
    let biplane = biplane(&world, options(4), for_good());
    let db = biplane.route(&here.slug).await.unwrap();
    until_refused(&db).await;
    let came = door.came();
    let other = biplane.route(&also_here.slug).await.unwrap();
    assert!(is_refused(kind(other.begin().await)));
    assert_eq!((came, door.came()), (3, 3));
}

#[tokio::test]
async fn what_a_pooler_says_of_one_database_is_not_held_against_the_others() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    door.set(Mode::Says("08P01"));
    let (here, also_here) = (behind(&world, &door).await, behind(&world, &door).await);
    let biplane = biplane(&world, options(4), for_good());
    let db = biplane.route(&here.slug).await.unwrap();
    until_refused(&db).await;
    door.set(Mode::Through);
    assert!(is_refused(kind(db.begin().await)));
    backend(&biplane.route(&also_here.slug).await.unwrap()).await;
}

/// A server without room, and a login that may not use what is reserved.
async fn crowded(world: &World<'_>) -> (Placed, Vec<sqlx::PgConnection>) {
    let role = format!("guest_{}", uuid::Uuid::new_v4().simple());
    let password = secrecy::SecretString::from("guest");
    let guest = world.cluster.create_role(&role, &password, &[]).await.unwrap();
    let wish = Wish {
        credential: Some(guest.clone()),
        ..Wish::default()
    };
    let placed = world.tenant_with(wish).await;
    let mut crowd = Vec::new();
    while let Ok(one) = world.cluster.connect_as(&guest, &placed.database).await {
        crowd.push(one);
    }
    (placed, crowd)
}

#[tokio::test]
async fn a_full_server_is_not_a_dead_one() {
    let cluster = Cluster::builder().max_connections(12).start().await.unwrap();
    let world = World::new(&cluster);
    let (placed, mut crowd) = crowded(&world).await;
    let biplane = biplane(&world, options(8), for_good().failures(NonZeroU32::MIN));
    let db = biplane.route(&placed.slug).await.unwrap();
    let scope = BudgetScope::Server;
    for _ in 0..5 {
        assert_eq!(kind(db.begin().await), ErrorKind::BudgetExhausted { scope });
    }
    assert_eq!(biplane.stats().connector.open_breakers, 0);
    crowd.pop();
    wait::until("one fits in", LIMIT, async || db.begin().await.is_ok())
        .await
        .unwrap();
    // More do not, and so they share the one that there is.
    let shared = join_all((0..6).map(|_| backend(&db))).await;
    assert!(shared.iter().all(|pid| *pid == shared[0]), "{shared:?}");
    drop(crowd);
    wait::until("it grows again", LIMIT, async || {
        let held = join_all((0..4).map(|_| db.acquire())).await;
        held.iter().filter(|held| held.is_ok()).count() == 4 && biplane.stats().connector.connections >= 4
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_rests_elsewhere_on_a_full_server_makes_room() {
    let cluster = Cluster::builder().max_connections(12).start().await.unwrap();
    let world = World::new(&cluster);
    let resting = world.tenant().await;
    let biplane = biplane(&world, options(8), for_good());
    let first = biplane.route(&resting.slug).await.unwrap();
    backend(&first).await;
    let (placed, _crowd) = crowded(&world).await;
    let db = biplane.route(&placed.slug).await.unwrap();
    backend(&db).await;
}

#[test]
fn options_that_cannot_work_are_refused_when_the_router_is_built() {
    let control = biplane::repository::MemoryControl::new();
    let credentials = biplane::repository::MemoryCredentials::new();
    let second = Duration::from_secs(1);
    for options in [
        BreakerOptions::default().back_off(Duration::ZERO, second),
        BreakerOptions::default().back_off(second * 2, second),
    ] {
        let built = Biplane::postgres(control.clone(), credentials.clone())
            .breakers(options)
            .build();
        assert_eq!(built.unwrap_err().kind(), ErrorKind::InvalidConfiguration);
    }
}
