//! What a [`ChangePush`](crate::repository::ChangePush) must do beside the change log that it tells of.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::{
    PushBackend,
    support::{World, at_most, by, new_tenant},
};
use crate::{
    repository::{Beat, ChangeHint, ChangeListener, ChangeLog, Instances},
    tenant::{DataSourceId, InstanceId, Seq},
};

const WRITERS: usize = 8;
const CHANGES_EACH: usize = 5;
/// Nothing that is told takes as long, on a machine that is busy either.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whatever is committed after listening has begun is told, change after change.
pub async fn what_is_committed_is_told(backend: &dyn PushBackend) {
    let world = World::of(backend);
    world.source("before").await;
    let mut listener = listen(backend).await;
    for n in 0..5 {
        world.source(&format!("source-{n}")).await;
        let head = head(backend).await;
        told_of(&mut *listener, head).await;
    }
}

/// Everybody who listens is told, also when others have begun since, or have gone.
pub async fn everybody_who_listens_is_told(backend: &dyn PushBackend) {
    let world = World::of(backend);
    let mut listeners = vec![listen(backend).await, listen(backend).await];
    world.source("east").await;
    let first = head(backend).await;
    for listener in &mut listeners {
        told_of(&mut **listener, first).await;
    }
    listeners.push(listen(backend).await);
    drop(listeners.remove(0));
    world.source("west").await;
    let second = head(backend).await;
    for listener in &mut listeners {
        told_of(&mut **listener, second).await;
    }
}

/// A position is told when it can be read and not before: whoever looks because of it finds it.
pub async fn a_position_that_is_told_can_be_read(backend: &dyn PushBackend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let mut listener = listen(backend).await;
    let (before_the_last, known) = watch::channel(None);
    let written = async {
        write_at_once(&world, east).join_all().await;
        before_the_last.send_replace(Some(head(backend).await));
        world.source("the-last").await;
    };
    let heard = async {
        loop {
            let told = match hear(&mut *listener).await {
                ChangeHint::Reached(seq) => seq,
                ChangeHint::Look if known.borrow().is_some() => return,
                ChangeHint::Look => continue,
            };
            let before = Seq::new(told.value() - 1);
            let read = backend
                .changes()
                .since(before, at_most(1))
                .await
                .expect("it answers");
            let found = read.changes.first().map(|change| change.seq);
            assert_eq!(found, Some(told), "it was told before it could be read");
            if known.borrow().is_some_and(|position| told > position) {
                return;
            }
        }
    };
    tokio::join!(written, heard);
    // And nobody is told of what comes after it, which among many writers is soon there all the same.
    let mut listener = listen(backend).await;
    world.source("alone").await;
    if let ChangeHint::Reached(told) = hear(&mut *listener).await {
        assert!(told <= head(backend).await, "it was told before it was there");
    }
}

/// However many commit at once, the last of it is told.
pub async fn of_many_commits_the_last_is_told(backend: &dyn PushBackend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let mut listeners = [listen(backend).await, listen(backend).await];
    write_at_once(&world, east).join_all().await;
    let head = head(backend).await;
    for listener in &mut listeners {
        told_of(&mut **listener, head).await;
    }
}

/// What changes no route is not told: every process would look for each heartbeat of every other.
pub async fn what_changes_no_route_is_not_told(backend: &dyn PushBackend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    world.tenant("acme", east).await;
    let mut listener = listen(backend).await;
    let before = head(backend).await;
    for _ in 0..3 {
        backend
            .instances()
            .beat(&Beat::new(InstanceId::new(), "notes").applied(before))
            .await
            .expect("a beat is taken");
        let taken = world.admin.create(&by(), new_tenant("acme", east)).await;
        taken.expect_err("the slug is taken");
    }
    world.source("west").await;
    // What is told comes in the order in which it happened.
    if let ChangeHint::Reached(seq) = hear(&mut *listener).await {
        assert!(seq > before, "told of something that changed nothing");
    }
}

fn write_at_once(world: &World, source: DataSourceId) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    for n in 0..WRITERS {
        let admin = Arc::clone(&world.admin);
        writers.spawn(async move {
            let mut tenant = admin
                .create(&by(), new_tenant(&format!("writer-{n}"), source))
                .await
                .expect("a new tenant is accepted");
            for change in 1..CHANGES_EACH {
                tenant = admin
                    .set_settings(&by(), tenant.id, tenant.version, json!({ "n": change }))
                    .await
                    .expect("nobody else writes to this tenant");
            }
        });
    }
    writers
}

async fn listen(backend: &dyn PushBackend) -> Box<dyn ChangeListener> {
    backend.push().listen().await.expect("it can be listened to")
}

async fn head(backend: &dyn PushBackend) -> Seq {
    backend.changes().head().await.expect("it answers").seq
}

async fn hear(listener: &mut dyn ChangeListener) -> ChangeHint {
    timeout(PATIENCE, listener.next())
        .await
        .expect("a change that was committed is told")
        .expect("nothing breaks its connection")
}

/// Hears until it is told of this position, or that something happened of which no position is told.
async fn told_of(listener: &mut dyn ChangeListener, seq: Seq) {
    loop {
        match hear(listener).await {
            ChangeHint::Look => return,
            ChangeHint::Reached(told) => {
                assert!(told <= seq, "told of {told}, and the log ends at {seq}");
                if told == seq {
                    return;
                }
            }
        }
    }
}
