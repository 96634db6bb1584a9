//! A control plane that cannot be asked: nobody is told that there is no such tenant.

use std::time::Duration;

use biplane::{
    Biplane,
    error::ErrorKind,
    plane::{ControlDb, ControlOptions, RoleName},
    repository::{ControlSchema, Grants, PgTenants, TenantRepository},
    router::CacheOptions,
    secret::Credential,
    tenant::{Domain, TenantId, TenantRef},
    testing::{
        faulty::{Fault, FaultyRepository},
        postgres::Cluster,
    },
};
use secrecy::SecretString;

use crate::{
    control::{self, ROUTER, cluster, login, owner, run},
    planes::{CANARY, Planes, judge, keyring, slug},
    refused, works, works_again,
};

/// A control plane on a server of its own, which may die, over a tenant's database on the one that stays.
#[tokio::test]
async fn a_control_plane_that_was_killed() {
    let planes = Planes::postgres().await;
    let home = planes.add("acme").await;
    let mortal = Cluster::start().await.unwrap();
    mortal.create_database("control").await.unwrap();
    let password = SecretString::from(format!("{CANARY}-router"));
    let router = mortal.create_role("router", &password, &[]).await.unwrap();
    let grants = Grants::none().router(RoleName::parse("router").unwrap());
    let mut owner = mortal.connect("control").await.unwrap();
    ControlSchema::install_on(&mut owner, &grants).await.unwrap();
    copy_tenants(&planes, &mut owner).await;
    drop(owner);

    let control = ControlDb::connect(ControlOptions::new(mortal.server("control"), router)).unwrap();
    let biplane = Biplane::postgres(PgTenants::new(control.clone()), planes.keyring.clone())
        .build()
        .unwrap();
    let held = biplane.route(&home.tenant.slug).await.unwrap();
    works(&held).await;

    mortal.kill().await.unwrap();
    biplane.invalidate(home.tenant.id).await;
    let (kind, advice) = (
        ErrorKind::ControlPlaneUnavailable,
        "could not be asked; try again",
    );
    // A name that exists, one that does not, and one never asked for: nobody can tell them apart now.
    let domain = Domain::parse("acme.example").unwrap();
    for _ in 0..2 {
        judge(&biplane.route(&home.tenant.slug).await.unwrap_err(), kind, advice);
        judge(&biplane.route(&slug("nobody")).await.unwrap_err(), kind, advice);
        judge(&biplane.route(&domain).await.unwrap_err(), kind, advice);
        judge(&biplane.route(TenantId::new()).await.unwrap_err(), kind, advice);
    }
    refused(&held, kind, advice).await;
    let misplaced = control.misplaced_tables(&["note"]).await.unwrap_err();
    judge(&misplaced, kind, advice);
    let tenants = PgTenants::new(control.clone());
    judge(
        &tenants.find(&[TenantRef::Id(home.tenant.id)]).await.unwrap_err(),
        kind,
        advice,
    );
    judge(&ControlSchema::check(&control).await.unwrap_err(), kind, advice);

    mortal.start_again().await.unwrap();
    works_again(&held).await;
    works(&biplane.route(&home.tenant.slug).await.unwrap()).await;
    let unknown = biplane.route(&slug("nobody")).await.unwrap_err();
    judge(&unknown, ErrorKind::UnknownTenant, "no such tenant");
}

/// The rows of one control plane in another one, by SQL, as a restored backup has them.
async fn copy_tenants(from: &Planes, to: &mut sqlx::PgConnection) {
    let mut source = owner(&from.control().database).await;
    let mut sql = String::from("set session_replication_role = replica;");
    for table in ["data_source", "credential", "tenant", "tenant_name"] {
        let rows: String = control::text(
            &mut source,
            &format!("select coalesce(jsonb_agg(t), '[]') from biplane_control.{table} as t"),
        )
        .await;
        let rows = rows.replace('\'', "''");
        sql.push_str(&format!(
            "delete from biplane_control.{table};
             insert into biplane_control.{table}
             select * from jsonb_populate_recordset(null::biplane_control.{table}, '{rows}');"
        ));
    }
    run(to, sql).await.unwrap();
}

#[tokio::test]
async fn a_control_plane_that_never_answers() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = cluster().await.server("control");
    server.endpoints[0].port = listener.local_addr().unwrap().port();
    let control = ControlDb::connect(ControlOptions::new(server, login(ROUTER))).unwrap();
    let options = CacheOptions::default().load_timeout(Duration::from_millis(200));
    let biplane: Biplane = Biplane::postgres(PgTenants::new(control), keyring())
        .cache(options)
        .build()
        .unwrap();
    let unanswered = biplane.route(&slug("acme")).await.unwrap_err();
    judge(&unanswered, ErrorKind::ControlPlaneUnavailable, "try again");
}

#[tokio::test]
async fn a_control_plane_that_refuses_the_login() {
    let database = control::database().await;
    let wrong = Credential::new(ROUTER, SecretString::from("canary-wrong")).unwrap();
    let biplane: Biplane =
        Biplane::postgres(PgTenants::new(control::handle(&database, wrong).await), keyring())
            .build()
            .unwrap();
    let refused = biplane.route(&slug("acme")).await.unwrap_err();
    judge(
        &refused,
        ErrorKind::ControlPlaneUnavailable,
        "refused the credential",
    );
}

#[tokio::test]
async fn a_control_plane_without_its_schema() {
    let database = control::database().await;
    let control = control::handle(&database, login(ROUTER)).await;
    let biplane: Biplane = Biplane::postgres(PgTenants::new(control), keyring())
        .build()
        .unwrap();
    let missing = biplane.route(&slug("acme")).await.unwrap_err();
    judge(&missing, ErrorKind::SchemaMismatch, "install or migrate it");
}

#[tokio::test]
async fn a_control_plane_in_memory_that_cannot_be_asked() {
    let planes = Planes::memory().await;
    let home = planes.add("acme").await;
    let faulty = FaultyRepository::new(planes.tenants.clone());
    let biplane = Biplane::postgres(faulty.clone(), planes.keyring.clone())
        .build()
        .unwrap();
    let held = biplane.route(&home.tenant.slug).await.unwrap();
    works(&held).await;
    faulty.set(Fault::Unreachable);
    biplane.invalidate(home.tenant.id).await;
    let (kind, advice) = (
        ErrorKind::ControlPlaneUnavailable,
        "could not be asked; try again",
    );
    judge(&biplane.route(&home.tenant.slug).await.unwrap_err(), kind, advice);
    judge(&biplane.route(&slug("nobody")).await.unwrap_err(), kind, advice);
    refused(&held, kind, advice).await;
    faulty.set(Fault::None);
    works_again(&held).await;
    judge(
        &biplane.route(&slug("nobody")).await.unwrap_err(),
        ErrorKind::UnknownTenant,
        "no such",
    );
}
