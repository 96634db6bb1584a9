//! Replacing a login step by step, and beginning again at each.

use std::{sync::Arc, time::Duration};

use biplane::{
    Biplane,
    connector::postgres::PgServers,
    presence::Heartbeat,
    repository::{Actor, CredentialSlot::Next, MemoryControl},
    rotation::{LoginRotation, LoginRotationError, Prepared, RotationTools},
    secret::Credential,
    tenant::Role,
};

use crate::{
    Sealed,
    data_plane::{Placed, options},
    login, user,
};

pub(crate) struct Tools {
    control: MemoryControl,
    servers: PgServers,
}

impl Tools {
    pub(crate) fn of(sealed: &Sealed) -> Self {
        Self {
            control: sealed.world.control.clone(),
            servers: PgServers::new(),
        }
    }

    pub(crate) fn tools<'a>(&'a self, sealed: &'a Sealed) -> RotationTools<'a> {
        RotationTools {
            admin: &self.control,
            changes: &self.control,
            instances: &self.control,
            servers: &self.servers,
            keyring: &sealed.keyring,
        }
    }
}

pub(crate) fn rotation(placed: &Placed) -> LoginRotation {
    LoginRotation::new(
        placed.source_name.as_str(),
        Role::App,
        Actor::new("ann", "a test"),
    )
    .patience(Duration::from_secs(30))
}

/// A process that tells what it has applied.
pub(crate) fn heartbeat(sealed: &Sealed, biplane: &Arc<Biplane>, interval: Duration) -> Heartbeat {
    let biplane = Arc::clone(biplane);
    Heartbeat::builder(sealed.world.control.clone(), "notes")
        .applied(move || biplane.applied())
        .interval(interval)
        .start()
        .unwrap()
}

struct Running {
    sealed: Sealed,
    placed: Placed,
    biplane: Arc<Biplane>,
    old: Credential,
    new: Credential,
    _heartbeat: Heartbeat,
}

impl Running {
    async fn new() -> Self {
        let sealed = Sealed::new().await;
        let (old, new) = (sealed.role("old").await, sealed.role("new").await);
        let placed = sealed.tenant(&old).await;
        let biplane = Arc::new(sealed.biplane(options(4)));
        let db = biplane.route(&placed.slug).await.unwrap();
        assert_eq!(user(&db).await.unwrap(), old.username());
        let heartbeat = heartbeat(&sealed, &biplane, Duration::from_millis(250));
        heartbeat.beat_now().await.unwrap();
        Self {
            _heartbeat: heartbeat,
            sealed,
            placed,
            biplane,
            old,
            new,
        }
    }
}

#[tokio::test]
async fn a_login_is_replaced_step_by_step_and_the_old_one_may_go_when_nobody_has_it() {
    let run = Running::new().await;
    let tools = Tools::of(&run.sealed);
    let tools = tools.tools(&run.sealed);
    let rotation = rotation(&run.placed);
    let db = run.biplane.route(&run.placed.slug).await.unwrap();
    let held = db.acquire().await.unwrap();
    let promoted = rotation.run(&tools, &run.new).await.unwrap();
    assert!(run.biplane.applied() >= promoted.seq, "everybody knows");
    assert_eq!(user(&db).await.unwrap(), run.new.username());
    let old = run.old.username();
    let early = rotation
        .clone()
        .patience(Duration::ZERO)
        .unused(&tools, old)
        .await;
    assert!(
        matches!(early, Err(LoginRotationError::StillConnected(1))),
        "{early:?}"
    );
    drop(held);
    rotation.unused(&tools, old).await.unwrap();
    run.sealed.sql(&format!("alter role {old} nologin")).await;
    assert_eq!(user(&db).await.unwrap(), run.new.username());
}

#[tokio::test]
async fn a_rotation_that_was_cut_short_anywhere_is_finished_by_the_next_run() {
    let run = Running::new().await;
    let tools = Tools::of(&run.sealed);
    let tools = tools.tools(&run.sealed);
    let rotation = rotation(&run.placed);
    assert_eq!(rotation.prepare(&tools, &run.new).await.unwrap(), Prepared::Next);
    // Here and after each step it begins anew, with what is stored.
    let lost = rotation.prepared(&tools).await.unwrap().unwrap();
    assert_eq!(lost.username(), run.new.username());
    assert_eq!(rotation.prepare(&tools, &lost).await.unwrap(), Prepared::Next);
    rotation.check(&tools).await.unwrap();
    let checked = rotation.check(&tools).await.unwrap();
    let promoted = rotation.promote(&tools, &checked).await.unwrap();
    assert_eq!(
        rotation.prepare(&tools, &run.new).await.unwrap(),
        Prepared::Current
    );
    let finished = rotation.run(&tools, &run.new).await.unwrap();
    assert_eq!(finished.version, promoted.version, "nothing was done twice");
    rotation.unused(&tools, run.old.username()).await.unwrap();
}

#[tokio::test]
async fn a_step_that_is_not_safe_is_refused_and_changes_nothing() {
    let run = Running::new().await;
    let tools = Tools::of(&run.sealed);
    let tools = tools.tools(&run.sealed);
    let rotation = rotation(&run.placed);
    let nothing = rotation.check(&tools).await;
    assert!(matches!(nothing, Err(LoginRotationError::NothingPrepared)));
    let elsewhere = LoginRotation::new("nowhere", Role::App, Actor::new("ann", "a test"));
    let unknown = elsewhere.prepare(&tools, &run.new).await;
    assert!(matches!(unknown, Err(LoginRotationError::UnknownSource(_))));
    let service = LoginRotation::new(
        run.placed.source_name.as_str(),
        Role::Service,
        Actor::new("ann", "a test"),
    );
    let first = service.prepare(&tools, &run.new).await;
    assert!(matches!(first, Err(LoginRotationError::NothingToReplace { .. })));

    // The server does not take it.
    let wrong = login(run.new.username(), "wrong");
    let before = run.sealed.stored(&run.placed).await.unwrap();
    let refused = rotation.run(&tools, &wrong).await;
    assert!(
        matches!(refused, Err(LoginRotationError::NotAccepted(_))),
        "{refused:?}"
    );
    let after = run.sealed.stored(&run.placed).await.unwrap();
    assert_eq!(after.current, before.current);

    // Somebody else is at it, until that is given up.
    let underway = rotation.prepare(&tools, &run.new).await;
    assert!(matches!(underway, Err(LoginRotationError::Underway(_))));
    rotation.discard(&tools).await.unwrap();
    assert_eq!(run.sealed.stored(&run.placed).await.unwrap(), before);

    // What was checked is not what is there any more.
    rotation.prepare(&tools, &run.new).await.unwrap();
    let checked = rotation.check(&tools).await.unwrap();
    run.sealed.store(&run.placed, Next, &run.new).await;
    let changed = rotation.promote(&tools, &checked).await;
    assert!(matches!(changed, Err(LoginRotationError::Changed)));

    // The login in use, and the one that is to follow, are not the old one.
    for user in [run.old.username(), run.new.username()] {
        let not_old = rotation.unused(&tools, user).await;
        assert!(matches!(not_old, Err(LoginRotationError::NotTheOldOne)));
    }
}

#[tokio::test]
async fn a_process_that_does_not_know_yet_is_waited_for() {
    let run = Running::new().await;
    // One that hears nothing.
    let lags = Heartbeat::builder(run.sealed.world.control.clone(), "lags")
        .start()
        .unwrap();
    lags.beat_now().await.unwrap();
    let tools = Tools::of(&run.sealed);
    let tools = tools.tools(&run.sealed);
    let rotation = rotation(&run.placed).patience(Duration::from_secs(1));
    let waits = rotation.run(&tools, &run.new).await;
    let Err(LoginRotationError::NotApplied(reason)) = waits else {
        panic!("{waits:?}")
    };
    assert!(reason.to_string().contains("lags"), "{reason}");
    lags.close(Duration::from_secs(5)).await.unwrap();
    rotation
        .patience(Duration::from_secs(30))
        .run(&tools, &run.new)
        .await
        .unwrap();
}
