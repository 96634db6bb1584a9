//! What users of the test kit rely on: a stack in memory in one call, and a handle on a database that a test has.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;

use std::time::Duration;

use biplane::{
    error::{Error, ErrorKind},
    plane::{TenantDb, TenantExecutor},
    repository::{Actor, TenantAdmin},
    router::CacheOptions,
    secret::Credential,
    tenant::{Domain, Role, Slug, TenantStatus},
    testing::{MemoryStack, tenant_db},
};
use control::{cluster, database, owner, run};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};

type Notes = Vec<String>;

async fn stack(names: &[&str]) -> MemoryStack<Notes> {
    let stack = MemoryStack::new();
    for name in names {
        stack.add_tenant(name).await.unwrap();
    }
    stack
}

fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

#[tokio::test]
async fn a_stack_keeps_tenants_apart() {
    let stack = stack(&["acme", "globex"]).await;
    let acme = stack.biplane().route(&slug("acme")).await.unwrap();
    let globex = stack.biplane().route(&slug("globex")).await.unwrap();
    acme.write(|notes| notes.push("ours".into())).await.unwrap();
    assert_eq!(acme.read(Notes::len).await.unwrap(), 1);
    assert_eq!(globex.read(Notes::len).await.unwrap(), 0);
}

#[tokio::test]
async fn stacks_share_nothing() {
    let (one, other) = (stack(&["acme"]).await, stack(&[]).await);
    assert!(one.biplane().route(&slug("acme")).await.is_ok());
    let unknown = other.biplane().route(&slug("acme")).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::UnknownTenant);
}

#[tokio::test]
async fn a_stack_begins_with_what_the_test_makes_of_the_tenant() {
    let stack: MemoryStack<Notes> = MemoryStack::with(|tenant| vec![format!("welcome {}", tenant.slug)]);
    let tenant = stack.add_tenant("acme").await.unwrap();
    let db = stack.biplane().route(tenant.id).await.unwrap();
    assert_eq!(db.read(Notes::clone).await.unwrap(), ["welcome acme"]);
}

#[tokio::test]
async fn a_status_acts_at_once_on_a_handle_that_is_held() {
    let stack = stack(&["acme"]).await;
    let db = stack.biplane().route(&slug("acme")).await.unwrap();
    db.write(|notes| notes.push("kept".into())).await.unwrap();
    stack
        .set_status(db.tenant(), TenantStatus::ReadOnly)
        .await
        .unwrap();
    assert_eq!(db.read(Notes::len).await.unwrap(), 1);
    let refused = db.write(|notes| notes.clear()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);

    let suspended = TenantStatus::Suspended;
    stack.set_status(db.tenant(), suspended).await.unwrap();
    let refused = db.read(Notes::len).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Inactive { status: suspended });

    stack.set_status(db.tenant(), TenantStatus::Active).await.unwrap();
    assert_eq!(db.read(Notes::clone).await.unwrap(), ["kept"]);
}

/// A change that nobody announced is noticed when the route is too old to be served, and a test need not wait for that.
#[tokio::test]
async fn time_passes_when_the_test_says_so() {
    let stack = stack(&["acme"]).await;
    let db = stack.biplane().route(&slug("acme")).await.unwrap();
    let by = Actor::new("somebody", "behind the router's back");
    let source = stack.control().source("acme").await.unwrap().unwrap();
    assert_eq!(&*source.name, "acme");
    let version = biplane::tenant::Version::new(2);
    stack
        .control()
        .set_status(&by, db.tenant(), version, TenantStatus::Suspended)
        .await
        .unwrap();
    assert_eq!(db.read(Notes::len).await.unwrap(), 0);
    stack.clock().advance(CacheOptions::default().refresh_for);
    let refused = db.read(Notes::len).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Inactive { .. }), "{refused}");
}

#[tokio::test]
async fn a_bad_or_taken_slug_is_refused() {
    let stack = stack(&["acme"]).await;
    let bad = stack.add_tenant("not a slug").await.unwrap_err();
    assert_eq!(bad.kind(), ErrorKind::InvalidName);
    let taken = stack.add_tenant("acme").await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn the_parts_of_a_stack_are_the_real_ones() {
    let stack = stack(&["acme"]).await;
    let db = stack.biplane().route(&slug("acme")).await.unwrap();
    let by = Actor::new("test", "a domain");
    let domain = Domain::parse("notes.acme.example").unwrap();
    stack
        .control()
        .add_domain(&by, db.tenant(), biplane::tenant::Version::new(2), domain.clone())
        .await
        .unwrap();
    let by_domain = stack.biplane().route(&domain).await.unwrap();
    assert_eq!(by_domain.tenant(), db.tenant());

    let (mut one, mut other) = (db.begin().await.unwrap(), db.begin().await.unwrap());
    one.write().unwrap().push("first".into());
    other.write().unwrap().push("second".into());
    one.commit().unwrap();
    let conflict = other.commit().unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::TransactionConflict);

    stack.biplane().close(Duration::from_secs(1)).await;
    assert_eq!(db.read(Notes::len).await.unwrap_err().kind(), ErrorKind::Closed);
}

/// Business code under test: it takes what the service takes.
async fn add(db: impl TenantExecutor<'_>, text: &str) -> sqlx::Result<()> {
    let insert = sqlx::query("insert into note (text) values ($1)").bind(text);
    insert.execute(db).await.map(drop)
}

async fn options(database: &str, who: &Credential) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(cluster().await.endpoint().port)
        .username(who.username())
        .password(who.password().unwrap().expose_secret())
        .database(database)
        .ssl_mode(PgSslMode::Disable)
}

/// A database with a table, as `#[sqlx::test]` would hand it over, and a login with a difficult password.
async fn database_with_note(user: &str) -> (String, Credential) {
    let (cluster, database) = (cluster().await, database().await);
    let password = SecretString::from("}|<?@:/%25 \u{fc}'\\");
    let login = cluster.create_role(user, &password, &[]).await.unwrap();
    let table = format!(
        "create table note (id bigint generated always as identity primary key, text text not null);
         grant select, insert on note to {user}"
    );
    run(&mut owner(&database).await, table).await.unwrap();
    (database, login)
}

async fn pool_of(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(2)
        .connect_with(options)
        .await
        .unwrap()
}

async fn notes(pool: &PgPool) -> Vec<String> {
    let all = "select text from note order by id";
    sqlx::query_scalar(all).fetch_all(pool).await.unwrap()
}

async fn user(db: &TenantDb) -> String {
    sqlx::query_scalar("select current_user::text")
        .fetch_one(db)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_handle_reaches_the_database_of_a_pool_with_its_login() {
    let (database, login) = database_with_note("kit_tcp").await;
    let pool = pool_of(options(&database, &login).await).await;
    let db = tenant_db(&pool).await.unwrap();
    add(&db, "single").await.unwrap();
    let mut tx = db.begin().await.unwrap();
    add(&mut tx, "committed").await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = db.begin().await.unwrap();
    add(&mut tx, "rolled back").await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(notes(&pool).await, ["single", "committed"]);
    assert_eq!(user(&db).await, "kit_tcp");
}

#[tokio::test]
async fn a_pool_on_a_socket_is_followed() {
    let (database, login) = database_with_note("kit_socket").await;
    let socket = cluster().await.socket_directory();
    let pool = pool_of(options(&database, &login).await.socket(socket)).await;
    let db = tenant_db(&pool).await.unwrap();
    let address = "select coalesce(host(inet_client_addr()), 'socket')";
    let address: String = sqlx::query_scalar(address).fetch_one(&db).await.unwrap();
    assert_eq!(address, "socket");
    add(&db, "through the socket").await.unwrap();
    assert_eq!(notes(&pool).await, ["through the socket"]);
}

#[tokio::test]
async fn every_role_connects_with_the_pools_login() {
    let (database, login) = database_with_note("kit_roles").await;
    let db = tenant_db(&pool_of(options(&database, &login).await).await)
        .await
        .unwrap();
    for role in Role::ALL {
        assert_eq!(user(&db.with_role(role)).await, "kit_roles");
    }
}

#[tokio::test]
async fn two_handles_on_two_databases_do_not_meet() {
    let (one, login) = database_with_note("kit_one").await;
    let (other, others_login) = database_with_note("kit_other").await;
    let (one, other) = (
        pool_of(options(&one, &login).await).await,
        pool_of(options(&other, &others_login).await).await,
    );
    add(&tenant_db(&one).await.unwrap(), "one").await.unwrap();
    add(&tenant_db(&other).await.unwrap(), "other").await.unwrap();
    assert_eq!(
        (notes(&one).await, notes(&other).await),
        (vec!["one".into()], vec!["other".into()])
    );
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused() {
    let (database, login) = database_with_note("kit_refused").await;
    let verified = options(&database, &login).await.ssl_mode(PgSslMode::VerifyFull);
    let pool = PgPoolOptions::new().connect_lazy_with(verified);
    let refused: Error = tenant_db(&pool).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration);
    assert!(refused.to_string().contains("TLS mode"), "{refused}");
}
