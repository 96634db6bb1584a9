//! Who has applied a change.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::distribution::is_presumed_dead;
use crate::{
    error::Error,
    repository::{Instance, Instances},
    tenant::{InstanceId, Seq},
};

/// How often the instances are asked for: often enough for a wait that ends a moment after the last beat, seldom enough
/// for a control plane to be waited on by many.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Waits until every live instance has applied the change log up to `seq`, so that what was changed there acts
/// everywhere: before a database is dropped that tenants were moved from, say.
///
/// An instance tells with its beats (`Heartbeat::builder(…).applied(move || biplane.applied())`, every 10 s, or at once by
/// [`beat_now`](super::Heartbeat::beat_now)) what its router has applied. Who is presumed dead is told by silence
/// as for a [key](super::missing); nobody else is left out. With no instance known there is nothing to wait for, and
/// nothing is known: that is [`NotApplied`] too.
///
/// # Errors
/// [`WaitError::NotApplied`] at the deadline, with those that lag; [`WaitError::Presence`] when the instances could not
/// be asked for, as of the last time.
///
/// # Cancel safety
/// Safe: it only reads.
pub async fn wait_applied(
    instances: &dyn Instances,
    seq: Seq,
    presumed_dead: Duration,
    timeout: Duration,
) -> Result<(), WaitError> {
    let deadline = Instant::now() + timeout;
    loop {
        let outcome = match instances.instances().await {
            Ok(all) => lagging(&all, seq, presumed_dead).map_err(WaitError::NotApplied),
            Err(error) => Err(WaitError::Presence(error)),
        };
        if outcome.is_ok() || Instant::now() >= deadline {
            return outcome;
        }
        sleep_until((Instant::now() + ASK_EVERY).min(deadline)).await;
    }
}

/// Why [`wait_applied`] gave up.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// Some live instance has not applied the change, or none is known.
    #[error(transparent)]
    NotApplied(NotApplied),
    /// The instances could not be asked for.
    #[error("the instances could not be asked for")]
    Presence(#[source] Error),
}

/// A change does not act everywhere yet. The text names the first few instances that lag.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotApplied {
    /// What was to be applied.
    pub seq: Seq,
    /// Who has not applied it, in the order of their ids; empty when no live instance is known.
    pub lagging: Vec<Lagging>,
}

/// An instance that has not applied a change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lagging {
    /// Which instance.
    pub id: InstanceId,
    /// The service that it is a process of.
    pub service: Arc<str>,
    /// What it had applied at its last beat.
    pub applied: Seq,
    /// For how long it has been silent.
    pub silent: Duration,
}

impl fmt::Display for NotApplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to see what they have in common, and one line still.
        const NAMED: usize = 5;
        if self.lagging.is_empty() {
            return write!(
                f,
                "no live instance reports whether it has applied change {}",
                self.seq
            );
        }
        write!(
            f,
            "change {} is not applied by {} instances: ",
            self.seq,
            self.lagging.len()
        )?;
        for (index, one) in self.lagging.iter().take(NAMED).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{} {} (at {})", one.service, one.id, one.applied)?;
        }
        match self.lagging.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

impl std::error::Error for NotApplied {}

fn lagging(all: &[Instance], seq: Seq, presumed_dead: Duration) -> Result<(), NotApplied> {
    let live: Vec<&Instance> = all
        .iter()
        .filter(|instance| !is_presumed_dead(instance, all, presumed_dead))
        .collect();
    let lagging: Vec<Lagging> = live
        .iter()
        .filter(|instance| instance.applied < seq && !cfg!(biplane_mutant = "everybody_has_applied_it"))
        .map(|instance| Lagging {
            id: instance.id,
            service: Arc::clone(&instance.service),
            applied: instance.applied,
            silent: instance.silent,
        })
        .collect();
    if lagging.is_empty() && !live.is_empty() {
        Ok(())
    } else {
        Err(NotApplied { seq, lagging })
    }
}
