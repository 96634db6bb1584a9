//! Many movers at once, and people at psql beside them.

use biplane::{
    error::{Error, ErrorKind},
    plane::{Fence, Residence},
    tenant::{Epoch, Isolation, TenantId},
    testing::wait,
};
use tokio::task::JoinHandle;

use crate::support::*;

const MOVERS: usize = 8;

fn place(home: &Home<'static>, residence: Residence, setup: &'static str) -> JoinHandle<Result<(), Error>> {
    let home = home.elsewhere(home.database.clone());
    tokio::spawn(async move {
        let mut owner = home.owner().await;
        run(&mut owner, setup).await.unwrap();
        Fence::new(&mut owner).place(&residence).await
    })
}

/// Waits until so many sessions here wait for a lock in a call of this function.
async fn until_waiting(home: &Home<'_>, function: &str, number: usize) {
    let mut watcher = home.owner().await;
    let sql = format!(
        "select count(*) from pg_stat_activity where datname = current_database()
         and wait_event_type = 'Lock' and query like '%{function}%' and pid <> pg_backend_pid()"
    );
    wait::until("they wait", LIMIT, async || {
        text(&mut watcher, &sql).await == number.to_string()
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn any_number_of_tenants_is_placed_at_once() {
    let home = Home::new(Isolation::Row).await;
    // So that all of them have begun before one can go on.
    let mut holder = home.owner().await;
    run(&mut holder, "begin; update biplane.residence set state = state")
        .await
        .unwrap();
    let row = || Residence::new(TenantId::new(), Epoch::FIRST, Isolation::Row);
    let movers: Vec<_> = (0..MOVERS).map(|_| place(&home, row(), "")).collect();
    until_waiting(&home, "place_v1", MOVERS).await;
    run(&mut holder, "commit").await.unwrap();
    for mover in movers {
        mover.await.unwrap().unwrap();
    }
    let mut owner = home.owner().await;
    let here = Fence::new(&mut owner).residences().await.unwrap();
    assert_eq!(here.len(), MOVERS + 1);
}

#[tokio::test]
async fn one_tenant_is_placed_and_fenced_at_once() {
    let home = Home::new(Isolation::Row).await;
    let mut holder = home.owner().await;
    run(&mut holder, "begin; lock table biplane.residence in share mode")
        .await
        .unwrap();
    // Told what is so already, as a mover does that goes on with another's work.
    let again = Residence::new(home.tenant, Epoch::FIRST, Isolation::Row);
    let placing = place(&home, again, "");
    until_waiting(&home, "place_v1", 1).await;
    let fencing = async { home.fence(1, patient()).await };
    let letting_go = async {
        until_waiting(&home, "fence_v1", 1).await;
        run(&mut holder, "commit").await.unwrap();
    };
    let (fenced, ()) = tokio::join!(fencing, letting_go);
    fenced.unwrap();
    placing.await.unwrap().unwrap();
    assert_eq!(home.state().await, "fenced");
}

#[tokio::test]
async fn whoever_loses_to_a_change_by_hand_is_told_to_do_it_again() {
    let home = Home::new(Isolation::Row).await;
    let mut by_hand = home.owner().await;
    // The database ends the one that notices, and that is to be the mover.
    let sql = "set deadlock_timeout = '10min'; begin; select * from biplane.residence for update";
    run(&mut by_hand, sql).await.unwrap();
    let again = Residence::new(home.tenant, Epoch::FIRST, Isolation::Row);
    let placing = place(&home, again.clone(), "set deadlock_timeout = '3s'");
    until_waiting(&home, "place_v1", 1).await;
    run(&mut by_hand, "update biplane.residence set state = state")
        .await
        .unwrap();
    let error = placing.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TransactionConflict, "{error}");
    assert!(error.to_string().contains("run it again"), "{error}");
    run(&mut by_hand, "commit").await.unwrap();
    place(&home, again, "").await.unwrap().unwrap();
}
