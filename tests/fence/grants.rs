//! Who may do what, held against the catalog, and the page of the manual that says so.

use std::collections::{BTreeMap, BTreeSet};

use biplane::{
    error::ErrorKind,
    plane::{DataSchema, Fence, Residence, RoleName},
    tenant::{DatabaseId, Epoch, Isolation},
};
use sqlx::AssertSqlSafe;

use crate::support::*;

type Granted = BTreeMap<String, BTreeSet<String>>;

/// What the page says: by object, the privileges of a run-time role.
fn documented() -> Granted {
    include_str!("../../src/manual/fence.md")
        .lines()
        .filter(|line| line.starts_with("| `biplane"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let granted = cells[1]
                .split(", ")
                .filter(|word| *word != "–")
                .map(str::to_owned);
            (cells[0].trim_matches('`').to_owned(), granted.collect())
        })
        .collect()
}

/// What the catalog says of a role.
async fn granted(owner: &mut sqlx::PgConnection, role: &str) -> Granted {
    let sql = format!(
        "with privilege (object, name, granted) as (
            select 'biplane', name, has_schema_privilege('{role}', 'biplane', name)
            from unnest(array['USAGE', 'CREATE']) as p (name)
            union all
            select c.oid::regclass::text, name, has_table_privilege('{role}', c.oid, name)
            from pg_class as c, unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES',
                'TRIGGER']) as p (name)
            where c.relnamespace = 'biplane'::regnamespace and c.relkind in ('r', 'v', 'S', 'm', 'p', 'f')
            union all
            select f.oid::regproc::text, 'EXECUTE', has_function_privilege('{role}', f.oid, 'EXECUTE')
            from pg_proc as f where f.pronamespace = 'biplane'::regnamespace)
         select object, coalesce(string_agg(name, ', ') filter (where granted), '') from privilege group by object"
    );
    let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(owner).await.unwrap();
    rows.into_iter()
        .map(|(object, names)| {
            let names = names
                .split(", ")
                .filter(|name| !name.is_empty())
                .map(str::to_owned);
            (object, names.collect())
        })
        .collect()
}

#[tokio::test]
async fn a_run_time_role_may_do_what_the_page_says_and_nothing_else() {
    let home = Home::new(Isolation::Row).await;
    let mut owner = home.owner().await;
    assert_eq!(granted(&mut owner, APP).await, documented());
    let stranger = format!("nobody_{}", home.database);
    create_login(home.cluster, &stranger).await;
    for (object, privileges) in granted(&mut owner, &stranger).await {
        assert_eq!(privileges, BTreeSet::new(), "everybody may use {object}");
    }
}

#[tokio::test]
async fn a_run_time_role_writes_nothing_that_a_fence_rests_on() {
    let home = Home::new(Isolation::Row).await;
    let mut app = home.app().await;
    for sql in [
        "update biplane.residence set state = 'open'",
        "insert into biplane.residence select * from biplane.residence",
        "delete from biplane.residence",
        "truncate biplane.residence",
        "select * from biplane.residence for update",
        "select * from biplane.residence for share",
        "update biplane.database set database_id = gen_random_uuid()",
        "select biplane.allow_v1('app')",
        "select biplane.keep_stamp()",
        &format!("select biplane.fence_v1('{}', 1)", home.tenant),
        &format!("select biplane.unfence_v1('{}', 1)", home.tenant),
        &format!("select biplane.leave_v1('{}', 1)", home.tenant),
        &format!("select biplane.confirm_v1('{}', 1, 'row')", home.tenant),
        &format!("select biplane.place_v1('{}', 2, 'row', 'open')", home.tenant),
        "drop function biplane.enter_v1",
        "alter table biplane.residence disable trigger all",
        "create table biplane.mine (n integer)",
    ] {
        assert_eq!(refused(&mut app, sql).await, "42501", "{sql}");
    }
}

/// The grants of the page, and what the mover is told of each that is missing.
#[tokio::test]
async fn a_mover_works_with_the_grants_that_the_page_names() {
    let cluster = cluster().await;
    let home = Home::empty(cluster).await;
    run(&mut home.owner().await, DataSchema::uninstall_sql())
        .await
        .unwrap();
    let (schema_owner, mover) = (
        format!("owner_{}", home.database),
        format!("mover_{}", home.database),
    );
    for name in [&schema_owner, &mover] {
        create_login(cluster, name).await;
    }
    let mut superuser = home.owner().await;
    let sql = format!("grant create on database {} to {schema_owner}", home.database);
    run(&mut superuser, sql).await.unwrap();
    let app = [RoleName::parse(APP).unwrap()];
    DataSchema::install(&mut home.login(&schema_owner).await, home.id, &app)
        .await
        .unwrap();
    let mut connection = home.login(&mover).await;
    let residence = Residence::new(home.tenant, Epoch::FIRST, Isolation::Database);
    let error = Fence::new(&mut connection).place(&residence).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
    run(&mut superuser, format!("grant {schema_owner} to {mover}"))
        .await
        .unwrap();
    Fence::new(&mut connection).place(&residence).await.unwrap();
    let (mut session, mut other) = (home.app().await, home.app().await);
    for session in [&mut session, &mut other] {
        run(session, home.enter_session(1)).await.unwrap();
    }
    for role in ["pg_read_all_stats", "pg_signal_backend"] {
        let error = Fence::new(&mut connection)
            .fence(home.tenant, Epoch::FIRST, &patient())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
        assert!(error.to_string().contains(role), "{error}");
        assert_eq!(home.state().await, "open");
        run(&mut superuser, format!("grant {role} to {mover}"))
            .await
            .unwrap();
    }
    Fence::new(&mut connection)
        .fence(home.tenant, Epoch::FIRST, &patient())
        .await
        .unwrap();
    run(&mut session, "select 1").await.unwrap_err();
    run(&mut other, "select 1").await.unwrap_err();
}

#[tokio::test]
async fn it_installs_again_without_forgetting_tenants_timeouts_or_fences() {
    let home = Home::new(Isolation::Row).await;
    home.fence_patiently().await;
    let mut owner = home.owner().await;
    run(&mut owner, format!("select biplane.allow_v1('{APP}', 5000)"))
        .await
        .unwrap();
    let app = [RoleName::parse(APP).unwrap()];
    DataSchema::install(&mut owner, home.id, &app).await.unwrap();
    assert_eq!(home.state().await, "fenced");
    let timeouts = "select run_time_roles -> 'app' ->> 'statement_timeout' from biplane.database";
    assert_eq!(text(&mut owner, timeouts).await, "5000");
    let error = DataSchema::install(&mut owner, DatabaseId::new(), &app)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongDatabase);
    for _ in 0..2 {
        run(&mut owner, DataSchema::uninstall_sql()).await.unwrap();
    }
    assert_eq!(text(&mut owner, "select to_regnamespace('biplane')").await, "");
}

/// Up to Postgres 14 everybody could create functions in `public`, and on later servers many let their applications.
#[tokio::test]
async fn whoever_installs_or_moves_runs_nobody_elses_functions() {
    let home = Home::empty(cluster().await).await;
    let mut superuser = home.owner().await;
    run(&mut superuser, DataSchema::uninstall_sql()).await.unwrap();
    let grant = format!("grant create on schema public to {APP}");
    run(&mut superuser, grant).await.unwrap();
    // A better match for the arguments that they have there than Postgres' own functions.
    let traps = [
        ("has_database_privilege(name, text)", "boolean"),
        ("pg_has_role(text, text)", "boolean"),
        ("unnest(integer[])", "setof integer"),
    ];
    for (trap, returns) in traps {
        let sql = format!(
            "create function public.{trap} returns {returns} language plpgsql as $$
             begin raise exception 'run with the rights of %', current_user; end $$"
        );
        run(&mut home.app().await, sql).await.unwrap();
    }
    let app = [RoleName::parse(APP).unwrap()];
    for _ in 0..2 {
        DataSchema::install(&mut superuser, home.id, &app).await.unwrap();
    }
    home.place(home.tenant, Isolation::Row).await;
    home.fence_patiently().await;
    let mut before = home.owner().await;
    for mover in [&mut before, &mut superuser] {
        Fence::new(mover).take_over(home.tenant, LIMIT).await.unwrap();
    }
}
