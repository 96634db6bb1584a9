//! Reading tenants.

use std::{fmt::Debug, num::NonZeroU32, sync::Arc};

use async_trait::async_trait;

use super::ChangeSource;
use crate::{
    error::Error,
    tenant::{DataSource, Resolved, TenantId, TenantRecord, TenantRef},
};

/// What a lookup of one name came to: a record, nothing, or a failure of that name alone.
pub type Found = Result<Option<Resolved>, Error>;

/// Finds tenants, each joined with the data source of its placement. All that a router reads.
///
/// # Contract
/// - `Ok(None)` means that the control plane answered and knows no such name. Whatever could not be asked or understood
///   is an error: of the call when nothing could be asked, of the one name when one record cannot be understood.
/// - A record reflects one moment: tenant, names, placement, data source and credentials belong together.
/// - A deleted tenant is found by its id and by its slug, which stays reserved, with status
///   [`Deleted`](crate::tenant::TenantStatus::Deleted).
/// - A write that was acknowledged before a call began is seen by it.
#[async_trait]
pub trait TenantRepository: Debug + Send + Sync + 'static {
    /// Looks up many names at once, in as few round trips as the backend can. The answer has one outcome for each name,
    /// in the order of `names`; a name that occurs twice is answered twice.
    ///
    /// # Errors
    /// [`ControlPlaneUnavailable`](crate::error::ErrorKind::ControlPlaneUnavailable) when nothing could be asked;
    /// [`MalformedRecord`](crate::error::ErrorKind::MalformedRecord) of a single outcome.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error>;

    /// Lists tenants in order of id, deleted ones included, beginning after `after`.
    ///
    /// # Errors
    /// As [`TenantRepository::find`]. A record that cannot be understood is an item of its page, so that one malformed
    /// row does not hide the others.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error>;

    /// Looks up a data source by its name or its id, for an [override file](crate::manual::overrides) that names one. By
    /// default none is known: then a file can name those of cached tenants, and its own.
    ///
    /// # Errors
    /// As [`TenantRepository::find`].
    ///
    /// # Cancel safety
    /// Safe: reads only.
    async fn find_source(&self, name: &str) -> Result<Option<DataSource>, Error> {
        let _ = name;
        Ok(None)
    }

    /// How many data sources hold tenants and have no `database_id`, so that no fence keeps stale commits out. Routers log
    /// it once, when they start. `None`, as by default, means that this is not known, and then nothing is said.
    ///
    /// # Errors
    /// As [`TenantRepository::find`].
    ///
    /// # Cancel safety
    /// Safe: reads only.
    async fn unfenced_sources(&self) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    /// What the changes of these tenants are followed by. Routers ask for it when they are built and are given none; with
    /// none, as by default, a change is noticed by time limits alone.
    ///
    /// A wrapper that passes calls on must decide whether to pass this one on.
    fn change_source(&self) -> Option<ChangeSource> {
        None
    }
}

/// A shared one is one, so that a caller may keep a handle on what it gives to a router.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: TenantRepository + ?Sized> TenantRepository for Arc<T> {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        T::find(self, names).await
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        T::list(self, after, limit).await
    }

    async fn find_source(&self, name: &str) -> Result<Option<DataSource>, Error> {
        T::find_source(self, name).await
    }

    async fn unfenced_sources(&self) -> Result<Option<u64>, Error> {
        T::unfenced_sources(self).await
    }

    fn change_source(&self) -> Option<ChangeSource> {
        T::change_source(self)
    }
}

/// A page of a list.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Page {
    /// At most as many as were asked for, in order of id.
    pub items: Vec<PageItem>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<TenantId>,
}

impl Page {
    /// A page.
    #[must_use]
    pub const fn new(items: Vec<PageItem>, next: Option<TenantId>) -> Self {
        Self { items, next }
    }
}

/// A tenant of a page, or why it cannot be read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PageItem {
    /// Whose record this is.
    pub id: TenantId,
    /// The record.
    pub record: Result<Arc<TenantRecord>, Error>,
}

impl PageItem {
    /// A tenant of a page.
    #[must_use]
    pub const fn new(id: TenantId, record: Result<Arc<TenantRecord>, Error>) -> Self {
        Self { id, record }
    }
}
