use crate::keyring::KeyId;
use std::sync::Arc;
/// Why
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StillUsed {
    /// The key.
    pub key: KeyId,
    /// Values.
    pub values: Vec<(Arc<str>, u64)>,
}
