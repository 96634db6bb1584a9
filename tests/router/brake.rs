//! What would close or move most tenants at once is held until somebody says that it is meant, and so is everything while
//! routing is frozen.
//!
//! Tokio's time is paused, so that looks come as soon as the test waits; the router's clock moves by hand.

use std::{num::NonZeroU32, time::Duration};

use biplane::{
    Biplane,
    connector::memory::{MemoryConnector, MemoryDb},
    error::ErrorKind,
    repository::{
        ChangeLog, ChangeSource, CredentialPlace, CredentialSlot, CredentialStore, MemoryControl, NewTenant,
        Reseal, SourceChange, TenantAdmin,
    },
    router::{BrakeOptions, Builder, CacheOptions, Clock, FeedOptions},
    tenant::{
        DataSourceId, Isolation, PoolSettings, Role, SealedText, Tenant, TenantId, TenantRef, TenantStatus,
        Version,
    },
    testing::faulty::{Fault, FaultyRepository},
};

use crate::{
    feed::{Restorable, SUSPENDED, some_looks},
    support::{Notes, Steps, by, kind, listen_to_the_log, logged, seconds, settle, slug},
};

const UNKNOWN: Option<ErrorKind> = Some(ErrorKind::UnknownTenant);

struct World {
    control: MemoryControl,
    repository: FaultyRepository<MemoryControl>,
    log: FaultyRepository<MemoryControl>,
    clock: Clock,
    biplane: Biplane<MemoryDb<Notes>>,
}

type Set = Builder<MemoryConnector<Notes>>;

fn world() -> World {
    world_with(|builder| builder)
}

fn world_with(set: impl FnOnce(Set) -> Set) -> World {
    let control = MemoryControl::new();
    let repository = FaultyRepository::new(control.clone());
    let log = FaultyRepository::new(control.clone());
    let clock = Clock::manual();
    let builder = Biplane::memory(repository.clone(), |_| Notes::new())
        .changes(ChangeSource::polled(log.clone()))
        .clock(clock.clone());
    World {
        control,
        repository,
        log,
        clock,
        biplane: set(builder).build().unwrap(),
    }
}

/// A tenant whose route is cached, and a handle on it that was given out.
type Cached = (Tenant, MemoryDb<Notes>);

impl World {
    /// Waits for looks that begin after now, and for whatever they entail.
    async fn looks(&self, number: usize) {
        let calls = self.log.calls();
        for n in 1..=number {
            self.log.reached(calls + n).await;
            settle().await;
        }
    }

    /// So many active tenants whose routes are cached and followed.
    async fn cached(&self, number: usize) -> Vec<Cached> {
        let mut tenants = Vec::new();
        for n in 0..number {
            tenants.push(self.control.tenant(&format!("tenant-{n}")).await);
        }
        self.looks(2).await;
        let mut cached = Vec::new();
        for tenant in tenants {
            let held = self.biplane.route(&tenant.slug).await.unwrap();
            cached.push((tenant, held));
        }
        self.looks(2).await;
        cached
    }

    async fn suspend(&self, tenants: &[Cached]) {
        for (tenant, _) in tenants {
            self.control.turn(tenant.id, TenantStatus::Suspended).await;
        }
    }

    fn held(&self) -> usize {
        self.biplane.stats().brake.held_tenants
    }

    fn is_braked(&self) -> bool {
        self.biplane.stats().brake.braked_for.is_some()
    }
}

/// By whatever name, and by handles that were given out.
async fn all_are(biplane: &Biplane<MemoryDb<Notes>>, tenants: &[Cached], expected: Option<ErrorKind>) {
    for (tenant, held) in tenants {
        assert_eq!(kind(held.read(|_| ()).await), expected, "{}", tenant.slug);
        assert_eq!(kind(biplane.route(&tenant.slug).await), expected);
        assert_eq!(kind(biplane.route(tenant.id).await), expected);
    }
}

async fn all_are_served(biplane: &Biplane<MemoryDb<Notes>>, tenants: &[Cached]) {
    for (tenant, _) in tenants {
        assert!(biplane.cached(&tenant.slug).is_some(), "{}", tenant.slug);
    }
    all_are(biplane, tenants, None).await;
}

#[tokio::test(start_paused = true)]
async fn suspending_most_tenants_at_once_leaves_them_served_and_says_so() {
    let world = world();
    let tenants = world.cached(40).await;
    let before = world.biplane.applied();
    world.suspend(&tenants[..21]).await;
    world.looks(1).await;
    all_are_served(&world.biplane, &tenants).await;
    let calls = world.repository.calls();
    for _ in 0..20 {
        world.clock.advance(seconds(30));
        world.looks(1).await;
        all_are_served(&world.biplane, &tenants).await;
    }
    let passed = seconds(20 * 30);
    assert_eq!(world.repository.calls(), calls, "nothing is asked for in vain");
    let stats = world.biplane.stats();
    let brake = stats.brake;
    assert_eq!((brake.changed, brake.of, brake.held_tenants), (21, 40, 21));
    assert_eq!((brake.braked_for, brake.engaged), (Some(passed), 1));
    // Whoever waits for the changes to act is not told that they do.
    assert_eq!(world.biplane.applied(), before);
    assert!(before < world.control.head().await.unwrap().seq);
    // Nobody takes them for confirmed, and the others are.
    assert_eq!(tenants[0].1.route_age(), Some(passed));
    assert_eq!(tenants[30].1.route_age(), Some(Duration::ZERO));
    assert_eq!(stats.feed.unsure_tenants, 0);
}

#[tokio::test(start_paused = true)]
async fn the_override_lets_it_through_and_the_brake_engages_again() {
    let world = world();
    let tenants = world.cached(80).await;
    world.suspend(&tenants[..50]).await;
    world.looks(1).await;
    assert!(world.is_braked());
    world.biplane.release_brake().await;
    settle().await;
    all_are(&world.biplane, &tenants[..50], SUSPENDED).await;
    all_are_served(&world.biplane, &tenants[50..]).await;
    let brake = world.biplane.stats().brake;
    assert_eq!(
        (brake.braked_for, brake.held_tenants, brake.engaged),
        (None, 0, 1)
    );
    let head = world.control.head().await.unwrap().seq;
    assert_eq!(world.biplane.applied(), head);

    // What comes after is counted from the beginning.
    world.suspend(&tenants[50..55]).await;
    world.looks(1).await;
    all_are(&world.biplane, &tenants[50..55], SUSPENDED).await;
    world.suspend(&tenants[55..70]).await;
    world.looks(1).await;
    all_are_served(&world.biplane, &tenants[55..]).await;
    assert_eq!(world.biplane.stats().brake.engaged, 2);
}

#[tokio::test(start_paused = true)]
async fn a_suspension_below_the_share_acts_at_once() {
    let world = world();
    let tenants = world.cached(40).await;
    world.suspend(&tenants[..20]).await;
    world.looks(1).await;
    all_are(&world.biplane, &tenants[..20], SUSPENDED).await;
    all_are_served(&world.biplane, &tenants[20..]).await;
    assert_eq!(world.biplane.stats().brake, Default::default());
    assert_eq!(world.biplane.applied(), world.control.head().await.unwrap().seq);
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_one_after_the_other_count_together() {
    let world = world();
    let tenants = world.cached(40).await;
    for few in tenants.chunks(4) {
        world.suspend(few).await;
        world.looks(1).await;
        world.clock.advance(seconds(3));
    }
    // What was let through before the line was crossed stays.
    all_are(&world.biplane, &tenants[..20], SUSPENDED).await;
    all_are_served(&world.biplane, &tenants[20..]).await;
    let brake = world.biplane.stats().brake;
    assert_eq!((brake.changed, brake.of, brake.held_tenants), (24, 40, 20));
}

#[tokio::test(start_paused = true)]
async fn a_change_counts_for_the_time_of_the_window_and_a_tenant_once() {
    let world = world();
    let tenants = world.cached(40).await;
    for few in [&tenants[..12], &tenants[12..24]] {
        world.suspend(few).await;
        world.looks(1).await;
        all_are(&world.biplane, few, SUSPENDED).await;
        world.clock.advance(BrakeOptions::default().window);
    }
    for _ in 0..20 {
        let (one, _) = &tenants[30];
        world.control.turn(one.id, TenantStatus::ReadOnly).await;
        world.looks(1).await;
        world.control.turn(one.id, TenantStatus::Active).await;
        world.looks(1).await;
    }
    assert_eq!(world.biplane.stats().brake.engaged, 0);
}

#[tokio::test(start_paused = true)]
async fn opening_tenants_takes_nothing_from_anybody_and_is_never_held() {
    let world = world();
    let tenants = world.cached(60).await;
    for few in tenants[..40].chunks(10) {
        world.suspend(few).await;
        world.looks(1).await;
        world.clock.advance(BrakeOptions::default().window);
    }
    all_are(&world.biplane, &tenants[..40], SUSPENDED).await;
    world.biplane.freeze().await;
    for (tenant, _) in &tenants[..40] {
        world.control.turn(tenant.id, TenantStatus::Active).await;
    }
    world.looks(2).await;
    all_are(&world.biplane, &tenants, None).await;
    assert_eq!(world.biplane.stats().brake.engaged, 0);
}

#[tokio::test(start_paused = true)]
async fn what_one_look_finds_is_held_whole_however_many_pages_it_has() {
    let page = NonZeroU32::new(5).unwrap();
    let world = world_with(|builder| builder.feed(FeedOptions::default().page(page)));
    let tenants = world.cached(40).await;
    world.looks(50).await;
    world.log.set(Fault::Unreachable);
    world.looks(1).await;
    world.suspend(&tenants[..30]).await;
    world.log.set(Fault::None);
    world.looks(10).await;
    all_are_served(&world.biplane, &tenants).await;
    assert_eq!(world.held(), 30);
}

#[tokio::test(start_paused = true)]
async fn credentials_and_settings_of_all_tenants_do_not_engage_it() {
    let world = world();
    let tenants = world.cached(40).await;
    let sealed = |key: char| {
        let (key, text) = (key.to_string().repeat(16), "a".repeat(100));
        SealedText::new(format!("bp1.{key}.{text}"))
    };
    let mut batch = Vec::new();
    for (tenant, _) in &tenants {
        let (source, slot) = (tenant.placement.source, CredentialSlot::Current);
        world
            .control
            .set_credential(&by(), source, Role::App, slot, None, sealed('0'))
            .await
            .unwrap();
        let place = CredentialPlace::new(source, Role::App, slot);
        batch.push(Reseal::new(place, sealed('0'), sealed('1')));
    }
    world.looks(1).await;
    // All under another key, as by a rotation of keys.
    let _ = world.repository.take_asked();
    world.control.reseal_credentials(&by(), &batch).await.unwrap();
    world.looks(1).await;
    assert!(
        world.repository.take_asked().len() >= tenants.len(),
        "they are taken up"
    );
    for (tenant, _) in &tenants {
        world.control.touch(tenant.id).await;
    }
    world.looks(2).await;
    all_are(&world.biplane, &tenants, None).await;
    assert_eq!(world.biplane.stats().brake, Default::default());
    assert_eq!(world.biplane.applied(), world.control.head().await.unwrap().seq);
}

#[tokio::test(start_paused = true)]
async fn credentials_reach_tenants_that_are_not_held_while_others_are() {
    let world = world();
    let tenants = world.cached(40).await;
    world.suspend(&tenants[..30]).await;
    world.looks(1).await;
    let _ = world.repository.take_asked();
    world.control.touch(tenants[35].0.id).await;
    world.looks(1).await;
    let id = TenantRef::Id(tenants[35].0.id).to_name();
    assert!(world.repository.take_asked().contains(&id));
    assert_eq!(world.held(), 30);
    // The handle of what was read anew is made for the first who asks.
    all_are(&world.biplane, &tenants, None).await;
    all_are_served(&world.biplane, &tenants).await;
    // What closes one more is held with the rest.
    world.suspend(&tenants[39..]).await;
    world.looks(1).await;
    assert_eq!(world.held(), 31);
    all_are_served(&world.biplane, &tenants).await;
}

#[tokio::test(start_paused = true)]
async fn a_data_source_that_moves_counts_for_every_tenant_on_it() {
    let world = world();
    let mut tenants = Vec::new();
    for n in 0..30 {
        let mut new = NewTenant::new(slug(&format!("tenant-{n}")), DataSourceId::DEFAULT);
        new.isolation = Isolation::Row;
        let tenant = world.control.create(&by(), new).await.unwrap();
        tenants.push(world.control.turn(tenant.id, TenantStatus::Active).await);
    }
    world.looks(2).await;
    for tenant in &tenants {
        world.biplane.route(tenant.id).await.unwrap();
    }
    world.looks(2).await;
    let change = SourceChange::default().pool(PoolSettings::new(0, 3).unwrap());
    let source = DataSourceId::DEFAULT;
    world
        .control
        .update_source(&by(), source, Version::FIRST, change)
        .await
        .unwrap();
    let _ = world.repository.take_asked();
    world.looks(2).await;
    let brake = world.biplane.stats().brake;
    assert_eq!((brake.changed, brake.of, brake.held_tenants), (30, 30, 30));
    assert_eq!(world.repository.take_asked(), []);
    world.biplane.release_brake().await;
    settle().await;
    assert_eq!(world.repository.take_asked().len(), 30);
}

#[tokio::test(start_paused = true)]
async fn tenants_that_are_not_cached_are_loaded_while_the_brake_holds() {
    let world = world();
    let tenants = world.cached(40).await;
    let unused = world.control.tenant("unused").await;
    let unknown = slug("new");
    assert_eq!(kind(world.biplane.route(&unknown).await), UNKNOWN);
    world.suspend(&tenants).await;
    world.control.turn(unused.id, TenantStatus::Suspended).await;
    world.looks(1).await;
    assert!(world.is_braked());
    assert_eq!(kind(world.biplane.route(unused.id).await), SUSPENDED);
    world.control.tenant("new").await;
    world.looks(1).await;
    world.biplane.route(&unknown).await.unwrap();
    assert_eq!(kind(world.biplane.route(TenantId::new()).await), UNKNOWN);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_announced_is_read_anew_also_while_it_is_held() {
    let world = world();
    let tenants = world.cached(40).await;
    world.suspend(&tenants).await;
    world.looks(1).await;
    let (acme, held) = &tenants[0];
    held.read(|_| ()).await.unwrap();
    world.biplane.invalidate(acme.id).await;
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
    assert_eq!(kind(world.biplane.route(&acme.slug).await), SUSPENDED);
    assert_eq!(world.held(), 39);
    all_are_served(&world.biplane, &tenants[1..]).await;
}

#[tokio::test(start_paused = true)]
async fn no_route_is_held_beyond_the_age_at_which_it_ends() {
    let stale_for = CacheOptions::default().stale_for;
    let bound = seconds(90);
    for (options, ends) in [
        (CacheOptions::default(), stale_for),
        (CacheOptions::default().fail_closed_after(bound), bound),
    ] {
        let world = world_with(|builder| builder.cache(options));
        let tenants = world.cached(40).await;
        world.suspend(&tenants[..30]).await;
        world.looks(1).await;
        world.clock.advance(ends - Duration::from_millis(1));
        world.looks(1).await;
        all_are_served(&world.biplane, &tenants).await;
        world.clock.advance(Duration::from_millis(1));
        all_are(&world.biplane, &tenants[..30], SUSPENDED).await;
        world.looks(1).await;
        all_are_served(&world.biplane, &tenants[30..]).await;
        assert_eq!(world.held(), 0);
    }
}

/// Whoever reads a record finds out first.
#[tokio::test(start_paused = true)]
async fn without_a_change_feed_it_is_counted_when_routes_are_read_anew() {
    let world = world_with(Builder::without_changes);
    let mut tenants = Vec::new();
    for n in 0..40 {
        let tenant = world.control.tenant(&format!("tenant-{n}")).await;
        let held = world.biplane.route(&tenant.slug).await.unwrap();
        tenants.push((tenant, held));
    }
    let options = CacheOptions::default();
    world.suspend(&tenants[..30]).await;
    world.clock.advance(options.fresh_for);
    for _ in 0..5 {
        // Served while they are refreshed, and so they stay.
        all_are(&world.biplane, &tenants, None).await;
        settle().await;
        world.clock.advance(options.fresh_for);
    }
    assert_eq!(world.held(), 30);
    assert_eq!(tenants[0].1.route_age(), Some(options.fresh_for * 6));
    world.biplane.release_brake().await;
    settle().await;
    all_are(&world.biplane, &tenants[..30], SUSPENDED).await;
    all_are(&world.biplane, &tenants[30..], None).await;
    assert_eq!(world.biplane.stats().brake.engaged, 1);
}

#[tokio::test(start_paused = true)]
async fn a_mistake_that_is_undone_before_it_is_released_reaches_nobody() {
    let world = world();
    let tenants = world.cached(40).await;
    world.suspend(&tenants).await;
    world.looks(1).await;
    for (tenant, _) in &tenants {
        world.control.turn(tenant.id, TenantStatus::Active).await;
        world.looks(1).await;
    }
    all_are_served(&world.biplane, &tenants).await;
    world.biplane.release_brake().await;
    all_are(&world.biplane, &tenants, None).await;
    assert_eq!(world.held(), 0);
}

/// A control plane with the tenants of these ids, `tenant-0` and so on.
async fn control_with(ids: &[TenantId]) -> MemoryControl {
    let control = MemoryControl::new();
    for (n, id) in ids.iter().enumerate() {
        let mut new = NewTenant::new(slug(&format!("tenant-{n}")), DataSourceId::DEFAULT);
        (new.id, new.isolation) = (*id, Isolation::Row);
        control.create(&by(), new).await.unwrap();
        control.turn(*id, TenantStatus::Active).await;
    }
    control
}

/// A router on a control plane with so many tenants, all of them cached.
async fn restorable(number: usize) -> (Restorable, Biplane<MemoryDb<Notes>>, Vec<TenantId>, Vec<Cached>) {
    let ids: Vec<_> = (0..number).map(|_| TenantId::new()).collect();
    let control = control_with(&ids).await;
    let restorable = Restorable::new(&control);
    let biplane = Biplane::memory(restorable.clone(), |_| Notes::new())
        .changes(restorable.clone())
        .clock(Clock::manual())
        .build()
        .unwrap();
    some_looks().await;
    let names: Vec<_> = ids.iter().copied().map(TenantRef::Id).collect();
    assert_eq!(biplane.warm_up(&names).await.routed, number);
    let mut tenants = Vec::new();
    for id in &ids {
        let tenant = control.now(*id).await;
        let held = biplane.route(&tenant.slug).await.unwrap();
        tenants.push((tenant, held));
    }
    some_looks().await;
    (restorable, biplane, ids, tenants)
}

#[tokio::test(start_paused = true)]
async fn a_restored_control_plane_without_most_of_the_tenants_takes_none_away() {
    let (restorable, biplane, ids, tenants) = restorable(60).await;
    let restored = control_with(&ids[..25]).await;
    restorable.restore(&restored);
    some_looks().await;
    all_are_served(&biplane, &tenants).await;
    let stats = biplane.stats();
    assert_eq!((stats.feed.resyncs, stats.feed.unsure_tenants), (1, 0));
    let brake = stats.brake;
    assert_eq!((brake.changed, brake.of, brake.held_tenants), (35, 60, 35));
    // Time shows nothing new.
    some_looks().await;
    all_are_served(&biplane, &tenants).await;

    biplane.release_brake().await;
    settle().await;
    all_are(&biplane, &tenants[25..], UNKNOWN).await;
    all_are(&biplane, &tenants[..25], None).await;
    assert_eq!(biplane.stats().brake.held_tenants, 0);
}

/// They are read again in batches, none of which is a large share of all.
#[tokio::test(start_paused = true)]
async fn of_an_emptied_control_plane_the_first_batch_tells() {
    let (restorable, biplane, _, tenants) = restorable(1_200).await;
    restorable.restore(&MemoryControl::new());
    some_looks().await;
    all_are_served(&biplane, &tenants).await;
    assert_eq!(biplane.stats().brake.held_tenants, 1_200);
    // What was released is not braked again, however it comes in.
    biplane.release_brake().await;
    some_looks().await;
    all_are(&biplane, &tenants[..200], UNKNOWN).await;
    assert_eq!(biplane.stats().brake.engaged, 1);
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_is_released_in_the_control_plane_is_believed_at_once() {
    let (restorable, biplane, ids, tenants) = restorable(60).await;
    let restored = control_with(&ids[..25]).await;
    restored.release_brake(&by()).await.unwrap();
    restorable.restore(&restored);
    some_looks().await;
    all_are(&biplane, &tenants[25..], UNKNOWN).await;
    all_are_served(&biplane, &tenants[..25]).await;
    assert_eq!(biplane.stats().brake.engaged, 0);
}

#[tokio::test(start_paused = true)]
async fn changes_that_were_pruned_before_they_were_read_are_braked_as_well() {
    let world = world();
    let tenants = world.cached(40).await;
    world.log.set(Fault::Unreachable);
    world.looks(1).await;
    world.suspend(&tenants[..30]).await;
    world.control.prune_changes(Duration::ZERO);
    world.log.set(Fault::None);
    world.looks(5).await;
    all_are_served(&world.biplane, &tenants).await;
    assert_eq!(world.held(), 30);
}

#[tokio::test(start_paused = true)]
async fn an_administrator_releases_all_processes_and_what_comes_after_is_counted_anew() {
    let world = world();
    let tenants = world.cached(130).await;
    world.suspend(&tenants[..70]).await;
    world.looks(1).await;
    assert_eq!(world.held(), 70);
    world.control.release_brake(&by()).await.unwrap();
    world.looks(1).await;
    all_are(&world.biplane, &tenants[..70], SUSPENDED).await;
    assert_eq!((world.held(), world.is_braked()), (0, false));
    assert_eq!(world.biplane.applied(), world.control.head().await.unwrap().seq);

    // Said before anybody has seen the change, it keeps the brake from engaging.
    world.suspend(&tenants[70..105]).await;
    world.control.release_brake(&by()).await.unwrap();
    world.suspend(&tenants[105..107]).await;
    world.looks(1).await;
    all_are(&world.biplane, &tenants[70..107], SUSPENDED).await;
    assert_eq!(world.biplane.stats().brake.engaged, 1);

    // And says nothing of what is changed later.
    world.suspend(&tenants[107..125]).await;
    world.looks(1).await;
    all_are_served(&world.biplane, &tenants[107..]).await;
    assert_eq!(world.biplane.stats().brake.engaged, 2);
}

#[tokio::test(start_paused = true)]
async fn frozen_routes_stay_and_cold_ones_load_until_it_is_thawed() {
    let world = world();
    let tenants = world.cached(3).await;
    world.biplane.freeze().await;
    world.suspend(&tenants[..2]).await;
    let cold = world.control.tenant("cold").await;
    world.clock.advance(seconds(600));
    world.looks(2).await;
    all_are_served(&world.biplane, &tenants).await;
    world.biplane.route(&cold.slug).await.unwrap();
    let brake = world.biplane.stats().brake;
    assert_eq!((brake.frozen_here, brake.held_tenants), (Some(seconds(600)), 2));
    assert_eq!((brake.frozen_everywhere, brake.braked_for), (None, None));
    // A release is not a thaw.
    world.biplane.release_brake().await;
    world.control.release_brake(&by()).await.unwrap();
    world.looks(1).await;
    all_are_served(&world.biplane, &tenants).await;

    world.biplane.thaw().await;
    settle().await;
    all_are(&world.biplane, &tenants[..2], SUSPENDED).await;
    all_are_served(&world.biplane, &tenants[2..]).await;
    assert_eq!(world.biplane.stats().brake, Default::default());
    assert_eq!(world.biplane.applied(), world.control.head().await.unwrap().seq);
}

#[tokio::test(start_paused = true)]
async fn the_control_plane_freezes_all_processes_also_those_that_start_meanwhile() {
    let world = world();
    let tenants = world.cached(3).await;
    world.control.freeze(&by()).await.unwrap();
    world.looks(1).await;
    let started = Biplane::memory(world.repository.clone(), |_| Notes::new())
        .changes(ChangeSource::polled(world.log.clone()))
        .clock(world.clock.clone())
        .build()
        .unwrap();
    some_looks().await;
    let mut cold = Vec::new();
    for (tenant, _) in &tenants {
        cold.push((tenant.clone(), started.route(&tenant.slug).await.unwrap()));
    }
    some_looks().await;
    world.suspend(&tenants[..2]).await;
    some_looks().await;
    all_are_served(&world.biplane, &tenants).await;
    all_are_served(&started, &cold).await;
    for biplane in [&world.biplane, &started] {
        let brake = biplane.stats().brake;
        assert!(brake.frozen_everywhere.is_some() && brake.frozen_here.is_none());
        assert_eq!(brake.held_tenants, 2);
    }
    // One process alone cannot thaw what all were told.
    started.thaw().await;
    settle().await;
    all_are_served(&started, &cold).await;

    world.control.thaw(&by()).await.unwrap();
    some_looks().await;
    all_are(&world.biplane, &tenants[..2], SUSPENDED).await;
    all_are(&started, &cold[..2], SUSPENDED).await;
    assert_eq!(world.biplane.stats().brake, Default::default());
}

#[tokio::test(start_paused = true)]
async fn a_held_tenant_keeps_its_names() {
    let world = world();
    let tenants = world.cached(2).await;
    let (acme, _) = &tenants[0];
    world.biplane.freeze().await;
    world.control.renamed(acme.id, "else").await;
    let mut heir = NewTenant::new(slug("tenant-0"), DataSourceId::DEFAULT);
    heir.isolation = Isolation::Row;
    let heir = world.control.create(&by(), heir).await.unwrap();
    world.control.turn(heir.id, TenantStatus::Active).await;
    world.looks(1).await;
    // Whoever was led to acme still is, by the name that it has now as well; and so is the heir's by its id.
    let route = async |name: &str| world.biplane.route(&slug(name)).await.unwrap().tenant();
    assert_eq!(route("tenant-0").await, acme.id);
    assert_eq!(route("else").await, acme.id);
    assert_eq!(world.biplane.route(heir.id).await.unwrap().tenant(), heir.id);
    assert_eq!(route("tenant-0").await, acme.id);
    world.biplane.thaw().await;
    settle().await;
    assert_eq!(route("tenant-0").await, heir.id);
    assert_eq!(route("else").await, acme.id);
}

#[tokio::test(start_paused = true)]
async fn it_is_said_when_it_engages_once_a_minute_and_when_it_is_released() {
    listen_to_the_log();
    let world = world();
    let tenants = world.cached(40).await;
    let _ = logged();
    world.suspend(&tenants[..30]).await;
    world.looks(5).await;
    let lines = logged();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("ERROR") && lines[0].contains("changed=30") && lines[0].contains("of=40"));
    for _ in 0..10 {
        world.clock.advance(seconds(20));
        world.looks(1).await;
    }
    let lines = logged();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("held_tenants=30")));
    world.biplane.release_brake().await;
    world.clock.advance(seconds(120));
    world.looks(3).await;
    let lines = logged();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("released"));
}

#[tokio::test(start_paused = true)]
async fn it_can_be_set_and_turned_off() {
    let set = |options: BrakeOptions| world_with(move |builder| builder.brake(options));
    let default = BrakeOptions::default();
    for (world, suspended, expected) in [
        (world_with(Builder::without_brake), 40, SUSPENDED),
        (set(default.at_least(41)), 40, SUSPENDED),
        (set(default.percent(10)), 4, SUSPENDED),
        (set(default.percent(10)), 5, None),
    ] {
        let tenants = world.cached(40).await;
        world.suspend(&tenants[..suspended]).await;
        world.looks(1).await;
        all_are(&world.biplane, &tenants[..suspended], expected).await;
    }
    for refused in [
        default.percent(0),
        default.percent(100),
        default.window(Duration::ZERO),
    ] {
        let built = Biplane::memory(MemoryControl::new(), |_| ())
            .brake(refused)
            .build();
        assert_eq!(kind(built), Some(ErrorKind::InvalidConfiguration));
    }
}
