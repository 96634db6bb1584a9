//! One rotation after the other while everybody works.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use biplane::{Biplane, error::ErrorKind, rotation::LoginRotationError, router::FeedOptions, testing::wait};
use futures_util::future::join_all;

use crate::{
    Sealed,
    data_plane::{LIMIT, options},
    flow::{Tools, heartbeat, rotation},
    patient, user,
};

const CAP: u32 = 6;

/// How often every login is replaced, unless `BIPLANE_ROTATIONS` says otherwise: each of the two is the old one twice.
/// Connecting is slow in a debug build; 20 find what goes wrong once in a while.
const ROTATIONS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_fails_and_the_cap_holds_while_logins_rotate() {
    let rotations = std::env::var("BIPLANE_ROTATIONS")
        .map_or(ROTATIONS, |number| number.parse().expect("a number of rotations"));
    assert!(rotations > 0, "nothing would be shown");
    let sealed = Arc::new(Sealed::new().await);
    let mut tenants = Vec::new();
    for _ in 0..3 {
        let logins = [sealed.role("a").await, sealed.role("b").await];
        tenants.push((sealed.tenant(&logins[0]).await, logins));
    }
    let biplane = Biplane::postgres(sealed.world.control.clone(), sealed.keyring.clone())
        .feed(FeedOptions::default().interval(Duration::from_millis(100)))
        .pool(patient(options(CAP)))
        .build()
        .unwrap();
    let biplane = Arc::new(biplane);
    let heartbeat = heartbeat(&sealed, &biplane, Duration::from_millis(50));
    heartbeat.beat_now().await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for n in 0..9 {
        let db = biplane.route(&tenants[n % 3].0.slug).await.unwrap();
        let done = Arc::clone(&done);
        callers.push(tokio::spawn(async move {
            let mut calls = 0_u32;
            while !done.load(Relaxed) {
                if calls.is_multiple_of(3) {
                    let tx = db.begin().await.unwrap();
                    tx.commit().await.unwrap();
                } else {
                    user(&db).await.unwrap();
                }
                calls += 1;
                // At a pace that leaves the machine to the rotations, too.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            calls
        }));
    }
    let sampler = tokio::spawn({
        let (sealed, done) = (Arc::clone(&sealed), Arc::clone(&done));
        let databases: Vec<_> = tenants
            .iter()
            .map(|(placed, _)| placed.database.clone())
            .collect();
        async move {
            let mut server = sealed.world.cluster.connect("postgres").await.unwrap();
            let mut most = 0;
            while !done.load(Relaxed) {
                // Those of the pool alone: the tool's own, and those that look after others, are beside the cap.
                let sessions: i64 = sqlx::query_scalar(
                    "select count(*) from pg_stat_activity where datname = any($1) and application_name = 'biplane'",
                )
                .bind(&databases)
                .fetch_one(&mut server)
                .await
                .unwrap();
                most = most.max(sessions);
                // Between two samples.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            most
        }
    });

    let tools = Tools::of(&sealed);
    for round in 0..rotations {
        let [old, new] = who(round);
        let replaced = tenants.iter().map(async |(placed, logins)| {
            // Locked out since it was the old one.
            sealed
                .sql(&format!("alter role {} login", logins[new].username()))
                .await;
            let tools = tools.tools(&sealed);
            let rotation = rotation(placed).patience(LIMIT);
            repeated(async || rotation.run(&tools, &logins[new]).await).await;
            let old = logins[old].username();
            repeated(async || rotation.unused(&tools, old).await).await;
            // Whoever still tried it would fail from now on.
            sealed.sql(&format!("alter role {old} nologin")).await;
        });
        join_all(replaced).await;
    }
    done.store(true, Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0, "everybody worked");
    }
    let most = sampler.await.unwrap();
    assert!(
        0 < most && most <= i64::from(CAP),
        "{most} sessions under a cap of {CAP}"
    );
    wait::until("nothing old is left", LIMIT, async || {
        biplane.stats().connector.outdated == 0
    })
    .await
    .unwrap();
    let [old, new] = who(rotations - 1);
    for (placed, logins) in &tenants {
        assert_eq!(sealed.sessions_of(logins[old].username()).await, 0);
        let db = biplane.route(&placed.slug).await.unwrap();
        assert_eq!(user(&db).await.unwrap(), logins[new].username());
    }
}

/// A step of whoever rotates, who begins it again where the server could not be reached in time, as on a busy machine.
/// Callers have to do without.
async fn repeated<T>(mut step: impl AsyncFnMut() -> Result<T, LoginRotationError>) {
    use LoginRotationError::{NotAccepted, NotAsked};
    wait::until("the server was asked", 3 * LIMIT, async || match step().await {
        Err(NotAccepted(error) | NotAsked(error))
            if matches!(error.kind(), ErrorKind::DatabaseUnavailable { .. }) =>
        {
            false
        }
        outcome => outcome.map(|_| true).unwrap(),
    })
    .await
    .unwrap();
}

/// The old and the new login of a round.
const fn who(round: usize) -> [usize; 2] {
    [round % 2, 1 - round % 2]
}
