//! A file that says where tenants are, for the day on which the control plane is gone or wrong.
//!
//! [`manual::overrides`](crate::manual::overrides) says what it can do and how it is written. `document` reads the text,
//! `file` the file, `force` is what a file comes to once its data sources are known, and `watch` looks whether it has
//! changed.

mod document;
mod file;
mod force;
mod value;
mod watch;

use std::{path::Path, sync::Arc, time::Duration};

pub use self::document::{OverriddenTenant, Overrides};
pub(super) use self::{
    force::{InForce, Override},
    watch::Watch,
};
use crate::error::ErrorKind;

/// How a router's override file is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OverrideHealth {
    /// The file that is looked for; `None` when there is none to look for.
    pub file: Option<Arc<Path>>,
    /// How many tenants it overrides right now.
    pub tenants: usize,
    /// For how long there have been any; `None` while nothing is overridden.
    pub in_force_for: Option<Duration>,
    /// Who wrote what is in force, as it says.
    pub by: Option<Arc<str>>,
    /// Why, as it says.
    pub reason: Option<Arc<str>>,
    /// For how long the file as it is has been refused. What was in force before stays in force.
    pub refused_for: Option<Duration>,
    /// Why it was refused.
    pub refused: Option<ErrorKind>,
}
