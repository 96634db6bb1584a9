//! Handles on a database.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use super::{Conn, DataPlane, Lease, Lent, Plane, Tx, TxOptions, lease::Next};
#[cfg(doc)]
use crate::error::ErrorKind;
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

    /// Begins a transaction with the server's defaults and, where there is a fence, enters the tenant's rows, in one round
    /// trip. A connection that turns out to be dead is replaced once, and a route that the database refuses is asked for
    /// again once, both unseen.
    ///
    /// # Errors
    /// Whatever keeps a connection from being borrowed, as [`Error::of`](crate::error::Error::of) tells;
    /// [`Fenced`](ErrorKind::Fenced) while the tenant's rows are moved, [`StaleRoute`](ErrorKind::StaleRoute) when database
    /// and control plane disagree about them, and [`WrongDatabase`](ErrorKind::WrongDatabase) when it is another one.
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
        self.lend_for(Use::Begin(options)).await.map(Tx::new)
    }

    /// Borrows a connection for several statements. Of tenants that share a database none can be held: what keeps a
    /// tenant to its rows there lasts for a transaction.
    ///
    /// # Errors
    /// As [`Db::begin`]; [`UnsupportedIsolation`](ErrorKind::UnsupportedIsolation) for a tenant that shares its database,
    /// and [`InvalidConfiguration`](ErrorKind::InvalidConfiguration) behind a transaction pooler.
    ///
    /// # Cancel safety
    /// Safe: what was borrowed goes back.
    pub async fn acquire(&self) -> sqlx::Result<Conn<P>> {
        self.lend_for(Use::Hold).await.map(Conn::new)
    }

    pub(super) fn pool(&self) -> &Pool {
        self.lease.pool()
    }

    pub(super) fn fixed_stack(&self) -> Option<&Stack> {
        self.lease.fixed_stack()
    }

    /// A connection on which a statement may run: inside a transaction if it needs one.
    pub(super) async fn lend_for_statement(&self) -> sqlx::Result<Lent> {
        self.lend_for(Use::Statement).await
    }

    /// Borrows a connection and enters. One that turns out to be dead is replaced once, and a route that the database
    /// says is stale is asked for once, both unseen by the caller, which is safe because no statement of the caller's has
    /// run.
    async fn lend_for(&self, what: Use) -> sqlx::Result<Lent> {
        let (mut replaced, mut refreshed) = (false, false);
        loop {
            let mut lent = self.lease.lease().await?;
            let entered = match what {
                Use::Begin(options) => lent.begin(&options).await,
                Use::Statement if lent.wraps() => lent.begin(&TxOptions::new()).await,
                Use::Statement => lent.enter().await,
                Use::Hold => {
                    Conn::<P>::check(&lent)?;
                    lent.enter().await
                }
            };
            let Err(error) = entered else {
                return Ok(lent);
            };
            let next = lent.next_after(&error);
            // Cleaned before anybody gets it again, this caller included.
            drop(lent);
            match next {
                Next::Replace if !replaced && !cfg!(biplane_mutant = "dead_entries_are_final") => {
                    replaced = true;
                }
                Next::Refresh(refused) if !refreshed && !cfg!(biplane_mutant = "stale_routes_are_final") => {
                    refreshed = !cfg!(biplane_mutant = "stale_routes_are_read_again_and_again");
                    self.lease.refresh(&refused).await?;
                }
                _ => return Err(error),
            }
        }
    }
}

/// What a connection is borrowed for.
#[derive(Clone, Copy)]
enum Use {
    /// One statement, inside a transaction if it needs one.
    Statement,
    /// A transaction.
    Begin(TxOptions),
    /// Several statements, by themselves.
    Hold,
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
