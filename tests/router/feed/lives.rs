//! A log that was pruned, or that begins another life.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    repository::{
        ChangeHead, ChangeLog, Changes, Found, MemoryControl, NewTenant, Page, TenantAdmin, TenantRepository,
    },
    router::{CacheOptions, Clock, FeedOptions},
    tenant::{DataSourceId, Incarnation, Isolation, Seq, TenantId, TenantRef, TenantStatus},
    testing::faulty::{Fault, FaultyRepository},
};
use tokio::time::Instant;

use super::{SUSPENDED, some_looks, world};
use crate::support::{Record, Records, Steps, by, kind, seconds, settle, slug};

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
        assert!(began.elapsed() < seconds(60), "{loaded} of {TENANTS} in a minute");
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
