//! Being told that the change log has grown, and what a router follows changes by.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use super::ChangeLog;
use crate::{error::Error, tenant::Seq};

/// Tells that a [`ChangeLog`] has grown, so that its readers need not wait until they next look.
///
/// It only ever makes readers look earlier: what has changed they read in the log, and they look from time to time
/// whatever they are told. So it may tell too much, and when it has failed it may have told too little.
///
/// # Contract
/// - Whatever is committed after [`listen`](ChangePush::listen) has returned is told to that listener, or the listener
///   fails. One that fails silently, because its connection leads nowhere any more, is found out by its reader.
/// - A position is told when it can be read, so that whoever looks because of it finds the change.
/// - What changes no route is not told, heartbeats above all: each process would look for each beat of each other.
#[async_trait]
pub trait ChangePush: Debug + Send + Sync + 'static {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`ControlPlaneUnavailable`](crate::error::ErrorKind::ControlPlaneUnavailable) when it cannot be reached, or tells
    /// nobody.
    ///
    /// # Cancel safety
    /// Safe: nobody listens.
    async fn listen(&self) -> Result<Box<dyn ChangeListener>, Error>;
}

/// Somebody who listens to a [`ChangePush`]. Dropped, it listens no more.
#[async_trait]
pub trait ChangeListener: Debug + Send + 'static {
    /// Waits until it is told.
    ///
    /// # Errors
    /// When something may have been missed. The listener is of no further use, and its reader reads the log from where
    /// it had got to.
    ///
    /// # Cancel safety
    /// Whoever cancels it drops the listener.
    async fn next(&mut self) -> Result<ChangeHint, Error>;
}

/// What a listener was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeHint {
    /// The log has grown to this position. What lies before it may not have been told.
    Reached(Seq),
    /// Something happened that a position does not say.
    Look,
}

/// What a router follows changes by: a log that is read, and a push beside it if there is one.
#[derive(Clone, Debug)]
pub struct ChangeSource {
    log: Arc<dyn ChangeLog>,
    push: Option<Arc<dyn ChangePush>>,
}

impl ChangeSource {
    /// A log that is looked at from time to time, which is enough for every promise of a router.
    #[must_use]
    pub fn polled(log: impl ChangeLog) -> Self {
        Self {
            log: Arc::new(log),
            push: None,
        }
    }

    /// A log that is looked at as well when it is told to have grown: changes act sooner.
    #[must_use]
    pub fn pushed(log: impl ChangeLog, push: impl ChangePush) -> Self {
        Self {
            log: Arc::new(log),
            push: Some(Arc::new(push)),
        }
    }

    /// The same without push.
    #[must_use]
    pub fn without_push(mut self) -> Self {
        self.push = None;
        self
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &Arc<dyn ChangeLog> {
        &self.log
    }

    /// The push.
    #[must_use]
    pub fn push(&self) -> Option<&Arc<dyn ChangePush>> {
        self.push.as_ref()
    }
}

/// Polled.
impl<L: ChangeLog> From<L> for ChangeSource {
    fn from(log: L) -> Self {
        Self::polled(log)
    }
}
