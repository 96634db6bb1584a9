//! The override file: for the day on which the control plane is gone or wrong, on real databases.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;
#[path = "overrides/elsewhere.rs"]
mod elsewhere;
#[path = "overrides/files.rs"]
mod files;
#[path = "overrides/looked_up_again.rs"]
mod looked_up_again;
mod planes;

use std::{os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use biplane::{
    Biplane,
    error::ErrorKind,
    plane::{DataSchema, Fence, Residence, RoleName, TenantDb},
    repository::{CredentialSlot, NewSource},
    router::{CacheOptions, Clock, FeedOptions},
    tenant::{DatabaseId, Isolation, Location, Role, TenantId, TenantStatus},
    testing::{
        faulty::{Fault, FaultyRepository},
        wait,
    },
};
use control::{cluster, owner};
use planes::{Home, Planes, by, judge};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A place for the file, which is looked at fifty times a second.
pub(crate) struct Desk {
    directory: tempfile::TempDir,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("overrides.json")
    }

    /// A router that looks at it often.
    pub(crate) fn router(&self, planes: &Planes) -> Biplane {
        let builder = planes.builder().feed(often());
        builder.overrides(self.path()).build().unwrap()
    }

    /// Puts a file in place, whole.
    pub(crate) fn put(&self, text: impl ToString, mode: u32) {
        let new = self.directory.path().join("new");
        std::fs::write(&new, text.to_string()).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }

    fn remove(&self) {
        std::fs::remove_file(self.path()).unwrap();
    }
}

pub(crate) fn often() -> FeedOptions {
    FeedOptions::default().interval(Duration::from_millis(20))
}

/// A file with these sources and tenants.
pub(crate) fn file(sources: Value, tenants: Value) -> Value {
    json!({ "by": "ann", "reason": "INC-7", "sources": sources, "tenants": tenants })
}

/// A source of the file's own, at this database of the cluster.
async fn listed(name: &str, database: &str) -> Value {
    let endpoint = cluster().await.endpoint();
    json!({
        "name": name, "endpoints": [{ "host": &*endpoint.host, "port": endpoint.port }],
        "database": database, "tls": "disable"
    })
}

fn with(mut object: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        object[name] = value.clone();
    }
    object
}

/// A copy of a tenant's database, as a standby that was promoted: the same login, and the same identity.
async fn copy_of(home: &Home, name: &str, database_id: DatabaseId) -> String {
    let database = format!("copy_{name}_{}", home.database);
    cluster().await.create_database(&database).await.unwrap();
    let mut owner = owner(&database).await;
    let role = RoleName::parse(home.login.username()).unwrap();
    DataSchema::install(&mut owner, database_id, &[role])
        .await
        .unwrap();
    let tenant = &home.tenant;
    Fence::new(&mut owner)
        .place(&Residence::new(
            tenant.id,
            tenant.placement.epoch,
            Isolation::Database,
        ))
        .await
        .unwrap();
    database
}

async fn database_of(db: &TenantDb) -> String {
    sqlx::query_scalar("select current_database()::text")
        .fetch_one(db)
        .await
        .unwrap()
}

async fn until_overridden(biplane: &Biplane, tenants: usize) {
    wait::until("the overrides are in force", PATIENCE, async || {
        biplane.overrides().tenants == tenants && biplane.overrides().refused.is_none()
    })
    .await
    .unwrap();
}

async fn until_refused(biplane: &Biplane) {
    wait::until("the file is refused", PATIENCE, async || {
        biplane.overrides().refused.is_some()
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_file_leads_a_tenant_elsewhere_and_without_it_the_tenant_is_back_at_once() {
    let planes = Planes::memory().await;
    let (acme, other) = (planes.add("acme").await, planes.add("other").await);
    let standby = copy_of(&acme, "standby", acme.database_id).await;
    let desk = Desk::new();
    let biplane = desk.router(&planes);
    let (held, beside) = (
        biplane.route(acme.tenant.id).await.unwrap(),
        biplane.route(other.tenant.id).await.unwrap(),
    );
    assert_eq!(database_of(&held).await, acme.database);
    assert_eq!(held.is_overridden(), Some(false));
    assert_eq!(biplane.overrides().tenants, 0);
    assert_eq!(biplane.overrides().in_force_for, None);

    let tenants = json!([{ "tenant": acme.tenant.id, "source": "standby" }]);
    desk.put(file(json!([listed("standby", &standby).await]), tenants), 0o644);
    until_overridden(&biplane, 1).await;
    // Who asks by whatever name, and who has had a handle all along.
    assert_eq!(database_of(&held).await, standby);
    let anew = biplane.route(&acme.tenant.slug).await.unwrap();
    assert_eq!(database_of(&anew).await, standby);
    assert_eq!(
        (held.is_overridden(), anew.is_overridden()),
        (Some(true), Some(true))
    );
    assert_eq!(database_of(&beside).await, other.database);
    assert_eq!(beside.is_overridden(), Some(false));
    let health = biplane.overrides();
    assert_eq!(health.file.as_deref(), Some(&*desk.path()));
    assert_eq!(
        (health.by.as_deref(), health.reason.as_deref()),
        (Some("ann"), Some("INC-7"))
    );
    assert!(health.in_force_for.is_some() && health.refused_for.is_none());
    assert_eq!(biplane.stats().overridden_tenants, 1);

    desk.remove();
    until_overridden(&biplane, 0).await;
    assert_eq!(database_of(&held).await, acme.database);
    assert_eq!(database_of(&anew).await, acme.database);
    assert_eq!(held.is_overridden(), Some(false));
    assert_eq!(
        (
            biplane.stats().overridden_tenants,
            biplane.overrides().in_force_for
        ),
        (0, None)
    );
    biplane.close(PATIENCE).await;
}

#[tokio::test]
async fn a_file_that_is_there_at_the_start_counts_for_the_first_caller() {
    let planes = Planes::memory().await;
    let acme = planes.add("acme").await;
    let standby = copy_of(&acme, "standby", acme.database_id).await;
    let desk = Desk::new();
    let tenants = json!([{ "tenant": acme.tenant.id, "source": "standby" }]);
    desk.put(file(json!([listed("standby", &standby).await]), tenants), 0o644);
    let biplane = planes.builder().overrides(desk.path()).build().unwrap();
    let db = biplane.route(&acme.tenant.slug).await.unwrap();
    assert_eq!(database_of(&db).await, standby);
}

#[tokio::test]
async fn a_data_source_of_the_control_plane_is_named_by_its_name_or_id() {
    let planes = Planes::postgres().await;
    let acme = planes.add("acme").await;
    let standby = copy_of(&acme, "standby", acme.database_id).await;
    let new = NewSource::new("standby", Location::Server(cluster().await.server(&standby)));
    let source = planes.admin.create_source(&by(), new).await.unwrap().id;
    let sealed = planes
        .keyring
        .seal_credential(source, Role::App, &acme.login)
        .unwrap();
    planes
        .admin
        .set_credential(&by(), source, Role::App, CredentialSlot::Current, None, sealed)
        .await
        .unwrap();
    let desk = Desk::new();
    for name in [json!("standby"), json!(source)] {
        desk.put(
            file(json!([]), json!([{ "tenant": acme.tenant.id, "source": name }])),
            0o644,
        );
        let biplane = planes.builder().overrides(desk.path()).build().unwrap();
        let db = biplane.route(acme.tenant.id).await.unwrap();
        assert_eq!(database_of(&db).await, standby);
        biplane.close(PATIENCE).await;
    }
    // Another server, and the login of that data source.
    let elsewhere = with(
        listed("elsewhere", &acme.database).await,
        json!({ "login_of": "standby" }),
    );
    desk.put(
        file(
            json!([elsewhere]),
            json!([{ "tenant": acme.tenant.id, "source": "elsewhere" }]),
        ),
        0o644,
    );
    let biplane = planes.builder().overrides(desk.path()).build().unwrap();
    let db = biplane.route(acme.tenant.id).await.unwrap();
    assert_eq!(
        (database_of(&db).await, db.is_overridden()),
        (acme.database, Some(true))
    );
}

/// Whoever is in the cache needs an address alone; whoever is not needs an entry that says everything.
#[tokio::test]
async fn without_the_control_plane_the_file_leads_cached_tenants_elsewhere_and_serves_whom_it_knows_whole() {
    let planes = Planes::memory().await;
    let (acme, cold) = (planes.add("acme").await, planes.add("cold").await);
    let standby = copy_of(&acme, "standby", acme.database_id).await;
    let desk = Desk::new();
    let tenants = FaultyRepository::new(planes.tenants.clone());
    let cache = CacheOptions::default().retry_after(Duration::from_millis(1));
    let biplane = Biplane::postgres(tenants.clone(), planes.keyring.clone())
        .cache(cache)
        .feed(often())
        .overrides(desk.path())
        .build()
        .unwrap();
    let held = biplane.route(acme.tenant.id).await.unwrap();
    tenants.set(Fault::Unreachable);
    let unavailable = biplane.route(&cold.tenant.slug).await.unwrap_err();
    assert_eq!(unavailable.kind(), ErrorKind::ControlPlaneUnavailable);

    let sealed = planes
        .keyring
        .seal_credential(cold.source, Role::App, &cold.login)
        .unwrap();
    let whole = with(
        listed("cold", &cold.database).await,
        json!({
            "id": cold.source, "database_id": cold.database_id,
            "credentials": { "app": { "version": 1, "sealed": sealed.as_str() } }
        }),
    );
    let entries = json!([
        { "tenant": acme.tenant.id, "source": "standby" },
        { "tenant": cold.tenant.id, "source": "cold", "slug": "cold", "domains": ["cold.example"], "status": "active",
          "epoch": 1 },
    ]);
    desk.put(
        file(json!([listed("standby", &standby).await, whole]), entries),
        0o600,
    );
    until_overridden(&biplane, 2).await;
    assert_eq!(database_of(&held).await, standby);
    let domain = biplane::tenant::Domain::parse("cold.example").unwrap();
    for db in [
        biplane.route(&cold.tenant.slug).await.unwrap(),
        biplane.route(cold.tenant.id).await.unwrap(),
        biplane.route(&domain).await.unwrap(),
    ] {
        assert_eq!(db.tenant(), cold.tenant.id);
        assert_eq!(database_of(&db).await, cold.database);
        assert_eq!(db.is_overridden(), Some(true));
    }

    // Nobody else knows the tenant, so that nobody knows it without the file.
    desk.remove();
    until_overridden(&biplane, 0).await;
    assert_eq!(
        database_of(&biplane.route(acme.tenant.id).await.unwrap()).await,
        acme.database
    );
    let unavailable = biplane.route(&cold.tenant.slug).await.unwrap_err();
    assert_eq!(unavailable.kind(), ErrorKind::ControlPlaneUnavailable);
    tenants.set(Fault::None);
    wait::until("the control plane is asked again", PATIENCE, async || {
        biplane.route(&cold.tenant.slug).await.is_ok()
    })
    .await
    .unwrap();
}

/// A control plane that answers and knows nothing of the tenant, as one that was restored from long ago.
#[tokio::test]
async fn a_tenant_that_the_control_plane_has_lost_is_served_by_a_whole_entry() {
    let (planes, elsewhere) = (Planes::memory().await, Planes::memory().await);
    let lost = elsewhere.add("lost").await;
    let sealed = planes
        .keyring
        .seal_credential(lost.source, Role::App, &lost.login)
        .unwrap();
    let desk = Desk::new();
    let whole = with(
        listed("lost", &lost.database).await,
        json!({ "id": lost.source, "credentials": { "app": { "version": 1, "sealed": sealed.as_str() } } }),
    );
    let entry =
        json!([{ "tenant": lost.tenant.id, "source": "lost", "slug": "lost", "status": "read_only" }]);
    let biplane = desk.router(&planes);
    let unknown = biplane.route(&lost.tenant.slug).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::UnknownTenant);
    desk.put(file(json!([whole]), entry), 0o600);
    until_overridden(&biplane, 1).await;
    for _ in 0..3 {
        let db = biplane.route(&lost.tenant.slug).await.unwrap();
        assert_eq!(database_of(&db).await, lost.database);
        let refused = sqlx::query("insert into note (text) values ('x')")
            .execute(&db)
            .await;
        planes::judge_sqlx(refused, ErrorKind::ReadOnly, "");
    }
    desk.remove();
    until_overridden(&biplane, 0).await;
    let unknown = biplane.route(&lost.tenant.slug).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::UnknownTenant);
}

/// Neither a file that says nothing of it, nor a source that has none, takes the check away.
#[tokio::test]
async fn the_database_is_asked_which_one_it_is_all_the_same() {
    let planes = Planes::memory().await;
    let acme = planes.add("acme").await;
    let another = DatabaseId::new();
    let wrong = copy_of(&acme, "wrong", another).await;
    let desk = Desk::new();
    let entry = json!([{ "tenant": acme.tenant.id, "source": "wrong" }]);
    desk.put(file(json!([listed("wrong", &wrong).await]), entry.clone()), 0o644);
    let biplane = desk.router(&planes);
    let db = biplane.route(acme.tenant.id).await.unwrap();
    let refused = sqlx::query("select 1").execute(&db).await;
    planes::judge_sqlx(refused, ErrorKind::WrongDatabase, "");
    // A database that is meant to be another one is one that the file names.
    let meant = with(listed("wrong", &wrong).await, json!({ "database_id": another }));
    desk.put(file(json!([meant]), entry), 0o644);
    wait::until("the file with the id is in force", PATIENCE, async || {
        sqlx::query("select 1").execute(&db).await.is_ok()
    })
    .await
    .unwrap();
    assert_eq!(database_of(&db).await, wrong);
}

#[tokio::test]
async fn a_suspended_tenant_stays_out_unless_its_entry_says_otherwise() {
    let planes = Planes::memory().await;
    let acme = planes.add("acme").await;
    let standby = copy_of(&acme, "standby", acme.database_id).await;
    let suspended = TenantStatus::Suspended;
    planes
        .admin
        .set_status(&by(), acme.tenant.id, acme.tenant.version, suspended)
        .await
        .unwrap();
    let out = ErrorKind::Inactive { status: suspended };
    let desk = Desk::new();
    let source = listed("standby", &standby).await;
    let entry = |fields: Value| {
        json!([with(
            json!({ "tenant": acme.tenant.id, "source": "standby" }),
            fields
        )])
    };
    desk.put(file(json!([source]), entry(json!({}))), 0o644);
    let biplane = desk.router(&planes);
    let refused = biplane.route(acme.tenant.id).await.unwrap_err();
    assert_eq!(refused.kind(), out);
    assert_eq!(biplane.overrides().tenants, 1);

    desk.put(file(json!([source]), entry(json!({ "status": "active" }))), 0o644);
    wait::until("the status of the file counts", PATIENCE, async || {
        biplane.route(acme.tenant.id).await.is_ok()
    })
    .await
    .unwrap();
    let held = biplane.route(acme.tenant.id).await.unwrap();
    assert_eq!(database_of(&held).await, standby);

    desk.remove();
    until_overridden(&biplane, 0).await;
    assert_eq!(biplane.route(acme.tenant.id).await.unwrap_err().kind(), out);
    planes::judge_sqlx(sqlx::query("select 1").execute(&held).await, out, "suspended");
}

#[tokio::test]
async fn a_bad_file_leaves_in_force_what_was() {
    let planes = Planes::memory().await;
    let (acme, other) = (planes.add("acme").await, planes.add("other").await);
    let standby = copy_of(&acme, "standby", acme.database_id).await;
    let desk = Desk::new();
    let good = file(
        json!([listed("standby", &standby).await]),
        json!([{ "tenant": acme.tenant.id, "source": "standby" }]),
    );
    let biplane = desk.router(&planes);
    let (db, beside) = (
        biplane.route(acme.tenant.id).await.unwrap(),
        biplane.route(&other.tenant.slug).await.unwrap(),
    );
    let stranger = TenantId::new();
    let whole = with(listed("standby", &standby).await, json!({ "id": acme.source }));
    for bad in [
        "{".to_owned(),
        // One good entry beside a bad one: none of it acts.
        with(
            good.clone(),
            json!({ "tenants": [
                { "tenant": other.tenant.id, "source": "standby" }, { "tenant": stranger, "source": "nowhere" },
            ] }),
        )
        .to_string(),
        // The name of a tenant whom the process knows, for another.
        file(
            json!([whole]),
            json!([{ "tenant": stranger, "source": "standby", "slug": "other", "status": "active" }]),
        )
        .to_string(),
    ] {
        desk.put(&good, 0o644);
        until_overridden(&biplane, 1).await;
        desk.put(&bad, 0o600);
        until_refused(&biplane).await;
        let health = biplane.overrides();
        assert_eq!((health.tenants, health.refused), (1, Some(ErrorKind::InvalidConfiguration)), "{bad}");
        assert!(health.refused_for.is_some());
        assert_eq!(database_of(&db).await, standby, "{bad}");
        assert_eq!(database_of(&beside).await, other.database, "{bad}");
    }
    desk.remove();
    until_overridden(&biplane, 0).await;
    assert_eq!(database_of(&db).await, acme.database);
}

/// A source that has to be looked up, and nobody to ask: said, and looked up as soon as somebody can be.
#[tokio::test]
async fn a_file_that_names_a_source_waits_for_a_control_plane_that_can_be_asked() {
    let planes = Planes::memory().await;
    let acme = planes.add("acme").await;
    let other = planes.add("other").await;
    let desk = Desk::new();
    desk.put(
        file(
            json!([]),
            json!([{ "tenant": other.tenant.id, "source": "acme" }]),
        ),
        0o644,
    );
    let tenants = FaultyRepository::new(planes.tenants.clone());
    tenants.set(Fault::Unreachable);
    let biplane = Biplane::postgres(tenants.clone(), planes.keyring.clone())
        .cache(CacheOptions::default().retry_after(Duration::from_millis(1)))
        .feed(often())
        .overrides(desk.path())
        .build()
        .unwrap();
    until_refused(&biplane).await;
    assert_eq!(
        biplane.overrides().refused,
        Some(ErrorKind::ControlPlaneUnavailable)
    );
    tenants.set(Fault::None);
    until_overridden(&biplane, 1).await;
    let db = biplane.route(other.tenant.id).await.unwrap();
    assert_eq!(db.is_overridden(), Some(true));
    assert_ne!(acme.database, other.database);
}

/// On one thread, where the test hears everything.
#[tokio::test]
async fn overrides_are_loud_when_they_come_when_they_go_and_every_minute() {
    let lines = files::Lines::record();
    let planes = Planes::memory().await;
    let acme = planes.add("acme").await;
    let standby = copy_of(&acme, "standby", acme.database_id).await;
    let desk = Desk::new();
    let clock = Clock::manual();
    let _biplane = planes
        .builder()
        .feed(often())
        .clock(clock.clone())
        .overrides(desk.path())
        .build()
        .unwrap();
    let heard = async |what: &str, times: usize| {
        let seen = wait::until(what.to_owned(), PATIENCE, async || lines.with(what) >= times).await;
        seen.unwrap();
        assert_eq!(lines.with(what), times, "{what}");
    };
    let entry = json!([{ "tenant": acme.tenant.id, "source": "standby" }]);
    desk.put(file(json!([listed("standby", &standby).await]), entry), 0o644);
    heard(
        "WARN biplane::router::overrides::watch: a file overrides where tenants are",
        1,
    )
    .await;
    let line = lines.last("a file overrides");
    for said in ["overrides.json", "tenants=1", "by=ann", "reason=INC-7"] {
        assert!(line.contains(said), "{line}");
    }
    for minute in 2..5 {
        clock.advance(Duration::from_secs(60));
        heard("a file overrides where tenants are", minute).await;
    }
    desk.put("{", 0o644);
    heard(
        "ERROR biplane::router::overrides::watch: the override file is refused",
        1,
    )
    .await;
    assert!(
        lines.last("is refused").contains("line 1"),
        "{}",
        lines.last("is refused")
    );
    clock.advance(Duration::from_secs(60));
    heard("the override file is still refused", 1).await;
    heard("a file overrides where tenants are", 5).await;
    desk.remove();
    heard("the override file is gone", 1).await;
    judge(
        &biplane::router::Overrides::parse("{").unwrap_err(),
        ErrorKind::InvalidConfiguration,
        "line 1",
    );
}
