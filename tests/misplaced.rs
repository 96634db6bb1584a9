//! Tables of one plane that are still readable through the other are found, and a router refuses to start over them.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;
mod planes;

use biplane::{
    error::ErrorKind,
    plane::{ControlDb, TenantDb},
    tenant::Role,
};
use control::{ROUTER, owner, run};
use planes::{Home, Planes};

/// A control plane into whose database the owner puts something.
async fn with(sql: &str) -> (Planes, ControlDb) {
    let planes = Planes::postgres().await;
    let control = planes.control();
    run(&mut owner(&control.database).await, sql).await.unwrap();
    let router = control.router.clone();
    (planes, router)
}

async fn found(control: &ControlDb, names: &[&str]) -> Vec<String> {
    control.misplaced_tables(names).await.unwrap()
}

/// A tenant's handle, and what its role can read in its database.
async fn tenant_with(sql: impl FnOnce(&str) -> String) -> (Home, TenantDb) {
    let planes = Planes::postgres().await;
    let home = planes.add("acme").await;
    let sql = sql(home.login.username());
    run(&mut owner(&home.database).await, sql).await.unwrap();
    let db = planes.biplane().route(&home.tenant.slug).await.unwrap();
    (home, db)
}

#[tokio::test]
async fn an_old_table_that_the_control_role_can_read_is_found() {
    let (_planes, control) = with(&format!(
        "create table note (id int); create table invoice (id int); create table kept (id int);
         grant select on note, invoice to {ROUTER}"
    ))
    .await;
    let names = ["invoice", "absent", "kept", "note"];
    assert_eq!(found(&control, &names).await, ["invoice", "note"]);
    assert_eq!(found(&control, &["public.note"]).await, ["public.note"]);
    assert_eq!(found(&control, &[]).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_table_that_it_cannot_read_is_not() {
    let (_planes, control) = with(&format!(
        "create table note (id int);
         create table written (id int); grant insert, update, delete on written to {ROUTER}"
    ))
    .await;
    assert_eq!(found(&control, &["note", "written"]).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_grant_to_everybody_counts() {
    let (_planes, control) = with("create table note (id int); grant select on note to public").await;
    assert_eq!(found(&control, &["note"]).await, ["note"]);
}

#[tokio::test]
async fn one_readable_column_is_enough() {
    let (_planes, control) = with(&format!(
        "create table note (id int, text text); grant select (text) on note to {ROUTER};
         create table other (id int, text text); grant update (text) on other to {ROUTER}"
    ))
    .await;
    assert_eq!(found(&control, &["note", "other"]).await, ["note"]);
}

#[tokio::test]
async fn without_usage_of_the_schema_a_table_is_out_of_reach() {
    let (planes, control) = with(&format!(
        "create schema shop; create table shop.note (id int); grant select on shop.note to {ROUTER}"
    ))
    .await;
    assert_eq!(
        found(&control, &["note", "shop.note"]).await,
        Vec::<String>::new()
    );
    let usage = format!("grant usage on schema shop to {ROUTER}");
    run(&mut owner(&planes.control().database).await, usage)
        .await
        .unwrap();
    assert_eq!(
        found(&control, &["note", "shop.note"]).await,
        ["note", "shop.note"]
    );
}

#[tokio::test]
async fn a_qualified_name_means_that_schema_alone() {
    let (_planes, control) = with(&format!(
        "create schema shop; create table shop.note (id int); create table note (id int);
         grant usage on schema shop to {ROUTER}; grant select on shop.note to {ROUTER}"
    ))
    .await;
    assert_eq!(found(&control, &["public.note"]).await, Vec::<String>::new());
    assert_eq!(found(&control, &["shop.note"]).await, ["shop.note"]);
}

#[tokio::test]
async fn a_name_in_two_schemas_is_said_once_and_case_counts() {
    let (_planes, control) = with(&format!(
        "create schema shop; create table shop.note (id int); create table note (id int);
         create table \"Odd.Name\" (id int); grant usage on schema shop to {ROUTER};
         grant select on shop.note, note, \"Odd.Name\" to {ROUTER}"
    ))
    .await;
    let names = ["note", "NOTE", "Odd.Name", "odd.name"];
    assert_eq!(found(&control, &names).await, ["note", "Odd.Name"]);
}

#[tokio::test]
async fn views_and_partitioned_tables_are_tables_too() {
    let (_planes, control) = with(&format!(
        "create table hidden (id int);
         create view seen as select * from hidden;
         create materialized view kept as select * from hidden;
         create table parted (id int) partition by list (id);
         create table parted_1 partition of parted for values in (1);
         create sequence counter;
         grant select on seen, kept, parted, counter to {ROUTER}"
    ))
    .await;
    let names = ["hidden", "seen", "kept", "parted", "parted_1", "counter"];
    assert_eq!(found(&control, &names).await, ["seen", "kept", "parted"]);
}

#[tokio::test]
async fn tables_of_the_control_plane_are_found_through_a_tenants_handle() {
    let (_home, db) = tenant_with(|role| {
        format!(
            "create schema biplane_control; create table biplane_control.tenant (id int);
             create table biplane_control.credential (id int); create table users (id int);
             grant usage on schema biplane_control to {role};
             grant select on biplane_control.tenant, users to {role}"
        )
    })
    .await;
    let names = [
        "biplane_control.tenant",
        "biplane_control.credential",
        "users",
        "sessions",
    ];
    let misplaced = db.misplaced_tables(&names).await.unwrap();
    assert_eq!(misplaced, ["biplane_control.tenant", "users"]);
}

#[tokio::test]
async fn in_its_own_place_a_tenants_database_has_nothing_of_the_control_plane() {
    let (_home, db) = tenant_with(|_| "select".into()).await;
    let names = ["tenant", "tenant_name", "data_source", "credential", "audit"];
    assert_eq!(db.misplaced_tables(&names).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_router_refuses_to_start_and_names_the_tables() {
    let (planes, control) = with(&format!(
        "create table note (id int); create table invoice (id int); create table customer (id int);
         grant select on note, customer to {ROUTER}"
    ))
    .await;
    let home = planes.add("acme").await;
    let tables = ["note", "invoice", "customer"];
    let refused = planes
        .builder()
        .refuse_misplaced(&control, tables)
        .build()
        .await
        .unwrap_err();
    let kind = ErrorKind::MisplacedTables;
    planes::judge(
        &refused,
        kind,
        "can read note, customer; drop them there or revoke SELECT",
    );
    assert!(!refused.to_string().contains("invoice"), "{refused}");

    let away = format!("drop table note; revoke select on customer from {ROUTER}");
    run(&mut owner(&planes.control().database).await, away)
        .await
        .unwrap();
    let biplane = planes
        .builder()
        .refuse_misplaced(&control, tables)
        .build()
        .await
        .unwrap();
    let db = biplane.route(&home.tenant.slug).await.unwrap();
    assert_eq!(db.role(), Role::App);
    sqlx::query("insert into note (text) values ('at home')")
        .execute(&db)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_check_that_could_not_ask_is_no_permission_to_start() {
    let (planes, control) = with("create table note (id int)").await;
    control.close(std::time::Duration::from_secs(1)).await;
    let refused = planes
        .builder()
        .refuse_misplaced(&control, ["note"])
        .build()
        .await;
    planes::judge(&refused.unwrap_err(), ErrorKind::Closed, "closed");
}
