//! Every public type: why it can hold no secret, or what it shows when it holds one.
//!
//! To add a type, add a line to the list of its room, in one of the files below:
//!
//! - `("room::Type", Public("why it can hold no secret"))` for ids, counters, names of variants;
//! - `("room::Type", Show(|shown| { shown.debug(&value); }))` for the rest, with the canaries of `canary.rs` in every
//!   place of the value that a caller might fill with something of his own, and with each of `debug`, `display`,
//!   `error` (which stands for both, causes included) and `json` that the type has;
//! - `("room::Type", AtWork)` for what takes a server, a router or a runtime to make: show it in `at_work.rs`.

mod records;
mod running;
mod secrets;

use crate::canary::Shown;

/// What is done about a type.
pub(crate) enum How {
    /// It can hold no secret, for this reason.
    Public(&'static str),
    /// It shows this.
    Show(fn(&mut Shown)),
    /// It is shown at work.
    AtWork,
}

const ID: &str = "an id, which names and opens nothing";
const COUNTER: &str = "a number that rises";
const WORD: &str = "one of a few words";
const FIGURES: &str = "figures alone";
const NAME: &str = "a name, which is there to be read";
const NO_VALUES: &str = "has no values";
const BARE: &str = "says that something is wrong and holds none of it";
const FOR_TESTS: &str = "a setting of a throwaway server";

/// Every type, by its path.
pub(crate) fn types() -> impl Iterator<Item = &'static (&'static str, How)> {
    [secrets::TYPES, records::TYPES, running::TYPES]
        .into_iter()
        .flatten()
}

/// Types that hold secrets, so that nobody may write them out or make them of what somebody else wrote.
pub(crate) const NEVER_SERIALIZED: &[&str] = &[
    "keyring::Fingerprint",
    "keyring::Fingerprints",
    "keyring::KeyMaterial",
    "keyring::Keyring",
    "keyring::KeyringFile",
    "keyring::LegacyKey",
    "keyring::LiveKeyring",
    "repository::Login",
    "repository::MemoryCredentials",
    "secret::Credential",
    "settings::Dsn",
    "settings::Settings",
];
