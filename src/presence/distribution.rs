//! Who has a key.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    error::Error,
    keyring::{Distributed, KeyId, KeyState},
    repository::{Instance, Instances},
    tenant::InstanceId,
};

/// For how long an instance must have been silent, while another was heard, before it is presumed dead: 5 minutes. A
/// process that could not reach the control plane for so long cannot read what has newly been sealed there either. A
/// shorter time would let a short outage promote a key early; a longer one would let each process that crashed hold up a
/// rotation for longer.
pub const PRESUMED_DEAD: Duration = Duration::from_secs(300);

/// Asks which instances have a key loaded so that it opens, and which lack it.
///
/// Silence proves nothing by itself: after an outage of the control plane everybody has been silent. An instance is
/// presumed dead only when it was silent for `presumed_dead` (see [`PRESUMED_DEAD`]) in which another one was heard all
/// the time. Until then one that is silent so long counts as lacking the key, whatever it said before.
///
/// An instance that reports no keys at all counts as lacking too: what it does not say is not known.
///
/// # Errors
/// Those of [`Instances::instances`].
///
/// # Cancel safety
/// Safe: reads only.
pub async fn missing(
    instances: &dyn Instances,
    key: KeyId,
    presumed_dead: Duration,
) -> Result<Distribution, Error> {
    Ok(Distribution::of(instances.instances().await?, key, presumed_dead))
}

/// Who has a key, in groups that together are all instances. Each is in the order of the instances' ids.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Distribution {
    /// Which key.
    pub key: KeyId,
    /// Those that live and have it in a state in which it opens.
    pub ready: Vec<Holder>,
    /// Those that lack it, have it in a state in which it does not open, or have been silent for too long to vouch for
    /// having it, though not long enough to be presumed dead.
    pub lacking: Vec<Holder>,
    /// Those that are presumed dead, whatever they had. An operator who knows that one of them lives waits for it.
    pub presumed_dead: Vec<Holder>,
}

/// An instance, and what it last said about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Which instance.
    pub id: InstanceId,
    /// The service that it is a process of.
    pub service: Arc<str>,
    /// For how long it has been silent.
    pub silent: Duration,
    /// The state in which it last reported the key; `None` when it did not report it.
    pub state: Option<KeyState>,
}

impl Distribution {
    fn of(instances: Vec<Instance>, key: KeyId, presumed_dead: Duration) -> Self {
        let mut distribution = Self {
            key,
            ready: Vec::new(),
            lacking: Vec::new(),
            presumed_dead: Vec::new(),
        };
        for instance in &instances {
            let held = instance.keys.iter().find(|held| held.report.id == key);
            let holder = Holder {
                id: instance.id,
                service: Arc::clone(&instance.service),
                silent: instance.silent,
                state: held.map(|held| held.report.state),
            };
            let opens = holder.state.is_some_and(KeyState::opens);
            let silent =
                instance.silent >= presumed_dead && !cfg!(biplane_mutant = "silent_instances_count_as_ready");
            let group = if silent && is_presumed_dead(instance, &instances, presumed_dead) {
                &mut distribution.presumed_dead
            } else if opens && !silent {
                &mut distribution.ready
            } else {
                &mut distribution.lacking
            };
            group.push(holder);
        }
        distribution
    }

    /// Whether the key can be promoted: some instance has it, and none lacks it. False when no instance is known, because
    /// nothing is known then.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        self.lacking.is_empty() && !self.ready.is_empty()
    }

    /// The evidence that [`KeyringFile::promote`](crate::keyring::KeyringFile::promote) wants.
    ///
    /// # Errors
    /// [`NotEverywhere`], which lists the instances that lack the key, unless the key [is
    /// everywhere](Distribution::is_everywhere).
    pub fn evidence(self) -> Result<Distributed, NotEverywhere> {
        if self.is_everywhere() || cfg!(biplane_mutant = "any_distribution_is_evidence") {
            Ok(Distributed::proven(self.key))
        } else {
            Err(NotEverywhere(Box::new(self)))
        }
    }
}

/// A key cannot be promoted yet: some instance lacks it, or no instance is known at all. The text names the first few that
/// lack it, by service and id; the [`Distribution`] has all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotEverywhere(Box<Distribution>);

impl NotEverywhere {
    /// Who has the key and who lacks it.
    #[must_use]
    pub fn distribution(&self) -> &Distribution {
        &self.0
    }
}

impl fmt::Display for NotEverywhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to see what they have in common, and one line still.
        const NAMED: usize = 5;
        let Distribution {
            key, ready, lacking, ..
        } = &*self.0;
        if lacking.is_empty() {
            return write!(
                f,
                "no instance reports key {key}: where processes send no heartbeat, confirm by hand that all have it"
            );
        }
        write!(
            f,
            "key {key} is missing in {} of {} instances: ",
            lacking.len(),
            lacking.len() + ready.len()
        )?;
        for (index, holder) in lacking.iter().take(NAMED).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{} {}", holder.service, holder.id)?;
            if let Some(state) = holder.state.filter(|state| !state.opens()) {
                write!(f, " (has it {state})")?;
            }
        }
        match lacking.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

impl std::error::Error for NotEverywhere {}

/// Whether it was silent for so long, while another was heard.
pub(super) fn is_presumed_dead(instance: &Instance, all: &[Instance], presumed_dead: Duration) -> bool {
    instance.silent >= presumed_dead && missed(instance, all) >= presumed_dead
}

/// For how long the instance was silent while another was heard without a gap, so that the control plane could be reached.
fn missed(instance: &Instance, all: &[Instance]) -> Duration {
    if cfg!(biplane_mutant = "outages_are_taken_for_deaths") {
        return instance.silent;
    }
    let heard = |other: &Instance| instance.silent.saturating_sub(other.silent).min(other.steady);
    all.iter().map(heard).max().unwrap_or_default()
}
