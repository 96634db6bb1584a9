//! Keys that a key service keeps wrapped.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use crate::secret::SecretBytes;

use super::KeyId;

/// A key service (a cloud's KMS, Vault's transit engine, an HSM) that wraps the keys of a keyring, so that the file
/// which holds them is worth nothing without the service.
///
/// It is called when a keyring is loaded or refreshed, never on the way of a value that is sealed or opened: a service
/// that is slow or down delays a start, and keeps a running process on the keys that it has.
///
/// # Contract
/// - What [`wrap_key`](KeyWrapper::wrap_key) made of a key, [`unwrap_key`](KeyWrapper::unwrap_key) gives back under the
///   same id, for as long as the service keeps its own key.
/// - The id is public. A service that takes additional data (an "encryption context") should bind it, so that two
///   entries of a file cannot be swapped; biplane checks the id against the unwrapped bytes in any case.
/// - The bytes are kept in types that wipe themselves, and no error, log or `Debug` shows them.
///
/// # Example
/// A service with calls `encrypt` and `decrypt`, as most have:
///
/// ```
/// # use biplane::keyring::{KeyId, KeyWrapper, WrapperError};
/// # use biplane::secret::SecretBytes;
/// # use async_trait::async_trait;
/// # #[derive(Debug)] struct Client;
/// # #[derive(Debug)] enum ClientError { Denied, Network }
/// # impl Client {
/// #     async fn encrypt(&self, _: &str, _: &str, bytes: &[u8]) -> Result<Vec<u8>, ClientError> { Ok(bytes.to_vec()) }
/// #     async fn decrypt(&self, _: &str, _: &str, bytes: &[u8]) -> Result<Vec<u8>, ClientError> { Ok(bytes.to_vec()) }
/// # }
/// use secrecy::{ExposeSecret, SecretBox};
///
/// #[derive(Debug)]
/// struct KeyService {
///     client: Client,
///     master_key: String,
/// }
///
/// #[async_trait]
/// impl KeyWrapper for KeyService {
///     async fn wrap_key(&self, id: KeyId, key: &SecretBytes) -> Result<Vec<u8>, WrapperError> {
///         let context = id.to_string();
///         self.client.encrypt(&self.master_key, &context, key.expose_secret()).await.map_err(said)
///     }
///
///     async fn unwrap_key(&self, id: KeyId, wrapped: &[u8]) -> Result<SecretBytes, WrapperError> {
///         let context = id.to_string();
///         let key = self.client.decrypt(&self.master_key, &context, wrapped).await.map_err(said)?;
///         Ok(SecretBox::new(key.into_boxed_slice()))
///     }
/// }
///
/// fn said(error: ClientError) -> WrapperError {
///     match error {
///         ClientError::Denied => WrapperError::Refused,
///         ClientError::Network => WrapperError::Unavailable,
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use biplane::keyring::{KeyMaterial, KeySource, KeyringFile};
/// # let service = KeyService { client: Client, master_key: "alias/biplane".into() };
/// # let path = std::env::temp_dir().join(format!("biplane-doc-{}.json", std::process::id()));
/// # let _ = std::fs::remove_file(&path);
///
/// // Once, by an operator: only the wrapped form is ever written down.
/// let key = KeyMaterial::generate()?;
/// let wrapped = service.wrap_key(key.id(), &key.to_bytes()).await?;
/// KeyringFile::create(&path, &KeyringFile::wrapped(key.id(), &wrapped))?;
///
/// // By every process, at its start.
/// let source = KeySource::file(&path).unwrapping_with(service);
/// let keyring = source.load().await?;
/// # assert_eq!(keyring.primary(), key.id());
/// # std::fs::remove_file(&path)?;
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait KeyWrapper: Debug + Send + Sync + 'static {
    /// Wraps the 32 bytes of a key.
    ///
    /// # Errors
    /// [`WrapperError`].
    ///
    /// # Cancel safety
    /// Must be safe: nothing may be lost when the caller leaves.
    async fn wrap_key(&self, id: KeyId, key: &SecretBytes) -> Result<Vec<u8>, WrapperError>;

    /// Gives back the 32 bytes of a key.
    ///
    /// # Errors
    /// [`WrapperError`].
    ///
    /// # Cancel safety
    /// Must be safe: it is cancelled when it takes too long.
    async fn unwrap_key(&self, id: KeyId, wrapped: &[u8]) -> Result<SecretBytes, WrapperError>;
}

/// A shared one is one, so that a caller may keep a handle on what it gives to a [`KeySource`](super::KeySource).
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: KeyWrapper + ?Sized> KeyWrapper for Arc<T> {
    async fn wrap_key(&self, id: KeyId, key: &SecretBytes) -> Result<Vec<u8>, WrapperError> {
        T::wrap_key(self, id, key).await
    }

    async fn unwrap_key(&self, id: KeyId, wrapped: &[u8]) -> Result<SecretBytes, WrapperError> {
        T::unwrap_key(self, id, wrapped).await
    }
}

/// Why a key service did not answer with a key. It says which case it is and nothing more: what a service says in words
/// may repeat what it was sent, so log that where the service is called, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum WrapperError {
    /// It could not be asked, and may be later.
    #[error("the key service is unavailable")]
    Unavailable,
    /// It was asked and says no: the caller has no right to the key, or the service's own key is disabled or gone, or
    /// the wrapped key is not of its making.
    #[error("the key service refused")]
    Refused,
    /// It took longer than it was given.
    #[error("the key service did not answer in time")]
    TimedOut,
}

impl WrapperError {
    pub(super) const fn hint(self) -> &'static str {
        match self {
            Self::Unavailable | Self::TimedOut => {
                "look at the key service and the way to it; a running process keeps the keys that it has"
            }
            Self::Refused => {
                "check this process's rights at the key service, and that the key which wraps is enabled there"
            }
        }
    }
}
