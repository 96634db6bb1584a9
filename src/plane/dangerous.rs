//! The ways into a plane without a router.

use futures_core::{future::BoxFuture, stream::BoxStream};
use sqlx::{
    Describe, Either, Execute, Executor, Postgres, SqlStr,
    postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use std::{fmt, marker::PhantomData};

use super::{ControlExecutor, ControlPlane, DataPlane, Plane, TenantExecutor};

/// An executor of sqlx's that somebody says reaches a plane.
///
/// `Debug` prints nothing of the executor, which may print how it connects.
pub struct Assumed<E, P: Plane> {
    executor: E,
    plane: PhantomData<fn() -> P>,
}

impl<E, P: Plane> fmt::Debug for Assumed<E, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assumed").finish_non_exhaustive()
    }
}

/// Takes an executor of sqlx's own, such as `&PgPool` or `&mut PgConnection`, for one that reaches the database of the
/// tenant that the caller means. Nothing checks it: no route, no status, no fence. For migrations and tests.
pub const fn dangerous_assume_tenant<'c, E>(executor: E) -> Assumed<E, DataPlane>
where
    E: Executor<'c, Database = Postgres>,
{
    Assumed {
        executor,
        plane: PhantomData,
    }
}

/// Takes an executor of sqlx's own for one that reaches the control plane. Nothing checks it. For migrations and tests.
pub const fn dangerous_assume_control<'c, E>(executor: E) -> Assumed<E, ControlPlane>
where
    E: Executor<'c, Database = Postgres>,
{
    Assumed {
        executor,
        plane: PhantomData,
    }
}

impl<'c, E: Executor<'c, Database = Postgres>> TenantExecutor<'c> for Assumed<E, DataPlane> {}
impl<'c, E: Executor<'c, Database = Postgres>> ControlExecutor<'c> for Assumed<E, ControlPlane> {}

impl<'c, X, P> Executor<'c> for Assumed<X, P>
where
    X: Executor<'c, Database = Postgres>,
    P: Plane,
{
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Either<PgQueryResult, PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.executor.fetch_many(query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.executor.fetch_optional(query)
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        types: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        self.executor.prepare_with(sql, types)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        self.executor.describe(sql)
    }
}
