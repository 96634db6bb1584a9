//! The control plane in Postgres passes the suite with exactly the grants that are printed, and does what only a real
//! server can show.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;

use std::{num::NonZeroU32, time::Duration};

use biplane::{
    error::ErrorKind,
    plane::{ControlDb, ControlOptions},
    repository::{
        Actor, ChangeLog, ControlSchema, NewSource, NewTenant, PgTenantAdmin, PgTenants, TenantAdmin,
        TenantRepository,
    },
    tenant::{DataSourceId, Endpoint, Isolation, Location, Server, Slug, Tenant, TenantRef},
    testing::conformance::{concurrency, within_a_minute},
};
use control::{damage, handle, login, owner, postgres, run, text};

biplane::repository_conformance!(postgres_control, postgres);
biplane::push_conformance!(postgres_push, postgres);
biplane::push_conformance!(postgres_push_of_slow_commits, slow);

async fn slow() -> control::Postgres {
    postgres().await.with_slow_commits().await
}

fn by() -> Actor {
    Actor::new("ann", "a test")
}

async fn tenant(admin: &PgTenantAdmin, name: &str, source: DataSourceId) -> Tenant {
    let mut new = NewTenant::new(Slug::parse(name).unwrap(), source);
    new.isolation = Isolation::Row;
    admin.create(&by(), new).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_misses_nothing_while_many_commit_slowly() {
    let backend = postgres().await.with_slow_commits().await;
    within_a_minute(concurrency::a_reader_misses_nothing_while_many_write(&backend)).await;
}

/// The one case in which a plain sequence loses an entry: written first, committed last.
#[tokio::test]
async fn a_change_that_commits_late_comes_late_in_the_log() {
    let backend = postgres().await;
    let (log, admin) = (backend.pg_tenants(), backend.pg_admin());
    let early = tenant(&admin, "early", DataSourceId::DEFAULT).await;
    let late = tenant(&admin, "late", DataSourceId::DEFAULT).await;
    let start = log.head().await.unwrap().seq;
    let mut held = owner(&backend.database).await;
    run(
        &mut held,
        format!(
            "begin; set local biplane.actor = 'ann'; set local biplane.reason = 'slow';
             update biplane_control.tenant set settings = '{{\"a\": 1}}' where id = '{}'",
            late.id
        ),
    )
    .await
    .unwrap();
    let settings = serde_json::json!({ "a": 1 });
    admin
        .set_settings(&by(), early.id, early.version, settings)
        .await
        .unwrap();
    let limit = NonZeroU32::new(10).unwrap();
    let first = log.since(start, limit).await.unwrap();
    assert_eq!(first.changes.len(), 1, "the other one is not committed");
    run(&mut held, "commit").await.unwrap();
    let second = log.since(first.head.seq, limit).await.unwrap();
    assert_eq!(second.changes.len(), 1, "it comes after what was seen");
    assert!(second.changes[0].seq > first.changes[0].seq);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_never_an_unknown_tenant() {
    let server = Server::new(Endpoint::new("127.0.0.1", 1), "nothing");
    let control = ControlDb::connect(ControlOptions::new(server, login("nobody"))).unwrap();
    let slug = Slug::parse("acme").unwrap();
    let tenants = PgTenants::new(control.clone());
    let admin = PgTenantAdmin::new(control.clone());
    let limit = NonZeroU32::MIN;
    let errors = [
        tenants.find(&[TenantRef::Slug(&slug)]).await.unwrap_err(),
        tenants.list(None, limit).await.unwrap_err(),
        tenants.head().await.unwrap_err(),
        admin.source("east").await.unwrap_err(),
        admin
            .create(&by(), NewTenant::new(slug, DataSourceId::DEFAULT))
            .await
            .unwrap_err(),
        ControlSchema::check(&control).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::ControlPlaneUnavailable, "{error:?}");
    }
}

#[tokio::test]
async fn a_login_that_is_refused_is_never_an_unknown_tenant() {
    let backend = postgres().await;
    let control = handle(&backend.database, login("nobody-of-this-name")).await;
    let slug = Slug::parse("acme").unwrap();
    let error = PgTenants::new(control)
        .find(&[TenantRef::Slug(&slug)])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ControlPlaneUnavailable);
    assert!(!format!("{error:?}").contains("nobody-of-this-name"));
}

#[tokio::test]
async fn without_the_schema_or_a_grant_the_error_says_so() {
    let database = control::database().await;
    let control = handle(&database, login(control::ROUTER)).await;
    let slug = Slug::parse("acme").unwrap();
    let names = [TenantRef::Slug(&slug)];
    let error = PgTenants::new(control.clone()).find(&names).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{error:?}");
    ControlSchema::install_on(&mut owner(&database).await, &biplane::repository::Grants::none())
        .await
        .unwrap();
    let error = PgTenants::new(control.clone()).find(&names).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege, "{error:?}");
    let error = ControlSchema::check(&control).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege, "{error:?}");
}

#[tokio::test]
async fn a_router_cannot_write_through_the_writing_trait() {
    let backend = postgres().await;
    let admin = PgTenantAdmin::new(backend.router.clone());
    let new = NewTenant::new(Slug::parse("acme").unwrap(), DataSourceId::DEFAULT);
    let error = admin.create(&by(), new).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
    let error = admin.prune_changes(Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
}

/// Each kind of damage, one tenant each, among others that are sound.
#[tokio::test]
async fn whatever_is_damaged_the_others_are_found() {
    let backend = postgres().await;
    let admin = backend.pg_admin();
    let mut tenants = Vec::new();
    for n in 0..12 {
        let new = NewSource::new(format!("source-{n}"), Location::Memory);
        let source = admin.create_source(&by(), new).await.unwrap();
        tenants.push(tenant(&admin, &format!("tenant-{n}"), source.id).await);
    }
    let mut owner = owner(&backend.database).await;
    let of_tenant = |n: usize, what: &str| {
        format!(
            "update biplane_control.tenant set {what} where id = '{}'",
            tenants[n].id
        )
    };
    let of_source = |n: usize, what: &str| {
        let source = tenants[n].placement.source;
        format!("update biplane_control.data_source set {what} where id = '{source}'")
    };
    let credential = |n: usize, role: &str, slot: &str| {
        let source = tenants[n].placement.source;
        format!("insert into biplane_control.credential values ('{source}', '{role}', '{slot}', 1, 'x')")
    };
    let damages = [
        ("tenant", "tenant_status", of_tenant(0, "status = 'bogus'")),
        ("tenant", "tenant_isolation", of_tenant(1, "isolation = 'planet'")),
        ("tenant", "tenant_slug_form", of_tenant(2, "slug = 'NOT A SLUG'")),
        ("tenant", "none", of_tenant(3, "domains = '{localhost}'")),
        (
            "tenant",
            "tenant_settings_object",
            of_tenant(4, "settings = '[]'"),
        ),
        ("tenant", "none", of_tenant(5, "settings = '{\"n\": 1e400}'")),
        ("tenant", "tenant_version", of_tenant(6, "version = -1")),
        ("data_source", "data_source_pool", of_source(7, "pool_max = 0")),
        (
            "data_source",
            "data_source_location",
            of_source(8, "location = 'moon'"),
        ),
        ("credential", "credential_role", credential(9, "root", "current")),
        ("credential", "credential_slot", credential(10, "app", "next")),
    ];
    damage(&mut owner, "credential", "credential_sealed", "").await;
    for (table, constraint, sql) in &damages {
        damage(&mut owner, table, constraint, sql).await;
    }
    let names: Vec<TenantRef<'_>> = tenants.iter().map(|tenant| TenantRef::Id(tenant.id)).collect();
    let found = backend.pg_tenants().find(&names).await.unwrap();
    for (n, found) in found.iter().enumerate() {
        match damages.get(n) {
            Some((_, _, sql)) => {
                let error = found.as_ref().expect_err(sql);
                assert_eq!(error.kind(), ErrorKind::MalformedRecord, "{sql}");
            }
            None => assert!(found.as_ref().unwrap().is_some()),
        }
    }
    let limit = NonZeroU32::new(100).unwrap();
    let page = backend.pg_tenants().list(None, limit).await.unwrap();
    assert_eq!(page.items.len(), tenants.len());
    let broken = page.items.iter().filter(|item| item.record.is_err()).count();
    assert_eq!(broken, damages.len());
    // Writing to a damaged record is refused too, and repairing it by hand opens it again.
    let renamed = admin
        .rename(
            &by(),
            tenants[0].id,
            tenants[0].version,
            Slug::parse("x").unwrap(),
        )
        .await;
    assert_eq!(renamed.unwrap_err().kind(), ErrorKind::MalformedRecord);
}

#[tokio::test]
async fn a_lookup_of_many_names_is_one_query() {
    let backend = postgres().await;
    let admin = backend.pg_admin();
    let mut tenants = Vec::new();
    for n in 0..5 {
        tenants.push(tenant(&admin, &format!("tenant-{n}"), DataSourceId::DEFAULT).await);
    }
    let (role, database) = (control::ROUTER, &backend.database);
    let log_all = format!("alter role {role} in database {database} set log_min_duration_statement = 0");
    run(&mut owner(database).await, log_all).await.unwrap();
    let names: Vec<TenantRef<'_>> = tenants
        .iter()
        .flat_map(|tenant| [TenantRef::Id(tenant.id), TenantRef::Slug(&tenant.slug)])
        .collect();
    let found = PgTenants::new(handle(database, login(role)).await)
        .find(&names)
        .await
        .unwrap();
    assert!(found.iter().all(|found| found.as_ref().unwrap().is_some()));
    let log = control::cluster().await.log().unwrap();
    let asked = log
        .lines()
        .filter(|line| line.contains("execute") && line.contains("wanted"));
    assert_eq!(asked.count(), 1, "{log}");
}

#[tokio::test]
async fn pruning_keeps_what_is_young() {
    let backend = postgres().await;
    let admin = backend.pg_admin();
    tenant(&admin, "acme", DataSourceId::DEFAULT).await;
    assert_eq!(admin.prune_changes(Duration::from_secs(3_600)).await.unwrap(), 0);
    assert_eq!(admin.prune_changes(Duration::MAX).await.unwrap(), 0);
    assert_eq!(admin.prune_changes(Duration::ZERO).await.unwrap(), 2);
    let mut owner = owner(&backend.database).await;
    assert_eq!(
        text(&mut owner, "select pruned_through from biplane_control.meta").await,
        "2"
    );
}

#[tokio::test]
async fn errors_quote_neither_values_nor_sql() {
    let backend = postgres().await;
    let mut owner = owner(&backend.database).await;
    run(
        &mut owner,
        "create function biplane_control.canary() returns trigger language plpgsql as $f$
         begin raise exception 'canary-message' using errcode = 'ZZ123', detail = 'canary-detail'; end $f$;
         create trigger canary before insert on biplane_control.tenant
         for each row execute function biplane_control.canary()",
    )
    .await
    .unwrap();
    let new = NewTenant::new(Slug::parse("canary-slug").unwrap(), DataSourceId::DEFAULT);
    let error = backend.pg_admin().create(&by(), new).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Database);
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("ZZ123"), "{shown}");
    assert!(!shown.contains("canary") && !shown.contains("insert"), "{shown}");
}
