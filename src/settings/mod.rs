//! What a process is told about its two planes: database URLs taken apart into fields, and the environment variables
//! that hold them.
//!
//! Single mode and split mode differ by these settings alone. A URL is read once, here; from then on there are an
//! address, a credential and settings, and nobody puts them together into a URL again.

mod dsn;
mod environment;
mod parse;

pub use dsn::{Dsn, DsnError, Parameter, UnknownParameters, UrlPart, WithoutPassword};
pub use environment::{CONTROL_SCHEMA, Mode, Settings, SettingsError, VariableNames, forbidden_environment};
