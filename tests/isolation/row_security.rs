//! Row-level security: what the policies do, and what the report finds missing.

use biplane::{
    plane::{KeyType, RowPolicy, RowSecurityGap},
    tenant::{Isolation, Role},
};
use secrecy::SecretString;
use sqlx::Executor;

use crate::homes::{add, code, count, handle, one, residence, unaware};

#[tokio::test]
async fn outside_of_a_tenants_transaction_there_are_no_rows() {
    let (world, home, resident, _biplane, db) = one(Isolation::Row).await;
    add(&db, &resident, "mine").await;
    let login = biplane::secret::Credential::new(home.login.as_str(), SecretString::from("app")).unwrap();
    let mut bare = world.cluster.connect_as(&login, &home.database).await.unwrap();
    for _ in 0..2 {
        let rows: i64 = sqlx::query_scalar("select count(*) from note")
            .fetch_one(&mut bare)
            .await
            .unwrap();
        assert_eq!(rows, 0);
        let error = bare
            .execute("insert into note (owner, text) values ('x', 'x')")
            .await
            .unwrap_err();
        // No tenant, no default: the column is null, or the policy refuses.
        assert!(["23502", "42501"].contains(&code(&error).as_str()), "{error:?}");
        // Afterwards the setting reads '' instead of null, which must make no difference.
        let set = "begin; select set_config('app.tenant_id', gen_random_uuid()::text, true); commit";
        bare.execute(set).await.unwrap();
    }
}

#[tokio::test]
async fn a_tenant_cannot_write_rows_of_another() {
    let (world, home, resident, biplane, db) = one(Isolation::Row).await;
    let neighbour = home.resident(&world, Isolation::Row).await;
    let theirs = handle(&biplane, &neighbour).await;
    add(&theirs, &neighbour, "theirs").await;
    add(&db, &resident, "mine").await;
    let insert = "insert into note (tenant_id, owner, text) values ($1, 'x', 'x')";
    let error = sqlx::query(insert)
        .bind(neighbour.id.as_uuid())
        .execute(&db)
        .await
        .unwrap_err();
    assert_eq!(code(&error), "42501");
    let give_away = "update note set tenant_id = $1";
    let error = sqlx::query(give_away)
        .bind(neighbour.id.as_uuid())
        .execute(&db)
        .await
        .unwrap_err();
    assert_eq!(code(&error), "42501");
    assert_eq!((count(&db).await, count(&theirs).await), (1, 1));
}

#[tokio::test]
async fn rows_may_carry_a_key_of_your_own() {
    let (world, home, resident, _biplane, db) = one(Isolation::Row).await;
    for (table, key_type, column) in [
        ("by_text", KeyType::Text, "text"),
        ("by_number", KeyType::BigInt, "bigint"),
    ] {
        let policy = RowPolicy::new("public", table, "customer")
            .key_type(key_type)
            .sql();
        let sql = format!(
            "create table {table} (customer {column} not null, text text); {policy} {policy}
             grant select, insert on {table} to {}",
            home.login
        );
        world.cluster.sql(&home.database, &sql).await.unwrap();
    }
    residence(world.cluster, &resident, "row_key = '77'").await;
    db.execute("insert into by_text (text) values ('mine')")
        .await
        .unwrap();
    db.execute("insert into by_number (text) values ('mine')")
        .await
        .unwrap();
    let text: String = sqlx::query_scalar("select customer from by_text")
        .fetch_one(&db)
        .await
        .unwrap();
    let number: i64 = sqlx::query_scalar("select customer from by_number")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!((text.as_str(), number), ("77", 77));
    residence(world.cluster, &resident, "row_key = '78'").await;
    let rows: i64 =
        sqlx::query_scalar("select (select count(*) from by_text) + (select count(*) from by_number)")
            .fetch_one(&db)
            .await
            .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn the_setting_of_the_policies_can_have_another_name() {
    let (world, home, resident, _biplane, db) = one(Isolation::Row).await;
    let policy = RowPolicy::new("public", "note", "tenant_id")
        .setting("shop.customer")
        .sql();
    // Whoever writes that row says that it is this database still.
    let sql = format!(
        "update biplane.database set tenant_setting = 'shop.customer';
         update biplane.database as here set stamped_in = here.xmin; {policy}"
    );
    world.cluster.sql(&home.database, &sql).await.unwrap();
    add(&db, &resident, "mine").await;
    assert_eq!(count(&db).await, 1);
    assert!(db.row_security_report(&["note"]).await.unwrap().is_tight());
}

#[tokio::test]
async fn the_report_names_what_lets_tenants_see_each_other() {
    let (world, home, resident, _biplane, db) = one(Isolation::Row).await;
    add(&db, &resident, "mine").await;
    let report = db.row_security_report(&["note", "public.note"]).await.unwrap();
    assert!(report.is_tight(), "{report:?}");
    assert_eq!(report.role, home.login);
    assert_eq!(report.open_to_all, Vec::<String>::new());

    let login = &home.login;
    let sql = format!(
        "create table forgotten (tenant_id uuid, text text);
         create table off (like note); create table unforced (like note); create table silent (like note);
         create table talkative (like note); create table emptied (like note); create table country (code text);
         create view old_view as select * from note;
         create view new_view with (security_invoker = true) as select * from note;
         create materialized view kept as select * from note;
         {} {} {} {}
         drop policy biplane_tenant on silent;
         alter table unforced no force row level security;
         create policy support on talkative for select using (text like 'public%');
         grant select on all tables in schema public to {login}; grant truncate on emptied to {login}",
        RowPolicy::new("public", "unforced", "tenant_id").sql(),
        RowPolicy::new("public", "silent", "tenant_id").sql(),
        RowPolicy::new("public", "talkative", "tenant_id").sql(),
        RowPolicy::new("public", "emptied", "tenant_id").sql(),
    );
    world.cluster.sql(&home.database, &sql).await.unwrap();
    let named = [
        "note",
        "off",
        "unforced",
        "silent",
        "talkative",
        "emptied",
        "old_view",
        "new_view",
        "kept",
        "nowhere",
    ];
    let report = db.row_security_report(&named).await.unwrap();
    let table = |name: &str| name.to_owned();
    let expected = [
        RowSecurityGap::NoPolicy { table: table("off") },
        RowSecurityGap::NotEnabled { table: table("off") },
        RowSecurityGap::NotForced {
            table: table("unforced"),
        },
        RowSecurityGap::NoPolicy {
            table: table("silent"),
        },
        RowSecurityGap::PolicyIgnoresTenant {
            table: table("talkative"),
            policy: table("support"),
        },
        RowSecurityGap::MayTruncate {
            table: table("emptied"),
        },
        RowSecurityGap::NotATable {
            table: table("old_view"),
        },
        RowSecurityGap::NotATable { table: table("kept") },
        RowSecurityGap::Missing {
            table: table("nowhere"),
        },
    ];
    assert_eq!(report.gaps, expected);
    assert_eq!(report.open_to_all, ["public.country", "public.forgotten"]);
    assert!(!report.is_tight());
    for gap in &report.gaps {
        assert!(gap.to_string().len() > 20, "{gap}");
    }
}

#[tokio::test]
async fn the_report_says_when_policies_do_not_hold_for_the_role() {
    let (world, home, _resident, _biplane, db) = one(Isolation::Row).await;
    assert!(db.row_security_report(&["note"]).await.unwrap().is_tight());
    let bypass = format!("alter role {} bypassrls", home.login);
    world.cluster.sql("postgres", &bypass).await.unwrap();
    let report = db.row_security_report(&["note"]).await.unwrap();
    assert_eq!(report.gaps, [RowSecurityGap::RoleBypasses]);
}

/// It is about the role of the handle that asks.
#[tokio::test]
async fn each_role_has_a_report_of_its_own() {
    let (world, home, resident, _, _) = one(Isolation::Row).await;
    let service = format!("{}_service", home.login);
    let password = SecretString::from("service");
    let credential = world.cluster.create_role(&service, &password, &[]).await.unwrap();
    let grants = format!(
        "grant {} to {service}; alter role {service} bypassrls",
        home.login
    );
    world.cluster.sql(&home.database, &grants).await.unwrap();
    world.credentials.set(home.source, Role::Service, credential);
    let biplane = unaware(&world, crate::data_plane::options(2));
    let app = handle(&biplane, &resident).await;
    let report = app
        .with_role(Role::Service)
        .row_security_report(&["note"])
        .await
        .unwrap();
    assert_eq!(
        (report.role, report.gaps),
        (service, vec![RowSecurityGap::RoleBypasses])
    );
    assert!(app.row_security_report(&["note"]).await.unwrap().is_tight());
}
