//! A mover that died, or was stopped, is followed by another, whatever it had done.

use biplane::{
    plane::{Fence, ResidenceState},
    tenant::Isolation,
};
use uuid::Uuid;

use crate::{
    mover::{Moved, Mover, STEPS},
    router::{self, Journal, Way},
    world::{LIMIT, Place, World, slug},
};

/// What the databases and the control plane say of a tenant on its way from one place to another.
#[derive(Debug, PartialEq, Eq)]
struct State {
    from: Option<ResidenceState>,
    to: Option<ResidenceState>,
    published: bool,
}

impl World {
    async fn state(&self, tenant: &str, from: Place, to: Place) -> State {
        let id = self.id(tenant).await;
        let mut found = [None, None];
        for (place, found) in [from, to].into_iter().zip(&mut found) {
            let all = Fence::new(&mut self.owner(place).await).residences().await;
            let here = all.unwrap().into_iter().find(|residence| residence.tenant == id);
            *found = here.map(|residence| residence.state);
        }
        let published = self.control.place(tenant).await == to;
        let [from, to] = found;
        State { from, to, published }
    }

    async fn write(&self, biplane: &biplane::Biplane, tenant: &str, journal: &Journal) {
        let (db, id) = (biplane.route(&slug(tenant)).await.unwrap(), Uuid::new_v4());
        router::insert(&db, db.tenant(), id, Way::Statement)
            .await
            .unwrap();
        journal.committed(tenant, Way::Statement, id);
    }
}

/// What the page of the fence says that a mover leaves when it dies before a step.
fn left_before(step: &str) -> State {
    use ResidenceState::{Fenced, Open};
    let (from, to, published) = match step {
        "fence" => (Some(Open), None, false),
        "copy" | "receive" => (Some(Fenced), None, false),
        "publish" => (Some(Fenced), Some(Fenced), false),
        "open" => (Some(Fenced), Some(Fenced), true),
        _ => (Some(Fenced), Some(Open), true),
    };
    State { from, to, published }
}

#[tokio::test]
async fn whatever_a_mover_had_done_when_it_died_the_next_one_finishes_or_takes_back() {
    let mut world = World::new().await;
    let biplane = world.biplane();
    let journal = Journal::open(world.directory(), "test");
    let tenant = "dora";
    for step in STEPS {
        // To the other server, to a database of its own or one that it shares.
        for isolation in [Isolation::Database, Isolation::Schema, Isolation::Row] {
            let from = world.control.place(tenant).await;
            let to = Place::new(1 - from.server, isolation);
            world.write(&biplane, tenant, &journal).await;
            let mut mover = Mover::start(&world);
            let halted = mover.move_to(tenant, to, LIMIT, step).await;
            assert_eq!(halted, Moved::Halted, "{step}");
            mover.0.kill().await;
            let left = world.state(tenant, from, to).await;
            assert_eq!(left, left_before(step), "before {step}, to {to}");

            let mut next = Mover::start(&world);
            assert_eq!(next.settle(tenant, "").await, Moved::Done, "{step}");
            let (home, other) = match left.published {
                true => (to, from),
                false => (from, to),
            };
            let settled = world.state(tenant, other, home).await;
            let expected = State {
                from: None,
                to: Some(ResidenceState::Open),
                published: true,
            };
            assert_eq!(settled, expected, "after {step}");
            world.write(&biplane, tenant, &journal).await;
        }
    }
    world.judge().await;
}

/// In a database that stays the same there is one residence, and the next mover finds it.
#[tokio::test]
async fn a_mover_that_died_within_one_database_is_followed_by_another() {
    let mut world = World::new().await;
    let biplane = world.biplane();
    let journal = Journal::open(world.directory(), "test");
    let tenant = "rita";
    for step in STEPS {
        let to = match world.control.place(tenant).await.isolation {
            Isolation::Row => Isolation::Schema,
            _ => Isolation::Row,
        };
        world.write(&biplane, tenant, &journal).await;
        let mut mover = Mover::start(&world);
        let halted = mover.move_to(tenant, Place::new(0, to), LIMIT, step).await;
        assert_eq!(halted, Moved::Halted, "{step}");
        mover.0.kill().await;
        let mut next = Mover::start(&world);
        assert_eq!(next.settle(tenant, "").await, Moved::Done, "{step}");
        assert!(world.is_open(tenant).await, "{step}");
        world.write(&biplane, tenant, &journal).await;
    }
    world.judge().await;
}

#[tokio::test]
async fn a_mover_that_was_stopped_opens_nothing_that_the_next_one_has_fenced() {
    let mut world = World::new().await;
    let tenant = "rita";
    let (from, to) = (Place::new(0, Isolation::Row), Place::new(1, Isolation::Row));
    let mut first = Mover::start(&world);
    let halted = first.move_to(tenant, to, LIMIT, "open").await;
    assert_eq!(halted, Moved::Halted);
    first.0.stop();
    // The next one has drained what the first one is about to open.
    let mut second = Mover::start(&world);
    assert_eq!(second.settle(tenant, "publish").await, Moved::Halted);
    first.0.resume();
    let late = first.go_on().await;
    assert!(matches!(late, Moved::Failed(_)), "{late:?}");
    assert!(!world.is_open(tenant).await);
    assert_eq!(second.go_on().await, Moved::Done);
    let biplane = world.biplane();
    let journal = Journal::open(world.directory(), "test");
    world.write(&biplane, tenant, &journal).await;
    let settled = world.state(tenant, from, to).await;
    assert_eq!((settled.from, settled.to), (None, Some(ResidenceState::Open)));
    world.judge().await;
}
