//! Handles, transactions and connections as executors of sqlx, with their plane in the type.

use async_stream::try_stream;
use futures_core::{future::BoxFuture, stream::BoxStream};
use futures_util::StreamExt;
use sqlx::{
    Describe, Either, Execute, Executor, Postgres, SqlStr,
    postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::{Conn, ControlPlane, DataPlane, Db, Plane, Tx, TxOptions, statement::Statement};

/// Runs statements in one tenant's database: `&TenantDb`, `&mut TenantTx` or `&mut TenantConn`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not reach a tenant's database",
    label = "a tenant's handle is needed here",
    note = "pass `&TenantDb` (from `Biplane::route`), `&mut TenantTx` or `&mut TenantConn`; a handle on the control plane, or a pool of sqlx's own, cannot stand in for one",
    note = "tests and migrations that know what they do wrap an executor with `dangerous_assume_tenant`"
)]
pub trait TenantExecutor<'c>: Executor<'c, Database = Postgres> {}

/// Runs statements in the control plane: `&ControlDb`, `&mut Tx<ControlPlane>` or `&mut Conn<ControlPlane>`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not reach the control plane",
    label = "a handle on the control plane is needed here",
    note = "pass `&ControlDb` or a transaction begun on it; a tenant's handle, or a pool of sqlx's own, cannot stand in for one",
    note = "tests and migrations that know what they do wrap an executor with `dangerous_assume_control`"
)]
pub trait ControlExecutor<'c>: Executor<'c, Database = Postgres> {}

impl<'c> TenantExecutor<'c> for &'c Db<DataPlane> {}
impl<'c> TenantExecutor<'c> for &'c mut Tx<DataPlane> {}
impl<'c> TenantExecutor<'c> for &'c mut Conn<DataPlane> {}
impl<'c> ControlExecutor<'c> for &'c Db<ControlPlane> {}
impl<'c> ControlExecutor<'c> for &'c mut Tx<ControlPlane> {}
impl<'c> ControlExecutor<'c> for &'c mut Conn<ControlPlane> {}

type Step = Either<PgQueryResult, PgRow>;

/// Each call borrows a connection and gives it back when the answer has been read.
///
/// # Cancel safety
/// A call that is dropped, or a stream that is not read to its end, has its statement cancelled and its connection
/// cleaned. A statement that runs by itself may have taken effect; one for which a transaction was needed is rolled back.
impl<'c, P: Plane> Executor<'c> for &'c Db<P> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Step>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let statement = Statement::take(query);
        Box::pin(try_stream! {
            let mut lent = self.lend_for_statement().await?;
            {
                let mut rows = std::pin::pin!(lent.rows(statement));
                while let Some(step) = rows.next().await {
                    yield step?;
                }
            }
            if lent.wraps() {
                lent.commit().await?;
            }
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let statement = Statement::take(query);
        Box::pin(async move {
            let mut lent = self.lend_for_statement().await?;
            let row = lent.first_row(statement).await?;
            if lent.wraps() {
                lent.commit().await?;
            }
            Ok(row)
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        types: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let mut lent = self.lend_for_statement().await?;
            let prepared = lent.prepare(sql, types).await?;
            if lent.wraps() {
                lent.commit().await?;
            }
            Ok(prepared)
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let mut lent = self.lend_for_statement().await?;
            let described = lent.describe(sql).await?;
            if lent.wraps() {
                lent.commit().await?;
            }
            Ok(described)
        })
    }
}

/// # Cancel safety
/// A call that is dropped, or a stream that is not read to its end, is read to its end by the next call; the
/// transaction goes on.
impl<'c, P: Plane> Executor<'c> for &'c mut Tx<P> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Step>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(self.lent.rows(Statement::take(query)))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let statement = Statement::take(query);
        Box::pin(self.lent.first_row(statement))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        types: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        Box::pin(self.lent.prepare(sql, types))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        Box::pin(self.lent.describe(sql))
    }
}

/// # Cancel safety
/// A call that is dropped, or a stream that is not read to its end, is read to its end by the next call.
impl<'c, P: Plane> Executor<'c> for &'c mut Conn<P> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Step>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let statement = Statement::take(query);
        Box::pin(try_stream! {
            let wraps = self.lent.wraps();
            if wraps {
                self.lent.begin(&TxOptions::new()).await?;
            }
            {
                let mut rows = std::pin::pin!(self.lent.rows(statement));
                while let Some(step) = rows.next().await {
                    yield step?;
                }
            }
            if wraps {
                self.lent.commit().await?;
            }
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let statement = Statement::take(query);
        Box::pin(async move {
            let wraps = self.lent.wraps();
            if wraps {
                self.lent.begin(&TxOptions::new()).await?;
            }
            let row = self.lent.first_row(statement).await?;
            if wraps {
                self.lent.commit().await?;
            }
            Ok(row)
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        types: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        Box::pin(self.lent.prepare(sql, types))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        Box::pin(self.lent.describe(sql))
    }
}
