//! Transactions.

use std::{fmt, marker::PhantomData};

use sqlx::postgres::PgConnection;

use super::{Lent, Plane};
use crate::tenant::Access;

/// A transaction. Dropped without a commit, it rolls back at once, in a task of its own.
pub struct Tx<P: Plane> {
    pub(super) lent: Lent,
    plane: PhantomData<fn() -> P>,
}

/// How a transaction begins. These cannot be set later: Postgres refuses `SET TRANSACTION` after the first query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TxOptions {
    level: Option<IsolationLevel>,
    read_only: bool,
    deferrable: bool,
}

/// What a transaction sees of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IsolationLevel {
    /// Each statement sees what was committed before it.
    ReadCommitted,
    /// All statements see what was committed before the first.
    RepeatableRead,
    /// As if transactions ran one after the other.
    Serializable,
}

impl TxOptions {
    /// The server's default level, reads and writes.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            level: None,
            read_only: false,
            deferrable: false,
        }
    }

    /// At this isolation level.
    #[must_use]
    pub const fn isolation(mut self, level: IsolationLevel) -> Self {
        self.level = Some(level);
        self
    }

    /// Reads alone: the server refuses a write with `25006`.
    #[must_use]
    pub const fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Waits for a moment at which a serializable read-only transaction can neither fail nor make another fail.
    /// Without effect otherwise.
    #[must_use]
    pub const fn deferrable(mut self) -> Self {
        self.deferrable = true;
        self
    }

    pub(super) fn append_to(self, text: &mut String, access: Access) {
        text.push_str(match self.level {
            None => "",
            Some(IsolationLevel::ReadCommitted) => " isolation level read committed",
            Some(IsolationLevel::RepeatableRead) => " isolation level repeatable read",
            Some(IsolationLevel::Serializable) => " isolation level serializable",
        });
        if self.read_only || access == Access::Read {
            text.push_str(" read only");
        }
        if self.deferrable {
            text.push_str(" deferrable");
        }
    }
}

impl<P: Plane> Tx<P> {
    pub(super) fn new(lent: Lent) -> Self {
        Self {
            lent,
            plane: PhantomData,
        }
    }

    /// Commits.
    ///
    /// # Errors
    /// [`TransactionAborted`](crate::error::ErrorKind::TransactionAborted) when a statement had failed, so that nothing
    /// could be committed; sqlx's error when the commit itself is refused, as by a deferred constraint.
    ///
    /// # Cancel safety
    /// Not safe: whether a cancelled commit took effect is not known.
    pub async fn commit(mut self) -> sqlx::Result<()> {
        self.lent.commit().await
    }

    /// Rolls back and waits for it. Dropping the transaction does the same without waiting.
    ///
    /// # Errors
    /// sqlx's error when the connection is lost, in which case the server rolls back too.
    ///
    /// # Cancel safety
    /// Safe: the transaction rolls back all the same.
    pub async fn rollback(mut self) -> sqlx::Result<()> {
        self.lent.rollback().await
    }

    /// The connection inside, whose type no longer says which plane it reaches. A way out, for code that wants
    /// [`PgConnection`]; it must leave the transaction as it is.
    pub fn dangerous_connection(&mut self) -> &mut PgConnection {
        self.lent.hand_over()
    }
}

impl<P: Plane> fmt::Debug for Tx<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("plane", &std::any::type_name::<P>())
            .finish_non_exhaustive()
    }
}
