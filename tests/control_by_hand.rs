//! What the schema of the control plane refuses to whoever writes by hand, and does on their behalf.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;

use biplane::{
    repository::{ChangeKind, ChangeLog, TenantAdmin},
    tenant::TenantStatus,
};
use control::{ACME, EAST, OTHER, WEST, WHO, by_hand, refused, run, text, world};

#[tokio::test]
async fn a_change_by_hand_raises_versions_and_is_audited_and_logged() {
    let (_, mut owner) = world().await;
    let state = "select concat_ws(' ', version, epoch) from biplane_control.tenant where slug like 'acme%'";
    let last = "select concat_ws(' ', actor, reason, kinds, changed) from biplane_control.audit order by id desc limit 1";
    let changes = "select string_agg(kind, ' ' order by seq) from biplane_control.change where seq > 5";
    assert_eq!(text(&mut owner, state).await, "1 1");
    for (set, state_after, facts) in [
        ("status = 'active'", "2 1", "status"),
        ("slug = 'acme-2'", "3 1", "slug"),
        (
            "domains = '{z.example,c.example,z.example}'",
            "4 1",
            r#"["c.example", "z.example"]"#,
        ),
        ("settings = settings || '{\"a\": 1}'", "5 1", "settings"),
        ("isolation = 'schema'", "6 2", "isolation"),
        ("epoch = 9", "7 9", "epoch"),
        ("version = 20, settings = '{}'", "20 9", "settings"),
    ] {
        let sql = format!("update biplane_control.tenant set {set} where id = '{ACME}'");
        by_hand(&mut owner, &sql).await.unwrap();
        assert_eq!(text(&mut owner, state).await, state_after, "{set}");
        let entry = text(&mut owner, last).await;
        assert!(entry.starts_with("ann INC-7") && entry.contains(facts), "{entry}");
    }
    assert_eq!(
        text(&mut owner, changes).await,
        "status names names settings placement placement settings"
    );
    let names =
        "select string_agg(name || ' ' || version, ', ' order by name) from biplane_control.tenant_name
        where tenant_id is not null";
    assert_eq!(
        text(&mut owner, names).await,
        "acme-2 1, c.example 1, other 1, z.example 1"
    );
    // One statement may change several facts: one entry in the audit, one in the log for each kind.
    let before = text(&mut owner, "select count(*) from biplane_control.audit").await;
    let sql = format!(
        "update biplane_control.tenant set status = 'suspended', slug = 'acme-3' where id = '{ACME}'"
    );
    by_hand(&mut owner, &sql).await.unwrap();
    let after = text(&mut owner, "select count(*) from biplane_control.audit").await;
    assert_eq!(after.parse::<u32>().unwrap(), before.parse::<u32>().unwrap() + 1);
    assert_eq!(
        text(&mut owner, "select string_agg(kind, ' ') from (select kind from biplane_control.change order by seq desc limit 2) x").await.len(),
        "names status".len()
    );
}

#[tokio::test]
async fn what_changes_nothing_leaves_no_trace_by_hand() {
    let (_, mut owner) = world().await;
    let trace = "select concat_ws(' ', (select count(*) from biplane_control.audit),
        (select max(seq) from biplane_control.change), (select sum(version) from biplane_control.tenant),
        (select sum(version) from biplane_control.data_source))";
    let before = text(&mut owner, trace).await;
    run(
        &mut owner,
        "update biplane_control.tenant set slug = slug, version = version + 5;
         update biplane_control.data_source set pool_max = pool_max, version = version + 5",
    )
    .await
    .unwrap();
    assert_eq!(text(&mut owner, trace).await, before);
}

#[tokio::test]
async fn nobody_changes_anything_without_saying_who_and_why() {
    let (_, mut owner) = world().await;
    for said in [
        "",
        "set local biplane.actor = 'ann';",
        "set local biplane.reason = 'why';",
        "set local biplane.actor = ' '; set local biplane.reason = 'why';",
    ] {
        for change in [
            "update biplane_control.tenant set slug = 'acme-2' where slug = 'acme'".to_owned(),
            "update biplane_control.data_source set pool_max = 11".to_owned(),
            "insert into biplane_control.data_source (id, name, location) values (gen_random_uuid(), 'x', 'memory')"
                .to_owned(),
            sealed_credential(EAST, "app", "current"),
        ] {
            let error = run(&mut owner, format!("begin; {said} {change}; commit")).await.unwrap_err();
            run(&mut owner, "rollback").await.unwrap();
            let refused = error.as_database_error().unwrap();
            assert_eq!(refused.code().unwrap(), "BC002", "{change}");
        }
    }
    let error = run(
        &mut owner,
        format!("begin isolation level repeatable read; {WHO} update biplane_control.tenant set settings = '{{\"a\":1}}'"),
    )
    .await
    .unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "BC007");
}

#[tokio::test]
async fn status_follows_the_edges_by_hand() {
    let (_, mut owner) = world().await;
    let mut n = 0;
    for from in TenantStatus::ALL {
        for to in TenantStatus::ALL {
            if from == to {
                continue;
            }
            n += 1;
            let mut sql = format!(
                "insert into biplane_control.tenant (id, slug, data_source_id, isolation)
                 values (gen_random_uuid(), 't{n}', '{WEST}', 'row');"
            );
            let path: &[&str] = match from {
                TenantStatus::Provisioning => &[],
                TenantStatus::Active => &["active"],
                TenantStatus::Deleted => &["deleted"],
                other => &["active", other.as_str()],
            };
            for step in path {
                sql += &format!("update biplane_control.tenant set status = '{step}' where slug = 't{n}';");
            }
            by_hand(&mut owner, &sql).await.unwrap();
            let step = format!("update biplane_control.tenant set status = '{to}' where slug = 't{n}'");
            if from.can_become(to) {
                by_hand(&mut owner, &step).await.unwrap();
            } else {
                refused(&mut owner, &step, "BC003").await;
            }
        }
    }
    let active = format!(
        "insert into biplane_control.tenant (id, slug, data_source_id, isolation, status)
         values (gen_random_uuid(), 'x', '{WEST}', 'row', 'active')"
    );
    refused(&mut owner, &active, "BC003").await;
}

#[tokio::test]
async fn counters_never_fall_and_ids_never_change() {
    let (_, mut owner) = world().await;
    by_hand(
        &mut owner,
        "update biplane_control.tenant set epoch = 5, settings = '{\"a\": 1}' where slug = 'acme'",
    )
    .await
    .unwrap();
    by_hand(
        &mut owner,
        "update biplane_control.data_source set pool_max = 11 where name = 'east'",
    )
    .await
    .unwrap();
    by_hand(&mut owner, &sealed_credential(EAST, "app", "current"))
        .await
        .unwrap();
    for (sql, code) in [
        (
            "update biplane_control.tenant set version = 1, settings = '{}' where slug = 'acme'",
            "BC005",
        ),
        (
            "update biplane_control.tenant set epoch = 4 where slug = 'acme'",
            "BC005",
        ),
        (
            "update biplane_control.tenant set id = gen_random_uuid() where slug = 'acme'",
            "BC001",
        ),
        (
            "update biplane_control.data_source set version = 1 where name = 'east'",
            "BC005",
        ),
        (
            "update biplane_control.data_source set id = gen_random_uuid() where name = 'east'",
            "BC001",
        ),
        ("update biplane_control.credential set version = 0", "BC005"),
        ("update biplane_control.credential set role = 'service'", "BC001"),
        ("update biplane_control.meta set pruned_through = -1", "BC005"),
    ] {
        refused(&mut owner, sql, code).await;
    }
    let new = |version: &str, epoch: &str| {
        format!(
            "insert into biplane_control.tenant (id, slug, data_source_id, isolation, version, epoch)
             values (gen_random_uuid(), 'x', '{WEST}', 'row', {version}, {epoch})"
        )
    };
    refused(&mut owner, &new("7", "1"), "BC005").await;
    refused(&mut owner, &new("1", "7"), "BC005").await;
}

#[tokio::test]
async fn names_cannot_be_stolen() {
    let (_, mut owner) = world().await;
    for (sql, code) in [
        (
            format!("update biplane_control.tenant_name set tenant_id = '{OTHER}' where name = 'acme'"),
            "BC001",
        ),
        (
            "update biplane_control.tenant_name set tenant_id = null".to_owned(),
            "BC001",
        ),
        (
            "update biplane_control.tenant_name set version = 99".to_owned(),
            "BC001",
        ),
        (
            format!("insert into biplane_control.tenant_name values ('slug', 'mine', '{OTHER}', 1)"),
            "BC001",
        ),
        ("delete from biplane_control.tenant_name".to_owned(), "BC001"),
        ("truncate biplane_control.tenant_name".to_owned(), "BC001"),
        (
            "update biplane_control.tenant set slug = 'acme' where slug = 'other'".to_owned(),
            "23505",
        ),
        (
            "update biplane_control.tenant set domains = '{a.example}' where slug = 'other'".to_owned(),
            "23505",
        ),
    ] {
        refused(&mut owner, &sql, code).await;
    }
    by_hand(
        &mut owner,
        "update biplane_control.tenant set status = 'deleted' where slug = 'acme'",
    )
    .await
    .unwrap();
    refused(
        &mut owner,
        "update biplane_control.tenant set slug = 'acme' where slug = 'other'",
        "23505",
    )
    .await;
    by_hand(
        &mut owner,
        "update biplane_control.tenant set domains = '{a.example}' where slug = 'other'",
    )
    .await
    .expect("the domains of a deleted tenant are free");
    for change in [
        "slug = 'free'",
        "domains = '{x.example}'",
        "settings = '{\"a\": 1}'",
        "epoch = 2",
    ] {
        let sql = format!("update biplane_control.tenant set {change} where id = '{ACME}'");
        refused(&mut owner, &sql, "BC004").await;
    }
}

#[tokio::test]
async fn what_has_the_wrong_form_is_refused() {
    let (_, mut owner) = world().await;
    for set in [
        "slug = 'Acme'",
        "slug = ''",
        "slug = '-a'",
        "slug = 'a-'",
        "slug = 'a.b'",
        "slug = E'a\\n'",
        "slug = repeat('a', 64)",
        "slug = 'späti'",
        "domains = '{localhost}'",
        "domains = '{A.example}'",
        "domains = '{a.example:80}'",
        "domains = '{a.example.}'",
        "domains = '{10.0.0.1}'",
        "domains = '{a..example}'",
        "domains = '{-a.example}'",
        "domains = '{a.0x1f}'",
        // A null equals nothing: the names beside it would be neither released nor claimed from then on.
        "domains = domains || null::text",
        "domains = '{null}'",
        "settings = '[]'",
        "settings = '1'",
        "settings = 'null'",
        "isolation = 'planet'",
    ] {
        let sql = format!("update biplane_control.tenant set {set} where slug = 'acme'");
        refused(&mut owner, &sql, "23514").await;
    }
    let server =
        "location = 'server', cluster = 'c', endpoints = '[{\"host\": \"h\", \"port\": 1}]', database = 'd',
        tls_mode = 'prefer', pooler = 'direct'";
    for set in [
        "name = 'two words'",
        "name = ''",
        "location = 'moon'",
        "location = 'server'",
        "pool_max = 0",
        "pool_min = 11",
        "pool_min = -1",
        "pool_max = 4294967296",
        "cluster = 'c'",
        &format!("{server}, region = ''"),
        &format!("{server}, max_prepared_statements = 1"),
        &format!("{server}, tls_ca_pem = 'x', tls_ca_file = 'y'"),
    ] {
        let sql = format!("update biplane_control.data_source set {set} where name = 'east'");
        refused(&mut owner, &sql, "23514").await;
    }
    by_hand(
        &mut owner,
        &format!("update biplane_control.data_source set {server} where name = 'east'"),
    )
    .await
    .unwrap();
    for set in [
        "endpoints = '[]'",
        "endpoints = '{}'",
        "endpoints = 'null'",
        "endpoints = '[[{\"host\": \"h\", \"port\": 1}]]'",
        "endpoints = '[{\"host\": \"h\"}]'",
        "endpoints = '[{\"host\": \"\", \"port\": 1}]'",
        "endpoints = '[{\"host\": \"h\", \"port\": 0}]'",
        "endpoints = '[{\"host\": \"h\", \"port\": 65536}]'",
        "endpoints = '[{\"host\": \"h\", \"port\": 1.5}]'",
        "endpoints = '[{\"host\": \"h\", \"port\": \"1\"}]'",
        "endpoints = '[{\"host\": \"h\", \"port\": 1}, 7]'",
        "tls_mode = 'allow'",
        "pooler = 'transaction'",
        "pooler = 'other'",
        "database = ''",
    ] {
        let sql = format!("update biplane_control.data_source set {set} where name = 'east'");
        refused(&mut owner, &sql, "23514").await;
    }
}

#[tokio::test]
async fn plaintext_is_refused_without_repeating_it() {
    let (_, mut owner) = world().await;
    let body = "A".repeat(95);
    for text in [
        "postgres://app:canary@db.example/acme".to_owned(),
        "canary".to_owned(),
        String::new(),
        format!("bp1.0123456789abcdef.canary{}", &body[7..]),
        format!("bp1.0123456789ABCDEF.canary{body}"),
        format!("bp1.0123456789abcdef.canary+{body}"),
        format!("bp1.0123456789abcdef.canary{body}="),
        format!("bp1.0123456789abcdef.canary{body}AAAA\n"),
    ] {
        let sql = format!(
            "insert into biplane_control.credential values ('{EAST}', 'app', 'current', 1, '{text}')"
        );
        let (code, said) = by_hand(&mut owner, &sql).await.expect_err(&text);
        assert_eq!(code, "23514", "{text}");
        assert!(!said.contains("canary"), "{said}");
    }
    by_hand(&mut owner, &sealed_credential(EAST, "app", "current"))
        .await
        .unwrap();
    let sql = "update biplane_control.credential set sealed = 'canary'";
    let (code, said) = by_hand(&mut owner, sql).await.unwrap_err();
    assert!(code == "23514" && !said.contains("canary"), "{said}");
    // The constraint stands by itself too.
    run(
        &mut owner,
        "alter table biplane_control.credential disable trigger credential_guard",
    )
    .await
    .unwrap();
    refused(&mut owner, sql, "23514").await;
}

#[tokio::test]
async fn a_url_in_place_of_an_address_is_refused_without_repeating_it() {
    let (_, mut owner) = world().await;
    let url = "postgres://app:canary@db.example/acme";
    let endpoint =
        |host: &str| format!("'[{{\"host\": \"h\", \"port\": 1}}, {{\"host\": \"{host}\", \"port\": 1}}]'");
    for (column, value) in [
        ("database", format!("'{url}'")),
        ("cluster", format!("'{url}'")),
        ("region", format!("'{url}'")),
        ("tls_ca_file", format!("'{url}'")),
        ("endpoints", endpoint(url)),
        ("endpoints", endpoint("app:canary@db.example")),
    ] {
        let sql = format!("update biplane_control.data_source set {column} = {value} where name = 'east'");
        let (code, said) = by_hand(&mut owner, &sql).await.expect_err(column);
        assert_eq!(code, "23514", "{column}");
        assert!(
            said.contains("data_source_no_url") && !said.contains("canary"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_port_written_as_a_decimal_is_that_port() {
    let (backend, mut owner) = world().await;
    by_hand(
        &mut owner,
        "update biplane_control.data_source set location = 'server', cluster = 'c', database = 'd',
            endpoints = '[{\"host\": \"h\", \"port\": 6432.0}]', tls_mode = 'prefer', pooler = 'direct'
         where name = 'east'",
    )
    .await
    .unwrap();
    let source = backend.pg_admin().source("east").await.unwrap().unwrap();
    let biplane::tenant::Location::Server(server) = source.location else {
        panic!("{:?}", source.location);
    };
    assert_eq!(server.endpoints[0].port, 6432);
}

#[tokio::test]
async fn a_change_of_a_later_release_does_not_stop_a_reader() {
    let (backend, mut owner) = world().await;
    control::damage(
        &mut owner,
        "change",
        "change_kind",
        "update biplane_control.change set kind = 'merged' where seq = 2",
    )
    .await;
    let limit = std::num::NonZeroU32::new(10).unwrap();
    let changes = backend
        .pg_tenants()
        .since(biplane::tenant::Seq::ZERO, limit)
        .await
        .unwrap();
    assert_eq!(changes.changes[1].kind, ChangeKind::Other);
    assert_eq!(changes.changes.len(), 5);
}

#[tokio::test]
async fn a_credential_by_hand_counts_on() {
    let (_, mut owner) = world().await;
    let versions = "select string_agg(concat_ws(' ', slot, version, sealed is null), ', ' order by slot)
        from biplane_control.credential";
    refused(&mut owner, &sealed_credential(EAST, "app", "next"), "BC008").await;
    by_hand(&mut owner, &sealed_credential(EAST, "app", "current"))
        .await
        .unwrap();
    by_hand(&mut owner, &sealed_credential(EAST, "app", "next"))
        .await
        .unwrap();
    assert_eq!(text(&mut owner, versions).await, "current 1 f, next 2 f");
    refused(
        &mut owner,
        "update biplane_control.credential set sealed = null where slot = 'current'",
        "BC008",
    )
    .await;
    by_hand(
        &mut owner,
        "update biplane_control.credential as used set sealed = prepared.sealed || 'AAAA'
         from biplane_control.credential as prepared where used.slot = 'current' and prepared.slot = 'next';
         update biplane_control.credential set sealed = null where slot = 'next'",
    )
    .await
    .unwrap();
    assert_eq!(text(&mut owner, versions).await, "current 3 f, next 2 t");
    refused(&mut owner, "delete from biplane_control.credential", "BC001").await;
    refused(&mut owner, "truncate biplane_control.credential", "BC001").await;
    let source = text(
        &mut owner,
        "select version from biplane_control.data_source where name = 'east'",
    )
    .await;
    assert_eq!(source, "5", "each of the four changes is one of the data source");
    let audit = text(
        &mut owner,
        "select string_agg(changed::text, ' ') from biplane_control.audit",
    )
    .await;
    assert!(!audit.contains("bp1."), "{audit}");
    assert!(
        audit.contains(r#"{"credential.app.next": {"after": null, "before": 2}}"#),
        "{audit}"
    );
}

#[tokio::test]
async fn a_prepared_credential_is_promoted_by_hand_if_it_is_what_was_looked_at() {
    let (_, mut owner) = world().await;
    let versions = "select string_agg(concat_ws(' ', slot, version, sealed is null), ', ' order by slot)
        from biplane_control.credential";
    let promote = |current, next| {
        format!(
            "select biplane_control.promote_credential(id, 'app', {current}, {next})
             from biplane_control.data_source where name = 'east'"
        )
    };
    for slot in ["current", "next"] {
        by_hand(&mut owner, &sealed_credential(EAST, "app", slot))
            .await
            .unwrap();
    }
    for (current, next) in [(1, 1), (2, 2), (2, 1)] {
        by_hand(&mut owner, &promote(current, next)).await.unwrap();
        assert_eq!(text(&mut owner, versions).await, "current 1 f, next 2 f");
    }
    by_hand(&mut owner, &promote(1, 2)).await.unwrap();
    assert_eq!(text(&mut owner, versions).await, "current 3 f, next 2 t");
    let last = "select changed::text from biplane_control.audit order by id desc limit 1";
    let changed = text(&mut owner, last).await;
    assert!(
        changed.contains("credential.app.current") && changed.contains("credential.app.next"),
        "one change: {changed}"
    );
}

#[tokio::test]
async fn a_database_is_one_tenants_alone_by_hand() {
    let (_, mut owner) = world().await;
    for sql in [
        "update biplane_control.tenant set isolation = 'database' where slug = 'acme'".to_owned(),
        format!("update biplane_control.tenant set isolation = 'database', data_source_id = '{WEST}'"),
    ] {
        refused(&mut owner, &sql, "BC006").await;
    }
    let alone = format!(
        "update biplane_control.tenant set isolation = 'database', data_source_id = '{WEST}' where slug = 'acme'"
    );
    by_hand(&mut owner, &alone).await.unwrap();
    let beside = format!("update biplane_control.tenant set data_source_id = '{WEST}' where slug = 'other'");
    refused(&mut owner, &beside, "BC006").await;
    let nowhere = "update biplane_control.tenant set data_source_id = gen_random_uuid() where slug = 'other'";
    refused(&mut owner, nowhere, "23503").await;
}

#[tokio::test]
async fn the_audit_and_the_records_stay() {
    let (_, mut owner) = world().await;
    for sql in [
        "update biplane_control.audit set actor = 'bob'",
        "update biplane_control.audit set actor = 'bob' where false",
        "delete from biplane_control.audit",
        "truncate biplane_control.audit",
        "truncate biplane_control.audit cascade",
        "update biplane_control.change set kind = 'names'",
        "truncate biplane_control.change",
        "insert into biplane_control.change values (999, gen_random_uuid(), null, 'names', now())",
        "delete from biplane_control.tenant",
        "truncate biplane_control.tenant cascade",
        "delete from biplane_control.data_source",
        "truncate biplane_control.data_source cascade",
        "delete from biplane_control.meta",
        "truncate biplane_control.meta",
    ] {
        refused(&mut owner, sql, "BC001").await;
    }
    let session = text(
        &mut owner,
        "select session_role from biplane_control.audit order by id desc limit 1",
    )
    .await;
    assert_eq!(
        session, "postgres",
        "who logged in is kept beside who says they did it"
    );
}

#[tokio::test]
async fn whoever_removes_history_by_hand_is_noticed_by_readers() {
    let (backend, mut owner) = world().await;
    run(&mut owner, "delete from biplane_control.change where seq = 3")
        .await
        .unwrap();
    let limit = std::num::NonZeroU32::new(10).unwrap();
    let log = backend.pg_tenants();
    let behind = log.since(biplane::tenant::Seq::new(2), limit).await.unwrap();
    assert!(behind.truncated);
    let ahead = log.since(biplane::tenant::Seq::new(3), limit).await.unwrap();
    assert!(!ahead.truncated);
}

fn sealed_credential(source: &str, role: &str, slot: &str) -> String {
    let body = "A".repeat(98);
    format!(
        "insert into biplane_control.credential (data_source_id, role, slot, sealed)
         values ('{source}', '{role}', '{slot}', 'bp1.0123456789abcdef.{body}')"
    )
}
