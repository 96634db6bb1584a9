//! A change in the control plane acts in a router that nobody told: what the feed promises, and what it does when its log
//! fails, lies, was pruned or begins another life.
//!
//! Tokio's time is paused, so that looks come as soon as the test waits; the router's clock moves by hand.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use biplane::{
    Biplane,
    connector::memory::MemoryDb,
    error::{Error, ErrorKind},
    repository::{
        ChangeHead, ChangeHint, ChangeLog, ChangePush, ChangeSource, Changes, Found, MemoryControl,
        NewTenant, Page, SourceChange, TenantAdmin, TenantRepository,
    },
    router::{CacheOptions, Clock, FeedEngine, FeedOptions},
    tenant::{
        DataSourceId, Incarnation, Isolation, PoolSettings, Seq, Tenant, TenantId, TenantRef, TenantStatus,
        Version,
    },
    testing::faulty::{Fault, FaultyRepository},
};
use tokio::time::Instant;

use crate::support::{
    Gate, LogGate, Notes, Record, Records, Steps, Whisper, by, kind, listen_to_the_log, logged, seconds,
    settle, slug,
};

pub(crate) const SUSPENDED: Option<ErrorKind> = Some(ErrorKind::Inactive {
    status: TenantStatus::Suspended,
});

/// A router that looks at the log of its control plane, each of which the test breaks on its own.
struct World {
    control: MemoryControl,
    repository: FaultyRepository<MemoryControl>,
    log: FaultyRepository<MemoryControl>,
    clock: Clock,
    biplane: Biplane<MemoryDb<Notes>>,
}

fn world() -> World {
    world_with(FeedOptions::default())
}

fn world_with(options: FeedOptions) -> World {
    let control = MemoryControl::new();
    let repository = FaultyRepository::new(control.clone());
    let log = FaultyRepository::new(control.clone());
    let clock = Clock::manual();
    let biplane = Biplane::memory(repository.clone(), |_| Notes::new())
        .changes(ChangeSource::polled(log.clone()))
        .feed(options)
        .clock(clock.clone())
        .build()
        .unwrap();
    World {
        control,
        repository,
        log,
        clock,
        biplane,
    }
}

impl World {
    /// Waits for looks that begin after now, and for whatever they entail.
    async fn looks(&self, number: usize) {
        let calls = self.log.calls();
        for n in 1..=number {
            self.log.reached(calls + n).await;
            settle().await;
        }
    }

    /// An active tenant whose route is cached and followed.
    async fn cached(&self, name: &str) -> (Tenant, MemoryDb<Notes>) {
        let tenant = self.control.tenant(name).await;
        let db = self.biplane.route(&tenant.slug).await.unwrap();
        (tenant, db)
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_nobody_announced_acts_with_the_next_look() {
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    world.looks(2).await;
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    world.looks(1).await;
    assert!(world.biplane.cached(&acme.slug).is_none());
    assert_eq!(kind(world.biplane.route(&acme.slug).await), SUSPENDED);
    assert_eq!(kind(world.biplane.route(acme.id).await), SUSPENDED);
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
}

#[tokio::test(start_paused = true)]
async fn the_bound_of_polling_alone_is_interval_and_time_limit() {
    let options = FeedOptions::default();
    let bound = options.interval.mul_f64(1.2).max(options.query_timeout) + options.query_timeout;
    assert!(bound <= seconds(3), "{bound:?}");
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    for round in 0..20 {
        let status = [TenantStatus::Suspended, TenantStatus::Active][round % 2];
        tokio::time::sleep(Duration::from_millis(137)).await;
        world.control.turn(acme.id, status).await;
        let committed = Instant::now();
        let expected = SUSPENDED.filter(|_| status == TenantStatus::Suspended);
        while kind(held.read(|_| ()).await) != expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = committed.elapsed();
        assert!(
            took <= options.interval.mul_f64(1.2) + Duration::from_millis(2),
            "{took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_feed_confirms_nothing_is_asked_for_again_and_the_age_is_its_lag() {
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    // That it was created is news to the feed.
    world.looks(2).await;
    world.biplane.route(&acme.slug).await.unwrap();
    let calls = world.repository.calls();
    for _ in 0..500 {
        world.clock.advance(seconds(1));
        world.looks(1).await;
        assert!(world.biplane.cached(&acme.slug).is_some());
        assert_eq!(held.route_age(), Some(Duration::ZERO));
    }
    assert_eq!(world.repository.calls(), calls);
    let feed = world.biplane.stats().feed;
    assert_eq!(feed.engine, FeedEngine::Polling);
    assert_eq!(feed.lag, Some(Duration::ZERO));
    assert_eq!(feed.applied, Some(world.control.head().await.unwrap().seq));
    assert_eq!(world.biplane.applied(), feed.applied.unwrap());
    assert_eq!((feed.failing_for, feed.last_error), (None, None));
}

#[tokio::test(start_paused = true)]
async fn when_the_log_cannot_be_read_routes_go_by_their_age_and_say_so() {
    let options = CacheOptions::default();
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    world.looks(1).await;
    for fault in [Fault::Unreachable, Fault::Hang] {
        world.log.set(fault);
        world.looks(1).await;
        tokio::time::sleep(FeedOptions::default().query_timeout).await;
        settle().await;
        let before = world.repository.calls();
        world.clock.advance(options.fresh_for - Duration::from_millis(1));
        assert!(world.biplane.cached(&acme.slug).is_some());
        world.clock.advance(Duration::from_millis(1));
        assert!(world.biplane.cached(&acme.slug).is_none());
        assert_eq!(held.route_age(), Some(options.fresh_for));
        let feed = world.biplane.stats().feed;
        assert_eq!(feed.lag, Some(options.fresh_for));
        assert_eq!(feed.failing_for, Some(options.fresh_for));
        assert_eq!(feed.last_error, Some(ErrorKind::ControlPlaneUnavailable));
        // Served, while it is refreshed.
        held.read(|_| ()).await.unwrap();
        settle().await;
        assert_eq!(world.repository.calls(), before + 1);
        assert_eq!(held.route_age(), Some(Duration::ZERO));

        world.log.set(Fault::None);
        world.looks(2).await;
        let feed = world.biplane.stats().feed;
        assert_eq!((feed.lag, feed.failing_for), (Some(Duration::ZERO), None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_missed_while_the_log_could_not_be_read_acts_when_it_can() {
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    world.looks(1).await;
    world.log.set(Fault::Unreachable);
    world.looks(3).await;
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    world.looks(3).await;
    held.read(|_| ()).await.unwrap();
    world.log.set(Fault::None);
    world.looks(1).await;
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
}

#[tokio::test(start_paused = true)]
async fn routes_are_confirmed_as_of_the_question_and_not_of_the_answer() {
    let world = world_with(FeedOptions::default().query_timeout(seconds(1_000)));
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    world.looks(1).await;
    world.log.set(Fault::HoldAnswer);
    world.looks(1).await;
    // The log has been read, and the answer is a long time coming.
    world.clock.advance(seconds(20));
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    world.log.set(Fault::None);
    settle().await;
    assert_eq!(held.route_age(), Some(seconds(20)));
    world.clock.advance(seconds(10));
    assert!(world.biplane.cached(&acme.slug).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_load_that_a_change_overtakes_is_not_published() {
    let control = MemoryControl::new();
    let gate = Gate::new(control.clone());
    let log = FaultyRepository::new(control.clone());
    let biplane = Biplane::builder(gate.clone(), Records::default())
        .changes(log.clone())
        .build()
        .unwrap();
    log.reached(1).await;
    settle().await;
    let acme = control.tenant("acme").await;
    log.reached(log.calls() + 1).await;
    settle().await;
    let ask = |name: biplane::tenant::TenantName| {
        let biplane = biplane.clone();
        tokio::spawn(async move { biplane.route(&name).await })
    };
    let by_id = || TenantRef::Id(acme.id).to_name();
    let change = SourceChange::default().pool(PoolSettings::new(0, 3).unwrap());
    for of_source in [false, true] {
        biplane.invalidate(acme.id).await;
        let early = ask(by_id());
        let call = gate.call().await;
        call.read().await;
        if of_source {
            control
                .update_source(&by(), acme.placement.source, Version::FIRST, change.clone())
                .await
                .unwrap();
        } else {
            control.touch(acme.id).await;
        }
        log.reached(log.calls() + 1).await;
        settle().await;
        // Who asks now does not wait for what was read before.
        let late = ask(by_id());
        settle().await;
        assert!(!late.is_finished());
        call.answer();
        early.await.unwrap().unwrap();
        settle().await;
        assert!(biplane.cached(acme.id).is_none());
        gate.call().await.answer();
        late.await.unwrap().unwrap();
        assert!(biplane.cached(acme.id).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_a_change_overtakes_does_not_keep_the_old_route() {
    let control = MemoryControl::new();
    let gate = Gate::new(control.clone());
    let log = FaultyRepository::new(control.clone());
    let clock = Clock::manual();
    let biplane = Biplane::builder(gate.clone(), Records::default())
        .changes(log.clone())
        .clock(clock.clone())
        .build()
        .unwrap();
    log.reached(1).await;
    settle().await;
    let acme = control.tenant("acme").await;
    let ask = || {
        let (biplane, id) = (biplane.clone(), acme.id);
        tokio::spawn(async move { biplane.route(id).await })
    };
    let first = ask();
    gate.call().await.answer();
    first.await.unwrap().unwrap();
    log.set(Fault::Unreachable);
    clock.advance(CacheOptions::default().refresh_for);
    let early = ask();
    let call = gate.call().await;
    control.turn(acme.id, TenantStatus::Suspended).await;
    log.set(Fault::None);
    log.reached(log.calls() + 1).await;
    settle().await;
    call.fail();
    // Who came before the change may be served with what was known.
    early.await.unwrap().unwrap();
    assert!(biplane.cached(acme.id).is_none());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_confirmed_before_the_last_page_was_applied() {
    let control = MemoryControl::new();
    let (log, mut looks) = LogGate::new(control.clone());
    let clock = Clock::manual();
    let options = FeedOptions::default()
        .page(NonZeroU32::MIN)
        .query_timeout(seconds(1_000));
    let biplane = Biplane::memory(FaultyRepository::new(control.clone()), |_| ())
        .changes(log)
        .feed(options)
        .clock(clock.clone())
        .build()
        .unwrap();
    let (zeta, acme) = (control.tenant("zeta").await, control.tenant("acme").await);
    assert!(looks.recv().await.unwrap().answer().await);
    biplane.route(&acme.slug).await.unwrap();
    assert!(looks.recv().await.unwrap().answer().await);

    clock.advance(seconds(20));
    control.touch(zeta.id).await;
    control.turn(acme.id, TenantStatus::Suspended).await;
    // The first page names zeta alone.
    assert!(looks.recv().await.unwrap().answer().await);
    let second = looks.recv().await.unwrap();
    clock.advance(seconds(10));
    assert!(
        biplane.cached(&acme.slug).is_none(),
        "confirmed while its change was on the way"
    );
    assert!(second.answer().await);
    assert_eq!(kind(biplane.route(&acme.slug).await), SUSPENDED);
}

#[tokio::test(start_paused = true)]
async fn a_changed_tenant_stays_doubtful_until_it_was_read_again() {
    let options = CacheOptions::default();
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    world.looks(1).await;
    world.repository.set(Fault::Unreachable);
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    for _ in 0..10 {
        world.looks(1).await;
        world.clock.advance(options.retry_after);
        assert!(world.biplane.cached(&acme.slug).is_none());
        // What it was is all that can be had, and better than nothing.
        held.read(|_| ()).await.unwrap();
        world.clock.advance(options.retry_after);
    }
    assert_eq!(world.biplane.stats().feed.unsure_tenants, 1);
    assert!(world.biplane.stats().served_stale > 0);
    world.repository.set(Fault::None);
    world.looks(3).await;
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
    assert_eq!(world.biplane.stats().feed.unsure_tenants, 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_the_first_look_is_not_confirmed_by_it() {
    // Read and published before, or read before and published after.
    for fault in [Fault::None, Fault::HoldAnswer] {
        let world = world_with(FeedOptions::default().query_timeout(seconds(1_000)));
        let acme = world.control.tenant("acme").await;
        world.log.set(Fault::Hang);
        world.repository.set(fault);
        let biplane = world.biplane.clone();
        let caller = tokio::spawn(async move { biplane.route(acme.id).await });
        world.repository.reached(1).await;
        settle().await;
        assert_eq!(caller.is_finished(), fault == Fault::None);
        world.control.turn(acme.id, TenantStatus::Suspended).await;
        // The position is taken after the change.
        world.log.set(Fault::None);
        settle().await;
        world.repository.set(Fault::None);
        let held = caller.await.unwrap().unwrap();
        world.looks(5).await;
        assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
        assert_eq!(world.biplane.stats().feed.unsure_tenants, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_unknown_is_found_when_its_tenant_is_created() {
    let world = world();
    world.looks(1).await;
    let unknown = Some(ErrorKind::UnknownTenant);
    assert_eq!(kind(world.biplane.route(&slug("acme")).await), unknown);
    let acme = world.control.tenant("acme").await;
    world.looks(1).await;
    let db = world.biplane.route(&slug("acme")).await.unwrap();
    assert_eq!(db.tenant(), acme.id);
    // And one that is given to a tenant there was.
    assert_eq!(kind(world.biplane.route(&slug("zeta")).await), unknown);
    world.control.renamed(acme.id, "zeta").await;
    world.looks(1).await;
    assert_eq!(
        world.biplane.route(&slug("zeta")).await.unwrap().tenant(),
        acme.id
    );
    assert_eq!(kind(world.biplane.route(&slug("acme")).await), unknown);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_a_data_source_acts_on_every_tenant_of_it_and_on_no_other() {
    let world = world();
    world.looks(1).await;
    let mut tenants = Vec::new();
    for name in ["a", "b"] {
        let mut new = NewTenant::new(slug(name), DataSourceId::DEFAULT);
        new.isolation = Isolation::Row;
        let tenant = world.control.create(&by(), new).await.unwrap();
        tenants.push(world.control.turn(tenant.id, TenantStatus::Active).await);
        world.biplane.route(tenant.id).await.unwrap();
    }
    let (other, _) = world.cached("other").await;
    world.looks(2).await;
    let _ = world.repository.take_asked();
    let change = SourceChange::default().pool(PoolSettings::new(0, 3).unwrap());
    world
        .control
        .update_source(&by(), DataSourceId::DEFAULT, Version::FIRST, change)
        .await
        .unwrap();
    world.looks(1).await;
    let mut asked = world.repository.take_asked();
    asked.sort_unstable_by_key(|name| format!("{name:?}"));
    let mut expected: Vec<_> = tenants
        .iter()
        .map(|tenant| TenantRef::Id(tenant.id).to_name())
        .collect();
    expected.sort_unstable_by_key(|name| format!("{name:?}"));
    assert_eq!(asked, expected);
    assert!(world.biplane.cached(&other.slug).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_changed_tenant_that_is_cached_is_read_again_before_anybody_asks() {
    let world = world();
    world.looks(1).await;
    let (acme, _) = world.cached("acme").await;
    world.looks(1).await;
    world.control.touch(acme.id).await;
    let unused = world.control.tenant("unused").await;
    let _ = world.repository.take_asked();
    world.looks(1).await;
    let calls = world.repository.calls();
    world.biplane.route(&acme.slug).await.unwrap();
    world.biplane.route(acme.id).await.unwrap();
    assert_eq!(world.repository.calls(), calls);
    assert!(
        !world
            .repository
            .take_asked()
            .contains(&TenantRef::Id(unused.id).to_name())
    );
}

#[tokio::test(start_paused = true)]
async fn pruned_history_makes_every_tenant_be_looked_at_again_and_takes_none_away() {
    let world = world();
    world.looks(1).await;
    let (acme, held) = world.cached("acme").await;
    let (zeta, _) = world.cached("zeta").await;
    world.looks(1).await;
    world.log.set(Fault::Unreachable);
    world.looks(1).await;
    world.control.turn(acme.id, TenantStatus::Suspended).await;
    world.control.prune_changes(Duration::ZERO);
    world.log.set(Fault::None);
    for _ in 0..4 {
        world.looks(1).await;
        assert!(world.biplane.cached(&zeta.slug).is_some());
    }
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
    let feed = world.biplane.stats().feed;
    assert_eq!((feed.resyncs, feed.unsure_tenants), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_resynchronisation_comes_in_batches_at_its_own_pace() {
    const TENANTS: usize = 1_200;
    let world = world();
    world.looks(1).await;
    let mut names = Vec::new();
    for n in 0..TENANTS {
        names.push(world.control.tenant(&format!("tenant-{n}")).await.slug);
    }
    let names: Vec<_> = names.iter().map(TenantRef::Slug).collect();
    // That they were created is news to the feed, and then they are read anew.
    world.looks(3).await;
    assert_eq!(world.biplane.warm_up(&names).await.routed, TENANTS);
    world.looks(3).await;
    world.log.set(Fault::Unreachable);
    world.looks(1).await;
    world
        .control
        .touch(world.control.tenant("one-more").await.id)
        .await;
    world.control.prune_changes(Duration::ZERO);
    world.log.set(Fault::None);
    let began = Instant::now();
    let before = world.biplane.stats().names_loaded;
    let mut last = 0;
    while world.biplane.stats().feed.resyncs == 0 || world.biplane.stats().feed.unsure_tenants > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let loaded = world.biplane.stats().names_loaded - before;
        assert!(loaded - last <= 500, "{} at once", loaded - last);
        last = loaded;
        for name in &names {
            assert!(world.biplane.cached(*name).is_some());
        }
    }
    assert_eq!(last, TENANTS as u64);
    let interval = FeedOptions::default().resync_interval;
    assert!(began.elapsed() >= interval.mul_f64(1.6), "{:?}", began.elapsed());
}

/// A control plane that can be replaced by another, as by a restore.
#[derive(Clone, Debug)]
pub(crate) struct Restorable {
    tenants: Arc<Mutex<MemoryControl>>,
    log: Arc<Mutex<MemoryControl>>,
}

impl Restorable {
    pub(crate) fn new(control: &MemoryControl) -> Self {
        Self {
            tenants: Arc::new(Mutex::new(control.clone())),
            log: Arc::new(Mutex::new(control.clone())),
        }
    }

    pub(crate) fn restore(&self, control: &MemoryControl) {
        *self.tenants.lock().unwrap() = control.clone();
        *self.log.lock().unwrap() = control.clone();
    }

    fn tenants(&self) -> MemoryControl {
        self.tenants.lock().unwrap().clone()
    }

    fn log(&self) -> MemoryControl {
        self.log.lock().unwrap().clone()
    }
}

#[async_trait]
impl TenantRepository for Restorable {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        self.tenants().find(names).await
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        self.tenants().list(after, limit).await
    }
}

#[async_trait]
impl ChangeLog for Restorable {
    async fn head(&self) -> Result<ChangeHead, Error> {
        self.log().head().await
    }

    async fn since(&self, after: Seq, limit: NonZeroU32) -> Result<Changes, Error> {
        self.log().since(after, limit).await
    }
}

/// A control plane with acme, of this id and changed so often.
async fn control_with(id: TenantId, touches: usize) -> MemoryControl {
    let control = MemoryControl::new();
    let mut new = NewTenant::new(slug("acme"), DataSourceId::DEFAULT);
    (new.id, new.isolation) = (id, Isolation::Row);
    control.create(&by(), new).await.unwrap();
    control.turn(id, TenantStatus::Active).await;
    for _ in 0..touches {
        control.touch(id).await;
    }
    control
}

fn over(restorable: &Restorable, clock: &Clock) -> Biplane<Record> {
    Biplane::builder(restorable.clone(), Records::default())
        .changes(restorable.clone())
        .clock(clock.clone())
        .build()
        .unwrap()
}

pub(crate) async fn some_looks() {
    tokio::time::sleep(seconds(6)).await;
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_restored_control_plane_is_believed_with_lower_versions_once() {
    let id = TenantId::new();
    let (old, new, older) = (
        control_with(id, 10).await,
        control_with(id, 5).await,
        control_with(id, 1).await,
    );
    let (restorable, clock) = (Restorable::new(&old), Clock::manual());
    let biplane = over(&restorable, &clock);
    some_looks().await;
    let version = |record: Record| record.0.version;
    let names = [
        TenantRef::Id(id).to_name(),
        TenantRef::Slug(&slug("acme")).to_name(),
    ];
    for name in &names {
        assert_eq!(
            version(biplane.route(name).await.unwrap()),
            old.now(id).await.version
        );
    }
    some_looks().await;
    restorable.restore(&new);
    let served = biplane.cached(id);
    assert!(served.is_some(), "a restore takes nothing away");
    some_looks().await;
    for name in &names {
        assert_eq!(
            version(biplane.route(name).await.unwrap()),
            new.now(id).await.version
        );
    }
    assert_eq!(biplane.stats().feed.resyncs, 1);
    assert_eq!(biplane.stats().feed.failing_for, None);

    // From here on versions count again: a copy that lags behind is not believed.
    *restorable.tenants.lock().unwrap() = older;
    new.touch(id).await;
    some_looks().await;
    assert_eq!(version(biplane.route(id).await.unwrap()).value(), 2 + 5);
    *restorable.tenants.lock().unwrap() = new.clone();
    some_looks().await;
    clock.advance(CacheOptions::default().retry_after);
    some_looks().await;
    assert_eq!(
        version(biplane.route(id).await.unwrap()),
        new.now(id).await.version
    );
}

#[tokio::test(start_paused = true)]
async fn in_another_life_the_same_version_may_be_another_record() {
    let id = TenantId::new();
    let (old, new) = (control_with(id, 1).await, control_with(id, 0).await);
    new.turn(id, TenantStatus::Suspended).await;
    assert_eq!(old.now(id).await.version, new.now(id).await.version);
    let (restorable, clock) = (Restorable::new(&old), Clock::manual());
    let biplane = over(&restorable, &clock);
    some_looks().await;
    biplane.route(id).await.unwrap();
    restorable.restore(&new);
    some_looks().await;
    assert_eq!(kind(biplane.route(id).await), SUSPENDED);
}

#[tokio::test(start_paused = true)]
async fn a_slug_that_another_life_gave_to_another_tenant_leads_there() {
    let (one, other) = (TenantId::new(), TenantId::new());
    let old = control_with(one, 0).await;
    // The slug changes hands a few times, so that its version is high.
    for _ in 0..3 {
        old.renamed(one, "else").await;
        old.renamed(one, "acme").await;
    }
    let (restorable, clock) = (Restorable::new(&old), Clock::manual());
    let biplane = over(&restorable, &clock);
    some_looks().await;
    assert_eq!(biplane.route(&slug("acme")).await.unwrap().0.id, one);
    let new = control_with(one, 0).await;
    new.renamed(one, "else").await;
    let mut heir = NewTenant::new(slug("acme"), DataSourceId::DEFAULT);
    (heir.id, heir.isolation) = (other, Isolation::Row);
    new.create(&by(), heir).await.unwrap();
    new.turn(other, TenantStatus::Active).await;
    restorable.restore(&new);
    some_looks().await;
    assert_eq!(biplane.route(&slug("acme")).await.unwrap().0.id, other);
}

#[tokio::test(start_paused = true)]
async fn a_load_of_the_old_life_is_not_published_in_the_new() {
    let id = TenantId::new();
    let (old, new) = (control_with(id, 10).await, control_with(id, 0).await);
    let restorable = Restorable::new(&old);
    let tenants = FaultyRepository::new(restorable.clone());
    let biplane = Biplane::builder(tenants.clone(), Records::default())
        .changes(restorable.clone())
        .cache(CacheOptions::default().load_timeout(seconds(1_000)))
        .build()
        .unwrap();
    some_looks().await;
    tenants.set(Fault::HoldAnswer);
    let early = tokio::spawn({
        let biplane = biplane.clone();
        async move { biplane.route(id).await }
    });
    tenants.reached(1).await;
    restorable.restore(&new);
    some_looks().await;
    tenants.set(Fault::None);
    early.await.unwrap().unwrap();
    settle().await;
    assert_eq!(
        biplane.route(id).await.unwrap().0.version,
        new.now(id).await.version
    );
}

/// Says that it ends earlier than it did, as after a restore that nobody told of.
#[derive(Clone, Debug)]
struct Shrunk(MemoryControl, Incarnation);

#[async_trait]
impl ChangeLog for Shrunk {
    async fn head(&self) -> Result<ChangeHead, Error> {
        Ok(ChangeHead::new(self.1, self.0.head().await?.seq))
    }

    async fn since(&self, _: Seq, _: NonZeroU32) -> Result<Changes, Error> {
        Ok(Changes::new(ChangeHead::new(self.1, Seq::ZERO), Vec::new()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_went_back_without_a_new_life_confirms_nothing() {
    let control = MemoryControl::new();
    let clock = Clock::manual();
    let incarnation = control.head().await.unwrap().incarnation;
    let biplane = Biplane::memory(FaultyRepository::new(control.clone()), |_| ())
        .changes(Shrunk(control.clone(), incarnation))
        .clock(clock.clone())
        .build()
        .unwrap();
    let acme = control.tenant("acme").await;
    some_looks().await;
    let held = biplane.route(&acme.slug).await.unwrap();
    clock.advance(seconds(10));
    some_looks().await;
    assert_eq!(held.route_age(), Some(seconds(10)));
    let feed = biplane.stats().feed;
    assert!(feed.failing_for.is_some());
    assert_eq!(feed.last_error, Some(ErrorKind::ControlPlaneUnavailable));
}

/// A router that hardly ever looks by itself.
fn pushed(control: &MemoryControl, push: impl ChangePush) -> Biplane<MemoryDb<Notes>> {
    Biplane::memory(FaultyRepository::new(control.clone()), |_| Notes::new())
        .changes(ChangeSource::pushed(control.clone(), push))
        .feed(FeedOptions::default().interval(seconds(100_000)))
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_pushed_acts_at_once() {
    let control = MemoryControl::new();
    let biplane = pushed(&control, control.clone());
    let acme = control.tenant("acme").await;
    let held = biplane.route(&acme.slug).await.unwrap();
    let began = Instant::now();
    for status in [TenantStatus::Suspended, TenantStatus::Active].repeat(10) {
        control.turn(acme.id, status).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let refused = SUSPENDED.filter(|_| status == TenantStatus::Suspended);
        assert_eq!(kind(held.read(|_| ()).await), refused);
    }
    assert!(began.elapsed() < seconds(2));
    let feed = biplane.stats().feed;
    assert_eq!((feed.engine, feed.listening), (FeedEngine::Push, true));
}

#[tokio::test(start_paused = true)]
async fn the_routers_of_this_crate_follow_changes_unless_they_are_told_not_to() {
    let control = MemoryControl::new();
    let build = || Biplane::memory(control.clone(), |_| ());
    let (with, without) = (
        build().build().unwrap(),
        build().without_changes().build().unwrap(),
    );
    let acme = control.tenant("acme").await;
    settle().await;
    for biplane in [&with, &without] {
        biplane.route(&acme.slug).await.unwrap();
    }
    some_looks().await;
    control.turn(acme.id, TenantStatus::Suspended).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(kind(with.route(&acme.slug).await), SUSPENDED);
    assert_eq!(kind(without.route(&acme.slug).await), None);
    assert_eq!(without.stats().feed.engine, FeedEngine::Off);
    assert_eq!(without.applied(), Seq::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_was_committed_while_nobody_listened_is_read_when_somebody_does() {
    let (control, whisper) = (MemoryControl::new(), Whisper::default());
    let biplane = pushed(&control, whisper.clone());
    let acme = control.tenant("acme").await;
    some_looks().await;
    let held = biplane.route(&acme.slug).await.unwrap();
    for status in [TenantStatus::Suspended, TenantStatus::Active] {
        whisper.cut();
        settle().await;
        assert!(!biplane.stats().feed.listening);
        control.turn(acme.id, status).await;
        while !biplane.stats().feed.listening {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let refused = SUSPENDED.filter(|_| status == TenantStatus::Suspended);
        assert_eq!(kind(held.read(|_| ()).await), refused);
    }
    assert_eq!(biplane.stats().feed.push_losses, 2);
}

#[tokio::test(start_paused = true)]
async fn a_loss_of_push_is_answered_by_a_look_at_once() {
    let (control, whisper) = (MemoryControl::new(), Whisper::default());
    let biplane = pushed(&control, whisper.clone());
    let acme = control.tenant("acme").await;
    some_looks().await;
    let held = biplane.route(&acme.slug).await.unwrap();
    // Committed, and the connection breaks before anybody is told.
    control.turn(acme.id, TenantStatus::Suspended).await;
    whisper.cut();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!biplane.stats().feed.listening);
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
}

#[tokio::test(start_paused = true)]
async fn a_jump_in_what_is_told_loses_nothing() {
    let (control, whisper) = (MemoryControl::new(), Whisper::default());
    let biplane = pushed(&control, whisper.clone());
    let acme = control.tenant("acme").await;
    some_looks().await;
    let held = biplane.route(&acme.slug).await.unwrap();
    control.turn(acme.id, TenantStatus::Suspended).await;
    control.tenant("zeta").await;
    // Only the last of these changes is told.
    let last = control.head().await.unwrap().seq;
    whisper.say(ChangeHint::Reached(last));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
    assert_eq!(biplane.applied(), last);
}

#[tokio::test(start_paused = true)]
async fn who_tells_too_much_or_nonsense_does_no_harm() {
    let (control, whisper) = (MemoryControl::new(), Whisper::default());
    let log = FaultyRepository::new(control.clone());
    let biplane = Biplane::memory(FaultyRepository::new(control.clone()), |_| ())
        .changes(ChangeSource::pushed(log.clone(), whisper.clone()))
        .build()
        .unwrap();
    let acme = control.tenant("acme").await;
    some_looks().await;
    biplane.route(&acme.slug).await.unwrap();
    let (before, began) = (log.calls(), Instant::now());
    for n in 0..10_000 {
        whisper.say(ChangeHint::Reached(Seq::new(u64::MAX - n)));
        whisper.say(ChangeHint::Look);
        whisper.say(ChangeHint::Reached(Seq::ZERO));
        if n % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    tokio::time::sleep(seconds(1)).await;
    // Not more often than every 20 ms.
    let most = usize::try_from(began.elapsed().as_millis() / 20).unwrap() + 3;
    assert!(log.calls() - before <= most, "{} looks", log.calls() - before);
    assert!(biplane.cached(&acme.slug).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_died_silently_is_found_out_by_looking_and_replaced() {
    let (control, whisper) = (MemoryControl::new(), Whisper::default());
    let biplane = Biplane::memory(FaultyRepository::new(control.clone()), |_| ())
        .changes(ChangeSource::pushed(control.clone(), whisper.clone()))
        .build()
        .unwrap();
    let acme = control.tenant("acme").await;
    some_looks().await;
    let held = biplane.route(&acme.slug).await.unwrap();
    some_looks().await;
    assert_eq!(whisper.listened_to(), 1);
    control.turn(acme.id, TenantStatus::Suspended).await;
    tokio::time::sleep(seconds(3)).await;
    assert_eq!(kind(held.read(|()| ()).await), SUSPENDED);
    some_looks().await;
    assert_eq!(
        whisper.listened_to(),
        2,
        "nobody listens to a connection that leads nowhere"
    );
    // One that tells is left alone.
    for _ in 0..20 {
        control.touch(acme.id).await;
        whisper.say(ChangeHint::Reached(control.head().await.unwrap().seq));
        tokio::time::sleep(seconds(2)).await;
    }
    assert_eq!(whisper.listened_to(), 2);
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_the_router() {
    for close in [true, false] {
        let world = world();
        let (_, held) = world.cached("acme").await;
        world.looks(3).await;
        let World { biplane, log, .. } = world;
        if close {
            biplane.close(Duration::ZERO).await;
        }
        let kept = close.then_some(biplane);
        settle().await;
        let looks = log.calls();
        tokio::time::sleep(seconds(60)).await;
        let _ = held.read(|_| ()).await;
        tokio::time::sleep(seconds(60)).await;
        assert_eq!(log.calls(), looks);
        drop(kept);
    }
}

#[test]
fn it_begins_with_the_first_lookup_where_there_was_no_runtime_and_goes_on_in_another() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let world = world();
    let first = runtime();
    let (acme, held) = first.block_on(async {
        tokio::time::sleep(seconds(5)).await;
        assert_eq!(world.log.calls(), 0);
        let cached = world.cached("acme").await;
        world.looks(3).await;
        cached
    });
    drop(first);
    let looks = world.log.calls();
    runtime().block_on(async {
        // Committed while nobody looked.
        world.control.turn(acme.id, TenantStatus::Suspended).await;
        tokio::time::sleep(seconds(5)).await;
        assert_eq!(world.log.calls(), looks);
        world.biplane.route(&slug("nobody")).await.unwrap_err();
        world.looks(1).await;
        assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
    });
}

#[tokio::test(start_paused = true)]
async fn a_log_that_panics_is_a_failure_and_no_more() {
    #[derive(Debug)]
    struct Panics;
    #[async_trait]
    impl ChangeLog for Panics {
        async fn head(&self) -> Result<ChangeHead, Error> {
            panic!("told to panic")
        }
        async fn since(&self, _: Seq, _: NonZeroU32) -> Result<Changes, Error> {
            panic!("told to panic")
        }
    }
    let control = MemoryControl::new();
    let acme = control.tenant("acme").await;
    let biplane = Biplane::memory(FaultyRepository::new(control), |_| ())
        .changes(Panics)
        .build()
        .unwrap();
    some_looks().await;
    biplane.route(&acme.slug).await.unwrap();
    assert_eq!(biplane.stats().feed.last_error, Some(ErrorKind::Internal));
}

#[tokio::test(start_paused = true)]
async fn a_look_that_succeeds_ends_the_pause_after_a_failed_load() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.looks(1).await;
    world.repository.set(Fault::Unreachable);
    let unavailable = Some(ErrorKind::ControlPlaneUnavailable);
    assert_eq!(kind(world.biplane.route(&acme.slug).await), unavailable);
    world.repository.set(Fault::None);
    assert_eq!(kind(world.biplane.route(&acme.slug).await), unavailable);
    world.looks(1).await;
    world.biplane.route(&acme.slug).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_log_gets_one_line_for_each_change_of_state() {
    listen_to_the_log();
    let world = world();
    world.looks(3).await;
    for _ in 0..2 {
        world.log.set(Fault::Unreachable);
        world.looks(50).await;
        world.log.set(Fault::None);
        world.looks(50).await;
    }
    let lines = logged();
    assert_eq!(lines.len(), 5, "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn warming_up_routes_all_in_few_queries_and_says_which_failed() {
    let world = world();
    let mut slugs = Vec::new();
    for n in 0..3_000 {
        slugs.push(world.control.tenant(&format!("tenant-{n}")).await.slug);
    }
    let (closed, nobody) = (world.control.provision("closed").await, slug("nobody"));
    let mut names: Vec<_> = slugs.iter().map(TenantRef::Slug).collect();
    names.insert(7, TenantRef::Id(closed.id));
    names.insert(2_500, TenantRef::Slug(&nobody));
    let done = world.biplane.warm_up(&names).await;
    assert_eq!(done.routed, 3_000);
    let failed: Vec<_> = done
        .failed
        .iter()
        .map(|(name, error)| (name.clone(), error.kind()))
        .collect();
    let status = TenantStatus::Provisioning;
    assert_eq!(
        failed,
        [
            (TenantRef::Id(closed.id).to_name(), ErrorKind::Inactive { status }),
            (TenantRef::Slug(&nobody).to_name(), ErrorKind::UnknownTenant),
        ]
    );
    assert!(
        world.repository.calls() <= 12,
        "{} queries",
        world.repository.calls()
    );
    assert!(slugs.iter().all(|slug| world.biplane.cached(slug).is_some()));
}
