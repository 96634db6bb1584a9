//! What is left when a cluster, a test or its process ends, and what the environment changes.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use biplane::{
    tenant::Endpoint,
    testing::{
        postgres::{Cluster, ClusterError, PgBouncer},
        wait,
    },
};

use crate::{LIMIT, ask, listening};

pub(crate) fn server_process(cluster: &Cluster) -> u32 {
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

/// One test of this binary, to be run in a process of its own.
fn alone(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command
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
    let mut victim = alone("processes::a_test_process_that_is_killed_leaves_nothing")
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
    let output = alone("life::two_clusters_at_once_are_different_servers")
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
    let status = alone("processes::without_pgbouncer_its_error_says_what_to_install")
        .envs([(WITHOUT, "1"), ("BIPLANE_PGBOUNCER", "/nonexistent")])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn the_environment_of_libpq_changes_nothing() {
    let output = alone("life::a_stopped_cluster_keeps_address_and_data")
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
