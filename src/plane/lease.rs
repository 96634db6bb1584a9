//! How a handle borrows a connection: the one trait that lies between a handle and whatever finds its database.

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_stream::try_stream;
use async_trait::async_trait;
use futures_core::Stream;
use futures_util::StreamExt;
use sqlx::{
    Describe, Either, Executor, Postgres, SqlStr, Statement as _,
    postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::{
    TxOptions,
    statement::{Statement, tagged},
};
use crate::{
    error::{Error, ErrorKind},
    pool::{Checkout, Damage, Entry, Pool, Protocol, Stack},
    tenant::{Access, Isolation, Role, TenantId},
};

/// Lends connections to a handle. Asked anew for every checkout, so that a handle never pins an old route.
#[async_trait]
pub(crate) trait Lease: Debug + Send + Sync + 'static {
    /// A connection to where the data is now, or why there is none.
    async fn lease(&self) -> Result<Lent, Error>;

    /// Asks where the data is, after the database refused what it was told so far.
    async fn refresh(&self, refused: &Entry) -> Result<(), Error>;

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

/// A borrowed connection, whose rows it is to reach, and what may be done with them.
pub(crate) struct Lent {
    checkout: Checkout,
    access: Access,
    /// How to enter, if there is a fence.
    entry: Option<Entry>,
    /// The statement that is under way, if its types were not known.
    untyped: Option<String>,
}

/// What to do after a connection was not entered.
pub(super) enum Next {
    /// Try another connection, for this one is of no use.
    Replace,
    /// Ask where the data is, and try there.
    Refresh(Entry),
    /// Give up.
    Fail,
}

impl Lent {
    pub(crate) const fn new(checkout: Checkout, access: Access, entry: Option<Entry>) -> Self {
        Self {
            checkout,
            access,
            entry,
            untyped: None,
        }
    }

    /// Whether a single statement needs a transaction around it: because it must not write, or because whatever keeps it
    /// to the tenant's rows lasts no longer than a transaction.
    pub(super) fn wraps(&self) -> bool {
        !self.owns_session()
            || self.shares()
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

    /// The mode, if other tenants use the same database.
    pub(super) fn shared(&self) -> Option<Isolation> {
        self.entry.filter(Entry::shares).map(|entry| entry.isolation)
    }

    fn shares(&self) -> bool {
        self.shared().is_some() && !cfg!(biplane_mutant = "shared_statements_are_not_wrapped")
    }

    /// Begins a transaction as the tenant.
    pub(super) async fn begin(&mut self, options: &TxOptions) -> sqlx::Result<()> {
        self.leave_transaction().await?;
        let options = self.begin_options(options);
        let begun = self.checkout.begin(&options, self.entry.as_ref()).await;
        begun.map_err(|error| self.refusals().explain(error))
    }

    /// Makes the session the tenant's, for statements that run by themselves.
    pub(super) async fn enter(&mut self) -> sqlx::Result<()> {
        let Some(entry) = self.entry else { return Ok(()) };
        let entered = self.checkout.enter(&entry).await;
        entered.map_err(|error| self.refusals().explain(error))
    }

    /// The connection for code that begins a transaction of its own, with the text for that.
    pub(super) async fn hand_over_to_begin(&mut self) -> sqlx::Result<(&mut PgConnection, String, Refusals)> {
        self.leave_transaction().await?;
        let options = self.begin_options(&TxOptions::new());
        let text = self.checkout.text_to_begin(&options, self.entry.as_ref());
        let refusals = self.refusals();
        Ok((self.hand_over(), text, refusals))
    }

    /// What to do after this error of [`Lent::begin`] or [`Lent::enter`], on a connection on which nothing of the caller's
    /// has run. After that nothing is ever tried again.
    pub(super) fn next_after(&self, error: &sqlx::Error) -> Next {
        match (Error::of(error), self.entry) {
            (Some(ours), Some(entry)) if ours.kind() == ErrorKind::StaleRoute => Next::Refresh(entry),
            // It is cleaned when it goes back, and it was what it was left with that kept this from being entered.
            _ if self.checkout.is_altered() => Next::Replace,
            (None, _) if !Damage::of(error).spares_connection() => Next::Replace,
            _ => Next::Fail,
        }
    }

    fn begin_options(&self, options: &TxOptions) -> String {
        let mut text = String::new();
        options.append_to(&mut text, self.access);
        text
    }

    fn refusals(&self) -> Refusals {
        Refusals(self.entry.map(|_| self.checkout.dial().whereabouts()))
    }

    /// Rolls back what a wrapped statement left because it failed or was given up.
    async fn leave_transaction(&mut self) -> sqlx::Result<()> {
        if self.checkout.is_in_transaction() {
            self.checkout.rollback().await?;
        }
        Ok(())
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
                None => self.finish(),
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
        let sql = match self.tag() {
            Some(tag) => tagged(&sql, &tag),
            None => sql,
        };
        let prepared = self.checkout.connection().prepare_with(sql, types).await;
        self.judge(prepared)
    }

    /// What sqlx finds out about a statement. Which columns may be null it asks by the statement's name, which a pooler
    /// that keeps statements has changed: there that is not known.
    pub(super) async fn describe(&mut self, sql: SqlStr) -> sqlx::Result<Describe<Postgres>> {
        if !self.owns_session() && self.checkout.dial().keeps_statements() {
            let prepared = self.prepare(sql, &[]).await?;
            return Ok(Describe {
                columns: prepared.columns().to_vec(),
                nullable: vec![None; prepared.columns().len()],
                parameters: prepared.parameters().map(|parameters| match parameters {
                    Either::Left(types) => Either::Left(types.to_vec()),
                    Either::Right(number) => Either::Right(number),
                }),
            });
        }
        self.checkout.start(PREPARES, Protocol::Extended).await?;
        let described = self.checkout.connection().describe(sql).await;
        self.judge(described)
    }

    async fn start(&mut self, mut statement: Statement) -> sqlx::Result<Statement> {
        self.untyped = None;
        let protocol = statement.protocol();
        if let Some(tag) = self.tag() {
            statement.tag(&tag);
        } else if protocol == Protocol::Extended && !self.checkout.dial().keeps_statements() {
            // The question that sqlx puts about a type drops whatever has no name, so that a statement has one until its
            // types are known. It is gone before the next transaction.
            if statement.is_prepared()
                || self.checkout.knows_types_of(statement.text())
                || cfg!(biplane_mutant = "statements_never_have_names")
            {
                statement.run_unnamed();
            } else {
                self.untyped = Some(statement.text().to_owned());
            }
        }
        self.checkout.start(statement.text(), protocol).await?;
        Ok(statement)
    }

    /// What tells this tenant's statements from others' of the same words: poolers that keep statements for their clients
    /// know them by their text, which means something else in another schema.
    fn tag(&self) -> Option<String> {
        let entry = self.entry.filter(|entry| entry.isolation == Isolation::Schema)?;
        let tells_by_text = !self.owns_session() && self.checkout.dial().keeps_statements();
        (tells_by_text && !cfg!(biplane_mutant = "poolers_know_schemas"))
            .then(|| format!("/* {} {} */", entry.tenant, entry.epoch))
    }

    /// The answer to a statement has been read to its end.
    fn finish(&mut self) {
        self.checkout.finish();
        if let Some(sql) = self.untyped.take() {
            self.checkout.note_types_of(&sql);
        }
    }

    fn judge<T>(&mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        match result {
            Ok(value) => {
                self.finish();
                Ok(value)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Notes that a statement failed, and says so in our words where the tenant's status is the reason.
    fn failed(&mut self, error: sqlx::Error) -> sqlx::Error {
        self.checkout.fail(&error);
        if matches!(&error, sqlx::Error::Database(refused) if refused.code().as_deref() == Some("26000")) {
            self.checkout.doubt_types();
        }
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

/// What the database says when it does not let somebody enter, in our words.
pub(super) struct Refusals(Option<String>);

impl Refusals {
    pub(super) fn explain(&self, error: sqlx::Error) -> sqlx::Error {
        match (&error, &self.0) {
            (sqlx::Error::Database(refused), Some(place)) => refused
                .code()
                .and_then(|code| refusal(&code))
                .map_or(error, |ours| ours.detail(place.clone()).into()),
            _ => error,
        }
    }
}

/// How long to wait for a fence to be lifted before asking again. A drain waits for transactions in progress, which
/// takes well under a second as a rule; then the tenant is open, here or elsewhere.
const FENCED_FOR: Duration = Duration::from_secs(1);

/// What `enter` refuses, by its SQLSTATE.
fn refusal(code: &str) -> Option<Error> {
    let kind = match code {
        // Also that the tenant lives there in another way.
        "BP001" | "BP005" => ErrorKind::StaleRoute,
        "BP002" => ErrorKind::Fenced {
            retry_after: Some(FENCED_FOR),
        },
        "BP003" => ErrorKind::WrongDatabase,
        // No schema, function or table of biplane's: then it is not the database that was stamped.
        "3F000" | "42883" | "42P01" => ErrorKind::WrongDatabase,
        "42501" => ErrorKind::MissingPrivilege,
        _ => return None,
    };
    Some(Error::new(kind))
}
