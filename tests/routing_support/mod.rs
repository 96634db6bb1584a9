//! A router over a control plane in memory that does what a test says, on a clock that the test moves.
#![allow(
    dead_code,
    reason = "each test binary uses a part, and what is unused in one is used in another"
)]

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use biplane::{
    Biplane,
    connector::{Connector, ConnectorStats, Route, TenantRoute, memory::MemoryDb},
    error::{Error, ErrorKind},
    repository::{Actor, Found, MemoryControl, NewSource, NewTenant, Page, TenantAdmin, TenantRepository},
    router::{CacheOptions, Clock},
    tenant::{
        Domain, Isolation, Location, Resolved, Slug, Tenant, TenantId, TenantName, TenantRef, TenantStatus,
    },
    testing::{
        faulty::{Fault, FaultyRepository},
        wait,
    },
};
use tokio::sync::oneshot;

/// What a tenant keeps in these tests.
pub(crate) type Notes = Vec<String>;

/// How long a condition may take to come true on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);

/// A control plane, a router that asks it, and the router's clock.
pub(crate) struct World<H: Clone + Send + Sync + 'static> {
    pub(crate) plane: FaultyRepository<Odd>,
    pub(crate) biplane: Biplane<H>,
    pub(crate) clock: Clock,
}

impl World<MemoryDb<Notes>> {
    /// Handles on data.
    pub(crate) fn new() -> Self {
        Self::with(CacheOptions::default())
    }

    pub(crate) fn with(options: CacheOptions) -> Self {
        let (plane, clock) = (FaultyRepository::new(Odd::default()), Clock::manual());
        let builder = Biplane::memory(plane.clone(), |_| Notes::new());
        let biplane = builder.cache(options).clock(clock.clone()).build().unwrap();
        Self {
            plane,
            biplane,
            clock,
        }
    }
}

impl World<Arc<Seen>> {
    /// Handles that tell which record they were made of.
    pub(crate) fn seeing() -> Self {
        Self::seeing_with(CacheOptions::default())
    }

    pub(crate) fn seeing_with(options: CacheOptions) -> Self {
        let (plane, clock) = (FaultyRepository::new(Odd::default()), Clock::manual());
        let builder = Biplane::builder(plane.clone(), SeeingConnector);
        let biplane = builder.cache(options).clock(clock.clone()).build().unwrap();
        Self {
            plane,
            biplane,
            clock,
        }
    }
}

impl<H: Clone + Send + Sync + 'static> World<H> {
    pub(crate) fn odd(&self) -> &Odd {
        self.plane.inner()
    }

    pub(crate) fn control(&self) -> &MemoryControl {
        &self.odd().control
    }

    /// Adds a tenant that is being set up, with a database and the custom domain `domain(slug)`.
    pub(crate) async fn provision(&self, name: &str) -> Tenant {
        let source = NewSource::new(name, Location::Memory);
        let source = self.control().create_source(&by(), source).await.unwrap();
        let mut new = NewTenant::new(slug(name), source.id);
        new.domains = vec![domain(name)];
        self.control().create(&by(), new).await.unwrap()
    }

    /// Adds a tenant that is open. The router is not told.
    pub(crate) async fn add(&self, name: &str) -> Tenant {
        let tenant = self.provision(name).await;
        self.set(tenant.id, TenantStatus::Active).await
    }

    /// The control plane's own record.
    pub(crate) async fn record(&self, id: TenantId) -> Tenant {
        let found = self.control().find(&[TenantRef::Id(id)]).await.unwrap().remove(0);
        found.unwrap().unwrap().record.tenant.clone()
    }

    /// Changes a status, by way of others if need be. The router is not told.
    pub(crate) async fn set(&self, id: TenantId, status: TenantStatus) -> Tenant {
        let mut tenant = self.record(id).await;
        if status == TenantStatus::Deleted && tenant.status == TenantStatus::Active {
            let archived = TenantStatus::Archived;
            let (id, version) = (tenant.id, tenant.version);
            tenant = self
                .control()
                .set_status(&by(), id, version, archived)
                .await
                .unwrap();
        }
        let version = tenant.version;
        self.control()
            .set_status(&by(), id, version, status)
            .await
            .unwrap()
    }

    /// Raises a tenant's version and changes nothing else. The router is not told.
    pub(crate) async fn touch(&self, id: TenantId) -> Tenant {
        let version = self.record(id).await.version;
        let settings = serde_json::json!({ "touched_at": version.value() });
        self.control()
            .set_settings(&by(), id, version, settings)
            .await
            .unwrap()
    }

    /// The router is not told.
    pub(crate) async fn rename(&self, id: TenantId, to: &str) -> Tenant {
        let version = self.record(id).await.version;
        self.control().rename(&by(), id, version, slug(to)).await.unwrap()
    }

    /// The router is not told.
    pub(crate) async fn move_domain(&self, domain: &Domain, from: TenantId, to: TenantId) {
        let version = self.record(from).await.version;
        self.control()
            .remove_domain(&by(), from, version, domain)
            .await
            .unwrap();
        let version = self.record(to).await.version;
        self.control()
            .add_domain(&by(), to, version, domain.clone())
            .await
            .unwrap();
    }

    /// Places a tenant on another database. The router is not told.
    pub(crate) async fn place_elsewhere(&self, id: TenantId, source: &str) -> Tenant {
        let source = NewSource::new(source, Location::Memory);
        let source = self.control().create_source(&by(), source).await.unwrap();
        let version = self.record(id).await.version;
        self.control()
            .place(&by(), id, version, source.id, Isolation::Database)
            .await
            .unwrap()
    }

    /// Starts a lookup in a task of its own.
    pub(crate) fn spawn(&self, name: impl Into<OwnedName>) -> Lookup<H> {
        let (biplane, OwnedName(name)) = (self.biplane.clone(), name.into());
        tokio::spawn(async move { biplane.route(&name).await })
    }

    /// Comes back when this many lookups in all have had to wait for the control plane.
    pub(crate) async fn waiting(&self, lookups: u64) {
        eventually("the callers to wait for a load", || {
            self.biplane.stats().misses >= lookups
        })
        .await;
    }
}

pub(crate) type Lookup<H> = tokio::task::JoinHandle<Result<H, Error>>;

/// A name that a task may keep.
pub(crate) struct OwnedName(pub(crate) TenantName);

impl<T: AsName + ?Sized> From<&T> for OwnedName {
    fn from(name: &T) -> Self {
        Self(name.as_name())
    }
}

pub(crate) trait AsName {
    fn as_name(&self) -> TenantName;
}

impl AsName for Slug {
    fn as_name(&self) -> TenantName {
        TenantName::Slug(*self)
    }
}

impl AsName for Domain {
    fn as_name(&self) -> TenantName {
        TenantName::Domain(self.clone())
    }
}

impl AsName for TenantId {
    fn as_name(&self) -> TenantName {
        TenantName::Id(*self)
    }
}

impl AsName for TenantName {
    fn as_name(&self) -> TenantName {
        self.clone()
    }
}

pub(crate) fn by() -> Actor {
    Actor::new("ann", "a test")
}

pub(crate) fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

/// The custom domain of the tenant that began with this slug.
pub(crate) fn domain(slug: &str) -> Domain {
    Domain::parse(&format!("{slug}.example.com")).unwrap()
}

/// All the names that a tenant has.
pub(crate) fn names(tenant: &Tenant) -> Vec<TenantName> {
    let mut names = vec![TenantName::Slug(tenant.slug), TenantName::Id(tenant.id)];
    names.extend(tenant.domains.iter().cloned().map(TenantName::Domain));
    names
}

/// The kind of a failure, which must be one.
#[track_caller]
pub(crate) fn kind<T>(outcome: Result<T, Error>) -> ErrorKind {
    match outcome {
        Ok(_) => panic!("it was let through"),
        Err(error) => error.kind(),
    }
}

pub(crate) const fn inactive(status: TenantStatus) -> ErrorKind {
    ErrorKind::Inactive { status }
}

pub(crate) async fn eventually(what: &'static str, mut condition: impl FnMut() -> bool) {
    wait::until(what, LIMIT, async || condition()).await.unwrap();
}

/// A control plane in memory with moods.
#[derive(Debug, Default)]
pub(crate) struct Odd {
    pub(crate) control: MemoryControl,
    mood: Mutex<Mood>,
    holds: Mutex<VecDeque<oneshot::Receiver<()>>>,
    read: tokio::sync::watch::Sender<usize>,
    /// Freed with the control plane.
    pub(crate) token: Arc<()>,
}

#[derive(Clone, Debug, Default)]
pub(crate) enum Mood {
    #[default]
    Well,
    Panics,
    /// One outcome less than names.
    TooFew,
    /// One outcome more than names.
    TooMany,
    /// The outcomes in reverse order.
    MixedUp,
    /// What it answered before, as a replica that has fallen behind.
    Behind(HashMap<TenantName, Option<Resolved>>),
}

impl Odd {
    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Answers about these names what is true now, whatever changes later.
    pub(crate) async fn remember(&self, names: &[TenantName]) -> Mood {
        let refs: Vec<_> = names.iter().map(TenantName::as_ref).collect();
        let found = self.control.find(&refs).await.unwrap();
        let found = found.into_iter().map(Result::unwrap);
        Mood::Behind(names.iter().cloned().zip(found).collect())
    }

    /// Holds back the answer of the next call that is not spoken for, which is of the moment of asking, until the
    /// sender is used or dropped.
    pub(crate) fn hold_next(&self) -> oneshot::Sender<()> {
        let (release, held) = oneshot::channel();
        self.holds.lock().unwrap().push_back(held);
        release
    }

    /// Comes back when this many calls have read what they will answer.
    pub(crate) async fn has_read(&self, calls: usize) {
        let mut read = self.read.subscribe();
        read.wait_for(|read| *read >= calls).await.unwrap();
    }
}

#[async_trait]
impl TenantRepository for Odd {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        let mood = self.mood.lock().unwrap().clone();
        let mut found = self.control.find(names).await?;
        match mood {
            Mood::Well => {}
            Mood::Panics => panic!("a control plane that panics on purpose"),
            Mood::TooFew => drop(found.pop()),
            Mood::TooMany => found.push(Ok(None)),
            Mood::MixedUp => found.reverse(),
            Mood::Behind(known) => {
                let answer = |name: &TenantRef<'_>| Ok(known.get(&name.to_name()).cloned().flatten());
                found = names.iter().map(answer).collect();
            }
        }
        let held = self.holds.lock().unwrap().pop_front();
        self.read.send_modify(|read| *read += 1);
        if let Some(held) = held {
            let _ = held.await;
        }
        Ok(found)
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        self.control.list(after, limit).await
    }
}

/// A way for the control plane to be out of order, and what a caller is told then.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outage {
    Fails,
    Hangs,
    Panics,
    TooFew,
    TooMany,
}

impl Outage {
    pub(crate) const ALL: [Self; 5] = [
        Self::Fails,
        Self::Hangs,
        Self::Panics,
        Self::TooFew,
        Self::TooMany,
    ];

    pub(crate) fn begin<H: Clone + Send + Sync + 'static>(self, world: &World<H>) {
        match self {
            Self::Fails => world.plane.set(Fault::Unreachable),
            Self::Hangs => world.plane.set(Fault::Hang),
            Self::Panics => world.odd().set(Mood::Panics),
            Self::TooFew => world.odd().set(Mood::TooFew),
            Self::TooMany => world.odd().set(Mood::TooMany),
        }
    }

    pub(crate) fn end<H: Clone + Send + Sync + 'static>(world: &World<H>) {
        world.odd().set(Mood::Well);
        world.plane.set(Fault::None);
    }

    pub(crate) const fn kind(self) -> ErrorKind {
        match self {
            Self::Fails | Self::Hangs => ErrorKind::ControlPlaneUnavailable,
            Self::Panics | Self::TooFew | Self::TooMany => ErrorKind::Internal,
        }
    }
}

/// A handle that tells which record it was made of.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) tenant: Tenant,
    route: TenantRoute,
}

impl Seen {
    /// What a use of the handle would go by now.
    pub(crate) async fn current(&self) -> Result<Arc<Route>, Error> {
        self.route.current().await
    }
}

#[derive(Debug)]
pub(crate) struct SeeingConnector;

#[async_trait]
impl Connector for SeeingConnector {
    type Handle = Arc<Seen>;

    fn handle(&self, tenant: &Tenant, route: TenantRoute) -> Result<Arc<Seen>, Error> {
        let tenant = tenant.clone();
        Ok(Arc::new(Seen { tenant, route }))
    }

    async fn close(&self, _: Duration) {}

    fn stats(&self) -> ConnectorStats {
        ConnectorStats::default()
    }
}
