//! What users of the fault proxy rely on, seen through connections to a real server.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod streams;
mod weather;

use std::{
    io::{self, ErrorKind},
    net::TcpListener,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use biplane::{
    plane::{ControlDb, ControlOptions},
    tenant::{Endpoint, Server},
    testing::{
        postgres::{Authentication, Cluster},
        proxy::{Arrivals, Direction, FaultProxy, NetworkFault},
        wait,
    },
};
use secrecy::ExposeSecret;
use sqlx::{
    ConnectOptions, Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::OnceCell, task::JoinHandle, time::timeout};

use Direction::{Both, ToClient, ToServer};

/// Generous: these tests run beside many others on two cores.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a client of these tests waits for an answer that does not come.
const PATIENCE: Duration = Duration::from_millis(300);

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();

async fn cluster() -> &'static Cluster {
    CLUSTER
        .get_or_init(|| async {
            // Proving a password takes a tenth of a second of processor time without optimisation.
            let cluster = Cluster::builder()
                .max_connections(300)
                .authentication(Authentication::Trust)
                .start()
                .await
                .unwrap();
            let table = "create table note (text text primary key)";
            cluster.sql("postgres", table).await.unwrap();
            cluster
        })
        .await
}

async fn proxy() -> FaultProxy {
    FaultProxy::start(&cluster().await.endpoint()).await.unwrap()
}

async fn connect(proxy: &FaultProxy) -> sqlx::Result<PgConnection> {
    let superuser = cluster().await.superuser();
    PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(proxy.endpoint().port)
        .username(superuser.username())
        .password(superuser.password().unwrap().expose_secret())
        .database("postgres")
        .ssl_mode(PgSslMode::Disable)
        .connect()
        .await
}

/// Something that the server computes from what it is given.
async fn ask(connection: &mut PgConnection, n: i32) -> sqlx::Result<i32> {
    sqlx::query_scalar("select $1 + 1")
        .bind(n)
        .fetch_one(connection)
        .await
}

async fn pid(connection: &mut PgConnection) -> i32 {
    let pid = sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection);
    within(pid).await.unwrap()
}

/// What the server says of a session: its state, or nothing when it is gone. Not through a proxy.
async fn state(pid: i32) -> Option<String> {
    let mut direct = cluster().await.connect("postgres").await.unwrap();
    sqlx::query_scalar("select coalesce(state, '') from pg_stat_activity where pid = $1")
        .bind(pid)
        .fetch_optional(&mut direct)
        .await
        .unwrap()
}

async fn until_gone(pid: i32) {
    wait::until("the session to end", LIMIT, async || state(pid).await.is_none())
        .await
        .unwrap();
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(LIMIT, work).await.expect("it happens in time")
}

/// A question under way. The connection comes back with the answer.
fn asking(mut connection: PgConnection, n: i32) -> JoinHandle<(sqlx::Result<i32>, PgConnection)> {
    tokio::spawn(async move {
        let answer = ask(&mut connection, n).await;
        (answer, connection)
    })
}

fn bytes_per_second(rate: u32) -> NetworkFault {
    NetworkFault::Throttle(NonZeroU32::new(rate).unwrap())
}

async fn raw(proxy: &FaultProxy) -> io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", proxy.endpoint().port)).await
}

async fn read_all(client: &mut TcpStream) -> (usize, io::Result<()>) {
    let mut read = Vec::new();
    let end = within(client.read_to_end(&mut read)).await.map(drop);
    (read.len(), end)
}

#[tokio::test]
async fn without_a_fault_everything_comes_through() {
    let proxy = proxy().await;
    let mut connection = within(connect(&proxy)).await.unwrap();
    let text: String = (0..600_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    let echo = sqlx::query_scalar("select $1 || $1").bind(&text);
    let echoed: String = within(echo.fetch_one(&mut connection)).await.unwrap();
    assert_eq!(echoed, text.repeat(2));
    let counts = proxy.counts();
    assert_eq!((counts.accepted, counts.open), (1, 1));
    assert!(
        counts.passed(ToServer) >= 600_000 && counts.passed(ToClient) >= 1_200_000,
        "{counts:?}"
    );
    assert_eq!(
        counts.passed(Both),
        counts.passed(ToServer) + counts.passed(ToClient)
    );
    assert_eq!(counts.lost(Both), 0);
    let pid = pid(&mut connection).await;
    connection.close().await.unwrap();
    within(proxy.until(|counts| counts.open == 0)).await;
    until_gone(pid).await;
}

#[tokio::test]
async fn biplane_goes_through_a_server_that_was_rewritten() {
    let (cluster, proxy) = (cluster().await, proxy().await);
    let mut server = cluster.server("postgres");
    let other = Endpoint::new("db.example", 5432);
    server.endpoints.push(other.clone());
    let through = proxy.through(&server).unwrap();
    assert_eq!(through.endpoints, [proxy.endpoint(), other]);
    assert_eq!(through.cluster, server.cluster);
    assert_eq!(
        proxy.through(&Server::new(Endpoint::new("db.example", 5432), "a")),
        None
    );

    let one = proxy.through(&cluster.server("postgres")).unwrap();
    let db = ControlDb::connect(ControlOptions::new(one, cluster.superuser())).unwrap();
    let answer: i32 = within(sqlx::query_scalar("select 7").fetch_one(&db))
        .await
        .unwrap();
    assert_eq!(answer, 7);
    assert_eq!(proxy.counts().accepted, 1);
}

#[tokio::test]
async fn an_answer_takes_the_delay_of_each_way() {
    let delay = Duration::from_millis(150);
    let proxy = proxy().await;
    let mut connection = within(connect(&proxy)).await.unwrap();
    within(ask(&mut connection, 1)).await.unwrap();
    for (direction, least) in [(ToServer, delay), (ToClient, delay), (Both, 2 * delay)] {
        proxy.heal().await.unwrap();
        proxy.set(direction, NetworkFault::Delay(delay));
        let began = Instant::now();
        assert_eq!(within(ask(&mut connection, 1)).await.unwrap(), 2);
        let took = began.elapsed();
        assert!(took >= least, "{direction:?} took {took:?}");
    }
    let began = Instant::now();
    within(connect(&proxy)).await.unwrap();
    assert!(began.elapsed() >= 2 * delay, "a new connection feels it too");
}

#[tokio::test]
async fn what_is_delayed_arrives_when_the_delay_is_taken_away() {
    let proxy = proxy().await;
    let connection = within(connect(&proxy)).await.unwrap();
    proxy.set(ToClient, NetworkFault::Delay(Duration::MAX));
    let mut asking = asking(connection, 41);
    assert!(timeout(PATIENCE, &mut asking).await.is_err());
    proxy.heal().await.unwrap();
    assert_eq!(within(asking).await.unwrap().0.unwrap(), 42);
}

#[tokio::test]
async fn what_is_stalled_waits_and_nothing_is_lost() {
    for direction in [ToServer, ToClient, Both] {
        let proxy = proxy().await;
        let mut connection = within(connect(&proxy)).await.unwrap();
        let session = pid(&mut connection).await;
        proxy.set(direction, NetworkFault::Stall);
        assert!(
            timeout(PATIENCE, ask(&mut connection, 1)).await.is_err(),
            "{direction:?}"
        );
        let newcomer = within(raw(&proxy)).await.unwrap();
        within(proxy.reached(2)).await;
        assert!(timeout(PATIENCE, connect(&proxy)).await.is_err());
        proxy.heal().await.unwrap();
        // The first question was given up while it was under way; its answer is skipped by sqlx.
        assert_eq!(within(ask(&mut connection, 41)).await.unwrap(), 42);
        assert_eq!(pid(&mut connection).await, session);
        assert_eq!(proxy.counts().lost(Both), 0);
        drop(newcomer);
    }
}

#[tokio::test]
async fn the_end_of_a_client_is_held_back_by_a_stall() {
    let proxy = proxy().await;
    let mut connection = within(connect(&proxy)).await.unwrap();
    let session = pid(&mut connection).await;
    proxy.set(ToServer, NetworkFault::Stall);
    drop(connection);
    assert!(timeout(PATIENCE, until_gone(session)).await.is_err());
    proxy.heal().await.unwrap();
    until_gone(session).await;
}

#[tokio::test]
async fn a_black_hole_answers_nobody_and_new_connections_work_when_it_is_gone() {
    for direction in [ToServer, ToClient, Both] {
        let proxy = proxy().await;
        let mut unlucky = within(connect(&proxy)).await.unwrap();
        let mut idle = within(connect(&proxy)).await.unwrap();
        let session = pid(&mut idle).await;
        proxy.set(direction, NetworkFault::BlackHole);
        assert!(
            timeout(PATIENCE, ask(&mut unlucky, 1)).await.is_err(),
            "{direction:?}"
        );
        assert!(timeout(PATIENCE, connect(&proxy)).await.is_err());
        within(proxy.until(|counts| counts.lost(direction) > 0)).await;
        assert!(proxy.counts().open >= 2);

        proxy.heal().await.unwrap();
        assert_eq!(pid(&mut idle).await, session, "what lost nothing goes on");
        let mut new = within(connect(&proxy)).await.unwrap();
        assert_eq!(within(ask(&mut new, 1)).await.unwrap(), 2);
        let silent = timeout(PATIENCE, ask(&mut unlucky, 1)).await;
        assert!(
            silent.is_err(),
            "what has lost bytes stays silent, {direction:?}: {silent:?}"
        );
    }
}

/// A server whose client is gone behind a firewall that has forgotten the connection.
#[tokio::test]
async fn no_end_comes_through_a_black_hole_until_the_connection_is_reset() {
    let proxy = proxy().await;
    let mut connection = within(connect(&proxy)).await.unwrap();
    let session = pid(&mut connection).await;
    proxy.set_open(Both, NetworkFault::BlackHole);
    drop(connection);
    let mut other = within(connect(&proxy)).await.unwrap();
    within(ask(&mut other, 1)).await.unwrap();
    proxy.heal().await.unwrap();
    within(ask(&mut other, 1)).await.unwrap();
    assert!(timeout(PATIENCE, until_gone(session)).await.is_err());
    proxy.reset();
    until_gone(session).await;
}

/// The statement is carried out although its client has seen an error, which is why nothing may be retried blindly.
#[tokio::test]
async fn a_half_closed_answer_is_an_error_to_the_client_alone() {
    let proxy = proxy().await;
    let mut connection = within(connect(&proxy)).await.unwrap();
    let session = pid(&mut connection).await;
    proxy.set_open(ToClient, NetworkFault::HalfClose);
    let insert = sqlx::raw_sql("insert into note values ('half-closed')").execute(&mut connection);
    within(insert).await.unwrap_err();
    wait::until("the row", LIMIT, async || {
        let mut direct = cluster().await.connect("postgres").await.unwrap();
        let row =
            sqlx::query_scalar::<_, bool>("select exists (select from note where text = 'half-closed')");
        row.fetch_one(&mut direct).await.unwrap()
    })
    .await
    .unwrap();
    within(proxy.until(|counts| counts.lost(ToClient) > 0)).await;
    assert!(state(session).await.is_some());
    drop(connection);
    until_gone(session).await;
}

#[tokio::test]
async fn a_half_closed_question_ends_the_session_and_then_the_connection() {
    let proxy = proxy().await;
    let mut connection = within(connect(&proxy)).await.unwrap();
    let session = pid(&mut connection).await;
    proxy.set_open(ToServer, NetworkFault::HalfClose);
    until_gone(session).await;
    within(ask(&mut connection, 1)).await.unwrap_err();
    let mut new = within(connect(&proxy)).await.unwrap();
    within(ask(&mut new, 1)).await.unwrap();
}

#[tokio::test]
async fn a_reset_ends_both_sides_of_open_connections_alone() {
    let proxy = proxy().await;
    let mut connection = within(connect(&proxy)).await.unwrap();
    let session = pid(&mut connection).await;
    let mut bare = within(raw(&proxy)).await.unwrap();
    within(proxy.reached(2)).await;
    proxy.reset();
    let error = within(ask(&mut connection, 1)).await.unwrap_err();
    assert!(matches!(&error, sqlx::Error::Io(_)), "{error:?}");
    let (_, end) = read_all(&mut bare).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    until_gone(session).await;
    within(proxy.until(|counts| counts.open == 0)).await;
    let mut new = within(connect(&proxy)).await.unwrap();
    within(ask(&mut new, 1)).await.unwrap();
}

#[tokio::test]
async fn a_question_under_way_ends_with_a_reset() {
    let proxy = proxy().await;
    let mut connection = within(connect(&proxy)).await.unwrap();
    let session = pid(&mut connection).await;
    let sleeping = tokio::spawn(async move {
        sqlx::raw_sql("select pg_sleep(600)")
            .execute(&mut connection)
            .await
    });
    wait::until("the session to sleep", LIMIT, async || {
        state(session).await.as_deref() == Some("active")
    })
    .await
    .unwrap();
    proxy.reset();
    within(sleeping).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn refused_connections_are_refused_and_open_ones_live_on() {
    let proxy = proxy().await;
    let endpoint = proxy.endpoint();
    let mut open = within(connect(&proxy)).await.unwrap();
    let session = pid(&mut open).await;
    for _ in 0..3 {
        proxy.set_arrivals(Arrivals::Refuse).await.unwrap();
        let refused = within(raw(&proxy)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let refused = within(connect(&proxy)).await.unwrap_err();
        assert!(matches!(&refused, sqlx::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused));
        assert_eq!(pid(&mut open).await, session);
        proxy.heal().await.unwrap();
        assert_eq!(proxy.endpoint(), endpoint);
        let mut new = within(connect(&proxy)).await.unwrap();
        within(ask(&mut new, 1)).await.unwrap();
    }
}

#[tokio::test]
async fn new_connections_can_be_reset_and_open_ones_live_on() {
    let proxy = proxy().await;
    let mut open = within(connect(&proxy)).await.unwrap();
    proxy.set_arrivals(Arrivals::Reset).await.unwrap();
    within(connect(&proxy)).await.unwrap_err();
    let counts = within(proxy.until(|counts| counts.accepted == 2 && counts.open == 1)).await;
    assert_eq!(counts.lost(Both), 0);
    within(ask(&mut open, 1)).await.unwrap();
    proxy.set_arrivals(Arrivals::Accept).await.unwrap();
    within(connect(&proxy)).await.unwrap();
}

#[tokio::test]
async fn a_throttled_answer_takes_as_long_as_its_bytes() {
    let proxy = proxy().await;
    let mut connection = within(connect(&proxy)).await.unwrap();
    for (direction, sql) in [
        (ToClient, "select repeat('x', 60000)"),
        (ToServer, "select length($1)::text"),
    ] {
        proxy.heal().await.unwrap();
        proxy.set(direction, bytes_per_second(100_000));
        let began = Instant::now();
        let query = sqlx::query_scalar::<_, String>(sql);
        let answer = match direction {
            ToServer => within(query.bind("x".repeat(60_000)).fetch_one(&mut connection)).await,
            _ => within(query.fetch_one(&mut connection)).await,
        };
        let took = began.elapsed();
        assert!(answer.unwrap().len() >= 5);
        assert!(took >= Duration::from_millis(600), "{direction:?} took {took:?}");
    }
}

#[tokio::test]
async fn a_cut_of_an_open_connection_counts_from_when_it_is_set() {
    let proxy = proxy().await;
    let mut connection = within(connect(&proxy)).await.unwrap();
    let session = pid(&mut connection).await;
    let before = proxy.counts().passed(ToClient);
    proxy.set_open(ToClient, NetworkFault::CutAfter(1000));
    let long = sqlx::query_scalar::<_, String>("select repeat('x', 100000)");
    within(long.fetch_one(&mut connection)).await.unwrap_err();
    assert_eq!(proxy.counts().passed(ToClient), before + 1000);
    until_gone(session).await;
    let mut new = within(connect(&proxy)).await.unwrap();
    within(ask(&mut new, 1)).await.unwrap();
}

#[tokio::test]
async fn faults_of_open_connections_and_of_new_ones_do_not_meet() {
    let proxy = proxy().await;
    let mut old = within(connect(&proxy)).await.unwrap();
    proxy.set_new(Both, NetworkFault::BlackHole);
    within(ask(&mut old, 1)).await.unwrap();
    assert!(timeout(PATIENCE, connect(&proxy)).await.is_err());

    proxy.heal().await.unwrap();
    proxy.set_open(Both, NetworkFault::BlackHole);
    let mut new = within(connect(&proxy)).await.unwrap();
    within(ask(&mut new, 1)).await.unwrap();
    assert!(timeout(PATIENCE, ask(&mut old, 1)).await.is_err());
}

#[tokio::test]
async fn two_proxies_of_one_server_do_not_meet() {
    let (one, other) = (proxy().await, proxy().await);
    let (mut by_one, mut by_other) = (
        within(connect(&one)).await.unwrap(),
        within(connect(&other)).await.unwrap(),
    );
    one.set(Both, NetworkFault::Stall);
    one.set_arrivals(Arrivals::Refuse).await.unwrap();
    within(ask(&mut by_other, 1)).await.unwrap();
    within(connect(&other)).await.unwrap();
    assert!(timeout(PATIENCE, ask(&mut by_one, 1)).await.is_err());
    drop(one);
    within(ask(&mut by_other, 1)).await.unwrap();
}

#[tokio::test]
async fn a_client_of_a_server_that_is_not_there_is_reset() {
    let cluster = Cluster::start().await.unwrap();
    let proxy = FaultProxy::start(&cluster.endpoint()).await.unwrap();
    cluster.stop().await.unwrap();
    // Which may happen before the client has looked at what became of its connect.
    let error = match raw(&proxy).await {
        Ok(mut client) => within(client.read_u8()).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    within(proxy.until(|counts| counts.open == 0)).await;
    proxy.set_new(ToClient, NetworkFault::BlackHole);
    let mut client = raw(&proxy).await.unwrap();
    let silent = timeout(PATIENCE, client.read_u8()).await;
    assert!(
        silent.is_err(),
        "not even a reset comes through a black hole: {silent:?}"
    );
}

#[tokio::test]
async fn a_dropped_proxy_leaves_no_connection_and_no_listener() {
    let proxy = proxy().await;
    let mut connections = Vec::new();
    for fault in [NetworkFault::None, NetworkFault::Stall, NetworkFault::BlackHole] {
        proxy.set_new(Both, NetworkFault::None);
        let mut connection = within(connect(&proxy)).await.unwrap();
        let session = pid(&mut connection).await;
        connections.push((connection, session));
        proxy.set_new(Both, fault);
        let waiting = within(raw(&proxy)).await.unwrap();
        within(proxy.reached(2 * connections.len())).await;
        drop(waiting);
    }
    let at = proxy.endpoint();
    proxy.set_open(ToClient, NetworkFault::BlackHole);
    drop(proxy);
    let refused = TcpStream::connect((&*at.host, at.port)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    for (mut connection, session) in connections {
        until_gone(session).await;
        within(ask(&mut connection, 1)).await.unwrap_err();
    }
    TcpListener::bind((&*at.host, at.port)).unwrap();
}
