//! A control plane that fails when it is told to: tenants, change log, instances.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    error::{Error, ErrorKind},
    repository::{
        Beat, ChangeHead, ChangeLog, ChangeSource, Changes, Found, Instance, Instances, Page,
        TenantRepository,
    },
    tenant::{DataSource, InstanceId, Seq, TenantId, TenantName, TenantRef},
};

/// Wraps a repository and lets a test decide what becomes of each call, and see what was asked.
///
/// It exists for what cannot be had from a healthy backend on demand: a control plane that is unreachable, hangs, is
/// slow, refuses in a particular way, or answers only when the test says so. A test never sleeps for luck with it:
/// [`FaultyRepository::reached`] waits until calls have come in, and held calls go on when the fault is changed.
///
/// It is a [`TenantRepository`] if what it wraps is one, and [`ChangeLog`] and [`Instances`] likewise. One wrapper for
/// all of them is a control plane that fails as a whole; several, around handles of one backend, fail apart and count
/// apart:
///
/// ```
/// # use biplane::{repository::{ChangeLog, MemoryControl}, testing::faulty::{Fault, FaultyRepository}};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let control = MemoryControl::new();
/// let tenants = FaultyRepository::new(control.clone());
/// let changes = FaultyRepository::new(control);
/// tenants.set(Fault::Unreachable);
/// changes.head().await?;
/// assert_eq!((tenants.calls(), changes.calls()), (0, 1));
/// # Ok(()) }
/// ```
///
/// A clone shares faults and counts with its original.
#[derive(Debug)]
pub struct FaultyRepository<R> {
    inner: Arc<R>,
    fault: Arc<watch::Sender<Fault>>,
    calls: Arc<watch::Sender<usize>>,
    asked: Arc<Mutex<Vec<TenantName>>>,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It is passed on.
    #[default]
    None,
    /// It fails with [`ControlPlaneUnavailable`](ErrorKind::ControlPlaneUnavailable) and is not passed on.
    Unreachable,
    /// It fails with this kind and is not passed on. [`Fault::ERRORS`] are the kinds that a backend has for a whole call.
    Error(ErrorKind),
    /// So many calls fail with this kind and are not passed on; those that follow are passed on. Calls that are held when
    /// this is set are among them.
    NextFail {
        /// How many.
        calls: NonZeroUsize,
        /// With what.
        kind: ErrorKind,
    },
    /// It succeeds, and each outcome in its answer is a failure of this kind, which is how a backend reports
    /// [`MalformedRecord`](ErrorKind::MalformedRecord). A call whose answer has no outcomes, of a [`ChangeLog`] or of
    /// [`Instances`], fails.
    EachOutcome(ErrorKind),
    /// It waits this long on tokio's clock, which a test may have paused, and is then passed on. If the fault is changed
    /// before, it does at once what that says.
    Slow(Duration),
    /// It waits until the fault is changed, and then does what that says. Left alone, it hangs for ever.
    Hang,
    /// It is passed on, and its answer, of that moment, is held back until the fault is changed.
    HoldAnswer,
}

impl Fault {
    /// The kinds of error that the Postgres backend has for a call of [`TenantRepository`], [`ChangeLog`] or
    /// [`Instances`]: for a test that goes through all of them.
    pub const ERRORS: [ErrorKind; 5] = [
        ErrorKind::ControlPlaneUnavailable,
        ErrorKind::MissingPrivilege,
        ErrorKind::SchemaMismatch,
        ErrorKind::MalformedRecord,
        ErrorKind::Database,
    ];
}

impl<R> FaultyRepository<R> {
    /// A repository without faults yet.
    #[must_use]
    pub fn new(inner: R) -> Self {
        Self {
            inner: Arc::new(inner),
            fault: Arc::new(watch::Sender::new(Fault::None)),
            calls: Arc::new(watch::Sender::new(0)),
            asked: Arc::default(),
        }
    }

    /// The repository inside.
    #[must_use]
    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// Decides what becomes of calls from now on, those that are held included.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// How many calls have begun, of any method.
    #[must_use]
    pub fn calls(&self) -> usize {
        *self.calls.borrow()
    }

    /// The names that were asked for, in order, since the last time that this was called.
    #[must_use]
    pub fn take_asked(&self) -> Vec<TenantName> {
        std::mem::take(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until this many calls have begun since the wrapper was made.
    ///
    /// # Cancel safety
    /// Safe: only waits.
    pub async fn reached(&self, calls: usize) {
        self.calls
            .subscribe()
            .wait_for(|begun| *begun >= calls)
            .await
            .map(drop)
            .expect("the sender lives in self");
    }

    /// Counts a call, then holds it or fails it as told. Returns what is to become of its answer.
    async fn admit(&self) -> Result<Fault, Error> {
        let mut faults = self.fault.subscribe();
        self.calls.send_modify(|calls| *calls += 1);
        loop {
            // Seen before it is read, so that no change between the two is missed.
            faults.mark_unchanged();
            let fault = self.take_turn();
            let changed = async {
                faults.changed().await.expect("the sender lives in self");
            };
            match fault {
                Fault::Hang => changed.await,
                Fault::Slow(delay) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = tokio::time::sleep(delay) => return Ok(fault),
                },
                Fault::Unreachable => return Err(on_purpose(ErrorKind::ControlPlaneUnavailable)),
                Fault::Error(kind) | Fault::NextFail { kind, .. } => return Err(on_purpose(kind)),
                Fault::None | Fault::EachOutcome(_) | Fault::HoldAnswer => return Ok(fault),
            }
        }
    }

    /// The fault for one call, which uses up a failure if they are numbered.
    fn take_turn(&self) -> Fault {
        let mut turn = Fault::None;
        self.fault.send_if_modified(|fault| {
            turn = *fault;
            if let Fault::NextFail { calls, kind } = turn {
                *fault = match NonZeroUsize::new(calls.get() - 1) {
                    Some(calls) => Fault::NextFail { calls, kind },
                    None => Fault::None,
                };
            }
            // Nobody that is held waits for a count.
            false
        });
        turn
    }

    async fn release<T>(&self, admitted: Fault, answer: T) -> T {
        if admitted == Fault::HoldAnswer {
            self.fault
                .subscribe()
                .wait_for(|fault| *fault != Fault::HoldAnswer)
                .await
                .map(drop)
                .expect("the sender lives in self");
        }
        answer
    }
}

impl<R> Clone for FaultyRepository<R> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            fault: Arc::clone(&self.fault),
            calls: Arc::clone(&self.calls),
            asked: Arc::clone(&self.asked),
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<R: TenantRepository> TenantRepository for FaultyRepository<R> {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(names.iter().map(TenantRef::to_name));
        let admitted = self.admit().await?;
        let mut found = self.inner.find(names).await;
        if let (Fault::EachOutcome(kind), Ok(found)) = (admitted, &mut found) {
            found.fill_with(|| Err(on_purpose(kind)));
        }
        self.release(admitted, found).await
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        let admitted = self.admit().await?;
        let mut page = self.inner.list(after, limit).await;
        if let (Fault::EachOutcome(kind), Ok(page)) = (admitted, &mut page) {
            for item in &mut page.items {
                item.record = Err(on_purpose(kind));
            }
        }
        self.release(admitted, page).await
    }

    async fn find_source(&self, name: &str) -> Result<Option<DataSource>, Error> {
        let admitted = self.admit().await?.without_outcomes()?;
        let source = self.inner.find_source(name).await;
        self.release(admitted, source).await
    }

    /// Neither counted nor made to fail: a router asks once, beside its work, and a test counts what that takes.
    async fn unfenced_sources(&self) -> Result<Option<u64>, Error> {
        self.inner.unfenced_sources().await
    }

    /// None, so that the test says what a router hears of changes. Another wrapper, with faults and counts of its own,
    /// is best given to [`Builder::changes`](crate::router::Builder::changes).
    fn change_source(&self) -> Option<ChangeSource> {
        None
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<R: ChangeLog> ChangeLog for FaultyRepository<R> {
    async fn head(&self) -> Result<ChangeHead, Error> {
        let admitted = self.admit().await?.without_outcomes()?;
        let head = self.inner.head().await;
        self.release(admitted, head).await
    }

    async fn since(&self, after: Seq, limit: NonZeroU32) -> Result<Changes, Error> {
        let admitted = self.admit().await?.without_outcomes()?;
        let changes = self.inner.since(after, limit).await;
        self.release(admitted, changes).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<R: Instances> Instances for FaultyRepository<R> {
    async fn beat(&self, beat: &Beat) -> Result<(), Error> {
        let admitted = self.admit().await?.without_outcomes()?;
        let taken = self.inner.beat(beat).await;
        self.release(admitted, taken).await
    }

    async fn leave(&self, instance: InstanceId) -> Result<(), Error> {
        let admitted = self.admit().await?.without_outcomes()?;
        let left = self.inner.leave(instance).await;
        self.release(admitted, left).await
    }

    async fn instances(&self) -> Result<Vec<Instance>, Error> {
        let admitted = self.admit().await?.without_outcomes()?;
        let listed = self.inner.instances().await;
        self.release(admitted, listed).await
    }
}

impl Fault {
    fn without_outcomes(self) -> Result<Self, Error> {
        match self {
            Self::EachOutcome(kind) => Err(on_purpose(kind)),
            fault => Ok(fault),
        }
    }
}

fn on_purpose(kind: ErrorKind) -> Error {
    Error::new(kind).detail("on purpose, by a faulty repository")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use tokio::time::Instant;

    use super::*;
    use crate::{
        repository::{Actor, MemoryControl, NewTenant, TenantAdmin},
        tenant::{DataSourceId, Slug},
    };

    #[tokio::test]
    async fn a_held_call_goes_on_when_the_test_says_so() {
        let faulty = FaultyRepository::new(MemoryControl::new());
        faulty.set(Fault::Hang);
        let id = TenantId::new();
        let names = [TenantRef::Id(id)];
        let mut call = faulty.find(&names);
        assert!((&mut call).now_or_never().is_none());
        faulty.reached(1).await;
        faulty.set(Fault::Unreachable);
        assert_eq!(call.await.unwrap_err().kind(), ErrorKind::ControlPlaneUnavailable);
        faulty.set(Fault::None);
        assert_eq!(faulty.find(&names).await.unwrap().len(), 1);
        assert_eq!(faulty.calls(), 2);
        assert_eq!(faulty.take_asked(), [TenantName::Id(id), TenantName::Id(id)]);
        assert!(faulty.take_asked().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_call_takes_its_time_on_tokios_clock() {
        let faulty = FaultyRepository::new(MemoryControl::new());
        let delay = Duration::from_secs(40);
        faulty.set(Fault::Slow(delay));
        let began = Instant::now();
        faulty.head().await.unwrap();
        faulty.find(&[]).await.unwrap();
        assert_eq!(began.elapsed(), 2 * delay);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_call_does_at_once_what_a_new_fault_says() {
        let faulty = FaultyRepository::new(MemoryControl::new());
        faulty.set(Fault::Slow(Duration::from_secs(40)));
        let began = Instant::now();
        let mut call = faulty.head();
        assert!((&mut call).now_or_never().is_none());
        faulty.set(Fault::Error(ErrorKind::Database));
        assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Database);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn each_kind_of_error_can_be_had() {
        let faulty = FaultyRepository::new(MemoryControl::new());
        for kind in Fault::ERRORS {
            faulty.set(Fault::Error(kind));
            let limit = NonZeroU32::MIN;
            assert_eq!(faulty.find(&[]).await.unwrap_err().kind(), kind);
            assert_eq!(faulty.list(None, limit).await.unwrap_err().kind(), kind);
            assert_eq!(faulty.head().await.unwrap_err().kind(), kind);
            assert_eq!(faulty.since(Seq::ZERO, limit).await.unwrap_err().kind(), kind);
        }
    }

    #[tokio::test]
    async fn so_many_calls_fail_and_then_none() {
        let faulty = FaultyRepository::new(MemoryControl::new());
        let kind = ErrorKind::SchemaMismatch;
        let calls = NonZeroUsize::new(2).unwrap();
        faulty.set(Fault::NextFail { calls, kind });
        assert_eq!(faulty.head().await.unwrap_err().kind(), kind);
        assert_eq!(faulty.find(&[]).await.unwrap_err().kind(), kind);
        assert!(faulty.head().await.is_ok());
        assert!(faulty.find(&[]).await.is_ok());
    }

    #[tokio::test]
    async fn a_held_call_is_one_of_the_next_to_fail() {
        let faulty = FaultyRepository::new(MemoryControl::new());
        faulty.set(Fault::Hang);
        let mut held = [faulty.head(), faulty.head()];
        for call in &mut held {
            assert!(call.now_or_never().is_none());
        }
        let kind = ErrorKind::Database;
        let calls = NonZeroUsize::MIN;
        faulty.set(Fault::NextFail { calls, kind });
        let outcomes = futures_util::future::join_all(held).await;
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert_eq!(failed, 1);
    }

    #[tokio::test]
    async fn an_outcome_can_fail_without_its_call() {
        let faulty = FaultyRepository::new(MemoryControl::new());
        let slug = Slug::parse("acme").unwrap();
        let names = [TenantRef::Slug(&slug)];
        let new = NewTenant::new(slug, DataSourceId::DEFAULT);
        let by = Actor::new("ann", "a test");
        faulty.inner().create(&by, new).await.unwrap();
        let kind = ErrorKind::MalformedRecord;
        faulty.set(Fault::EachOutcome(kind));
        let found = faulty.find(&names).await.unwrap();
        assert_eq!(found[0].as_ref().unwrap_err().kind(), kind);
        let page = faulty.list(None, NonZeroU32::MIN).await.unwrap();
        assert_eq!(page.items[0].record.as_ref().unwrap_err().kind(), kind);
        assert_eq!(faulty.head().await.unwrap_err().kind(), kind);
    }

    #[tokio::test]
    async fn a_held_answer_without_outcomes_is_of_the_moment_of_asking() {
        let faulty = FaultyRepository::new(MemoryControl::new());
        let before = faulty.head().await.unwrap();
        faulty.set(Fault::HoldAnswer);
        let mut call = faulty.head();
        assert!((&mut call).now_or_never().is_none());
        let new = NewTenant::new(Slug::parse("acme").unwrap(), DataSourceId::DEFAULT);
        let by = Actor::new("ann", "a test");
        faulty.inner().create(&by, new).await.unwrap();
        faulty.set(Fault::None);
        assert_eq!(call.await.unwrap(), before);
        assert!(faulty.head().await.unwrap().seq > before.seq);
    }

    #[tokio::test]
    async fn a_held_answer_is_of_the_moment_of_asking() {
        let faulty = FaultyRepository::new(MemoryControl::new());
        faulty.set(Fault::HoldAnswer);
        let slug = Slug::parse("acme").unwrap();
        let names = [TenantRef::Slug(&slug)];
        let mut call = faulty.find(&names);
        assert!((&mut call).now_or_never().is_none());
        let new = NewTenant::new(slug, DataSourceId::DEFAULT);
        faulty
            .inner()
            .create(&Actor::new("ann", "a test"), new)
            .await
            .unwrap();
        faulty.set(Fault::None);
        assert_eq!(call.await.unwrap()[0].as_ref().unwrap(), &None);
    }
}
