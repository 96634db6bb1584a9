//! How a handle borrows a connection: the one trait that lies between a handle and whatever finds its database.

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_stream::try_stream;
use async_trait::async_trait;
use futures_core::Stream;
use futures_util::StreamExt;
use sqlx::{
    Describe, Either, Executor, Postgres, SqlStr,
    postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::{TxOptions, statement::Statement};
use crate::{
    error::{Error, ErrorKind},
    pool::{Checkout, Damage, Pool, Protocol, Stack},
    tenant::{Access, Role, TenantId},
};

/// Lends connections to a handle. Asked anew for every checkout, so that a handle never pins an old route.
#[async_trait]
pub(crate) trait Lease: Debug + Send + Sync + 'static {
    /// A connection to where the data is now, or why there is none.
    async fn lease(&self) -> Result<Lent, Error>;

    /// Whose database this is; `None` for the control plane.
    fn tenant(&self) -> Option<TenantId>;

    /// For what the handle connects.
    fn role(&self) -> Role;

    /// The same for another role.
    fn with_role(&self, role: Role) -> Arc<dyn Lease>;

    /// The pool that it borrows from.
    fn pool(&self) -> &Pool;

    /// How long ago the route was confirmed, if there is a route.
    fn route_age(&self) -> Option<Duration>;

    /// Whether an override file says where the data is, if there is a route.
    fn is_overridden(&self) -> Option<bool>;

    /// The one stack that it borrows from, if that stays the same. A tenant's does not.
    fn fixed_stack(&self) -> Option<&Stack> {
        None
    }
}

/// A borrowed connection, and what the tenant may do on it.
pub(crate) struct Lent {
    checkout: Checkout,
    access: Access,
}

impl Lent {
    pub(crate) const fn new(checkout: Checkout, access: Access) -> Self {
        Self { checkout, access }
    }

    /// Whether a single statement needs a transaction around it: because it must not write, or because the session
    /// settings that it relies on last no longer than a transaction.
    pub(super) fn wraps(&self) -> bool {
        !self.owns_session()
            || !(self.may_be_handed_over() || cfg!(biplane_mutant = "read_only_tenants_are_not_wrapped"))
    }

    /// Whether whoever gets the bare connection writes only if the tenant may.
    pub(super) fn may_be_handed_over(&self) -> bool {
        self.access == Access::ReadWrite || self.checkout.dial().access == Access::Read
    }

    /// Whether the session is ours for as long as the connection is lent.
    pub(super) fn owns_session(&self) -> bool {
        self.checkout.dial().session_is_ours()
    }

    pub(super) async fn begin(&mut self, options: &TxOptions) -> sqlx::Result<()> {
        self.leave_transaction().await?;
        let text = self.begin_text(options);
        self.checkout.begin(text).await
    }

    /// The connection for code that begins a transaction of its own, with the text for that.
    pub(super) async fn hand_over_to_begin(&mut self) -> sqlx::Result<(&mut PgConnection, String)> {
        self.leave_transaction().await?;
        let text = self.begin_text(&TxOptions::new());
        Ok((self.hand_over(), text))
    }

    /// Rolls back what a wrapped statement left because it failed or was given up.
    async fn leave_transaction(&mut self) -> sqlx::Result<()> {
        if self.checkout.is_in_transaction() {
            self.checkout.rollback().await?;
        }
        Ok(())
    }

    fn begin_text(&self, options: &TxOptions) -> String {
        let mut text = String::from("begin");
        options.append_to(&mut text, self.access);
        if let Some(enter) = self.checkout.dial().enter() {
            text.push_str("; ");
            text.push_str(&enter);
        }
        text
    }

    pub(super) async fn commit(&mut self) -> sqlx::Result<()> {
        self.checkout.commit().await.map_err(|error| match &error {
            sqlx::Error::Database(refused) if refused.code().as_deref() == Some("25P02") => {
                Error::new(ErrorKind::TransactionAborted).into()
            }
            _ => error,
        })
    }

    pub(super) async fn rollback(&mut self) -> sqlx::Result<()> {
        self.checkout.rollback().await
    }

    pub(super) fn hand_over(&mut self) -> &mut PgConnection {
        self.checkout.hand_over()
    }

    /// Runs a statement and passes its rows on. Dropped early, it leaves the connection to be cleaned.
    pub(super) fn rows(
        &mut self,
        statement: Statement,
    ) -> impl Stream<Item = sqlx::Result<Either<PgQueryResult, PgRow>>> + Send {
        try_stream! {
            let statement = self.start(statement).await?;
            let mut failure = None;
            let mut rows = self.checkout.connection().fetch_many(statement);
            while let Some(item) = rows.next().await {
                match item {
                    Ok(item) => yield item,
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
            drop(rows);
            match failure {
                Some(error) => Err(self.failed(error))?,
                None => self.checkout.finish(),
            }
        }
    }

    pub(super) async fn first_row(&mut self, statement: Statement) -> sqlx::Result<Option<PgRow>> {
        let statement = self.start(statement).await?;
        let row = self.checkout.connection().fetch_optional(statement).await;
        self.judge(row)
    }

    pub(super) async fn prepare(&mut self, sql: SqlStr, types: &[PgTypeInfo]) -> sqlx::Result<PgStatement> {
        self.checkout.start(PREPARES, Protocol::Extended).await?;
        let prepared = self.checkout.connection().prepare_with(sql, types).await;
        let prepared = self.forget_statements(prepared).await;
        self.judge(prepared)
    }

    pub(super) async fn describe(&mut self, sql: SqlStr) -> sqlx::Result<Describe<Postgres>> {
        self.checkout.start(PREPARES, Protocol::Extended).await?;
        let described = self.checkout.connection().describe(sql).await;
        let described = self.forget_statements(described).await;
        self.judge(described)
    }

    async fn start(&mut self, mut statement: Statement) -> sqlx::Result<Statement> {
        if !self.checkout.dial().keeps_statements() && !cfg!(biplane_mutant = "names_collide_behind_poolers")
        {
            statement.run_unnamed();
        }
        let protocol = statement.protocol();
        self.checkout.start(statement.text(), protocol).await?;
        Ok(statement)
    }

    /// sqlx prepares under a name when asked to prepare. Where another client may get the session next, the name must
    /// be free again by the end of the transaction.
    async fn forget_statements<T>(&mut self, prepared: sqlx::Result<T>) -> sqlx::Result<T> {
        if prepared.is_ok() && !self.checkout.dial().keeps_statements() {
            self.checkout.connection().execute("deallocate all").await?;
        }
        prepared
    }

    fn judge<T>(&mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        match result {
            Ok(value) => {
                self.checkout.finish();
                Ok(value)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Notes that a statement failed, and says so in our words where the tenant's status is the reason.
    fn failed(&mut self, error: sqlx::Error) -> sqlx::Error {
        self.checkout.fail(&error);
        let refused_write = self.access == Access::Read
            && matches!(&error, sqlx::Error::Database(refused) if refused.code().as_deref() == Some("25006"));
        if refused_write {
            Error::new(ErrorKind::ReadOnly).into()
        } else {
            error
        }
    }
}

/// What preparing a statement does to a session, as a statement: nothing.
const PREPARES: &str = "select";

/// Whether a transaction that could not begin may be tried on another connection: nothing of the caller's has run.
pub(super) fn may_begin_elsewhere(error: &sqlx::Error) -> bool {
    Error::of(error).is_none() && !Damage::of(error).spares_connection()
}
