//! The brake: what would close or move many open tenants at once is held until somebody says that it is meant.
//!
//! This is the count and its state. What is counted, and what becomes of a tenant that is held, is in
//! [`holding`](super::holding).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use crate::{
    repository::ChangeHead,
    router::{BrakeOptions, clock},
    tenant::{Seq, TenantId},
};

/// How often whoever reads the log is reminded.
const REMINDER: u64 = 60_000;

/// Whether a router holds changes back, and why. See [`BrakeOptions`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrakeHealth {
    /// For how long the brake has held changes; `None` while it does not.
    pub braked_for: Option<Duration>,
    /// How many open tenants would have been closed or moved within the window when it engaged; 0 while it holds nothing.
    pub changed: usize,
    /// Of how many open tenants.
    pub of: usize,
    /// How often it has engaged.
    pub engaged: u64,
    /// For how long [`Biplane::freeze`](crate::Biplane::freeze) has frozen this process.
    pub frozen_here: Option<Duration>,
    /// For how long this process has known that the control plane has frozen all.
    pub frozen_everywhere: Option<Duration>,
    /// Open tenants that are served as they were, although they are known to be closed or elsewhere, or to have been
    /// changed. Their routes grow old, and end as [`CacheOptions`](crate::router::CacheOptions) say.
    pub held_tenants: usize,
}

/// Kept under the router's lock.
#[derive(Debug, Default)]
pub(super) struct Brake {
    options: Option<BrakeOptions>,
    /// Open tenants whose changes were let through, and when that was.
    recent: HashMap<TenantId, u64>,
    /// Those of them, and of those that were let go, that are still to be read: what is read next may close or move them.
    passes: HashSet<TenantId>,
    held: HashSet<TenantId>,
    sample: Sample,
    engaged: Option<Engaged>,
    engagements: u64,
    frozen_here: Option<u64>,
    frozen_everywhere: Option<u64>,
    /// Up to where an administrator has let changes through.
    released: Seq,
    due: Option<Due>,
    reminded_at: u64,
}

/// What the control plane has said and is not done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Release,
    Thaw,
}

#[derive(Clone, Copy, Debug)]
struct Engaged {
    at: u64,
    changed: usize,
    of: usize,
}

/// Tenants of which changes may have been missed and that were read again since. They come in batches, in an order that
/// has nothing to do with what became of them, so that a few hundred tell of all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    pub(super) looked_at: usize,
    pub(super) changed: usize,
}

impl Brake {
    pub(super) fn new(options: Option<BrakeOptions>) -> Self {
        Self {
            options,
            ..Self::default()
        }
    }

    /// Whether changes are held.
    pub(super) const fn holds(&self) -> bool {
        self.engaged.is_some() || self.is_frozen()
    }

    pub(super) const fn is_frozen(&self) -> bool {
        (self.frozen_here.is_some() || self.frozen_everywhere.is_some())
            && !cfg!(biplane_mutant = "freezing_holds_nothing")
    }

    pub(super) fn is_held(&self, tenant: TenantId) -> bool {
        self.held.contains(&tenant)
    }

    pub(super) fn held_tenants(&self) -> usize {
        self.held.len()
    }

    pub(super) fn may_pass(&self, tenant: TenantId) -> bool {
        self.passes.contains(&tenant)
    }

    /// Whether a change that the log has at this position is one that was let through.
    pub(super) fn is_released(&self, seq: Seq) -> bool {
        seq <= self.released && !cfg!(biplane_mutant = "releases_come_too_late")
    }

    /// Whether these open tenants may be closed or moved now. If so they are counted; if not, they are to be held. `others`
    /// counts the open tenants that are not among those that it is given.
    pub(super) fn admits(
        &mut self,
        tenants: &BTreeSet<TenantId>,
        sample: Sample,
        others: impl FnOnce(&HashMap<TenantId, u64>) -> usize,
        now: u64,
    ) -> bool {
        self.sample.looked_at += sample.looked_at;
        self.sample.changed += sample.changed;
        if tenants.is_empty() {
            return true;
        }
        if self.holds() {
            return false;
        }
        if let Some(options) = self.options {
            let window = clock::millis(options.window);
            self.recent.retain(|_, at| {
                now.saturating_sub(*at) < window
                    && !cfg!(biplane_mutant = "brake_forgets_what_was_let_through")
            });
            if let Some(engaged) = self.line_crossed(&options, tenants, others, now) {
                self.engage(&options, engaged);
                return false;
            }
            self.recent.extend(tenants.iter().map(|tenant| (*tenant, now)));
        }
        self.let_pass(tenants.iter().copied());
        true
    }

    fn line_crossed(
        &self,
        options: &BrakeOptions,
        tenants: &BTreeSet<TenantId>,
        others: impl FnOnce(&HashMap<TenantId, u64>) -> usize,
        now: u64,
    ) -> Option<Engaged> {
        let engaged = |changed, of| Engaged { at: now, changed, of };
        let Sample { looked_at, changed } = self.sample;
        if options.stops(changed, looked_at) && !cfg!(biplane_mutant = "resyncs_are_not_braked") {
            return Some(engaged(changed, looked_at));
        }
        let new = tenants.iter().filter(|tenant| !self.recent.contains_key(tenant));
        let changed = self.recent.len() + new.count();
        // Not worth a count of all: below this no number of them is too few.
        if !options.stops(changed, options.at_least) {
            return None;
        }
        let of = self.recent.len() + others(&self.recent);
        options.stops(changed, of).then(|| engaged(changed, of))
    }

    fn engage(&mut self, options: &BrakeOptions, engaged: Engaged) {
        self.engaged = Some(engaged);
        self.engagements += 1;
        self.reminded_at = engaged.at;
        let Engaged { changed, of, .. } = engaged;
        tracing::error!(
            changed,
            of,
            percent = options.percent,
            "the brake holds changes that would close or move so many of the open tenants at once; they are served as they \
             were. If it is meant, let it through: select biplane_control.release_brake(), or Biplane::release_brake"
        );
    }

    /// Tells again what holds, once in a while.
    pub(super) fn remind(&mut self, now: u64) {
        if !self.holds()
            || now.saturating_sub(self.reminded_at) < REMINDER
            || cfg!(biplane_mutant = "brake_is_not_told_again")
        {
            return;
        }
        self.reminded_at = now;
        let held_tenants = self.held.len();
        match self.engaged {
            Some(engaged) => {
                let seconds = now.saturating_sub(engaged.at) / 1_000;
                tracing::error!(
                    held_tenants,
                    seconds,
                    "the brake still holds changes; release it or undo them"
                );
            }
            None => tracing::warn!(held_tenants, "routing is still frozen"),
        }
    }

    /// A tenant is served as it was.
    pub(super) fn hold(&mut self, tenant: TenantId) {
        self.passes.remove(&tenant);
        self.held.insert(tenant);
    }

    pub(super) fn let_pass(&mut self, tenants: impl IntoIterator<Item = TenantId>) {
        self.passes.extend(tenants);
    }

    /// Whatever was known of a tenant has been replaced or forgotten.
    pub(super) fn forget(&mut self, tenant: TenantId) {
        self.passes.remove(&tenant);
        self.held.remove(&tenant);
    }

    /// Tenants that are not held any more, and what is read of them next counts.
    pub(super) fn let_go(&mut self) -> Vec<TenantId> {
        if self.holds() {
            return Vec::new();
        }
        let held: Vec<_> = self.held.drain().collect();
        self.let_pass(held.iter().copied());
        held
    }

    pub(super) fn release(&mut self) {
        self.recent.clear();
        self.sample = Sample::default();
        if self.engaged.take().is_some() {
            tracing::warn!(held_tenants = self.held.len(), "the brake was released");
        }
    }

    pub(super) fn freeze(&mut self, now: u64) {
        if self.frozen_here.is_none() {
            self.frozen_here = Some(now);
            self.reminded_at = now;
            tracing::warn!("routing is frozen in this process");
        }
    }

    pub(super) fn thaw(&mut self) {
        if self.frozen_here.take().is_some() {
            tracing::warn!(
                held_tenants = self.held.len(),
                "routing is not frozen in this process any more"
            );
        }
    }

    /// What the control plane says beside its changes.
    pub(super) fn hear(&mut self, head: &ChangeHead, now: u64) {
        match (self.frozen_everywhere, head.frozen) {
            (None, true) => {
                self.frozen_everywhere = Some(now);
                self.reminded_at = now;
                tracing::warn!("routing is frozen by the control plane");
            }
            (Some(_), false) => {
                self.frozen_everywhere = None;
                self.due = self.due.or(Some(Due::Thaw));
                tracing::warn!(
                    held_tenants = self.held.len(),
                    "routing is not frozen by the control plane any more"
                );
            }
            _ => {}
        }
        if head.released > self.released {
            self.released = head.released;
            self.due = Some(Due::Release);
        }
    }

    pub(super) fn take_due(&mut self) -> Option<Due> {
        self.due.take()
    }

    /// The control plane is followed from here on. What was let through before, nobody has held.
    pub(super) fn begin(&mut self, head: &ChangeHead, now: u64) {
        self.hear(head, now);
        self.due = None;
    }

    /// Changes may have been missed, so that everything is read again.
    pub(super) fn begin_sample(&mut self) {
        self.sample = Sample::default();
    }

    /// Positions of the life before say nothing any more.
    pub(super) fn other_life(&mut self) {
        self.released = Seq::ZERO;
        self.begin_sample();
    }

    pub(super) fn health(&self, now: u64) -> BrakeHealth {
        let since = |then: u64| Duration::from_millis(now.saturating_sub(then));
        BrakeHealth {
            braked_for: self.engaged.map(|engaged| since(engaged.at)),
            changed: self.engaged.map_or(0, |engaged| engaged.changed),
            of: self.engaged.map_or(0, |engaged| engaged.of),
            engaged: self.engagements,
            frozen_here: self.frozen_here.map(since),
            frozen_everywhere: self.frozen_everywhere.map(since),
            held_tenants: self.held.len(),
        }
    }
}
