//! Presence on a real control plane, which is killed and started again, and sealing anew beside people who write by hand.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use biplane::{
    error::ErrorKind,
    keyring::{KeyId, KeyState},
    plane::{ControlDb, ControlOptions},
    presence::{Heartbeat, PRESUMED_DEAD, missing},
    repository::{
        Actor, Beat, ControlSchema, CredentialPlace, CredentialSlot, CredentialStore, Instances, KeyReport,
        PgTenantAdmin, PgTenants, Reseal, ResealOutcome, TenantAdmin,
    },
    tenant::{InstanceId, Role, SealedText, Seq},
    testing::{
        conformance::{concurrency, instances, within_a_minute},
        postgres::Cluster,
        wait,
    },
};
use control::{
    ADMIN, EAST, ROUTER, WHO, by_hand, cluster, login, owner, postgres, refused, run, text, world,
};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(60);

fn key(n: u8) -> KeyId {
    KeyId::from_bytes([n; 8])
}

fn sealed(key: &str, mark: char) -> SealedText {
    SealedText::new(format!("bp1.{key}.{}", mark.to_string().repeat(100)))
}

const OLD: &str = "0123456789abcdef";
const NEW: &str = "fedcba9876543210";

async fn store(sql: &mut sqlx::PgConnection, source: &str, slot: &str, mark: char) {
    by_hand(
        sql,
        &format!(
            "insert into biplane_control.credential (data_source_id, role, slot, sealed)
             values ('{source}', 'app', '{slot}', '{}')",
            sealed(OLD, mark).as_str()
        ),
    )
    .await
    .unwrap();
}

fn anew(source: &str, before: char, after: char) -> Reseal {
    let place = CredentialPlace::new(source.parse().unwrap(), Role::App, CredentialSlot::Current);
    Reseal::new(place, sealed(OLD, before), sealed(NEW, after))
}

fn by() -> Actor {
    Actor::new("ann", "rotation")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn beats_go_on_when_the_control_plane_is_back() {
    let cluster = Cluster::builder().start().await.unwrap();
    let mut sql = cluster.connect("postgres").await.unwrap();
    ControlSchema::install_on(&mut sql, &biplane::repository::Grants::none())
        .await
        .unwrap();
    drop(sql);
    let options = ControlOptions::new(cluster.server("postgres"), cluster.superuser());
    let tenants = PgTenants::new(ControlDb::connect(options).unwrap());
    let heartbeat = Heartbeat::builder(tenants.clone(), "notes")
        .keys(|| vec![KeyReport::new(key(1), KeyState::Primary)])
        .interval(Duration::from_millis(50))
        .timeout(PATIENCE)
        .start()
        .unwrap();
    heartbeat.beat_now().await.unwrap();
    let before = tenants.instances().await.unwrap();
    assert_eq!(before.len(), 1);
    for _ in 0..2 {
        cluster.kill().await.unwrap();
        let error = heartbeat.beat_now().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ControlPlaneUnavailable, "{error:?}");
        let error = missing(&tenants, key(1), PRESUMED_DEAD).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ControlPlaneUnavailable, "{error:?}");
        cluster.start_again().await.unwrap();
        // Nobody has to ask.
        let down = heartbeat.silent().unwrap();
        wait::until("another beat", PATIENCE, async || {
            heartbeat.silent().unwrap() < down
        })
        .await
        .unwrap();
        let after = wait::until_some("an answer", PATIENCE, async || tenants.instances().await.ok())
            .await
            .unwrap();
        assert_eq!((after.len(), after[0].id), (1, before[0].id));
        assert_eq!(after[0].started_at, before[0].started_at);
        assert!(after[0].seen_at > before[0].seen_at);
        assert!(
            missing(&tenants, key(1), PRESUMED_DEAD)
                .await
                .unwrap()
                .is_everywhere()
        );
    }
    heartbeat.close(PATIENCE).await.unwrap();
    assert_eq!(tenants.instances().await.unwrap(), []);
}

#[tokio::test]
async fn an_admin_says_who_is_dead_and_beats_for_nobody() {
    let backend = postgres().await;
    let (dead, alive) = (InstanceId::new(), InstanceId::new());
    let tenants = backend.pg_tenants();
    for id in [dead, alive] {
        tenants.beat(&Beat::new(id, "notes")).await.unwrap();
    }
    let admin = backend.pg_admin();
    admin.leave(dead).await.unwrap();
    admin.leave(dead).await.expect("it has left already");
    let as_admin = PgTenants::new(backend.admin.clone());
    let listed = as_admin.instances().await.unwrap();
    assert_eq!(listed.iter().map(|one| one.id).collect::<Vec<_>>(), [alive]);
    let error = as_admin.beat(&Beat::new(dead, "notes")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
}

#[tokio::test]
async fn a_router_seals_nothing_anew() {
    let (backend, mut sql) = world().await;
    store(&mut sql, EAST, "current", 'a').await;
    let router = PgTenantAdmin::new(backend.router.clone());
    let error = router
        .reseal_credentials(&by(), &[anew(EAST, 'a', 'z')])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
}

#[tokio::test]
async fn a_damaged_report_or_credential_is_an_error_and_not_left_out() {
    let (backend, mut sql) = world().await;
    let beat = Beat::new(InstanceId::new(), "notes").keys(vec![KeyReport::new(key(1), KeyState::Primary)]);
    backend.pg_tenants().beat(&beat).await.unwrap();
    control::damage(
        &mut sql,
        "instance_key",
        "instance_key_state_check",
        "update biplane_control.instance_key set state = 'molten'",
    )
    .await;
    let error = backend.pg_tenants().instances().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MalformedRecord, "{error}");
    store(&mut sql, EAST, "current", 'a').await;
    control::damage(
        &mut sql,
        "credential",
        "credential_role",
        "update biplane_control.credential set role = 'root'",
    )
    .await;
    let error = backend
        .pg_admin()
        .sealed_credentials(None, NonZeroU32::MIN)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MalformedRecord);
    assert!(error.to_string().contains("data source east"), "{error}");
}

#[tokio::test]
async fn rows_that_are_hidden_are_not_rows_that_are_not_there() {
    let (backend, mut sql) = world().await;
    let limit = NonZeroU32::MIN;
    for table in ["instance", "instance_key", "data_source", "credential"] {
        run(
            &mut sql,
            format!("alter table biplane_control.{table} enable row level security"),
        )
        .await
        .unwrap();
        let error = match table {
            "instance" | "instance_key" => backend.pg_tenants().instances().await.unwrap_err(),
            _ => backend
                .pg_admin()
                .sealed_credentials(None, limit)
                .await
                .unwrap_err(),
        };
        assert_eq!(error.kind(), ErrorKind::MissingPrivilege, "{table}");
        run(
            &mut sql,
            format!("alter table biplane_control.{table} disable row level security"),
        )
        .await
        .unwrap();
    }
}

/// The database's own default would make each of two beats at once fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_server_isolates_by_default_is_in_nobodys_way() {
    let backend = postgres().await;
    let serializable = format!(
        "alter database {} set default_transaction_isolation = 'serializable'",
        backend.database
    );
    run(&mut owner(&backend.database).await, serializable)
        .await
        .unwrap();
    within_a_minute(instances::many_beat_at_once(&backend)).await;
    within_a_minute(concurrency::of_workers_that_reseal_one_replaces_each(&backend)).await;
}

/// Each process has a connection of its own, and there is always somebody to be forgotten: nobody fails, and no two ever
/// wait for each other in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_processes_beat_while_others_are_forgotten() {
    const PROCESSES: usize = 32;
    const BEATS: u64 = 15;
    let backend = postgres().await;
    let mut sql = owner(&backend.database).await;
    let ids: Vec<InstanceId> = (0..PROCESSES).map(|_| InstanceId::new()).collect();
    let mut processes = JoinSet::new();
    for id in ids.clone() {
        let mut options = ControlOptions::new(cluster().await.server(&backend.database), login(ROUTER));
        options.pool = options
            .pool
            .cap(NonZeroU32::MIN)
            .connect_timeout(PATIENCE)
            .wait_timeout(PATIENCE);
        let tenants = PgTenants::new(ControlDb::connect(options).unwrap());
        processes.spawn(async move {
            for n in 1..=BEATS {
                let keys = (1..=5).map(|k| KeyReport::new(key(k), KeyState::DecryptOnly).opens(n));
                let beat = Beat::new(id, "notes").applied(Seq::new(n)).keys(keys.collect());
                tenants.beat(&beat).await.unwrap();
            }
            tenants.instances().await.unwrap();
        });
    }
    let mut added = 0;
    while !processes.is_empty() {
        let silent = "insert into biplane_control.instance (id, service, seen_at)
            select gen_random_uuid(), 'silent', now() - interval '2 days' from generate_series(1, 20)";
        run(&mut sql, silent).await.unwrap();
        added += 20;
        while let Some(ended) = processes.try_join_next() {
            ended.unwrap();
        }
        tokio::task::yield_now().await;
    }
    assert!(added >= 40, "{added} came and went");
    let tenants = backend.pg_tenants();
    let last = Beat::new(ids[0], "notes").applied(Seq::new(BEATS));
    tenants.beat(&last).await.unwrap();
    let listed = tenants.instances().await.unwrap();
    assert_eq!(listed.iter().map(|one| one.id).collect::<Vec<_>>(), ids);
    assert!(listed.iter().all(|one| one.applied == Seq::new(BEATS)));
}

/// Somebody has a silent instance in hand, and another instance is being forgotten: a beat waits for neither.
#[tokio::test]
async fn a_beat_waits_for_nobody_else() {
    let backend = postgres().await;
    let (held, silent, alive) = (InstanceId::new(), InstanceId::new(), InstanceId::new());
    let tenants = backend.pg_tenants();
    for id in [held, silent, alive] {
        tenants.beat(&Beat::new(id, "notes")).await.unwrap();
    }
    let mut sql = owner(&backend.database).await;
    for step in [
        format!(
            "update biplane_control.instance set seen_at = seen_at - interval '2 days' where id <> '{alive}'"
        ),
        format!("begin; select from biplane_control.instance where id = '{held}' for update"),
    ] {
        run(&mut sql, step).await.unwrap();
    }
    let ids = async || {
        let listed = tenants.instances().await.unwrap();
        listed.iter().map(|one| one.id).collect::<Vec<_>>()
    };
    tokio::time::timeout(PATIENCE, tenants.beat(&Beat::new(alive, "notes")))
        .await
        .expect("it does not wait")
        .unwrap();
    assert_eq!(ids().await, [held, alive]);
    run(&mut sql, "rollback").await.unwrap();
    tenants.beat(&Beat::new(alive, "notes")).await.unwrap();
    assert_eq!(ids().await, [alive]);
}

/// Who writes by hand holds the credential and waits for its data source; whoever seals anew holds that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_change_by_hand_that_is_under_way_wins() {
    let (backend, mut sql) = world().await;
    store(&mut sql, EAST, "current", 'a').await;
    store(&mut sql, control::WEST, "current", 'a').await;
    run(
        &mut sql,
        format!(
            "begin; {WHO} update biplane_control.credential set sealed = '{}' where data_source_id = '{EAST}'",
            sealed(OLD, 'n').as_str()
        ),
    )
    .await
    .unwrap();
    let admin = backend.pg_admin();
    let batch = [anew(control::WEST, 'a', 'y'), anew(EAST, 'a', 'z')];
    let resealing = tokio::spawn({
        let (admin, batch) = (admin.clone(), batch.clone());
        async move { admin.reseal_credentials(&by(), &batch).await }
    });
    // It waits for the data source in the meantime, which holds nobody up.
    let mut watch = owner(&backend.database).await;
    wait::until("somebody to wait", PATIENCE, async || {
        let waiting = "select count(*) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'";
        text(&mut watch, waiting).await == "1"
    })
    .await
    .unwrap();
    run(&mut sql, "commit").await.unwrap();
    let outcomes = resealing.await.unwrap().unwrap();
    assert_eq!(outcomes, [ResealOutcome::Replaced, ResealOutcome::Changed]);

    // The other way round: the row alone is held, as in the moment before a writer by hand asks for the data source.
    run(
        &mut sql,
        format!("begin; select from biplane_control.credential where data_source_id = '{EAST}' for update"),
    )
    .await
    .unwrap();
    let held = tokio::time::timeout(PATIENCE, admin.reseal_credentials(&by(), &[anew(EAST, 'n', 'z')])).await;
    assert_eq!(held.expect("it does not wait").unwrap(), [ResealOutcome::Changed]);
    run(&mut sql, "rollback").await.unwrap();
    let free = admin
        .reseal_credentials(&by(), &[anew(EAST, 'n', 'z')])
        .await
        .unwrap();
    assert_eq!(free, [ResealOutcome::Replaced]);
}

/// Only the function keeps a version, and only while it runs.
#[tokio::test]
async fn sealing_anew_by_hand_is_the_function_and_nothing_else() {
    let (backend, mut sql) = world().await;
    store(&mut sql, EAST, "current", 'a').await;
    let version = "select version from biplane_control.credential";
    let call = |before: &SealedText, after: &str| {
        format!(
            "select biplane_control.reseal_credentials('{{{EAST}}}', '{{app}}', '{{current}}', '{{{}}}', {after})",
            before.as_str()
        )
    };
    let (a, b, c) = (sealed(OLD, 'a'), sealed(NEW, 'b'), sealed(NEW, 'c'));
    let quoted = |text: &SealedText| format!("'{{{}}}'", text.as_str());
    let mut admin = cluster()
        .await
        .connect_as(&login(ADMIN), &backend.database)
        .await
        .unwrap();
    by_hand(&mut admin, &call(&a, &quoted(&b))).await.unwrap();
    assert_eq!(text(&mut sql, version).await, "1");
    let entry = "select concat_ws(' ', actor, reason, kinds, changed) from biplane_control.audit order by id desc limit 1";
    assert_eq!(
        text(&mut sql, entry).await,
        format!(
            "ann INC-7 {{credential}} {{\"credential.app.current.key\": {{\"after\": \"{NEW}\", \"before\": \"{OLD}\"}}}}"
        )
    );
    // In the same transaction, another login.
    let other = format!("update biplane_control.credential set sealed = '{}'", a.as_str());
    by_hand(&mut admin, &format!("{}; {other}", call(&b, &quoted(&c))))
        .await
        .unwrap();
    assert_eq!(text(&mut sql, version).await, "2");
    for (sql, code) in [
        (call(&a, "'{null}'"), "23514"),
        (call(&a, "'{canary}'"), "23514"),
        (call(&a, "'{}'"), "22023"),
        (call(&a, "null"), "22023"),
    ] {
        let (got, said) = by_hand(&mut admin, &sql).await.expect_err(&sql);
        assert_eq!(got, code, "{sql}");
        assert!(!said.contains("canary"), "{said}");
    }
    let unexplained = run(&mut admin, call(&a, &quoted(&b))).await.unwrap_err();
    assert_eq!(unexplained.as_database_error().unwrap().code().unwrap(), "BC002");
    let mut router = cluster()
        .await
        .connect_as(&login(ROUTER), &backend.database)
        .await
        .unwrap();
    refused(&mut router, &call(&a, &quoted(&b)), "42501").await;
    assert_eq!(text(&mut sql, version).await, "2");
}

/// What a service does while an operator seals anew: routers learn of the new text by the version of the data source, and
/// nothing that pools are keyed by has changed.
#[tokio::test]
async fn a_router_sees_the_new_text_under_the_old_version() {
    let (backend, mut sql) = world().await;
    store(&mut sql, EAST, "current", 'a').await;
    let source = async || backend.pg_admin().source("east").await.unwrap().unwrap();
    let before = source().await;
    let admin: Arc<dyn CredentialStore> = Arc::new(backend.pg_admin());
    admin
        .reseal_credentials(&by(), &[anew(EAST, 'a', 'z')])
        .await
        .unwrap();
    let after = source().await;
    assert_eq!(after.version, before.version.next());
    let (before, after) = (&before.credentials[&Role::App], &after.credentials[&Role::App]);
    assert_eq!(after.current.version, before.current.version);
    assert_eq!(after.current.sealed, sealed(NEW, 'z'));
}
