//! Immutable identities, all UUIDs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The text is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is a UUID such as 018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e57")]
pub struct IdError;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id that sorts after those made before it (UUID version 7, RFC 9562).
            #[must_use]
            #[expect(clippy::new_without_default, reason = "a default suggests a fixed value")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// An id that already exists elsewhere.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID.
            #[must_use]
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| IdError)
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

id! {
    /// A tenant, for ever: names may change hands, this never does.
    TenantId
}
id! {
    /// A data source: one database on one cluster, with its credentials.
    DataSourceId
}
id! {
    /// What a data-plane database says it is; checked on every new connection.
    DatabaseId
}
id! {
    /// One life of a control plane; a restored or re-created one has another.
    Incarnation
}
id! {
    /// One life of a process that routes; started again, it has another.
    InstanceId
}

impl DataSourceId {
    /// The data source named `default`, whose address comes from the environment and not from the control plane.
    pub const DEFAULT: Self = Self(Uuid::from_u128(0xb1b1_0000_0000_8000_8000_0000_0000_0001));
}
