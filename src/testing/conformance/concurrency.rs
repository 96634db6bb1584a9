//! What must hold while many work at once.

use std::{
    collections::HashMap,
    fmt::Debug,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::json;
use tokio::{sync::Barrier, task::JoinSet};

use super::{
    Backend,
    support::{NEW_KEY, World, at_most, by, domain, find_one, new_tenant, sealed, sealed_under, slug},
};
use crate::{
    error::{Error, ErrorKind},
    repository::{
        Change, ChangeLog, CredentialPlace, CredentialSlot, NewTenant, Reseal, ResealOutcome, Subject,
    },
    tenant::{Isolation, Role, Seq, TenantId, TenantRef, TenantStatus},
};

const RIVALS: usize = 8;
const WRITERS: usize = 24;
const CHANGES_EACH: u64 = 6;
const READS: usize = 50;

/// Of many writers that read the same version one wins, and each of the others gets `VersionConflict`.
pub async fn of_rival_writers_one_wins(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant_in("acme", east, TenantStatus::Active).await;
    let results = race(|n| {
        let admin = Arc::clone(&world.admin);
        async move {
            let by = by();
            match n % 3 {
                0 => {
                    admin
                        .set_settings(&by, acme.id, acme.version, json!({ "n": n }))
                        .await
                }
                1 => {
                    admin
                        .set_status(&by, acme.id, acme.version, TenantStatus::Suspended)
                        .await
                }
                _ => {
                    let slug = slug(&format!("acme-{n}"));
                    admin.rename(&by, acme.id, acme.version, slug).await
                }
            }
        }
    })
    .await;
    let winner = one_winner(results, ErrorKind::VersionConflict);
    assert_eq!(world.read(acme.id).await, winner);
}

/// Of many that create or rename to the same slug one gets it, and each of the others gets `AlreadyExists`.
pub async fn of_rivals_for_a_slug_one_gets_it(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let mut present = Vec::new();
    for n in 0..RIVALS {
        present.push(world.tenant(&format!("rival-{n}"), east).await);
    }
    let results = race(|n| {
        let admin = Arc::clone(&world.admin);
        let rival = present[n].clone();
        async move {
            if n % 2 == 0 {
                admin.create(&by(), new_tenant("acme", east)).await
            } else {
                admin.rename(&by(), rival.id, rival.version, slug("acme")).await
            }
        }
    })
    .await;
    let winner = one_winner(results, ErrorKind::AlreadyExists);
    let found = find_one(&*world.tenants, TenantRef::Slug(&slug("acme"))).await;
    let found = found.expect("the record is readable").expect("it exists");
    assert_eq!(found.record.tenant, winner);
}

/// Of many that want the same domain one gets it, also while its owner gives it up.
pub async fn of_rivals_for_a_domain_one_gets_it(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let mut rivals = Vec::new();
    for n in 0..RIVALS {
        rivals.push(world.tenant(&format!("rival-{n}"), east).await);
    }
    let results = race(|n| {
        let admin = Arc::clone(&world.admin);
        let rival = rivals[n].clone();
        async move {
            admin
                .add_domain(&by(), rival.id, rival.version, domain("shop.example"))
                .await
        }
    })
    .await;
    let winner = one_winner(results, ErrorKind::AlreadyExists);
    let shop = domain("shop.example");
    let found = find_one(&*world.tenants, TenantRef::Domain(&shop)).await;
    let found = found.expect("the record is readable").expect("it exists");
    assert_eq!(found.record.tenant, winner);
}

/// Of many that want a database for themselves, new or placed there, one gets it.
pub async fn of_rivals_for_a_database_one_gets_it(backend: &dyn Backend) {
    let world = World::of(backend);
    let (east, own) = (world.source("east").await, world.source("own").await);
    let mut present = Vec::new();
    for n in 0..RIVALS {
        present.push(world.tenant(&format!("present-{n}"), east).await);
    }
    let results = race(|n| {
        let admin = Arc::clone(&world.admin);
        let rival = present[n].clone();
        async move {
            if n % 2 == 0 {
                let new = NewTenant::new(slug(&format!("new-{n}")), own);
                admin.create(&by(), new).await
            } else {
                admin
                    .place(&by(), rival.id, rival.version, own, Isolation::Database)
                    .await
            }
        }
    })
    .await;
    one_winner(results, ErrorKind::InvalidInput);
}

/// Of many that store a credential in the same slot one wins.
pub async fn of_rivals_for_a_credential_one_wins(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let mut expected = None;
    for _ in 0..2 {
        let results = race(|_| {
            let admin = Arc::clone(&world.admin);
            async move {
                admin
                    .set_credential(
                        &by(),
                        east,
                        Role::App,
                        CredentialSlot::Current,
                        expected,
                        sealed('a'),
                    )
                    .await
            }
        })
        .await;
        let version = one_winner(results, ErrorKind::VersionConflict);
        let source = world.admin.source("east").await.expect("it answers");
        let source = source.expect("it exists");
        assert_eq!(source.credentials[&Role::App].current.version, version);
        expected = Some(version);
    }
}

/// Of many workers that seal the same credentials anew, in whatever order, one replaces each, and none fails.
pub async fn of_workers_that_reseal_one_replaces_each(backend: &dyn Backend) {
    let world = World::of(backend);
    let mut places = Vec::new();
    for n in 0..4 {
        let source = world.source(&format!("source-{n}")).await;
        places.push(CredentialPlace::new(source, Role::App, CredentialSlot::Current));
        world
            .admin
            .set_credential(
                &by(),
                source,
                Role::App,
                CredentialSlot::Current,
                None,
                sealed('a'),
            )
            .await
            .expect("a sealed value is accepted");
    }
    let results = race(|n| {
        let store = Arc::clone(&world.credentials);
        let anew = |place: &CredentialPlace| Reseal::new(*place, sealed('a'), sealed_under(NEW_KEY, 'z'));
        let mut batch: Vec<Reseal> = places.iter().map(anew).collect();
        if n % 2 == 1 {
            batch.reverse();
        }
        async move {
            let outcomes = store.reseal_credentials(&by(), &batch).await?;
            Ok(batch
                .into_iter()
                .zip(outcomes)
                .map(|(one, outcome)| (one.place, outcome))
                .collect::<Vec<_>>())
        }
    })
    .await;
    let outcomes: Vec<_> = results
        .into_iter()
        .flat_map(|result| result.expect("no worker fails"))
        .collect();
    assert_eq!(outcomes.len(), RIVALS * places.len());
    for place in places {
        let won = (place, ResealOutcome::Replaced);
        assert_eq!(outcomes.iter().filter(|outcome| **outcome == won).count(), 1);
    }
}

/// Whoever stores another credential while the old one is sealed anew gets a version above, and the new login stays: a
/// reseal never puts the old one back, and the writer never fails for it but by the version.
pub async fn no_reseal_undoes_a_change(backend: &dyn Backend) {
    let world = World::of(backend);
    for round in 0..6 {
        let source = world.source(&format!("source-{round}")).await;
        let place = CredentialPlace::new(source, Role::App, CredentialSlot::Current);
        let set = |expected, mark| {
            let admin = Arc::clone(&world.admin);
            async move {
                admin
                    .set_credential(&by(), source, place.role, place.slot, expected, sealed(mark))
                    .await
            }
        };
        let first = set(None, 'a').await.expect("a sealed value is accepted");
        let results = race(|n| {
            let store = Arc::clone(&world.credentials);
            let set = set(Some(first), 'n');
            async move {
                if n == 0 {
                    return set.await.map(|_| None);
                }
                let anew = Reseal::new(place, sealed('a'), sealed_under(NEW_KEY, 'z'));
                let outcomes = store.reseal_credentials(&by(), &[anew]).await?;
                Ok(outcomes.first().copied())
            }
        })
        .await;
        let mut replaced = 0;
        for result in results {
            // A reseal keeps the version that the writer expects, so that nobody is in anybody's way.
            let outcome = result.expect("nobody fails");
            replaced += usize::from(outcome == Some(ResealOutcome::Replaced));
        }
        assert!(replaced <= 1);
        let held = world.credentials.sealed_credentials(None, at_most(100)).await;
        let held = held.expect("it answers");
        let held = held.iter().find(|held| held.place == place).expect("it is there");
        assert_eq!((&held.sealed, held.version), (&sealed('n'), first.next()));
    }
}

/// While many writers commit, a reader that always asks for everything after the last position it saw gets every change
/// exactly once and in order: none becomes visible behind it.
pub async fn a_reader_misses_nothing_while_many_write(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let start = backend.changes().head().await.expect("it answers").seq;
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for size in [1_000, 3] {
        readers.spawn(follow(backend.changes(), start, size, Arc::clone(&done)));
    }
    let mut writers = JoinSet::new();
    for n in 0..WRITERS {
        let admin = Arc::clone(&world.admin);
        writers.spawn(async move {
            let mut tenant = admin
                .create(&by(), new_tenant(&format!("writer-{n}"), east))
                .await
                .expect("a new tenant is accepted");
            for change in 1..CHANGES_EACH {
                tenant = admin
                    .set_settings(&by(), tenant.id, tenant.version, json!({ "n": change }))
                    .await
                    .expect("nobody else writes to this tenant");
            }
            tenant.id
        });
    }
    let written: Vec<TenantId> = writers.join_all().await;
    done.store(true, Ordering::Release);
    let whole = backend
        .changes()
        .since(start, at_most(10_000))
        .await
        .expect("it answers")
        .changes;
    let mut counts: HashMap<Subject, u64> = HashMap::new();
    for change in &whole {
        *counts.entry(change.subject).or_default() += 1;
    }
    for id in written {
        assert_eq!(counts.get(&Subject::Tenant(id)), Some(&CHANGES_EACH));
    }
    for seen in readers.join_all().await {
        assert_eq!(seen, whole, "the reader saw what the log holds");
    }
}

/// A record is of one moment: while a tenant moves between two data sources, its epoch, its isolation and the data source
/// it is joined with always belong together.
pub async fn a_record_is_of_one_moment(backend: &dyn Backend) {
    let world = World::of(backend);
    let (east, west) = (world.source("east").await, world.source("west").await);
    let mut moved = world.tenant("acme", east).await;
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let tenants = backend.tenants();
        readers.spawn(async move {
            let name = slug("acme");
            let mut last = None;
            for _ in 0..READS {
                let found = find_one(&*tenants, TenantRef::Slug(&name)).await;
                let record = found.expect("the record is readable").expect("it exists").record;
                let placement = record.tenant.placement;
                let expected = if placement.epoch.value() % 2 == 0 {
                    (west, Isolation::Schema)
                } else {
                    (east, Isolation::Row)
                };
                assert_eq!((placement.source, placement.isolation), expected);
                assert_eq!(record.source.id, placement.source);
                assert!(Some(record.tenant.version) >= last, "a reader never goes back");
                last = Some(record.tenant.version);
                tokio::task::yield_now().await;
            }
        });
    }
    // The tenant moves for as long as somebody reads, however quick either is.
    while !readers.is_empty() {
        let (source, isolation) = if moved.placement.source == east {
            (west, Isolation::Schema)
        } else {
            (east, Isolation::Row)
        };
        moved = world
            .admin
            .place(&by(), moved.id, moved.version, source, isolation)
            .await
            .expect("a placement is accepted");
        if let Some(reader) = readers.try_join_next() {
            reader.expect("the records that it read were of one moment");
        }
        tokio::task::yield_now().await;
    }
}

/// Starts `RIVALS` at the same moment and returns what each came to.
async fn race<T, F>(rival: impl Fn(usize) -> F) -> Vec<Result<T, Error>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let start = Arc::new(Barrier::new(RIVALS));
    let mut rivals = JoinSet::new();
    for n in 0..RIVALS {
        let (start, rival) = (Arc::clone(&start), rival(n));
        rivals.spawn(async move {
            start.wait().await;
            rival.await
        });
    }
    rivals.join_all().await
}

fn one_winner<T: Debug>(results: Vec<Result<T, Error>>, others: ErrorKind) -> T {
    let mut winners = Vec::new();
    for result in results {
        match result {
            Ok(value) => winners.push(value),
            Err(error) => assert_eq!(error.kind(), others, "{error}"),
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    winners.remove(0)
}

async fn follow(log: Arc<dyn ChangeLog>, start: Seq, size: u32, done: Arc<AtomicBool>) -> Vec<Change> {
    let mut seen: Vec<Change> = Vec::new();
    loop {
        let ended = done.load(Ordering::Acquire);
        let after = seen.last().map_or(start, |change| change.seq);
        let page = log.since(after, at_most(size)).await.expect("it answers");
        assert!(!page.truncated);
        let exhausted = page.changes.is_empty();
        for change in page.changes {
            let last = seen.last().map_or(start, |change| change.seq);
            assert!(change.seq > last, "{} came after {last}", change.seq);
            seen.push(change);
        }
        if ended && exhausted {
            return seen;
        }
        tokio::task::yield_now().await;
    }
}
