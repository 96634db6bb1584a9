//! Pages to read, one for each module here. There is no code.

/// Every kind of error: HTTP status, gRPC code, and what to do.
pub mod errors {
    #![doc = include_str!("errors.md")]
}

/// The fence in a data-plane database: what it guarantees and what not, the grants, and the commands.
pub mod fence {
    #![doc = include_str!("fence.md")]
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

/// What happens when a server, a network, a pooler or this process fails, each with the test that shows it.
pub mod what_happens_when {
    #![doc = include_str!("what_happens_when.md")]
}
