//! When the feed begins and ends, what it logs, and warming up.

use std::{num::NonZeroU32, time::Duration};

use async_trait::async_trait;
use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    repository::{ChangeHead, ChangeLog, Changes, MemoryControl, NewSource, NewTenant, TenantAdmin},
    tenant::{DatabaseId, Endpoint, Location, Seq, Server, TenantRef, TenantStatus},
    testing::faulty::{Fault, FaultyRepository},
};

use super::{SUSPENDED, World, some_looks, world};
use crate::support::{Steps, by, kind, listen_to_the_log, logged, seconds, settle, slug};

#[tokio::test(start_paused = true)]
async fn it_ends_with_the_router() {
    for close in [true, false] {
        let world = world();
        let (_, held) = world.cached("acme").await;
        world.looks(3).await;
        let World { biplane, log, .. } = world;
        if close {
            biplane.close(Duration::ZERO).await;
        }
        let kept = close.then_some(biplane);
        settle().await;
        let looks = log.calls();
        tokio::time::sleep(seconds(60)).await;
        let _ = held.read(|_| ()).await;
        tokio::time::sleep(seconds(60)).await;
        assert_eq!(log.calls(), looks);
        drop(kept);
    }
}

#[test]
fn it_begins_with_the_first_lookup_where_there_was_no_runtime_and_goes_on_in_another() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let world = world();
    let first = runtime();
    let (acme, held) = first.block_on(async {
        tokio::time::sleep(seconds(5)).await;
        assert_eq!(world.log.calls(), 0);
        let cached = world.cached("acme").await;
        world.looks(3).await;
        cached
    });
    drop(first);
    let looks = world.log.calls();
    runtime().block_on(async {
        // Committed while nobody looked.
        world.control.turn(acme.id, TenantStatus::Suspended).await;
        tokio::time::sleep(seconds(5)).await;
        assert_eq!(world.log.calls(), looks);
        world.biplane.route(&slug("nobody")).await.unwrap_err();
        world.looks(1).await;
        assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
    });
}

#[tokio::test(start_paused = true)]
async fn a_log_that_panics_is_a_failure_and_no_more() {
    #[derive(Debug)]
    struct Panics;
    #[async_trait]
    impl ChangeLog for Panics {
        async fn head(&self) -> Result<ChangeHead, Error> {
            panic!("told to panic")
        }
        async fn since(&self, _: Seq, _: NonZeroU32) -> Result<Changes, Error> {
            panic!("told to panic")
        }
    }
    let control = MemoryControl::new();
    let acme = control.tenant("acme").await;
    let biplane = Biplane::memory(FaultyRepository::new(control), |_| ())
        .changes(Panics)
        .build()
        .unwrap();
    some_looks().await;
    biplane.route(&acme.slug).await.unwrap();
    assert_eq!(biplane.stats().feed.last_error, Some(ErrorKind::Internal));
}

#[tokio::test(start_paused = true)]
async fn the_log_gets_one_line_for_each_change_of_state() {
    listen_to_the_log();
    let world = world();
    world.looks(3).await;
    for _ in 0..2 {
        world.log.set(Fault::Unreachable);
        world.looks(50).await;
        world.log.set(Fault::None);
        world.looks(50).await;
    }
    let mut lines = logged();
    // Said once at the start, whatever becomes of the log.
    lines.retain(|line| !line.contains("not fenced"));
    assert_eq!(lines.len(), 5, "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn warming_up_routes_all_in_few_queries_and_says_which_failed() {
    let world = world();
    let mut slugs = Vec::new();
    for n in 0..3_000 {
        slugs.push(world.control.tenant(&format!("tenant-{n}")).await.slug);
    }
    let (closed, nobody) = (world.control.provision("closed").await, slug("nobody"));
    let mut names: Vec<_> = slugs.iter().map(TenantRef::Slug).collect();
    names.insert(7, TenantRef::Id(closed.id));
    names.insert(2_500, TenantRef::Slug(&nobody));
    let done = world.biplane.warm_up(&names).await;
    assert_eq!(done.routed, 3_000);
    let failed: Vec<_> = done
        .failed
        .iter()
        .map(|(name, error)| (name.clone(), error.kind()))
        .collect();
    let status = TenantStatus::Provisioning;
    assert_eq!(
        failed,
        [
            (TenantRef::Id(closed.id).to_name(), ErrorKind::Inactive { status }),
            (TenantRef::Slug(&nobody).to_name(), ErrorKind::UnknownTenant),
        ]
    );
    assert!(
        world.repository.calls() <= 12,
        "{} queries",
        world.repository.calls()
    );
    assert!(slugs.iter().all(|slug| world.biplane.cached(slug).is_some()));
}

#[tokio::test(start_paused = true)]
async fn how_many_data_sources_nothing_fences_is_said_once_at_the_start() {
    for follows in [true, false] {
        listen_to_the_log();
        let control = MemoryControl::new();
        for name in ["one", "two", "three", "fenced", "empty", "in-memory"] {
            let server = Server::new(Endpoint::new("db.example", 5432), "data");
            let mut source = NewSource::new(name, Location::Server(server));
            source.database_id = (name == "fenced").then(DatabaseId::new);
            if name == "in-memory" {
                source.location = Location::Memory;
            }
            let source = control.create_source(&by(), source).await.unwrap();
            if name != "empty" {
                let tenant = NewTenant::new(slug(name), source.id);
                control.create(&by(), tenant).await.unwrap();
            }
        }
        let builder = Biplane::memory(control.clone(), |_| ());
        let biplane = match follows {
            true => builder.build(),
            false => builder.without_changes().build(),
        };
        let biplane = biplane.unwrap();
        for _ in 0..3 {
            let _ = biplane.route(&slug("nobody")).await;
            settle().await;
        }
        let lines = logged();
        let told: Vec<&String> = lines.iter().filter(|line| line.contains("not fenced")).collect();
        assert_eq!(told.len(), 1, "{lines:?}");
        assert!(told[0].contains("data_sources=3"), "{told:?}");
    }
}
