//! One breaker, as a state machine: without I/O, without a clock, and without chance, all of which are passed in.

use std::time::Duration;

use tokio::time::Instant;

use super::super::later;

/// When a breaker opens and how it closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Failures in a row that open it.
    pub(super) failures: u32,
    /// The shortest time that it stays open.
    pub(super) shortest: Duration,
    /// The longest.
    pub(super) longest: Duration,
    /// As many attempts at once end a slow start; `None` to do without one.
    pub(super) slow_start: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Attempts are let through; so many have failed in a row.
    Closed { failures: u32 },
    /// None is let through before then. The first one after it is the probe.
    Open { until: Instant },
    /// The probe is under way, and nothing else.
    Probing,
    /// The probe succeeded. Attempts are let through a few at a time, more with each that succeeds.
    Recovering {
        window: u32,
        under_way: u32,
        since: Instant,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Machine {
    rules: Rules,
    state: State,
    /// How often it has opened; attempts that began before the last time say nothing any more.
    era: u64,
    /// How often it has opened since it was last closed for good.
    opened: u32,
}

/// The right to one attempt, to be given back with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) struct Ticket {
    era: u64,
}

/// Whether an attempt may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Admission<T> {
    Granted(T),
    /// Not now, but as soon as one that is under way has ended.
    Hold,
    /// Not before that time has passed.
    Refused(Duration),
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Outcome {
    Succeeded,
    Failed(Weight),
    /// It says nothing: given up, or failed for a reason of ours.
    Abandoned,
}

/// What a failure weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pool) enum Weight {
    /// Some in a row open the breaker.
    Counted,
    /// It cannot get better by itself, so one is enough.
    Conclusive,
}

impl<T> Admission<T> {
    pub(in crate::pool) fn map<U>(self, with: impl FnOnce(T) -> U) -> Admission<U> {
        match self {
            Self::Granted(value) => Admission::Granted(with(value)),
            Self::Hold => Admission::Hold,
            Self::Refused(time) => Admission::Refused(time),
        }
    }
}

impl Machine {
    pub(super) const fn new(rules: Rules) -> Self {
        Self {
            rules,
            state: State::Closed { failures: 0 },
            era: 0,
            opened: 0,
        }
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    /// Whether it lets nothing through but its probe.
    pub(super) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. } | State::Probing)
    }

    /// What [`Machine::admit`] would answer.
    pub(super) fn look(&self, now: Instant) -> Admission<()> {
        match self.state {
            State::Closed { .. } => Admission::Granted(()),
            State::Open { until } if until <= now => Admission::Granted(()),
            State::Open { until } => Admission::Refused(until - now),
            State::Probing if cfg!(biplane_mutant = "many_probes") => Admission::Granted(()),
            // How long the probe takes is not known; when it has failed, at least this long passes.
            State::Probing => Admission::Refused(self.rules.shortest),
            State::Recovering {
                window, under_way, ..
            } if under_way < window => Admission::Granted(()),
            State::Recovering { .. } if self.has_recovered(now) => Admission::Granted(()),
            State::Recovering { .. } => Admission::Hold,
        }
    }

    /// Lets an attempt through, or not.
    pub(super) fn admit(&mut self, now: Instant) -> Admission<Ticket> {
        self.tick(now);
        match self.look(now) {
            Admission::Granted(()) => {}
            Admission::Hold => return Admission::Hold,
            Admission::Refused(time) => return Admission::Refused(time),
        }
        match &mut self.state {
            State::Open { .. } => self.state = State::Probing,
            State::Recovering { under_way, .. } => *under_way += 1,
            State::Closed { .. } | State::Probing => {}
        }
        Admission::Granted(Ticket { era: self.era })
    }

    /// Takes a ticket back. `random`, between 0 and 1, spreads the end of the back-off.
    pub(super) fn end(&mut self, ticket: Ticket, outcome: Outcome, now: Instant, random: f64) {
        if ticket.era != self.era {
            return;
        }
        match (outcome, &mut self.state) {
            (Outcome::Succeeded, State::Closed { failures }) => *failures = 0,
            (Outcome::Succeeded, State::Probing) => match self.rules.slow_start {
                Some(_) if !cfg!(biplane_mutant = "no_slow_start") => {
                    self.state = State::Recovering {
                        window: 2,
                        under_way: 0,
                        since: now,
                    };
                }
                _ => self.close(),
            },
            (
                Outcome::Succeeded,
                State::Recovering {
                    window, under_way, ..
                },
            ) => {
                *under_way = under_way.saturating_sub(1);
                // One more for each success doubles it with each round.
                *window = window.saturating_add(1);
                if self.rules.slow_start.is_none_or(|enough| *window >= enough) {
                    self.close();
                }
            }
            (Outcome::Failed(weight), State::Closed { failures }) => {
                *failures = failures.saturating_add(1);
                if weight == Weight::Conclusive || *failures >= self.rules.failures {
                    self.open(now, random);
                }
            }
            (Outcome::Failed(_), State::Probing | State::Recovering { .. }) => self.open(now, random),
            // The next one is the probe.
            (Outcome::Abandoned, State::Probing) => self.state = State::Open { until: now },
            (Outcome::Abandoned, State::Recovering { under_way, .. }) => {
                *under_way = under_way.saturating_sub(1);
            }
            (Outcome::Abandoned, State::Closed { .. }) | (_, State::Open { .. }) => {}
        }
    }

    /// Something that was open has been lost. That alone opens nothing, because a server that was restarted loses all
    /// sessions and is there nevertheless; but the next failure is then believed at once.
    pub(super) fn suspect(&mut self) {
        if let State::Closed { failures } = &mut self.state {
            let all_but_one = self.rules.failures.saturating_sub(1);
            *failures = failures.saturating_add(1).min(all_but_one).max(*failures);
        }
    }

    /// Ends a slow start that has gone on for long without a failure.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.has_recovered(now) {
            self.close();
        }
    }

    fn has_recovered(&self, now: Instant) -> bool {
        matches!(self.state, State::Recovering { since, .. }
            if now.saturating_duration_since(since) >= self.rules.longest)
    }

    const fn close(&mut self) {
        self.opened = 0;
        self.state = State::Closed { failures: 0 };
    }

    fn open(&mut self, now: Instant, random: f64) {
        self.era += 1;
        self.opened = self.opened.saturating_add(1);
        let Rules {
            shortest, longest, ..
        } = self.rules;
        let times = if cfg!(biplane_mutant = "back_off_does_not_grow") {
            1
        } else {
            self.opened
        };
        let doubled = 2_u32.checked_pow(times).unwrap_or(u32::MAX);
        let most = shortest.saturating_mul(doubled).min(longest);
        let least = shortest.max(most / 2);
        let spread = most.saturating_sub(least).mul_f64(random.clamp(0.0, 1.0));
        self.state = State::Open {
            until: later(now, least + spread),
        };
    }
}
