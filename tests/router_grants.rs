//! A whole router works with the printed grants of a router, and with nothing more.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;
mod planes;

use std::time::Duration;

use biplane::{
    error::ErrorKind,
    keyring::LiveKeyring,
    presence::{Heartbeat, PRESUMED_DEAD, missing},
    repository::{Beat, Instances},
    tenant::{Domain, InstanceId, Role, TenantStatus},
};
use control::{ROUTER, owner, run, text};
use planes::{Planes, by, judge};

/// All that the role may do in the schema of the control plane, as the catalogue says.
async fn privileges(planes: &Planes) -> String {
    let mut owner = owner(&planes.control().database).await;
    let sql = format!(
        "select string_agg(held, ' ' order by held) from (
            select class.relname || ':' || grants.privilege_type as held
            from pg_class as class, aclexplode(class.relacl) as grants
            where class.relnamespace = 'biplane_control'::regnamespace
                and grants.grantee in (0, '{ROUTER}'::regrole)
            union all
            select 'function ' || routine.proname
            from pg_proc as routine, aclexplode(coalesce(routine.proacl, acldefault('f', routine.proowner))) as grants
            where routine.pronamespace = 'biplane_control'::regnamespace
                and grants.grantee in (0, '{ROUTER}'::regrole)
            union all
            select 'schema:' || grants.privilege_type
            from pg_namespace as namespace, aclexplode(namespace.nspacl) as grants
            where nspname = 'biplane_control' and grants.grantee in (0, '{ROUTER}'::regrole)
        ) as all_of_them"
    );
    text(&mut owner, &sql).await
}

#[tokio::test]
async fn the_printed_grants_are_reading_and_saying_that_it_lives() {
    let planes = Planes::postgres().await;
    assert_eq!(
        privileges(&planes).await,
        "change:SELECT credential:SELECT data_source:SELECT function beat function leave instance:SELECT \
         instance_key:SELECT meta:SELECT migration:SELECT schema:USAGE tenant:SELECT tenant_name:SELECT"
    );
}

#[tokio::test]
async fn a_router_routes_connects_and_follows_changes_with_them() {
    let planes = Planes::postgres().await;
    let home = planes.add("acme").await;
    let service = planes.add_without_login("service").await.login;
    planes.seal(&home, Role::Service, &service).await;
    let domain = Domain::parse("notes.acme.example").unwrap();
    let (admin, id) = (&planes.admin, home.tenant.id);
    let tenant = admin
        .add_domain(&by(), id, home.tenant.version, domain.clone())
        .await
        .unwrap();

    // The pool of the repository logs in as the role with these grants, and so does the check at the start.
    let control = planes.control().router.clone();
    let biplane = planes
        .builder()
        .refuse_misplaced(&control, ["note"])
        .build()
        .await
        .unwrap();
    let user: String = sqlx::query_scalar("select current_user::text")
        .fetch_one(&control)
        .await
        .unwrap();
    assert_eq!(user, ROUTER);

    for db in [
        biplane.route(&tenant.slug).await.unwrap(),
        biplane.route(id).await.unwrap(),
        biplane.route(&domain).await.unwrap(),
    ] {
        assert_eq!(db.tenant(), id);
        sqlx::query("insert into note (text) values ('x')")
            .execute(&db)
            .await
            .unwrap();
    }
    let held = biplane.route(id).await.unwrap();
    let suspended = TenantStatus::Suspended;
    let tenant = admin
        .set_status(&by(), id, tenant.version, suspended)
        .await
        .unwrap();
    biplane.invalidate(id).await;
    let refused = biplane.route(id).await.unwrap_err();
    let kind = ErrorKind::Inactive { status: suspended };
    assert_eq!(refused.kind(), kind);
    planes::judge_sqlx(sqlx::query("select 1").execute(&held).await, kind, "suspended");

    admin
        .set_status(&by(), id, tenant.version, TenantStatus::Active)
        .await
        .unwrap();
    biplane.invalidate(id).await;
    sqlx::query("select text from note")
        .fetch_all(&held)
        .await
        .unwrap();
    biplane.close(Duration::from_secs(5)).await;
}

/// With the pool and the login that it routes with.
#[tokio::test]
async fn a_router_says_that_it_lives_with_them() {
    let planes = Planes::postgres().await;
    let tenants = planes.control().pg_tenants();
    let keyring = LiveKeyring::new(planes.keyring.clone());
    let heartbeat = Heartbeat::builder(tenants.clone(), "notes")
        .keyring(keyring)
        .timeout(Duration::from_secs(60))
        .start()
        .unwrap();
    heartbeat.beat_now().await.unwrap();
    let key = planes.keyring.primary();
    let distribution = missing(&tenants, key, PRESUMED_DEAD).await.unwrap();
    assert!(distribution.is_everywhere());
    assert_eq!(distribution.ready[0].id, heartbeat.id());
    heartbeat.close(Duration::from_secs(60)).await.unwrap();
    assert_eq!(tenants.instances().await.unwrap(), []);

    let without =
        format!("revoke execute on function biplane_control.beat(uuid, text, bigint, jsonb) from {ROUTER}");
    run(&mut owner(&planes.control().database).await, without)
        .await
        .unwrap();
    let beat = Beat::new(InstanceId::new(), "notes");
    judge(
        &tenants.beat(&beat).await.unwrap_err(),
        ErrorKind::MissingPrivilege,
        "grants to routers",
    );
}

/// Each grant that a lookup needs, taken away: the caller hears of the privilege, and never that there is no tenant.
#[tokio::test]
async fn a_missing_grant_is_said_and_is_not_an_unknown_tenant() {
    for table in ["tenant", "tenant_name", "data_source", "credential"] {
        let planes = Planes::postgres().await;
        let home = planes.add("acme").await;
        let revoke = format!("revoke select on biplane_control.{table} from {ROUTER}");
        run(&mut owner(&planes.control().database).await, revoke)
            .await
            .unwrap();
        let refused = planes.biplane().route(&home.tenant.slug).await.unwrap_err();
        judge(&refused, ErrorKind::MissingPrivilege, "grants to routers");
    }
}
