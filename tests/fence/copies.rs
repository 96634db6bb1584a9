//! A copied or restored database lets nobody in before it was held against the control plane.

use std::process::Stdio;

use biplane::{
    error::ErrorKind,
    plane::{DataSchema, Fence, Finding, ReconcileMode, Recorded},
    tenant::{DatabaseId, Epoch, Isolation, TenantId},
};

use crate::support::*;

/// Three copies: one made by the server, one out of a dump, and one that looks as if it were on another timeline.
async fn copies(home: &Home<'static>) -> Vec<Home<'static>> {
    let mut copies = Vec::new();
    for (number, kind) in ["copied", "dumped", "promoted"].iter().enumerate() {
        let copy = format!("{}_{kind}", home.database);
        let mut superuser = home.cluster.connect("postgres").await.unwrap();
        let template = if number == 1 { "template0" } else { &*home.database };
        run(
            &mut superuser,
            format!("create database {copy} template {template}"),
        )
        .await
        .unwrap();
        let copy = Home {
            cluster: home.cluster,
            database: copy,
            id: home.id,
            tenant: home.tenant,
        };
        match *kind {
            "dumped" => restore(home, &copy),
            "promoted" => {
                let sql = format!(
                    "select biplane.stamp_v1('{}');
                     update biplane.residence set state = 'open';
                     update biplane.database set timeline = '0000002A';
                     select biplane.keep_stamp()",
                    home.id
                );
                run(&mut copy.owner().await, sql).await.unwrap();
            }
            _ => {}
        }
        copies.push(copy);
    }
    copies
}

fn restore(from: &Home<'_>, to: &Home<'_>) {
    let mut dump = client(from.cluster, "pg_dump")
        .args(["-d", &from.database])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let restored = client(to.cluster, "psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &to.database])
        .stdin(dump.stdout.take().unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(dump.wait().unwrap().success() && restored.success());
}

#[tokio::test]
async fn a_copy_lets_nobody_in_until_it_is_stamped_and_reconciled() {
    let home = Home::new(Isolation::Row).await;
    let (stays, moved) = (home.neighbour().await, home.neighbour().await);
    for copy in copies(&home).await {
        let mut app = copy.app().await;
        assert_eq!(
            refused(&mut app, copy.enter(1)).await,
            "BP003",
            "{}",
            copy.database
        );
        let mut owner = copy.owner().await;
        let error = DataSchema::read(&mut owner).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongDatabase, "{}", copy.database);
        let drain = patient();
        let records = [home.tenant, stays].map(|tenant| Recorded::new(tenant, Epoch::FIRST, Isolation::Row));
        let error = Fence::new(&mut owner)
            .reconcile(home.id, &records, ReconcileMode::Repair, &drain)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongDatabase);

        DataSchema::stamp(&mut owner, home.id).await.unwrap();
        assert_eq!(
            refused(&mut app, copy.enter(1)).await,
            "BP002",
            "{}",
            copy.database
        );
        let report = Fence::new(&mut owner)
            .reconcile(home.id, &records, ReconcileMode::Repair, &drain)
            .await
            .unwrap();
        assert_eq!(report.findings.len(), 3);
        assert_eq!(report.findings[&moved], Finding::Stranger);
        assert_eq!(report.findings[&stays], Finding::Confirmed);
        run(&mut app, copy.enter(1)).await.unwrap();
        run(&mut app, copy.enter_as(stays, 1)).await.unwrap();
        assert_eq!(refused(&mut app, copy.enter_as(moved, 1)).await, "BP002");
    }
    run(&mut home.app().await, home.enter(1)).await.unwrap();
}

#[tokio::test]
async fn a_copy_that_becomes_another_database_is_reconciled_too() {
    let home = Home::new(Isolation::Database).await;
    let [copy, ..] = &copies(&home).await[..] else {
        unreachable!("there are three");
    };
    let mut owner = copy.owner().await;
    let id = DatabaseId::new();
    DataSchema::stamp(&mut owner, id).await.unwrap();
    let copy = Home {
        database: copy.database.clone(),
        id,
        ..*copy
    };
    let records = [Recorded::new(home.tenant, Epoch::FIRST, Isolation::Database)];
    let reconcile = async |owner: &mut sqlx::PgConnection| {
        Fence::new(owner)
            .reconcile(id, &records, ReconcileMode::Repair, &patient())
            .await
            .unwrap()
    };
    assert_eq!(
        reconcile(&mut owner).await.findings[&home.tenant],
        Finding::Confirmed
    );
    let again = reconcile(&mut owner).await;
    assert_eq!((again.agree, again.findings.len()), (1, 0));
    run(&mut copy.app().await, copy.enter(1)).await.unwrap();
    let mut app = copy.app().await;
    assert_eq!(
        refused(&mut app, Home { id: home.id, ..copy }.enter(1)).await,
        "BP003",
        "an old route"
    );
}

#[tokio::test]
async fn a_declared_failover_is_the_same_database_still() {
    let home = Home::new(Isolation::Row).await;
    let mut owner = home.owner().await;
    let elsewhere = "update biplane.database set timeline = '0000002A'; select biplane.keep_stamp()";
    run(&mut owner, elsewhere).await.unwrap();
    assert_eq!(refused(&mut home.app().await, home.enter(1)).await, "BP003");
    let declared = "update biplane.database set follows_failover = true; select biplane.keep_stamp()";
    run(&mut owner, declared).await.unwrap();
    run(&mut home.app().await, home.enter(1)).await.unwrap();
}

#[tokio::test]
async fn a_dry_run_says_what_a_repair_would_do_and_does_nothing() {
    let home = Home::new(Isolation::Row).await;
    let mut tenants = vec![home.tenant];
    for _ in 0..4 {
        tenants.push(home.neighbour().await);
    }
    let missing = TenantId::new();
    let [agrees, stranger, epoch, isolation, fenced] = tenants[..] else {
        unreachable!("there are five");
    };
    let mut owner = home.owner().await;
    let mut fence = Fence::new(&mut owner);
    fence.fence(fenced, Epoch::FIRST, &patient()).await.unwrap();
    let row = |tenant| Recorded::new(tenant, Epoch::FIRST, Isolation::Row);
    let records = [
        row(agrees),
        Recorded::new(epoch, Epoch::new(3), Isolation::Row),
        Recorded::new(isolation, Epoch::FIRST, Isolation::Schema),
        row(fenced),
        row(missing),
    ];
    let before = fence.residences().await.unwrap();
    let dry = fence
        .reconcile(home.id, &records, ReconcileMode::DryRun, &patient())
        .await
        .unwrap();
    assert_eq!(fence.residences().await.unwrap(), before);
    assert_eq!(dry.agree, 1);
    let here = Epoch::FIRST;
    let expected = [
        (stranger, Finding::Stranger),
        (
            epoch,
            Finding::Epoch {
                here,
                recorded: Epoch::new(3),
            },
        ),
        (
            isolation,
            Finding::Isolation {
                here: Isolation::Row,
                recorded: Isolation::Schema,
            },
        ),
        (fenced, Finding::Fenced),
        (missing, Finding::Missing),
    ];
    assert_eq!(dry.findings, expected.into_iter().collect());
    let repaired = fence
        .reconcile(home.id, &records, ReconcileMode::Repair, &patient())
        .await
        .unwrap();
    assert_eq!(repaired, dry);
    let mut app = home.app().await;
    run(&mut app, home.enter(1)).await.unwrap();
    for closed in [stranger, epoch, isolation, fenced] {
        assert_eq!(refused(&mut app, home.enter_as(closed, 1)).await, "BP002");
    }
    assert_eq!(refused(&mut app, home.enter_as(missing, 1)).await, "BP001");
}

#[tokio::test]
async fn a_stranger_is_drained_and_what_is_in_its_way_is_named() {
    let home = Home::new(Isolation::Row).await;
    let (mut app, pid) = home.writing("serializable").await;
    let mut owner = home.owner().await;
    let error = Fence::new(&mut owner)
        .reconcile(home.id, &[], ReconcileMode::Repair, &hasty())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Undrained);
    assert!(error.to_string().contains(&pid.to_string()), "{error}");
    run(&mut app, "commit").await.unwrap();
    let report = Fence::new(&mut owner)
        .reconcile(home.id, &[], ReconcileMode::Repair, &patient())
        .await
        .unwrap();
    assert_eq!(report.findings[&home.tenant], Finding::Stranger);
    assert_eq!(home.state().await, "fenced");
}
