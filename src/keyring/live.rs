//! The keyring of a running process, which changes while the process runs.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};

use super::{KeyId, KeySource, KeyState, KeyStatus, Keyring, KeyringError, SourceError, source::Loaded};

/// The keys that a process uses now: a [`Keyring`] that is swapped whole while requests go on.
///
/// Whoever seals or opens takes the [current](LiveKeyring::current) snapshot and works on that, so that no operation
/// sees half a change. A refresh that fails keeps the keys that the process has and says so in its error, in
/// [`health`](LiveKeyring::health) and once in the log.
///
/// It is a [`CredentialSource`](crate::repository::CredentialSource) too. One that meets a key it does not know
/// refreshes at once and tries again, so that a process which was late to hear of a new key does not fail for it.
///
/// Cheap to clone; clones share the keys. `Debug` prints ids and states.
///
/// ```
/// use biplane::keyring::{KeyMaterial, Keyring, KeyringFile, LiveKeyring};
/// # fn main() -> Result<(), biplane::keyring::KeyringError> {
/// let keys = LiveKeyring::new(KeyringFile::new(KeyMaterial::generate()?).into_keyring()?);
/// let before: Keyring = keys.current();
/// keys.swap(KeyringFile::new(KeyMaterial::generate()?).into_keyring()?);
/// assert_ne!(keys.current().primary(), before.primary());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LiveKeyring(Arc<Live>);

struct Live {
    source: Option<KeySource>,
    now: RwLock<Now>,
    /// Held while keys are read and unwrapped, so that of several refreshes at once one works and none is overtaken.
    refreshing: Mutex<()>,
}

struct Now {
    loaded: Loaded,
    loaded_at: Instant,
    /// When the last refresh ended, well or badly.
    tried_at: Instant,
    failing: Option<Failing>,
}

struct Failing {
    since: Instant,
    error: KeyringError,
}

/// What a refresh found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refreshed {
    /// The keys and states that the process has already.
    Unchanged,
    /// Other ones, which are in use now.
    Changed,
}

/// How a running keyring is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyringHealth {
    /// How long ago the keys in use were read, or were found unchanged.
    pub age: Duration,
    /// Why the last refresh failed, if it did. The keys in use are then those from before.
    pub failing: Option<KeyringError>,
    /// For how long refreshes have been failing.
    pub failing_for: Option<Duration>,
}

impl LiveKeyring {
    /// How often [`keep_fresh`](LiveKeyring::keep_fresh) is best called for: every minute. A step of a rotation waits
    /// for it, and a key service is asked for new keys alone.
    pub const REFRESH_EVERY: Duration = Duration::from_secs(60);

    /// How soon after a refresh an unknown key may cause another: 1 s. Values that name keys nobody has must not keep a
    /// process reading its keys.
    const REFRESH_AGAIN_AFTER: Duration = Duration::from_secs(1);

    /// A keyring that was put together in code. It is changed by [`swap`](LiveKeyring::swap).
    #[must_use]
    pub fn new(keyring: Keyring) -> Self {
        Self::with(None, Loaded::swapped_in(keyring))
    }

    /// Loads a keyring from a place that it will be refreshed from.
    ///
    /// # Errors
    /// Those of [`KeySource::load`].
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn load(source: KeySource) -> Result<Self, KeyringError> {
        let loaded = source.load_after(None).await?;
        Ok(Self::with(Some(source), loaded))
    }

    fn with(source: Option<KeySource>, loaded: Loaded) -> Self {
        let now = Instant::now();
        Self(Arc::new(Live {
            source,
            now: RwLock::new(Now {
                loaded,
                loaded_at: now,
                tried_at: now,
                failing: None,
            }),
            refreshing: Mutex::new(()),
        }))
    }

    /// The keys as they are now.
    #[must_use]
    pub fn current(&self) -> Keyring {
        self.read(|now| now.loaded.keyring.clone())
    }

    /// All keys with how often each was used since the process first loaded it.
    #[must_use]
    pub fn status(&self) -> Vec<KeyStatus> {
        self.current().status().collect()
    }

    /// Swaps in another keyring, whatever it holds, and returns the one before. What is in progress goes on with that.
    pub fn swap(&self, keyring: Keyring) -> Keyring {
        self.replace(Loaded::swapped_in(keyring))
    }

    /// Reads the keys anew and swaps them in, if they are other ones. A key that has been unwrapped before is not
    /// unwrapped again unless its wrap has changed.
    ///
    /// # Errors
    /// Those of [`KeySource::load`]; [`KeyringError::KeyVanished`] when a key of the keyring in use is missing, not even
    /// a tombstone, which is what a file that was cut short or mixed up looks like; [`KeyringError::KeyDestroyed`] when a
    /// destroyed key comes back; [`KeyringError::Source`] when the keyring has no source. In each case the keys stay as
    /// they were.
    ///
    /// # Cancel safety
    /// Safe: the keys are the old ones or the new ones.
    pub async fn refresh(&self) -> Result<Refreshed, KeyringError> {
        let _alone = self.0.refreshing.lock().await;
        self.refresh_alone().await
    }

    /// How it is.
    #[must_use]
    pub fn health(&self) -> KeyringHealth {
        self.read(|now| KeyringHealth {
            age: now.loaded_at.elapsed(),
            failing: now.failing.as_ref().map(|failing| failing.error.clone()),
            failing_for: now.failing.as_ref().map(|failing| failing.since.elapsed()),
        })
    }

    /// Refreshes the keys again and again, [so often](LiveKeyring::REFRESH_EVERY) as is given, until what it returns is
    /// dropped. A zero is taken for a second.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    #[must_use = "the keys are kept fresh until this is dropped"]
    pub fn keep_fresh(&self, every: Duration) -> KeepFresh {
        let every = every.max(Duration::from_secs(1));
        let keyring = self.clone();
        KeepFresh(tokio::spawn(async move {
            let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // What went wrong is kept in the health of the keyring, and logged.
                let _ = keyring.refresh().await;
            }
        }))
    }

    /// Refreshes because of a key that is unknown or disabled here and may be neither where the keys come from. Says
    /// whether it can be tried once more.
    pub(crate) async fn refresh_for(&self, id: KeyId) -> bool {
        if self.0.source.is_none() {
            return false;
        }
        let _alone = self.0.refreshing.lock().await;
        // Whoever held the lock may have brought the key.
        let opens = || self.current().state(id).is_some_and(KeyState::opens);
        if opens() {
            return true;
        }
        if self.read(|now| now.tried_at.elapsed()) < Self::REFRESH_AGAIN_AFTER
            && !cfg!(biplane_mutant = "unknown_keys_refresh_each_time")
        {
            return false;
        }
        self.refresh_alone().await.is_ok() && opens()
    }

    async fn refresh_alone(&self) -> Result<Refreshed, KeyringError> {
        let source = self
            .0
            .source
            .as_ref()
            .ok_or(KeyringError::Source(SourceError::NoSource))?;
        let before = self.read(|now| now.loaded.clone());
        let loaded = source.load_after(Some(&before)).await;
        match loaded.and_then(|loaded| check_succession(&before.keyring, &loaded.keyring).map(|()| loaded)) {
            Ok(loaded) => {
                let changed = !before.keyring.states().eq(loaded.keyring.states());
                self.replace(loaded);
                if changed {
                    tracing::info!(keys = ?self.current(), "the keyring has changed");
                    Ok(Refreshed::Changed)
                } else {
                    Ok(Refreshed::Unchanged)
                }
            }
            Err(error) => {
                self.failed(error.clone());
                Err(error)
            }
        }
    }

    fn replace(&self, loaded: Loaded) -> Keyring {
        self.write(|now| {
            let before = now.loaded.keyring.clone();
            now.loaded = loaded.counting_on(&before);
            now.loaded_at = Instant::now();
            now.tried_at = now.loaded_at;
            if let Some(failing) = now.failing.take() {
                let after = failing.since.elapsed();
                tracing::info!(?after, "the keyring can be refreshed again");
            }
            before
        })
    }

    fn failed(&self, error: KeyringError) {
        self.write(|now| {
            now.tried_at = Instant::now();
            match &mut now.failing {
                Some(failing) => failing.error = error,
                None => {
                    tracing::warn!(
                        %error, hint = error.hint(),
                        "the keyring was not refreshed and stays as it was"
                    );
                    let since = now.tried_at;
                    now.failing = Some(Failing { since, error });
                }
            }
        });
    }

    /// The lock is never held across an await. A poisoned one is used on: every write is a few assignments.
    fn read<T>(&self, look: impl FnOnce(&Now) -> T) -> T {
        look(&self.0.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, work: impl FnOnce(&mut Now) -> T) -> T {
        work(&mut self.0.now.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for LiveKeyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveKeyring").field(&self.current()).finish()
    }
}

/// The task of [`LiveKeyring::keep_fresh`]. It ends when this is dropped.
#[derive(Debug)]
pub struct KeepFresh(JoinHandle<()>);

impl Drop for KeepFresh {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether one keyring may follow another in a running process.
fn check_succession(before: &Keyring, after: &Keyring) -> Result<(), KeyringError> {
    for (id, state) in before.states() {
        match (state, after.state(id)) {
            _ if cfg!(biplane_mutant = "keys_may_vanish") => {}
            (_, None) => return Err(KeyringError::KeyVanished(id)),
            (KeyState::Destroyed, Some(now)) if now != KeyState::Destroyed => {
                return Err(KeyringError::KeyDestroyed(id));
            }
            _ => {}
        }
    }
    Ok(())
}
