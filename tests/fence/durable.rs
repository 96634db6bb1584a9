//! A fence that was returned from is there whatever happens to the server.

use std::process::{Child, Stdio};

use biplane::{error::ErrorKind, tenant::Isolation, testing::wait};
use tempfile::TempDir;

use crate::support::*;

#[tokio::test]
async fn a_fence_outlives_a_kill_of_the_server() {
    // Commits that wait for nothing are written out every ten seconds only.
    let cluster = builder()
        .setting("synchronous_commit", "off")
        .setting("wal_writer_delay", "10s")
        .start()
        .await
        .unwrap();
    create_login(&cluster, APP).await;
    let home = Home::on(&cluster, Isolation::Row).await;
    run(&mut home.owner().await, "checkpoint").await.unwrap();
    home.fence_patiently().await;
    cluster.kill().await.unwrap();
    cluster.start_again().await.unwrap();
    assert_eq!(refused(&mut home.app().await, home.enter(1)).await, "BP002");
    home.unfence().await;
    cluster.kill().await.unwrap();
    cluster.start_again().await.unwrap();
    run(&mut home.app().await, home.enter(1)).await.unwrap();
}

#[tokio::test]
async fn a_server_that_would_lose_a_fence_is_refused() {
    let cluster = builder().setting("fsync", "off").start().await.unwrap();
    create_login(&cluster, APP).await;
    let home = Home::on(&cluster, Isolation::Row).await;
    let error = home.fence(1, patient()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfiguration);
    assert!(error.to_string().contains("fsync"), "{error}");
    assert_eq!(home.state().await, "open");
}

#[tokio::test]
async fn a_fence_is_where_the_server_says_that_it_must_be_before_it_returns() {
    let cluster = builder().start().await.unwrap();
    create_login(&cluster, APP).await;
    let home = Home::on(&cluster, Isolation::Row).await;
    let mut owner = home.owner().await;
    run(
        &mut owner,
        "alter system set synchronous_standby_names = 'standby'",
    )
    .await
    .unwrap();
    run(&mut owner, "select pg_reload_conf()").await.unwrap();
    wait::until("it is asked for", LIMIT, async || {
        text(&mut owner, "current_setting('synchronous_standby_names')").await == "standby"
    })
    .await
    .unwrap();
    // Nobody there: it says so, and has let the tenant in again.
    let named = home.fence_in_vain().await;
    assert!(named.contains("standby"), "{named}");
    assert_eq!(home.state().await, "open");
    let standby = Standby::start(&home);
    wait::until("it follows", LIMIT, async || {
        text(
            &mut owner,
            "select count(*) from pg_stat_replication where sync_state = 'sync'",
        )
        .await
            == "1"
    })
    .await
    .unwrap();
    home.fence_patiently().await;
    assert_eq!(home.state().await, "fenced");
    drop(standby);
}

/// What flushes the log as a standby does, and confirms it.
struct Standby {
    process: Child,
    _directory: TempDir,
}

impl Standby {
    fn start(home: &Home<'_>) -> Self {
        let directory = TempDir::new().unwrap();
        let process = client(home.cluster, "pg_receivewal")
            .args(["--synchronous", "--no-password", "-D"])
            .arg(directory.path())
            .env("PGAPPNAME", "standby")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process,
            _directory: directory,
        }
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        // It may be gone already, with the server.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
