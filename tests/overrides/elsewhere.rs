//! Where connections lead when the control plane is restored, or one file follows another; and who notices.

use std::time::Duration;

use biplane::{
    breaker::{BreakerScope, BreakerState},
    error::{Error, ErrorKind},
    plane::{DataSchema, Fence, Residence, RoleName, TenantDb},
    pool::{BreakerOptions, PoolOptions},
    repository::{ChangeSource, ControlSchema, NewSource, NewTenant, SourceChange},
    tenant::{DatabaseId, Isolation, Location, PoolSettings, Role, Tenant, TenantStatus},
    testing::wait,
};
use serde_json::{Value, json};

use crate::{
    Desk, PATIENCE,
    control::{cluster, grants, owner, pg_dump, psql, run, text},
    copy_of, database_of, file, listed, often,
    planes::{Home, Planes, by, slug},
    until_overridden, with,
};

async fn until_at(db: &TenantDb, database: &str) {
    wait::until(format!("it is led to {database}"), PATIENCE, async || {
        let found = sqlx::query_scalar("select current_database()::text")
            .fetch_one(db)
            .await;
        found.is_ok_and(|found: String| found == database)
    })
    .await
    .unwrap();
}

/// The backup of the control plane says what the data source was long ago, with the versions of then.
#[tokio::test]
async fn a_control_plane_that_was_restored_leads_connections_to_where_it_says() {
    let planes = Planes::postgres().await;
    let acme = planes.add("acme").await;
    let standby = copy_of(&acme, "standby", acme.database_id).await;
    let control = &planes.control().database;
    let dump = pg_dump(control, &[]).await;
    let log = ChangeSource::polled(planes.control().pg_tenants());
    let biplane = planes.builder().changes(log).feed(often()).build().unwrap();
    let db = biplane.route(acme.tenant.id).await.unwrap();
    assert_eq!(database_of(&db).await, acme.database);
    let to = async |database: &str| {
        let source = planes.source(&acme).await;
        let change = SourceChange::default().location(Location::Server(cluster().await.server(database)));
        let changed = planes
            .admin
            .update_source(&by(), source.id, source.version, change)
            .await;
        changed.unwrap().version
    };
    let mut before = to(&standby).await;
    for database in [&acme.database, &standby] {
        before = to(database).await;
    }
    until_at(&db, &standby).await;

    let mut superuser = owner("postgres").await;
    for sql in [
        format!("drop database {control} with (force)"),
        format!("create database {control}"),
    ] {
        run(&mut superuser, sql).await.unwrap();
    }
    let another_life = "update biplane_control.meta set incarnation = gen_random_uuid()";
    psql(control, &format!("begin;\n{dump}\n{another_life};\ncommit;\n"))
        .await
        .unwrap();
    psql(control, &ControlSchema::install_sql(&grants()))
        .await
        .unwrap();
    wait::until("the control plane is back", PATIENCE, async || {
        planes.admin.source(acme.tenant.slug.as_str()).await.is_ok()
    })
    .await
    .unwrap();
    assert!(planes.source(&acme).await.version < before);
    until_at(&db, &acme.database).await;
    assert_eq!(biplane.stats().feed.resyncs, 1);

    // Believed once, and then by its versions again.
    assert!(to(&standby).await < before);
    until_at(&db, &standby).await;
    biplane.close(PATIENCE).await;
}

/// An entry that serves the tenant by itself, whose data source has the lowest of versions.
fn whole(planes: &Planes, home: &Home, listed: Value) -> Value {
    let sealed = planes
        .keyring
        .seal_credential(home.source, Role::App, &home.login)
        .unwrap();
    let credentials = json!({ "app": { "version": 1, "sealed": sealed.as_str() } });
    with(
        listed,
        json!({ "id": home.source, "database_id": home.database_id, "credentials": credentials }),
    )
}

#[tokio::test]
async fn one_file_after_the_other_leads_to_where_the_last_one_says() {
    let planes = Planes::memory().await;
    let acme = planes.add("acme").await;
    let first = copy_of(&acme, "first", acme.database_id).await;
    let second = copy_of(&acme, "second", acme.database_id).await;
    let entry = json!([{ "tenant": acme.tenant.id, "source": "standby" }]);
    let cloned = json!([listed("standby", &first).await]);
    let by_itself = json!([whole(&planes, &acme, listed("standby", &second).await)]);
    let desk = Desk::new();
    let biplane = desk.router(&planes);
    let db = biplane.route(acme.tenant.id).await.unwrap();
    assert_eq!(database_of(&db).await, acme.database);
    for _ in 0..2 {
        desk.put(file(cloned.clone(), entry.clone()), 0o600);
        until_at(&db, &first).await;
        desk.put(file(by_itself.clone(), entry.clone()), 0o600);
        until_at(&db, &second).await;
        // And it stays there, whoever still had the route of before.
        assert_eq!(database_of(&db).await, second);
    }
    desk.remove();
    until_at(&db, &acme.database).await;
    desk.put(file(cloned, entry), 0o600);
    until_at(&db, &first).await;
    biplane.close(PATIENCE).await;
}

/// Two tenants of one data source.
struct Two {
    acme: Tenant,
    beside: Tenant,
    database: String,
    database_id: DatabaseId,
    login: RoleName,
}

impl Two {
    async fn on_one_source(planes: &Planes) -> Self {
        let home = planes.add("home").await;
        let login = RoleName::parse(home.login.username()).unwrap();
        let (database, database_id) = (format!("shared_{}", home.database), DatabaseId::new());
        cluster().await.create_database(&database).await.unwrap();
        let mut source = NewSource::new("shared", Location::Server(cluster().await.server(&database)));
        source.database_id = Some(database_id);
        source.pool = PoolSettings::new(2, 10).unwrap();
        let source = planes.admin.create_source(&by(), source).await.unwrap().id;
        let on_it = Home { source, ..home };
        planes.seal(&on_it, Role::App, &on_it.login).await;
        let tenant = async |name| {
            let mut new = NewTenant::new(slug(name), source);
            new.isolation = Isolation::Row;
            let tenant = planes.admin.create(&by(), new).await.unwrap();
            let open = TenantStatus::Active;
            let tenant = planes
                .admin
                .set_status(&by(), tenant.id, tenant.version, open)
                .await;
            tenant.unwrap()
        };
        let two = Self {
            acme: tenant("acme").await,
            beside: tenant("beside").await,
            database,
            database_id,
            login,
        };
        two.settle_in(&two.database).await;
        two
    }

    /// Lets both live in a database, which is a copy of theirs.
    async fn settle_in(&self, database: &str) {
        let mut owner = owner(database).await;
        let logins = std::slice::from_ref(&self.login);
        DataSchema::install(&mut owner, self.database_id, logins)
            .await
            .unwrap();
        for tenant in [&self.acme, &self.beside] {
            let home = Residence::new(tenant.id, tenant.placement.epoch, Isolation::Row);
            Fence::new(&mut owner).place(&home).await.unwrap();
        }
    }

    async fn copy(&self, name: &str) -> String {
        let database = format!("{name}_{}", self.database);
        cluster().await.create_database(&database).await.unwrap();
        self.settle_in(&database).await;
        database
    }
}

#[tokio::test]
async fn what_fails_where_a_file_leads_is_nobody_elses_failure() {
    let planes = Planes::memory().await;
    let two = Two::on_one_source(&planes).await;
    let (acme, beside, right) = (&two.acme, &two.beside, two.copy("right").await);
    let day = Duration::from_secs(86_400);
    let desk = Desk::new();
    let mut patient = PoolOptions::default();
    (patient.connect_timeout, patient.wait_timeout) = (PATIENCE, PATIENCE);
    let biplane = planes
        .builder()
        .feed(often())
        .overrides(desk.path())
        .pool(patient)
        .breakers(BreakerOptions::default().back_off(day, day))
        .build()
        .unwrap();
    let of_acme = biplane.route(acme.id).await.unwrap();
    let of_beside = biplane.route(beside.id).await.unwrap();
    let mut held = vec![of_beside.begin().await.unwrap()];
    for (name, source) in [
        ("a database that is missing", listed("standby", "nowhere").await),
        (
            "the login of the data source",
            with(
                listed("other", "nowhere_else").await,
                json!({ "login_of": "shared" }),
            ),
        ),
    ] {
        let entry = json!([{ "tenant": acme.id, "source": source["name"] }]);
        desk.put(
            with(file(json!([source]), entry), json!({ "reason": name })),
            0o600,
        );
        wait::until("the file is in force", PATIENCE, async || {
            biplane.overrides().reason.as_deref() == Some(name)
        })
        .await
        .unwrap();
        wait::until(format!("{name} fails"), PATIENCE, async || {
            let failed = of_acme.begin().await.err();
            failed
                .and_then(|error| Error::of(&error).map(Error::kind))
                .is_some_and(|kind| matches!(kind, ErrorKind::DatabaseUnavailable { retry_after: Some(_) }))
        })
        .await
        .unwrap();
        // A new connection each time, with the login that the file rests on.
        held.push(of_beside.begin().await.unwrap());
    }
    let open = biplane.breakers().into_iter();
    let open: Vec<_> = open
        .filter(|one| matches!(one.state, BreakerState::Open { .. }))
        .collect();
    assert!(!open.is_empty());
    for status in open {
        let BreakerScope::Login { tenant, .. } = status.scope else {
            panic!("{status:?}");
        };
        assert_eq!(tenant, Some(acme.id));
    }
    drop(held);
    // What is corrected counts at once, whatever was wrong before.
    let entry = json!([{ "tenant": acme.id, "source": "right" }]);
    desk.put(file(json!([listed("right", &right).await]), entry), 0o644);
    until_at(&of_acme, &right).await;
    desk.remove();
    until_at(&of_acme, &two.database).await;
}

#[tokio::test]
async fn the_connections_of_an_override_that_was_lifted_are_closed() {
    let planes = Planes::memory().await;
    let two = Two::on_one_source(&planes).await;
    let (acme, beside, lifted) = (&two.acme, &two.beside, two.copy("lifted").await);
    let desk = Desk::new();
    let biplane = desk.router(&planes);
    let db = biplane.route(acme.id).await.unwrap();
    let of_beside = biplane.route(beside.id).await.unwrap();
    assert_eq!(database_of(&of_beside).await, two.database);
    let entry = json!([{ "tenant": acme.id, "source": "standby" }]);
    desk.put(file(json!([listed("standby", &lifted).await]), entry), 0o644);
    until_at(&db, &lifted).await;
    assert_eq!(biplane.stats().connector.pools, 2);

    desk.remove();
    until_overridden(&biplane, 0).await;
    let mut watch = owner("postgres").await;
    let sessions = format!("select count(*) from pg_stat_activity where datname = '{lifted}'");
    // Though its data source is to keep two.
    wait::until("they are closed, and nothing is kept", PATIENCE, async || {
        text(&mut watch, &sessions).await == "0" && biplane.stats().connector.pools == 1
    })
    .await
    .unwrap();
    assert_eq!(database_of(&of_beside).await, two.database);
}
