//! Presence: which processes route by this control plane, and which keys they have.

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;

use crate::{
    error::Error,
    keyring::{KeyId, KeyState, KeyStatus},
    tenant::{InstanceId, Seq},
};

/// The processes that live, as the control plane has heard from them. An operator who rotates keys learns from it who
/// has a key and who still uses one; without it that is a person's word.
///
/// # Contract
/// - A beat replaces everything that the instance said before: what it no longer reports is gone.
/// - Time is the control plane's alone, so that no process needs a clock that is right: when an instance was seen, for
///   how long it has been silent, and when a key was last used.
/// - A key was used when `opens` or `refused` differs from the beat before; sealing is not use, because what nobody opens
///   is not missed. A key that an instance reports for the first time counts as used just then.
/// - Who was silent for more than 24 hours is forgotten with the beat of another: long enough that an outage over night
///   leaves a trace, short enough that the list is about today.
/// - Beats are no changes of the control plane: they leave nothing in the audit or the change log.
/// - What is listed is no secret: ids, states and counts of keys.
///
/// # Trust
/// Whoever may beat can say anything, and in the name of any instance. These are processes that hold the keys themselves.
#[async_trait]
pub trait Instances: Debug + Send + Sync + 'static {
    /// Says that an instance lives, how far it has followed the change log, and which keys it has.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::error::ErrorKind::InvalidInput) when the service has no name or a key is reported twice;
    /// [`ControlPlaneUnavailable`](crate::error::ErrorKind::ControlPlaneUnavailable) when nothing could be said.
    ///
    /// # Cancel safety
    /// A cancelled beat is whole or did not happen, and may still happen after [`Instances::leave`]: let it end first.
    async fn beat(&self, beat: &Beat) -> Result<(), Error>;

    /// Says that an instance has ended, or is known to be dead. One that is not listed has left.
    ///
    /// # Errors
    /// [`ControlPlaneUnavailable`](crate::error::ErrorKind::ControlPlaneUnavailable) when nothing could be said.
    ///
    /// # Cancel safety
    /// It has left or has not; say it again.
    async fn leave(&self, instance: InstanceId) -> Result<(), Error>;

    /// The instances that have not left, in the order of their ids, those that are silent included. Whose row cannot be
    /// understood fails the call: an instance that is left out would look like one that is not there.
    ///
    /// # Errors
    /// [`ControlPlaneUnavailable`](crate::error::ErrorKind::ControlPlaneUnavailable) when nothing could be asked,
    /// [`MalformedRecord`](crate::error::ErrorKind::MalformedRecord).
    ///
    /// # Cancel safety
    /// Safe: reads only.
    async fn instances(&self) -> Result<Vec<Instance>, Error>;
}

/// A shared one is one, so that a caller may keep a handle on what it gives to a heartbeat.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Instances + ?Sized> Instances for Arc<T> {
    async fn beat(&self, beat: &Beat) -> Result<(), Error> {
        T::beat(self, beat).await
    }

    async fn leave(&self, instance: InstanceId) -> Result<(), Error> {
        T::leave(self, instance).await
    }

    async fn instances(&self) -> Result<Vec<Instance>, Error> {
        T::instances(self).await
    }
}

/// What an instance says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Beat {
    /// Which life of which process.
    pub id: InstanceId,
    /// The service that it is a process of, for people to read.
    pub service: Arc<str>,
    /// How far it has followed the change log; [`Seq::ZERO`] when it follows none.
    pub applied: Seq,
    /// The keys that it has loaded, each once, all of them each time.
    pub keys: Vec<KeyReport>,
}

impl Beat {
    /// A beat of an instance without keys, which follows no change log.
    #[must_use]
    pub fn new(id: InstanceId, service: impl Into<Arc<str>>) -> Self {
        Self {
            id,
            service: service.into(),
            applied: Seq::ZERO,
            keys: Vec::new(),
        }
    }

    /// Says how far it has followed the change log.
    #[must_use]
    pub const fn applied(mut self, applied: Seq) -> Self {
        self.applied = applied;
        self
    }

    /// Says which keys it has.
    #[must_use]
    pub fn keys(mut self, keys: Vec<KeyReport>) -> Self {
        self.keys = keys;
        self
    }
}

/// A key that an instance has, and what it has done with it since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct KeyReport {
    /// Which key.
    pub id: KeyId,
    /// What the instance may use it for.
    pub state: KeyState,
    /// How many values it opened.
    pub opens: u64,
    /// How many values it sealed.
    pub seals: u64,
    /// How many values it did not open because of the key's state.
    pub refused: u64,
}

impl KeyReport {
    /// A key that has not been used yet.
    #[must_use]
    pub const fn new(id: KeyId, state: KeyState) -> Self {
        Self {
            id,
            state,
            opens: 0,
            seals: 0,
            refused: 0,
        }
    }

    /// Says how many values it opened.
    #[must_use]
    pub const fn opens(mut self, opens: u64) -> Self {
        self.opens = opens;
        self
    }

    /// Says how many values it sealed.
    #[must_use]
    pub const fn seals(mut self, seals: u64) -> Self {
        self.seals = seals;
        self
    }

    /// Says how many values it did not open because of the key's state.
    #[must_use]
    pub const fn refused(mut self, refused: u64) -> Self {
        self.refused = refused;
        self
    }
}

impl From<KeyStatus> for KeyReport {
    fn from(status: KeyStatus) -> Self {
        Self {
            id: status.id,
            state: status.state,
            opens: status.opens,
            seals: status.seals,
            refused: status.refused,
        }
    }
}

/// An instance, as the control plane has heard from it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instance {
    /// Which life of which process.
    pub id: InstanceId,
    /// The service that it is a process of.
    pub service: Arc<str>,
    /// When it was first heard, by the control plane's clock.
    pub started_at: SystemTime,
    /// When it was last heard, by the control plane's clock.
    pub seen_at: SystemTime,
    /// How long ago that is, by the same clock.
    pub silent: Duration,
    /// For how long, when it was last heard, no two of its beats had been more than a minute apart. In that time the
    /// control plane could be reached, so whoever was silent meanwhile was silent by itself.
    pub steady: Duration,
    /// How far it had followed the change log.
    pub applied: Seq,
    /// Its keys, in the order of their ids.
    pub keys: Vec<InstanceKey>,
}

impl Instance {
    /// An instance that was heard once, without keys.
    #[must_use]
    pub fn new(id: InstanceId, service: impl Into<Arc<str>>, started_at: SystemTime) -> Self {
        Self {
            id,
            service: service.into(),
            started_at,
            seen_at: started_at,
            silent: Duration::ZERO,
            steady: Duration::ZERO,
            applied: Seq::ZERO,
            keys: Vec::new(),
        }
    }
}

/// A key of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstanceKey {
    /// What the instance last said about it.
    pub report: KeyReport,
    /// For how long nothing was opened under it, nor asked to be, as far as the control plane has heard.
    pub idle: Duration,
}

impl InstanceKey {
    /// A key of an instance.
    #[must_use]
    pub const fn new(report: KeyReport, idle: Duration) -> Self {
        Self { report, idle }
    }
}
