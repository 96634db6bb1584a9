//! The schema of the control plane: installed by whom, for whom, and what it refuses to whoever writes by hand.

mod control;

use biplane::{
    error::ErrorKind,
    plane::RoleName,
    repository::{ChangeLog, ControlSchema, Grants, PgTenants, TenantAdmin, TenantRepository},
    tenant::{TenantRef, TenantStatus},
};
use control::{
    ADMIN, ROUTER, cluster, create_role, database, grants, handle, login, owner, postgres, psql, run, text,
};
use sqlx::PgConnection;

const EAST: &str = "00000000-0000-0000-0000-00000000000e";
const WEST: &str = "00000000-0000-0000-0000-00000000000f";
const ACME: &str = "00000000-0000-0000-0000-0000000000a1";
const OTHER: &str = "00000000-0000-0000-0000-0000000000a2";
const WHO: &str = "set local biplane.actor = 'ann'; set local biplane.reason = 'INC-7';";

/// Runs statements as one transaction that says who and why.
async fn by_hand(connection: &mut PgConnection, sql: &str) -> Result<(), (String, String)> {
    let outcome = run(connection, format!("begin; {WHO} {sql}; commit")).await;
    if outcome.is_err() {
        run(connection, "rollback").await.unwrap();
    }
    outcome.map_err(|error| {
        let refused = error.as_database_error().expect("the server answers");
        let code = refused.code().unwrap_or_default().into_owned();
        (code, format!("{refused:?}"))
    })
}

async fn refused(connection: &mut PgConnection, sql: &str, code: &str) {
    let (got, text) = by_hand(connection, sql).await.expect_err(sql);
    assert_eq!(got, code, "{sql}: {text}");
}

/// A control plane with two data sources and two tenants, all written by hand.
async fn world() -> (control::Postgres, PgConnection) {
    let backend = postgres().await;
    let mut owner = owner(&backend.database).await;
    by_hand(
        &mut owner,
        &format!(
            "insert into biplane_control.data_source (id, name, location) values
                ('{EAST}', 'east', 'memory'), ('{WEST}', 'west', 'memory');
             insert into biplane_control.tenant (id, slug, domains, data_source_id, isolation) values
                ('{ACME}', 'acme', '{{b.example,a.example}}', '{EAST}', 'row'),
                ('{OTHER}', 'other', '{{}}', '{EAST}', 'row')"
        ),
    )
    .await
    .unwrap();
    (backend, owner)
}

/// Everything that the catalogue says about the schema.
async fn fingerprint(owner: &mut PgConnection, schema: &str) -> String {
    text(
        owner,
        &format!(
            "select string_agg(line, E'\\n' order by line) from (
                select format('column %s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default)
                from information_schema.columns where table_schema = '{schema}'
                union all
                select format('constraint %s %s', conname, pg_get_constraintdef(oid))
                from pg_constraint where connamespace = '{schema}'::regnamespace
                union all
                select format('index %s', pg_get_indexdef(indexrelid))
                from pg_index join pg_class on pg_class.oid = indexrelid
                where relnamespace = '{schema}'::regnamespace
                union all
                select format('trigger %s', pg_get_triggerdef(pg_trigger.oid))
                from pg_trigger join pg_class on pg_class.oid = tgrelid
                where relnamespace = '{schema}'::regnamespace and not tgisinternal
                union all
                select format('function %s %s', pg_get_functiondef(oid), proacl)
                from pg_proc where pronamespace = '{schema}'::regnamespace
                union all
                select format('grant %s %s', relname, relacl)
                from pg_class where relnamespace = '{schema}'::regnamespace
                union all
                select format('schema %s', nspacl) from pg_namespace where nspname = '{schema}'
            ) as lines (line)"
        ),
    )
    .await
}

#[tokio::test]
async fn it_installs_again_without_changing_anything() {
    let (_, mut owner) = world().await;
    let before = fingerprint(&mut owner, "biplane_control").await;
    let rows = "select (select incarnation from biplane_control.meta), (select count(*) from biplane_control.tenant), \
                (select max(seq) from biplane_control.change), (select count(*) from biplane_control.audit)";
    let rows = format!("select row(a.*) from ({rows}) as a");
    let held = text(&mut owner, &rows).await;
    ControlSchema::install_on(&mut owner, &grants()).await.unwrap();
    assert_eq!(fingerprint(&mut owner, "biplane_control").await, before);
    assert_eq!(text(&mut owner, &rows).await, held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_install_at_once() {
    let database = database().await;
    let mut installers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut connection = owner(&database).await;
        installers.spawn(async move { ControlSchema::install_on(&mut connection, &grants()).await });
    }
    for outcome in installers.join_all().await {
        outcome.unwrap();
    }
    let mut owner = owner(&database).await;
    let versions = text(&mut owner, "select count(*) from biplane_control.migration").await;
    assert_eq!(versions, ControlSchema::VERSION.to_string());
    let sources = text(&mut owner, "select count(*) from biplane_control.data_source").await;
    assert_eq!(sources, "1");
}

#[tokio::test]
async fn the_printed_sql_does_the_same() {
    let (by_hand, by_crate) = (database().await, database().await);
    psql(&by_hand, &ControlSchema::install_sql(&grants()))
        .await
        .unwrap();
    let superuser = handle(&by_crate, cluster().await.superuser()).await;
    ControlSchema::install(&superuser, &grants()).await.unwrap();
    assert_eq!(
        ControlSchema::check(&superuser).await.unwrap(),
        ControlSchema::VERSION
    );
    let printed = fingerprint(&mut owner(&by_hand).await, "biplane_control").await;
    let installed = fingerprint(&mut owner(&by_crate).await, "biplane_control").await;
    assert_eq!(printed, installed);
    assert!(printed.contains("audit_stays"));
    psql(&by_hand, &ControlSchema::install_sql(&grants()))
        .await
        .unwrap();
}

/// A database that has tables, a search path, an isolation level and default grants of its own.
#[tokio::test]
async fn it_installs_into_a_database_in_use() {
    let database = database().await;
    let mut first = owner(&database).await;
    run(
        &mut first,
        format!(
            "create table tenant (n int); create table public.audit (n int); insert into tenant values (7);
             create schema app; create function public.refuse() returns int language sql as 'select 1';
             alter default privileges grant all on tables to public;
             alter default privileges grant all on functions to public;
             alter database {database} set search_path = app;
             alter database {database} set default_transaction_isolation = 'serializable'"
        ),
    )
    .await
    .unwrap();
    let mut again = owner(&database).await;
    let before = fingerprint(&mut again, "public").await;
    ControlSchema::install_on(&mut again, &grants()).await.unwrap();
    assert_eq!(fingerprint(&mut again, "public").await, before);
    let backend = control::Postgres {
        router: handle(&database, login(ROUTER)).await,
        admin: handle(&database, login(ADMIN)).await,
        database: database.clone(),
    };
    biplane::testing::conformance::writing::status_follows_the_edges(&backend).await;
    let stranger = format!("stranger_of_{database}");
    create_role(cluster().await, &stranger).await;
    let mut stranger = cluster()
        .await
        .connect_as(&login(&stranger), &database)
        .await
        .unwrap();
    refused(&mut stranger, "select * from biplane_control.tenant", "42501").await;
    let granted = "select count(*) from pg_class, aclexplode(relacl) as acl
        where relnamespace = 'biplane_control'::regnamespace and acl.grantee = 0";
    assert_eq!(
        text(&mut again, granted).await,
        "0",
        "nothing is granted to everybody"
    );
}

#[tokio::test]
async fn uninstalling_removes_it_and_only_it() {
    let (backend, mut owner) = world().await;
    let incarnation = text(&mut owner, "select incarnation from biplane_control.meta").await;
    run(
        &mut owner,
        "create view public.mine as select id from biplane_control.tenant",
    )
    .await
    .unwrap();
    let stopped = psql(&backend.database, ControlSchema::uninstall_sql()).await;
    assert!(
        stopped.unwrap_err().contains("mine"),
        "what depends on it stops it"
    );
    let count = text(&mut owner, "select count(*) from biplane_control.tenant").await;
    assert_eq!(count, "2", "nothing was removed");
    run(&mut owner, "drop view public.mine").await.unwrap();
    for _ in 0..2 {
        psql(&backend.database, ControlSchema::uninstall_sql())
            .await
            .unwrap();
    }
    let left = text(&mut owner, "select to_regnamespace('biplane_control')").await;
    assert_eq!(left, "");
    ControlSchema::install_on(&mut owner, &grants()).await.unwrap();
    let renewed = text(&mut owner, "select incarnation from biplane_control.meta").await;
    assert_ne!(renewed, incarnation);
}

#[tokio::test]
async fn a_missing_privilege_is_named() {
    let database = database().await;
    create_role(cluster().await, "control_owner").await;
    let plain = handle(&database, login("control_owner")).await;
    let error = ControlSchema::install(&plain, &Grants::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
    assert!(error.to_string().contains("CREATE on the database"), "{error}");
    let mut superuser = owner(&database).await;
    ControlSchema::install_on(&mut superuser, &Grants::none())
        .await
        .unwrap();
    let error = ControlSchema::install(&plain, &Grants::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
    assert!(error.to_string().contains("ownership of the schema"), "{error}");
}

#[tokio::test]
async fn create_on_the_database_is_enough() {
    let database = database().await;
    create_role(cluster().await, "creator").await;
    let mut superuser = owner(&database).await;
    run(
        &mut superuser,
        format!("grant create on database {database} to creator"),
    )
    .await
    .unwrap();
    let creator = handle(&database, login("creator")).await;
    ControlSchema::install(&creator, &grants()).await.unwrap();
    run(
        &mut superuser,
        format!("revoke create on database {database} from creator"),
    )
    .await
    .unwrap();
    ControlSchema::install(&creator, &grants())
        .await
        .expect("the owner may bring it up to date without it");
    let backend = control::Postgres {
        router: handle(&database, login(ROUTER)).await,
        admin: handle(&database, login(ADMIN)).await,
        database,
    };
    biplane::testing::conformance::credentials::versions_rise_across_the_slots(&backend).await;
}

#[tokio::test]
async fn any_role_name_is_granted_to_and_nothing_else_happens() {
    let database = database().await;
    let mut superuser = owner(&database).await;
    let odd = "a\"; drop schema public; --";
    create_role(cluster().await, odd).await;
    let odd_grants = Grants::none().router(RoleName::parse(odd).unwrap());
    ControlSchema::install_on(&mut superuser, &odd_grants)
        .await
        .unwrap();
    let control = handle(&database, login(odd)).await;
    assert_eq!(
        ControlSchema::check(&control).await.unwrap(),
        ControlSchema::VERSION
    );
    assert_eq!(
        text(&mut superuser, "select to_regnamespace('public')").await,
        "public"
    );
    let nobody = Grants::none().admin(RoleName::parse("no such role").unwrap());
    let error = ControlSchema::install_on(&mut superuser, &nobody)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn it_works_with_the_next_version_and_not_with_the_one_after() {
    let (backend, mut owner) = world().await;
    let next = ControlSchema::VERSION + 1;
    let add = |version: u32| format!("insert into biplane_control.migration (version) values ({version})");
    run(&mut owner, add(next)).await.unwrap();
    assert_eq!(ControlSchema::check(&backend.router).await.unwrap(), next);
    ControlSchema::install_on(&mut owner, &grants()).await.unwrap();
    run(&mut owner, add(next + 1)).await.unwrap();
    let error = ControlSchema::check(&backend.router).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaMismatch);
    let error = ControlSchema::install_on(&mut owner, &grants())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaMismatch);
}

#[tokio::test]
async fn a_database_without_it_says_so() {
    let database = database().await;
    let control = handle(&database, login(ROUTER)).await;
    let error = ControlSchema::check(&control).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaMismatch);
    assert!(error.to_string().contains("not installed"), "{error}");
}

const TABLES: [&str; 9] = [
    "migration",
    "meta",
    "data_source",
    "tenant",
    "tenant_name",
    "credential",
    "change",
    "instance",
    "audit",
];

#[tokio::test]
async fn a_router_finds_lists_and_follows_and_writes_nothing() {
    let (backend, _) = world().await;
    let tenants = PgTenants::new(backend.router.clone());
    let slug = biplane::tenant::Slug::parse("acme").unwrap();
    let found = tenants.find(&[TenantRef::Slug(&slug)]).await.unwrap();
    assert!(found[0].as_ref().unwrap().is_some());
    let limit = std::num::NonZeroU32::new(10).unwrap();
    assert_eq!(tenants.list(None, limit).await.unwrap().items.len(), 2);
    let head = tenants.head().await.unwrap();
    let changes = tenants.since(biplane::tenant::Seq::ZERO, limit).await.unwrap();
    assert_eq!(changes.changes.last().unwrap().seq, head.seq);

    let mut router = cluster()
        .await
        .connect_as(&login(ROUTER), &backend.database)
        .await
        .unwrap();
    for table in TABLES {
        for sql in [
            format!("insert into biplane_control.{table} overriding system value select * from biplane_control.{table}"),
            format!("delete from biplane_control.{table}"),
            format!("truncate biplane_control.{table}"),
            format!("alter table biplane_control.{table} disable trigger all"),
            format!("lock biplane_control.{table} in exclusive mode"),
        ] {
            refused(&mut router, &sql, "42501").await;
        }
    }
    for sql in [
        "update biplane_control.tenant set status = 'active'",
        "update biplane_control.data_source set name = 'x'",
        "update biplane_control.tenant_name set tenant_id = null",
        "update biplane_control.credential set sealed = null",
        "update biplane_control.change set kind = 'names'",
        "update biplane_control.meta set pruned_through = 9",
        "update biplane_control.instance set applied_seq = 9",
        "update biplane_control.audit set actor = 'x'",
        "update biplane_control.migration set version = 9",
        "select * from biplane_control.audit",
        "select nextval('biplane_control.change_seq')",
        "select biplane_control.prune_changes('0')",
        "select biplane_control.record(null, null, '{}', '{}')",
        "select biplane_control.move_names(null, 'slug', '{}', '{x}')",
        "create table biplane_control.mine (n int)",
    ] {
        refused(&mut router, sql, "42501").await;
    }
}

#[tokio::test]
async fn an_admin_writes_through_the_triggers_alone() {
    let (backend, _) = world().await;
    let mut admin = cluster()
        .await
        .connect_as(&login(ADMIN), &backend.database)
        .await
        .unwrap();
    by_hand(
        &mut admin,
        "update biplane_control.tenant set slug = 'acme-2' where slug = 'acme'",
    )
    .await
    .unwrap();
    for table in ["migration", "meta", "tenant_name", "change", "instance", "audit"] {
        let insert = format!("insert into biplane_control.{table} overriding system value select * from biplane_control.{table}");
        refused(&mut admin, &insert, "42501").await;
    }
    for table in TABLES {
        for sql in [
            format!("delete from biplane_control.{table}"),
            format!("truncate biplane_control.{table}"),
            format!("alter table biplane_control.{table} disable trigger all"),
        ] {
            refused(&mut admin, &sql, "42501").await;
        }
    }
    for sql in [
        "update biplane_control.audit set actor = 'x'",
        "update biplane_control.change set seq = 1",
        "update biplane_control.meta set pruned_through = 0",
        "select biplane_control.record(gen_random_uuid(), null, '{status}', '{}')",
        "select nextval('biplane_control.change_seq')",
    ] {
        refused(&mut admin, sql, "42501").await;
    }
}

#[tokio::test]
async fn granting_less_takes_the_rest_away() {
    let (backend, mut owner) = world().await;
    let swapped = Grants::none().router(RoleName::parse(ADMIN).unwrap());
    ControlSchema::install_on(&mut owner, &swapped).await.unwrap();
    let by = biplane::repository::Actor::new("ann", "a test");
    let new = biplane::repository::NewSource::new("x", biplane::tenant::Location::Memory);
    let error = backend.pg_admin().create_source(&by, new).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
    assert_eq!(
        ControlSchema::check(&backend.admin).await.unwrap(),
        ControlSchema::VERSION
    );
}

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
    assert_eq!(text(&mut owner, versions).await, "current 3 f, next 4 t");
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
