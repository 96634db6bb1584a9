//! Being told of changes, and never relying on it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use biplane::{
    Biplane,
    connector::memory::MemoryDb,
    error::{Error, ErrorKind},
    repository::{ChangeHint, ChangeListener, ChangeLog, ChangePush, ChangeSource, MemoryControl},
    router::{FeedEngine, FeedOptions},
    tenant::{Seq, TenantStatus},
    testing::{
        faulty::{Fault, FaultyRepository},
        wait,
    },
};
use tokio::time::Instant;

use super::{SUSPENDED, some_looks};
use crate::support::{Notes, Steps, Whisper, kind, seconds, settle};

/// A router that hardly ever looks by itself.
fn pushed(control: &MemoryControl, push: impl ChangePush) -> Biplane<MemoryDb<Notes>> {
    Biplane::memory(FaultyRepository::new(control.clone()), |_| Notes::new())
        .changes(ChangeSource::pushed(control.clone(), push))
        .feed(FeedOptions::default().interval(seconds(100_000)))
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_pushed_acts_at_once() {
    let control = MemoryControl::new();
    let biplane = pushed(&control, control.clone());
    let acme = control.tenant("acme").await;
    let held = biplane.route(&acme.slug).await.unwrap();
    let began = Instant::now();
    for status in [TenantStatus::Suspended, TenantStatus::Active].repeat(10) {
        control.turn(acme.id, status).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let refused = SUSPENDED.filter(|_| status == TenantStatus::Suspended);
        assert_eq!(kind(held.read(|_| ()).await), refused);
    }
    assert!(began.elapsed() < seconds(2));
    let feed = biplane.stats().feed;
    assert_eq!((feed.engine, feed.listening), (FeedEngine::Push, true));
}

#[tokio::test(start_paused = true)]
async fn the_routers_of_this_crate_follow_changes_unless_they_are_told_not_to() {
    let control = MemoryControl::new();
    let build = || Biplane::memory(control.clone(), |_| ());
    let (with, without) = (
        build().build().unwrap(),
        build().without_changes().build().unwrap(),
    );
    let acme = control.tenant("acme").await;
    settle().await;
    for biplane in [&with, &without] {
        biplane.route(&acme.slug).await.unwrap();
    }
    some_looks().await;
    control.turn(acme.id, TenantStatus::Suspended).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(kind(with.route(&acme.slug).await), SUSPENDED);
    assert_eq!(kind(without.route(&acme.slug).await), None);
    assert_eq!(without.stats().feed.engine, FeedEngine::Off);
    assert_eq!(without.applied(), Seq::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_was_committed_while_nobody_listened_is_read_when_somebody_does() {
    let (control, whisper) = (MemoryControl::new(), Whisper::default());
    let biplane = pushed(&control, whisper.clone());
    let acme = control.tenant("acme").await;
    some_looks().await;
    let held = biplane.route(&acme.slug).await.unwrap();
    for status in [TenantStatus::Suspended, TenantStatus::Active] {
        whisper.cut();
        settle().await;
        assert!(!biplane.stats().feed.listening);
        control.turn(acme.id, status).await;
        wait::until("somebody listens", seconds(60), async || {
            biplane.stats().feed.listening
        })
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let refused = SUSPENDED.filter(|_| status == TenantStatus::Suspended);
        assert_eq!(kind(held.read(|_| ()).await), refused);
    }
    assert_eq!(biplane.stats().feed.push_losses, 2);
}

#[tokio::test(start_paused = true)]
async fn a_loss_of_push_is_answered_by_a_look_at_once() {
    let (control, whisper) = (MemoryControl::new(), Whisper::default());
    let biplane = pushed(&control, whisper.clone());
    let acme = control.tenant("acme").await;
    some_looks().await;
    let held = biplane.route(&acme.slug).await.unwrap();
    // Committed, and the connection breaks before anybody is told.
    control.turn(acme.id, TenantStatus::Suspended).await;
    whisper.cut();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!biplane.stats().feed.listening);
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
}

#[tokio::test(start_paused = true)]
async fn a_jump_in_what_is_told_loses_nothing() {
    let (control, whisper) = (MemoryControl::new(), Whisper::default());
    let biplane = pushed(&control, whisper.clone());
    let acme = control.tenant("acme").await;
    some_looks().await;
    let held = biplane.route(&acme.slug).await.unwrap();
    control.turn(acme.id, TenantStatus::Suspended).await;
    control.tenant("zeta").await;
    // Only the last of these changes is told.
    let last = control.head().await.unwrap().seq;
    whisper.say(ChangeHint::Reached(last));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(kind(held.read(|_| ()).await), SUSPENDED);
    assert_eq!(biplane.applied(), last);
}

#[tokio::test(start_paused = true)]
async fn whatever_is_told_after_the_log_could_not_be_read_is_a_reason_to_look() {
    let (control, whisper) = (MemoryControl::new(), Whisper::default());
    let log = FaultyRepository::new(control.clone());
    let biplane = Biplane::memory(FaultyRepository::new(control.clone()), |_| ())
        .changes(ChangeSource::pushed(log.clone(), whisper.clone()))
        .feed(FeedOptions::default().interval(seconds(100_000)))
        .build()
        .unwrap();
    let acme = control.tenant("acme").await;
    some_looks().await;
    whisper.say(ChangeHint::Look);
    some_looks().await;
    let held = biplane.route(&acme.slug).await.unwrap();
    log.set(Fault::Unreachable);
    whisper.say(ChangeHint::Look);
    some_looks().await;
    assert!(biplane.stats().feed.failing_for.is_some());
    control.turn(acme.id, TenantStatus::Suspended).await;
    log.set(Fault::None);
    // As after a restore, a position before that of the last look that succeeded.
    whisper.say(ChangeHint::Reached(Seq::FIRST));
    some_looks().await;
    assert_eq!(kind(held.read(|()| ()).await), SUSPENDED);
}

#[tokio::test(start_paused = true)]
async fn who_tells_too_much_or_nonsense_does_no_harm() {
    let (control, whisper) = (MemoryControl::new(), Whisper::default());
    let log = FaultyRepository::new(control.clone());
    let biplane = Biplane::memory(FaultyRepository::new(control.clone()), |_| ())
        .changes(ChangeSource::pushed(log.clone(), whisper.clone()))
        .build()
        .unwrap();
    let acme = control.tenant("acme").await;
    some_looks().await;
    biplane.route(&acme.slug).await.unwrap();
    let (before, began) = (log.calls(), Instant::now());
    for n in 0..10_000 {
        whisper.say(ChangeHint::Reached(Seq::new(u64::MAX - n)));
        whisper.say(ChangeHint::Look);
        whisper.say(ChangeHint::Reached(Seq::ZERO));
        if n % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    tokio::time::sleep(seconds(1)).await;
    // Not more often than every 20 ms.
    let most = usize::try_from(began.elapsed().as_millis() / 20).unwrap() + 3;
    assert!(log.calls() - before <= most, "{} looks", log.calls() - before);
    assert!(biplane.cached(&acme.slug).is_some());
}

/// Lets nobody listen, and notes when somebody tried.
#[derive(Clone, Debug, Default)]
struct Silent(Arc<Mutex<Vec<Instant>>>);

#[async_trait]
impl ChangePush for Silent {
    async fn listen(&self) -> Result<Box<dyn ChangeListener>, Error> {
        self.0.lock().unwrap().push(Instant::now());
        Err(ErrorKind::ControlPlaneUnavailable.into())
    }
}

#[tokio::test(start_paused = true)]
async fn processes_that_lose_push_together_try_again_apart_and_ever_more_rarely() {
    let control = MemoryControl::new();
    let processes: Vec<_> = std::iter::repeat_with(Silent::default)
        .take(20)
        .map(|silent| (pushed(&control, silent.clone()), silent))
        .collect();
    tokio::time::sleep(seconds(600)).await;
    let mut third = BTreeSet::new();
    for (_, Silent(tried)) in &processes {
        let tried = tried.lock().unwrap();
        third.insert(tried[2] - tried[0]);
        let mut longest = Duration::from_millis(500);
        for pair in tried.windows(2) {
            let pause = pair[1] - pair[0];
            let a_tick = Duration::from_millis(2);
            assert!(longest / 2 <= pause && pause <= longest + a_tick, "{pause:?}");
            longest = (longest * 2).min(seconds(30));
        }
    }
    assert!(third.len() > 10, "{third:?}");
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_died_silently_is_found_out_by_looking_and_replaced() {
    let (control, whisper) = (MemoryControl::new(), Whisper::default());
    let biplane = Biplane::memory(FaultyRepository::new(control.clone()), |_| ())
        .changes(ChangeSource::pushed(control.clone(), whisper.clone()))
        .build()
        .unwrap();
    let acme = control.tenant("acme").await;
    some_looks().await;
    let held = biplane.route(&acme.slug).await.unwrap();
    some_looks().await;
    assert_eq!(whisper.listened_to(), 1);
    control.turn(acme.id, TenantStatus::Suspended).await;
    tokio::time::sleep(seconds(3)).await;
    assert_eq!(kind(held.read(|()| ()).await), SUSPENDED);
    some_looks().await;
    assert_eq!(
        whisper.listened_to(),
        2,
        "nobody listens to a connection that leads nowhere"
    );
    // One that tells is left alone.
    for _ in 0..20 {
        control.touch(acme.id).await;
        whisper.say(ChangeHint::Reached(control.head().await.unwrap().seq));
        tokio::time::sleep(seconds(2)).await;
    }
    assert_eq!(whisper.listened_to(), 2);
}
