//! Clusters that start, stop, are killed and start again, and standbys of theirs.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use biplane::testing::{
    postgres::{Authentication, Cluster, ClusterError},
    wait,
};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use crate::{LIMIT, ask, ask_cluster, listening, options, processes::server_process};

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
