//! How a router comes to know what it does not: loads, in tasks that no caller owns.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::FutureExt;

use super::{
    BrakeOptions, CacheOptions, Clock, FeedHealth,
    feed::Feed,
    flights::{Batch, Moment},
    known::{Admission, Known, StartWorker},
    overrides::{OverrideHealth, Watch},
    stats::Counters,
    table::{Entry, Table},
};
use crate::{
    connector::{OfSource, Route, Routes},
    error::{Error, ErrorKind},
    repository::{Found, TenantRepository},
    tenant::{DataSourceId, TenantId, TenantName, TenantRef},
};

/// Queries to the control plane at a time. Names that are asked for meanwhile gather for the next one, so two are
/// enough for any number of cold tenants.
pub(super) const MAX_QUERIES: usize = 2;

/// Names in one query.
pub(super) const MAX_NAMES: usize = 500;

pub(super) struct Core<H> {
    pub(super) repository: Arc<dyn TenantRepository>,
    pub(super) load_timeout: Duration,
    reads_exact_time: bool,
    pub(super) known: Known<H>,
    clock: Clock,
    feed: Option<Arc<Feed>>,
    overrides: Option<Arc<Watch>>,
    pub(super) counters: Counters,
    told_unfenced: AtomicBool,
}

impl<H: Clone + Send + Sync + 'static> Core<H> {
    pub(super) fn new(
        repository: Arc<dyn TenantRepository>,
        options: CacheOptions,
        brake: Option<BrakeOptions>,
        clock: Clock,
        feed: Option<Feed>,
        overrides: Option<Watch>,
        table: &Arc<Table<H>>,
    ) -> Self {
        Self {
            repository,
            load_timeout: options.load_timeout,
            reads_exact_time: options.fail_closed_after.is_some()
                && !cfg!(biplane_mutant = "fail_closed_trusts_the_coarse_clock"),
            known: Known::new(options, brake, table),
            clock,
            feed: feed.map(Arc::new),
            overrides: overrides.map(Arc::new),
            counters: Counters::default(),
            told_unfenced: AtomicBool::default(),
        }
    }

    /// The time, by the clock that the options need.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        if self.reads_exact_time {
            self.clock.exact()
        } else {
            self.clock.now()
        }
    }

    /// The entry of a name, from the control plane if what is known may not be served.
    pub(super) async fn resolve(self: &Arc<Self>, name: &TenantRef<'_>) -> Result<Arc<Entry<H>>, Error> {
        let name = name.to_name();
        let now = self.now();
        if let Some(settled) = self.known.settled(&name, now) {
            return self.count(settled);
        }
        let runtime = runtime()?;
        // First, so that what is read now was read after the feed had its position, if that is quicker.
        self.follow_changes(&runtime);
        // Before anybody is led anywhere.
        if let Some(overrides) = &self.overrides {
            overrides.first_look(self).await;
        }
        match self.known.join(&name, now, MAX_QUERIES) {
            Admission::Settled(settled) => self.count(settled),
            Admission::Refreshing(entry, worker) => {
                self.start(&runtime, worker);
                self.counters.hit();
                Ok(entry)
            }
            Admission::Refused(error, moment) => {
                self.counters.not_asked.fetch_add(1, Ordering::Relaxed);
                self.or_stale(&name, Err(error), moment)
            }
            Admission::Wait(flight, worker, moment) => {
                self.start(&runtime, worker);
                self.counters.misses.fetch_add(1, Ordering::Relaxed);
                self.or_stale(&name, flight.outcome().await, moment)
            }
        }
    }

    /// Starts the feed, and looking for an override file, unless they run or there is none.
    pub(super) fn follow_changes(self: &Arc<Self>, runtime: &tokio::runtime::Handle) {
        match &self.feed {
            Some(feed) => feed.start(self, runtime),
            None => self.tell_unfenced(runtime),
        }
        if let Some(overrides) = &self.overrides {
            overrides.start(self, runtime);
        }
    }

    /// Says once how many data sources nothing fences, in a task that nobody waits for.
    pub(super) fn tell_unfenced(self: &Arc<Self>, runtime: &tokio::runtime::Handle) {
        if self.told_unfenced.swap(true, Ordering::Relaxed)
            || cfg!(biplane_mutant = "unfenced_sources_are_not_told")
        {
            return;
        }
        let (repository, patience) = (Arc::clone(&self.repository), self.load_timeout);
        runtime.spawn(async move {
            match tokio::time::timeout(patience, repository.unfenced_sources()).await {
                Ok(Ok(Some(number))) => tracing::info!(
                    data_sources = number,
                    "a data source that holds tenants and has no database_id is not fenced; so many are there"
                ),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    tracing::info!(%error, "how many data sources are not fenced could not be counted");
                }
                Err(_) => tracing::info!("how many data sources are not fenced was not told in time"),
            }
        });
    }

    /// Releases the brake. What was held is read anew at once where there is a runtime, otherwise by whoever asks.
    pub(super) fn release_brake(self: &Arc<Self>) {
        self.let_go(|known, max_workers| known.release_brake(max_workers));
    }

    pub(super) fn thaw(self: &Arc<Self>) {
        self.let_go(|known, max_workers| known.thaw(max_workers));
    }

    fn let_go(self: &Arc<Self>, let_go: impl FnOnce(&Known<H>, Option<usize>) -> Vec<StartWorker>) {
        let runtime = runtime().ok();
        let workers = let_go(&self.known, runtime.as_ref().map(|_| MAX_QUERIES));
        if let Some(runtime) = runtime {
            self.start(&runtime, workers);
        }
        self.tell_what_acts();
    }

    /// After what was held has been applied.
    pub(super) fn tell_what_acts(&self) {
        if let Some(feed) = self.feed.as_ref().filter(|_| self.known.all_acts()) {
            feed.acts();
        }
    }

    /// Ends both, for good.
    pub(super) fn stop_following(&self) {
        if let Some(feed) = &self.feed {
            feed.stop();
        }
        if let Some(overrides) = &self.overrides {
            overrides.stop();
        }
    }

    pub(super) fn override_health(&self) -> OverrideHealth {
        let health = |overrides: &Arc<Watch>| overrides.health(self.now());
        self.overrides.as_ref().map(health).unwrap_or_default()
    }

    pub(super) fn overridden_tenants(&self) -> usize {
        self.overrides.as_ref().map_or(0, |overrides| overrides.tenants())
    }

    pub(super) fn feed_health(&self) -> FeedHealth {
        let health = |feed: &Arc<Feed>| feed.health(self.now());
        self.feed.as_ref().map(health).unwrap_or_default()
    }

    /// Asks the control plane about a tenant, whatever is known. If it cannot tell, nothing is forgotten.
    pub(super) async fn reload(self: &Arc<Self>, tenant: TenantId) -> Result<Arc<Entry<H>>, Error> {
        let runtime = runtime()?;
        match self
            .known
            .join_anyway(&TenantName::Id(tenant), self.now(), MAX_QUERIES)
        {
            Admission::Settled(settled) => settled,
            Admission::Refreshing(entry, worker) => {
                self.start(&runtime, worker);
                Ok(entry)
            }
            Admission::Refused(error, _) => Err(error),
            Admission::Wait(flight, worker, _) => {
                self.start(&runtime, worker);
                flight.outcome().await
            }
        }
    }

    /// Starts the workers that were counted.
    pub(super) fn start(
        self: &Arc<Self>,
        runtime: &tokio::runtime::Handle,
        workers: impl IntoIterator<Item = StartWorker>,
    ) {
        for StartWorker in workers {
            runtime.spawn(Worker::new(Arc::clone(self)).work());
        }
    }

    fn count(&self, settled: Result<Arc<Entry<H>>, Error>) -> Result<Arc<Entry<H>>, Error> {
        match &settled {
            Ok(_) => self.counters.hit(),
            Err(error) if error.kind() == ErrorKind::UnknownTenant => {
                self.counters.known_unknown.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {}
        }
        settled
    }

    /// The outcome of a load, or what the name led to before if the load could not tell.
    fn or_stale(
        &self,
        name: &TenantName,
        outcome: Result<Arc<Entry<H>>, Error>,
        moment: Moment,
    ) -> Result<Arc<Entry<H>>, Error> {
        let unknown = cfg!(biplane_mutant = "failure_means_unknown");
        match outcome {
            Err(error) if !matches!(error.kind(), ErrorKind::UnknownTenant | ErrorKind::Closed) => {
                match self.known.stale(name, self.now(), moment) {
                    Some(entry) => {
                        self.counters.served_stale.fetch_add(1, Ordering::Relaxed);
                        Ok(entry)
                    }
                    None if unknown => Err(ErrorKind::UnknownTenant.into()),
                    None => Err(error),
                }
            }
            told => told,
        }
    }

    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        let started = Instant::now();
        let find = AssertUnwindSafe(async { self.repository.find(names).await }).catch_unwind();
        let found = match tokio::time::timeout(self.load_timeout, find).await {
            Ok(Ok(Ok(found))) if found.len() == names.len() => Ok(found),
            Ok(Ok(Ok(_))) => Err(Error::new(ErrorKind::Internal)
                .detail("the repository did not give one outcome for each name")),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_panic)) => Err(Error::new(ErrorKind::Internal).detail("the repository panicked")),
            Err(_) => {
                Err(Error::new(ErrorKind::ControlPlaneUnavailable).detail("no answer within load_timeout"))
            }
        };
        self.counters
            .loaded(names.len(), started.elapsed(), found.is_err());
        found
    }
}

/// Asks the control plane until nobody waits for an answer. However it ends, nobody is left waiting for it.
struct Worker<H: Clone + Send + Sync + 'static> {
    core: Arc<Core<H>>,
    batch: Option<Batch<Arc<Entry<H>>>>,
    done: bool,
}

impl<H: Clone + Send + Sync + 'static> Worker<H> {
    const fn new(core: Arc<Core<H>>) -> Self {
        Self {
            core,
            batch: None,
            done: false,
        }
    }

    async fn work(mut self) {
        loop {
            // Whoever is about to ask as well does so first, and shares the query.
            tokio::task::yield_now().await;
            let most = if cfg!(biplane_mutant = "each_name_is_a_query") {
                1
            } else {
                MAX_NAMES
            };
            self.batch = self.core.known.take(most);
            let Some(batch) = &self.batch else {
                self.done = true;
                return;
            };
            let names: Vec<TenantRef<'_>> = batch.flights.iter().map(|flight| flight.name.as_ref()).collect();
            let asked_at = self.core.now();
            let outcomes = self.core.find(&names).await;
            self.core.known.land(batch, outcomes, asked_at, self.core.now());
            self.batch = None;
        }
    }
}

impl<H: Clone + Send + Sync + 'static> Drop for Worker<H> {
    fn drop(&mut self) {
        if !self.done && !cfg!(biplane_mutant = "stopped_worker_says_nothing") {
            let error = Error::new(ErrorKind::ControlPlaneUnavailable)
                .detail("the runtime that was asking it has been shut down");
            self.core.known.abandon(self.batch.as_ref(), &error);
        }
    }
}

#[async_trait]
impl<H: Clone + Send + Sync + 'static> Routes for Arc<Core<H>> {
    fn current(&self, tenant: TenantId) -> Option<Result<Arc<Route>, Error>> {
        let now = self.now();
        let route = self.known.route(tenant).filter(|route| route.is_fresh(now))?;
        Some(route.open())
    }

    async fn route(&self, tenant: TenantId) -> Result<Arc<Route>, Error> {
        let entry = self.resolve(&TenantRef::Id(tenant)).await?;
        Arc::clone(&entry.route).open()
    }

    async fn reload(&self, tenant: TenantId) -> Result<Arc<Route>, Error> {
        let entry = Core::reload(self, tenant).await?;
        Arc::clone(&entry.route).open()
    }

    fn known(&self, tenant: TenantId) -> Option<Arc<Route>> {
        self.known.route(tenant)
    }

    fn of_source(&self, source: DataSourceId) -> Option<OfSource> {
        self.known.of_source(source, self.now())
    }

    fn is_overridden(&self, tenant: TenantId) -> Option<bool> {
        Some(self.known.route(tenant)?.is_overridden())
    }

    fn age(&self, tenant: TenantId) -> Option<Duration> {
        let confirmed_at = self.known.route(tenant)?.confirmed_at();
        let age = self.now().saturating_sub(confirmed_at);
        Some(Duration::from_millis(age))
    }
}

fn runtime() -> Result<tokio::runtime::Handle, Error> {
    tokio::runtime::Handle::try_current().map_err(|error| {
        Error::new(ErrorKind::Internal)
            .detail("asking the control plane needs a tokio runtime; call from within one")
            .caused_by(error)
    })
}

impl<H: Clone + Send + Sync + 'static> fmt::Debug for Core<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("tenants", &self.known.tenants())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        connector::memory::{MemoryConnector, MemoryDb},
        repository::{Actor, MemoryControl, NewSource, NewTenant, TenantAdmin},
        router::{Router, TenantRouter},
        tenant::{Location, Slug, TenantStatus},
    };

    /// The process was stopped, and its coarse clock does not know yet.
    #[tokio::test]
    async fn a_bound_that_fails_closed_is_held_against_the_clock_of_the_operating_system() {
        let bound = Duration::from_millis(200);
        let control = MemoryControl::new();
        let (by, slug) = (Actor::new("a test", "age"), Slug::parse("acme").unwrap());
        let source = NewSource::new("acme", Location::Memory);
        let source = control.create_source(&by, source).await.unwrap();
        let tenant = control
            .create(&by, NewTenant::new(slug, source.id))
            .await
            .unwrap();
        let active = control.set_status(&by, tenant.id, tenant.version, TenantStatus::Active);
        active.await.unwrap();
        let routed = async |options: CacheOptions| {
            let connector = MemoryConnector::new(|_| ());
            let repository = Arc::new(control.clone());
            let router = Router::new(repository, options, None, Clock::stalled(), None, None, connector);
            let _: MemoryDb<()> = router.route(&TenantRef::Slug(&slug)).await.unwrap();
            // Real time, because it is the clock of the operating system that is asked.
            std::thread::sleep(bound);
            router.cached(&TenantRef::Slug(&slug)).is_some()
        };
        assert!(routed(CacheOptions::default()).await);
        assert!(!routed(CacheOptions::default().fail_closed_after(bound)).await);
    }
}
