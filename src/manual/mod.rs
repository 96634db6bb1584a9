//! Pages to read, one for each module here. There is no code.

/// The format of sealed values: enough to write another opener and sealer, in any language.
pub mod keyring_format {
    #![doc = include_str!("keyring_format.md")]
}
