//! A handle that is kept follows its tenant: status, place, login, and the end.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod data_plane;

use std::time::Duration;

use biplane::{
    Biplane,
    connector::postgres::EnvironmentSource,
    error::{Error, ErrorKind},
    plane::TenantDb,
    repository::{NewTenant, SourceChange, TenantAdmin},
    secret::Credential,
    tenant::{DataSourceId, Isolation, Location, PoolSettings, Role, Slug, TenantStatus},
    testing::wait,
};
use data_plane::{LIMIT, Placed, Wish, World, backend, options, shared, timed};
use secrecy::SecretString;
use sqlx::{Connection, Executor};

fn kind(error: &sqlx::Error) -> ErrorKind {
    Error::of(error)
        .unwrap_or_else(|| panic!("not one of ours: {error:?}"))
        .kind()
}

async fn refused(db: &TenantDb) -> ErrorKind {
    let by_statement = kind(&sqlx::query("select 1").execute(db).await.unwrap_err());
    assert_eq!(by_statement, kind(&db.begin().await.unwrap_err()));
    assert_eq!(by_statement, kind(&db.acquire().await.unwrap_err()));
    by_statement
}

async fn database(db: &TenantDb) -> String {
    sqlx::query_scalar("select current_database()::text")
        .fetch_one(db)
        .await
        .unwrap()
}

async fn user(db: &TenantDb) -> String {
    sqlx::query_scalar("select current_user::text")
        .fetch_one(db)
        .await
        .unwrap()
}

/// Another role of the shared server, which may do everything.
async fn another(world: &World<'_>, name: &str) -> Credential {
    use biplane::testing::postgres::RoleAttribute;
    let name = format!("{name}_{}", std::process::id());
    let password = SecretString::from("another");
    world
        .cluster
        .create_role(&name, &password, &[RoleAttribute::Superuser])
        .await
        .unwrap()
}

async fn set_status(world: &World<'_>, biplane: &Biplane, placed: &Placed, status: TenantStatus) {
    world.status(placed.id, status).await;
    biplane.invalidate(placed.id).await;
}

/// A data source that no tenant lives on, and its database.
async fn vacant(world: &World<'_>) -> Placed {
    let vacated = world.tenant().await;
    let version = world.record(vacated.id).await.version;
    // One database is one tenant's alone.
    let archived = world
        .control
        .set_status(&world.by, vacated.id, version, TenantStatus::Archived)
        .await
        .unwrap();
    world
        .control
        .delete(&world.by, vacated.id, archived.version)
        .await
        .unwrap();
    vacated
}

async fn move_to(world: &World<'_>, biplane: &Biplane, placed: &Placed, target: &Placed) {
    let version = world.record(placed.id).await.version;
    world
        .control
        .place(&world.by, placed.id, version, target.source, Isolation::Database)
        .await
        .unwrap();
    biplane.invalidate(placed.id).await;
}

/// Moves a tenant to a database of its own elsewhere, and returns its name.
async fn move_away(world: &World<'_>, biplane: &Biplane, placed: &Placed) -> String {
    let target = vacant(world).await;
    move_to(world, biplane, placed, &target).await;
    target.database
}

async fn until_waiting(biplane: &Biplane, callers: usize) {
    wait::until("callers wait", LIMIT, async || {
        biplane.stats().connector.waiting == callers
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_suspended_tenants_handle_is_refused_and_works_again_afterwards() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(2)).await;
    backend(&db).await;
    set_status(&world, &biplane, &placed, TenantStatus::Suspended).await;
    let status = TenantStatus::Suspended;
    assert_eq!(refused(&db).await, ErrorKind::Inactive { status });
    set_status(&world, &biplane, &placed, TenantStatus::Active).await;
    backend(&db).await;
}

#[tokio::test]
async fn a_handle_follows_its_tenant_to_another_database() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(2)).await;
    assert_eq!(database(&db).await, placed.database);
    let to = move_away(&world, &biplane, &placed).await;
    assert_eq!(database(&db).await, to);
    let mut tx = db.begin().await.unwrap();
    let found: String = sqlx::query_scalar("select current_database()::text")
        .fetch_one(&mut tx)
        .await
        .unwrap();
    assert_eq!(found, to);
}

#[tokio::test]
async fn a_closed_routers_handle_says_so() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(2)).await;
    backend(&db).await;
    let ((), took) = timed(biplane.close(LIMIT)).await;
    assert!(took < Duration::from_secs(10), "nothing was in use: {took:?}");
    assert_eq!(refused(&db).await, ErrorKind::Closed);
    world.watch(&placed.database).await.until_sessions(0).await;
}

#[tokio::test]
async fn who_waits_while_the_tenant_is_suspended_is_refused() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(1)).await;
    let held = db.acquire().await.unwrap();
    let waiter = tokio::spawn({
        let db = db.clone();
        async move { db.begin().await.map(drop) }
    });
    until_waiting(&biplane, 1).await;
    set_status(&world, &biplane, &placed, TenantStatus::Suspended).await;
    drop(held);
    let status = TenantStatus::Suspended;
    assert_eq!(
        kind(&waiter.await.unwrap().unwrap_err()),
        ErrorKind::Inactive { status }
    );
}

#[tokio::test]
async fn who_waits_while_the_tenant_becomes_read_only_does_not_write() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(1)).await;
    let held = db.acquire().await.unwrap();
    let waiter = tokio::spawn({
        let db = db.clone();
        async move {
            sqlx::query("insert into note (text) values ('no')")
                .execute(&db)
                .await
        }
    });
    until_waiting(&biplane, 1).await;
    set_status(&world, &biplane, &placed, TenantStatus::ReadOnly).await;
    drop(held);
    assert_eq!(kind(&waiter.await.unwrap().unwrap_err()), ErrorKind::ReadOnly);
}

#[tokio::test]
async fn who_waits_while_the_tenant_moves_gets_a_connection_to_where_it_is() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(2)).await;
    let old = placed.database.clone();
    let held = (db.acquire().await.unwrap(), db.acquire().await.unwrap());
    let waiter = tokio::spawn({
        let db = db.clone();
        async move { database(&db).await }
    });
    until_waiting(&biplane, 1).await;
    let to = move_away(&world, &biplane, &placed).await;
    assert_ne!(old, to);
    drop(held);
    assert_eq!(waiter.await.unwrap(), to);
}

/// What stood in its way at the old place does not matter any more.
#[tokio::test]
async fn who_waited_at_the_old_place_in_vain_tries_the_new_one() {
    let world = World::new(shared().await);
    let placed = world.tenant_with(Wish::max(1)).await;
    // Made beforehand: a busy machine takes longer to create a database than anybody waits here.
    let target = vacant(&world).await;
    let mut options = options(4);
    options.wait_timeout = Duration::from_secs(5);
    let biplane = world.biplane(options);
    let db = biplane.route(&placed.slug).await.unwrap();
    let _held = wait::until_some("it connects", LIMIT, async || db.acquire().await.ok())
        .await
        .unwrap();
    let waiter = tokio::spawn({
        let db = db.clone();
        async move { database(&db).await }
    });
    until_waiting(&biplane, 1).await;
    move_to(&world, &biplane, &placed, &target).await;
    assert_eq!(waiter.await.unwrap(), target.database);
}

#[tokio::test]
async fn who_waits_while_the_router_closes_hears_of_it_at_once() {
    let world = World::new(shared().await);
    let (biplane, _, db) = world.one(options(1)).await;
    let held = db.acquire().await.unwrap();
    let waiter = tokio::spawn({
        let db = db.clone();
        async move { db.begin().await.map(drop) }
    });
    until_waiting(&biplane, 1).await;
    let closing = tokio::spawn({
        let biplane = biplane.clone();
        async move { biplane.close(LIMIT).await }
    });
    assert_eq!(kind(&waiter.await.unwrap().unwrap_err()), ErrorKind::Closed);
    assert!(!closing.is_finished(), "one connection is still lent");
    drop(held);
    closing.await.unwrap();
}

#[tokio::test]
async fn a_new_credential_is_used_from_then_on_and_the_old_sessions_end() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(5)).await;
    let mut watch = world.watch(&placed.database).await;
    let held = db.acquire().await.unwrap();
    assert_eq!(user(&db).await, "postgres");
    let credential = another(&world, "rotated").await;
    world
        .credentials
        .set(placed.source, Role::App, credential.clone());
    assert_eq!(user(&db).await, credential.username());
    // The one that rested is gone, the one that is held may go on.
    watch.until_sessions(2).await;
    drop(held);
    watch.until_sessions(1).await;
    assert_eq!(user(&db).await, credential.username());
    assert_eq!(biplane.stats().connector.pools, 1);
}

#[tokio::test]
async fn nobody_fails_while_a_credential_is_replaced_and_the_cap_holds() {
    let world = World::new(shared().await);
    let placed = world.tenant_with(Wish::max(2)).await;
    let biplane = world.biplane(options(5));
    let db = biplane.route(&placed.slug).await.unwrap();
    let first = another(&world, "first").await;
    world.credentials.set(placed.source, Role::App, first.clone());
    let held = (db.acquire().await.unwrap(), db.acquire().await.unwrap());
    let waiters: Vec<_> = (0..4)
        .map(|_| {
            let db = db.clone();
            tokio::spawn(async move { user(&db).await })
        })
        .collect();
    until_waiting(&biplane, 4).await;
    let second = another(&world, "second").await;
    world.credentials.set(placed.source, Role::App, second.clone());
    let locked_out = format!("alter role {} nologin", first.username());
    world.cluster.sql("postgres", &locked_out).await.unwrap();
    // Somebody has to come for the change to be noticed.
    let newcomer = tokio::spawn({
        let db = db.clone();
        async move { user(&db).await }
    });
    until_waiting(&biplane, 5).await;
    assert_eq!(
        world.watch(&placed.database).await.sessions().await,
        2,
        "the cap holds"
    );
    drop(held);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), second.username());
    }
    assert_eq!(newcomer.await.unwrap(), second.username());
    assert!(world.watch(&placed.database).await.sessions().await <= 2);
}

#[tokio::test]
async fn a_data_source_that_moves_takes_its_connections_along() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(3)).await;
    assert_eq!(database(&db).await, placed.database);
    let elsewhere = world.tenant().await.database;
    let mut change = SourceChange::default();
    change.location = Some(Location::Server(world.cluster.server(&elsewhere)));
    world.change_source(&placed, change).await;
    biplane.invalidate(placed.id).await;
    assert_eq!(database(&db).await, elsewhere);
    world.watch(&placed.database).await.until_sessions(0).await;
}

#[tokio::test]
async fn another_limit_of_a_data_source_holds_from_then_on() {
    let world = World::new(shared().await);
    let placed = world.tenant_with(Wish::max(3)).await;
    let mut options = options(5);
    options.wait_timeout = Duration::from_millis(200);
    let biplane = world.biplane(options);
    let db = biplane.route(&placed.slug).await.unwrap();
    let mut three = Vec::new();
    while three.len() < 3 {
        // A first connection may take longer than this pool waits.
        three.extend(db.acquire().await);
    }
    drop(three);
    let mut change = SourceChange::default();
    change.pool = Some(PoolSettings::new(0, 1).unwrap());
    world.change_source(&placed, change).await;
    biplane.invalidate(placed.id).await;
    let _one = wait::until_some("the one that may be", LIMIT, async || db.acquire().await.ok())
        .await
        .unwrap();
    let scope = biplane::error::BudgetScope::DataSource;
    assert_eq!(
        kind(&db.acquire().await.unwrap_err()),
        ErrorKind::BudgetExhausted { scope }
    );
}

#[tokio::test]
async fn each_role_has_a_login_of_its_own() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(5)).await;
    let (service, reader) = (another(&world, "service").await, another(&world, "reader").await);
    world
        .credentials
        .set(placed.source, Role::Service, service.clone());
    world
        .credentials
        .set(placed.source, Role::ReadOnly, reader.clone());
    assert_eq!(db.role(), Role::App);
    assert_eq!(user(&db).await, "postgres");
    assert_eq!(user(&db.with_role(Role::Service)).await, service.username());
    assert_eq!(user(&db.with_role(Role::ReadOnly)).await, reader.username());
    assert_eq!(biplane.stats().connector.pools, 3);
}

/// Whatever the database would let it do.
#[tokio::test]
async fn the_read_only_role_does_not_write() {
    let world = World::new(shared().await);
    let (_biplane, placed, db) = world.one(options(5)).await;
    let superuser = world.cluster.superuser();
    world.credentials.set(placed.source, Role::ReadOnly, superuser);
    let reader = db.with_role(Role::ReadOnly);
    let write = "insert into note (text) values ('no')";
    assert_eq!(
        kind(&reader.execute(write).await.unwrap_err()),
        ErrorKind::ReadOnly
    );
    let mut tx = reader.begin().await.unwrap();
    assert_eq!(kind(&tx.execute(write).await.unwrap_err()), ErrorKind::ReadOnly);
    drop(tx);
    let mut conn = reader.acquire().await.unwrap();
    assert_eq!(kind(&conn.execute(write).await.unwrap_err()), ErrorKind::ReadOnly);
    let bare = conn.dangerous_connection().unwrap();
    assert!(bare.execute(write).await.is_err());
    bare.execute("set default_transaction_read_only = off")
        .await
        .unwrap();
    drop(conn);
    assert_eq!(
        kind(&reader.execute(write).await.unwrap_err()),
        ErrorKind::ReadOnly,
        "nor the next one"
    );
    db.execute(write).await.unwrap();
}

#[tokio::test]
async fn the_data_source_of_the_environment_is_where_the_environment_says() {
    let world = World::new(shared().await);
    let name = world.tenant().await.database;
    let new = NewTenant::new(Slug::parse("at-home").unwrap(), DataSourceId::DEFAULT);
    let tenant = world.control.create(&world.by, new).await.unwrap();
    world.status(tenant.id, TenantStatus::Active).await;
    let source = EnvironmentSource::new(
        world.cluster.server(&name),
        world.cluster.superuser(),
        PoolSettings::new(0, 2).unwrap(),
    );
    let builder = || Biplane::postgres(world.control.clone(), world.credentials.clone());
    let db = builder()
        .environment(source)
        .build()
        .unwrap()
        .route(tenant.id)
        .await
        .unwrap();
    assert_eq!(database(&db).await, name);
    assert_eq!(
        refused(&db.with_role(Role::Service)).await,
        ErrorKind::MissingCredential { role: Role::Service }
    );
    let db = builder().build().unwrap().route(tenant.id).await.unwrap();
    let kind = refused(&db).await;
    assert!(
        matches!(
            kind,
            ErrorKind::InvalidConfiguration | ErrorKind::MissingCredential { .. }
        ),
        "{kind:?}"
    );
}

#[tokio::test]
async fn handles_of_one_tenant_share_their_connections() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(5)).await;
    let other = biplane.route(placed.id).await.unwrap();
    let first = backend(&db).await;
    assert_eq!(backend(&other).await, first);
    assert_eq!(backend(&db.clone()).await, first);
    let stats = biplane.stats().connector;
    assert_eq!((stats.pools, stats.connections), (1, 1));
}

#[tokio::test]
async fn isolation_that_is_not_served_is_refused() {
    let world = World::new(shared().await);
    let placed = world.tenant().await;
    let biplane = world.biplane(options(1));
    let version = world.record(placed.id).await.version;
    world
        .control
        .place(&world.by, placed.id, version, placed.source, Isolation::Schema)
        .await
        .unwrap();
    let db = biplane.route(&placed.slug).await.unwrap();
    let isolation = Isolation::Schema;
    assert_eq!(refused(&db).await, ErrorKind::UnsupportedIsolation { isolation });
}

#[tokio::test]
async fn when_everything_is_dropped_every_session_ends() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(3)).await;
    let mut watch = world.watch(&placed.database).await;
    let mut tx = db.begin().await.unwrap();
    backend(&db).await;
    assert_eq!(watch.sessions().await, 2);
    drop(biplane);
    drop(db);
    watch.until_sessions(1).await;
    // What is in use stays in use.
    tx.execute("insert into note (text) values ('kept')")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    watch.until_sessions(0).await;
}

#[tokio::test]
async fn a_pool_with_a_connect_under_way_is_dropped_whole() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(3)).await;
    for _ in 0..20 {
        let biplane = world.biplane(options(3));
        let db = biplane.route(&placed.slug).await.unwrap();
        drop(tokio::time::timeout(Duration::from_millis(1), db.begin()).await);
    }
    drop((biplane, db));
    world.watch(&placed.database).await.until_sessions(0).await;
}

#[tokio::test]
async fn work_is_ended_at_the_deadline_of_a_close_and_not_before() {
    let world = World::new(shared().await);
    let (biplane, placed, db) = world.one(options(5)).await;
    let mut watch = world.watch(&placed.database).await;
    let (short, long) = (db.clone(), db.clone());
    let waits = "select pg_advisory_lock(1)";
    let mut other = world.cluster.connect(&placed.database).await.unwrap();
    other.execute(waits).await.unwrap();
    let short = tokio::spawn(async move { sqlx::query(waits).execute(&short).await });
    let long = tokio::spawn(async move { sqlx::query("select pg_sleep(600)").execute(&long).await });
    // Held and not used, so that nothing tells its holder.
    let mut idle = db.acquire().await.unwrap();
    watch.until_running("select pg_sleep", 1).await;
    watch.until_running(waits, 1).await;
    // The short one may end once the close has begun.
    let ended = async { other.close().await.unwrap() };
    let (((), took), ()) = tokio::join!(timed(biplane.close(Duration::from_secs(4))), ended);
    assert!(took >= Duration::from_secs(4), "{took:?}");
    assert!(took < LIMIT, "{took:?}");
    watch.until_sessions(0).await;
    short.await.unwrap().unwrap();
    long.await.unwrap().unwrap_err();
    idle.execute("select 1").await.unwrap_err();
}
