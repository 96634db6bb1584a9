//! A role for each tenant of a shared database, and what it has to be.

use biplane::{
    error::ErrorKind,
    plane::{DataSchema, Fence, Finding, ReconcileMode, Recorded, Residence, RoleName},
    tenant::{Epoch, Isolation, TenantId},
};

use crate::support::*;

/// A tenant with a schema and a role of its own, as it is to be placed.
async fn with_role(home: &Home<'_>, epoch: u64) -> Residence {
    let tenant = TenantId::new();
    let name = format!("t_{}", tenant.to_string().replace('-', ""));
    let sql = format!("create role {name}; grant {name} to {APP}");
    run(&mut home.owner().await, sql).await.unwrap();
    with_schema(home, &name).await;
    Residence::new(tenant, Epoch::new(epoch), Isolation::Schema)
        .schema(&*name)
        .role(RoleName::parse(&name).unwrap())
}

async fn with_schema(home: &Home<'_>, name: &str) {
    let sql = format!(
        "create schema {name};
         create table {name}.bill (text text);
         insert into {name}.bill values ('of {name}');
         grant usage on schema {name} to {name};
         grant select, insert on {name}.bill to {name}"
    );
    run(&mut home.owner().await, sql).await.unwrap();
}

fn schema(residence: &Residence) -> &str {
    residence.schema.as_deref().unwrap()
}

#[tokio::test]
async fn a_role_per_tenant_keeps_qualified_names_apart_too_and_goes_where_the_tenant_goes() {
    let home = Home::empty(cluster().await).await;
    let (acme, globex) = (with_role(&home, 1).await, with_role(&home, 1).await);
    let mut owner = home.owner().await;
    let mut fence = Fence::new(&mut owner);
    for residence in [&acme, &globex] {
        fence.place(residence).await.unwrap();
        // Told again, nothing changes.
        fence.place(residence).await.unwrap();
    }
    let isolated = async |home: &Home<'_>, epoch: u64| {
        let mut app = home.app().await;
        let begin = format!("begin; {}", home.enter_as(acme.tenant, epoch));
        run(&mut app, &*begin).await.unwrap();
        assert_eq!(text(&mut app, "current_user").await, schema(&acme));
        let own = format!("select text from {}.bill", schema(&acme));
        assert_eq!(text(&mut app, &own).await, format!("of {}", schema(&acme)));
        assert_eq!(
            text(&mut app, "select text from bill").await,
            format!("of {}", schema(&acme))
        );
        let others = format!("select text from {}.bill", schema(&globex));
        assert_eq!(refused(&mut app, others).await, "42501");
        run(&mut app, "rollback").await.unwrap();
        assert_eq!(text(&mut app, "current_user").await, APP);
    };
    isolated(&home, 1).await;

    // A move, by what the old database knows of the tenant.
    let next = Home::empty(home.cluster).await;
    for residence in [&acme, &globex] {
        with_schema(&next, schema(residence)).await;
    }
    fence.fence(acme.tenant, Epoch::FIRST, &patient()).await.unwrap();
    let known = fence.residences().await.unwrap();
    let mut moved = known
        .into_iter()
        .find(|known| known.tenant == acme.tenant)
        .unwrap();
    assert_eq!(moved.role, acme.role);
    (moved.epoch, moved.state) = (Epoch::new(2), acme.state);
    Fence::new(&mut next.owner().await).place(&moved).await.unwrap();
    fence.leave(acme.tenant, Epoch::FIRST).await.unwrap();
    isolated(&next, 2).await;
}

#[tokio::test]
async fn a_role_that_is_not_fit_is_refused_and_the_error_says_what_is_missing() {
    let home = Home::empty(cluster().await).await;
    let fit = with_role(&home, 1).await;
    let other = |residence: &Residence, role: &str| {
        let residence = Residence::new(TenantId::new(), Epoch::FIRST, Isolation::Schema)
            .schema(format!("{}_else", schema(residence)));
        residence.role(RoleName::parse(role).unwrap())
    };
    let mut owner = home.owner().await;
    let mighty = format!("mighty_role_{}", home.database);
    let closed = format!("closed_role_{}", home.database);
    let sql = format!(
        "create role {mighty} superuser; create role {closed}; grant {closed} to {APP};
         create schema {closed}"
    );
    run(&mut owner, sql).await.unwrap();
    let lonely = with_role(&home, 1).await;
    run(
        &mut owner,
        format!("revoke {role} from {APP}", role = schema(&lonely)),
    )
    .await
    .unwrap();
    let mut fence = Fence::new(&mut owner);
    fence.place(&fit).await.unwrap();
    let alone = Residence::new(TenantId::new(), Epoch::FIRST, Isolation::Database);
    let mut unseen = other(&fit, &closed);
    unseen.schema = Some(closed.clone());
    for (residence, said) in [
        (other(&fit, "no_such_role"), "no_such_role does not exist"),
        (other(&fit, &mighty), "is a superuser or has BYPASSRLS"),
        (lonely.clone(), "app may enter and is not a member of the role"),
        (unseen, "has no USAGE on the schema"),
        (other(&fit, "pg_read_all_data"), "one of Postgres' own"),
        (other(&fit, schema(&fit)), "another tenant here"),
    ] {
        let error = fence.place(&residence).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{residence:?}: {error}");
        assert!(error.to_string().contains(said), "{residence:?}: {error}");
    }
    assert_eq!(fence.residences().await.unwrap().len(), 1);
    let empty = Home::empty(home.cluster).await;
    let error = Fence::new(&mut empty.owner().await)
        .place(&alone.role(RoleName::parse(schema(&fit)).unwrap()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("connect as that role"), "{error}");
    // Each says what to do, and then it goes.
    let sql = format!("grant {role} to {APP}", role = schema(&lonely));
    run(&mut home.owner().await, sql).await.unwrap();
    fence.place(&lonely).await.unwrap();
}

/// Roles are a server's: where a copy is restored there may be none, or nobody may take them on.
#[tokio::test]
async fn a_copy_whose_roles_are_not_here_stays_closed_and_says_so() {
    let home = Home::empty(cluster().await).await;
    let tenant = with_role(&home, 1).await;
    let mut owner = home.owner().await;
    Fence::new(&mut owner).place(&tenant).await.unwrap();
    let sql = format!(
        "revoke {role} from {APP};
         update biplane.database set timeline = '0000002A'; select biplane.keep_stamp()",
        role = schema(&tenant)
    );
    run(&mut owner, sql).await.unwrap();
    DataSchema::stamp(&mut owner, home.id).await.unwrap();
    let records = [Recorded::new(tenant.tenant, Epoch::FIRST, Isolation::Schema)];
    let reconcile = async |owner: &mut sqlx::PgConnection, mode| {
        let report = Fence::new(owner)
            .reconcile(home.id, &records, mode, &patient())
            .await
            .unwrap();
        report.findings.get(&tenant.tenant).copied()
    };
    let enter = home.enter_as(tenant.tenant, 1);
    for mode in [ReconcileMode::DryRun, ReconcileMode::Repair] {
        assert_eq!(reconcile(&mut owner, mode).await, Some(Finding::Role));
        assert_eq!(refused(&mut home.app().await, &*enter).await, "BP002");
    }
    let by_hand = format!("select biplane.confirm_v1('{}', 1, 'schema')", tenant.tenant);
    assert_eq!(refused(&mut owner, by_hand).await, "BP007");
    let sql = format!("grant {role} to {APP}", role = schema(&tenant));
    run(&mut owner, sql).await.unwrap();
    assert_eq!(
        reconcile(&mut owner, ReconcileMode::Repair).await,
        Some(Finding::Confirmed)
    );
    run(&mut home.app().await, enter).await.unwrap();
    assert_eq!(reconcile(&mut owner, ReconcileMode::Repair).await, None);
}
