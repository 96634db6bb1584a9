//! What a [`TenantAdmin`](crate::repository::TenantAdmin) must do with data sources.

use std::sync::Arc;

use super::{
    Backend,
    support::{World, at_most, by, example_server, example_source, expect_kind, find_one},
};
use crate::{
    error::ErrorKind,
    repository::{Actor, NewSource, SourceChange},
    tenant::{
        CaCertificate, DataSource, DataSourceId, DatabaseId, Endpoint, Location, PoolSettings, Pooler,
        Server, TenantRef, Tls, TlsMode, Version,
    },
};

/// A new data source is at version 1, has no credentials, and is found by its name as it was given: every location,
/// encryption and pooler.
pub async fn a_new_source_is_found_as_given(backend: &dyn Backend) {
    let world = World::of(backend);
    for (new, n) in examples().into_iter().zip(1u32..) {
        let created = world
            .admin
            .create_source(&by(), new.clone())
            .await
            .unwrap_or_else(|error| panic!("example {n} is accepted: {error}"));
        assert_eq!(created.version, Version::FIRST);
        let mut expected = DataSource::new(new.id, new.name, new.location);
        expected.pool = new.pool;
        expected.database_id = new.database_id;
        assert_eq!(created, expected);
        let found = world.admin.source(&created.name).await.expect("it answers");
        assert_eq!(found.as_ref(), Some(&created));
    }
}

/// A name that no data source has is `None`.
pub async fn an_unknown_source_is_none(backend: &dyn Backend) {
    let world = World::of(backend);
    world.source("east").await;
    for name in ["nobody", "EAST", "eas", ""] {
        assert_eq!(world.admin.source(name).await.expect("it can be told"), None);
    }
}

/// The id, the name and the `database_id` of a data source are its own.
pub async fn a_taken_id_name_or_database_is_refused(backend: &dyn Backend) {
    let world = World::of(backend);
    let database = DatabaseId::new();
    let mut first = NewSource::new("first", Location::Memory);
    first.database_id = Some(database);
    world
        .admin
        .create_source(&by(), first.clone())
        .await
        .expect("the first is accepted");
    let mut same_id = NewSource::new("second", Location::Memory);
    same_id.id = first.id;
    let same_name = NewSource::new("first", Location::Memory);
    let mut same_database = NewSource::new("third", Location::Memory);
    same_database.database_id = first.database_id;
    for new in [same_id, same_name, same_database] {
        let created = world.admin.create_source(&by(), new).await;
        expect_kind(created, ErrorKind::AlreadyExists);
    }
    for name in ["second", "third"] {
        assert_eq!(world.admin.source(name).await.expect("it answers"), None);
    }
    let fourth = world.source("fourth").await;
    let change = SourceChange::default().database_id(database);
    let changed = world
        .admin
        .update_source(&by(), fourth, Version::FIRST, change)
        .await;
    expect_kind(changed, ErrorKind::AlreadyExists);
}

/// Names, addresses and certificates that cannot be are refused, in a new data source and in a change.
pub async fn what_cannot_be_is_refused(backend: &dyn Backend) {
    let world = World::of(backend);
    let long = "x".repeat(64);
    for name in ["", "two words", "späti", "a/b", "a\0", &*long] {
        let new = NewSource::new(name, Location::Memory);
        expect_kind(
            world.admin.create_source(&by(), new).await,
            ErrorKind::InvalidInput,
        );
    }
    let east = world.source("east").await;
    for (server, what) in impossible_servers() {
        let new = NewSource::new("new", Location::Server(server.clone()));
        let created = world.admin.create_source(&by(), new).await;
        assert!(created.is_err(), "{what}");
        expect_kind(created, ErrorKind::InvalidInput);
        let change = SourceChange::default().location(Location::Server(server));
        let changed = world
            .admin
            .update_source(&by(), east, Version::FIRST, change)
            .await;
        expect_kind(changed, ErrorKind::InvalidInput);
    }
    assert_eq!(world.admin.source("new").await.expect("it answers"), None);
}

/// A change replaces what it names, leaves the rest, raises the version, and is seen through every tenant that is placed
/// there.
pub async fn a_change_is_seen_through_the_tenants(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    let mut before = world
        .admin
        .source("east")
        .await
        .expect("it answers")
        .expect("it exists");
    let pool = SourceChange::default().pool(PoolSettings::new(3, 30).expect("3 is at most 30"));
    let location = SourceChange::default().location(Location::Server(example_server("east-2", 9)));
    let identity = SourceChange::default().database_id(DatabaseId::new());
    for change in [pool, location, identity] {
        let after = world
            .admin
            .update_source(&by(), east, before.version, change.clone())
            .await
            .expect("the change is accepted");
        let mut expected = before.clone();
        expected.version = after.version;
        expected.pool = change.pool.unwrap_or(before.pool);
        expected.location = change.location.unwrap_or(before.location);
        expected.database_id = change.database_id.or(before.database_id);
        assert_eq!(after, expected);
        assert!(after.version > before.version);
        let found = find_one(&*world.tenants, TenantRef::Id(acme.id)).await;
        let found = found.expect("the record is readable").expect("it exists");
        assert_eq!(*found.record.source, after);
        assert_eq!(found.record.tenant, acme, "the tenant itself is as before");
        before = after;
    }
}

/// Without a current version, or of a data source that does not exist, or by nobody, nothing is changed.
pub async fn a_change_needs_version_source_and_actor(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let before = world.admin.source("east").await.expect("it answers");
    let change = SourceChange::default().pool(PoolSettings::new(1, 2).expect("1 is at most 2"));
    let admin = &world.admin;
    let stale = Version::FIRST.next();
    expect_kind(
        admin.update_source(&by(), east, stale, change.clone()).await,
        ErrorKind::VersionConflict,
    );
    let nowhere = DataSourceId::new();
    expect_kind(
        admin
            .update_source(&by(), nowhere, Version::FIRST, change.clone())
            .await,
        ErrorKind::UnknownDataSource,
    );
    let nobody = Actor::new("", "a reason");
    expect_kind(
        admin.update_source(&nobody, east, Version::FIRST, change).await,
        ErrorKind::InvalidInput,
    );
    let new = NewSource::new("new", Location::Memory);
    expect_kind(admin.create_source(&nobody, new).await, ErrorKind::InvalidInput);
    assert_eq!(admin.source("east").await.expect("it answers"), before);
}

/// A change that names nothing, or what is already so, succeeds without a higher version and without entries.
pub async fn what_changes_nothing_leaves_no_trace(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let before = world
        .admin
        .source("east")
        .await
        .expect("it answers")
        .expect("it exists");
    let head = backend.changes().head().await.expect("it answers");
    let same = SourceChange::default()
        .pool(before.pool)
        .location(before.location.clone());
    for change in [SourceChange::default(), same] {
        let after = world
            .admin
            .update_source(&by(), east, before.version, change)
            .await
            .expect("it succeeds");
        assert_eq!(after, before);
    }
    assert_eq!(backend.changes().head().await.expect("it answers"), head);
}

/// The audit says which facts of a data source changed.
pub async fn the_audit_says_what_changed(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let change = SourceChange::default().pool(PoolSettings::new(0, 30).expect("0 is at most 30"));
    world
        .admin
        .update_source(&Actor::new("ann", "more load"), east, Version::FIRST, change)
        .await
        .expect("the change is accepted");
    let entries = world.admin.audit(None, at_most(1)).await.expect("it answers");
    let entry = entries.first().expect("there is one");
    assert_eq!((&*entry.actor, &*entry.reason), ("ann", "more load"));
    assert_eq!((entry.tenant, entry.source), (None, Some(east)));
    assert_eq!(
        entry.changed,
        serde_json::json!({ "pool_max": { "before": 10, "after": 30 } })
    );
}

fn examples() -> Vec<NewSource> {
    let full = example_source("full", 1);
    let mut with_everything = NewSource::new(Arc::clone(&full.name), full.location);
    with_everything.pool = full.pool;
    with_everything.database_id = full.database_id;
    let mut sources = vec![
        with_everything,
        NewSource::new("memory", Location::Memory),
        NewSource::new("environment", Location::Environment),
        NewSource::new("A.b_c-9", Location::Memory),
    ];
    let plain = Server::new(Endpoint::new("/var/run/postgresql", 5433), "data base \"x\"");
    let modes = [
        TlsMode::Disable,
        TlsMode::Prefer,
        TlsMode::Require,
        TlsMode::VerifyCa,
        TlsMode::VerifyFull,
    ];
    for mode in modes {
        let mut server = plain.clone();
        server.tls = Tls::new(mode);
        sources.push(NewSource::new(mode.as_str(), Location::Server(server)));
    }
    let mut by_file = plain.clone();
    by_file.tls = Tls::new(TlsMode::VerifyCa).ca(CaCertificate::File("/etc/ssl/ca.pem".into()));
    sources.push(NewSource::new("by-file", Location::Server(by_file)));
    let mut session = plain.clone();
    session.pooler = Pooler::Session;
    sources.push(NewSource::new("session", Location::Server(session)));
    let mut transaction = plain;
    transaction.pooler = Pooler::Transaction {
        max_prepared_statements: 0,
    };
    sources.push(NewSource::new("transaction", Location::Server(transaction)));
    let mut wide = NewSource::new("wide", Location::Memory);
    wide.pool = PoolSettings::new(u32::MAX, u32::MAX).expect("it is at most itself");
    sources.push(wide);
    sources
}

fn impossible_servers() -> Vec<(Server, &'static str)> {
    let with = |change: fn(&mut Server), what| {
        let mut server = Server::new(Endpoint::new("db.example", 5432), "data");
        change(&mut server);
        (server, what)
    };
    vec![
        with(|server| server.endpoints.clear(), "no endpoint"),
        with(|server| server.endpoints[0].port = 0, "port 0"),
        with(|server| server.endpoints[0].host = "".into(), "no host"),
        with(|server| server.endpoints[0].host = "a\0".into(), "NUL in host"),
        with(|server| server.database = "".into(), "no database"),
        with(|server| server.database = "a\0".into(), "NUL in database"),
        with(|server| server.cluster = "".into(), "no cluster"),
        with(|server| server.region = Some("".into()), "empty region"),
        with(
            |server| server.tls.ca = Some(CaCertificate::Pem("".into())),
            "empty certificate",
        ),
        with(
            |server| server.tls.ca = Some(CaCertificate::File("".into())),
            "no file name",
        ),
    ]
}
