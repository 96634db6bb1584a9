//! A connection held for several statements.

use std::{fmt, marker::PhantomData};

use futures_core::future::BoxFuture;
use sqlx::{Acquire, AssertSqlSafe, Connection, Postgres, Transaction, postgres::PgConnection};

use super::{Lent, Plane};
use crate::error::{Error, ErrorKind};

/// A connection held for several statements, for session locks, temporary tables, `COPY` and code that begins
/// transactions of sqlx's own: `&mut` of it implements [`Acquire`].
///
/// What statements leave in the session is gone before another borrower gets it. What a function that a query calls
/// leaves there by itself is not seen; end such work with a statement such as `discard all`, which is.
pub struct Conn<P: Plane> {
    pub(super) lent: Lent,
    plane: PhantomData<fn() -> P>,
}

impl<P: Plane> Conn<P> {
    pub(super) fn new(lent: Lent) -> Self {
        Self {
            lent,
            plane: PhantomData,
        }
    }

    /// Whether this connection can be held.
    pub(super) fn check(lent: &Lent) -> sqlx::Result<()> {
        if let Some(isolation) = lent.shared()
            && !cfg!(biplane_mutant = "shared_connections_are_held")
        {
            return Err(Error::new(ErrorKind::UnsupportedIsolation { isolation })
                .detail("of a shared database no connection can be held; use a transaction")
                .into());
        }
        if lent.owns_session() {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::InvalidConfiguration)
                .detail("behind a transaction pooler no connection can be held; use a transaction")
                .into())
        }
    }

    /// The connection inside, whose type no longer says which plane it reaches. A way out, for code that wants
    /// [`PgConnection`].
    ///
    /// # Errors
    /// [`ReadOnly`](ErrorKind::ReadOnly) for a tenant that is open for reads alone: nothing would keep this connection
    /// from writing.
    pub fn dangerous_connection(&mut self) -> sqlx::Result<&mut PgConnection> {
        if self.lent.may_be_handed_over() {
            Ok(self.lent.hand_over())
        } else {
            Err(Error::new(ErrorKind::ReadOnly).into())
        }
    }
}

impl<'c, P: Plane> Acquire<'c> for &'c mut Conn<P> {
    type Connection = &'c mut PgConnection;
    type Database = Postgres;

    /// As [`Conn::dangerous_connection`].
    fn acquire(self) -> BoxFuture<'c, sqlx::Result<&'c mut PgConnection>> {
        Box::pin(async move { self.dangerous_connection() })
    }

    /// A transaction of sqlx's own, begun as ours are.
    fn begin(self) -> BoxFuture<'c, sqlx::Result<Transaction<'c, Postgres>>> {
        Box::pin(async move {
            let (connection, text, refusals) = self.lent.hand_over_to_begin().await?;
            let begun = connection.begin_with(AssertSqlSafe(text)).await;
            begun.map_err(|error| refusals.explain(error))
        })
    }
}

impl<P: Plane> fmt::Debug for Conn<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("plane", &std::any::type_name::<P>())
            .finish_non_exhaustive()
    }
}
