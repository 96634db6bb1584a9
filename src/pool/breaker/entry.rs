//! One breaker and what is remembered of it, and all of them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Admission, BreakerOptions, BreakerScope, Guard, StackId, Ticket,
    log::{Line, Outage, SUMMARY_EVERY},
    machine::{Machine, Rules, State},
};
use crate::error::Error;

#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) all: HashMap<BreakerScope, Entry>,
    pub(super) refused: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) machine: Machine,
    /// Whether it is open, for those who must know it without the lock.
    pub(super) tripped: Arc<AtomicBool>,
    /// Whether somebody is finding out if a failure was final. Meanwhile nobody tries.
    pub(super) in_question: bool,
    /// Attempts under way.
    pub(super) attempts: u32,
    /// Stacks that may not connect for now.
    pub(super) held: BTreeSet<StackId>,
    /// The one that was let go last; it comes last the next time.
    pub(super) let_go: Option<StackId>,
    pub(super) used: Instant,
    pub(super) reason: Option<Error>,
    pub(super) outage: Option<Outage>,
    pub(super) refused: u64,
}

impl Entries {
    pub(super) fn entry(
        &mut self,
        scope: &BreakerScope,
        options: &BreakerOptions,
        now: Instant,
    ) -> &mut Entry {
        if !self.all.contains_key(scope) {
            self.all.insert(scope.clone(), Entry::new(scope, options, now));
        }
        let entry = self.all.get_mut(scope).expect("it was put there");
        entry.used = now;
        entry
    }

    /// Whether the login lets an attempt through, and which endpoint does first.
    pub(super) fn look(&self, guard: &Guard, now: Instant) -> Admission<usize> {
        let look = |scope| match self.all.get(scope) {
            None => Admission::Granted(()),
            Some(entry) => Entry::look(entry, now),
        };
        match look(&guard.login) {
            Admission::Granted(()) => {}
            Admission::Hold => return Admission::Hold,
            Admission::Refused(time) => return Admission::Refused(time),
        }
        let mut best = Admission::Refused(Duration::MAX);
        for (index, endpoint) in guard.endpoints.iter().enumerate() {
            match (look(endpoint), &best) {
                (Admission::Granted(()), _) => return Admission::Granted(index),
                (Admission::Hold, _) => best = Admission::Hold,
                (Admission::Refused(time), Admission::Refused(shortest)) if time < *shortest => {
                    best = Admission::Refused(time);
                }
                (Admission::Refused(_), _) => {}
            }
        }
        best
    }

    pub(super) fn count_refused(&mut self, guard: &Guard, callers: u64, now: Instant) {
        self.refused += callers;
        for scope in guard.all() {
            if let Some(entry) = self.all.get_mut(scope)
                && entry.machine.is_open()
            {
                entry.used = now;
                entry.refused += callers;
            }
        }
    }
}

impl Entry {
    pub(super) fn new(scope: &BreakerScope, options: &BreakerOptions, now: Instant) -> Self {
        let slow_start = match scope {
            BreakerScope::Endpoint(_) => Some(options.slow_start.get()),
            // How many connect at once is up to the endpoint.
            BreakerScope::Login { .. } => None,
        };
        Self {
            machine: Machine::new(Rules {
                failures: options.failures.get(),
                shortest: options.shortest,
                longest: options.longest,
                slow_start,
            }),
            tripped: Arc::default(),
            in_question: false,
            attempts: 0,
            held: BTreeSet::new(),
            let_go: None,
            used: now,
            reason: None,
            outage: None,
            refused: 0,
        }
    }

    pub(super) fn look(&self, now: Instant) -> Admission<()> {
        match self.machine.look(now) {
            Admission::Granted(()) if self.in_question => Admission::Hold,
            looked => looked,
        }
    }

    pub(super) fn admit(&mut self, now: Instant) -> Option<Ticket> {
        let Admission::Granted(ticket) = self.machine.admit(now) else {
            return None;
        };
        self.attempts += 1;
        self.tripped.store(self.machine.is_open(), Relaxed);
        Some(ticket)
    }

    pub(super) fn summary(&mut self, scope: &BreakerScope, now: Instant) -> Option<Line> {
        let refused = self.refused;
        let outage = self.outage.as_mut()?;
        if now.saturating_duration_since(outage.told) < SUMMARY_EVERY
            && !cfg!(biplane_mutant = "summaries_do_not_wait")
        {
            return None;
        }
        let since_then = refused - std::mem::replace(&mut outage.refused_then, refused);
        outage.told = now;
        let lasts = now.saturating_duration_since(outage.since);
        Some(Line::Still(scope.clone(), lasts, since_then))
    }

    /// Whether nobody uses it, and has not for so long that what it knows is out of date.
    pub(super) fn is_idle(&self, now: Instant, idle: Duration) -> bool {
        let unused = self.attempts == 0
            && self.held.is_empty()
            && !self.in_question
            && Arc::strong_count(&self.tripped) == 1;
        let closed = self.machine.state() == State::Closed { failures: 0 };
        unused && (closed || now.saturating_duration_since(self.used) >= idle)
    }
}
