//! What [`Instances`] must do.

use std::time::Duration;

use tokio::task::JoinSet;

use super::{
    Backend,
    support::{World, at_most, expect_kind},
};
use crate::{
    error::ErrorKind,
    keyring::{KeyId, KeyState},
    repository::{Beat, Instance, Instances, KeyReport},
    tenant::{InstanceId, Seq},
};

const CROWD: usize = 32;
/// What a test takes at most, on a machine that is busy.
const MOMENT: Duration = Duration::from_secs(50);

/// A beat is listed as it was given, beside those of others, in the order of the ids.
pub async fn a_beat_is_listed_as_it_was_given(backend: &dyn Backend) {
    let instances = backend.instances();
    assert_eq!(listed(&*instances).await, []);
    let (first, second, third) = (InstanceId::new(), InstanceId::new(), InstanceId::new());
    let states = [
        KeyState::Pending,
        KeyState::Primary,
        KeyState::DecryptOnly,
        KeyState::Disabled,
        KeyState::Destroyed,
    ];
    let mut keys: Vec<KeyReport> = states
        .into_iter()
        .zip(1..)
        .map(|(state, n)| {
            let counted = u64::from(n) * 1_000_000_000_000;
            KeyReport::new(key(n), state).opens(counted).seals(1).refused(7)
        })
        .collect();
    keys.reverse();
    let notes = Beat::new(second, "notes")
        .applied(Seq::new(40))
        .keys(keys.clone());
    for beat in [
        Beat::new(third, "späti \"'; --"),
        notes,
        Beat::new(first, "notes").keys(vec![KeyReport::new(key(1), KeyState::Primary)]),
    ] {
        instances.beat(&beat).await.expect("a beat is taken");
    }
    let listed = listed(&*instances).await;
    let of: Vec<_> = listed
        .iter()
        .map(|instance| (instance.id, &*instance.service, instance.applied))
        .collect();
    assert_eq!(
        of,
        [
            (first, "notes", Seq::ZERO),
            (second, "notes", Seq::new(40)),
            (third, "späti \"'; --", Seq::ZERO),
        ]
    );
    keys.reverse();
    assert_eq!(reports(&listed[1]), keys, "in the order of their ids");
    assert_eq!(reports(&listed[2]), []);
    for instance in &listed {
        assert_eq!(instance.started_at, instance.seen_at);
        assert!(instance.silent < MOMENT && instance.steady.is_zero());
        assert!(instance.keys.iter().all(|key| key.idle < MOMENT));
    }
}

/// A beat replaces all that the instance said before; when it was first heard stays.
pub async fn each_beat_replaces_the_one_before(backend: &dyn Backend) {
    let instances = backend.instances();
    let (id, other) = (InstanceId::new(), InstanceId::new());
    let both = vec![
        KeyReport::new(key(1), KeyState::Primary).opens(5),
        KeyReport::new(key(2), KeyState::Pending),
    ];
    for id in [id, other] {
        let beat = Beat::new(id, "notes").applied(Seq::new(40)).keys(both.clone());
        instances.beat(&beat).await.expect("a beat is taken");
    }
    let before = one(&*instances, id).await;
    let after = vec![
        KeyReport::new(key(2), KeyState::Primary).opens(1).seals(2),
        KeyReport::new(key(3), KeyState::DecryptOnly),
    ];
    // The position falls when the control plane was restored.
    let beat = Beat::new(id, "notes-2").applied(Seq::new(3)).keys(after.clone());
    instances.beat(&beat).await.expect("a beat is taken");
    let now = one(&*instances, id).await;
    assert_eq!((&*now.service, now.applied), ("notes-2", Seq::new(3)));
    assert_eq!(reports(&now), after);
    assert_eq!(now.started_at, before.started_at);
    assert!(now.seen_at >= before.seen_at);
    assert_eq!(
        reports(&one(&*instances, other).await),
        both,
        "nobody else's is touched"
    );
    instances
        .beat(&Beat::new(id, "notes"))
        .await
        .expect("a beat is taken");
    assert_eq!(reports(&one(&*instances, id).await), []);
}

/// Silence lasts from the last beat on, by the control plane's clock.
pub async fn silence_ends_with_a_beat(backend: &dyn Backend) {
    let instances = backend.instances();
    let (id, other) = (InstanceId::new(), InstanceId::new());
    for id in [id, other] {
        let beat = Beat::new(id, "notes");
        instances.beat(&beat).await.expect("a beat is taken");
    }
    let minutes = Duration::from_secs(180);
    backend.pass(minutes).await;
    for id in [id, other] {
        let silent = one(&*instances, id).await.silent;
        assert!(silent >= minutes && silent < minutes + MOMENT, "{silent:?}");
    }
    instances
        .beat(&Beat::new(id, "notes"))
        .await
        .expect("a beat is taken");
    assert!(one(&*instances, id).await.silent < MOMENT);
    assert!(one(&*instances, other).await.silent >= minutes);
}

/// An instance is steady for as long as its beats are not more than a minute apart, and begins anew after a gap.
pub async fn a_gap_between_beats_ends_the_steady_time(backend: &dyn Backend) {
    let instances = backend.instances();
    let id = InstanceId::new();
    let beat = Beat::new(id, "notes");
    instances.beat(&beat).await.expect("a beat is taken");
    let short = Duration::from_secs(5);
    for n in 1..=3 {
        backend.pass(short).await;
        let before = one(&*instances, id).await.steady;
        assert!(before < short * n, "silence is not steady: {before:?}");
        instances.beat(&beat).await.expect("a beat is taken");
        let steady = one(&*instances, id).await.steady;
        assert!(steady >= short * n, "{steady:?} after {n}");
    }
    backend.pass(Duration::from_secs(61)).await;
    instances.beat(&beat).await.expect("a beat is taken");
    let after = one(&*instances, id).await;
    assert!(after.steady.is_zero(), "{:?}", after.steady);
    assert!(after.seen_at > after.started_at + Duration::from_secs(60));
}

/// A key is idle from its last use on, and use is what changed in opens or refusals since the beat before.
pub async fn a_key_is_idle_since_its_last_use(backend: &dyn Backend) {
    let instances = backend.instances();
    let id = InstanceId::new();
    let hour = Duration::from_secs(3_600);
    let report = |state| KeyReport::new(key(1), state);
    let decrypt_only = report(KeyState::DecryptOnly);
    let mut idle = Duration::ZERO;
    for (report, used, why) in [
        (decrypt_only.opens(3), true, "reported for the first time"),
        (decrypt_only.opens(3), false, "nothing happened"),
        (decrypt_only.opens(3).seals(9), false, "sealing is not use"),
        (decrypt_only.opens(4).seals(9), true, "it opened"),
        (decrypt_only.opens(4).seals(9), false, "nothing happened"),
        (
            report(KeyState::Primary).opens(4).seals(9),
            false,
            "another state is not use",
        ),
        (
            decrypt_only.opens(4).seals(9).refused(1),
            true,
            "it was asked to open",
        ),
        (
            decrypt_only.opens(4).seals(9).refused(1),
            false,
            "nothing happened",
        ),
        (
            decrypt_only.opens(1).refused(1),
            true,
            "it counts from the start again",
        ),
    ] {
        backend.pass(hour).await;
        let beat = Beat::new(id, "notes").keys(vec![report]);
        instances.beat(&beat).await.expect("a beat is taken");
        idle = if used { Duration::ZERO } else { idle + hour };
        let held = one(&*instances, id).await.keys[0];
        assert_eq!(held.report, report, "{why}");
        assert!(
            held.idle >= idle && held.idle < idle + MOMENT,
            "{:?}, {why}",
            held.idle
        );
    }
    backend.pass(hour).await;
    assert!(one(&*instances, id).await.keys[0].idle >= hour);
    // A key that was gone in between comes as a new one.
    for keys in [vec![], vec![decrypt_only.opens(1).refused(1)]] {
        let beat = Beat::new(id, "notes").keys(keys);
        instances.beat(&beat).await.expect("a beat is taken");
    }
    assert!(one(&*instances, id).await.keys[0].idle < MOMENT);
}

/// Who leaves is gone, with its keys and alone; leaving again is no error, and a beat brings it back as a new one.
pub async fn who_leaves_is_gone(backend: &dyn Backend) {
    let instances = backend.instances();
    let (id, other) = (InstanceId::new(), InstanceId::new());
    let keys = vec![KeyReport::new(key(1), KeyState::Primary).opens(5)];
    for id in [id, other] {
        let beat = Beat::new(id, "notes").keys(keys.clone());
        instances.beat(&beat).await.expect("a beat is taken");
    }
    let before = one(&*instances, id).await;
    for _ in 0..2 {
        instances.leave(id).await.expect("it may leave");
        let left: Vec<_> = listed(&*instances)
            .await
            .iter()
            .map(|instance| instance.id)
            .collect();
        assert_eq!(left, [other]);
    }
    assert_eq!(reports(&one(&*instances, other).await), keys);
    backend.pass(Duration::from_secs(30)).await;
    instances
        .beat(&Beat::new(id, "notes"))
        .await
        .expect("a beat is taken");
    let after = one(&*instances, id).await;
    assert_eq!(reports(&after), []);
    assert!(after.started_at > before.started_at);
}

/// Who has been silent for more than a day is forgotten with the next beat of anybody, and nobody earlier.
pub async fn who_is_silent_for_a_day_is_forgotten(backend: &dyn Backend) {
    let instances = backend.instances();
    let (gone, late, alive) = (InstanceId::new(), InstanceId::new(), InstanceId::new());
    let keys = vec![KeyReport::new(key(1), KeyState::Primary)];
    let beat = |id| Beat::new(id, "notes").keys(keys.clone());
    let hour = Duration::from_secs(3_600);
    instances.beat(&beat(gone)).await.expect("a beat is taken");
    backend.pass(hour * 2).await;
    for id in [late, alive] {
        instances.beat(&beat(id)).await.expect("a beat is taken");
    }
    backend.pass(hour * 23).await;
    let ids = async || {
        let listed = listed(&*instances).await;
        listed.iter().map(|instance| instance.id).collect::<Vec<_>>()
    };
    assert_eq!(ids().await, [gone, late, alive], "listing forgets nobody");
    instances.beat(&beat(alive)).await.expect("a beat is taken");
    assert_eq!(ids().await, [late, alive]);
    instances.beat(&beat(gone)).await.expect("a beat is taken");
    let back = one(&*instances, gone).await;
    assert_eq!(back.started_at, back.seen_at, "it is a new one");
}

/// A beat without a service, or that says two things of one key, is refused, and nothing of it is kept.
pub async fn a_beat_that_cannot_be_is_refused(backend: &dyn Backend) {
    let instances = backend.instances();
    let id = InstanceId::new();
    let twice = vec![
        KeyReport::new(key(1), KeyState::Primary),
        KeyReport::new(key(2), KeyState::Pending),
        KeyReport::new(key(1), KeyState::DecryptOnly),
    ];
    for beat in [
        Beat::new(id, ""),
        Beat::new(id, " \t"),
        Beat::new(id, "no\0tes"),
        Beat::new(id, "notes").keys(twice),
    ] {
        expect_kind(instances.beat(&beat).await, ErrorKind::InvalidInput);
    }
    assert_eq!(listed(&*instances).await, []);
    // What no process will ever count is kept as what can be counted.
    let most = KeyReport::new(key(1), KeyState::Primary).opens(u64::MAX);
    let beat = Beat::new(id, "notes")
        .applied(Seq::new(u64::MAX))
        .keys(vec![most]);
    instances.beat(&beat).await.expect("a beat is taken");
    assert!(one(&*instances, id).await.keys[0].report.opens > u64::MAX / 4);
}

/// Beats and leaving are no changes: neither the audit nor the change log knows of them.
pub async fn presence_leaves_no_trace(backend: &dyn Backend) {
    let world = World::of(backend);
    world.source("east").await;
    let head = backend.changes().head().await.expect("it answers");
    let audit = world.admin.audit(None, at_most(1_000)).await.expect("it answers");
    let instances = backend.instances();
    let id = InstanceId::new();
    let beat = Beat::new(id, "notes").keys(vec![KeyReport::new(key(1), KeyState::Primary)]);
    for _ in 0..2 {
        instances.beat(&beat).await.expect("a beat is taken");
    }
    backend.pass(Duration::from_secs(25 * 3_600)).await;
    instances
        .beat(&Beat::new(InstanceId::new(), "notes"))
        .await
        .expect("a beat is taken");
    instances.leave(id).await.expect("it may leave");
    assert_eq!(backend.changes().head().await.expect("it answers"), head);
    let after = world.admin.audit(None, at_most(1_000)).await.expect("it answers");
    assert_eq!(after, audit);
}

/// Many beat at once, while those that are silent are forgotten and some of these come back: nobody fails or waits for
/// long, and each is listed with what it said last.
pub async fn many_beat_at_once(backend: &dyn Backend) {
    let silent: Vec<InstanceId> = (0..CROWD).map(|_| InstanceId::new()).collect();
    let alive: Vec<InstanceId> = (0..CROWD).map(|_| InstanceId::new()).collect();
    let beat = |id, n: u64| {
        let keys = (1..=4).map(|k| KeyReport::new(key(k), KeyState::DecryptOnly).opens(n));
        Beat::new(id, "notes").applied(Seq::new(n)).keys(keys.collect())
    };
    let instances = backend.instances();
    for id in &silent {
        instances.beat(&beat(*id, 0)).await.expect("a beat is taken");
    }
    backend.pass(Duration::from_secs(25 * 3_600)).await;
    let (stay, back) = silent.split_at(CROWD / 2);
    let mut crowd = JoinSet::new();
    for id in alive.iter().chain(back).copied() {
        let instances = backend.instances();
        crowd.spawn(async move {
            for n in 1..=5 {
                instances.beat(&beat(id, n)).await.expect("a beat is taken");
            }
        });
    }
    for id in stay.iter().copied() {
        // As somebody who knows that they are dead.
        let instances = backend.instances();
        crowd.spawn(async move { instances.leave(id).await.expect("it may leave") });
    }
    crowd.join_all().await;
    let listed = listed(&*instances).await;
    let mut expected: Vec<InstanceId> = alive.iter().chain(back).copied().collect();
    expected.sort_unstable();
    let ids: Vec<_> = listed.iter().map(|instance| instance.id).collect();
    assert_eq!(ids, expected);
    for instance in listed {
        assert_eq!(instance.applied, Seq::new(5));
        assert_eq!(instance.keys.len(), 4);
        assert!(instance.keys.iter().all(|key| key.report.opens == 5));
    }
}

fn key(n: u8) -> KeyId {
    KeyId::from_bytes([0xab, 0, 0, 0, 0, 0, 0, n])
}

fn reports(instance: &Instance) -> Vec<KeyReport> {
    instance.keys.iter().map(|key| key.report).collect()
}

async fn listed(instances: &dyn Instances) -> Vec<Instance> {
    instances.instances().await.expect("it answers")
}

async fn one(instances: &dyn Instances, id: InstanceId) -> Instance {
    let listed = listed(instances).await;
    let found = listed.into_iter().find(|instance| instance.id == id);
    found.unwrap_or_else(|| panic!("{id} is listed"))
}
