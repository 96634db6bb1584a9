//! Following changes.

use std::{fmt, fmt::Debug, num::NonZeroU32, str::FromStr, sync::Arc, time::SystemTime};

use async_trait::async_trait;

use crate::{
    error::{Error, ErrorKind},
    tenant::{DataSourceId, Incarnation, Seq, TenantId},
};

/// The log of committed changes to routing facts.
///
/// # Contract
/// - `seq` is assigned at commit, in the order in which changes become visible: a reader that asks for everything after
///   the last `seq` it saw misses nothing, whatever number of writers commit.
/// - History may be pruned; a reader that fell behind is told so by [`Changes::truncated`].
/// - The head of an answer is of the same moment as its changes, in what it says of the brake and of freezing, too.
#[async_trait]
pub trait ChangeLog: Debug + Send + Sync + 'static {
    /// Where the log stands.
    ///
    /// # Errors
    /// [`ControlPlaneUnavailable`](ErrorKind::ControlPlaneUnavailable) when it could not be asked.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    async fn head(&self) -> Result<ChangeHead, Error>;

    /// The changes after `after`, oldest first, `limit` at most.
    ///
    /// # Errors
    /// As [`ChangeLog::head`].
    ///
    /// # Cancel safety
    /// Safe: reads only.
    async fn since(&self, after: Seq, limit: NonZeroU32) -> Result<Changes, Error>;
}

/// A shared one is one, so that a caller may keep a handle on what it gives to a router.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: ChangeLog + ?Sized> ChangeLog for Arc<T> {
    async fn head(&self) -> Result<ChangeHead, Error> {
        T::head(self).await
    }

    async fn since(&self, after: Seq, limit: NonZeroU32) -> Result<Changes, Error> {
        T::since(self, after, limit).await
    }
}

/// Where a change log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChangeHead {
    /// The life of the control plane; positions of different lives are not comparable.
    pub incarnation: Incarnation,
    /// The last change, or [`Seq::ZERO`] before the first.
    pub seq: Seq,
    /// Up to where an administrator has let changes past the brakes of all routers, in this life of the control plane;
    /// [`Seq::ZERO`] when nobody has.
    pub released: Seq,
    /// Whether an administrator has frozen routing in all processes.
    pub frozen: bool,
}

impl ChangeHead {
    /// A position, of a control plane where no brake was released and nothing is frozen.
    #[must_use]
    pub const fn new(incarnation: Incarnation, seq: Seq) -> Self {
        Self {
            incarnation,
            seq,
            released: Seq::ZERO,
            frozen: false,
        }
    }
}

/// Changes after a position.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Changes {
    /// Where the log stands.
    pub head: ChangeHead,
    /// The changes, oldest first.
    pub changes: Vec<Change>,
    /// Whether changes after the position that was asked for have been pruned, so that these are not all.
    pub truncated: bool,
}

impl Changes {
    /// Changes after a position, complete.
    #[must_use]
    pub const fn new(head: ChangeHead, changes: Vec<Change>) -> Self {
        Self {
            head,
            changes,
            truncated: false,
        }
    }
}

/// One committed change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// Its position.
    pub seq: Seq,
    /// What changed.
    pub subject: Subject,
    /// How.
    pub kind: ChangeKind,
    /// When, by the control plane's clock.
    pub at: SystemTime,
}

impl Change {
    /// A change.
    #[must_use]
    pub const fn new(seq: Seq, subject: Subject, kind: ChangeKind, at: SystemTime) -> Self {
        Self {
            seq,
            subject,
            kind,
            at,
        }
    }
}

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Subject {
    /// One tenant.
    Tenant(TenantId),
    /// A data source, and so every tenant placed on it.
    Source(DataSourceId),
    /// How all routers take changes. What it is now, [`ChangeHead`] says; that it changed is logged like any change.
    Routing,
}

/// How something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChangeKind {
    /// It came into being.
    Created,
    /// A slug or domain was given, taken or changed hands.
    Names,
    /// Its status changed.
    Status,
    /// Its rows are elsewhere, or its epoch rose.
    Placement,
    /// Its settings changed.
    Settings,
    /// Address, encryption, pooler, pool settings or identity of a data source changed.
    Address,
    /// A credential changed.
    Credential,
    /// It was deleted.
    Deleted,
    /// Whatever the brakes of routers hold, up to this change, was let through.
    Released,
    /// Routing was frozen.
    Frozen,
    /// Routing goes on.
    Thawed,
    /// In a way that this release has no word for, because a later one wrote the log.
    Other,
}

impl ChangeKind {
    /// Every kind that this release writes.
    pub const ALL: [Self; 11] = [
        Self::Created,
        Self::Names,
        Self::Status,
        Self::Placement,
        Self::Settings,
        Self::Address,
        Self::Credential,
        Self::Deleted,
        Self::Released,
        Self::Frozen,
        Self::Thawed,
    ];

    /// The name used in SQL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Names => "names",
            Self::Status => "status",
            Self::Placement => "placement",
            Self::Settings => "settings",
            Self::Address => "address",
            Self::Credential => "credential",
            Self::Deleted => "deleted",
            Self::Released => "released",
            Self::Frozen => "frozen",
            Self::Thawed => "thawed",
            Self::Other => "other",
        }
    }
}

impl FromStr for ChangeKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| {
                Error::new(ErrorKind::MalformedRecord)
                    .detail("a change of a kind that this version does not know")
            })
    }
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
