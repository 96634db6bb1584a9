//! The counters that order changes. Each is a type of its own so that one never stands in for another.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The value a record starts with.
            pub const FIRST: Self = Self(1);
            /// The value before anything happened.
            pub const ZERO: Self = Self(0);

            /// A counter with this value.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The value as a number.
            #[must_use]
            pub const fn value(self) -> u64 {
                self.0
            }

            /// The next value. Saturates, which 2⁶⁴ changes would take to notice.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter! {
    /// Rises with every change of one tenant, name or data source; older routes are refused by it.
    ///
    /// Comparable only between records of the same id.
    Version
}
counter! {
    /// Rises when a tenant's rows move or are fenced; the data plane refuses any other.
    Epoch
}
counter! {
    /// Rises when a credential of one data source and role changes; pools are keyed by it.
    CredentialVersion
}
counter! {
    /// The position of a change in the change log, assigned at commit.
    Seq
}
