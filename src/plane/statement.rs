//! A statement on its way to a connection that is not borrowed yet.

use std::error::Error as StdError;

use sqlx::{
    Execute, Postgres, SqlStr,
    postgres::{PgArguments, PgStatement},
};

use crate::pool::Protocol;

type BoxError = Box<dyn StdError + Send + Sync>;

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
