//! Whoever asks is told by name what is left alone.

use std::time::Duration;

use biplane::{
    Biplane,
    breaker::{BreakerScope, BreakerState, BreakerStatus},
    secret::Credential,
    tenant::{CredentialVersion, Role},
};
use secrecy::SecretString;

use crate::{
    LONG, behind, behind_with, biplane,
    data_plane::{Wish, World, backend, options, shared},
    door::{Door, Mode},
    for_good, is_refused, kind, until_refused,
};

fn of(biplane: &Biplane, scope: &BreakerScope) -> Option<BreakerStatus> {
    let mut all = biplane.breakers();
    all.retain(|status| status.scope == *scope);
    assert!(all.len() <= 1, "each is told once: {all:?}");
    all.pop()
}

fn is_open(status: &BreakerStatus) -> bool {
    matches!(status.state, BreakerState::Open { retry_after } if retry_after > Duration::ZERO && retry_after <= LONG)
}

#[tokio::test]
async fn what_is_left_alone_is_told_by_name_with_what_it_cost() {
    let world = World::new(shared().await);
    let (dead, living) = (
        Door::before(world.cluster.endpoint()).await,
        Door::before(world.cluster.endpoint()).await,
    );
    dead.set(Mode::Shut);
    let (down, up) = (behind(&world, &dead).await, behind(&world, &living).await);
    let wish = Wish {
        credential: Some(Credential::new("postgres", SecretString::from("wrong")).unwrap()),
        ..Wish::default()
    };
    let locked_out = behind_with(&world, &[&living.endpoint], wish).await;
    let biplane = biplane(&world, options(8), for_good());
    assert_eq!(biplane.breakers(), []);

    let held = biplane.route(&up.slug).await.unwrap();
    backend(&held).await;
    let held = biplane.route(&down.slug).await.unwrap();
    until_refused(&held).await;
    let at_the_dead = BreakerScope::Endpoint(dead.endpoint.clone());
    let before = of(&biplane, &at_the_dead).unwrap().refused;
    for _ in 0..10 {
        assert!(is_refused(kind(held.begin().await)));
    }
    let status = of(&biplane, &at_the_dead).unwrap();
    assert!(is_open(&status), "{status:?}");
    assert_eq!(status.refused, before + 10);

    let held = biplane.route(&locked_out.slug).await.unwrap();
    kind(held.begin().await);
    let login = BreakerScope::Login {
        source: locked_out.source,
        role: Role::App,
        version: CredentialVersion::FIRST,
        tenant: None,
    };
    let status = of(&biplane, &login).unwrap();
    assert!(is_open(&status), "{status:?}");

    let open: Vec<_> = biplane.breakers().into_iter().filter(is_open).collect();
    assert_eq!(open.len(), 2, "and nothing else: {open:?}");
    assert_eq!(biplane.stats().connector.open_breakers, 2);
    let at_the_living = of(&biplane, &BreakerScope::Endpoint(living.endpoint.clone()));
    assert!(at_the_living.is_none_or(|status| status.state == BreakerState::Closed));
}
