//! The evidence that nothing needs a key any more.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use crate::{
    error::Error,
    keyring::{KeyId, KeyState, Unused},
    presence::{self, PRESUMED_DEAD},
    repository::{Instance, Instances},
    tenant::InstanceId,
};

use super::{Report, RotationError, SealedStore};

/// How long nobody may have opened anything under a key before it counts as out of use: 5 minutes.
///
/// A process opens a credential from the route that it knows, which is fresh for 30 s; after that it asks, and gets what
/// was sealed anew. Ten times as long leaves room for beats that are late. A route that is older, because the control
/// plane could not be asked, is no gap in this: who cannot ask cannot beat either, and who does not beat is not quiet.
pub const QUIET_FOR: Duration = Duration::from_secs(300);

/// For how long the last word of an instance stands. Beats are at most 30 s apart; a minute lets one be lost.
const LAST_WORD_STANDS: Duration = Duration::from_secs(60);

/// Proves that a key is out of use, which [disabling](crate::keyring::KeyringFile::disable) it asks for: no value is
/// sealed under it in any of these stores, no live instance still seals under it, and none has opened anything under it
/// for `quiet_for` (see [`QUIET_FOR`]).
///
/// An instance that is silent, or reports no keys, cannot be shown not to use it, and stands in the way until it speaks,
/// leaves, or is [presumed dead](PRESUMED_DEAD). So does the absence of any instance, and of presence itself (`None`):
/// then make sure by your own means, and say so by [`Unused::confirmed_by_hand`].
///
/// It can only speak of the stores that it is given: name every table that holds sealed values. Backups are not seen.
///
/// # Errors
/// [`RotationError::StillUsed`] with everything that stands in the way; [`RotationError::Store`],
/// [`RotationError::Presence`], [`RotationError::NoStore`].
///
/// # Cancel safety
/// Safe: it only reads.
pub async fn unused(
    key: KeyId,
    stores: &[&dyn SealedStore],
    instances: Option<&dyn Instances>,
    quiet_for: Duration,
) -> Result<Unused, RotationError> {
    if stores.is_empty() {
        return Err(RotationError::NoStore);
    }
    let mut still = StillUsed {
        key,
        values: Vec::new(),
        instances: Vec::new(),
        unwatched: instances.is_none(),
    };
    // Instances first: one that seals under the key until now is found here, and what it sealed is found below.
    if let Some(instances) = instances {
        let (users, live) = users(instances, key, quiet_for)
            .await
            .map_err(RotationError::Presence)?;
        still.instances = users;
        still.unwatched = live == 0;
    }
    for store in stores {
        let census = store.census().await.map_err(|source| RotationError::Store {
            store: store.name().into(),
            source,
            report: Box::new(Report::default()),
        })?;
        if census.under(key) > 0 {
            still.values.push((store.name().into(), census.under(key)));
        }
    }
    if still.values.is_empty() && still.instances.is_empty() && !still.unwatched {
        Ok(Unused::proven(key))
    } else {
        Err(RotationError::StillUsed(Box::new(still)))
    }
}

/// What stands in the way of disabling a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StillUsed {
    /// Which key.
    pub key: KeyId,
    /// The stores that have values under it, with how many.
    pub values: Vec<(Arc<str>, u64)>,
    /// The instances that use it, or may.
    pub instances: Vec<KeyUser>,
    /// Whether no live instance is known, so that nobody can say that none uses it.
    pub unwatched: bool,
}

/// An instance that uses a key, or may.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyUser {
    /// Which instance.
    pub id: InstanceId,
    /// The service that it is a process of.
    pub service: Arc<str>,
    /// How.
    pub how: Use,
}

/// How an instance uses a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Use {
    /// The key is primary there: it has not loaded the present keyring.
    Seals,
    /// It opened a value, or tried to, so long ago.
    Opened(Duration),
    /// It has been silent for so long.
    Silent(Duration),
    /// It does not report its keys.
    SaysNothing,
}

async fn users(
    instances: &dyn Instances,
    key: KeyId,
    quiet_for: Duration,
) -> Result<(Vec<KeyUser>, usize), Error> {
    let distribution = presence::missing(instances, key, PRESUMED_DEAD).await?;
    let dead: BTreeSet<InstanceId> = distribution.presumed_dead.iter().map(|dead| dead.id).collect();
    let mut all = instances.instances().await?;
    all.retain(|instance| !dead.contains(&instance.id));
    let users = all.iter().filter_map(|instance| {
        Some(KeyUser {
            id: instance.id,
            service: Arc::clone(&instance.service),
            how: how(instance, key, quiet_for)?,
        })
    });
    Ok((users.collect(), all.len()))
}

/// `None` when the instance is shown not to use the key.
fn how(instance: &Instance, key: KeyId, quiet_for: Duration) -> Option<Use> {
    if instance.silent >= LAST_WORD_STANDS {
        return Some(Use::Silent(instance.silent));
    }
    if instance.keys.is_empty() {
        return Some(Use::SaysNothing);
    }
    let held = instance.keys.iter().find(|held| held.report.id == key)?;
    if held.report.state == KeyState::Primary {
        return Some(Use::Seals);
    }
    // What it did since its last word is not known, so the quiet ends there.
    let quiet = held.idle.saturating_sub(instance.silent);
    let quiet = match cfg!(biplane_mutant = "recent_opens_do_not_matter") {
        true => quiet_for,
        false => quiet,
    };
    (quiet < quiet_for).then_some(Use::Opened(held.idle))
}

impl fmt::Display for StillUsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "key {}:", self.key)?;
        for (store, values) in &self.values {
            writeln!(f, "  {store}: {values} values under it")?;
        }
        for user in &self.instances {
            writeln!(f, "  {user}")?;
        }
        if self.unwatched {
            writeln!(
                f,
                "  no live instance is known, so nobody says whether it is used"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for KeyUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instance {} of {:?} ", self.id, self.service)?;
        match self.how {
            Use::Seals => write!(f, "still seals under it"),
            Use::Opened(ago) => write!(f, "opened a value under it {} s ago", ago.as_secs()),
            Use::Silent(silent) => write!(f, "has been silent for {} s", silent.as_secs()),
            Use::SaysNothing => write!(f, "does not report its keys"),
        }
    }
}
