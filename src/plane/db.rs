//! Handles on a database.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use super::{Conn, DataPlane, Lease, Lent, Plane, Tx, TxOptions, lease::may_begin_elsewhere};
use crate::{
    pool::{Pool, Stack},
    tenant::{Role, TenantId},
};

/// A handle on a database of one plane: [`TenantDb`](super::TenantDb) or [`ControlDb`](super::ControlDb).
///
/// It holds no connection. Each use borrows one, after asking again where the data is and whether the tenant is open,
/// so a handle may be kept for as long as its owner likes. It is cheap to clone.
pub struct Db<P: Plane> {
    lease: Arc<dyn Lease>,
    plane: PhantomData<fn() -> P>,
}

impl<P: Plane> Db<P> {
    pub(crate) fn new(lease: Arc<dyn Lease>) -> Self {
        Self {
            lease,
            plane: PhantomData,
        }
    }

    /// Begins a transaction with the server's defaults, in one round trip.
    ///
    /// # Errors
    /// Whatever keeps a connection from being borrowed, as [`Error::of`](crate::error::Error::of) tells.
    ///
    /// # Cancel safety
    /// Safe: a connection on which the transaction may have begun is rolled back before anybody else gets it.
    pub async fn begin(&self) -> sqlx::Result<Tx<P>> {
        self.begin_with(TxOptions::new()).await
    }

    /// Begins a transaction with these options, in one round trip.
    ///
    /// # Errors
    /// As [`Db::begin`].
    ///
    /// # Cancel safety
    /// Safe, as [`Db::begin`].
    pub async fn begin_with(&self, options: TxOptions) -> sqlx::Result<Tx<P>> {
        self.begin_lent(&options).await.map(Tx::new)
    }

    /// Borrows a connection for several statements.
    ///
    /// # Errors
    /// As [`Db::begin`], and [`InvalidConfiguration`](crate::error::ErrorKind::InvalidConfiguration) behind a
    /// transaction pooler, where no connection can be held.
    ///
    /// # Cancel safety
    /// Safe: what was borrowed goes back.
    pub async fn acquire(&self) -> sqlx::Result<Conn<P>> {
        Conn::new(self.lend().await?)
    }

    pub(super) fn pool(&self) -> &Pool {
        self.lease.pool()
    }

    pub(super) fn fixed_stack(&self) -> Option<&Stack> {
        self.lease.fixed_stack()
    }

    pub(super) async fn lend(&self) -> sqlx::Result<Lent> {
        Ok(self.lease.lease().await?)
    }

    /// A connection on which a statement may run: inside a transaction if it needs one.
    pub(super) async fn lend_for_statement(&self) -> sqlx::Result<Lent> {
        let lent = self.lend().await?;
        if lent.wraps() {
            self.begin_on(lent, &TxOptions::new()).await
        } else {
            Ok(lent)
        }
    }

    async fn begin_lent(&self, options: &TxOptions) -> sqlx::Result<Lent> {
        let lent = self.lend().await?;
        self.begin_on(lent, options).await
    }

    /// Begins on a borrowed connection. One that turns out to be dead is replaced once, unseen by the caller, which is
    /// safe because no statement of the caller's has run.
    async fn begin_on(&self, mut lent: Lent, options: &TxOptions) -> sqlx::Result<Lent> {
        match lent.begin(options).await {
            Ok(()) => return Ok(lent),
            Err(error) if may_begin_elsewhere(&error) => drop(lent),
            Err(error) => return Err(error),
        }
        let mut lent = self.lend().await?;
        lent.begin(options).await?;
        Ok(lent)
    }
}

impl Db<DataPlane> {
    /// Whose database this is.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.lease
            .tenant()
            .expect("a handle of the data plane is a tenant's")
    }

    /// For what it connects.
    #[must_use]
    pub fn role(&self) -> Role {
        self.lease.role()
    }

    /// The same tenant through another role.
    #[must_use]
    pub fn with_role(&self, role: Role) -> Self {
        Self::new(self.lease.with_role(role))
    }

    /// How long ago the control plane last confirmed where this tenant's data is; `None` when the route is not cached
    /// any more and the next use will ask.
    #[must_use]
    pub fn route_age(&self) -> Option<Duration> {
        self.lease.route_age()
    }

    /// Whether an [override file](crate::manual::overrides) says where this tenant's data is, and not the control plane;
    /// `None` when the route is not cached any more and the next use will ask.
    #[must_use]
    pub fn is_overridden(&self) -> Option<bool> {
        self.lease.is_overridden()
    }
}

impl<P: Plane> Clone for Db<P> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.lease))
    }
}

impl<P: Plane> fmt::Debug for Db<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Db");
        match self.lease.tenant() {
            Some(tenant) => debug.field("tenant", &tenant).field("role", &self.lease.role()),
            None => debug.field("plane", &"control"),
        };
        debug.finish()
    }
}
