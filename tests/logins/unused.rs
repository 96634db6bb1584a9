//! What becomes of connections, and of what is kept for them, when nobody uses their data source any more.

use std::time::Duration;

use biplane::{
    repository::{NewSource, TenantAdmin},
    tenant::{Isolation, Location, Role},
    testing::wait,
};

use crate::data_plane::{LIMIT, Wish, World, backend, options, shared};

/// Also those that a data source is to keep.
#[tokio::test]
async fn connections_close_when_the_last_tenant_of_their_data_source_has_moved_away() {
    let world = World::new(shared().await);
    let keeps = Wish {
        min: 2,
        ..Wish::default()
    };
    let placed = world.tenant_with(keeps).await;
    let location = Location::Server(world.cluster.server("postgres"));
    let elsewhere = NewSource::new("elsewhere", location);
    let elsewhere = world.control.create_source(&world.by, elsewhere).await.unwrap();
    let login = world.cluster.superuser();
    world.credentials.set(elsewhere.id, Role::App, login);
    let biplane = world.biplane(options(4));
    let db = biplane.route(&placed.slug).await.unwrap();
    let two = (db.acquire().await.unwrap(), db.acquire().await.unwrap());
    drop(two);
    let mut watch = world.watch(&placed.database).await;
    watch.until_sessions(2).await;
    let version = world.record(placed.id).await.version;
    world
        .control
        .place(&world.by, placed.id, version, elsewhere.id, Isolation::Database)
        .await
        .unwrap();
    watch.until_sessions(0).await;
    wait::until("nothing is kept", LIMIT, async || {
        biplane.stats().connector.pools == 0
    })
    .await
    .unwrap();
    // The tenant is served where it is now.
    backend(&db).await;
    assert_eq!(biplane.stats().connector.pools, 1);
}

#[tokio::test]
async fn nothing_is_kept_for_a_data_source_that_nobody_has_used_for_long() {
    let world = World::new(shared().await);
    let placed = world.tenant().await;
    let mut pool = options(4);
    pool.idle_timeout = Duration::from_secs(1);
    let biplane = world.biplane(pool);
    let db = biplane.route(&placed.slug).await.unwrap();
    for _ in 0..2 {
        backend(&db).await;
        assert_eq!(biplane.stats().connector.pools, 1);
        assert_eq!(biplane.stats().connector.unfenced, 1);
        wait::until("nothing is kept", LIMIT, async || {
            biplane.stats().connector.pools == 0
        })
        .await
        .unwrap();
        assert_eq!(biplane.stats().connector.unfenced, 0);
    }
    // What is in use is kept, however long.
    let held = db.acquire().await.unwrap();
    let mut watch = world.watch(&placed.database).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((watch.sessions().await, biplane.stats().connector.pools), (1, 1));
    }
    drop(held);
}
