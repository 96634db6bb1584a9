//! A control plane that the test breaks, holds and questions, and a router on it.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use biplane::{
    Biplane,
    breaker::BreakerStatus,
    connector::{Connector, ConnectorStats, TenantRoute, memory::MemoryDb},
    error::{Error, ErrorKind},
    repository::{
        Actor, ChangeHead, ChangeHint, ChangeListener, ChangeLog, ChangePush, ChangeSource, Changes, Found,
        MemoryControl, NewSource, NewTenant, Page, TenantAdmin, TenantRepository,
    },
    router::{Clock, FeedOptions},
    tenant::{Domain, Location, Seq, Slug, Tenant, TenantId, TenantName, TenantRef, TenantStatus},
    testing::faulty::FaultyRepository,
};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) type Notes = Vec<&'static str>;

/// A control plane in memory that fails on demand, and a router over it on a clock that the test moves.
pub(crate) struct World {
    pub(crate) control: MemoryControl,
    pub(crate) repository: FaultyRepository<MemoryControl>,
    pub(crate) clock: Clock,
    pub(crate) biplane: Biplane<MemoryDb<Notes>>,
}

pub(crate) fn world() -> World {
    let control = MemoryControl::new();
    let repository = FaultyRepository::new(control.clone());
    let clock = Clock::manual();
    let biplane = Biplane::memory(repository.clone(), |_| Notes::new())
        .clock(clock.clone())
        .build()
        .expect("the defaults are valid");
    World {
        control,
        repository,
        clock,
        biplane,
    }
}

pub(crate) fn by() -> Actor {
    Actor::new("a test", "to see what happens")
}

pub(crate) fn slug(text: &str) -> Slug {
    Slug::parse(text).expect("the test names slugs")
}

pub(crate) fn domain(text: &str) -> Domain {
    Domain::parse(text).expect("the test names domains")
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What a test does to a control plane, in one call each.
pub(crate) trait Steps {
    /// A tenant that is being provisioned, on a data source of its own.
    async fn provision(&self, name: &str) -> Tenant;
    /// An active tenant with the domain `<name>.example`.
    async fn tenant(&self, name: &str) -> Tenant;
    /// The tenant as it is now.
    async fn now(&self, id: TenantId) -> Tenant;
    /// Takes the tenant to a status, over others if need be.
    async fn turn(&self, id: TenantId, status: TenantStatus) -> Tenant;
    async fn renamed(&self, id: TenantId, name: &str) -> Tenant;
    /// Changes the tenant in a way that nobody notices but by its version.
    async fn touch(&self, id: TenantId) -> Tenant;
}

impl Steps for MemoryControl {
    async fn provision(&self, name: &str) -> Tenant {
        let source = NewSource::new(TenantId::new().to_string(), Location::Memory);
        let source = self.create_source(&by(), source).await.expect("it is new");
        let mut tenant = NewTenant::new(slug(name), source.id);
        tenant.domains = vec![domain(&format!("{name}.example"))];
        self.create(&by(), tenant).await.expect("the names are free")
    }

    async fn tenant(&self, name: &str) -> Tenant {
        let tenant = self.provision(name).await;
        self.turn(tenant.id, TenantStatus::Active).await
    }

    async fn now(&self, id: TenantId) -> Tenant {
        let mut found = self.find(&[TenantRef::Id(id)]).await.expect("memory answers");
        let resolved = found.pop().expect("one outcome").expect("it is well-formed");
        resolved.expect("it is there").record.tenant.clone()
    }

    async fn turn(&self, id: TenantId, status: TenantStatus) -> Tenant {
        use TenantStatus::{Active, Archived, Deleted};
        let mut tenant = self.now(id).await;
        let over: &[TenantStatus] = match (tenant.status, status) {
            (from, to) if from == to => return tenant,
            (from, to) if from.can_become(to) => &[],
            (from, Deleted) if from.can_become(Archived) => &[Archived],
            (_, Deleted) => &[Active, Archived],
            _ => &[Active],
        };
        for status in over.iter().copied().chain([status]) {
            let step = self.set_status(&by(), id, tenant.version, status).await;
            tenant = step.expect("the edges allow it");
        }
        tenant
    }

    async fn renamed(&self, id: TenantId, name: &str) -> Tenant {
        let version = self.now(id).await.version;
        let renamed = self.rename(&by(), id, version, slug(name)).await;
        renamed.expect("the slug is free")
    }

    async fn touch(&self, id: TenantId) -> Tenant {
        let tenant = self.now(id).await;
        let settings = serde_json::json!({ "touched": tenant.version.value() });
        let touched = self.set_settings(&by(), id, tenant.version, settings).await;
        touched.expect("nobody else writes")
    }
}

pub(crate) fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

/// Hands out the record that the route was made of, and counts how often it was asked to.
#[derive(Clone, Default)]
pub(crate) struct Records {
    pub(crate) made: Arc<AtomicUsize>,
}

impl Records {
    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }
}

/// A tenant as a route knows it.
#[derive(Clone, Debug)]
pub(crate) struct Record(pub(crate) Arc<Tenant>);

#[async_trait]
impl Connector for Records {
    type Handle = Record;

    fn handle(&self, tenant: &Tenant, _: TenantRoute) -> Result<Record, Error> {
        self.made.fetch_add(1, Ordering::SeqCst);
        Ok(Record(Arc::new(tenant.clone())))
    }

    async fn close(&self, _: Duration) {}

    fn stats(&self) -> ConnectorStats {
        ConnectorStats::default()
    }

    fn breakers(&self) -> Vec<BreakerStatus> {
        Vec::new()
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Records")
    }
}

/// Answers after a while.
#[derive(Debug)]
pub(crate) struct Slow(pub(crate) MemoryControl, pub(crate) Duration);

#[async_trait]
impl TenantRepository for Slow {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        tokio::time::sleep(self.1).await;
        self.0.find(names).await
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        self.0.list(after, limit).await
    }
}

/// A repository whose every call the test takes through its steps.
#[derive(Clone)]
pub(crate) struct Gate {
    inner: MemoryControl,
    calls: Arc<Mutex<VecDeque<Call>>>,
    begun: Arc<watch::Sender<usize>>,
}

/// One query, which is still under way.
pub(crate) struct Call {
    pub(crate) names: Vec<TenantName>,
    steps: mpsc::UnboundedSender<Step>,
}

enum Step {
    /// Reads, and says so.
    Read(oneshot::Sender<()>),
    /// Answers with what was read, or with this.
    Answer(Option<Result<Vec<Found>, Error>>),
}

impl Gate {
    pub(crate) fn new(inner: MemoryControl) -> Self {
        Self {
            inner,
            calls: Arc::default(),
            begun: Arc::new(watch::Sender::new(0)),
        }
    }

    /// How many queries have begun.
    pub(crate) fn begun(&self) -> usize {
        *self.begun.borrow()
    }

    /// The oldest query that nobody has taken in hand, as soon as there is one.
    pub(crate) async fn call(&self) -> Call {
        let mut begun = self.begun.subscribe();
        loop {
            if let Some(call) = self.calls.lock().unwrap().pop_front() {
                return call;
            }
            begun.changed().await.expect("the sender lives in self");
        }
    }

    /// The same, if there is one by now.
    pub(crate) fn call_now(&self) -> Option<Call> {
        self.calls.lock().unwrap().pop_front()
    }
}

impl Call {
    /// Lets it read the control plane as it is now.
    pub(crate) async fn read(&self) {
        let (done, read) = oneshot::channel();
        self.send(Step::Read(done));
        // A query that has run into its time limit reads nothing.
        let _ = read.await;
    }

    /// Lets it answer with what it read before, or reads now.
    pub(crate) fn answer(self) {
        self.send(Step::Answer(None));
    }

    pub(crate) fn answer_with(self, answer: Result<Vec<Found>, Error>) {
        self.send(Step::Answer(Some(answer)));
    }

    pub(crate) fn fail(self) {
        self.answer_with(Err(ErrorKind::ControlPlaneUnavailable.into()));
    }

    /// Whether it has run into its time limit.
    pub(crate) fn is_over(&self) -> bool {
        self.steps.is_closed()
    }

    fn send(&self, step: Step) {
        // Nobody listens after the time limit.
        let _ = self.steps.send(step);
    }
}

#[async_trait]
impl TenantRepository for Gate {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        let (steps, mut taken) = mpsc::unbounded_channel();
        let call = Call {
            names: names.iter().map(TenantRef::to_name).collect(),
            steps,
        };
        self.calls.lock().unwrap().push_back(call);
        self.begun.send_modify(|begun| *begun += 1);
        let mut read = None;
        loop {
            match taken.recv().await {
                Some(Step::Read(done)) => {
                    read = Some(self.inner.find(names).await);
                    let _ = done.send(());
                }
                Some(Step::Answer(Some(answer))) => return answer,
                Some(Step::Answer(None)) => {
                    return match read {
                        Some(read) => read,
                        None => self.inner.find(names).await,
                    };
                }
                // A call that the test dropped hangs.
                None => std::future::pending().await,
            }
        }
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        self.inner.list(after, limit).await
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

/// A router over a gate, whose handles are the records.
pub(crate) struct Gated {
    pub(crate) control: MemoryControl,
    pub(crate) gate: Gate,
    pub(crate) records: Records,
    pub(crate) clock: Clock,
    pub(crate) biplane: Biplane<Record>,
}

pub(crate) fn gated() -> Gated {
    gated_over(MemoryControl::new(), None)
}

/// The same with a feed that looks when it is told to, and hardly ever otherwise.
pub(crate) fn gated_over(control: MemoryControl, changes: Option<ChangeSource>) -> Gated {
    let gate = Gate::new(control.clone());
    let records = Records::default();
    let clock = Clock::manual();
    let builder = Biplane::builder(gate.clone(), records.clone())
        .clock(clock.clone())
        .feed(FeedOptions::default().interval(seconds(100_000_000)));
    let biplane = match changes {
        Some(changes) => builder.changes(changes).build(),
        None => builder.build(),
    }
    .expect("the options are valid");
    Gated {
        control,
        gate,
        records,
        clock,
        biplane,
    }
}

impl Gated {
    /// A caller of its own, which has begun to wait when this returns.
    pub(crate) async fn caller(
        &self,
        name: impl Into<TenantRef<'_>>,
    ) -> tokio::task::JoinHandle<Result<Record, Error>> {
        let name = name.into().to_name();
        let biplane = self.biplane.clone();
        let caller = tokio::spawn(async move { biplane.route(&name).await });
        settle().await;
        caller
    }

    /// Routes, with a control plane that answers at once.
    pub(crate) async fn route(&self, name: impl Into<TenantRef<'_>>) -> Result<Record, Error> {
        let caller = self.caller(name).await;
        if let Some(call) = self.gate.call_now() {
            call.answer();
        }
        caller.await.expect("it does not panic")
    }
}

/// A log whose every call the test answers, in order.
#[derive(Clone)]
pub(crate) struct LogGate {
    inner: MemoryControl,
    looks: mpsc::UnboundedSender<Look>,
}

/// A look, which has read and waits to be answered. Dropped, it fails.
pub(crate) struct Look(oneshot::Sender<()>);

impl LogGate {
    pub(crate) fn new(inner: MemoryControl) -> (Self, mpsc::UnboundedReceiver<Look>) {
        let (looks, taken) = mpsc::unbounded_channel();
        (Self { inner, looks }, taken)
    }

    async fn pass(&self) -> Result<(), Error> {
        let (look, answered) = oneshot::channel();
        self.looks.send(Look(look)).expect("the test listens");
        answered
            .await
            .map_err(|_| ErrorKind::ControlPlaneUnavailable.into())
    }
}

impl Look {
    /// Answers, and says whether anybody still waited.
    pub(crate) async fn answer(self) -> bool {
        let waited = self.0.send(()).is_ok();
        settle().await;
        waited
    }
}

impl fmt::Debug for LogGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogGate")
    }
}

#[async_trait]
impl ChangeLog for LogGate {
    async fn head(&self) -> Result<ChangeHead, Error> {
        let head = self.inner.head().await;
        self.pass().await?;
        head
    }

    async fn since(&self, after: Seq, limit: NonZeroU32) -> Result<Changes, Error> {
        let changes = self.inner.since(after, limit).await;
        self.pass().await?;
        changes
    }
}

/// A push that says what the test says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Whisper {
    listeners: Arc<Mutex<Vec<mpsc::UnboundedSender<ChangeHint>>>>,
}

impl Whisper {
    pub(crate) fn say(&self, hint: ChangeHint) {
        for listener in &*self.listeners.lock().unwrap() {
            let _ = listener.send(hint);
        }
    }

    /// All who listen are cut off.
    pub(crate) fn cut(&self) {
        self.listeners.lock().unwrap().clear();
    }

    pub(crate) fn listened_to(&self) -> usize {
        self.listeners.lock().unwrap().len()
    }
}

#[derive(Debug)]
struct Ear(mpsc::UnboundedReceiver<ChangeHint>);

#[async_trait]
impl ChangePush for Whisper {
    async fn listen(&self) -> Result<Box<dyn ChangeListener>, Error> {
        let (tell, told) = mpsc::unbounded_channel();
        self.listeners.lock().unwrap().push(tell);
        Ok(Box::new(Ear(told)))
    }
}

#[async_trait]
impl ChangeListener for Ear {
    async fn next(&mut self) -> Result<ChangeHint, Error> {
        self.0
            .recv()
            .await
            .ok_or_else(|| ErrorKind::ControlPlaneUnavailable.into())
    }
}

/// Lets every task go on for as long as it can without time passing. For runtimes of one thread.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Keeps what is logged on this thread from here on.
pub(crate) fn listen_to_the_log() {
    static ONCE: Once = Once::new();
    // For the whole process, because whether a place in the code logs at all is remembered for all threads.
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::fmt()
            .with_writer(|| ThisThread)
            .with_ansi(false)
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("nobody else listens");
    });
    LINES.set(Some(Vec::new()));
}

/// The lines that were logged since then or since this was last asked.
pub(crate) fn logged() -> Vec<String> {
    let text = LINES.replace(Some(Vec::new())).expect("the test listens");
    let text = String::from_utf8(text).expect("the log is text");
    text.lines().map(str::to_owned).collect()
}

thread_local! {
    /// What was logged on this thread, if the test on it wants to know.
    static LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

struct ThisThread;

impl std::io::Write for ThisThread {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LINES.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                lines.extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
