//! A primary that is lost, and a standby that is promoted in its place.

use biplane::{
    plane::{DataSchema, Fence, Finding, ReconcileMode, Recorded},
    tenant::{Epoch, Isolation},
    testing::{postgres::Cluster, wait},
};

use crate::support::*;

/// A primary that commits nothing which its standby does not have, and that standby.
async fn both() -> (Cluster, Cluster) {
    let primary = builder().start().await.unwrap();
    create_login(&primary, APP).await;

    let standby = builder()
        .setting("cluster_name", "standby")
        .standby_of(&primary)
        .start()
        .await
        .unwrap();
    let mut owner = primary.connect("postgres").await.unwrap();
    for sql in [
        "alter system set synchronous_standby_names = 'standby'",
        "select pg_reload_conf()",
    ] {
        run(&mut owner, sql).await.unwrap();
    }
    wait::until("it follows", LIMIT, async || {
        let followers = "select count(*) from pg_stat_replication where sync_state = 'sync'";
        text(&mut owner, followers).await == "1"
    })
    .await
    .unwrap();
    (primary, standby)
}

/// The same tenant and database there.
fn there<'a>(home: &Home<'_>, standby: &'a Cluster) -> Home<'a> {
    Home {
        cluster: standby,
        database: home.database.clone(),
        id: home.id,
        tenant: home.tenant,
    }
}

#[tokio::test]
async fn a_fence_outlives_a_failover_to_a_synchronous_standby() {
    let (primary, standby) = both().await;
    let home = Home::on(&primary, Isolation::Row).await;
    let neighbour = home.neighbour().await;
    let follows = "update biplane.database set follows_failover = true; select biplane.keep_stamp()";
    run(&mut home.owner().await, follows).await.unwrap();
    home.fence_patiently().await;
    primary.kill().await.unwrap();
    standby.promote().await.unwrap();
    let home = there(&home, &standby);
    let mut app = home.app().await;
    assert_eq!(refused(&mut app, home.enter(1)).await, "BP002");
    run(&mut app, home.enter_as(neighbour, 1)).await.unwrap();
}

/// Which it might be short of commits, unless somebody has said otherwise.
#[tokio::test]
async fn a_promoted_standby_lets_nobody_in_until_it_is_stamped_and_reconciled() {
    let (primary, standby) = both().await;
    let home = Home::on(&primary, Isolation::Database).await;
    let home = there(&home, &standby);
    wait::until("the standby has replayed it", LIMIT, async || {
        let residence = "select count(*) from biplane.residence where state = 'open'";
        let mut owner = home.owner().await;
        text(&mut owner, "select to_regclass('biplane.residence') is not null").await == "true"
            && text(&mut owner, residence).await == "1"
    })
    .await
    .unwrap();
    // A standby is read from meanwhile, also in a session that enters as a whole.
    let mut reader = home.app().await;
    run(&mut reader, home.enter_session(1)).await.unwrap();
    let begin = format!("begin; {}", home.enter_again(1));
    run(&mut reader, begin.clone()).await.unwrap();
    run(&mut reader, "commit").await.unwrap();

    primary.kill().await.unwrap();
    standby.promote().await.unwrap();
    assert_eq!(
        refused(&mut reader, begin.clone()).await,
        "BP003",
        "nor in that session"
    );
    run(&mut reader, "rollback").await.unwrap();
    let mut app = home.app().await;
    assert_eq!(refused(&mut app, home.enter(1)).await, "BP003");

    let mut owner = home.owner().await;
    DataSchema::stamp(&mut owner, home.id).await.unwrap();
    assert_eq!(refused(&mut app, home.enter(1)).await, "BP002");
    let records = [Recorded::new(home.tenant, Epoch::FIRST, Isolation::Database)];
    let report = Fence::new(&mut owner)
        .reconcile(home.id, &records, ReconcileMode::Repair, &patient())
        .await
        .unwrap();
    assert_eq!(report.findings[&home.tenant], Finding::Confirmed);
    run(&mut app, home.enter(1)).await.unwrap();
    run(&mut reader, begin).await.unwrap();
}
