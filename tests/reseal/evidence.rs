//! When a key counts as out of use.

use std::time::Duration;

use biplane::{
    error::{Error, ErrorKind},
    keyring::{KeyId, KeyState, Unused},
    presence::PRESUMED_DEAD,
    repository::{Beat, Instance, Instances, KeyReport, MemoryControl},
    rotation::{MemoryStore, QUIET_FOR, RotationError, StillUsed, Use, unused},
    tenant::InstanceId,
    testing::conformance::async_trait,
};

use crate::sealed::{Keys, PURPOSE, seal};

/// A store, and a control plane to which instances beat.
struct World {
    keys: Keys,
    store: MemoryStore,
    control: MemoryControl,
}

impl World {
    /// Everything is under the new key, and nobody beats yet.
    fn new() -> Self {
        let keys = Keys::new();
        let store = MemoryStore::new("settings", PURPOSE);
        store.insert("a", "token", seal(&keys.after, "a", "token", "x"));
        Self {
            keys,
            store,
            control: MemoryControl::new(),
        }
    }

    async fn beat(&self, instance: InstanceId, keys: &[(KeyId, KeyState, u64)]) {
        let reports = keys
            .iter()
            .map(|(id, state, opens)| KeyReport::new(*id, *state).opens(*opens));
        let beat = Beat::new(instance, "notes").keys(reports.collect());
        self.control.beat(&beat).await.unwrap();
    }

    /// An instance in the middle of the rotation that has opened so many values under the old key.
    async fn works(&self, instance: InstanceId, opens: u64) {
        let (old, new) = (self.keys.old, self.keys.new);
        self.beat(
            instance,
            &[(old, KeyState::DecryptOnly, opens), (new, KeyState::Primary, 9)],
        )
        .await;
    }

    /// Lets time pass, in which these instances go on beating and open nothing.
    async fn pass(&self, time: Duration, instances: &[(InstanceId, u64)]) {
        let step = Duration::from_secs(20);
        let mut left = time;
        while !left.is_zero() {
            let now = left.min(step);
            self.control.advance(now);
            left -= now;
            for (instance, opens) in instances {
                self.works(*instance, *opens).await;
            }
        }
    }

    async fn ask(&self) -> Result<Unused, StillUsed> {
        match unused(self.keys.old, &[&self.store], Some(&self.control), QUIET_FOR).await {
            Ok(evidence) => Ok(evidence),
            Err(RotationError::StillUsed(still)) => Err(*still),
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn no_value_and_a_quiet_instance_are_evidence() {
    let world = World::new();
    let instance = InstanceId::new();
    world.works(instance, 5).await;
    world.pass(QUIET_FOR, &[(instance, 5)]).await;
    assert_eq!(world.ask().await.unwrap().key(), world.keys.old);
}

#[tokio::test]
async fn a_value_in_any_store_stands_in_the_way() {
    let world = World::new();
    let instance = InstanceId::new();
    world.works(instance, 5).await;
    world.pass(QUIET_FOR, &[(instance, 5)]).await;
    let other = MemoryStore::new("others", PURPOSE);
    other.insert("b", "token", seal(&world.keys.before, "b", "token", "x"));
    let outcome = unused(
        world.keys.old,
        &[&world.store, &other],
        Some(&world.control),
        QUIET_FOR,
    )
    .await;
    let Err(RotationError::StillUsed(still)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(still.values, [("others".into(), 1)]);
    assert!(still.instances.is_empty());
    assert!(still.to_string().contains("others: 1 values under it"), "{still}");
}

#[tokio::test]
async fn an_instance_that_opened_something_lately_stands_in_the_way() {
    let world = World::new();
    let (quiet, busy) = (InstanceId::new(), InstanceId::new());
    world.works(quiet, 5).await;
    world.works(busy, 5).await;
    world.pass(QUIET_FOR, &[(quiet, 5), (busy, 5)]).await;
    world.works(busy, 6).await;
    world
        .pass(Duration::from_secs(60), &[(quiet, 5), (busy, 6)])
        .await;
    let still = world.ask().await.unwrap_err();
    assert_eq!(still.instances.len(), 1);
    assert_eq!(still.instances[0].id, busy);
    assert!(matches!(still.instances[0].how, Use::Opened(ago) if ago.as_secs() == 60));
    world.pass(QUIET_FOR, &[(quiet, 5), (busy, 6)]).await;
    drop(world.ask().await.unwrap());
}

/// What it did since its last word, nobody knows.
#[tokio::test]
async fn silence_is_no_quiet() {
    let world = World::new();
    let (speaks, silent) = (InstanceId::new(), InstanceId::new());
    world.works(speaks, 5).await;
    world.works(silent, 5).await;
    world
        .pass(QUIET_FOR - Duration::from_secs(40), &[(speaks, 5), (silent, 5)])
        .await;
    world.pass(Duration::from_secs(40), &[(speaks, 5)]).await;
    let still = world.ask().await.unwrap_err();
    assert_eq!(still.instances[0].id, silent);
    assert!(matches!(still.instances[0].how, Use::Opened(ago) if ago.as_secs() == QUIET_FOR.as_secs()));
    world.pass(Duration::from_secs(40), &[(speaks, 5)]).await;
    let still = world.ask().await.unwrap_err();
    assert!(matches!(still.instances[0].how, Use::Silent(so_long) if so_long.as_secs() == 80));
    // Dead, for all that anybody can tell.
    world.pass(PRESUMED_DEAD, &[(speaks, 5)]).await;
    drop(world.ask().await.unwrap());
}

#[tokio::test]
async fn an_instance_that_still_seals_under_it_stands_in_the_way() {
    let world = World::new();
    let instance = InstanceId::new();
    let late = [(world.keys.old, KeyState::Primary, 5)];
    world.beat(instance, &late).await;
    for _ in 0..=QUIET_FOR.as_secs() / 20 {
        world.control.advance(Duration::from_secs(20));
        world.beat(instance, &late).await;
    }
    let still = world.ask().await.unwrap_err();
    assert_eq!(still.instances[0].how, Use::Seals);
}

#[tokio::test]
async fn an_instance_without_the_key_is_nobody_to_wait_for_and_one_that_reports_none_is() {
    let world = World::new();
    let (without, mute) = (InstanceId::new(), InstanceId::new());
    world
        .beat(without, &[(world.keys.new, KeyState::Primary, 5)])
        .await;
    drop(world.ask().await.unwrap());
    world.beat(mute, &[]).await;
    let still = world.ask().await.unwrap_err();
    assert_eq!(
        (still.instances[0].id, still.instances[0].how),
        (mute, Use::SaysNothing)
    );
}

#[tokio::test]
async fn nobody_to_ask_is_no_evidence() {
    let world = World::new();
    assert!(world.ask().await.unwrap_err().unwatched);
    let outcome = unused(world.keys.old, &[&world.store], None, QUIET_FOR).await;
    let Err(RotationError::StillUsed(still)) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(still.unwatched && still.values.is_empty());
    let outcome = unused(world.keys.old, &[], Some(&world.control), QUIET_FOR).await;
    assert!(matches!(outcome, Err(RotationError::NoStore)));
}

/// A control plane that nobody can ask.
#[derive(Debug)]
struct Away;

#[async_trait]
impl Instances for Away {
    async fn beat(&self, _: &Beat) -> Result<(), Error> {
        Err(ErrorKind::ControlPlaneUnavailable.into())
    }

    async fn leave(&self, _: InstanceId) -> Result<(), Error> {
        Err(ErrorKind::ControlPlaneUnavailable.into())
    }

    async fn instances(&self) -> Result<Vec<Instance>, Error> {
        Err(ErrorKind::ControlPlaneUnavailable.into())
    }
}

#[tokio::test]
async fn who_cannot_be_asked_gives_no_evidence() {
    let world = World::new();
    let outcome = unused(world.keys.old, &[&world.store], Some(&Away), QUIET_FOR).await;
    let Err(RotationError::Presence(error)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(error.kind(), ErrorKind::ControlPlaneUnavailable);
}
