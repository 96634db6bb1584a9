//! Pages to read, one for each module here. There is no code.

/// Logins replaced while everything runs, step by step: an operator's guide.
pub mod credentials {
    #![doc = include_str!("credentials.md")]
}

/// Every kind of error: HTTP status, gRPC code, and what to do.
pub mod errors {
    #![doc = include_str!("errors.md")]
}

/// The fence in a data-plane database: what it guarantees and what not, the grants, and the commands.
pub mod fence {
    #![doc = include_str!("fence.md")]
}

/// When two tenants share a database: what keeps them apart, what does not, and what works in which mode.
#[cfg(feature = "postgres")]
pub mod isolation {
    #![doc = include_str!("isolation.md")]
}

/// The format of sealed values: enough to write another opener and sealer, in any language.
pub mod keyring_format {
    #![doc = include_str!("keyring_format.md")]
}

/// What the keyring defends, and what it does not.
pub mod keyring_threats {
    #![doc = include_str!("keyring_threats.md")]
}

/// Keys from the first to the destruction of an old one: an operator's guide.
pub mod keys {
    #![doc = include_str!("keys.md")]
}

/// A file that says where tenants are, for the day on which the control plane is gone or wrong.
pub mod overrides {
    #![doc = include_str!("overrides.md")]
}

/// For whoever is on call: what to ask the control plane, with psql, on each kind of bad day.
pub mod runbook {
    #![doc = include_str!("runbook.md")]
}

/// What happens when a server, a network, a pooler or this process fails, each with the test that shows it.
pub mod what_happens_when {
    #![doc = include_str!("what_happens_when.md")]
}
