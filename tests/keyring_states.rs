//! What each state of a key permits, and how a key goes from one to the next.
#![expect(clippy::unwrap_used, reason = "a failing test should say where it failed")]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::ScopedJoinHandle,
};

use biplane::{
    keyring::{
        Context, Distributed, KeyId, KeyMaterial, KeyState, Keyring, KeyringError, KeyringFile, LiveKeyring,
        Sealed, Unused,
    },
    secret::Credential,
    tenant::{DataSourceId, Role},
};
use proptest::prelude::*;
use secrecy::ExposeSecret;

const STATES: [KeyState; 5] = [
    KeyState::Pending,
    KeyState::Primary,
    KeyState::DecryptOnly,
    KeyState::Disabled,
    KeyState::Destroyed,
];

fn material(seed: u8) -> KeyMaterial {
    let bytes: Vec<u8> = (0..32u8)
        .map(|n| n.wrapping_mul(37).wrapping_add(seed).wrapping_add(128))
        .collect();
    KeyMaterial::from_bytes(&bytes).unwrap()
}

fn context() -> Context<'static> {
    Context::new("purpose", "owner", "field").unwrap()
}

/// A value sealed under the key of this seed.
fn sealed_under(seed: u8) -> Sealed {
    let keyring = KeyringFile::new(material(seed)).into_keyring().unwrap();
    keyring.seal(&context(), b"content").unwrap()
}

/// A keyring in which key 1 is in this state; key 2 is primary if key 1 is not.
fn with_state(state: KeyState) -> Keyring {
    let builder = match state {
        KeyState::Destroyed => Keyring::builder().destroyed(material(1).id()),
        state => Keyring::builder().key(material(1), state),
    };
    match state {
        KeyState::Primary => builder.key(material(2), KeyState::DecryptOnly),
        _ => builder.key(material(2), KeyState::Primary),
    }
    .build()
    .unwrap()
}

#[test]
fn each_state_opens_and_seals_what_the_table_says() {
    let id = material(1).id();
    let sealed = sealed_under(1);
    for state in STATES {
        let keyring = with_state(state);
        let refusal = match state {
            KeyState::Disabled => Some(KeyringError::KeyDisabled(id)),
            KeyState::Destroyed => Some(KeyringError::KeyDestroyed(id)),
            _ => None,
        };
        assert_eq!(state.opens(), refusal.is_none());
        assert_eq!(keyring.state(id), Some(state));

        // Every way of opening.
        let text = sealed.to_text();
        let source = DataSourceId::new();
        let login = Credential::without_password("app").unwrap();
        let credential = KeyringFile::new(material(1))
            .into_keyring()
            .unwrap()
            .seal_credential(source, Role::App, &login)
            .unwrap();
        let outcomes = [
            keyring.open(&context(), &sealed).err(),
            keyring.open_string(&context(), &sealed).err(),
            keyring.open_text(&context(), text.as_str()).err(),
            keyring.rebind(&context(), &context(), &sealed).err(),
            keyring.open_credential(source, Role::App, &credential).err(),
        ];
        for outcome in outcomes {
            assert_eq!(outcome, refusal, "{state}");
        }

        // Only the primary one seals.
        let fresh = keyring.seal(&context(), b"x").unwrap();
        assert_eq!(fresh.key_id() == id, state == KeyState::Primary, "{state}");
        assert_eq!(fresh.key_id(), keyring.primary());
    }
}

/// A forged or moved value learns nothing of the state of a key that it names.
#[test]
fn a_disabled_key_refuses_before_it_looks_at_the_value() {
    let id = material(1).id();
    let keyring = with_state(KeyState::Disabled);
    let mut bytes = sealed_under(1).as_bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let forged = Sealed::from_bytes(&bytes).unwrap();
    assert_eq!(
        keyring.open(&context(), &forged).unwrap_err(),
        KeyringError::KeyDisabled(id)
    );
}

#[test]
fn a_keyring_without_exactly_one_primary_key_is_refused_in_every_mix_of_states() {
    for one in STATES {
        for two in STATES {
            let mut builder = Keyring::builder();
            for (seed, state) in [(1, one), (2, two)] {
                builder = match state {
                    KeyState::Destroyed => builder.destroyed(material(seed).id()),
                    state => builder.key(material(seed), state),
                };
            }
            let primaries = [one, two]
                .iter()
                .filter(|state| **state == KeyState::Primary)
                .count();
            match (primaries, builder.build()) {
                (0, Err(KeyringError::NoPrimary)) | (1, Ok(_)) | (2, Err(KeyringError::SeveralPrimaries)) => {
                }
                (_, other) => panic!("{one} and {two}: {other:?}"),
            }
        }
    }
}

#[test]
fn one_key_twice_is_refused_in_every_mix_of_states() {
    for state in STATES {
        let builder = Keyring::builder()
            .key(material(2), KeyState::Primary)
            .destroyed(material(1).id());
        let builder = match state {
            KeyState::Destroyed => builder.destroyed(material(1).id()),
            state => builder.key(material(1), state),
        };
        assert_eq!(
            builder.build().unwrap_err(),
            KeyringError::DuplicateKey(material(1).id())
        );
    }
}

#[test]
fn a_destroyed_key_with_its_bytes_is_a_contradiction() {
    let builder = Keyring::builder()
        .key(material(2), KeyState::Primary)
        .key(material(1), KeyState::Destroyed);
    assert!(matches!(
        builder.build().unwrap_err(),
        KeyringError::MalformedKey { .. }
    ));
}

#[test]
fn uses_of_each_key_are_counted_and_refusals_too() {
    let (one, two) = (material(1).id(), material(2).id());
    let sealed = sealed_under(1);
    let count = |keyring: &Keyring, id: KeyId| {
        let status = keyring.status().find(|status| status.id == id).unwrap();
        (status.opens, status.seals, status.refused)
    };

    let keyring = with_state(KeyState::DecryptOnly);
    keyring.open(&context(), &sealed).unwrap();
    keyring
        .clone()
        .open_text(&context(), sealed.to_text().as_str())
        .unwrap();
    keyring.seal(&context(), b"x").unwrap();
    let elsewhere = Context::new("purpose", "other", "field").unwrap();
    keyring.open(&elsewhere, &sealed).unwrap_err();
    assert_eq!(count(&keyring, one), (2, 0, 0), "a failure opened nothing");
    assert_eq!(count(&keyring, two), (0, 1, 0));

    let keyring = with_state(KeyState::Disabled);
    keyring.open(&context(), &sealed).unwrap_err();
    assert_eq!(count(&keyring, one), (0, 0, 1));
}

#[test]
fn a_swap_keeps_counting_where_it_was() {
    let live = LiveKeyring::new(with_state(KeyState::Primary));
    live.current().open(&context(), &sealed_under(1)).unwrap();
    let before = live.current();
    live.swap(with_state(KeyState::DecryptOnly));
    // Whoever still holds the snapshot from before is counted too.
    before.open(&context(), &sealed_under(1)).unwrap();
    live.current().open(&context(), &sealed_under(1)).unwrap();
    let id = material(1).id();
    let status = live.status().into_iter().find(|status| status.id == id).unwrap();
    assert_eq!((status.opens, status.state), (3, KeyState::DecryptOnly));
}

/// A whole rotation in a file, as an operator would do it.
#[test]
fn a_key_goes_from_pending_to_destroyed() {
    let old = material(1).id();
    let mut file = KeyringFile::new(material(1));
    let new = file.add(material(2)).unwrap();
    assert_eq!((file.state(new), file.primary()), (Some(KeyState::Pending), old));

    file.promote(Distributed::confirmed_by_hand(new)).unwrap();
    assert_eq!(
        (file.state(old), file.primary()),
        (Some(KeyState::DecryptOnly), new)
    );
    // And back: a promotion can be undone while both keys are there.
    file.promote(Distributed::confirmed_by_hand(old)).unwrap();
    file.promote(Distributed::confirmed_by_hand(new)).unwrap();

    file.disable(Unused::confirmed_by_hand(old)).unwrap();
    file.enable(old).unwrap();
    assert_eq!(file.state(old), Some(KeyState::DecryptOnly));
    file.disable(Unused::confirmed_by_hand(old)).unwrap();

    for typed in ["", "yes", &new.to_string(), &old.to_string().to_uppercase()] {
        let refused = file.destroy(old, typed).unwrap_err();
        assert_eq!(refused, KeyringError::Unconfirmed(old));
    }
    file.destroy(old, &old.to_string()).unwrap();
    assert_eq!(file.state(old), Some(KeyState::Destroyed));
    assert_eq!(
        file.add(material(1)).unwrap_err(),
        KeyringError::DuplicateKey(old),
        "a destroyed key does not come back"
    );
    let keyring = file.into_keyring().unwrap();
    assert_eq!(
        keyring.open(&context(), &sealed_under(1)).unwrap_err(),
        KeyringError::KeyDestroyed(old)
    );
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Add,
    Promote,
    Disable,
    Enable,
    Destroy,
}

fn step() -> impl Strategy<Value = (Step, u8)> {
    let step = prop_oneof![
        Just(Step::Add),
        Just(Step::Promote),
        Just(Step::Disable),
        Just(Step::Enable),
        Just(Step::Destroy),
    ];
    (step, 0..4u8)
}

/// What a step makes of a state, or `None` where it is refused.
fn permitted(step: Step, state: Option<KeyState>) -> Option<KeyState> {
    match (step, state) {
        (Step::Add, None) => Some(KeyState::Pending),
        (Step::Promote, Some(KeyState::Pending | KeyState::DecryptOnly)) => Some(KeyState::Primary),
        (Step::Disable, Some(KeyState::Pending | KeyState::DecryptOnly)) => Some(KeyState::Disabled),
        (Step::Enable, Some(KeyState::Disabled)) => Some(KeyState::DecryptOnly),
        (Step::Destroy, Some(KeyState::Disabled)) => Some(KeyState::Destroyed),
        _ => None,
    }
}

proptest! {
    /// Whatever is tried in whatever order: there is one primary key, a step does what the model says or changes
    /// nothing, and the file survives being written down.
    #[test]
    fn no_order_of_steps_breaks_a_keyring(steps in prop::collection::vec(step(), 0..40)) {
        let mut file = KeyringFile::new(material(0));
        let mut model = vec![(material(0).id(), KeyState::Primary)];
        for (step, seed) in steps {
            let id = material(seed).id();
            let at = model.iter().position(|(known, _)| *known == id);
            let result = match step {
                Step::Add => file.add(material(seed)).map(drop),
                Step::Promote => file.promote(Distributed::confirmed_by_hand(id)),
                Step::Disable => file.disable(Unused::confirmed_by_hand(id)),
                Step::Enable => file.enable(id),
                Step::Destroy => file.destroy(id, &id.to_string()),
            };
            let next = permitted(step, at.map(|at| model[at].1));
            prop_assert_eq!(result.is_ok(), next.is_some(), "{:?} of {}: {:?}", step, id, result);
            if let Some(next) = next {
                if next == KeyState::Primary {
                    for (_, state) in &mut model {
                        if *state == KeyState::Primary {
                            *state = KeyState::DecryptOnly;
                        }
                    }
                }
                match at {
                    Some(at) => model[at].1 = next,
                    None => model.push((id, next)),
                }
            }
            model.sort_unstable_by_key(|(id, _)| *id);
            let states: Vec<_> = file.states().collect();
            prop_assert_eq!(&states, &model);

            let text = file.to_text();
            let text = text.expose_secret();
            file = KeyringFile::parse(text).unwrap();
            let keyring = Keyring::parse(text).unwrap();
            prop_assert!(keyring.states().eq(model.iter().copied()));
        }
    }
}

/// Requests go on on several threads while a rotation runs through its steps, forty times: none fails.
#[test]
fn no_request_fails_while_the_keyring_is_swapped_through_a_rotation() {
    let mut file = KeyringFile::new(material(0));
    let load = |file: &KeyringFile| Keyring::parse(file.to_text().expose_secret()).unwrap();
    let live = LiveKeyring::new(load(&file));
    let row = || Mutex::new(live.current().seal(&context(), b"content").unwrap());
    let rows = [row(), row(), row()];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = rows
            .iter()
            .map(|row| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let mut row = row.lock().unwrap();
                        let keyring = live.current();
                        keyring.open(&context(), &row).unwrap();
                        *row = keyring.rebind(&context(), &context(), &row).unwrap();
                    }
                })
            })
            .collect();
        for seed in 1..=40 {
            let old = file.primary();
            let new = file.add(material(seed)).unwrap();
            live.swap(load(&file));
            file.promote(Distributed::confirmed_by_hand(new)).unwrap();
            live.swap(load(&file));
            // Zero rows under the old key: then nobody holds a snapshot in which it is primary and is about to write.
            while rows.iter().any(|row| row.lock().unwrap().key_id() != new) {
                assert!(
                    !workers.iter().any(ScopedJoinHandle::is_finished),
                    "a request failed"
                );
                std::thread::yield_now();
            }
            file.disable(Unused::confirmed_by_hand(old)).unwrap();
            live.swap(load(&file));
            file.destroy(old, &old.to_string()).unwrap();
            live.swap(load(&file));
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(live.status().iter().all(|status| status.refused == 0));
}
