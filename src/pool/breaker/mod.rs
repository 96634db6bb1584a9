//! Breakers: what is known to fail is not tried again and again.
//!
//! There is one for each endpoint and one for each login, kept apart from the stacks that use them, so that a stack may
//! be replaced without its breakers being forgotten. One that is closed and that nobody has used for a while is dropped;
//! it would be made again as it was.
//!
//! All of them are under one lock, which is held for moments: to let an attempt through, and to hear how it ended. What
//! follows from a change, log lines included, is done by the caller once the lock is released.

mod entry;
mod log;
mod machine;
mod options;

use std::{
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

pub(super) use self::machine::{Admission, Outcome, Ticket, Weight};
pub use self::options::BreakerOptions;
use self::{
    entry::{Entries, Entry},
    log::{Line, Outage},
    machine::State,
};
use super::{
    locked,
    scheduler::{Leave, StackId},
};
use crate::{
    breaker::{BreakerScope, BreakerState, BreakerStatus},
    error::Error,
    tenant::{CredentialVersion, DataSourceId, Endpoint, Role, TenantId},
};

/// Breakers of one process.
#[derive(Debug)]
pub(super) struct Breakers {
    options: BreakerOptions,
    entries: Mutex<Entries>,
}

/// Which breakers an attempt goes by.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    login: BreakerScope,
    endpoints: Box<[BreakerScope]>,
}

impl Guard {
    /// The breakers of a login at these endpoints: of everybody who uses it, or of one tenant alone.
    pub(crate) fn new(
        source: DataSourceId,
        role: Role,
        version: CredentialVersion,
        tenant: Option<TenantId>,
        endpoints: &[Endpoint],
    ) -> Self {
        let shares = cfg!(biplane_mutant = "overridden_logins_share_breakers");
        Self {
            login: BreakerScope::Login {
                source,
                role,
                version,
                tenant: tenant.filter(|_| !shares),
            },
            endpoints: endpoints.iter().cloned().map(BreakerScope::Endpoint).collect(),
        }
    }

    pub(super) const fn login(&self) -> &BreakerScope {
        &self.login
    }

    pub(super) fn endpoint(&self, index: usize) -> &BreakerScope {
        &self.endpoints[index]
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &BreakerScope> {
        std::iter::once(&self.login).chain(&self.endpoints)
    }
}

/// The way is free for an attempt: to this endpoint first, with these tickets.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) index: usize,
    pub(super) endpoint: Ticket,
    pub(super) login: Ticket,
}

/// What follows from the end of an attempt.
#[derive(Debug, Default)]
#[must_use = "somebody may have to be told"]
pub(super) struct Effects {
    /// It has opened: whoever waits for nothing else is told.
    pub(super) opened: bool,
    line: Option<Line>,
}

impl Breakers {
    pub(super) fn new(options: BreakerOptions) -> Self {
        Self {
            options,
            entries: Mutex::default(),
        }
    }

    /// Whether an attempt would be let through, to any endpoint. A refusal counts as one.
    pub(super) fn look(&self, guard: &Guard, now: Instant) -> Admission<()> {
        let mut entries = self.entries();
        let looked = entries.look(guard, now).map(|_| ());
        if let Admission::Refused(_) = looked {
            entries.count_refused(guard, 1, now);
            if cfg!(biplane_mutant = "each_refusal_is_logged") {
                tracing::warn!(breaker = %guard.login(), "refused");
            }
        }
        looked
    }

    /// The same for callers who came before, that many of whom are now told.
    pub(super) fn count_refused(&self, guard: &Guard, callers: usize, now: Instant) {
        self.entries().count_refused(guard, callers as u64, now);
    }

    /// For how long an attempt would be refused, if it would be.
    pub(super) fn refuses(&self, guard: &Guard, now: Instant) -> Option<Duration> {
        match self.entries().look(guard, now) {
            Admission::Refused(time) => Some(time),
            Admission::Granted(_) | Admission::Hold => None,
        }
    }

    /// What made the last attempt fail that was.
    pub(super) fn reason(&self, guard: &Guard) -> Option<Error> {
        let entries = self.entries();
        guard
            .all()
            .filter_map(|scope| entries.all.get(scope))
            .filter(|entry| entry.machine.is_open())
            .find_map(|entry| entry.reason.clone())
    }

    /// Lets an attempt through to the first endpoint that takes it, or not.
    pub(super) fn admit(&self, guard: &Guard, now: Instant) -> Admission<Granted> {
        let mut entries = self.entries();
        let index = match entries.look(guard, now) {
            Admission::Granted(index) => index,
            Admission::Hold => return Admission::Hold,
            Admission::Refused(time) => return Admission::Refused(time),
        };
        let mut admit = |scope| entries.entry(scope, &self.options, now).admit(now);
        Admission::Granted(Granted {
            index,
            login: admit(&guard.login).expect("looked at under the same lock"),
            endpoint: admit(&guard.endpoints[index]).expect("looked at under the same lock"),
        })
    }

    /// Lets an attempt that is under way go on to another endpoint, or not.
    pub(super) fn admit_to(&self, endpoint: &BreakerScope, now: Instant) -> Option<Ticket> {
        self.entries().entry(endpoint, &self.options, now).admit(now)
    }

    /// Whether an endpoint is known to be dead, or is only being probed.
    pub(super) fn is_open(&self, endpoint: &BreakerScope) -> bool {
        let entries = self.entries();
        let entry = entries.all.get(endpoint);
        entry.is_some_and(|entry| entry.machine.is_open())
    }

    /// Something to see without a lock whether a breaker is open.
    pub(super) fn tripped(&self, scope: &BreakerScope, now: Instant) -> Arc<AtomicBool> {
        Arc::clone(&self.entries().entry(scope, &self.options, now).tripped)
    }

    /// Remembers a stack that may not connect for now, until [`Breakers::let_go`] names it. False if it may by now.
    pub(super) fn hold(&self, stack: StackId, guard: &Guard, now: Instant) -> bool {
        let mut entries = self.entries();
        if entries.look(guard, now) != Admission::Hold {
            return false;
        }
        for scope in guard.all() {
            if let Some(entry) = entries.all.get_mut(scope)
                && entry.look(now) == Admission::Hold
            {
                entry.held.insert(stack);
            }
        }
        true
    }

    /// How many stacks are held before it.
    pub(super) fn held(&self, scope: &BreakerScope) -> usize {
        self.entries().all.get(scope).map_or(0, |entry| entry.held.len())
    }

    /// The next stack that is no longer held, and how far it may go.
    pub(super) fn let_go(&self, scope: &BreakerScope, now: Instant) -> Option<(StackId, Leave)> {
        let mut entries = self.entries();
        let entry = entries.all.get_mut(scope)?;
        let leave = match (entry.look(now), entry.machine.state()) {
            (Admission::Hold, _) => return None,
            (Admission::Granted(()), State::Recovering { .. }) => Leave::One,
            _ => Leave::All,
        };
        let after = entry.let_go.map_or(Bound::Unbounded, Bound::Excluded);
        let next = entry.held.range((after, Bound::Unbounded)).next();
        let stack = *next.or_else(|| entry.held.first())?;
        entry.held.remove(&stack);
        entry.let_go = Some(stack);
        Some((stack, leave))
    }

    /// Lets nobody else try while somebody finds out whether a failure is final. False if somebody does already.
    pub(super) fn question(&self, scope: &BreakerScope, now: Instant) -> bool {
        let mut entries = self.entries();
        let entry = entries.entry(scope, &self.options, now);
        !std::mem::replace(&mut entry.in_question, true)
    }

    /// It has been found out.
    pub(super) fn answered(&self, scope: &BreakerScope) {
        if let Some(entry) = self.entries().all.get_mut(scope) {
            entry.in_question = false;
        }
    }

    /// An attempt has ended, with this error if it failed.
    pub(super) fn end(
        &self,
        scope: &BreakerScope,
        ticket: Ticket,
        outcome: Outcome,
        reason: Option<&Error>,
        now: Instant,
    ) -> Effects {
        let mut entries = self.entries();
        let entry = entries.entry(scope, &self.options, now);
        entry.attempts = entry.attempts.saturating_sub(1);
        let before = entry.machine.is_open();
        if matches!(outcome, Outcome::Failed(_)) {
            entry.reason = reason.cloned();
        }
        let was = entry.machine.state();
        entry.machine.end(ticket, outcome, now, random());
        let is = entry.machine.state();
        let after = entry.machine.is_open();
        entry.tripped.store(after, Relaxed);
        let mut effects = Effects::default();
        if after && was != is && matches!(is, State::Open { .. }) {
            effects.opened = outcome != Outcome::Abandoned;
        }
        let known = entry
            .outage
            .as_ref()
            .filter(|_| !cfg!(biplane_mutant = "each_failed_probe_is_logged"));
        match (known, before, after) {
            (None, _, true) => {
                entry.refused = 0;
                entry.outage = Some(Outage {
                    since: now,
                    told: now,
                    refused_then: 0,
                });
                let State::Open { until } = is else {
                    return effects;
                };
                let line = Line::Opened(scope.clone(), until - now, entry.reason.clone());
                effects.line = Some(line);
            }
            (Some(outage), true, false) => {
                let lasted = now.saturating_duration_since(outage.since);
                effects.line = Some(Line::Closed(scope.clone(), lasted, entry.refused));
                entry.outage = None;
                entry.reason = None;
            }
            _ => {}
        }
        effects
    }

    /// A session that was established has been lost.
    pub(super) fn suspect(&self, scope: &BreakerScope, now: Instant) {
        self.entries().entry(scope, &self.options, now).machine.suspect();
    }

    /// Looks after what only time changes: summaries in the log, slow starts that are over, breakers that nobody needs.
    /// Returns those before which stacks are held that need not be.
    pub(super) fn tick(&self, now: Instant) -> Vec<BreakerScope> {
        let mut lines = Vec::new();
        let mut free = Vec::new();
        let idle = self.options.longest.saturating_mul(2);
        self.entries().all.retain(|scope, entry| {
            entry.machine.tick(now);
            if !entry.held.is_empty() && entry.look(now) != Admission::Hold {
                free.push(scope.clone());
            }
            lines.extend(entry.summary(scope, now));
            !entry.is_idle(now, idle)
        });
        for line in lines {
            line.write();
        }
        free
    }

    /// How many are open, and how many callers they refused in all.
    pub(super) fn count(&self) -> (usize, u64) {
        let entries = self.entries();
        let open = entries.all.values().filter(|entry| entry.machine.is_open());
        (open.count(), entries.refused)
    }

    /// How each is doing.
    pub(super) fn status(&self, now: Instant) -> Vec<BreakerStatus> {
        let entries = self.entries();
        let status = |(scope, entry): (&BreakerScope, &Entry)| BreakerStatus {
            scope: scope.clone(),
            state: match entry.machine.state() {
                State::Closed { .. } => BreakerState::Closed,
                State::Open { until } => BreakerState::Open {
                    retry_after: until.saturating_duration_since(now),
                },
                State::Probing => BreakerState::Probing,
                State::Recovering { window, .. } => BreakerState::Recovering { at_once: window },
            },
            refused: entry.refused,
        };
        entries.all.iter().map(status).collect()
    }

    /// A login has been replaced: nobody will try it again.
    pub(super) fn retire(&self, login: &BreakerScope) {
        let retired = self.entries().all.remove(login);
        if retired.is_some_and(|entry| entry.outage.is_some()) {
            tracing::info!(breaker = %login, "replaced by another login");
        }
    }

    /// Forgets these, as nobody but a mutant does.
    pub(super) fn forget(&self, guard: &Guard) {
        let mut entries = self.entries();
        for scope in guard.all() {
            entries.all.remove(scope);
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        locked(&self.entries)
    }
}

impl Effects {
    /// Tells the log.
    pub(super) fn write(&self) {
        if let Some(line) = &self.line {
            line.clone().write();
        }
    }
}

/// Between 0 and 1; chance enough to keep processes from coming back together.
fn random() -> f64 {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    f64::from(random) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
