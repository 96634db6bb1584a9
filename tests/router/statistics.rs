//! The counters add up.

use biplane::{router::CacheOptions, testing::faulty::Fault};

use crate::support::{Steps, slug, world};

#[tokio::test]
async fn each_lookup_is_a_hit_a_miss_or_known_to_be_unknown() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let closed = world.control.provision("closed").await;
    let mut lookups = 0;
    let options = CacheOptions::default();
    for round in 0..4 {
        for _ in 0..10 {
            let _ = world.biplane.route(&acme.slug).await;
            let _ = world.biplane.route(acme.id).await;
            let _ = world.biplane.route(&closed.slug).await;
            let _ = world.biplane.route(&slug("nobody")).await;
            lookups += 4;
        }
        world.clock.advance(options.refresh_for);
        let fault = if round == 1 {
            Fault::Unreachable
        } else {
            Fault::None
        };
        world.repository.set(fault);
    }
    let stats = world.biplane.stats();
    assert_eq!(
        stats.hits + stats.misses + stats.known_unknown + stats.not_asked,
        lookups
    );
    assert!(stats.hits > 0 && stats.misses > 0 && stats.known_unknown > 0);
    assert_eq!(stats.loads, world.repository.calls() as u64);
    assert_eq!(stats.names_loaded, world.repository.take_asked().len() as u64);
    // One round without a control plane: one failure, and those that come while it is left alone are not asked for.
    assert_eq!((stats.failed_loads, stats.served_stale), (1, 1), "{stats:?}");
    assert!(stats.not_asked > 0);
    assert_eq!(stats.cached_tenants, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_hit_of_any_thread_is_lost() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    world.biplane.route(&acme.slug).await.unwrap();
    let before = world.biplane.stats().hits;
    // More threads than any table of counters has lines.
    let (biplane, slug) = (&world.biplane, &acme.slug);
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(move || {
                for _ in 0..1_000 {
                    biplane.cached(slug).expect("it is warm");
                }
            });
        }
    });
    assert_eq!(world.biplane.stats().hits - before, 100_000);
}

#[tokio::test]
async fn the_memory_connector_counts_its_stores_and_open_transactions() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let db = world.biplane.route(&acme.slug).await.unwrap();
    assert_eq!(world.biplane.stats().connector.pools, 0);
    let tx = db.begin().await.unwrap();
    let connector = world.biplane.stats().connector;
    assert_eq!((connector.pools, connector.connections), (1, 1));
    drop(tx);
    assert_eq!(world.biplane.stats().connector.connections, 0);
}
