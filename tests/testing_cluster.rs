//! What users of the throwaway servers rely on.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(
    clippy::print_stdout,
    reason = "one test talks to itself in another process, one prints a measurement"
)]

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use biplane::{
    secret::Credential,
    tenant::{Endpoint, Pooler},
    testing::{
        postgres::{
            Authentication, BouncerAuth, Certificates, Cluster, ClusterError, PgBouncer, PgBouncerVersion,
            PoolMode, RoleAttribute,
        },
        wait,
    },
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row,
    postgres::{PgConnectOptions, PgSslMode},
};

/// Generous: these tests run beside many others on two cores.
const LIMIT: Duration = Duration::from_secs(60);

fn listening(endpoint: &Endpoint) -> bool {
    TcpStream::connect((&*endpoint.host, endpoint.port)).is_ok()
}

fn options(endpoint: &Endpoint, database: &str, who: &Credential) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&endpoint.host)
        .port(endpoint.port)
        .username(who.username())
        .password(who.password().map_or("", |password| password.expose_secret()))
        .database(database)
        .ssl_mode(PgSslMode::Disable)
}

/// By the simple protocol, which every mode of every pooler lets through.
async fn ask(connection: &mut PgConnection, sql: &str) -> Result<String, sqlx::Error> {
    let row = connection
        .fetch_one(sqlx::raw_sql(AssertSqlSafe(format!("select ({sql})::text"))))
        .await?;
    row.try_get(0)
}

async fn ask_cluster(cluster: &Cluster, sql: &str) -> String {
    let mut connection = cluster.connect("postgres").await.unwrap();
    ask(&mut connection, sql).await.unwrap()
}

fn server_process(cluster: &Cluster) -> u32 {
    let file = std::fs::read_to_string(cluster.directory().join("data/postmaster.pid")).unwrap();
    file.lines().next().unwrap().trim().parse().unwrap()
}

/// Whether a process is there and not merely uncollected.
fn lives(process: u32) -> bool {
    let output = Command::new("sh")
        .args([
            "-c",
            "kill -0 $0 2>/dev/null && ! grep -q '^State:.Z' /proc/$0/status 2>/dev/null",
        ])
        .arg(process.to_string())
        .status();
    output.unwrap().success()
}

/// One test of this file, to be run in a process of its own.
fn alone(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command
}

#[tokio::test]
async fn two_clusters_at_once_are_different_servers() {
    let (one, two) = tokio::join!(Cluster::start(), Cluster::start());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.endpoint(), two.endpoint());
    one.sql("postgres", "create table only_here ()").await.unwrap();
    let found = "select count(*) from pg_tables where tablename = 'only_here'";
    assert_eq!(ask_cluster(&one, found).await, "1");
    assert_eq!(ask_cluster(&two, found).await, "0");
    for cluster in [&one, &two] {
        let mut by_tcp = options(&cluster.endpoint(), "postgres", &cluster.superuser())
            .connect()
            .await
            .unwrap();
        let port = ask(&mut by_tcp, "inet_server_port()").await.unwrap();
        assert_eq!(port, cluster.endpoint().port.to_string());
    }
}

#[tokio::test]
async fn many_clusters_start_at_once() {
    let clusters = futures_util::future::join_all((0..6).map(|_| Cluster::start())).await;
    let ports: HashSet<u16> = clusters
        .iter()
        .map(|c| c.as_ref().unwrap().endpoint().port)
        .collect();
    assert_eq!(ports.len(), 6);
}

#[tokio::test]
async fn a_stopped_cluster_keeps_address_and_data() {
    let cluster = Cluster::start().await.unwrap();
    let endpoint = cluster.endpoint();
    cluster
        .sql("postgres", "create table kept as select 7 as n")
        .await
        .unwrap();
    cluster.stop().await.unwrap();
    assert!(!listening(&endpoint));
    cluster.start_again().await.unwrap();
    assert_eq!(cluster.endpoint(), endpoint);
    assert!(listening(&endpoint));
    assert_eq!(ask_cluster(&cluster, "select n from kept").await, "7");
}

#[tokio::test]
async fn a_restarted_cluster_is_a_new_server_with_the_old_data() {
    let cluster = Cluster::start().await.unwrap();
    cluster
        .sql("postgres", "create table kept as select 7 as n")
        .await
        .unwrap();
    let mut held = cluster.connect("postgres").await.unwrap();
    let before = server_process(&cluster);
    cluster.restart().await.unwrap();
    assert_ne!(server_process(&cluster), before);
    assert!(held.ping().await.is_err());
    assert_eq!(ask_cluster(&cluster, "select n from kept").await, "7");
}

#[tokio::test]
async fn stopping_what_is_stopped_and_starting_what_runs_does_nothing() {
    let cluster = Cluster::start().await.unwrap();
    let process = server_process(&cluster);
    cluster.start_again().await.unwrap();
    assert_eq!(server_process(&cluster), process);
    cluster.kill().await.unwrap();
    cluster.kill().await.unwrap();
    cluster.stop().await.unwrap();
    cluster.start_again().await.unwrap();
    assert_eq!(ask_cluster(&cluster, "select 1").await, "1");
}

#[tokio::test]
async fn what_was_committed_survives_a_kill() {
    let cluster = Cluster::start().await.unwrap();
    cluster
        .sql("postgres", "create table kept (n int)")
        .await
        .unwrap();
    let mut connection = cluster.connect("postgres").await.unwrap();
    for n in 0..50 {
        let insert = format!("insert into kept values ({n})");
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(insert)))
            .await
            .unwrap();
    }
    cluster.kill().await.unwrap();
    cluster.start_again().await.unwrap();
    assert_eq!(ask_cluster(&cluster, "select count(*) from kept").await, "50");
}

#[tokio::test]
async fn a_killed_cluster_refuses_connections_and_says_no_good_bye() {
    let cluster = Cluster::start().await.unwrap();
    let mut idle = cluster.connect("postgres").await.unwrap();
    cluster.kill().await.unwrap();
    assert!(!listening(&cluster.endpoint()));
    let refused = cluster.connect("postgres").await.unwrap_err();
    assert!(matches!(refused, ClusterError::Sql { .. }), "{refused:?}");
    idle.ping().await.unwrap_err();
}

#[tokio::test]
async fn a_kill_leaves_clients_with_no_word_and_a_stop_with_one() {
    let trusting = Cluster::builder().authentication(Authentication::Trust);
    let (stopped, killed) = tokio::join!(trusting.clone().start(), trusting.start());
    let (stopped, killed) = (stopped.unwrap(), killed.unwrap());
    let (told, untold) = (bare_session(&stopped), bare_session(&killed));
    stopped.stop().await.unwrap();
    killed.kill().await.unwrap();
    assert!(last_words(told).contains("terminating connection"));
    assert_eq!(last_words(untold), "");
}

/// A session by the bare protocol, because drivers keep to themselves what a server says on parting.
fn bare_session(cluster: &Cluster) -> TcpStream {
    let parameters = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let mut session = TcpStream::connect(("127.0.0.1", cluster.endpoint().port)).unwrap();
    session.set_read_timeout(Some(LIMIT)).unwrap();
    let length = u32::try_from(parameters.len() + 4).unwrap();
    session.write_all(&length.to_be_bytes()).unwrap();
    session.write_all(parameters).unwrap();
    loop {
        let mut head = [0; 5];
        session.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes(head[1..].try_into().unwrap());
        let mut body = vec![0; length as usize - 4];
        session.read_exact(&mut body).unwrap();
        // ReadyForQuery
        if head[0] == b'Z' {
            return session;
        }
    }
}

fn last_words(mut session: TcpStream) -> String {
    let mut words = Vec::new();
    // The end may come as a reset.
    let _ = session.read_to_end(&mut words);
    String::from_utf8_lossy(&words).into_owned()
}

#[tokio::test]
async fn a_kill_ends_sessions_in_the_middle_of_their_work() {
    let cluster = Cluster::start().await.unwrap();
    let mut busy = cluster.connect("postgres").await.unwrap();
    // No parallel workers and nothing to wait for: a session that would not notice that the server has died.
    let work = tokio::spawn(async move {
        let sql = "select count(*) from (select generate_series(1, 100000000000)) endless";
        ask(&mut busy, sql).await
    });
    let active = "select count(*) from pg_stat_activity where state = 'active' and query like '%endless%' \
                  and pid <> pg_backend_pid()";
    wait::until("the query", LIMIT, async || {
        ask_cluster(&cluster, active).await == "1"
    })
    .await
    .unwrap();
    cluster.kill().await.unwrap();
    let outcome = tokio::time::timeout(LIMIT, work).await.unwrap().unwrap();
    assert!(outcome.is_err());
}

#[tokio::test]
async fn a_standby_follows_its_primary_and_takes_over_when_it_is_promoted() {
    let primary = Cluster::start().await.unwrap();
    let user = primary
        .create_role("ann", &SecretString::from("a password"), &[])
        .await
        .unwrap();
    let standby = Cluster::builder().standby_of(&primary).start().await.unwrap();
    assert_ne!(standby.endpoint(), primary.endpoint());
    primary
        .sql(
            "postgres",
            "create table note (text text); insert into note values ('first')",
        )
        .await
        .unwrap();
    wait::until("the standby has it", LIMIT, async || {
        ask_cluster(&standby, "to_regclass('note') is not null").await == "true"
            && ask_cluster(&standby, "select text from note").await == "first"
    })
    .await
    .unwrap();
    let write = "insert into note values ('second')";
    let Err(ClusterError::Sql { source, .. }) = standby.sql("postgres", write).await else {
        panic!("a standby takes no writes")
    };
    let code = source.as_database_error().and_then(|refused| refused.code());
    assert_eq!(code.as_deref(), Some("25006"));
    primary.kill().await.unwrap();
    standby.promote().await.unwrap();
    standby.sql("postgres", write).await.unwrap();
    standby.connect_as(&user, "postgres").await.unwrap();
    standby.promote().await.unwrap_err();
    // At the same address, and no standby any more.
    standby.restart().await.unwrap();
    standby.sql("postgres", write).await.unwrap();
}

#[tokio::test]
async fn a_standby_without_a_primary_is_not_made() {
    let primary = Cluster::start().await.unwrap();
    primary.stop().await.unwrap();
    let error = Cluster::builder().standby_of(&primary).start().await.unwrap_err();
    assert!(matches!(error, ClusterError::Backup(_)), "{error:?}");
}

#[tokio::test]
async fn a_dropped_cluster_leaves_no_process_and_no_file() {
    let cluster = Cluster::start().await.unwrap();
    let mut held = cluster.connect("postgres").await.unwrap();
    let session: u32 = ask(&mut held, "pg_backend_pid()").await.unwrap().parse().unwrap();
    let (server, directory, endpoint) = (
        server_process(&cluster),
        cluster.directory().to_owned(),
        cluster.endpoint(),
    );
    assert!(lives(server) && lives(session) && directory.exists() && listening(&endpoint));
    drop(cluster);
    assert!(!lives(server), "the server is still there");
    assert!(!lives(session), "a session is still there");
    assert!(!directory.exists());
    assert!(!listening(&endpoint));
}

#[tokio::test]
async fn a_killed_and_dropped_cluster_leaves_no_shared_memory() {
    let cluster = Cluster::start().await.unwrap();
    let file = std::fs::read_to_string(cluster.directory().join("data/postmaster.pid")).unwrap();
    let segment = file
        .lines()
        .nth(6)
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .to_owned();
    let there = || {
        let table = Command::new("ipcs").arg("-m").output().unwrap();
        String::from_utf8(table.stdout)
            .unwrap()
            .lines()
            .any(|line| line.split_whitespace().nth(1) == Some(&segment))
    };
    assert!(there());
    cluster.kill().await.unwrap();
    let directory = cluster.directory().to_owned();
    drop(cluster);
    assert!(!there());
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_panicking_test_leaves_nothing() {
    let (tell, told) = tokio::sync::oneshot::channel::<(PathBuf, Endpoint)>();
    let test = tokio::spawn(async move {
        let cluster = Cluster::start().await.unwrap();
        tell.send((cluster.directory().to_owned(), cluster.endpoint()))
            .unwrap();
        panic!("as tests do");
    });
    let (directory, endpoint) = told.await.unwrap();
    assert!(test.await.unwrap_err().is_panic());
    assert!(!directory.exists());
    assert!(!listening(&endpoint));
}

#[tokio::test]
async fn a_test_process_that_is_killed_leaves_nothing() {
    const PLAY_THE_VICTIM: &str = "BIPLANE_TEST_VICTIM";
    if std::env::var_os(PLAY_THE_VICTIM).is_some() {
        let cluster = Cluster::start().await.unwrap();
        let bouncer = PgBouncer::builder(&cluster).start().await.unwrap();
        let (directory, port) = (cluster.directory().display(), cluster.endpoint().port);
        println!("\nready {port} {} {directory}", bouncer.endpoint().port);
        std::future::pending::<()>().await;
    }
    let mut victim = alone("a_test_process_that_is_killed_leaves_nothing")
        .env(PLAY_THE_VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = BufReader::new(victim.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find_map(|line| line.strip_prefix("ready ").map(str::to_owned))
        .unwrap();
    let mut words = ready.splitn(3, ' ');
    let mut port = || Endpoint::new("127.0.0.1", words.next().unwrap().parse().unwrap());
    let endpoints = [port(), port()];
    let directory = Path::new(words.next().unwrap());
    assert!(endpoints.iter().all(listening) && directory.exists());
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait::until("everything to be gone", LIMIT, async || {
        !directory.exists() && !endpoints.iter().any(listening)
    })
    .await
    .unwrap();
}

#[test]
fn without_postgres_a_database_test_fails_and_says_what_to_install() {
    let output = alone("two_clusters_at_once_are_different_servers")
        .env("BIPLANE_PG_BIN", "/nonexistent")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for expected in ["/nonexistent", "apt-get install postgresql", "BIPLANE_PG_BIN"] {
        assert!(text.contains(expected), "{expected} is missing in: {text}");
    }
}

#[tokio::test]
async fn without_pgbouncer_its_error_says_what_to_install() {
    const WITHOUT: &str = "BIPLANE_TEST_WITHOUT_PGBOUNCER";
    if std::env::var_os(WITHOUT).is_some() {
        let cluster = Cluster::start().await.unwrap();
        let error = PgBouncer::builder(&cluster).start().await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ClusterError::NotInstalled(_)), "{error:?}");
        assert!(
            text.contains("/nonexistent") && text.contains("package `pgbouncer`"),
            "{text}"
        );
        return;
    }
    let status = alone("without_pgbouncer_its_error_says_what_to_install")
        .envs([(WITHOUT, "1"), ("BIPLANE_PGBOUNCER", "/nonexistent")])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn the_environment_of_libpq_changes_nothing() {
    let output = alone("a_stopped_cluster_keeps_address_and_data")
        .envs([
            ("PGHOST", "nowhere.invalid"),
            ("PGHOSTADDR", "192.0.2.1"),
            ("PGPORT", "1"),
            ("PGUSER", "nobody"),
            ("PGPASSWORD", "wrong"),
            ("PGDATABASE", "nothing"),
            ("PGSSLMODE", "verify-full"),
            ("PGSSLROOTCERT", "/nonexistent"),
            ("PGDATA", "/nonexistent"),
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
}

#[tokio::test]
async fn a_setting_that_postgres_refuses_is_named_in_its_own_words() {
    let error = Cluster::builder()
        .setting("no_such_setting", "it's \\ odd")
        .start()
        .await
        .unwrap_err();
    let ClusterError::Start(log) = &error else {
        panic!("{error:?}");
    };
    assert!(log.as_str().contains("no_such_setting"), "{log}");
}

#[tokio::test]
async fn settings_reach_the_server() {
    let cluster = Cluster::builder()
        .max_connections(7)
        .setting("application_name", "it's a \\ test")
        .start()
        .await
        .unwrap();
    assert_eq!(
        ask_cluster(&cluster, "current_setting('max_connections')").await,
        "7"
    );
    let reset = "select reset_val from pg_settings where name = 'application_name'";
    let file = "select setting from pg_file_settings where name = 'application_name'";
    assert_ne!(ask_cluster(&cluster, reset).await, "");
    assert_eq!(ask_cluster(&cluster, file).await, "it's a \\ test");
    assert_eq!(ask_cluster(&cluster, "current_setting('fsync')").await, "off");
}

#[tokio::test]
async fn a_durable_cluster_writes_through() {
    let cluster = Cluster::builder().durable().start().await.unwrap();
    assert_eq!(ask_cluster(&cluster, "current_setting('fsync')").await, "on");
    assert_eq!(
        ask_cluster(&cluster, "current_setting('synchronous_commit')").await,
        "on"
    );
}

#[tokio::test]
async fn system_identifiers_differ_when_asked_for() {
    let own = Cluster::builder().own_system_identifier();
    let (one, two) = tokio::join!(own.clone().start(), own.start());
    let identifier = "select system_identifier from pg_control_system()";
    let one = ask_cluster(&one.unwrap(), identifier).await;
    assert_ne!(one, ask_cluster(&two.unwrap(), identifier).await);
}

#[tokio::test]
async fn names_and_passwords_may_hold_any_character() {
    let cluster = Cluster::start().await.unwrap();
    let odd = r#"a"b'c\d$$ é;--"#;
    cluster.create_database(odd).await.unwrap();
    let role = cluster
        .create_role(odd, &SecretString::from(odd), &[])
        .await
        .unwrap();
    let mut connection = cluster.connect_as(&role, odd).await.unwrap();
    assert_eq!(ask(&mut connection, "current_user").await.unwrap(), odd);
    assert_eq!(ask(&mut connection, "current_database()").await.unwrap(), odd);
    let url = cluster.url(odd, &role);
    let by_url: PgConnectOptions = url.expose_secret().parse().unwrap();
    let mut connection = by_url.connect().await.unwrap();
    assert_eq!(ask(&mut connection, "current_database()").await.unwrap(), odd);
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let cluster = Cluster::start().await.unwrap();
    let right = SecretString::from("right");
    cluster.create_role("app", &right, &[]).await.unwrap();
    let wrong = Credential::new("app", SecretString::from("wrong")).unwrap();
    let by_tcp = options(&cluster.endpoint(), "postgres", &wrong).connect().await;
    let by_tcp = by_tcp.unwrap_err();
    assert_eq!(by_tcp.as_database_error().unwrap().code().unwrap(), "28P01");
    assert!(cluster.connect_as(&wrong, "postgres").await.is_err());
}

#[tokio::test]
async fn a_trusting_cluster_asks_for_no_password() {
    let cluster = Cluster::builder()
        .authentication(Authentication::Trust)
        .start()
        .await
        .unwrap();
    let nobody = Credential::without_password("postgres").unwrap();
    let mut connection = options(&cluster.endpoint(), "postgres", &nobody)
        .connect()
        .await
        .unwrap();
    assert_eq!(ask(&mut connection, "current_user").await.unwrap(), "postgres");
}

#[tokio::test]
async fn roles_get_what_they_are_given_and_no_more() {
    let cluster = Cluster::start().await.unwrap();
    let password = SecretString::from("secret");
    cluster.create_role("plain", &password, &[]).await.unwrap();
    let given = [
        RoleAttribute::CreateDatabase,
        RoleAttribute::BypassRowSecurity,
        RoleAttribute::ConnectionLimit(3),
    ];
    cluster.create_role("given", &password, &given).await.unwrap();
    let attributes = |role: &str| {
        format!(
            "select concat_ws(' ', rolsuper, rolcreatedb, rolcreaterole, rolbypassrls, rolreplication, \
             rolconnlimit) from pg_roles where rolname = '{role}'"
        )
    };
    assert_eq!(ask_cluster(&cluster, &attributes("plain")).await, "f f f f f -1");
    assert_eq!(ask_cluster(&cluster, &attributes("given")).await, "f t f t f 3");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_starts_while_the_clock_is_paused() {
    let began = tokio::time::Instant::now();
    let cluster = Cluster::start().await.unwrap();
    cluster.restart().await.unwrap();
    cluster.kill().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn nothing_printed_holds_a_password() {
    let cluster = Cluster::start().await.unwrap();
    let superuser = cluster.superuser();
    let password = superuser.password().unwrap().expose_secret();
    let bouncer = PgBouncer::builder(&cluster);
    for printed in [
        format!("{cluster:?}"),
        format!("{bouncer:?}"),
        format!("{:?}", Cluster::builder()),
    ] {
        assert!(!printed.contains(password), "{printed}");
    }
}

#[tokio::test]
async fn a_cluster_that_insists_on_tls_refuses_plain_connections() {
    let certificates = Certificates::generate().unwrap();
    let cluster = Cluster::builder().tls_only(certificates).start().await.unwrap();
    let refused = options(&cluster.endpoint(), "postgres", &cluster.superuser())
        .connect()
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "28000");
    assert_eq!(ask_cluster(&cluster, "current_setting('ssl')").await, "on");
}

#[cfg(any(
    feature = "tls-rustls-ring-webpki",
    feature = "tls-rustls-ring-native-roots",
    feature = "tls-rustls-aws-lc-rs",
    feature = "tls-native-tls"
))]
mod tls {
    use biplane::tenant::CaCertificate;

    use super::*;

    async fn connect(cluster: &Cluster, mode: PgSslMode, ca: CaCertificate) -> Result<String, sqlx::Error> {
        let CaCertificate::Pem(ca) = ca else {
            panic!("generated certificates are text");
        };
        let mut connection = options(&cluster.endpoint(), "postgres", &cluster.superuser())
            .ssl_mode(mode)
            .ssl_root_cert_from_pem(ca.as_bytes().to_vec())
            .connect()
            .await?;
        ask(
            &mut connection,
            "select ssl from pg_stat_ssl where pid = pg_backend_pid()",
        )
        .await
    }

    #[tokio::test]
    async fn its_own_authority_is_trusted_and_another_is_not() {
        let certificates = Certificates::generate().unwrap();
        let cluster = Cluster::builder()
            .tls_only(certificates.clone())
            .start()
            .await
            .unwrap();
        for mode in [PgSslMode::VerifyCa, PgSslMode::VerifyFull] {
            assert_eq!(connect(&cluster, mode, certificates.ca()).await.unwrap(), "true");
            let refused = connect(&cluster, mode, certificates.unrelated_ca())
                .await
                .unwrap_err();
            assert!(refused.as_database_error().is_none(), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn a_certificate_for_another_host_fails_full_verification_alone() {
        let certificates = Certificates::generate_for(&["elsewhere.example"]).unwrap();
        let cluster = Cluster::builder()
            .tls(certificates.clone())
            .start()
            .await
            .unwrap();
        assert_eq!(
            connect(&cluster, PgSslMode::VerifyCa, certificates.ca())
                .await
                .unwrap(),
            "true"
        );
        connect(&cluster, PgSslMode::VerifyFull, certificates.ca())
            .await
            .unwrap_err();
        assert_eq!(
            connect(&cluster, PgSslMode::Disable, certificates.ca())
                .await
                .unwrap(),
            "false"
        );
    }

    #[tokio::test]
    async fn a_url_for_a_cluster_with_certificates_demands_them() {
        let certificates = Certificates::generate().unwrap();
        let cluster = Cluster::builder().tls_only(certificates).start().await.unwrap();
        let url = cluster.url("postgres", &cluster.superuser());
        let options: PgConnectOptions = url.expose_secret().parse().unwrap();
        assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
        options.connect().await.unwrap();
    }
}

#[tokio::test]
async fn a_pgbouncer_in_transaction_mode_gives_many_clients_one_session() {
    let cluster = Cluster::start().await.unwrap();
    let role = cluster
        .create_role("app", &SecretString::from("s3cret \"quoted\""), &[])
        .await
        .unwrap();
    let bouncer = PgBouncer::builder(&cluster)
        .pool_size(NonZeroU32::MIN)
        .start()
        .await
        .unwrap();
    assert_eq!(
        bouncer.pooler(),
        Pooler::Transaction {
            max_prepared_statements: 0
        }
    );
    let options = options(&bouncer.endpoint(), "postgres", &role);
    let (mut one, mut two) = (options.connect().await.unwrap(), options.connect().await.unwrap());
    let first = ask(&mut one, "pg_backend_pid()").await.unwrap();
    assert_eq!(ask(&mut two, "pg_backend_pid()").await.unwrap(), first);
    assert_eq!(ask(&mut two, "current_user").await.unwrap(), "app");
}

#[tokio::test]
async fn a_pgbouncer_in_session_mode_gives_each_client_a_session() {
    let cluster = Cluster::start().await.unwrap();
    let bouncer = PgBouncer::builder(&cluster)
        .pool_mode(PoolMode::Session)
        .start()
        .await
        .unwrap();
    assert_eq!(bouncer.pooler(), Pooler::Session);
    let options = options(&bouncer.endpoint(), "postgres", &cluster.superuser());
    let (mut one, mut two) = (options.connect().await.unwrap(), options.connect().await.unwrap());
    let first = ask(&mut one, "pg_backend_pid()").await.unwrap();
    assert_ne!(ask(&mut two, "pg_backend_pid()").await.unwrap(), first);
}

#[tokio::test]
async fn a_pgbouncer_refuses_wrong_passwords_and_unknown_users() {
    let cluster = Cluster::start().await.unwrap();
    let role = cluster
        .create_role("app", &SecretString::from("right"), &[])
        .await
        .unwrap();
    let wrong = Credential::new("app", SecretString::from("wrong")).unwrap();
    let asking = PgBouncer::builder(&cluster).start().await.unwrap();
    assert!(
        options(&asking.endpoint(), "postgres", &role)
            .connect()
            .await
            .is_ok()
    );
    assert!(
        options(&asking.endpoint(), "postgres", &wrong)
            .connect()
            .await
            .is_err()
    );
    let knowing = PgBouncer::builder(&cluster)
        .auth(BouncerAuth::Known(vec![role.clone()]))
        .start()
        .await
        .unwrap();
    assert!(
        options(&knowing.endpoint(), "postgres", &role)
            .connect()
            .await
            .is_ok()
    );
    assert!(
        options(&knowing.endpoint(), "postgres", &wrong)
            .connect()
            .await
            .is_err()
    );
    assert!(
        options(&knowing.endpoint(), "postgres", &cluster.superuser())
            .connect()
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_trusting_pgbouncer_asks_for_no_password() {
    let cluster = Cluster::start().await.unwrap();
    let role = cluster
        .create_role("app", &SecretString::from("right"), &[])
        .await
        .unwrap();
    let bouncer = PgBouncer::builder(&cluster)
        .auth(BouncerAuth::Trust(vec![role]))
        .start()
        .await
        .unwrap();
    let bare = Credential::without_password("app").unwrap();
    let mut connection = options(&bouncer.endpoint(), "postgres", &bare)
        .connect()
        .await
        .unwrap();
    assert_eq!(ask(&mut connection, "current_user").await.unwrap(), "app");
}

#[tokio::test]
async fn a_killed_pgbouncer_comes_back_at_the_same_address() {
    let cluster = Cluster::start().await.unwrap();
    let bouncer = PgBouncer::builder(&cluster).start().await.unwrap();
    let endpoint = bouncer.endpoint();
    let options = options(&endpoint, "postgres", &cluster.superuser());
    let mut held = options.connect().await.unwrap();
    bouncer.kill().await.unwrap();
    assert!(!listening(&endpoint));
    assert!(held.ping().await.is_err());
    bouncer.start_again().await.unwrap();
    assert_eq!(bouncer.endpoint(), endpoint);
    options.connect().await.unwrap();
}

#[tokio::test]
async fn prepared_statements_need_a_newer_pgbouncer() {
    let cluster = Cluster::start().await.unwrap();
    let bouncer = PgBouncer::builder(&cluster)
        .max_prepared_statements(NonZeroU32::MIN)
        .start()
        .await
        .unwrap();
    assert!(bouncer.version() >= PgBouncerVersion::PREPARED_STATEMENTS);
    let max_prepared_statements = 1;
    assert_eq!(
        bouncer.pooler(),
        Pooler::Transaction {
            max_prepared_statements
        }
    );
    let none = PgBouncer::builder(&cluster).newer().start().await.unwrap();
    assert_eq!(none.version(), bouncer.version());
    let max_prepared_statements = 0;
    assert_eq!(
        none.pooler(),
        Pooler::Transaction {
            max_prepared_statements
        }
    );
}

#[tokio::test]
#[ignore = "a measurement: run it alone, with --nocapture"]
async fn how_long_things_take() {
    drop(Cluster::start().await.unwrap());
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = std::time::Instant::now();
        let cluster = Cluster::start().await.unwrap();
        let started = began.elapsed();
        cluster.kill().await.unwrap();
        let killed = began.elapsed() - started;
        cluster.start_again().await.unwrap();
        let again = began.elapsed() - started - killed;
        drop(cluster);
        times.push([started, killed, again, began.elapsed() - started - killed - again]);
    }
    for (index, what) in ["start", "kill", "start again", "drop"].iter().enumerate() {
        let mut each: Vec<Duration> = times.iter().map(|row| row[index]).collect();
        each.sort();
        println!("{what}: median {:?}, slowest {:?}", each[10], each[19]);
    }
    let began = std::time::Instant::now();
    Cluster::builder().own_system_identifier().start().await.unwrap();
    println!("with an initdb of its own: {:?}", began.elapsed());
}
