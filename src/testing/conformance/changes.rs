//! What a [`ChangeLog`] must do while one writer works at a time.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{
    Backend,
    support::{World, at_most, by, domain, expect_kind, new_tenant, sealed, slug},
    writing::Write,
};
use crate::{
    error::ErrorKind,
    repository::{Actor, Change, ChangeKind, ChangeLog, CredentialSlot, SourceChange, Subject},
    tenant::{PoolSettings, Role, Seq, TenantId, TenantStatus, Version},
};

/// Each change appends an entry of its kind about its subject, in the order of the commits.
pub async fn each_change_is_logged_by_kind(backend: &dyn Backend) {
    let world = World::of(backend);
    let mut log = Log::at_the_end(backend).await;
    let east = world.source("east").await;
    log.expect(Subject::Source(east), &[ChangeKind::Created]).await;
    let west = world.source("west").await;
    log.expect(Subject::Source(west), &[ChangeKind::Created]).await;
    let acme = world.tenant("acme", east).await;
    let subject = Subject::Tenant(acme.id);
    log.expect(subject, &[ChangeKind::Created]).await;
    let mut acme = world.bring(acme, TenantStatus::Active).await;
    log.expect(subject, &[ChangeKind::Status]).await;
    for write in Write::ALL {
        acme = write
            .of(&world, &by(), acme.id, acme.version, west)
            .await
            .unwrap_or_else(|error| panic!("{write:?} is accepted: {error}"));
        let kind = match write {
            Write::Rename | Write::AddDomain | Write::RemoveDomain => ChangeKind::Names,
            Write::Settings => ChangeKind::Settings,
            Write::Place => ChangeKind::Placement,
            Write::Status => ChangeKind::Status,
        };
        log.expect(subject, &[kind]).await;
    }
    let change = SourceChange::default().pool(PoolSettings::new(1, 2).expect("1 is at most 2"));
    world
        .admin
        .update_source(&by(), east, Version::FIRST, change)
        .await
        .expect("the change is accepted");
    log.expect(Subject::Source(east), &[ChangeKind::Address]).await;
    world
        .admin
        .set_credential(&by(), east, Role::App, CredentialSlot::Current, None, sealed('a'))
        .await
        .expect("a sealed value is accepted");
    log.expect(Subject::Source(east), &[ChangeKind::Credential]).await;
}

/// Deletion is logged as such.
pub async fn deletion_is_logged(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let mut new = new_tenant("acme", east);
    new.domains = vec![domain("a.example")];
    let acme = world
        .admin
        .create(&by(), new)
        .await
        .expect("a new tenant is accepted");
    let mut log = Log::at_the_end(backend).await;
    world
        .admin
        .delete(&by(), acme.id, acme.version)
        .await
        .expect("a tenant that is being provisioned can be deleted");
    let changes = log.next().await;
    assert!(
        changes
            .iter()
            .all(|change| change.subject == Subject::Tenant(acme.id))
    );
    assert!(changes.iter().any(|change| change.kind == ChangeKind::Deleted));
}

/// A change that was acknowledged is in the log when the call returns, and the head is its position.
pub async fn the_head_is_the_last_change(backend: &dyn Backend) {
    let world = World::of(backend);
    let mut last = backend.changes().head().await.expect("it answers");
    for n in 0..5 {
        world.source(&format!("source-{n}")).await;
        let head = backend.changes().head().await.expect("it answers");
        assert!(head.seq > last.seq);
        assert_eq!(head.incarnation, last.incarnation);
        let changes = backend
            .changes()
            .since(last.seq, at_most(100))
            .await
            .expect("it answers");
        assert_eq!(changes.head, head);
        assert_eq!(changes.changes.last().map(|change| change.seq), Some(head.seq));
        last = head;
    }
}

/// After the last change there is nothing, and that is not a truncation.
pub async fn nothing_comes_after_the_head(backend: &dyn Backend) {
    let world = World::of(backend);
    world.source("east").await;
    let head = backend.changes().head().await.expect("it answers");
    for after in [head.seq, head.seq.next(), Seq::new(u64::MAX)] {
        let changes = backend
            .changes()
            .since(after, at_most(100))
            .await
            .expect("it answers");
        assert!(changes.changes.is_empty() && !changes.truncated);
        assert_eq!(changes.head, head);
    }
}

/// A limit cuts the newest, not the oldest: page after page gives every change once, in order.
pub async fn pages_give_every_change_in_order(backend: &dyn Backend) {
    let world = World::of(backend);
    let start = backend.changes().head().await.expect("it answers").seq;
    for n in 0..7 {
        world.source(&format!("source-{n}")).await;
    }
    let whole = backend
        .changes()
        .since(start, at_most(100))
        .await
        .expect("it answers")
        .changes;
    assert_eq!(whole.len(), 7);
    assert!(whole.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    for size in 1..=8 {
        let mut seen = Vec::new();
        let mut after = start;
        loop {
            let page = backend
                .changes()
                .since(after, at_most(size))
                .await
                .expect("it answers")
                .changes;
            assert!(page.len() <= size as usize);
            let Some(last) = page.last() else { break };
            after = last.seq;
            seen.extend(page);
        }
        assert_eq!(seen, whole, "pages of {size}");
    }
}

/// A write that is refused leaves nothing in the log.
pub async fn a_refused_write_is_not_logged(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    world.tenant("other", east).await;
    let mut log = Log::at_the_end(backend).await;
    let renamed = world
        .admin
        .rename(&by(), acme.id, acme.version, slug("other"))
        .await;
    renamed.expect_err("the slug is taken");
    let created = world.admin.create(&by(), new_tenant("acme", east)).await;
    created.expect_err("the slug is taken");
    let archived = world
        .admin
        .set_status(&by(), acme.id, acme.version, TenantStatus::Archived)
        .await;
    archived.expect_err("it is not an edge");
    assert_eq!(log.next().await, []);
}

/// A reader whose position was pruned is told; one that had seen everything is not.
pub async fn a_reader_that_fell_behind_is_told(backend: &dyn Backend) {
    let world = World::of(backend);
    let start = backend.changes().head().await.expect("it answers").seq;
    world.source("east").await;
    let middle = backend.changes().head().await.expect("it answers");
    let log = backend.changes();
    let behind = log.since(start, at_most(100)).await.expect("it answers");
    assert!(!behind.truncated, "nothing was pruned yet");
    backend.prune(Duration::ZERO).await;
    let behind = log.since(start, at_most(100)).await.expect("it answers");
    assert!(behind.truncated);
    assert_eq!(behind.changes, []);
    let current = log.since(middle.seq, at_most(100)).await.expect("it answers");
    assert!(!current.truncated);
    assert_eq!(log.head().await.expect("it answers"), middle, "the head stays");
    world.source("west").await;
    let current = log.since(middle.seq, at_most(100)).await.expect("it answers");
    assert!(!current.truncated);
    assert_eq!(current.changes.len(), 1);
    assert!(current.changes[0].seq > middle.seq);
    let behind = log.since(start, at_most(100)).await.expect("it answers");
    assert!(behind.truncated && behind.changes == current.changes);
}

/// Pruning takes what is older than it is told to keep, and nothing younger; a reader of what is young is told nothing.
pub async fn history_is_pruned_by_age(backend: &dyn Backend) {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let world = World::of(backend);
    let start = backend.changes().head().await.expect("it answers").seq;
    world.source("old").await;
    let middle = backend.changes().head().await.expect("it answers").seq;
    backend.pass(2 * HOUR).await;
    world.source("young").await;
    let log = backend.changes();
    backend.prune(3 * HOUR).await;
    let whole = log.since(start, at_most(100)).await.expect("it answers");
    assert!(
        !whole.truncated && whole.changes.len() == 2,
        "nothing is that old"
    );
    backend.prune(HOUR).await;
    let behind = log.since(start, at_most(100)).await.expect("it answers");
    assert!(behind.truncated, "what is older is gone");
    let current = log.since(middle, at_most(100)).await.expect("it answers");
    assert!(!current.truncated);
    assert_eq!(current.changes, whole.changes[1..], "and what is younger is not");
}

/// A release of all brakes is logged, and its position is how far it reaches: not to what comes after it.
pub async fn a_release_reaches_to_its_own_entry(backend: &dyn Backend) {
    let world = World::of(backend);
    let changes = backend.changes();
    assert_eq!(changes.head().await.expect("it answers").released, Seq::ZERO);
    for name in ["east", "west"] {
        world.source(name).await;
        let mut log = Log::at_the_end(backend).await;
        let before = changes.head().await.expect("it answers");
        assert!(before.released < before.seq);
        world
            .admin
            .release_brake(&by())
            .await
            .expect("the brake is released");
        let head = changes.head().await.expect("it answers");
        assert!(head.seq > before.seq);
        assert_eq!(head.released, head.seq);
        log.expect(Subject::Routing, &[ChangeKind::Released]).await;
        world.source(&format!("after-{name}")).await;
        let later = changes
            .since(Seq::ZERO, at_most(1))
            .await
            .expect("it answers")
            .head;
        assert_eq!(later.released, head.released);
        assert!(later.released < later.seq);
    }
}

/// Whether routing is frozen is said with each answer, and each time that it is frozen or thawed is logged.
pub async fn freezing_is_said_until_it_is_thawed(backend: &dyn Backend) {
    let world = World::of(backend);
    let changes = backend.changes();
    assert!(!changes.head().await.expect("it answers").frozen);
    let mut log = Log::at_the_end(backend).await;
    for _ in 0..2 {
        world.admin.freeze(&by()).await.expect("routing is frozen");
        log.expect(Subject::Routing, &[ChangeKind::Frozen]).await;
        let east = TenantId::new().to_string();
        world.source(&east).await;
        log.next().await;
        assert!(changes.head().await.expect("it answers").frozen);
        let read = changes.since(Seq::ZERO, at_most(1)).await;
        assert!(read.expect("it answers").head.frozen);
        world.admin.thaw(&by()).await.expect("routing is thawed");
        log.expect(Subject::Routing, &[ChangeKind::Thawed]).await;
        assert!(!changes.head().await.expect("it answers").frozen);
    }
    assert_eq!(changes.head().await.expect("it answers").released, Seq::ZERO);
}

/// Who releases, freezes or thaws says who and why, as for any change, and it is in the audit.
pub async fn who_holds_or_lets_go_all_routing_is_audited(backend: &dyn Backend) {
    let world = World::of(backend);
    let head = backend.changes().head().await.expect("it answers");
    for nobody in [Actor::new("", "why"), Actor::new("who", "")] {
        expect_kind(world.admin.release_brake(&nobody).await, ErrorKind::InvalidInput);
        expect_kind(world.admin.freeze(&nobody).await, ErrorKind::InvalidInput);
        expect_kind(world.admin.thaw(&nobody).await, ErrorKind::InvalidInput);
    }
    assert_eq!(backend.changes().head().await.expect("it answers"), head);
    world.admin.release_brake(&by()).await.expect("it is released");
    world.admin.freeze(&by()).await.expect("it is frozen");
    world.admin.thaw(&by()).await.expect("it is thawed");
    let audit = world.admin.audit(None, at_most(3)).await.expect("it answers");
    let changed: Vec<_> = audit.iter().map(|entry| entry.changed.clone()).collect();
    let frozen = |before: bool, after: bool| json!({ "frozen": { "before": before, "after": after } });
    assert_eq!(
        changed,
        [
            frozen(true, false),
            frozen(false, true),
            json!({ "brake": { "before": null, "after": "released" } })
        ]
    );
    for entry in audit {
        assert_eq!((entry.actor, entry.reason), (by().name, by().reason));
        assert_eq!((entry.tenant, entry.source), (None, None));
    }
}

struct Log {
    changes: Arc<dyn ChangeLog>,
    seen: Seq,
}

impl Log {
    async fn at_the_end(backend: &dyn Backend) -> Self {
        let changes = backend.changes();
        let seen = changes.head().await.expect("it answers").seq;
        Self { changes, seen }
    }

    async fn next(&mut self) -> Vec<Change> {
        let changes = self
            .changes
            .since(self.seen, at_most(100))
            .await
            .expect("it answers");
        assert!(!changes.truncated);
        self.seen = changes.head.seq;
        changes.changes
    }

    async fn expect(&mut self, subject: Subject, kinds: &[ChangeKind]) {
        let got: Vec<_> = self
            .next()
            .await
            .iter()
            .map(|change| (change.subject, change.kind))
            .collect();
        let expected: Vec<_> = kinds.iter().map(|kind| (subject, *kind)).collect();
        assert_eq!(got, expected);
    }
}
