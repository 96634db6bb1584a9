//! The task that says that a process lives.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    error::{Error, ErrorKind},
    keyring::LiveKeyring,
    repository::{Beat, Instances, KeyReport},
    tenant::{InstanceId, Seq},
};

/// Orders that may wait while a beat is under way. They are answered together, so that this bounds callers and not beats.
const ORDERS: usize = 16;

/// Tells the control plane that this process lives and which keys it has, until it is closed or dropped.
///
/// It beats at once, then every 10 s, which gives an operator who waits for a key to be everywhere an answer while he
/// looks on, and costs the control plane three short statements per process. Each pause is up to a fifth shorter or longer, so
/// that processes which were started together do not beat together.
///
/// A control plane that cannot be told is told later: the task goes on trying at the same pace, says once in the log that
/// it fails and once that it works again, and nothing else of the process notices.
///
/// Dropped, it stops, and the process is listed until its silence is noticed; [`Heartbeat::close`] takes it off the list.
pub struct Heartbeat {
    id: InstanceId,
    orders: mpsc::Sender<Order>,
    taken: watch::Receiver<Option<Instant>>,
    task: JoinHandle<()>,
}

impl Heartbeat {
    /// Every 10 s, unless set otherwise. A process whose beats are lost is noticed within half a minute, and a thousand
    /// processes are a hundred beats a second.
    pub const INTERVAL: Duration = Duration::from_secs(10);

    /// The longest interval: 30 s. Beats have to stay less than a minute apart, also when one of them is slow, for the
    /// control plane to count the process as steady.
    pub const LONGEST_INTERVAL: Duration = Duration::from_secs(30);

    /// How long a beat may take before it counts as failed, unless set otherwise: 5 s, the half of an interval.
    pub const TIMEOUT: Duration = Duration::from_secs(5);

    /// Begins a heartbeat of a process of this service.
    pub fn builder(instances: impl Instances, service: impl Into<Arc<str>>) -> HeartbeatBuilder {
        HeartbeatBuilder {
            instances: Arc::new(instances),
            id: InstanceId::new(),
            service: service.into(),
            applied: Box::new(|| Seq::ZERO),
            keys: Box::new(Vec::new),
            interval: Self::INTERVAL,
            timeout: Self::TIMEOUT,
        }
    }

    /// What this life of the process is called.
    #[must_use]
    pub fn id(&self) -> InstanceId {
        self.id
    }

    /// How long ago the control plane last took a beat; `None` before the first.
    #[must_use]
    pub fn silent(&self) -> Option<Duration> {
        self.taken.borrow().map(|taken| taken.elapsed())
    }

    /// Beats at once, with what is so when this is called or later, and returns when the control plane has taken it: for
    /// whoever has just changed the keys and wants that known.
    ///
    /// # Errors
    /// Those of [`Instances::beat`], and [`ControlPlaneUnavailable`](ErrorKind::ControlPlaneUnavailable) when it takes
    /// longer than a beat may. The task goes on trying. [`Closed`](ErrorKind::Closed) after [`Heartbeat::close`].
    ///
    /// # Cancel safety
    /// Safe: the beat may still be made.
    pub async fn beat_now(&self) -> Result<(), Error> {
        self.order(Order::Beat).await
    }

    /// Stops, and takes this process off the list. What is under way ends first, so that no late beat brings it back.
    ///
    /// # Errors
    /// Those of [`Instances::leave`], and [`ControlPlaneUnavailable`](ErrorKind::ControlPlaneUnavailable) at the
    /// deadline. It has stopped then too, and stays listed until its silence is noticed.
    /// [`Closed`](ErrorKind::Closed) the second time.
    ///
    /// # Cancel safety
    /// Not safe: it may have stopped or not, and left or not. Drop it then; that stops it.
    pub async fn close(&self, deadline: Duration) -> Result<(), Error> {
        let left = timeout(deadline, self.order(Order::Leave)).await;
        self.task.abort();
        left.unwrap_or_else(|_| Err(no_answer()))
    }

    async fn order(&self, order: fn(Answer) -> Order) -> Result<(), Error> {
        let closed = || Error::new(ErrorKind::Closed).detail("the heartbeat has stopped");
        let (answer, answered) = oneshot::channel();
        self.orders.send(order(answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heartbeat")
            .field("id", &self.id)
            .field("silent", &self.silent())
            .finish_non_exhaustive()
    }
}

/// Puts a [`Heartbeat`] together.
#[must_use = "a heartbeat begins with `start`"]
pub struct HeartbeatBuilder {
    instances: Arc<dyn Instances>,
    id: InstanceId,
    service: Arc<str>,
    applied: Box<dyn Fn() -> Seq + Send + Sync>,
    keys: Box<dyn Fn() -> Vec<KeyReport> + Send + Sync>,
    interval: Duration,
    timeout: Duration,
}

impl HeartbeatBuilder {
    /// Reports the keys of this keyring, as they are at each beat. Without keys the process counts as lacking every one.
    pub fn keyring(self, keyring: LiveKeyring) -> Self {
        self.keys(move || keyring.status().into_iter().map(KeyReport::from).collect())
    }

    /// Reports what this returns as the keys of the process, asked at each beat: each key once.
    pub fn keys(mut self, keys: impl Fn() -> Vec<KeyReport> + Send + Sync + 'static) -> Self {
        self.keys = Box::new(keys);
        self
    }

    /// Reports what this returns as the position in the change log that the process has followed to, asked at each beat.
    /// [`Seq::ZERO`] by default: it follows none.
    pub fn applied(mut self, applied: impl Fn() -> Seq + Send + Sync + 'static) -> Self {
        self.applied = Box::new(applied);
        self
    }

    /// Calls this life of the process so; a new id by default.
    pub fn id(mut self, id: InstanceId) -> Self {
        self.id = id;
        self
    }

    /// How far beats are apart on average; see [`Heartbeat::INTERVAL`].
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// How long a beat may take before it counts as failed; see [`Heartbeat::TIMEOUT`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Starts the task, without waiting for the first beat.
    ///
    /// # Errors
    /// [`InvalidConfiguration`](ErrorKind::InvalidConfiguration) for a service without a name, an interval of zero or over
    /// [`Heartbeat::LONGEST_INTERVAL`], a timeout of zero, and outside a Tokio runtime.
    pub fn start(self) -> Result<Heartbeat, Error> {
        let invalid = |detail| Err(Error::new(ErrorKind::InvalidConfiguration).detail(detail));
        if self.service.trim().is_empty() {
            return invalid("a heartbeat names its service; give it a name");
        }
        if self.interval.is_zero() || self.interval > Heartbeat::LONGEST_INTERVAL {
            return invalid("the interval of a heartbeat is above 0 and at most 30 s");
        }
        if self.timeout.is_zero() {
            return invalid("the timeout of a heartbeat is 0; give it a time above 0");
        }
        let Ok(runtime) = Handle::try_current() else {
            return invalid("a heartbeat is a task; start it inside a Tokio runtime");
        };
        let (orders, received) = mpsc::channel(ORDERS);
        let (taken, when_taken) = watch::channel(None);
        let id = self.id;
        let worker = Worker {
            what: self,
            orders: received,
            taken,
            failing: false,
        };
        Ok(Heartbeat {
            id,
            orders,
            taken: when_taken,
            task: runtime.spawn(worker.run()),
        })
    }
}

impl fmt::Debug for HeartbeatBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeartbeatBuilder")
            .field("id", &self.id)
            .field("service", &self.service)
            .field("interval", &self.interval)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

type Answer = oneshot::Sender<Result<(), Error>>;

enum Order {
    Beat(Answer),
    Leave(Answer),
}

struct Worker {
    what: HeartbeatBuilder,
    orders: mpsc::Receiver<Order>,
    taken: watch::Sender<Option<Instant>>,
    failing: bool,
}

impl Worker {
    async fn run(mut self) {
        let mut next = Instant::now();
        loop {
            let first = tokio::select! {
                () = sleep_until(next) => None,
                order = self.orders.recv() => match order {
                    Some(order) => Some(order),
                    None => return,
                },
            };
            let mut waiting = Vec::new();
            let mut leaving = None;
            // Before the keys are looked at, so that whoever has ordered a beat finds in it what was so before.
            for order in first
                .into_iter()
                .chain(std::iter::from_fn(|| self.orders.try_recv().ok()))
            {
                match order {
                    Order::Beat(answer) => waiting.push(answer),
                    Order::Leave(answer) => leaving = Some(answer),
                }
            }
            // Whoever ordered something may have gone meanwhile.
            if let Some(answer) = leaving {
                let left = self.in_time(self.what.instances.leave(self.what.id)).await;
                let _ = answer.send(left);
                return;
            }
            let outcome = self.beat().await;
            self.tell(&outcome);
            for answer in waiting {
                let _ = answer.send(outcome.clone());
            }
            if outcome.is_err() && cfg!(biplane_mutant = "a_failed_beat_is_the_last") {
                return;
            }
            next = Instant::now() + jittered(self.what.interval);
        }
    }

    async fn beat(&self) -> Result<(), Error> {
        // Not ours, and this task is the only one to notice when it fails.
        let asked = catch_unwind(AssertUnwindSafe(|| ((self.what.applied)(), (self.what.keys)())));
        let (applied, keys) = asked.map_err(|_| {
            Error::new(ErrorKind::Internal).detail("what reports the keys of the process panicked")
        })?;
        let beat = Beat::new(self.what.id, Arc::clone(&self.what.service))
            .applied(applied)
            .keys(keys);
        self.in_time(self.what.instances.beat(&beat)).await
    }

    async fn in_time(&self, work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        let ended = timeout(self.what.timeout, work).await;
        ended.unwrap_or_else(|_| Err(no_answer()))
    }

    /// One line when it begins to fail and one when it works again: an outage of an hour is not 360 lines in each process.
    fn tell(&mut self, outcome: &Result<(), Error>) {
        let (id, service) = (self.what.id, &*self.what.service);
        match outcome {
            Ok(()) => {
                self.taken.send_replace(Some(Instant::now()));
                if std::mem::take(&mut self.failing) {
                    tracing::info!(instance = %id, service, "the control plane hears from this process again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true)
                    || cfg!(biplane_mutant = "each_failed_beat_is_logged")
                {
                    tracing::warn!(
                        instance = %id,
                        service,
                        %error,
                        "the control plane does not hear from this process; it is tried again, in silence"
                    );
                }
            }
        }
    }
}

fn no_answer() -> Error {
    Error::new(ErrorKind::ControlPlaneUnavailable).detail("no answer in time")
}

/// Up to a fifth less or more. Without random numbers it beats all the same.
fn jittered(interval: Duration) -> Duration {
    let part = getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX));
    interval.mul_f64(0.8 + 0.4 * part)
}
