//! A password that changes at the server first.

use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    pool::BreakerOptions,
    repository::{
        ChangeLog,
        CredentialSlot::{Current, Next},
    },
    testing::wait,
};
use futures_util::future::join_all;
use std::time::Duration;

use crate::{
    Sealed,
    data_plane::{LIMIT, backend, options},
    login, user,
};

/// Nothing is tried a second time while a test runs.
pub(crate) fn for_good() -> BreakerOptions {
    BreakerOptions::default().back_off(Duration::from_secs(3_600), Duration::from_secs(7_200))
}

#[tokio::test]
async fn a_password_changed_at_the_server_first_fails_nobody_while_the_next_one_is_stored() {
    let sealed = Sealed::new().await;
    let first = sealed.role("first").await;
    let placed = sealed.tenant(&first).await;
    sealed
        .store(&placed, Next, &login(first.username(), "second"))
        .await;
    let biplane = sealed.unfed(options(8), for_good());
    let db = biplane.route(&placed.slug).await.unwrap();
    backend(&db).await;
    let loads = biplane.stats().loads;
    sealed.password(first.username(), "second").await;
    sealed.world.watch(&placed.database).await.kill_sessions().await;
    for begun in join_all((0..8).map(|_| db.begin())).await {
        begun.unwrap();
    }
    assert_eq!(biplane.stats().connector.open_breakers, 0);
    assert_eq!(biplane.stats().loads, loads, "nobody had to be asked");
    sealed.promote(&placed).await;
    biplane.invalidate(placed.id).await;
    assert_eq!(user(&db).await.unwrap(), first.username());
}

#[tokio::test]
async fn a_next_login_that_was_stored_a_moment_ago_is_found_by_the_first_who_is_rejected() {
    let sealed = Sealed::new().await;
    let first = sealed.role("first").await;
    let placed = sealed.tenant(&first).await;
    let biplane = sealed.unfed(options(8), for_good());
    let db = biplane.route(&placed.slug).await.unwrap();
    backend(&db).await;
    sealed
        .store(&placed, Next, &login(first.username(), "second"))
        .await;
    sealed.password(first.username(), "second").await;
    sealed.world.watch(&placed.database).await.kill_sessions().await;
    for begun in join_all((0..8).map(|_| db.begin())).await {
        begun.unwrap();
    }
    assert_eq!(biplane.stats().connector.open_breakers, 0);
}

#[tokio::test]
async fn when_the_server_takes_neither_login_callers_hear_it_and_the_next_that_is_stored_heals() {
    let sealed = Sealed::new().await;
    let first = sealed.role("first").await;
    let placed = sealed.tenant(&first).await;
    sealed
        .store(&placed, Next, &login(first.username(), "second"))
        .await;
    let short = Duration::from_millis(20);
    let biplane = sealed.unfed(options(4), BreakerOptions::default().back_off(short, short * 4));
    let db = biplane.route(&placed.slug).await.unwrap();
    backend(&db).await;
    sealed.password(first.username(), "third").await;
    sealed.world.watch(&placed.database).await.kill_sessions().await;
    let error = db.begin().await.map(drop).unwrap_err();
    assert_eq!(Error::of(&error).unwrap().kind(), ErrorKind::CredentialRejected);
    assert_eq!(biplane.stats().connector.open_breakers, 1);
    sealed
        .store(&placed, Next, &login(first.username(), "third"))
        .await;
    wait::until("it is found", LIMIT, async || db.begin().await.is_ok())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_login_that_changed_behind_our_back_heals_as_soon_as_the_new_one_is_known_though_nobody_tells() {
    let sealed = Sealed::new().await;
    let first = sealed.role("first").await;
    let placed = sealed.tenant(&first).await;
    let control = sealed.world.control.clone();
    // The old login is left alone for an hour, so that whatever heals sooner does not heal by trying it again.
    let biplane = Biplane::postgres(control.clone(), sealed.keyring.clone())
        .pool(options(4))
        .breakers(for_good())
        .build()
        .unwrap();
    let db = biplane.route(&placed.slug).await.unwrap();
    backend(&db).await;
    let second = sealed.password(first.username(), "second").await;
    sealed.world.watch(&placed.database).await.kill_sessions().await;
    db.begin().await.map(drop).unwrap_err();
    sealed.store(&placed, Current, &second).await;
    let stored = control.head().await.unwrap().seq;
    wait::until("the feed has read it", LIMIT, async || {
        biplane.applied() >= stored
    })
    .await
    .unwrap();
    db.begin().await.unwrap();
    assert_eq!(biplane.stats().connector.open_breakers, 0);
}
