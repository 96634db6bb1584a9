//! One mover of a tenant at a time: whoever takes over has ended the one before.

use biplane::{
    error::ErrorKind,
    plane::Fence,
    tenant::{Epoch, Isolation},
};
use sqlx::Connection;

use crate::support::*;

#[tokio::test]
async fn whoever_takes_over_ends_the_mover_before_and_no_other() {
    let home = Home::new(Isolation::Row).await;
    let neighbour = home.neighbour().await;
    let (mut first, mut beside, mut second) = (home.owner().await, home.owner().await, home.owner().await);
    // Again and again is the same as once.
    for _ in 0..2 {
        Fence::new(&mut first)
            .take_over(home.tenant, LIMIT)
            .await
            .unwrap();
    }
    Fence::new(&mut beside).take_over(neighbour, LIMIT).await.unwrap();
    let mut next = Fence::new(&mut second);
    next.take_over(home.tenant, LIMIT).await.unwrap();
    next.fence(home.tenant, Epoch::FIRST, &patient()).await.unwrap();
    // What it would have opened stays closed.
    let late = Fence::new(&mut first).unfence(home.tenant, Epoch::FIRST).await;
    late.unwrap_err();
    assert_eq!(home.state().await, "fenced");
    beside.ping().await.unwrap();
    // It is the tenant's mover for as long as its connection lasts, and no longer.
    second.close().await.unwrap();
    let mut third = home.owner().await;
    Fence::new(&mut third)
        .take_over(home.tenant, LIMIT)
        .await
        .unwrap();
    Fence::new(&mut third)
        .unfence(home.tenant, Epoch::FIRST)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_mover_that_is_not_ones_own_to_end_is_left_alone_and_said() {
    let home = Home::new(Isolation::Row).await;
    let login = format!("mover_{}", home.database);
    create_login(home.cluster, &login).await;
    let (mut superuser, mut other) = (home.owner().await, home.login(&login).await);
    Fence::new(&mut superuser)
        .take_over(home.tenant, LIMIT)
        .await
        .unwrap();
    let refused = Fence::new(&mut other).take_over(home.tenant, LIMIT).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::MissingPrivilege);
    superuser.ping().await.unwrap();
}

/// The lock of movers is none of the marks that transactions leave for a drain.
#[tokio::test]
async fn a_mover_is_in_nobodys_way() {
    let home = Home::new(Isolation::Row).await;
    let mut owner = home.owner().await;
    Fence::new(&mut owner)
        .take_over(home.tenant, LIMIT)
        .await
        .unwrap();
    let (mut app, _) = home.writing("serializable").await;
    run(&mut app, "commit").await.unwrap();
    home.fence_patiently().await;
    assert_eq!(home.notes().await, "1");
}
