//! The schema of the control plane: installed by whom and for whom, and what each role may do.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;

use biplane::{
    error::ErrorKind,
    plane::RoleName,
    repository::{ChangeLog, ControlSchema, Grants, PgTenants, TenantAdmin, TenantRepository},
    tenant::TenantRef,
};
use control::{
    ADMIN, ROUTER, by_hand, cluster, create_role, database, grants, handle, login, owner, pg_dump, psql,
    refused, run, text, world,
};
use sqlx::PgConnection;

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

const TABLES: [&str; 10] = [
    "migration",
    "meta",
    "data_source",
    "tenant",
    "tenant_name",
    "credential",
    "change",
    "instance",
    "instance_key",
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
            format!(
                "insert into biplane_control.{table} overriding system value select * from biplane_control.{table}"
            ),
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
        "update biplane_control.instance_key set opens = 9",
        "update biplane_control.audit set actor = 'x'",
        "update biplane_control.migration set version = 9",
        "select * from biplane_control.audit",
        "select nextval('biplane_control.change_seq')",
        "select biplane_control.prune_changes('0')",
        "select biplane_control.release_brake()",
        "select biplane_control.freeze()",
        "select biplane_control.thaw()",
        "update biplane_control.meta set frozen = true",
        "select biplane_control.reseal_credentials('{}', '{}', '{}', '{}', '{}')",
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
    for table in [
        "migration",
        "meta",
        "tenant_name",
        "change",
        "instance",
        "instance_key",
        "audit",
    ] {
        let insert = format!(
            "insert into biplane_control.{table} overriding system value select * from biplane_control.{table}"
        );
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
        "update biplane_control.instance set seen_at = now()",
        "select biplane_control.beat(gen_random_uuid(), 'notes', 0, '[]')",
        "select biplane_control.record(gen_random_uuid(), null, '{status}', '{}')",
        "select nextval('biplane_control.change_seq')",
    ] {
        refused(&mut admin, sql, "42501").await;
    }
}

/// Any role of the database may take any advisory lock.
#[tokio::test]
async fn nobody_who_may_only_read_keeps_others_from_writing() {
    let (backend, mut owner) = world().await;
    let mut router = cluster()
        .await
        .connect_as(&login(ROUTER), &backend.database)
        .await
        .unwrap();
    run(&mut router, "begin; select count(*) from biplane_control.change")
        .await
        .unwrap();
    let keys = "select array_agg(distinct key)::text from pg_proc,
        lateral regexp_matches(prosrc, 'advisory[a-z_]*\\(([0-9]+)', 'g') as found, unnest(found) as key
        where pronamespace = 'biplane_control'::regnamespace";
    let keys: String = text(&mut owner, keys).await;
    for key in keys
        .trim_matches(['{', '}'])
        .split(',')
        .filter(|key| !key.is_empty())
    {
        run(&mut router, format!("select pg_advisory_xact_lock({key})"))
            .await
            .unwrap();
    }
    for sql in [
        "lock biplane_control.change in row share mode",
        "select from biplane_control.meta for key share",
    ] {
        let mut other = cluster()
            .await
            .connect_as(&login(ROUTER), &backend.database)
            .await
            .unwrap();
        refused(&mut other, sql, "42501").await;
    }
    run(&mut owner, "set lock_timeout = '5s'").await.unwrap();
    by_hand(
        &mut owner,
        "update biplane_control.tenant set settings = '{\"a\": 1}' where slug = 'acme'",
    )
    .await
    .expect("a reader's locks are in nobody's way");
}

/// What somebody with `CREATE` on `public` leaves there would otherwise run as the owner, with each change.
#[tokio::test]
async fn a_function_of_somebody_else_is_not_taken_for_postgres_own() {
    let database = database().await;
    let mut superuser = owner(&database).await;
    for arguments in [
        "uuid, uuid",
        "text, text, jsonb, text, text, text, text, text, bigint",
    ] {
        let trap = format!(
            "create function public.num_nonnulls({arguments}) returns int language plpgsql as
             'begin raise exception ''trapped''; end'"
        );
        run(&mut superuser, trap).await.unwrap();
    }
    ControlSchema::install_on(&mut superuser, &grants())
        .await
        .unwrap();
    let search_path = text(&mut superuser, "select current_setting('search_path')").await;
    assert_eq!(search_path, "\"$user\", public", "the session has its own again");
}

#[tokio::test]
async fn hidden_rows_are_not_unknown_tenants() {
    let (backend, mut owner) = world().await;
    let tenants = backend.pg_tenants();
    let slug = biplane::tenant::Slug::parse("acme").unwrap();
    let id = control::ACME.parse().unwrap();
    let limit = std::num::NonZeroU32::new(10).unwrap();
    let hidden = |error: biplane::error::Error| assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
    for table in ["tenant", "tenant_name", "data_source", "credential"] {
        let row_security =
            |switch: &str| format!("alter table biplane_control.{table} {switch} row level security");
        run(&mut owner, row_security("enable")).await.unwrap();
        hidden(tenants.find(&[TenantRef::Slug(&slug)]).await.unwrap_err());
        hidden(tenants.find(&[TenantRef::Id(id)]).await.unwrap_err());
        hidden(tenants.list(None, limit).await.unwrap_err());
        let by = biplane::repository::Actor::new("ann", "a test");
        let version = biplane::tenant::Version::FIRST;
        hidden(backend.pg_admin().delete(&by, id, version).await.unwrap_err());
        hidden(backend.pg_admin().source("no such source").await.unwrap_err());
        run(&mut owner, row_security("disable")).await.unwrap();
    }
    run(
        &mut owner,
        "alter table biplane_control.change enable row level security",
    )
    .await
    .unwrap();
    hidden(
        tenants
            .since(biplane::tenant::Seq::ZERO, limit)
            .await
            .unwrap_err(),
    );
    hidden(tenants.head().await.unwrap_err());
    assert!(tenants.find(&[TenantRef::Slug(&slug)]).await.unwrap()[0].is_ok());
}

/// In these words a standby cancels a query that replay cannot wait for.
#[tokio::test]
async fn a_cancelled_reader_could_not_tell() {
    let (backend, mut owner) = world().await;
    run(
        &mut owner,
        format!(
            "alter table biplane_control.tenant_name rename to names;
             create function biplane_control.cancel() returns boolean language plpgsql as
                'begin raise exception using errcode = ''40001''; end';
             create view biplane_control.tenant_name as
                select * from biplane_control.names where biplane_control.cancel();
             grant select on biplane_control.tenant_name to {ROUTER};
             alter view biplane_control.tenant_name owner to postgres;
             grant execute on function biplane_control.cancel to {ROUTER}"
        ),
    )
    .await
    .unwrap();
    let slug = biplane::tenant::Slug::parse("acme").unwrap();
    let error = backend
        .pg_tenants()
        .find(&[TenantRef::Slug(&slug)])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ControlPlaneUnavailable, "{error}");
}

#[tokio::test]
async fn a_dump_restores_and_the_control_plane_goes_on() {
    let (backend, mut source) = world().await;
    for privileges in [&[][..], &["--no-privileges"]] {
        let dump = pg_dump(&backend.database, privileges).await;
        let database = database().await;
        psql(&database, &dump).await.unwrap();
        psql(&database, &ControlSchema::install_sql(&grants()))
            .await
            .unwrap();
        let mut restored = owner(&database).await;
        assert_eq!(
            fingerprint(&mut restored, "biplane_control").await,
            fingerprint(&mut source, "biplane_control").await
        );
        let incarnation = "select incarnation from biplane_control.meta";
        let before = text(&mut restored, incarnation).await;
        assert_eq!(before, text(&mut source, incarnation).await);
        run(
            &mut restored,
            "update biplane_control.meta set incarnation = gen_random_uuid()",
        )
        .await
        .unwrap();
        let backend = control::Postgres {
            router: handle(&database, login(ROUTER)).await,
            admin: handle(&database, login(ADMIN)).await,
            database: database.clone(),
        };
        let head = backend.pg_tenants().head().await.unwrap();
        assert_ne!(head.incarnation.to_string(), before);
        by_hand(
            &mut restored,
            "update biplane_control.tenant set slug = 'acme-2' where slug = 'acme'",
        )
        .await
        .unwrap();
        assert!(backend.pg_tenants().head().await.unwrap().seq > head.seq);
        refused(
            &mut restored,
            "update biplane_control.audit set actor = 'bob'",
            "BC001",
        )
        .await;
        let mut router = cluster()
            .await
            .connect_as(&login(ROUTER), &database)
            .await
            .unwrap();
        refused(&mut router, "select biplane_control.prune_changes('0')", "42501").await;
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
