//! What users of a paused server rely on.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(clippy::print_stdout, reason = "one test talks to itself in another process")]

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use biplane::testing::{postgres::Cluster, wait};
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

/// Generous: these tests run beside many others on two cores.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a client of these tests waits for an answer that does not come.
const PATIENCE: Duration = Duration::from_millis(300);

async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(LIMIT, work).await.expect("it happens in time")
}

async fn pid(connection: &mut PgConnection) -> u32 {
    let pid = sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(connection);
    within(pid).await.unwrap().try_into().unwrap()
}

fn server_process(cluster: &Cluster) -> u32 {
    let file = std::fs::read_to_string(cluster.directory().join("data/postmaster.pid")).unwrap();
    file.lines().next().unwrap().trim().parse().unwrap()
}

/// Whether a process is there and not merely uncollected.
fn lives(process: u32) -> bool {
    Command::new("sh")
        .args([
            "-c",
            "kill -0 $0 2>/dev/null && ! grep -q '^State:.Z' /proc/$0/status 2>/dev/null",
        ])
        .arg(process.to_string())
        .status()
        .unwrap()
        .success()
}

#[tokio::test]
async fn a_paused_cluster_accepts_and_answers_nobody_and_then_goes_on() {
    let cluster = Cluster::start().await.unwrap();
    let mut session = cluster.connect("postgres").await.unwrap();
    sqlx::raw_sql("create temporary table kept as select 7 as n")
        .execute(&mut session)
        .await
        .unwrap();
    cluster.pause().await.unwrap();
    let endpoint = cluster.endpoint();
    assert!(TcpStream::connect((&*endpoint.host, endpoint.port)).is_ok());
    assert!(timeout(PATIENCE, cluster.connect("postgres")).await.is_err());
    let question = sqlx::query_scalar::<_, i32>("select n from kept").fetch_one(&mut session);
    tokio::pin!(question);
    assert!(timeout(PATIENCE, &mut question).await.is_err());

    cluster.resume().await.unwrap();
    assert_eq!(
        within(question).await.unwrap(),
        7,
        "the same question in the same session"
    );
    within(cluster.connect("postgres")).await.unwrap();
}

/// Not only the one that the test talks to: a session that works alone must not go on either.
#[tokio::test]
async fn every_session_halts_in_the_middle_of_its_work() {
    let cluster = Cluster::start().await.unwrap();
    cluster
        .sql("postgres", "create sequence work; create sequence control")
        .await
        .unwrap();
    let mut worker = cluster.connect("postgres").await.unwrap();
    let working = tokio::spawn(async move {
        let forever = "do $$ begin loop perform nextval('work'); end loop; end $$";
        sqlx::raw_sql(forever).execute(&mut worker).await
    });
    let mut witness = cluster.connect("postgres").await.unwrap();
    let mut done = async || {
        sqlx::query_scalar::<_, i64>("select last_value from work")
            .fetch_one(&mut witness)
            .await
            .unwrap()
    };
    wait::until("work", LIMIT, async || done().await > 1)
        .await
        .unwrap();
    cluster.pause().await.unwrap();
    // Its processor time stands still.
    let spent = || -> u64 {
        let server = server_process(&cluster);
        children(server).into_iter().map(processor_time).sum()
    };
    let before = spent();
    // What would count on counts within this while: thirty ticks of its clock.
    std::thread::sleep(PATIENCE);
    assert_eq!(spent(), before);
    cluster.resume().await.unwrap();
    let after_resume = done().await;
    wait::until("more work", LIMIT, async || done().await > after_resume)
        .await
        .unwrap();
    cluster.kill().await.unwrap();
    within(working).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn pausing_what_is_paused_and_resuming_what_runs_does_nothing() {
    let cluster = Cluster::start().await.unwrap();
    cluster.resume().await.unwrap();
    let mut session = cluster.connect("postgres").await.unwrap();
    let before = pid(&mut session).await;
    for _ in 0..3 {
        cluster.pause().await.unwrap();
    }
    cluster.resume().await.unwrap();
    cluster.resume().await.unwrap();
    assert_eq!(pid(&mut session).await, before);
    cluster.stop().await.unwrap();
    cluster.pause().await.unwrap();
    cluster.resume().await.unwrap();
    cluster.start_again().await.unwrap();
    cluster.connect("postgres").await.unwrap();
}

#[tokio::test]
async fn a_paused_cluster_can_be_stopped_and_killed() {
    let cluster = Cluster::start().await.unwrap();
    let mut session = cluster.connect("postgres").await.unwrap();
    cluster.pause().await.unwrap();
    within(cluster.stop()).await.unwrap();
    assert!(within(session.ping()).await.is_err());
    cluster.start_again().await.unwrap();

    let mut session = cluster.connect("postgres").await.unwrap();
    let process = pid(&mut session).await;
    cluster.pause().await.unwrap();
    within(cluster.kill()).await.unwrap();
    assert!(!lives(process));
    assert!(within(session.ping()).await.is_err());
    cluster.start_again().await.unwrap();
    cluster.connect("postgres").await.unwrap();
}

#[tokio::test]
async fn a_paused_cluster_that_is_dropped_leaves_nothing() {
    let cluster = Cluster::start().await.unwrap();
    let mut held = cluster.connect("postgres").await.unwrap();
    let mut processes = vec![server_process(&cluster), pid(&mut held).await];
    processes.extend(children(processes[0]));
    let directory = cluster.directory().to_owned();
    cluster.pause().await.unwrap();
    let began = Instant::now();
    drop(cluster);
    let took = began.elapsed();
    // After five seconds Postgres kills sessions that do not end when they are told to.
    assert!(took < Duration::from_secs(4), "{took:?}");
    let left: Vec<u32> = processes.into_iter().filter(|process| lives(*process)).collect();
    assert!(left.is_empty(), "{left:?} are still there");
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_test_process_that_is_killed_while_its_cluster_is_paused_leaves_nothing() {
    const PLAY_THE_VICTIM: &str = "BIPLANE_TEST_VICTIM";
    if std::env::var_os(PLAY_THE_VICTIM).is_some() {
        let cluster = Cluster::start().await.unwrap();
        let mut held = cluster.connect("postgres").await.unwrap();
        let (server, session) = (server_process(&cluster), pid(&mut held).await);
        cluster.pause().await.unwrap();
        println!("\nready {server} {session} {}", cluster.directory().display());
        std::future::pending::<()>().await;
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("a_test_process_that_is_killed_while_its_cluster_is_paused_leaves_nothing")
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
    let mut process = || words.next().unwrap().parse::<u32>().unwrap();
    let processes = [process(), process()];
    let directory: PathBuf = Path::new(words.next().unwrap()).to_owned();
    assert!(processes.iter().all(|process| lives(*process)) && directory.exists());
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait::until("everything to be gone", LIMIT, async || {
        !directory.exists() && !processes.iter().any(|process| lives(*process))
    })
    .await
    .unwrap();
}

/// The fields of `/proc/PID/stat` after the name, which may hold anything.
fn stat(process: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(String::from).collect())
}

fn children(of: u32) -> Vec<u32> {
    let parent = of.to_string();
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|process| stat(*process).is_some_and(|fields| fields[1] == parent))
        .collect()
}

/// In ticks of the clock, user and system.
fn processor_time(process: u32) -> u64 {
    stat(process).map_or(0, |fields| {
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    })
}
