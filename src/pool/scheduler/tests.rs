//! The scheduler against a model that knows nothing but the rules.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

/// What may happen to a pool. Numbers pick one of what there is at the moment.
#[derive(Clone, Copy, Debug)]
enum Event {
    Arrive(usize),
    Leave(usize),
    Connected(usize),
    NotConnected(usize),
    Returned(usize),
    Lost(usize),
    Gone(usize),
    Purge(usize),
    Renew(usize, u32),
    Drain(usize),
    Reap(u64, usize),
    Hold(usize),
    LetGo(usize, Leave),
    Refused(usize),
    TurnAway(usize),
    Crowded(usize, usize),
    Lift,
}

fn event() -> impl Strategy<Value = Event> {
    let any = 0_usize..64;
    prop_oneof![
        8 => (0_usize..3).prop_map(Event::Arrive),
        2 => any.clone().prop_map(Event::Leave),
        6 => any.clone().prop_map(Event::Connected),
        2 => any.clone().prop_map(Event::NotConnected),
        8 => any.clone().prop_map(Event::Returned),
        2 => any.clone().prop_map(Event::Lost),
        6 => any.clone().prop_map(Event::Gone),
        1 => (0_usize..3).prop_map(Event::Purge),
        1 => ((0_usize..3), 1_u32..4).prop_map(|(stack, max)| Event::Renew(stack, max)),
        1 => (0_usize..3).prop_map(Event::Drain),
        1 => (0_u64..40, 0_usize..2).prop_map(|(age, keep)| Event::Reap(age, keep)),
        1 => (0_usize..3).prop_map(Event::Hold),
        1 => (0_usize..3).prop_map(|stack| Event::LetGo(stack, Leave::One)),
        1 => (0_usize..3).prop_map(|stack| Event::LetGo(stack, Leave::All)),
        1 => any.clone().prop_map(Event::Refused),
        1 => (0_usize..3).prop_map(Event::TurnAway),
        1 => (any, 0_usize..3).prop_map(|(n, stack)| Event::Crowded(n, stack)),
        1 => Just(Event::Lift),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    number: u64,
    since: Instant,
    generation: Generation,
}

impl Rest for Connection {
    fn since(&self) -> Instant {
        self.since
    }

    fn generation(&self) -> Generation {
        self.generation
    }
}

/// What a stack should hold.
#[derive(Debug, Default)]
struct Expected {
    max: u32,
    ceiling: Option<u32>,
    allowance: Option<usize>,
    generation: Generation,
    drained: bool,
    rest: Vec<Connection>,
    connecting: Vec<Generation>,
    lent: Vec<Connection>,
    closing: usize,
    /// Callers by the number of their place.
    waiting: BTreeMap<u64, u64>,
}

impl Expected {
    fn open(&self) -> usize {
        self.rest.len() + self.connecting.len() + self.lent.len() + self.closing
    }

    fn room(&self) -> usize {
        if self.drained {
            0
        } else {
            let max = self.ceiling.map_or(self.max, |ceiling| ceiling.min(self.max));
            let room = (max as usize).saturating_sub(self.open());
            self.allowance.map_or(room, |allowance| allowance.min(room))
        }
    }

    fn hunger(&self) -> usize {
        self.waiting
            .len()
            .saturating_sub(self.connecting.len())
            .min(self.room())
    }

    /// The oldest caller that a permit is wanted for.
    fn oldest_hungry(&self) -> Option<u64> {
        let oldest = self.waiting.keys().nth(self.connecting.len()).copied();
        oldest.filter(|_| self.room() > 0)
    }
}

struct World {
    scheduler: Scheduler<Connection, u64>,
    cap: u32,
    closed: bool,
    stacks: BTreeMap<StackId, Expected>,
    ids: Vec<StackId>,
    now: Instant,
    next: u64,
    served: u64,
}

type Actions = Vec<Action<Connection, u64>>;

impl World {
    fn new(cap: u32, max: [u32; 3]) -> Self {
        let mut scheduler = Scheduler::new(cap, 20);
        let mut stacks = BTreeMap::new();
        for max in max {
            let expected = Expected {
                max,
                ..Expected::default()
            };
            stacks.insert(scheduler.add_stack(max, 1), expected);
        }
        Self {
            scheduler,
            cap,
            closed: false,
            ids: stacks.keys().copied().collect(),
            stacks,
            now: Instant::now(),
            next: 0,
            served: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.now += Duration::from_millis(1);
        self.next
    }

    fn expected(&mut self, id: StackId) -> &mut Expected {
        self.stacks.get_mut(&id).unwrap()
    }

    fn hunger(&self) -> usize {
        self.stacks.values().map(Expected::hunger).sum()
    }

    fn closing(&self) -> usize {
        self.stacks.values().map(|stack| stack.closing).sum()
    }

    /// The n-th of whatever `list` finds in all stacks.
    fn pick(&self, n: usize, count: impl Fn(&Expected) -> usize) -> Option<(StackId, usize)> {
        let all: Vec<(StackId, usize)> = self
            .stacks
            .iter()
            .flat_map(|(id, stack)| (0..count(stack)).map(|at| (*id, at)))
            .collect();
        (!all.is_empty()).then(|| all[n % all.len()])
    }

    fn step(&mut self, event: Event) {
        let mut actions = Actions::new();
        match event {
            Event::Hold(stack) => {
                let id = self.ids[stack];
                if !self.expected(id).drained {
                    self.expected(id).allowance = Some(0);
                }
                self.scheduler.hold(id, &mut actions);
            }
            Event::LetGo(stack, leave) => {
                let id = self.ids[stack];
                let expected = self.expected(id);
                let wants = expected.waiting.len() > expected.connecting.len();
                expected.allowance = (leave == Leave::One && wants).then_some(1);
                self.scheduler.let_go(id, leave, &mut actions);
            }
            Event::Refused(n) => {
                if let Some((id, at)) = self.pick(n, |stack| stack.connecting.len()) {
                    let others = self.expected(id).connecting.len() - 1;
                    let told = self.scheduler.refuse(id, &mut actions);
                    self.expect_away(id, others, told);
                    self.expected(id).connecting.remove(at);
                }
            }
            Event::TurnAway(stack) => {
                let id = self.ids[stack];
                let told = self.scheduler.turn_all_away(id, &mut actions);
                self.expect_away(id, 0, told);
            }
            Event::Crowded(n, there) => self.find_room(n, there, &mut actions),
            Event::Lift => {
                for stack in self.stacks.values_mut() {
                    stack.ceiling = stack.ceiling.map(|at| at + 1).filter(|at| *at < stack.max);
                }
                self.scheduler.lift_ceilings(&mut actions);
            }
            Event::Arrive(stack) => self.arrive(self.ids[stack]),
            Event::Leave(n) => {
                if let Some((id, at)) = self.pick(n, |stack| stack.waiting.len()) {
                    let place = *self.expected(id).waiting.keys().nth(at).unwrap();
                    self.expected(id).waiting.remove(&place);
                    assert!(self.scheduler.leave(id, place, &mut actions).is_some());
                    assert!(self.scheduler.leave(id, place, &mut actions).is_none());
                }
            }
            Event::Connected(n) => {
                if let Some((id, at)) = self.pick(n, |stack| stack.connecting.len()) {
                    let generation = self.stacks[&id].connecting[at];
                    let of_use = self.is_of_use(id, generation);
                    self.expected(id).connecting.remove(at);
                    self.put(id, Phase::Connecting, generation, of_use, &mut actions);
                }
            }
            Event::NotConnected(n) => {
                if let Some((id, at)) = self.pick(n, |stack| stack.connecting.len()) {
                    let generation = self.expected(id).connecting[at];
                    let told = self.scheduler.fail(id, generation);
                    let stack = self.expected(id);
                    let first = stack.waiting.first_key_value().map(|(_, caller)| *caller);
                    let current = generation == stack.generation;
                    assert_eq!(told, first.filter(|_| current), "the oldest caller is told");
                    if told.is_some() {
                        stack.waiting.pop_first();
                    }
                    stack.connecting.remove(at);
                    self.scheduler.release(id, Phase::Connecting, &mut actions);
                }
            }
            Event::Returned(n) => {
                if let Some((id, at)) = self.pick(n, |stack| stack.lent.len()) {
                    let generation = self.stacks[&id].lent[at].generation;
                    let of_use = self.is_of_use(id, generation);
                    self.expected(id).lent.remove(at);
                    self.put(id, Phase::Open, generation, of_use, &mut actions);
                }
            }
            Event::Lost(n) => {
                if let Some((id, at)) = self.pick(n, |stack| stack.lent.len()) {
                    self.expected(id).lent.remove(at);
                    self.expected(id).closing += 1;
                    self.scheduler.discard();
                }
            }
            Event::Gone(n) => {
                if let Some((id, _)) = self.pick(n, |stack| stack.closing) {
                    self.expected(id).closing -= 1;
                    self.scheduler.release(id, Phase::Closing, &mut actions);
                }
            }
            Event::Purge(stack) => self.scheduler.purge(self.ids[stack], &mut actions),
            Event::Renew(stack, max) => {
                let id = self.ids[stack];
                let expected = self.expected(id);
                if !expected.drained {
                    expected.max = max;
                    (expected.ceiling, expected.allowance) = (None, None);
                    expected.generation = expected.generation.next();
                    let generation = expected.generation;
                    self.scheduler.renew(id, generation, max, 1, &mut actions);
                }
            }
            Event::Drain(stack) => {
                let id = self.ids[stack];
                self.expected(id).drained = true;
                let callers = self.scheduler.drain(id, &mut actions);
                let waiting = std::mem::take(&mut self.expected(id).waiting);
                assert_eq!(callers, waiting.into_values().collect::<Vec<_>>());
            }
            Event::Reap(age, keep) => {
                let (now, mut told) = (self.now, Vec::new());
                self.scheduler.reap(
                    |connection, kept| {
                        told.push((*connection, kept));
                        let old = now.duration_since(connection.since) > Duration::from_millis(age);
                        old && !(kept && keep == 1)
                    },
                    &mut actions,
                );
                for stack in self.stacks.values() {
                    for (below, connection) in stack.rest.iter().enumerate() {
                        let on_top = below + 1 == stack.rest.len();
                        assert!(told.contains(&(*connection, on_top)), "the one on top is kept");
                    }
                }
            }
        }
        self.perform(actions);
        self.check();
    }

    /// The youngest callers are told, all but so many.
    fn expect_away(&mut self, id: StackId, but: usize, told: Vec<u64>) {
        let waiting = &mut self.expected(id).waiting;
        let away: Vec<u64> = waiting.values().skip(but).copied().collect();
        assert_eq!(told, away);
        waiting.retain(|_, caller| !away.contains(caller));
    }

    fn find_room(&mut self, n: usize, there: usize, actions: &mut Actions) {
        let Some((id, at)) = self.pick(n, |stack| stack.connecting.len()) else {
            return;
        };
        let generation = self.expected(id).connecting[at];
        let there = self.ids[there];
        let rested: Vec<Connection> = self.stacks[&there].rest.clone();
        let told = self
            .scheduler
            .crowded(id, generation, |connection| rested.contains(connection), actions);
        let stack = self.expected(id);
        let current = generation == stack.generation;
        let (others, held) = (stack.connecting.len() - 1, stack.open() - stack.connecting.len());
        if current {
            let ceiling = held.max(1) as u32;
            if ceiling < stack.max {
                stack.ceiling = Some(ceiling);
            }
        }
        if current && held == 0 && rested.is_empty() {
            self.expect_away(id, others, told);
        } else {
            assert!(told.is_empty(), "somebody waits for what there is");
        }
        let closes = actions
            .iter()
            .filter(|action| matches!(action, Action::Close(_)))
            .count();
        assert!(!current || rested.is_empty() || closes > 0, "room is made");
        self.expected(id).connecting.remove(at);
        self.scheduler.release(id, Phase::Connecting, actions);
    }

    fn arrive(&mut self, id: StackId) {
        let caller = self.number();
        let top = self.expected(id).rest.pop();
        let taken = self.scheduler.take(id);
        assert_eq!(taken, top, "the last one used is the first one lent");
        if let Some(connection) = taken {
            self.expected(id).lent.push(connection);
            return;
        }
        let mut actions = Actions::new();
        let waiting: usize = self.stacks.values().map(|stack| stack.waiting.len()).sum();
        let open = !self.closed && !self.expected(id).drained;
        match self.scheduler.wait(id, caller, &mut actions) {
            Ok(Offer::Place(place)) => {
                assert!(open && waiting < 20);
                self.expected(id).waiting.insert(place, caller);
            }
            Ok(Offer::Connection(_)) => panic!("nothing rested"),
            Err(Refusal::Closed) => assert!(!open),
            Err(Refusal::Full) => assert!(open && waiting == 20),
        }
        for action in actions {
            if let Action::Close(connection) = &action {
                let rested = self.stacks.values().flat_map(|stack| &stack.rest);
                let longest = rested.map(|rested| rested.since).min();
                assert_eq!(Some(connection.since), longest, "the longest at rest makes room");
            }
            self.perform(vec![action]);
        }
    }

    /// Whether a connection that comes to its stack is lent on or rests there: not if its stack has no use for it, and
    /// not if somebody elsewhere starves who came before all who wait here.
    fn is_of_use(&self, id: StackId, generation: Generation) -> bool {
        let stack = &self.stacks[&id];
        let oldest = self.stacks.values().filter_map(Expected::oldest_hungry).min();
        let first = stack.waiting.keys().next();
        let overtakes = oldest.is_some_and(|oldest| first.is_none_or(|first| oldest < *first));
        !stack.drained
            && !self.closed
            && generation == stack.generation
            && (!overtakes || self.closing() >= self.hunger())
    }

    fn put(&mut self, id: StackId, was: Phase, generation: Generation, kept: bool, actions: &mut Actions) {
        let connection = Connection {
            number: self.number(),
            since: self.now,
            generation,
        };
        self.scheduler.put(id, was, connection, actions);
        match actions.first() {
            Some(Action::Close(closed)) if *closed == connection => {
                assert!(!kept, "a connection of use is not closed");
                actions.remove(0);
                self.expected(id).closing += 1;
            }
            Some(Action::Deliver(to, _, delivered)) if *delivered == connection => {
                assert!(
                    kept,
                    "a connection of no use is not lent, and nobody is overtaken"
                );
                assert_eq!(*to, id);
            }
            _ => {
                assert!(kept, "a connection of no use does not rest");
                self.expected(id).rest.push(connection);
            }
        }
    }

    fn perform(&mut self, actions: Actions) {
        for action in actions {
            match action {
                Action::Deliver(id, caller, connection) => {
                    let (_, first) = self.expected(id).waiting.pop_first().expect("somebody waits");
                    assert_eq!(caller, first, "first come, first served");
                    self.expected(id).lent.push(connection);
                    self.served += 1;
                }
                Action::Connect(id) => {
                    let oldest = self.stacks.values().filter_map(Expected::oldest_hungry).min();
                    let of_this = self.stacks[&id].oldest_hungry();
                    assert!(
                        of_this.is_some(),
                        "nobody wants it, or the cap of the stack is reached"
                    );
                    assert_eq!(of_this, oldest, "the oldest that starves is served first");
                    let generation = self.stacks[&id].generation;
                    let stack = self.expected(id);
                    stack.connecting.push(generation);
                    stack.allowance = stack.allowance.map(|left| left - 1);
                }
                Action::Close(connection) => {
                    let (id, _) = self
                        .stacks
                        .iter()
                        .find(|(_, stack)| stack.rest.contains(&connection))
                        .expect("what is closed rested");
                    let id = *id;
                    let stack = self.expected(id);
                    stack.rest.retain(|rested| *rested != connection);
                    stack.closing += 1;
                }
            }
        }
    }

    fn check(&self) {
        let count = |of: fn(&Expected) -> usize| -> usize { self.stacks.values().map(of).sum() };
        let permits = count(Expected::open);
        assert!(permits <= self.cap as usize, "the cap holds");
        assert_eq!(self.scheduler.permits() as usize, permits);
        assert_eq!(self.scheduler.waiting(), count(|stack| stack.waiting.len()));
        assert_eq!(self.scheduler.resting(), count(|stack| stack.rest.len()));
        for stack in self.stacks.values() {
            assert!(
                stack.rest.is_empty() || stack.waiting.is_empty(),
                "served before rest"
            );
            assert!(
                stack.rest.is_empty() || !stack.drained,
                "nothing rests in a drained stack"
            );
            assert!(
                stack
                    .rest
                    .iter()
                    .all(|rested| rested.generation == stack.generation)
            );
        }
        let hunger = self.hunger();
        assert!(
            permits == self.cap as usize || hunger == 0,
            "no permit is left while somebody starves"
        );
        assert!(
            hunger <= self.closing() || count(|stack| stack.rest.len()) == 0,
            "nothing rests while somebody starves"
        );
    }

    /// Lets everything come to its end, in the best of cases.
    fn run_out(&mut self) {
        for stack in 0..3 {
            self.step(Event::LetGo(stack, Leave::All));
        }
        while self
            .stacks
            .values()
            .any(|stack| !stack.connecting.is_empty() || !stack.lent.is_empty() || stack.closing > 0)
        {
            self.step(Event::Connected(0));
            self.step(Event::Returned(0));
            self.step(Event::Gone(0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_rules_hold(
        cap in 1_u32..5,
        max in [1_u32..4, 1_u32..4, 1_u32..4],
        events in prop::collection::vec(event(), 1..120),
    ) {
        let mut world = World::new(cap, max);
        for event in events {
            world.step(event);
        }
        world.run_out();
        prop_assert_eq!(world.scheduler.waiting(), 0, "everybody is served in the end");

        world.closed = true;
        let mut actions = Actions::new();
        let callers = world.scheduler.close_all(&mut actions);
        prop_assert_eq!(callers, Vec::<u64>::new());
        world.stacks.values_mut().for_each(|stack| stack.drained = true);
        world.perform(actions);
        world.run_out();
        prop_assert_eq!(world.scheduler.permits(), 0);
        prop_assert_eq!(world.scheduler.resting(), 0);
        prop_assert_eq!(world.scheduler.stacks(), 0, "nothing is remembered of what is gone");
    }

    #[test]
    fn a_pool_that_is_closed_at_any_moment_lets_go_of_everything(
        cap in 1_u32..5,
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut world = World::new(cap, [2, 2, 2]);
        for event in events {
            world.step(event);
        }
        world.closed = true;
        let mut actions = Actions::new();
        let callers = world.scheduler.close_all(&mut actions);
        let waiting: usize = world.stacks.values().map(|stack| stack.waiting.len()).sum();
        prop_assert_eq!(callers.len(), waiting, "everybody who waits is told");
        for stack in world.stacks.values_mut() {
            stack.waiting.clear();
            stack.drained = true;
        }
        prop_assert!(
            actions.iter().all(|action| matches!(action, Action::Close(_))),
            "nothing is opened for the sake of a pool that closes"
        );
        world.perform(actions);
        world.run_out();
        prop_assert_eq!((world.scheduler.permits(), world.scheduler.stacks()), (0, 0));
    }
}

#[test]
fn a_connection_that_comes_back_between_a_look_and_a_place_in_the_queue_is_not_missed() {
    let mut scheduler: Scheduler<Connection, u64> = Scheduler::new(1, 20);
    let id = scheduler.add_stack(1, 0);
    let mut actions = Actions::new();
    scheduler.wait(id, 1, &mut actions).unwrap();
    let connection = Connection {
        number: 1,
        since: Instant::now(),
        generation: Generation::default(),
    };
    scheduler.put(id, Phase::Connecting, connection, &mut actions);
    assert!(scheduler.take(id).is_none(), "lent");
    scheduler.put(id, Phase::Open, connection, &mut actions);
    let offer = scheduler.wait(id, 2, &mut actions).unwrap();
    assert!(matches!(offer, Offer::Connection(given) if given == connection));
}

#[test]
fn who_leaves_is_told_what_was_missing() {
    let mut scheduler: Scheduler<Connection, u64> = Scheduler::new(2, 20);
    let (one, two) = (scheduler.add_stack(1, 0), scheduler.add_stack(5, 0));
    let mut actions = Actions::new();
    let wait = |scheduler: &mut Scheduler<_, _>, id| match scheduler.wait(id, 0, &mut Actions::new()) {
        Ok(Offer::Place(place)) => place,
        other => panic!("{other:?}"),
    };
    let first = wait(&mut scheduler, one);
    let second = wait(&mut scheduler, one);
    let _ = wait(&mut scheduler, two);
    // Nothing has ever been opened there, so that is what both are waiting for.
    assert_eq!(
        scheduler.leave(one, second, &mut actions),
        Some(HeldUpBy::Connect)
    );
    assert_eq!(scheduler.leave(one, first, &mut actions), Some(HeldUpBy::Connect));
    let connection = |number| Connection {
        number,
        since: Instant::now(),
        generation: Generation::default(),
    };
    scheduler.put(one, Phase::Connecting, connection(1), &mut actions);
    assert!(scheduler.take(one).is_some());
    scheduler.put(two, Phase::Connecting, connection(2), &mut actions);
    let third = wait(&mut scheduler, one);
    assert_eq!(scheduler.leave(one, third, &mut actions), Some(HeldUpBy::Stack));
    let fourth = wait(&mut scheduler, two);
    assert_eq!(
        scheduler.leave(two, fourth, &mut actions),
        Some(HeldUpBy::Process)
    );
}
