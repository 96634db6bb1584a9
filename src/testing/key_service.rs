//! A key service that fails when it is told to.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use secrecy::ExposeSecret;
use tokio::sync::watch;

use crate::{
    keyring::{
        Context, KeyId, KeyMaterial, KeyState, KeyWrapper, Keyring, KeyringError, Sealed, WrapperError,
    },
    secret::SecretBytes,
};

/// A key service in this process, in place of a cloud's: it wraps with a key that it makes up for itself and that goes
/// with it.
///
/// A test decides what becomes of each call, and sees how many there were. It never sleeps for luck:
/// [`MemoryKeyService::reached`] waits until calls have come in, and those that hang go on when the fault is changed.
///
/// A clone is another handle on the same service. `Debug` prints the number of calls.
///
/// ```
/// use biplane::{
///     keyring::{KeyMaterial, KeySource, KeyWrapper, KeyringFile},
///     testing::{KeyServiceFault, MemoryKeyService},
/// };
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("keys.json");
/// let service = MemoryKeyService::new()?;
/// let key = KeyMaterial::generate()?;
/// let wrapped = service.wrap_key(key.id(), &key.to_bytes()).await?;
/// KeyringFile::create(&path, &KeyringFile::wrapped(key.id(), &wrapped))?;
///
/// let source = KeySource::file(&path).unwrapping_with(service.clone());
/// assert_eq!(source.load().await?.primary(), key.id());
///
/// service.set_fault(KeyServiceFault::Unavailable);
/// assert!(source.load().await.is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryKeyService(Arc<Service>);

struct Service {
    wrapping: Keyring,
    fault: watch::Sender<KeyServiceFault>,
    unwraps: watch::Sender<usize>,
}

/// What becomes of a call of [`MemoryKeyService`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyServiceFault {
    /// It is answered.
    #[default]
    None,
    /// It fails with [`WrapperError::Unavailable`].
    Unavailable,
    /// It fails with [`WrapperError::Refused`].
    Refused,
    /// It waits until the fault is changed, and then does what that says. Left alone, it hangs for ever.
    Hang,
    /// Unwrapping gives 32 bytes that are not those that were wrapped.
    WrongKey,
    /// Unwrapping gives the bytes without the last one.
    Short,
}

impl MemoryKeyService {
    /// A service with a new key of its own.
    ///
    /// # Errors
    /// [`KeyringError::Rng`].
    pub fn new() -> Result<Self, KeyringError> {
        let wrapping = Keyring::builder()
            .key(KeyMaterial::generate()?, KeyState::Primary)
            .build()?;
        Ok(Self(Arc::new(Service {
            wrapping,
            fault: watch::Sender::new(KeyServiceFault::None),
            unwraps: watch::Sender::new(0),
        })))
    }

    /// Decides what becomes of calls from now on, those that hang among them.
    pub fn set_fault(&self, fault: KeyServiceFault) {
        self.0.fault.send_replace(fault);
    }

    /// How many keys it was asked to unwrap.
    #[must_use]
    pub fn unwraps(&self) -> usize {
        *self.0.unwraps.borrow()
    }

    /// Waits until it has been asked to unwrap so many keys.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn reached(&self, unwraps: usize) {
        let mut seen = self.0.unwraps.subscribe();
        // It ends with the service, which this borrows.
        let _ = seen.wait_for(|now| *now >= unwraps).await;
    }

    async fn fault(&self) -> Result<KeyServiceFault, WrapperError> {
        let mut fault = self.0.fault.subscribe();
        let settled = fault.wait_for(|fault| *fault != KeyServiceFault::Hang).await;
        match settled
            .map(|fault| *fault)
            .map_err(|_| WrapperError::Unavailable)?
        {
            KeyServiceFault::Unavailable => Err(WrapperError::Unavailable),
            KeyServiceFault::Refused => Err(WrapperError::Refused),
            other => Ok(other),
        }
    }
}

#[async_trait]
impl KeyWrapper for MemoryKeyService {
    async fn wrap_key(&self, id: KeyId, key: &SecretBytes) -> Result<Vec<u8>, WrapperError> {
        self.fault().await?;
        let owner = id.to_string();
        let wrapped = Context::new("key service", &owner, "wrapped key")
            .and_then(|context| self.0.wrapping.seal(&context, key.expose_secret()))
            .map_err(|_| WrapperError::Unavailable)?;
        Ok(wrapped.as_bytes().to_vec())
    }

    async fn unwrap_key(&self, id: KeyId, wrapped: &[u8]) -> Result<SecretBytes, WrapperError> {
        self.0.unwraps.send_modify(|unwraps| *unwraps += 1);
        let fault = self.fault().await?;
        let owner = id.to_string();
        let key = Context::new("key service", &owner, "wrapped key")
            .and_then(|context| self.0.wrapping.open(&context, &Sealed::from_bytes(wrapped)?))
            .map_err(|_| WrapperError::Refused)?;
        let key = key.expose_secret();
        Ok(match fault {
            KeyServiceFault::WrongKey => key.iter().rev().copied().collect::<Box<[u8]>>().into(),
            KeyServiceFault::Short => Box::<[u8]>::from(&key[..key.len().saturating_sub(1)]).into(),
            _ => Box::<[u8]>::from(key).into(),
        })
    }
}

impl fmt::Debug for MemoryKeyService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryKeyService")
            .field("unwraps", &self.unwraps())
            .finish_non_exhaustive()
    }
}
