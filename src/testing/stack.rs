//! A whole stack in memory: control plane, router and tenants' data.

use std::fmt;

use crate::{
    Biplane,
    connector::memory::MemoryDb,
    error::{Error, ErrorKind},
    repository::{Actor, MemoryControl, NewSource, NewTenant, TenantAdmin, TenantRepository},
    router::Clock,
    tenant::{Location, Slug, Tenant, TenantId, TenantRef, TenantStatus},
};

/// A control plane, a router and a `T` for every tenant, all in memory, on a clock that the test moves.
///
/// Nothing happens behind the test's back: the router follows no changes. What is changed through the stack is announced
/// to it at once; what is changed through its [`control`](MemoryStack::control) alone acts as time passes, by the rules of
/// [`CacheOptions`](crate::router::CacheOptions).
///
/// ```
/// use biplane::{error::ErrorKind, tenant::TenantStatus, testing::MemoryStack};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let stack: MemoryStack<Vec<String>> = MemoryStack::new();
/// let acme = stack.add_tenant("acme").await?;
///
/// let db = stack.biplane().route(&acme.slug).await?;
/// db.write(|notes| notes.push("hello".into())).await?;
///
/// stack.set_status(acme.id, TenantStatus::Suspended).await?;
/// let refused = db.read(|notes| notes.len()).await.unwrap_err();
/// assert_eq!(refused.kind(), ErrorKind::Inactive { status: TenantStatus::Suspended });
/// # Ok::<(), biplane::error::Error>(()) }).unwrap();
/// ```
pub struct MemoryStack<T: Clone + Send + Sync + 'static> {
    control: MemoryControl,
    biplane: Biplane<MemoryDb<T>>,
    clock: Clock,
}

impl<T: Clone + Default + Send + Sync + 'static> MemoryStack<T> {
    /// A stack without tenants, each of which will begin with `T::default()`.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "a default stack says less than a new one"
    )]
    pub fn new() -> Self {
        Self::with(|_| T::default())
    }
}

impl<T: Clone + Send + Sync + 'static> MemoryStack<T> {
    /// A stack without tenants, each of which will begin with what `make` makes of it.
    #[must_use]
    pub fn with(make: impl Fn(&Tenant) -> T + Send + Sync + 'static) -> Self {
        let control = MemoryControl::new();
        let clock = Clock::manual();
        let biplane = Biplane::memory(control.clone(), make)
            .clock(clock.clone())
            .without_changes()
            .build()
            .expect("the default settings are valid");
        Self {
            control,
            biplane,
            clock,
        }
    }

    /// The control plane.
    #[must_use]
    pub const fn control(&self) -> &MemoryControl {
        &self.control
    }

    /// The router.
    #[must_use]
    pub const fn biplane(&self) -> &Biplane<MemoryDb<T>> {
        &self.biplane
    }

    /// The router's clock, which stands until it is advanced.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Adds a tenant that is open, on a data source of its own.
    ///
    /// # Errors
    /// [`InvalidName`](ErrorKind::InvalidName) when this is no slug, [`AlreadyExists`](ErrorKind::AlreadyExists) when
    /// it is taken.
    ///
    /// # Cancel safety
    /// A cancelled call may leave a data source, or a tenant that is still being provisioned.
    pub async fn add_tenant(&self, slug: &str) -> Result<Tenant, Error> {
        let slug = Slug::parse(slug).map_err(|error| Error::new(ErrorKind::InvalidName).caused_by(error))?;
        let by = actor();
        let source = self
            .control
            .create_source(&by, NewSource::new(slug.as_str(), Location::Memory))
            .await?;
        let tenant = self.control.create(&by, NewTenant::new(slug, source.id)).await?;
        let tenant = self
            .control
            .set_status(&by, tenant.id, tenant.version, TenantStatus::Active)
            .await?;
        self.biplane.invalidate(tenant.id).await;
        Ok(tenant)
    }

    /// Changes a tenant's status and tells the router.
    ///
    /// # Errors
    /// Those of [`TenantAdmin::set_status`].
    ///
    /// # Cancel safety
    /// A cancelled call may have changed the status without telling the router.
    pub async fn set_status(&self, tenant: TenantId, status: TenantStatus) -> Result<Tenant, Error> {
        let mut found = self.control.find(&[TenantRef::Id(tenant)]).await?;
        let resolved = found
            .pop()
            .ok_or(ErrorKind::Internal)??
            .ok_or(ErrorKind::UnknownTenant)?;
        let version = resolved.record.tenant.version;
        let changed = self.control.set_status(&actor(), tenant, version, status).await?;
        self.biplane.invalidate(tenant).await;
        Ok(changed)
    }
}

fn actor() -> Actor {
    Actor::new("test", "a test asked for it")
}

impl<T: Clone + Send + Sync + 'static> fmt::Debug for MemoryStack<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStack")
            .field("biplane", &self.biplane)
            .finish_non_exhaustive()
    }
}
