//! A repository that fails when it is told to.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    error::{Error, ErrorKind},
    repository::{Beat, Found, Instance, Instances, Page, TenantRepository},
    tenant::{InstanceId, TenantId, TenantName, TenantRef},
};

/// Wraps a repository and lets a test decide what becomes of each call, and see what was asked.
///
/// It exists for what cannot be had from a healthy backend on demand: a control plane that is unreachable, hangs, or
/// answers only when the test says so. A test never sleeps for luck with it: [`FaultyRepository::reached`] waits until
/// calls have come in, and held calls go on when the fault is changed.
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
    /// It waits until the fault is changed, and then does what that says. Left alone, it hangs for ever.
    Hang,
    /// It is passed on, and its answer, of that moment, is held back until the fault is changed.
    HoldAnswer,
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
        let mut fault = self.fault.subscribe();
        self.calls.send_modify(|calls| *calls += 1);
        let fault = *fault
            .wait_for(|fault| *fault != Fault::Hang)
            .await
            .expect("the sender lives in self");
        match fault {
            Fault::Unreachable => {
                Err(Error::new(ErrorKind::ControlPlaneUnavailable).detail("unreachable on purpose"))
            }
            fault => Ok(fault),
        }
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
        let found = self.inner.find(names).await;
        self.release(admitted, found).await
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        let admitted = self.admit().await?;
        let page = self.inner.list(after, limit).await;
        self.release(admitted, page).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<R: Instances> Instances for FaultyRepository<R> {
    async fn beat(&self, beat: &Beat) -> Result<(), Error> {
        let admitted = self.admit().await?;
        let taken = self.inner.beat(beat).await;
        self.release(admitted, taken).await
    }

    async fn leave(&self, instance: InstanceId) -> Result<(), Error> {
        let admitted = self.admit().await?;
        let left = self.inner.leave(instance).await;
        self.release(admitted, left).await
    }

    async fn instances(&self) -> Result<Vec<Instance>, Error> {
        let admitted = self.admit().await?;
        let listed = self.inner.instances().await;
        self.release(admitted, listed).await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::repository::MemoryControl;

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

    #[tokio::test]
    async fn a_held_answer_is_of_the_moment_of_asking() {
        use crate::{
            repository::{Actor, NewTenant, TenantAdmin},
            tenant::{DataSourceId, Slug},
        };
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
