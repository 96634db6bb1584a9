//! How a connection is made, and why there may be none: each reason is an error of its own kind.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod data_plane;

use std::{
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use biplane::{
    Biplane,
    connector::postgres::PgConnectorOptions,
    error::{Error, ErrorKind},
    plane::{ControlDb, ControlOptions, DataSchema, RoleName, TenantDb},
    pool::{PoolOptions, StatementLogging},
    repository::{CredentialSource, Login},
    secret::Credential,
    tenant::{CredentialVersion, DataSource, DatabaseId, Endpoint, Role, Server, Tls, TlsMode},
    testing::postgres::{Authentication, Cluster},
};
use data_plane::{Placed, Wish, World, backend, options, shared, timed};
use futures_util::future::join_all;
use secrecy::SecretString;
use sqlx::Connection;

const UNAVAILABLE: ErrorKind = ErrorKind::DatabaseUnavailable { retry_after: None };

fn kind(error: &sqlx::Error) -> ErrorKind {
    Error::of(error)
        .unwrap_or_else(|| panic!("not one of ours: {error:?}"))
        .kind()
}

/// The first caller hears the reason itself; those after it the same, or that nobody tries for now, and why.
async fn refused(db: &TenantDb) -> ErrorKind {
    let by_statement = kind(&sqlx::query("select 1").execute(db).await.unwrap_err());
    for error in [db.begin().await.unwrap_err(), db.acquire().await.unwrap_err()] {
        assert_eq!(reason(&error), by_statement);
    }
    by_statement
}

fn reason(error: &sqlx::Error) -> ErrorKind {
    let error = Error::of(error).unwrap();
    match error.kind() {
        ErrorKind::DatabaseUnavailable { retry_after: Some(_) } => std::error::Error::source(error)
            .and_then(|cause| cause.downcast_ref::<Error>())
            .unwrap()
            .kind(),
        kind => kind,
    }
}

async fn handle(world: &World<'_>, placed: &Placed, options: PoolOptions) -> TenantDb {
    world.biplane(options).route(&placed.slug).await.unwrap()
}

/// A handle on a database of the shared cluster that exists, by this wish.
async fn on_shared(wish: Wish) -> (World<'static>, TenantDb) {
    let world = World::new(shared().await);
    let placed = world.tenant_with(wish).await;
    let db = handle(&world, &placed, options(2)).await;
    (world, db)
}

fn secret(text: &str) -> SecretString {
    SecretString::from(text)
}

#[tokio::test]
async fn a_wrong_password_is_a_rejected_credential() {
    let credential = Credential::new("postgres", secret("canary-password")).unwrap();
    let (_world, db) = on_shared(Wish {
        credential: Some(credential),
        ..Wish::default()
    })
    .await;
    assert_eq!(refused(&db).await, ErrorKind::CredentialRejected);
    let error = db.begin().await.unwrap_err();
    for text in [
        format!("{error}"),
        format!("{error:?}"),
        format!("{:?}", Error::from(error)),
    ] {
        assert!(!text.contains("canary"), "{text}");
        assert!(!text.contains("postgres://"), "{text}");
    }
}

#[tokio::test]
async fn an_unknown_user_is_a_rejected_credential() {
    let credential = Credential::new("nobody-of-that-name", secret("x")).unwrap();
    let (_world, db) = on_shared(Wish {
        credential: Some(credential),
        ..Wish::default()
    })
    .await;
    assert_eq!(refused(&db).await, ErrorKind::CredentialRejected);
}

#[tokio::test]
async fn a_password_that_is_empty_is_missing() {
    let credential = Credential::new("postgres", secret("")).unwrap();
    let (_world, db) = on_shared(Wish {
        credential: Some(credential),
        ..Wish::default()
    })
    .await;
    assert_eq!(refused(&db).await, ErrorKind::MissingPassword);
}

#[tokio::test]
async fn a_role_without_a_credential_is_named() {
    let (_world, db) = on_shared(Wish::default()).await;
    let service = db.with_role(Role::Service);
    assert_eq!(
        refused(&service).await,
        ErrorKind::MissingCredential { role: Role::Service }
    );
    backend(&db).await;
}

#[tokio::test]
async fn any_character_may_be_in_a_password_and_in_names() {
    let world = World::new(shared().await);
    let password = secret("p}|<?@:/%20'\"\\ ü&=#");
    let user = format!("u}}|<?@:/' {}", std::process::id());
    let credential = world.cluster.create_role(&user, &password, &[]).await.unwrap();
    let database = format!("d}}|<?@:/' {}", std::process::id());
    world.cluster.create_database(&database).await.unwrap();
    let wish = Wish {
        credential: Some(credential),
        ..Wish::default()
    };
    let placed = world.tenant_on("odd", &database, wish).await;
    let db = handle(&world, &placed, options(1)).await;
    let found: (String, String) = sqlx::query_as("select current_user::text, current_database()::text")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(found, (user, database));
}

#[tokio::test]
async fn a_database_that_is_not_there_is_said_to_be_missing() {
    let world = World::new(shared().await);
    let placed = world.tenant_on("gone", "not there", Wish::default()).await;
    let db = handle(&world, &placed, options(2)).await;
    assert_eq!(refused(&db).await, ErrorKind::DatabaseMissing);
}

/// A handle on a database that should be `expected`, after `prepare` has been done to it.
async fn identified(expected: DatabaseId, prepare: impl AsyncFnOnce(&World<'static>, &Placed)) -> TenantDb {
    let world = World::new(shared().await);
    let role = format!("reader_{}", expected.as_uuid().simple());
    let credential = world.cluster.create_role(&role, &secret("r"), &[]).await.unwrap();
    let placed = world
        .tenant_with(Wish {
            database_id: Some(expected),
            credential: Some(credential),
            ..Wish::default()
        })
        .await;
    prepare(&world, &placed).await;
    handle(&world, &placed, options(2)).await
}

async fn install(world: &World<'_>, placed: &Placed, id: DatabaseId, readers: &[RoleName]) {
    let mut owner = world.cluster.connect(&placed.database).await.unwrap();
    DataSchema::install(&mut owner, id, readers).await.unwrap();
    owner.close().await.unwrap();
}

fn reader(id: DatabaseId) -> RoleName {
    RoleName::parse(&format!("reader_{}", id.as_uuid().simple())).unwrap()
}

#[tokio::test]
async fn a_database_that_says_what_it_should_is_used() {
    let id = DatabaseId::new();
    let db = identified(id, async |world, placed| {
        install(world, placed, id, &[reader(id)]).await;
        world.settle(placed, id).await;
    })
    .await;
    backend(&db).await;
}

#[tokio::test]
async fn a_database_that_says_that_it_is_another_is_wrong() {
    let id = DatabaseId::new();
    let db = identified(id, async |world, placed| {
        install(world, placed, DatabaseId::new(), &[reader(id)]).await;
    })
    .await;
    assert_eq!(refused(&db).await, ErrorKind::WrongDatabase);
}

#[tokio::test]
async fn a_database_that_says_nothing_is_wrong() {
    let id = DatabaseId::new();
    let db = identified(id, async |_, _| {}).await;
    assert_eq!(refused(&db).await, ErrorKind::WrongDatabase);
    let id = DatabaseId::new();
    let db = identified(id, async |world, placed| {
        install(world, placed, id, &[reader(id)]).await;
        world
            .cluster
            .sql(&placed.database, "delete from biplane.database")
            .await
            .unwrap();
    })
    .await;
    assert_eq!(refused(&db).await, ErrorKind::WrongDatabase);
}

#[tokio::test]
async fn a_role_that_may_not_ask_which_database_it_is_lacks_a_privilege() {
    let id = DatabaseId::new();
    let db = identified(id, async |world, placed| install(world, placed, id, &[]).await).await;
    assert_eq!(refused(&db).await, ErrorKind::MissingPrivilege);
}

/// A temporary object or a schema of the same name must not answer in place of ours.
#[tokio::test]
async fn the_wrong_database_is_left_at_once() {
    let world = World::new(shared().await);
    let placed = world
        .tenant_with(Wish {
            database_id: Some(DatabaseId::new()),
            ..Wish::default()
        })
        .await;
    let biplane = world.biplane(options(3));
    let db = biplane.route(&placed.slug).await.unwrap();
    assert_eq!(refused(&db).await, ErrorKind::WrongDatabase);
    world.watch(&placed.database).await.until_sessions(0).await;
    assert_eq!(biplane.stats().connector.connections, 0);
}

#[tokio::test]
async fn a_session_begins_as_the_settings_say_and_not_as_the_role_would_have_it() {
    let world = World::new(shared().await);
    let name = format!("own_path_{}", std::process::id());
    let credential = world.cluster.create_role(&name, &secret("r"), &[]).await.unwrap();
    let own = format!("alter role {name} set search_path = pg_catalog");
    world.cluster.sql("postgres", &own).await.unwrap();
    let placed = world
        .tenant_with(Wish {
            credential: Some(credential),
            ..Wish::default()
        })
        .await;
    let session = async |db: &TenantDb| -> (String, String) {
        sqlx::query_as("select current_setting('search_path'), current_setting('application_name')")
            .fetch_one(db)
            .await
            .unwrap()
    };
    let db = handle(&world, &placed, options(1)).await;
    assert_eq!(session(&db).await, ("public, pg_temp".into(), "biplane".into()));
    let biplane = Biplane::postgres(world.control.clone(), world.credentials.clone())
        .search_path("app, \"Odd 'one'\\\"")
        .service("billing")
        .build()
        .unwrap();
    let db = biplane.route(&placed.slug).await.unwrap();
    let expected = ("app, \"Odd 'one'\\\", pg_temp".into(), "billing".into());
    assert_eq!(session(&db).await, expected);
    sqlx::raw_sql("set search_path = x").execute(&db).await.unwrap();
    assert_eq!(session(&db).await, expected, "also after it was cleaned");
}

#[tokio::test]
async fn a_unix_socket_is_an_endpoint() {
    let world = World::new(shared().await);
    let port = world.cluster.endpoint().port;
    let sockets = world.cluster.socket_directory().to_string_lossy().into_owned();
    let mut server = Server::new(Endpoint::new(sockets, port), "postgres");
    // Which a socket of this machine has no use for, as in libpq.
    server.tls = Tls::new(TlsMode::Prefer);
    let wish = Wish {
        server: Some(server),
        ..Wish::default()
    };
    let placed = world.tenant_on("by-socket", "postgres", wish).await;
    let db = handle(&world, &placed, options(1)).await;
    let address: Option<String> = sqlx::query_scalar("select host(inet_server_addr())")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(address, None);
}

/// A socket that accepts and says nothing, as a server that hangs does.
fn silent() -> (std::net::TcpListener, Endpoint) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::new("127.0.0.1", listener.local_addr().unwrap().port());
    (listener, endpoint)
}

#[tokio::test]
async fn the_next_endpoint_is_tried_when_one_refuses_or_is_silent() {
    let world = World::new(shared().await);
    let (_listener, silent) = silent();
    let (closed, refusing) = {
        let (listener, endpoint) = self::silent();
        (listener, endpoint)
    };
    drop(closed);
    let mut server = world.cluster.server("postgres");
    server.endpoints = vec![refusing, silent, world.cluster.endpoint()];
    let wish = Wish {
        server: Some(server),
        ..Wish::default()
    };
    let placed = world.tenant_on("far", "postgres", wish).await;
    let mut options = options(1);
    options.connect_timeout = Duration::from_secs(9);
    let db = handle(&world, &placed, options).await;
    let (_, took) = timed(backend(&db)).await;
    assert!(took < Duration::from_secs(9), "{took:?}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_unavailable_in_time() {
    let world = World::new(shared().await);
    let (_listener, silent) = silent();
    let wish = Wish {
        server: Some(Server::new(silent, "postgres")),
        max: Some(2),
        ..Wish::default()
    };
    let placed = world.tenant_on("hangs", "postgres", wish).await;
    let mut options = options(5);
    options.connect_timeout = Duration::from_millis(300);
    options.wait_timeout = Duration::from_millis(500);
    let db = handle(&world, &placed, options).await;
    let (all, took) = timed(join_all((0..20).map(|_| db.begin()))).await;
    for one in all {
        // Also those for whom nobody could try: what they wait for is the server.
        let kind = kind(&one.unwrap_err());
        assert!(matches!(kind, ErrorKind::DatabaseUnavailable { .. }), "{kind:?}");
    }
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Gives a login, or does something else.
#[derive(Debug)]
struct Odd {
    opened: AtomicUsize,
    credential: Credential,
}

#[async_trait]
impl CredentialSource for Odd {
    fn version(&self, _: &DataSource, _: Role) -> Result<CredentialVersion, Error> {
        Ok(CredentialVersion::FIRST)
    }

    async fn login(&self, _: &DataSource, _: Role) -> Result<Login, Error> {
        match self.opened.fetch_add(1, Ordering::Relaxed) {
            0 => panic!("on purpose"),
            1 => std::future::pending().await,
            2 => Err(ErrorKind::CredentialUnreadable { key: None }.into()),
            _ => Ok(Login::new(self.credential.clone())),
        }
    }
}

#[tokio::test]
async fn a_credential_source_that_panics_hangs_or_fails_is_no_end_of_the_pool() {
    let world = World::new(shared().await);
    let placed = world.tenant_on("odd-source", "postgres", Wish::default()).await;
    let source = Arc::new(Odd {
        opened: AtomicUsize::new(0),
        credential: world.cluster.superuser(),
    });
    let mut settings = PgConnectorOptions::new(source.clone());
    settings.pool = options(1);
    settings.pool.connect_timeout = Duration::from_millis(500);
    let biplane = Biplane::builder(world.control.clone(), settings).build().unwrap();
    let db = biplane.route(&placed.slug).await.unwrap();
    assert_eq!(kind(&db.begin().await.unwrap_err()), ErrorKind::Internal);
    assert_eq!(kind(&db.begin().await.unwrap_err()), UNAVAILABLE);
    let unreadable = ErrorKind::CredentialUnreadable { key: None };
    assert_eq!(kind(&db.begin().await.unwrap_err()), unreadable);
    assert_eq!(biplane.stats().connector.connections, 0);
    backend(&db).await;
    assert_eq!(
        source.opened.load(Ordering::Relaxed),
        4,
        "one attempt for each caller"
    );
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_when_the_router_is_built() {
    let world = World::new(shared().await);
    let changes: [fn(&mut PoolOptions); 6] = [
        |options| options.wait_timeout = Duration::ZERO,
        |options| options.connect_timeout = Duration::ZERO,
        |options| options.idle_timeout = Duration::ZERO,
        |options| options.max_lifetime = Duration::ZERO,
        |options| options.reset_timeout = Duration::ZERO,
        |options| options.max_waiting = 0,
    ];
    for change in changes {
        let mut options = PoolOptions::default();
        change(&mut options);
        let built = Biplane::postgres(world.control.clone(), world.credentials.clone())
            .pool(options)
            .build();
        assert_eq!(built.unwrap_err().kind(), ErrorKind::InvalidConfiguration);
    }
}

#[tokio::test]
async fn times_that_mean_never_are_understood() {
    let world = World::new(shared().await);
    let mut options = options(1);
    for time in [
        &mut options.wait_timeout,
        &mut options.connect_timeout,
        &mut options.idle_timeout,
        &mut options.max_lifetime,
        &mut options.probe_after,
        &mut options.reset_timeout,
        &mut options.leak_after,
    ] {
        *time = Duration::MAX;
    }
    let (_biplane, _, db) = world.one(options).await;
    drop(db.begin().await.unwrap());
    backend(&db).await;
}

#[tokio::test]
async fn whatever_keeps_the_control_plane_from_being_asked_says_that_it_is_not_known() {
    let cluster = shared().await;
    let wrong = Credential::new("postgres", secret("wrong")).unwrap();
    let missing = cluster.server("not there");
    for options in [
        ControlOptions::new(cluster.server("postgres"), wrong),
        ControlOptions::new(missing, cluster.superuser()),
    ] {
        let control = ControlDb::connect(options).unwrap();
        let error = sqlx::query("select 1").execute(&control).await.unwrap_err();
        assert_eq!(kind(&error), ErrorKind::ControlPlaneUnavailable);
        let cause = std::error::Error::source(Error::of(&error).unwrap());
        assert!(cause.is_some(), "and why");
    }
    let mut nowhere = cluster.server("postgres");
    nowhere.endpoints.clear();
    let refused = ControlDb::connect(ControlOptions::new(nowhere, cluster.superuser())).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration);
}

/// Set in a process that a test of this file started to run itself once more.
const AGAIN: &str = "BIPLANE_TEST_AGAIN";

/// What the test of that name says when it is run in a process with these variables.
fn again(test: &str, variables: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(AGAIN, "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
    said
}

#[tokio::test]
async fn variables_of_libpq_do_not_matter() {
    if std::env::var_os(AGAIN).is_none() {
        let canaries = [
            ("PGHOST", "canary.invalid"),
            ("PGHOSTADDR", "192.0.2.1"),
            ("PGPORT", "1"),
            ("PGUSER", "canary"),
            ("PGPASSWORD", "canary"),
            ("PGDATABASE", "canary"),
            ("PGSSLMODE", "verify-full"),
            ("PGAPPNAME", "canary"),
            ("PGPASSFILE", "/dev/null"),
        ];
        again("variables_of_libpq_do_not_matter", &canaries);
        return;
    }
    let cluster = Cluster::builder()
        .authentication(Authentication::Trust)
        .start()
        .await
        .unwrap();
    let world = World::new(&cluster);
    let credential = Credential::without_password("postgres").unwrap();
    let placed = world
        .tenant_with(Wish {
            credential: Some(credential),
            ..Wish::default()
        })
        .await;
    let db = handle(&world, &placed, options(1)).await;
    let found: (String, String, String) = sqlx::query_as(
        "select current_user::text, current_database()::text, current_setting('application_name')",
    )
    .fetch_one(&db)
    .await
    .unwrap();
    assert_eq!(found, ("postgres".into(), placed.database, "biplane".into()));
}

#[test]
#[expect(clippy::print_stdout, reason = "the process that started this one reads it")]
fn variables_that_nothing_can_override_are_refused() {
    if std::env::var_os(AGAIN).is_none() {
        for name in ["PGOPTIONS", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT"] {
            let test = "variables_that_nothing_can_override_are_refused";
            let said = again(test, &[(name, "canary-value")]);
            assert!(said.contains(name) && !said.contains("canary-value"), "{said}");
        }
        return;
    }
    let server = Server::new(Endpoint::new("127.0.0.1", 1), "x");
    let credential = Credential::without_password("x").unwrap();
    let refused = ControlDb::connect(ControlOptions::new(server, credential)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration);
    println!("{refused}");
}

/// Where everything that is logged while it lives goes, of this thread.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let logged = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || logged.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }
}

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn statements_are_logged_only_when_asked_for() {
    for (logging, expected) in [(StatementLogging::Off, false), (StatementLogging::Debug, true)] {
        let logged = Logged::default();
        let world = World::new(shared().await);
        let (_biplane, _, db) = world.one(options(1).statement_logging(logging)).await;
        backend(&db).await;
        let guard = logged.listen();
        sqlx::query("select 'canary', pg_sleep(0.01)")
            .execute(&db)
            .await
            .unwrap();
        sqlx::query("select 'canary' from nowhere")
            .execute(&db)
            .await
            .unwrap_err();
        drop(db.begin().await.unwrap());
        drop(guard);
        assert_eq!(logged.text().contains("canary"), expected, "{}", logged.text());
    }
}

#[cfg(not(any(
    feature = "tls-rustls-ring-webpki",
    feature = "tls-rustls-ring-native-roots",
    feature = "tls-rustls-aws-lc-rs",
    feature = "tls-native-tls"
)))]
#[tokio::test]
async fn encryption_that_is_not_compiled_in_is_said_to_be_missing() {
    let cluster = shared().await;
    for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        let mut server = cluster.server("postgres");
        server.tls = Tls::new(mode);
        let refused =
            ControlDb::connect(ControlOptions::new(server.clone(), cluster.superuser())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration);
        assert!(refused.to_string().contains("tls-"), "{refused}");
        let world = World::new(cluster);
        let wish = Wish {
            server: Some(server),
            ..Wish::default()
        };
        let placed = world.tenant_on("encrypted", "postgres", wish).await;
        let db = handle(&world, &placed, options(1)).await;
        assert_eq!(self::refused(&db).await, ErrorKind::InvalidConfiguration);
    }
}

#[cfg(any(
    feature = "tls-rustls-ring-webpki",
    feature = "tls-rustls-ring-native-roots",
    feature = "tls-rustls-aws-lc-rs",
    feature = "tls-native-tls"
))]
mod tls {
    use biplane::{tenant::CaCertificate, testing::postgres::Certificates};

    use super::*;

    /// Whether a connection with these settings is encrypted, or why there is none.
    async fn encrypted(cluster: &Cluster, tls: Tls, host: &str) -> Result<bool, ErrorKind> {
        let world = World::new(cluster);
        let mut server = cluster.server("postgres");
        server.endpoints = vec![Endpoint::new(host, cluster.endpoint().port)];
        server.tls = tls;
        let wish = Wish {
            server: Some(server),
            ..Wish::default()
        };
        let placed = world.tenant_on("encrypted", "postgres", wish).await;
        let db = handle(&world, &placed, options(1)).await;
        let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        sqlx::query_scalar(sql)
            .fetch_one(&db)
            .await
            .map_err(|error| kind(&error))
    }

    #[tokio::test]
    async fn a_server_is_believed_by_its_authority_and_name() {
        let certificates = Certificates::generate_for(&["127.0.0.1"]).unwrap();
        let (ca, unrelated) = (certificates.ca(), certificates.unrelated_ca());
        let cluster = Cluster::builder().tls_only(certificates).start().await.unwrap();
        let address = "127.0.0.1";
        let full = Tls::new(TlsMode::VerifyFull);
        assert_eq!(
            encrypted(&cluster, full.clone().ca(ca.clone()), address).await,
            Ok(true)
        );
        let file = CaCertificate::File(cluster.directory().join("ca.pem"));
        assert_eq!(
            encrypted(&cluster, full.clone().ca(file), address).await,
            Ok(true)
        );
        assert_eq!(
            encrypted(&cluster, full.clone().ca(unrelated.clone()), address).await,
            Err(UNAVAILABLE)
        );
        assert_eq!(encrypted(&cluster, full.clone(), address).await, Err(UNAVAILABLE));
        assert_eq!(
            encrypted(&cluster, full.ca(ca.clone()), "localhost").await,
            Err(UNAVAILABLE)
        );
        let authority = Tls::new(TlsMode::VerifyCa);
        assert_eq!(
            encrypted(&cluster, authority.clone().ca(ca), "localhost").await,
            Ok(true)
        );
        assert_eq!(
            encrypted(&cluster, authority.ca(unrelated), "localhost").await,
            Err(UNAVAILABLE)
        );
        assert_eq!(
            encrypted(&cluster, Tls::new(TlsMode::Require), address).await,
            Ok(true)
        );
        assert_eq!(
            encrypted(&cluster, Tls::new(TlsMode::Prefer), address).await,
            Ok(true)
        );
        let none = Tls::new(TlsMode::Disable);
        assert_eq!(
            encrypted(&cluster, none, address).await,
            Err(ErrorKind::CredentialRejected)
        );
    }

    #[tokio::test]
    async fn a_server_without_encryption_is_refused_where_it_is_demanded() {
        let cluster = shared().await;
        assert_eq!(
            encrypted(cluster, Tls::new(TlsMode::Require), "127.0.0.1").await,
            Err(UNAVAILABLE)
        );
        assert_eq!(
            encrypted(cluster, Tls::new(TlsMode::Prefer), "127.0.0.1").await,
            Ok(false)
        );
    }

    #[tokio::test]
    async fn a_file_of_authorities_that_is_not_there_lets_nobody_in() {
        let certificates = Certificates::generate().unwrap();
        let cluster = Cluster::builder().tls(certificates).start().await.unwrap();
        let file = CaCertificate::File("/not/there.pem".into());
        let refused = encrypted(&cluster, Tls::new(TlsMode::VerifyCa).ca(file), "127.0.0.1").await;
        assert_eq!(refused, Err(UNAVAILABLE));
    }
}
