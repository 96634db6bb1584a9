//! The machine against a model that knows nothing but the rules, and the book of breakers on a clock that tests move.

use std::{collections::BTreeMap, io};

use proptest::prelude::*;

use super::{
    machine::{Machine, Rules},
    *,
};
use crate::error::ErrorKind;

const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

const RULES: Rules = Rules {
    failures: 3,
    shortest: SHORTEST,
    longest: LONGEST,
    slow_start: Some(8),
};

/// What may happen to a breaker. A number picks one of the attempts that are under way.
#[derive(Clone, Copy, Debug)]
enum Event {
    Attempt,
    End(usize, Outcome, f64),
    Suspect,
    Tick,
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Succeeded),
        6 => Just(Outcome::Failed(Weight::Counted)),
        1 => Just(Outcome::Failed(Weight::Conclusive)),
        1 => Just(Outcome::Abandoned),
    ];
    prop_oneof![
        8 => Just(Event::Attempt),
        8 => (0_usize..16, outcome, 0.0_f64..=1.0).prop_map(|(n, outcome, random)| Event::End(n, outcome, random)),
        1 => Just(Event::Suspect),
        1 => Just(Event::Tick),
        3 => (0_u64..1_500).prop_map(Event::Pass),
        1 => (0_u64..40_000).prop_map(Event::Pass),
    ]
}

/// What the rules say, in as many words.
#[derive(Debug)]
struct Model {
    now: Instant,
    phase: Phase,
    /// Attempts under way, and in which outage they began.
    under_way: BTreeMap<usize, u32>,
    outages: u32,
    /// Since the last time that everything was let through.
    openings: u32,
    next: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Closed {
        failures: u32,
    },
    /// Nothing before the first moment, and something from the second on.
    Open {
        not_before: Instant,
        at_the_latest: Instant,
    },
    Probing,
    Recovering {
        successes: u32,
        attempts: u32,
        since: Instant,
    },
}

impl Model {
    fn open(&mut self) {
        self.outages += 1;
        self.openings += 1;
        let mut most = SHORTEST;
        for _ in 0..self.openings.min(20) {
            most = (most * 2).min(LONGEST);
        }
        self.phase = Phase::Open {
            not_before: self.now + (most / 2).max(SHORTEST),
            at_the_latest: self.now + most,
        };
    }

    fn close(&mut self) {
        self.openings = 0;
        self.phase = Phase::Closed { failures: 0 };
    }

    /// Whether an attempt must be let through; `None` if that is a matter of chance.
    fn lets_through(&self) -> Option<bool> {
        match self.phase {
            Phase::Closed { .. } => Some(true),
            Phase::Open { not_before, .. } if self.now < not_before => Some(false),
            Phase::Open { at_the_latest, .. } if self.now >= at_the_latest => Some(true),
            Phase::Open { .. } => None,
            Phase::Probing => Some(false),
            Phase::Recovering { since, .. } if self.now >= since + LONGEST => Some(true),
            Phase::Recovering {
                successes, attempts, ..
            } => Some(attempts < 2 + successes),
        }
    }

    fn admitted(&mut self) {
        self.settle();
        match &mut self.phase {
            Phase::Closed { .. } => {}
            Phase::Open { .. } => self.phase = Phase::Probing,
            Phase::Probing => panic!("one probe at a time"),
            Phase::Recovering { attempts, .. } => *attempts += 1,
        }
        self.under_way.insert(self.next, self.outages);
        self.next += 1;
    }

    fn settle(&mut self) {
        if let Phase::Recovering { since, .. } = self.phase
            && self.now >= since + LONGEST
        {
            self.close();
        }
    }

    fn ended(&mut self, number: usize, outcome: Outcome) {
        let began = self.under_way.remove(&number).unwrap();
        if began != self.outages {
            return;
        }
        match (outcome, self.phase) {
            (Outcome::Succeeded, Phase::Closed { .. }) => self.phase = Phase::Closed { failures: 0 },
            (Outcome::Failed(Weight::Counted), Phase::Closed { failures }) if failures < 2 => {
                self.phase = Phase::Closed {
                    failures: failures + 1,
                };
            }
            (Outcome::Failed(_), _) => self.open(),
            (Outcome::Succeeded, Phase::Probing) => {
                self.phase = Phase::Recovering {
                    successes: 0,
                    attempts: 0,
                    since: self.now,
                };
            }
            (Outcome::Succeeded, Phase::Recovering { successes: 5, .. }) => self.close(),
            (
                Outcome::Succeeded,
                Phase::Recovering {
                    successes,
                    attempts,
                    since,
                },
            ) => {
                self.phase = Phase::Recovering {
                    successes: successes + 1,
                    attempts: attempts - 1,
                    since,
                };
            }
            (Outcome::Abandoned, Phase::Probing) => {
                self.phase = Phase::Open {
                    not_before: self.now,
                    at_the_latest: self.now,
                };
            }
            (
                Outcome::Abandoned,
                Phase::Recovering {
                    successes,
                    attempts,
                    since,
                },
            ) => {
                self.phase = Phase::Recovering {
                    successes,
                    attempts: attempts - 1,
                    since,
                };
            }
            (Outcome::Abandoned, Phase::Closed { .. }) => {}
            (_, Phase::Open { .. }) => panic!("nothing of this outage is under way while it is open"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_rules_hold(events in prop::collection::vec(event(), 1..150)) {
        let now = Instant::now();
        let mut machine = Machine::new(RULES);
        let mut tickets = BTreeMap::new();
        let mut model = Model {
            now,
            phase: Phase::Closed { failures: 0 },
            under_way: BTreeMap::new(),
            outages: 0,
            openings: 0,
            next: 0,
        };
        for event in events {
            match event {
                Event::Attempt => {
                    let looked = machine.look(model.now);
                    let number = model.next;
                    match (machine.admit(model.now), model.lets_through()) {
                        (Admission::Granted(ticket), Some(true) | None) => {
                            prop_assert_eq!(looked, Admission::Granted(()));
                            tickets.insert(number, ticket);
                            model.admitted();
                        }
                        (Admission::Refused(time), Some(false) | None) => {
                            prop_assert_eq!(looked, Admission::Refused(time));
                            let recovers = matches!(model.phase, Phase::Recovering { .. });
                            prop_assert!(!recovers);
                            if let Phase::Open { not_before, at_the_latest } = model.phase {
                                prop_assert!(model.now + time >= not_before && model.now + time <= at_the_latest);
                            }
                        }
                        (Admission::Hold, Some(false)) => {
                            prop_assert_eq!(looked, Admission::Hold);
                            let recovers = matches!(model.phase, Phase::Recovering { .. });
                            prop_assert!(recovers);
                            prop_assert!(!tickets.is_empty(), "somebody's end will let it go on");
                        }
                        (admitted, expected) => prop_assert!(false, "{admitted:?}, and not {expected:?}"),
                    }
                }
                Event::End(n, outcome, random) => {
                    let picked = tickets.keys().nth(n % tickets.len().max(1)).copied();
                    if let Some(number) = picked {
                        let ticket = tickets.remove(&number).unwrap();
                        machine.end(ticket, outcome, model.now, random);
                        model.ended(number, outcome);
                    }
                }
                Event::Suspect => {
                    machine.suspect();
                    if let Phase::Closed { failures: failures @ (0 | 1) } = &mut model.phase {
                        *failures += 1;
                    }
                }
                Event::Tick => {
                    machine.tick(model.now);
                    model.settle();
                }
                Event::Pass(millis) => model.now += Duration::from_millis(millis),
            }
            let open = matches!(model.phase, Phase::Open { .. } | Phase::Probing);
            prop_assert_eq!(machine.is_open(), open);
        }
    }
}

fn options() -> BreakerOptions {
    BreakerOptions::default()
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::new("db.example", port)
}

fn guard(endpoints: &[Endpoint]) -> Guard {
    Guard::new(
        DataSourceId::new(),
        Role::App,
        CredentialVersion::FIRST,
        None,
        endpoints,
    )
}

fn reason() -> Error {
    Error::new(ErrorKind::DatabaseUnavailable { retry_after: None }).detail("nobody answers")
}

/// An attempt on the first endpoint that takes it, which ends like this.
fn attempt(breakers: &Breakers, guard: &Guard, outcome: Outcome, now: Instant) -> Admission<usize> {
    let admitted = breakers.admit(guard, now);
    if let Admission::Granted(granted) = &admitted {
        let endpoint = guard.endpoint(granted.index);
        let failure = reason();
        let failed = matches!(outcome, Outcome::Failed(_));
        breakers
            .end(
                endpoint,
                granted.endpoint,
                outcome,
                failed.then_some(&failure),
                now,
            )
            .write();
        breakers
            .end(guard.login(), granted.login, Outcome::Abandoned, None, now)
            .write();
    }
    admitted.map(|granted| granted.index)
}

const FAILED: Outcome = Outcome::Failed(Weight::Counted);

fn kill(breakers: &Breakers, guard: &Guard, now: Instant) {
    for _ in 0..3 {
        attempt(breakers, guard, FAILED, now);
    }
}

#[test]
fn an_open_endpoint_is_passed_over_while_another_is_closed() {
    let _listening = Logged::default().listen();
    let (breakers, now) = (Breakers::new(options()), Instant::now());
    let both = guard(&[endpoint(1), endpoint(2)]);
    kill(&breakers, &guard(&[endpoint(1)]), now);
    let index = attempt(&breakers, &both, Outcome::Succeeded, now);
    assert_eq!(index, Admission::Granted(1));
    kill(&breakers, &guard(&[endpoint(2)]), now);
    assert!(matches!(breakers.look(&both, now), Admission::Refused(_)));
    let index = attempt(&breakers, &both, Outcome::Succeeded, now + LONGEST);
    assert_eq!(
        index,
        Admission::Granted(0),
        "it is probed when its time has come"
    );
}

#[test]
fn what_is_told_to_wait_is_told_how_long_and_why() {
    let _listening = Logged::default().listen();
    let (breakers, now) = (Breakers::new(options()), Instant::now());
    let here = guard(&[endpoint(1)]);
    kill(&breakers, &here, now);
    let Admission::Refused(time) = breakers.look(&here, now) else {
        panic!("it is open");
    };
    assert!(time >= SHORTEST && time <= SHORTEST * 2);
    let why = breakers.reason(&here).unwrap();
    assert!(why.to_string().contains("nobody answers"), "{why}");
    // One that shares the endpoint fares the same, one elsewhere does not.
    assert!(matches!(
        breakers.look(&guard(&[endpoint(1)]), now),
        Admission::Refused(_)
    ));
    assert_eq!(breakers.look(&guard(&[endpoint(2)]), now), Admission::Granted(()));
}

#[test]
fn a_login_that_is_rejected_closes_nobody_else_out() {
    let _listening = Logged::default().listen();
    let (breakers, now) = (Breakers::new(options()), Instant::now());
    let here = guard(&[endpoint(1)]);
    let Admission::Granted(granted) = breakers.admit(&here, now) else {
        panic!("it is closed");
    };
    let conclusive = Outcome::Failed(Weight::Conclusive);
    assert!(
        breakers
            .end(here.login(), granted.login, conclusive, None, now)
            .opened
    );
    let _ = breakers.end(here.endpoint(0), granted.endpoint, Outcome::Succeeded, None, now);
    assert!(matches!(breakers.look(&here, now), Admission::Refused(_)));
    assert_eq!(breakers.look(&guard(&[endpoint(1)]), now), Admission::Granted(()));
    // The next version of the credential is another login.
    let BreakerScope::Login {
        source,
        role,
        version,
        tenant,
    } = *here.login()
    else {
        panic!("it is a login");
    };
    let next = Guard::new(source, role, version.next(), tenant, &[endpoint(1)]);
    assert_eq!(breakers.look(&next, now), Admission::Granted(()));
    // And where a file leads one tenant alone, nobody else has tried it.
    let elsewhere = Guard::new(source, role, version, Some(TenantId::new()), &[endpoint(1)]);
    assert_eq!(breakers.look(&elsewhere, now), Admission::Granted(()));
}

#[test]
fn nobody_tries_a_login_that_is_in_question() {
    let (breakers, now) = (Breakers::new(options()), Instant::now());
    let here = guard(&[endpoint(1)]);
    assert!(breakers.question(here.login(), now));
    assert!(!breakers.question(here.login(), now), "one asks for all");
    assert_eq!(breakers.look(&here, now), Admission::Hold);
    let stack = StackId::for_tests(7);
    assert!(breakers.hold(stack, &here, now));
    assert_eq!(breakers.let_go(here.login(), now), None);
    breakers.answered(here.login());
    assert_eq!(breakers.let_go(here.login(), now), Some((stack, Leave::All)));
    assert!(!breakers.hold(stack, &here, now), "there is nothing to wait for");
}

#[test]
fn stacks_take_turns_while_a_server_comes_back() {
    let _listening = Logged::default().listen();
    let (breakers, now) = (Breakers::new(options()), Instant::now());
    let here = guard(&[endpoint(1)]);
    kill(&breakers, &here, now);
    let back = now + LONGEST;
    attempt(&breakers, &here, Outcome::Succeeded, back);
    let under_way: Vec<Ticket> = (0..2)
        .map(|_| match breakers.admit(&here, back) {
            Admission::Granted(granted) => granted.endpoint,
            refused => panic!("{refused:?}"),
        })
        .collect();
    let stacks: Vec<StackId> = (0..3).map(StackId::for_tests).collect();
    for stack in &stacks {
        assert!(breakers.hold(*stack, &here, back));
    }
    assert_eq!(
        breakers.let_go(here.endpoint(0), back),
        None,
        "two at once to begin with"
    );
    let mut order = Vec::new();
    for ticket in under_way {
        let _ = breakers.end(here.endpoint(0), ticket, Outcome::Succeeded, None, back);
        let (stack, leave) = breakers.let_go(here.endpoint(0), back).unwrap();
        assert_eq!(leave, Leave::One);
        order.push(stack);
        breakers.admit(&here, back);
        breakers.admit(&here, back);
        assert!(breakers.hold(stack, &here, back), "it wants more");
    }
    assert_eq!(order, stacks[..2], "whoever had one comes after the others");
}

#[test]
fn a_breaker_that_nobody_needs_is_dropped_and_one_that_is_open_is_not() {
    let _listening = Logged::default().listen();
    let (breakers, now) = (Breakers::new(options()), Instant::now());
    for port in 0..1_000 {
        attempt(&breakers, &guard(&[endpoint(port)]), Outcome::Succeeded, now);
    }
    let dead = guard(&[endpoint(2_000)]);
    kill(&breakers, &dead, now);
    let used = breakers.tripped(guard(&[endpoint(3_000)]).endpoint(0), now);
    breakers.tick(now);
    let left = breakers.status(now).len();
    assert!(left <= 3, "the dead one, its login, the one in use: {left}");
    assert!(
        matches!(breakers.look(&dead, now), Admission::Refused(_)),
        "no pool need exist"
    );
    breakers.tick(now + LONGEST * 3);
    let left: Vec<BreakerStatus> = breakers.status(now);
    assert_eq!(left.len(), 1, "what nobody asked about is out of date: {left:?}");
    drop(used);
    breakers.tick(now + LONGEST * 6);
    assert_eq!(breakers.status(now), []);
}

/// Where everything that this thread logs goes. All tests that log have one, because what the first thread that comes to
/// a line thinks of it holds for the others.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let logged = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || logged.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(std::mem::take(&mut *locked(&self.0))).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        locked(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_outage_is_one_line_and_one_more_a_minute() {
    let logged = Logged::default();
    let _listening = logged.listen();
    let (breakers, began) = (Breakers::new(options()), Instant::now());
    let tenants: Vec<Guard> = (0..300).map(|_| guard(&[endpoint(1)])).collect();
    kill(&breakers, &tenants[0], began);
    let lines = logged.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("WARN") && lines[0].contains("endpoint db.example:1"),
        "{lines:?}"
    );
    // Three minutes of 300 tenants, each of whom comes ten times a second, and probes that fail.
    let mut now = began;
    let mut refused = 0;
    for _ in 0..1_800 {
        now += Duration::from_millis(100);
        for tenant in &tenants {
            if matches!(breakers.look(tenant, now), Admission::Refused(_)) {
                refused += 1;
            } else {
                attempt(&breakers, tenant, FAILED, now);
            }
        }
        breakers.tick(now);
    }
    let lines = logged.lines();
    assert_eq!(lines.len(), 3, "one a minute: {lines:?}");
    let told: u64 = lines
        .iter()
        .map(|line| {
            let (_, count) = line.split_once("refused=").unwrap();
            count.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        })
        .sum();
    assert_eq!(told, refused, "each refusal is in one of them");
    assert_eq!(breakers.count(), (1, refused));
    attempt(&breakers, &tenants[0], Outcome::Succeeded, now + LONGEST);
    let lines = logged.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("INFO") && lines[0].contains("works again"),
        "{lines:?}"
    );
    breakers.tick(now + LONGEST * 10);
    assert_eq!(logged.lines(), [] as [&str; 0]);
}

#[test]
fn options_that_cannot_work_are_refused() {
    options().check().unwrap();
    let second = Duration::from_secs(1);
    for options in [
        options().back_off(Duration::ZERO, second),
        options().back_off(second, second / 2),
    ] {
        assert_eq!(
            options.check().unwrap_err().kind(),
            ErrorKind::InvalidConfiguration
        );
    }
    options().back_off(Duration::MAX, Duration::MAX).check().unwrap();
}
