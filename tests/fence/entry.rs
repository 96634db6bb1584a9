//! Who enters, who does not, and what a transaction has once it is in.

use std::time::Duration;

use biplane::{
    error::ErrorKind,
    plane::{DataSchema, Fence, Residence, RoleName, RoleTimeouts},
    tenant::{DatabaseId, Epoch, Isolation, TenantId},
};

use crate::support::*;

const SETTINGS: [&str; 6] = [
    "app.tenant_id",
    "search_path",
    "application_name",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
];

async fn settings(app: &mut sqlx::PgConnection) -> Vec<String> {
    let mut values = Vec::new();
    for name in SETTINGS {
        values.push(text(app, &format!("current_setting('{name}', true)")).await);
    }
    values
}

#[tokio::test]
async fn a_transaction_has_its_tenants_settings_and_the_next_one_has_none() {
    let home = Home::empty(cluster().await).await;
    let odd = r#"Odd "schema", pg_catalog"#;
    let residence = Residence::new(home.tenant, Epoch::new(7), Isolation::Schema)
        .schema(odd)
        .row_key("it's 5");
    let mut owner = home.owner().await;
    Fence::new(&mut owner).place(&residence).await.unwrap();
    let timeouts = RoleTimeouts::new()
        .statement(Duration::from_secs(5))
        .lock(Duration::from_micros(1))
        .idle_in_transaction(Duration::from_secs(60));
    DataSchema::allow(&mut owner, &RoleName::parse(APP).unwrap(), timeouts)
        .await
        .unwrap();
    let mut app = home.app().await;
    let service = "a service with a name that is too long to be shown";
    run(&mut app, format!("set application_name = '{service}'"))
        .await
        .unwrap();
    let before = settings(&mut app).await;
    for level in LEVELS {
        run(
            &mut app,
            format!("begin isolation level {level}; {}", home.enter(7)),
        )
        .await
        .unwrap();
        let path = r#""Odd ""schema"", pg_catalog", pg_temp"#.to_owned();
        let name = format!("{} {}", &service[..26], home.tenant);
        let limits = ["5s", "1ms", "1min"].map(str::to_owned);
        let inside = ["it's 5".to_owned(), path, name].into_iter().chain(limits);
        assert_eq!(settings(&mut app).await, inside.collect::<Vec<_>>());
        run(&mut app, "commit").await.unwrap();
        let mut after = settings(&mut app).await;
        assert_eq!(after.remove(0), "", "a setting that was once set is empty");
        assert_eq!(after, before[1..]);
    }
}

#[tokio::test]
async fn each_reason_not_to_enter_has_its_code() {
    let home = Home::new(Isolation::Row).await;
    let neighbour = home.neighbour().await;
    let mut app = home.app().await;
    let elsewhere = format!(
        "select biplane.enter_v1('{}', 1, '{}')",
        home.tenant,
        DatabaseId::new()
    );
    for (sql, code) in [
        (home.enter(2), "BP001"),
        (home.enter_as(TenantId::new(), 1), "BP001"),
        (elsewhere, "BP003"),
        (
            format!("begin; {}; {}", home.enter(1), home.enter_as(neighbour, 1)),
            "BP004",
        ),
    ] {
        assert_eq!(refused(&mut app, sql.clone()).await, code, "{sql}");
        run(&mut app, "rollback").await.unwrap();
    }
    run(&mut app, home.enter(1)).await.unwrap();
    home.fence_patiently().await;
    assert_eq!(refused(&mut app, home.enter(1)).await, "BP002");
    assert_eq!(
        refused(&mut app, home.enter(2)).await,
        "BP001",
        "who is wrong about the epoch is told that"
    );
}

/// Its transactions have less to do, and are let in no more easily.
#[tokio::test]
async fn a_session_that_has_entered_is_held_against_the_same_at_each_transaction() {
    let home = Home::new(Isolation::Database).await;
    let (mut owner, mut app) = (home.owner().await, home.app().await);
    run(&mut app, home.enter_session(1)).await.unwrap();
    let tenant = home.tenant.to_string();
    let begin = format!("begin; {}", home.enter_again(1));
    for left_behind in ["select 1", "reset all", "set app.tenant_id = 'somebody'"] {
        run(&mut app, left_behind).await.unwrap();
        run(&mut app, begin.clone()).await.unwrap();
        let inside = text(&mut app, "current_setting('app.tenant_id')").await;
        assert_eq!(inside, tenant, "{left_behind}");
        run(&mut app, "commit").await.unwrap();
        run(&mut app, home.enter_session(1)).await.unwrap();
    }
    // A timeout that comes later holds for its transactions too, again and again.
    run(&mut owner, format!("select biplane.allow_v1('{APP}', 4321)"))
        .await
        .unwrap();
    for _ in 0..2 {
        run(&mut app, begin.clone()).await.unwrap();
        assert_eq!(
            text(&mut app, "current_setting('statement_timeout')").await,
            "4321ms"
        );
        run(&mut app, "commit").await.unwrap();
    }
    run(&mut app, home.enter_session(1)).await.unwrap();
    let stamp = format!("select biplane.stamp_v1('{}')", DatabaseId::new());
    for (change, code) in [
        ("update biplane.residence set epoch = 2", "BP001"),
        (
            "update biplane.residence set epoch = 1, state = 'fenced'",
            "BP002",
        ),
        ("update biplane.residence set state = 'restored'", "BP002"),
        (
            "update biplane.residence set state = 'open', tenant_id = gen_random_uuid()",
            "BP001",
        ),
        (&format!("select biplane.disallow_v1('{APP}')"), "42501"),
        (&stamp, "BP003"),
    ] {
        run(&mut owner, change).await.unwrap();
        assert_eq!(refused(&mut app, begin.clone()).await, code, "{change}");
        run(&mut app, "rollback").await.unwrap();
    }
}

/// A drain asks who may enter, so nobody else may: a superuser's dump is not waited for.
#[tokio::test]
async fn only_the_logins_that_were_named_and_members_of_named_groups_enter() {
    let home = Home::new(Isolation::Row).await;
    let (blue, stranger) = (
        format!("blue_{}", home.database),
        format!("stranger_{}", home.database),
    );
    for name in [&blue, &stranger] {
        create_login(home.cluster, name).await;
    }
    let mut owner = home.owner().await;
    assert_eq!(refused(&mut owner, home.enter(1)).await, "42501");
    assert_eq!(
        refused(&mut home.login(&stranger).await, home.enter(1)).await,
        "42501"
    );
    let sql = format!(
        "grant {APP} to {blue};
         grant usage on schema biplane to {stranger};
         grant select on all tables in schema biplane to {stranger};
         grant execute on all functions in schema biplane to {stranger}"
    );
    run(&mut owner, sql).await.unwrap();
    assert_eq!(
        refused(&mut home.login(&stranger).await, home.enter(1)).await,
        "42501",
        "grants alone do not do"
    );
    let mut member = home.login(&blue).await;
    run(&mut member, format!("begin; {}", home.enter(1)))
        .await
        .unwrap();
    let named = home.fence_in_vain().await;
    assert!(named.contains(&pid(&mut member).await.to_string()), "{named}");
    run(&mut owner, format!("select biplane.disallow_v1('{APP}')"))
        .await
        .unwrap();
    assert_eq!(refused(&mut home.app().await, home.enter(1)).await, "42501");
}

/// Of what it says and of what it calls, so that no setting of a session's makes it mean something else.
#[tokio::test]
async fn entering_runs_nothing_but_postgres_own_whatever_the_search_path() {
    for isolation in [Isolation::Row, Isolation::Schema, Isolation::Database] {
        let home = Home::new(isolation).await;
        let member = format!("member_{}", home.database);
        create_login(home.cluster, &member).await;
        let mut owner = home.owner().await;
        let mut traps = format!(
            "select biplane.allow_v1('{APP}', 10000, 10000, 10000);
             grant {APP} to {member}; create schema trap; grant usage on schema trap to public;"
        );
        for (name, arguments, returns) in [
            ("current_setting", "text", "text"),
            ("current_setting", "text, boolean", "text"),
            ("set_config", "text, text, boolean", "text"),
            ("concat", "text, text, text", "text"),
            ("quote_ident", "text", "text"),
            ("pg_is_in_recovery", "", "boolean"),
            ("pg_has_role", "oid, oid, text", "boolean"),
            ("min", "integer", "integer"),
        ] {
            traps.push_str(&trap(name, arguments, returns));
        }
        for (number, of) in ["text", "uuid", "bigint", "integer", "name", "oid"]
            .iter()
            .enumerate()
        {
            for (operator, name) in [("=", "eq"), ("<>", "ne")] {
                let name = format!("{name}_{number}");
                traps.push_str(&trap(&name, &format!("{of}, {of}"), "boolean"));
                traps.push_str(&format!(
                    "create operator trap.{operator} (leftarg = {of}, rightarg = {of}, function = trap.{name});"
                ));
            }
        }
        run(&mut owner, traps).await.unwrap();
        for login in [APP, &member] {
            let mut app = home.login(login).await;
            run(&mut app, "set search_path = trap, pg_catalog, public")
                .await
                .unwrap();
            let caught = "select current_setting('application_name')";
            assert_eq!(
                refused(&mut app, caught).await,
                "P0001",
                "the path leads into the trap"
            );
            let enter = format!("begin; {}; commit", home.enter(1));
            run(&mut app, enter).await.unwrap();
            if isolation == Isolation::Database {
                run(&mut app, home.enter_session(1)).await.unwrap();
                run(&mut app, format!("begin; {}; commit", home.enter_again(1)))
                    .await
                    .unwrap();
            }
        }
    }
}

fn trap(name: &str, arguments: &str, returns: &str) -> String {
    format!(
        "create function trap.{name}({arguments}) returns {returns} language plpgsql as $$
         begin raise exception 'caught in {name}({arguments})'; end $$;"
    )
}

/// Neither runs with its owner's rights, nor undoes the `search_path` that it sets.
#[tokio::test]
async fn no_function_of_the_schema_has_rights_or_settings_of_its_own() {
    let home = Home::new(Isolation::Row).await;
    let odd = "select string_agg(proname, ', ') from pg_proc
        where pronamespace = 'biplane'::regnamespace and (prosecdef or proconfig is not null)";
    assert_eq!(text(&mut home.owner().await, odd).await, "");
}

#[tokio::test]
async fn placing_follows_the_rules_that_enter_relies_on() {
    let home = Home::new(Isolation::Schema).await;
    let mut owner = home.owner().await;
    let mut fence = Fence::new(&mut owner);
    let schema = format!("t_{}", home.tenant);
    let here =
        |epoch| Residence::new(home.tenant, Epoch::new(epoch), Isolation::Schema).schema(schema.clone());
    let other = |isolation| Residence::new(TenantId::new(), Epoch::FIRST, isolation);
    fence.place(&here(1)).await.unwrap();
    let error = fence.place(&here(2)).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::VersionConflict,
        "not under those who have entered"
    );
    fence.fence(home.tenant, Epoch::FIRST, &patient()).await.unwrap();
    fence.place(&here(3).fenced()).await.unwrap();
    for (residence, kind) in [
        (here(3), ErrorKind::VersionConflict),
        (here(2), ErrorKind::VersionConflict),
        (other(Isolation::Schema), ErrorKind::InvalidInput),
        (other(Isolation::Database), ErrorKind::InvalidInput),
        (
            other(Isolation::Schema).schema(schema.clone()),
            ErrorKind::InvalidInput,
        ),
        (
            other(Isolation::Schema).schema("pg_toast"),
            ErrorKind::InvalidInput,
        ),
        (other(Isolation::Row).row_key(""), ErrorKind::InvalidInput),
        // Its names would lead to the tables of a tenant who has them alone, without policies.
        (
            other(Isolation::Row).schema(schema.clone()),
            ErrorKind::InvalidInput,
        ),
        (
            Residence::new(TenantId::new(), Epoch::ZERO, Isolation::Row),
            ErrorKind::InvalidInput,
        ),
    ] {
        let error = fence.place(&residence).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{residence:?}: {error}");
    }
    fence.place(&other(Isolation::Row).row_key("5")).await.unwrap();
    let error = fence
        .place(&other(Isolation::Row).row_key("5"))
        .await
        .unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::InvalidInput,
        "two tenants with the same rows"
    );
    // sqlx keeps statements and types for all who share tables.
    let elsewhere = other(Isolation::Row).row_key("6").schema("elsewhere");
    let error = fence.place(&elsewhere).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(fence.residences().await.unwrap().len(), 2);
    fence.leave(home.tenant, Epoch::new(3)).await.unwrap();
    let error = fence.leave(home.tenant, Epoch::new(3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VersionConflict);
    assert_eq!(refused(&mut home.app().await, home.enter(3)).await, "BP001");
}

#[tokio::test]
async fn members_of_a_group_have_its_timeouts_and_the_shortest_of_several() {
    let home = Home::new(Isolation::Row).await;
    let name = |what: &str| format!("{what}_{}", home.database);
    let (member, own) = (name("member"), name("own"));
    let groups = [name("team"), name("squad")].map(|group| RoleName::parse(&group).unwrap());
    for login in [&member, &own] {
        create_login(home.cluster, login).await;
    }
    let mut owner = home.owner().await;
    for group in &groups {
        let sql = format!("create role {group}; grant {group} to {member}, {own}; grant {APP} to {group}");
        run(&mut owner, sql).await.unwrap();
    }
    let timeouts = RoleTimeouts::new().statement(Duration::from_secs(5));
    let longer = timeouts
        .statement(Duration::from_secs(50))
        .lock(Duration::from_secs(2));
    for (role, timeouts) in [
        (&groups[0], timeouts),
        (&groups[1], longer),
        (&RoleName::parse(&own).unwrap(), RoleTimeouts::new()),
    ] {
        DataSchema::allow(&mut owner, role, timeouts).await.unwrap();
    }
    for (login, expected) in [(&member, ["5s", "2s", "0"]), (&own, ["0", "0", "0"])] {
        let mut app = home.login(login).await;
        run(&mut app, format!("begin; {}", home.enter(1))).await.unwrap();
        assert_eq!(settings(&mut app).await[3..], expected, "{login}");
        run(&mut app, "commit").await.unwrap();
        assert_eq!(settings(&mut app).await[3..], ["0", "0", "0"], "{login}");
    }
}
