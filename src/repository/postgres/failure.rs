//! What a failure in the control plane's database means to the caller.
//!
//! The texts of the database may quote values, so none of them is passed on; the SQLSTATE and the name of a constraint
//! say enough.

use crate::{
    error::{Error, ErrorKind},
    plane::sqlstate,
    repository::rules,
};

/// Sorts a failure. Whatever kept the database from being asked is `ControlPlaneUnavailable`, never an answer.
pub(super) fn failed(error: sqlx::Error) -> Error {
    if let Some(ours) = Error::of(&error) {
        return match ours.kind() {
            ErrorKind::ControlPlaneUnavailable
            | ErrorKind::Closed
            | ErrorKind::InvalidConfiguration
            | ErrorKind::TransactionAborted => ours.clone(),
            _ => unavailable(error),
        };
    }
    match error.as_database_error() {
        Some(refused) => {
            let code = refused.code().unwrap_or_default().into_owned();
            let constraint = refused.constraint().map(str::to_owned);
            sort(&code, constraint.as_deref()).unwrap_or_else(|| unavailable(error))
        }
        None => match error {
            sqlx::Error::RowNotFound
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::Decode(_) => Error::new(ErrorKind::SchemaMismatch)
                .detail("an answer of the control plane has another form than expected"),
            error => unavailable(error),
        },
    }
}

/// Sorts a failure of what only reads. Nobody else's change is in its way: a standby that cancels a query in favour of
/// replay says so in the words of a conflict, and it has not been asked.
pub(super) fn not_read(error: sqlx::Error) -> Error {
    let sorted = failed(error);
    match sorted.kind() {
        ErrorKind::VersionConflict => Error::new(ErrorKind::ControlPlaneUnavailable).caused_by(sorted),
        _ => sorted,
    }
}

/// Sorts a failure to listen. Whatever it was, changes are not told.
pub(super) fn not_heard(error: Error) -> Error {
    match error.kind() {
        ErrorKind::ControlPlaneUnavailable | ErrorKind::Closed | ErrorKind::InvalidConfiguration => error,
        _ => Error::new(ErrorKind::ControlPlaneUnavailable).caused_by(error),
    }
}

/// The role reads, and row-level security leaves rows out. What is left out would look like what does not exist.
pub(super) fn rows_hidden() -> Error {
    Error::new(ErrorKind::MissingPrivilege).detail(
        "row-level security hides rows of the schema biplane_control; disable it there, grants are enough",
    )
}

/// `None` when the database could not be asked.
fn sort(code: &str, constraint: Option<&str>) -> Option<Error> {
    let named = |kind: ErrorKind| match constraint {
        Some(constraint) => Error::new(kind).detail(format!("rule {constraint}")),
        None => Error::new(kind).detail(format!("SQLSTATE {code}")),
    };
    if let Some(common) = sqlstate::of_schema("biplane_control", code, constraint) {
        return Some(common);
    }
    Some(match code {
        "BC006" => rules::exclusive(),
        "BC008" => rules::next_without_current(),
        "BC009" => Error::new(ErrorKind::SchemaMismatch)
            .detail("the schema biplane_control was installed by a release that is too new for this one"),
        "23503" if matches!(constraint, Some("tenant_data_source" | "credential_data_source")) => {
            ErrorKind::UnknownDataSource.into()
        }
        "23505" => named(ErrorKind::AlreadyExists),
        "23514" | "23502" | "BC002" => named(ErrorKind::InvalidInput),
        // Another transaction was in the way, and this one did not happen.
        "40001" | "40P01" => named(ErrorKind::VersionConflict),
        "42501" => Error::new(ErrorKind::MissingPrivilege)
            .detail("what the schema biplane_control grants to routers or, for writing, to admins"),
        "25006" => Error::new(ErrorKind::ControlPlaneUnavailable)
            .detail("the server takes no writes; it may be a standby"),
        "3D000" | "57014" | "55P03" => return None,
        code if ["08", "28", "53", "57P"]
            .iter()
            .any(|class| code.starts_with(class)) =>
        {
            return None;
        }
        code if code.starts_with("22") => named(ErrorKind::InvalidInput),
        _ => Error::new(ErrorKind::Database).detail(format!("SQLSTATE {code}")),
    })
}

fn unavailable(error: sqlx::Error) -> Error {
    Error::new(ErrorKind::ControlPlaneUnavailable).caused_by(Error::from(error))
}
