//! What the database says of a schema of ours, whichever of the two.

use crate::error::{Error, ErrorKind};

/// What a SQLSTATE says of this schema, if it says the same of both: that it is not there, that something has its names, or
/// what whoever installs it may not do.
pub(crate) fn of_schema(schema: &'static str, code: &str, constraint: Option<&str>) -> Option<Error> {
    let mismatch = |what: String| Some(Error::new(ErrorKind::SchemaMismatch).detail(what));
    match (code, constraint) {
        ("42501", Some("create_on_database")) => {
            Some(Error::new(ErrorKind::MissingPrivilege).detail("CREATE on the database"))
        }
        ("42501", Some("owner_of_schema")) => {
            Some(Error::new(ErrorKind::MissingPrivilege).detail(format!("ownership of the schema {schema}")))
        }
        ("42704", _) => Some(
            Error::new(ErrorKind::InvalidInput)
                .detail("a role that is to be granted something does not exist"),
        ),
        ("42P01" | "42703" | "42883" | "3F000", _) => mismatch(format!(
            "the schema {schema} is not installed in this database, or not in this version (SQLSTATE {code})"
        )),
        ("42P07" | "42723" | "42710", _) => mismatch(format!(
            "something else has a name that the schema {schema} needs"
        )),
        ("2BP01", _) => mismatch(format!(
            "something else depends on the schema {schema}; remove that first"
        )),
        _ => None,
    }
}
