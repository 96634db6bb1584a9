//! What a failure in a user's table means.
//!
//! The texts of the database may quote values, so none of them is passed on.

use crate::error::{Error, ErrorKind};

/// Where it happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) store: &'a str,
}

impl Place<'_> {
    pub(super) fn failed(self) -> impl Fn(sqlx::Error) -> Error {
        move |error| self.sort(error)
    }

    fn sort(self, error: sqlx::Error) -> Error {
        let Some(refused) = error.as_database_error() else {
            return error.into();
        };
        let store = self.store;
        let code = refused.code().unwrap_or_default().into_owned();
        let constraint = refused.constraint().unwrap_or("without a name").to_owned();
        let (kind, detail) = match &*code {
            "40001" | "40P01" => (
                ErrorKind::TransactionConflict,
                format!("a page of {store} lost to another transaction"),
            ),
            "22001" => (
                ErrorKind::InvalidInput,
                format!(
                    "a column of {store} is too short for a sealed value; sealing adds about 117 characters"
                ),
            ),
            "42883" => (
                ErrorKind::InvalidConfiguration,
                format!("the type of the key of {store} has no order"),
            ),
            "42P01" | "42703" | "3F000" => (
                ErrorKind::SchemaMismatch,
                format!("{store} has changed since it was looked at"),
            ),
            "42501" => (
                ErrorKind::MissingPrivilege,
                format!("SELECT and UPDATE on the columns of {store} that are named"),
            ),
            code if code.starts_with("23") => (
                ErrorKind::InvalidInput,
                format!("the constraint {constraint:?} of {store} refuses a sealed value"),
            ),
            _ => return error.into(),
        };
        Error::new(kind).detail(detail).caused_by(Error::from(error))
    }
}
