//! What takes a server, a router or a runtime to make, shown while it works and fails, with every event recorded.

use std::{fs, os::unix::fs::OpenOptionsExt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use biplane::{
    Biplane,
    breaker::BreakerStatus,
    connector::{
        Connector, ConnectorStats, TenantRoute,
        memory::MemoryConnector,
        postgres::{PgConnector, PgConnectorOptions},
    },
    error::Error,
    keyring::{KeyId, KeySource, LegacyKey, LegacyOpener, LegacyPolicy, LiveKeyring},
    plane::{ControlDb, ControlOptions, TenantDb},
    pool::PoolOptions,
    presence::{self, Heartbeat, missing},
    repository::{
        Actor, ControlSchema, CredentialSlot, CredentialSource, Grants, Instances, MemoryControl,
        MemoryCredentials, NewSource, NewTenant, PgTenantAdmin, PgTenants, TenantAdmin,
    },
    rotation::{Import, MemoryStore, PgColumns, Reseal, StoredCredentials, doctor},
    router::CacheOptions,
    secret::Credential,
    tenant::{DataSourceId, Location, Role, SealedText, Server, Tenant, TenantStatus},
    testing::{
        MemoryStack,
        faulty::{Fault, FaultyRepository},
        postgres::{BouncerAuth, Certificates, Cluster, PgBouncer},
    },
};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    AtWork,
    canary::{KEY, SECRET, Shown, hex},
    events::Events,
    samples::{credential, keyring, runtime, secret_settings, slug},
};

/// Does everything, and returns what each type showed, and every event.
pub(crate) fn everything() -> (AtWork, String) {
    let mut shown = AtWork::new();
    let runtime = runtime();
    // Before anything is recorded, because the kit's own statements create a role with its password.
    let cluster = runtime.block_on(prepared());
    let (events, recording) = Events::record();
    runtime.block_on(async {
        keys(&mut shown).await;
        rotation(&mut shown, &cluster).await;
        in_memory(&mut shown).await;
        kit(&mut shown, &cluster).await;
        on_postgres(&mut shown, &cluster).await;
        refused(&mut shown, &cluster).await;
        heartbeats(&mut shown, &cluster).await;
    });
    drop(recording);
    (shown, events.text())
}

fn of<'a>(shown: &'a mut AtWork, path: &'static str) -> &'a mut Shown {
    shown.entry(path).or_default()
}

async fn prepared() -> Cluster {
    let cluster = Cluster::start().await.unwrap();
    let password = SecretString::from(SECRET);
    cluster.create_role("app", &password, &[]).await.unwrap();
    for database in ["control", "crm"] {
        cluster.create_database(database).await.unwrap();
    }
    cluster
        .sql("crm", "create table note (text text); grant all on note to app")
        .await
        .unwrap();
    cluster
}

/// Jobs that meet what nobody sealed.
async fn rotation(shown: &mut AtWork, cluster: &Cluster) {
    let store = MemoryStore::new("settings", "setting");
    store.insert("acme", "token", SECRET);
    store.insert("globex", "token", format!("{SECRET}:{SECRET}:{SECRET}"));
    of(shown, "rotation::MemoryStore").debug(&store);
    let options = ControlOptions::new(cluster.server("crm"), cluster.superuser());
    let table = PgColumns::new(ControlDb::connect(options).unwrap(), "public", "setting")
        .purpose("setting")
        .column("token", "token");
    of(shown, "rotation::PgColumns").debug(&table);
    let filled = format!(
        "create table setting (id int primary key, token text); insert into setting values (1, '{SECRET}')"
    );
    cluster.sql("crm", &filled).await.unwrap();
    let credentials = StoredCredentials::new(MemoryControl::new(), Actor::new("ann", "rotation"));
    of(shown, "rotation::StoredCredentials").debug(&credentials);

    let legacy = LegacyOpener::new(LegacyKey::from_bytes(&KEY).unwrap(), LegacyPolicy::ReadThrough);
    let diagnosis = doctor(&keyring(), &[&store, &table]).await.unwrap();
    of(shown, "rotation::StoreDiagnosis").debug(&diagnosis.stores[1]);
    of(shown, "rotation::StoreDiagnosis").display(&diagnosis.stores[1]);
    of(shown, "rotation::Diagnosis").debug(&diagnosis);
    of(shown, "rotation::Diagnosis").display(&diagnosis);
    let mut import = Import::new(legacy, keyring()).store(store.clone());
    let mut reseal = Reseal::new(keyring()).store(store).store(table);
    for error in [import.run().await.unwrap_err(), reseal.run().await.unwrap_err()] {
        let report = error.report().unwrap();
        let entry = report.stores.last().unwrap();
        of(shown, "rotation::Failure").debug(&entry.failures[0]);
        of(shown, "rotation::Failure").display(&entry.failures[0]);
        of(shown, "rotation::StoreReport").debug(entry);
        of(shown, "rotation::StoreReport").display(entry);
        of(shown, "rotation::Report").debug(report);
        of(shown, "rotation::Report").display(report);
        of(shown, "rotation::RotationError").error(&error);
    }
    of(shown, "rotation::Job").debug(&import);
    of(shown, "rotation::Job").debug(&reseal);
}

/// A keyring whose file becomes a wrong one.
async fn keys(shown: &mut AtWork) {
    let path = Scratch::new();
    path.write(&format!("primary:{}", hex(&KEY)));
    let live = LiveKeyring::load(KeySource::file(&path.0)).await.unwrap();
    of(shown, "keyring::KeepFresh").debug(&live.keep_fresh(Duration::from_secs(60)));
    path.write(&format!(
        "{{\"biplane_keyring\": 1, \"keys\": [\"{}\", \"{SECRET}\"",
        hex(&KEY)
    ));
    live.refresh().await.unwrap_err();
    of(shown, "keyring::KeyringHealth").debug(&live.health());
    path.write(&format!(
        "primary:{}\npending:{}",
        hex(&KEY),
        hex(&KEY.map(|byte| byte ^ 1))
    ));
    live.refresh().await.unwrap();
}

async fn in_memory(shown: &mut AtWork) {
    let stack = MemoryStack::with(|_: &Tenant| SECRET.to_owned());
    let tenant = stack.add_tenant("acme").await.unwrap();
    let db = stack.biplane().route(&tenant.slug).await.unwrap();
    let tx = db.begin().await.unwrap();
    of(shown, "connector::memory::MemoryTx").debug(&tx);
    drop(tx);
    of(shown, "connector::memory::MemoryDb").debug(&db);
    of(shown, "connector::memory::MemoryConnector")
        .debug(&MemoryConnector::new(|_: &Tenant| SECRET.to_owned()));
    of(shown, "testing::MemoryStack").debug(&stack);
    of(shown, "router::Routing").debug(&stack.biplane().route(&tenant.slug));

    let control = MemoryControl::new();
    let tenant = stored(&control, Location::Memory).await;
    of(shown, "repository::MemoryControl").debug(&control);
    let faulty = FaultyRepository::new(control.clone());
    let router = Biplane::builder(faulty.clone(), Probe).build().unwrap();
    let route = router.route(&tenant.slug).await.unwrap();
    of(shown, "connector::TenantRoute").debug(&route);
    let current = route.current().await.unwrap();
    of(shown, "connector::Route")
        .debug(&current)
        .debug(current.source());
    faulty.set(Fault::Unreachable);
    router.invalidate(tenant.id).await;
    let error = router.route(&tenant.slug).await.unwrap_err();
    of(shown, "testing::faulty::FaultyRepository")
        .debug(&faulty)
        .error(&error);
    // A record that is damaged is spoken of, and not shown.
    control.corrupt(tenant.id).unwrap();
    faulty.set(Fault::None);
    let error = router.route(&tenant.slug).await.unwrap_err();
    of(shown, "repository::MemoryControl").error(&error);
}

/// A process that reports its keys to a control plane, and to one that is gone.
async fn heartbeats(shown: &mut AtWork, cluster: &Cluster) {
    let beating = |instances: Arc<dyn Instances>| {
        Heartbeat::builder(instances, "a service")
            .keyring(LiveKeyring::new(keyring()))
            .timeout(LIMIT)
    };
    let control = MemoryControl::new();
    let builder = beating(Arc::new(control.clone()));
    of(shown, "presence::HeartbeatBuilder").debug(&builder);
    let heartbeat = builder.start().unwrap();
    heartbeat.beat_now().await.unwrap();
    of(shown, "presence::Heartbeat").debug(&heartbeat);
    let other = KeyId::from_bytes([7; 8]);
    let lacking = missing(&control, other, presence::PRESUMED_DEAD).await.unwrap();
    of(shown, "presence::NotEverywhere").error(&lacking.evidence().unwrap_err());
    heartbeat.close(LIMIT).await.unwrap();

    let wrong = Credential::new("postgres", SecretString::from(SECRET)).unwrap();
    let refused = PgTenants::new(self::control(cluster.server("control"), wrong));
    let heartbeat = beating(Arc::new(refused)).start().unwrap();
    of(shown, "presence::Heartbeat").error(&heartbeat.beat_now().await.unwrap_err());
}

/// A tenant with a secret in every place where a caller might put one.
async fn stored(control: &dyn TenantAdmin, location: Location) -> Tenant {
    let by = Actor::new("ann", "a test");
    let source = control
        .create_source(&by, NewSource::new("east", location))
        .await
        .unwrap();
    let sealed = keyring()
        .seal_credential(source.id, Role::App, &credential())
        .unwrap();
    for (slot, sealed) in [
        (CredentialSlot::Current, sealed.clone()),
        (CredentialSlot::Next, sealed),
    ] {
        control
            .set_credential(&by, source.id, Role::App, slot, None, sealed)
            .await
            .unwrap();
    }
    // Plaintext in the wrong column is refused, and not repeated.
    let slip = SealedText::new(SECRET);
    let refused = control
        .set_credential(&by, source.id, Role::Service, CredentialSlot::Current, None, slip)
        .await;
    let mut slip = Shown::default();
    if let Err(error) = refused {
        slip.error(&error);
    }
    for text in slip.texts {
        assert_eq!(crate::given_away(&text), None, "{text}");
    }
    let mut tenant = NewTenant::new(slug(), source.id);
    tenant.settings = secret_settings();
    let tenant = control.create(&by, tenant).await.unwrap();
    control
        .set_status(&by, tenant.id, tenant.version, TenantStatus::Active)
        .await
        .unwrap()
}

/// A connector that gives out the way to the route.
#[derive(Debug)]
struct Probe;

#[async_trait]
impl Connector for Probe {
    type Handle = TenantRoute;

    fn handle(&self, _: &Tenant, route: TenantRoute) -> Result<TenantRoute, Error> {
        Ok(route)
    }

    async fn close(&self, _: Duration) {}

    fn stats(&self) -> ConnectorStats {
        ConnectorStats::default()
    }

    fn breakers(&self) -> Vec<BreakerStatus> {
        Vec::new()
    }
}

async fn kit(shown: &mut AtWork, cluster: &Cluster) {
    of(shown, "testing::postgres::Cluster")
        .debug(cluster)
        .debug(&cluster.url("crm", &credential()));
    let certificates = Certificates::generate().unwrap();
    of(shown, "testing::postgres::Certificates").debug(&certificates);
    let pem = certificates.key_pem().expose_secret();
    let line = pem.lines().nth(1).unwrap();
    assert!(!format!("{certificates:?}").contains(line));

    let builder = PgBouncer::builder(cluster).auth(BouncerAuth::Known(vec![credential()]));
    of(shown, "testing::postgres::PgBouncerBuilder").debug(&builder);
    let bouncer = builder.start().await.unwrap();
    of(shown, "testing::postgres::PgBouncer").debug(&bouncer);

    let wrong = Credential::new("postgres", SecretString::from(SECRET)).unwrap();
    let error = cluster.connect_as(&wrong, "crm").await.unwrap_err();
    of(shown, "testing::postgres::ClusterError").error(&error);
}

async fn on_postgres(shown: &mut AtWork, cluster: &Cluster) {
    let control = control(cluster.server("control"), cluster.superuser());
    ControlSchema::install(&control, &Grants::none()).await.unwrap();
    of(shown, "plane::Db").debug(&control);
    let admin = PgTenantAdmin::new(control.clone());
    of(shown, "repository::PgTenantAdmin").debug(&admin);
    let tenant = stored(&admin, Location::Server(cluster.server("crm"))).await;
    let tenants = PgTenants::new(control.clone());
    of(shown, "repository::PgTenants").debug(&tenants);

    let builder = Biplane::postgres(tenants, keyring())
        .cache(CacheOptions::default().load_timeout(LIMIT))
        .pool(PoolOptions::default().connect_timeout(LIMIT).wait_timeout(LIMIT));
    of(shown, "router::Builder").debug(&builder);
    let checked = builder.refuse_misplaced(&control, ["note"]);
    of(shown, "router::CheckedBuilder").debug(&checked);
    let biplane = checked.build().await.unwrap();
    let db = biplane.route(&tenant.slug).await.unwrap();
    of(shown, "plane::Db").debug(&db);
    let mut conn = db.acquire().await.unwrap();
    of(shown, "plane::Conn").debug(&conn);
    sqlx::query("insert into note (text) values ($1)")
        .bind(SECRET)
        .execute(&mut conn)
        .await
        .unwrap();
    drop(conn);
    let mut tx = db.begin().await.unwrap();
    of(shown, "plane::Tx").debug(&tx);
    // What the server says of it repeats the value, and is for the application alone.
    sqlx::query("select $1::int")
        .bind(SECRET)
        .execute(&mut tx)
        .await
        .unwrap_err();
    let error = tx.commit().await.unwrap_err();
    of(shown, "plane::Tx").error(&Error::from(error));
    of(shown, "router::Biplane")
        .debug(&biplane)
        .debug(&biplane.stats());
    biplane.close(LIMIT).await;
    let error = biplane.route(&tenant.slug).await.unwrap_err();
    of(shown, "router::Biplane").error(&error);
    control.close(LIMIT).await;
}

/// Logins that fail in each way.
async fn refused(shown: &mut AtWork, cluster: &Cluster) {
    let options = |logins: Arc<dyn CredentialSource>| {
        let mut options = PgConnectorOptions::new(logins);
        options.pool = options.pool.connect_timeout(LIMIT).wait_timeout(LIMIT);
        options
    };
    let nobody_listens = {
        let mut server = cluster.server("crm");
        server.endpoints[0].port = 1;
        server
    };
    let wrong = Credential::new("postgres", SecretString::from(SECRET)).unwrap();
    for (server, login) in [
        (cluster.server("crm"), wrong.clone()),
        (
            cluster.server("crm"),
            Credential::new("nobody", SecretString::from(SECRET)).unwrap(),
        ),
        (cluster.server("missing"), credential()),
        (nobody_listens, wrong),
    ] {
        let (control, credentials) = (MemoryControl::new(), MemoryCredentials::new());
        let tenant = stored(&control, Location::Server(server.clone())).await;
        let source = control.source("east").await.unwrap().unwrap();
        credentials.set(source.id, Role::App, login.clone());
        let connector = PgConnector::new(options(Arc::new(credentials))).unwrap();
        of(shown, "connector::postgres::PgConnector").debug(&connector);
        of(shown, "pool::Pool").debug(connector.pool());
        let db = Biplane::builder(control, connector)
            .build()
            .unwrap()
            .route(&tenant.slug)
            .await
            .unwrap();
        cannot_connect(shown, &db).await;
        let control = self::control(server, login);
        let error = ControlSchema::check(&control).await.unwrap_err();
        of(shown, "plane::Db").debug(&control).error(&error);
    }

    // The value was sealed for another data source.
    let control = MemoryControl::new();
    let tenant = stored(&control, Location::Server(cluster.server("crm"))).await;
    let others = keyring()
        .seal_credential(DataSourceId::new(), Role::App, &credential())
        .unwrap();
    let by = Actor::new("ann", "a test");
    let source = control.source("east").await.unwrap().unwrap();
    let version = Some(source.credentials[&Role::App].current.version);
    control
        .set_credential(
            &by,
            source.id,
            Role::App,
            CredentialSlot::Current,
            version,
            others,
        )
        .await
        .unwrap();
    let builder = Biplane::postgres(control, keyring()).map(|db: TenantDb| (db, SECRET));
    of(shown, "router::Mapped").debug(&builder);
    let biplane = builder.build().unwrap();
    of(shown, "router::MappedConnector").debug(&biplane);
    let (db, _) = biplane.route(&tenant.slug).await.unwrap();
    cannot_connect(shown, &db).await;
}

/// Generous, because this runs beside many other tests.
const LIMIT: Duration = Duration::from_secs(60);

fn control(server: Server, login: Credential) -> ControlDb {
    let mut options = ControlOptions::new(server, login);
    options.pool = options.pool.connect_timeout(LIMIT).wait_timeout(LIMIT);
    ControlDb::connect(options).unwrap()
}

async fn cannot_connect(shown: &mut AtWork, db: &TenantDb) {
    let error = db.acquire().await.unwrap_err();
    of(shown, "plane::Conn").error(&error).error(&Error::from(error));
    let error = sqlx::query("select $1::text")
        .bind(SECRET)
        .execute(db)
        .await
        .unwrap_err();
    of(shown, "plane::Db").error(&error);
    let error = db.begin().await.unwrap_err();
    of(shown, "plane::Tx").error(&Error::from(error));
}

/// A file of keys that is gone with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("biplane-redaction-{}", std::process::id())))
    }

    fn write(&self, text: &str) {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&self.0).unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What a test that failed leaves is in nobody's way.
        let _ = fs::remove_file(&self.0);
    }
}
