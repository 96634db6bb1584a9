//! Once a fence has returned, nothing that began before it can commit; and it waits for nothing else.

use std::{cell::Cell, collections::BTreeSet, time::Duration};

use biplane::{
    error::ErrorKind,
    plane::{Fence, Running},
    tenant::{Epoch, Isolation, TenantId},
    testing::wait,
};

use crate::support::*;

/// Begun, but nothing read; with a snapshot from before the fence; entered; entered and written.
#[tokio::test]
async fn a_transaction_that_may_have_read_open_is_waited_for_at_every_level() {
    for isolation in [Isolation::Row, Isolation::Schema, Isolation::Database] {
        let home = Home::new(isolation).await;
        for level in LEVELS {
            for work in [
                "",
                "; select count(*) from public.note",
                &format!("; {}", home.enter(1)),
            ] {
                let mut app = home.app().await;
                run(&mut app, format!("begin isolation level {level}{work}"))
                    .await
                    .unwrap();
                let named = home.fence_in_vain().await;
                let pid = pid(&mut app).await.to_string();
                assert!(named.contains(&pid), "{level}{work}: {named}");
                assert_eq!(
                    home.state().await,
                    "open",
                    "the deadline passed, so it is open again"
                );
                // It has lost nothing: whoever is named in the error has gone on meanwhile.
                let sql = format!(
                    "{}; insert into public.note (epoch) values (1); commit",
                    home.enter(1)
                );
                run(&mut app, sql).await.unwrap();
            }
        }
        assert_eq!(home.notes().await, "9");
        home.fence_patiently().await;
        assert_eq!(refused(&mut home.app().await, home.enter(1)).await, "BP002");
    }
}

#[tokio::test]
async fn whoever_reads_an_old_snapshot_enters_late_and_is_waited_for() {
    let home = Home::new(Isolation::Row).await;
    let mut app = home.app().await;
    run(
        &mut app,
        "begin isolation level repeatable read; select count(*) from public.note",
    )
    .await
    .unwrap();
    let returned = Cell::new(false);
    let fencing = async {
        home.fence_patiently().await;
        returned.set(true);
        home.notes().await
    };
    let writing = async {
        wait::until("the fence is committed", LIMIT, async || {
            home.state().await == "fenced"
        })
        .await
        .unwrap();
        // Its snapshot says that the tenant is open.
        let sql = format!("{}; insert into public.note (epoch) values (1)", home.enter(1));
        run(&mut app, sql).await.unwrap();
        assert_eq!(refused(&mut home.app().await, home.enter(1)).await, "BP002");
        assert!(!returned.get(), "it writes, and the fence has returned");
        run(&mut app, "commit").await.unwrap();
    };
    let (seen, ()) = tokio::join!(fencing, writing);
    assert_eq!(seen, "1", "whoever fences sees all that there will be");
    assert_eq!(home.notes().await, "1");
}

#[tokio::test]
async fn a_list_that_is_made_before_the_commit_would_miss_somebody() {
    let home = Home::new(Isolation::Row).await;
    let mut holder = home.owner().await;
    run(&mut holder, "begin; select * from biplane.residence for update")
        .await
        .unwrap();
    // Long enough for the fence to be written late, and then in vain.
    let drain = patient().deadline(Duration::from_secs(8));
    let fencing = async { home.fence(1, drain).await };
    let writing = async {
        let mut watcher = home.owner().await;
        wait::until("the fence waits to be written", LIMIT, async || {
            text(
                &mut watcher,
                "select count(*) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock' and query like '%fence_v1%'",
            )
            .await
                == "1"
        })
        .await
        .unwrap();
        let writer = home.writing("read committed").await;
        run(&mut holder, "rollback").await.unwrap();
        writer
    };
    let (fenced, (_app, pid)) = tokio::join!(fencing, writing);
    let error = fenced.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Undrained);
    assert!(error.to_string().contains(&pid.to_string()), "{error}");
}

#[tokio::test]
async fn a_prepared_transaction_is_waited_for() {
    for isolation in [Isolation::Row, Isolation::Database] {
        let home = Home::new(isolation).await;
        let name = format!("bank transfer of {}", home.database);
        let (mut app, _) = home.writing("read committed").await;
        run(&mut app, format!("prepare transaction '{name}'"))
            .await
            .unwrap();
        let named = home.fence_in_vain().await;
        assert!(named.contains("1 prepared transaction"), "{named}");
        assert!(
            !named.contains("bank"),
            "a name of the application's stays out: {named}"
        );
        let mut owner = home.owner().await;
        let running = Fence::new(&mut owner).running(home.tenant).await.unwrap();
        let named = |running: &Running| matches!(running, Running::Prepared { id } if id.ends_with(&name));
        assert!(running.iter().any(named), "{running:?}");
        run(&mut home.app().await, format!("commit prepared '{name}'"))
            .await
            .unwrap();
        home.fence_patiently().await;
        assert_eq!(home.notes().await, "1");
    }
}

#[tokio::test]
async fn what_is_prepared_while_the_drain_waits_is_waited_for() {
    let home = Home::new(Isolation::Row).await;
    let name = format!("while_{}", home.database);
    let (mut app, _) = home.writing("read committed").await;
    let returned = Cell::new(false);
    let fencing = async {
        home.fence_patiently().await;
        returned.set(true);
    };
    let preparing = async {
        wait::until("the fence is committed", LIMIT, async || {
            home.state().await == "fenced"
        })
        .await
        .unwrap();
        run(&mut app, format!("prepare transaction '{name}'"))
            .await
            .unwrap();
        let mut owner = home.owner().await;
        let prepared_at = text(&mut owner, "select clock_timestamp()").await;
        let looked = format!(
            "select count(*) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid() and query like '%biplane.running_v1%'
                 and query_start > '{prepared_at}'::timestamptz + interval '30 ms'"
        );
        wait::until("the fence goes on looking", LIMIT, async || {
            returned.get() || text(&mut owner, &looked).await == "1"
        })
        .await
        .unwrap();
        assert!(
            !returned.get(),
            "it waits to be committed, and the fence has returned"
        );
        run(&mut owner, format!("commit prepared '{name}'"))
            .await
            .unwrap();
    };
    tokio::join!(fencing, preparing);
    assert_eq!(home.notes().await, "1");
}

/// Of two movers the later one goes on: what the first has waited for is not all that could write.
#[tokio::test]
async fn a_fence_that_somebody_else_opens_or_repeats_meanwhile_does_not_return_as_one() {
    for repeats in [false, true] {
        let home = Home::new(Isolation::Row).await;
        let (mut before, _) = home.writing("read committed").await;
        let fencing = async { home.fence(1, patient()).await };
        let meddling = async {
            wait::until("the fence is committed", LIMIT, async || {
                home.state().await == "fenced"
            })
            .await
            .unwrap();
            home.unfence().await;
            let (writing, _) = home.writing("read committed").await;
            if repeats {
                let sql = format!("select biplane.fence_v1('{}', 1)", home.tenant);
                run(&mut home.owner().await, sql).await.unwrap();
            }
            run(&mut before, "commit").await.unwrap();
            writing
        };
        let (fenced, mut writing) = tokio::join!(fencing, meddling);
        let error = fenced.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VersionConflict, "{error}");
        assert_eq!(home.state().await, if repeats { "fenced" } else { "open" });
        run(&mut writing, "commit").await.unwrap();
        assert_eq!(home.notes().await, "2");
    }
}

/// Its mark tells that it has entered, whatever became of its login since.
#[tokio::test]
async fn a_login_that_may_not_enter_any_more_is_waited_for_while_it_writes() {
    let home = Home::new(Isolation::Row).await;
    let login = format!("member_{}", home.database);
    create_login(home.cluster, &login).await;
    let mut owner = home.owner().await;
    run(&mut owner, format!("grant {APP} to {login}")).await.unwrap();
    let mut app = home.login(&login).await;
    let sql = format!(
        "begin; {}; insert into public.note (epoch) values (1)",
        home.enter(1)
    );
    run(&mut app, sql).await.unwrap();
    run(&mut owner, format!("revoke {APP} from {login}"))
        .await
        .unwrap();
    assert_eq!(
        refused(&mut home.login(&login).await, home.enter(1)).await,
        "42501"
    );
    let pid = pid(&mut app).await.to_string();
    let named = home.fence_in_vain().await;
    assert!(named.contains(&pid), "{named}");
    run(&mut app, "commit").await.unwrap();
    home.fence_patiently().await;
    assert_eq!(home.notes().await, "1");
}

#[tokio::test]
async fn other_tenants_of_a_shared_database_are_not_waited_for() {
    let home = Home::new(Isolation::Row).await;
    let (export, transfer) = (home.neighbour().await, home.neighbour().await);
    let (mut exporting, mut preparing) = (home.app().await, home.app().await);
    let sql = format!(
        "begin isolation level repeatable read read only; {}; select count(*) from public.note",
        home.enter_as(export, 1)
    );
    run(&mut exporting, sql).await.unwrap();
    let name = format!("beside_{}", home.database);
    let sql = format!(
        "begin; {}; insert into public.note (epoch) values (1); prepare transaction '{name}'",
        home.enter_as(transfer, 1)
    );
    run(&mut preparing, sql).await.unwrap();
    home.fence_patiently().await;
    run(&mut exporting, "select count(*) from public.note; commit")
        .await
        .unwrap();
    run(&mut preparing, format!("commit prepared '{name}'"))
        .await
        .unwrap();
    run(&mut exporting, home.enter_as(export, 1)).await.unwrap();
}

#[tokio::test]
async fn dumps_and_maintenance_are_not_waited_for() {
    let home = Home::new(Isolation::Row).await;
    let backup = format!("backup_{}", home.database);
    create_login(home.cluster, &backup).await;
    let mut owner = home.owner().await;
    let sql = format!(
        "grant pg_read_all_data to {backup};
         insert into public.note (tenant, epoch) select repeat('x', 1000), 0 from generate_series(1, 5000);
         delete from public.note"
    );
    run(&mut owner, sql).await.unwrap();
    let (mut dump, mut superuser, mut vacuum) =
        (home.login(&backup).await, home.owner().await, home.owner().await);
    for dumping in [&mut dump, &mut superuser] {
        run(
            dumping,
            "begin isolation level repeatable read read only; select count(*) from public.note",
        )
        .await
        .unwrap();
    }
    let vacuuming = pid(&mut vacuum).await;
    let vacuum = tokio::spawn(async move {
        run(
            &mut vacuum,
            "set vacuum_cost_delay = 100; set vacuum_cost_limit = 1",
        )
        .await?;
        run(&mut vacuum, "vacuum public.note").await
    });
    wait::until("a vacuum runs", LIMIT, async || {
        text(
            &mut owner,
            "select count(*) from pg_stat_progress_vacuum where datname = current_database()",
        )
        .await
            == "1"
    })
    .await
    .unwrap();
    home.fence_patiently().await;
    assert!(!vacuum.is_finished(), "it takes minutes");
    run(&mut owner, format!("select pg_cancel_backend({vacuuming})"))
        .await
        .unwrap();
    vacuum.await.unwrap().unwrap_err();
    run(&mut dump, "select count(*) from public.note; commit")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_mover_that_died_is_followed_by_another() {
    let home = Home::new(Isolation::Row).await;
    let (mut app, pid) = home.writing("repeatable read").await;
    // It died between its commit and its drain.
    let mut first = home.owner().await;
    let sql = format!("select biplane.fence_v1('{}', 1)", home.tenant);
    run(&mut first, sql).await.unwrap();
    drop(first);
    assert_eq!(home.state().await, "fenced");
    // The next one is stopped in the middle of its drain.
    let mut second = home.owner().await;
    let tenant = home.tenant;
    let draining = tokio::spawn(async move {
        Fence::new(&mut second)
            .fence(tenant, Epoch::FIRST, &patient())
            .await
            .map(drop)
    });
    let mut watcher = home.owner().await;
    wait::until("it drains", LIMIT, async || {
        text(
            &mut watcher,
            "select count(*) from pg_stat_activity
             where datname = current_database() and query like '%biplane.running_v1%' and pid <> pg_backend_pid()",
        )
        .await
            == "1"
    })
    .await
    .unwrap();
    draining.abort();
    assert!(draining.await.unwrap_err().is_cancelled());
    assert_eq!(home.state().await, "fenced");
    // The third knows nothing of the others, and still waits for who began before them.
    let named = home.fence_in_vain().await;
    assert!(named.contains(&pid.to_string()), "{named}");
    run(&mut app, "commit").await.unwrap();
    home.fence_patiently().await;
    home.fence_patiently().await;
    assert_eq!(refused(&mut home.app().await, home.enter(1)).await, "BP002");
    home.unfence().await;
    home.unfence().await;
    run(&mut home.app().await, home.enter(1)).await.unwrap();
}

#[tokio::test]
async fn a_fence_is_for_a_tenant_and_an_epoch_that_are_here() {
    let home = Home::new(Isolation::Row).await;
    for epoch in [2, u64::MAX] {
        let error = home.fence(epoch, patient()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VersionConflict, "{error}");
    }
    let mut owner = home.owner().await;
    let error = Fence::new(&mut owner)
        .fence(TenantId::new(), Epoch::FIRST, &patient())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VersionConflict);
    assert_eq!(home.state().await, "open");
    let running = Fence::new(&mut owner).running(home.tenant).await.unwrap();
    assert_eq!(running, BTreeSet::new());
}

#[tokio::test]
async fn whoever_gives_up_leaves_another_movers_fence_alone() {
    let home = Home::new(Isolation::Row).await;
    home.fence_patiently().await;
    // It has not entered, and cannot; but that is not known of it.
    let mut app = home.app().await;
    run(&mut app, "begin").await.unwrap();
    let said = home.fence_in_vain().await;
    assert!(said.contains("stays so"), "{said}");
    assert_eq!(home.state().await, "fenced");
    assert_eq!(refused(&mut app, home.enter(1)).await, "BP002");
}

#[tokio::test]
async fn a_connection_in_a_transaction_is_refused() {
    let home = Home::new(Isolation::Row).await;
    let mut owner = home.owner().await;
    run(&mut owner, "begin").await.unwrap();
    let error = Fence::new(&mut owner)
        .fence(home.tenant, Epoch::FIRST, &patient())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfiguration, "{error}");
    assert_eq!(home.state().await, "open");
}
