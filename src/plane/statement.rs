//! A statement on its way to a connection that is not borrowed yet.

use std::error::Error as StdError;

use sqlx::{
    AssertSqlSafe, Execute, Postgres, SqlSafeStr, SqlStr,
    postgres::{PgArguments, PgStatement},
};

use crate::pool::Protocol;

type BoxError = Box<dyn StdError + Send + Sync>;

/// The text with a comment at its end that says where it means what it means.
pub(super) fn tagged(sql: &SqlStr, tag: &str) -> SqlStr {
    match sql.as_str().ends_with(tag) {
        true => sql.clone(),
        // On a line of its own, for the last one may be a comment.
        false => AssertSqlSafe(format!("{}\n{tag}", sql.as_str())).into_sql_str(),
    }
}

/// Any query of sqlx's, taken apart so that it outlives the borrow of what it came from, and can be looked at.
pub(super) struct Statement {
    sql: SqlStr,
    arguments: Option<Result<Option<PgArguments>, BoxError>>,
    prepared: Option<PgStatement>,
    persistent: bool,
}

impl Statement {
    pub(super) fn take<'q>(mut query: impl Execute<'q, Postgres>) -> Self {
        let arguments = Some(query.take_arguments());
        let prepared = query.statement().cloned();
        let persistent = query.persistent();
        Self {
            sql: query.sql(),
            arguments,
            prepared,
            persistent,
        }
    }

    pub(super) fn text(&self) -> &str {
        self.sql.as_str()
    }

    /// sqlx sends a statement without parameters, not even none, as text.
    pub(super) const fn protocol(&self) -> Protocol {
        match &self.arguments {
            Some(Ok(Some(_))) => Protocol::Extended,
            _ => Protocol::Simple,
        }
    }

    /// Whether its columns and parameters are known.
    pub(super) const fn is_prepared(&self) -> bool {
        self.prepared.is_some()
    }

    /// Lets it differ from the same statement elsewhere, which means something else.
    pub(super) fn tag(&mut self, tag: &str) {
        if self.protocol() == Protocol::Extended {
            self.sql = tagged(&self.sql, tag);
        }
    }

    /// Keeps the server from remembering it.
    pub(super) const fn run_unnamed(&mut self) {
        self.persistent = false;
    }
}

impl<'q> Execute<'q, Postgres> for Statement {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.prepared.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxError> {
        self.arguments.take().unwrap_or(Ok(None))
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}
