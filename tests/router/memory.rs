//! Data in memory has the manners of a database.

use std::panic::AssertUnwindSafe;

use biplane::{
    error::ErrorKind,
    repository::{NewSource, TenantAdmin},
    tenant::{Isolation, Location, Role},
};
use futures_util::FutureExt;

use crate::support::{Steps, by, kind, world};

#[tokio::test]
async fn a_transaction_sees_its_own_changes_and_nobody_else_does_before_the_commit() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.write().unwrap().push("mine");
    assert_eq!(tx.read(), &["mine"]);
    assert!(db.read(|notes| notes.is_empty()).await.unwrap());
    tx.commit().unwrap();
    assert_eq!(db.read(|notes| notes.clone()).await.unwrap(), ["mine"]);
}

#[tokio::test]
async fn a_transaction_sees_the_data_as_they_were_when_it_began() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    let tx = db.begin().await.unwrap();
    db.write(|notes| notes.push("later")).await.unwrap();
    assert!(tx.read().is_empty());
    // It wrote nothing, so that nothing is in conflict.
    tx.commit().unwrap();
}

#[tokio::test]
async fn of_two_transactions_that_write_the_second_is_refused_whole() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    let (mut first, mut second) = (db.begin().await.unwrap(), db.begin().await.unwrap());
    first.write().unwrap().push("first");
    second.write().unwrap().push("second");
    first.commit().unwrap();
    assert_eq!(kind(second.commit()), Some(ErrorKind::TransactionConflict));
    assert_eq!(db.read(|notes| notes.clone()).await.unwrap(), ["first"]);

    let mut tx = db.begin().await.unwrap();
    tx.write().unwrap().push("in a transaction");
    db.write(|notes| notes.push("by a statement")).await.unwrap();
    assert_eq!(kind(tx.commit()), Some(ErrorKind::TransactionConflict));
}

#[tokio::test]
async fn a_transaction_that_is_dropped_leaves_nothing_behind() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.write().unwrap().push("dropped");
    drop(tx);
    assert!(db.read(|notes| notes.is_empty()).await.unwrap());
}

#[tokio::test]
async fn a_write_that_panics_leaves_the_data_as_they_were() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    db.write(|notes| notes.push("before")).await.unwrap();
    let write = db.write(|notes| {
        notes.clear();
        panic!("half-way")
    });
    let outcome = AssertUnwindSafe(write).catch_unwind().await;
    assert!(outcome.is_err());
    assert_eq!(db.read(|notes| notes.clone()).await.unwrap(), ["before"]);
    db.write(|notes| notes.push("after")).await.unwrap();
}

#[tokio::test]
async fn the_role_for_reads_does_not_write() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    db.write(|notes| notes.push("by app")).await.unwrap();
    let reader = db.with_role(Role::ReadOnly);
    assert_eq!((db.role(), reader.role()), (Role::App, Role::ReadOnly));
    assert_eq!(reader.read(|notes| notes.clone()).await.unwrap(), ["by app"]);
    let refused = reader.write(|notes| notes.clear()).await;
    assert_eq!(kind(refused), Some(ErrorKind::ReadOnly));
    let mut tx = reader.begin().await.unwrap();
    assert_eq!(kind(tx.write().map(drop)), Some(ErrorKind::ReadOnly));
}

#[tokio::test]
async fn a_tenant_that_was_placed_elsewhere_finds_nothing_there() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let held = world.biplane.route(&acme.slug).await.unwrap();
    held.write(|notes| notes.push("here")).await.unwrap();
    let source = NewSource::new("elsewhere", Location::Memory);
    let source = world.control.create_source(&by(), source).await.unwrap();
    let (control, by) = (&world.control, by());
    let placed = control.place(&by, acme.id, acme.version, source.id, Isolation::Database);
    placed.await.unwrap();
    world.biplane.invalidate(acme.id).await;
    assert!(held.read(|notes| notes.is_empty()).await.unwrap());
}
