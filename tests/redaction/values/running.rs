//! What runs: pools, planes, connectors, routers, and the testing kit.

use std::sync::Arc;

use biplane::{
    connector::postgres::{EnvironmentSource, PgConnectorOptions, PgServers},
    keyring::KeyWrapper,
    plane::{ControlOptions, RoleName, dangerous_assume_tenant},
    rotation::{Cursor, Decision, StoredValue},
    router::Overrides,
    tenant::{DataSourceId, Role, SealedText, TenantId},
    testing::MemoryKeyService,
    testing::postgres::{BouncerAuth, Cluster},
};

use super::{
    FIGURES, FOR_TESTS,
    How::{self, AtWork, Public, Show},
    NAME, NO_VALUES, WORD,
};
use crate::{
    canary::SECRET,
    samples::{credential, credentials, key, keyring, runtime, settings},
};

pub(super) const TYPES: &[(&str, How)] = &[
    (
        "breaker::BreakerScope",
        Public("an endpoint, or the id of a data source and a role"),
    ),
    ("breaker::BreakerState", Public("a word and a length of time")),
    (
        "breaker::BreakerStatus",
        Public("an endpoint, or the id of a data source and a role, and figures"),
    ),
    ("connector::ConnectorStats", Public(FIGURES)),
    ("connector::Route", AtWork),
    ("connector::TenantRoute", AtWork),
    ("connector::memory::MemoryConnector", AtWork),
    ("connector::memory::MemoryDb", AtWork),
    ("connector::memory::MemoryTx", AtWork),
    (
        "connector::postgres::EnvironmentSource",
        Show(|shown| {
            shown.debug(&EnvironmentSource::from_settings(&settings()).unwrap());
        }),
    ),
    ("connector::postgres::PgConnector", AtWork),
    (
        "connector::postgres::PgConnectorOptions",
        Show(|shown| {
            let mut options = PgConnectorOptions::new(Arc::new(credentials()));
            options.environment = EnvironmentSource::from_settings(&settings());
            shown.debug(&options);
            shown.debug(&PgConnectorOptions::new(Arc::new(keyring())));
        }),
    ),
    (
        "connector::postgres::PgServers",
        Show(|shown| {
            let environment = EnvironmentSource::from_settings(&settings()).unwrap();
            shown.debug(&PgServers::new().with_environment(environment));
        }),
    ),
    (
        "plane::Assumed",
        Show(|shown| {
            let options = sqlx::postgres::PgConnectOptions::new_without_pgpass().password(SECRET);
            let pool = runtime().block_on(async { sqlx::PgPool::connect_lazy_with(options) });
            shown.debug(&dangerous_assume_tenant(&pool));
        }),
    ),
    ("plane::Conn", AtWork),
    ("plane::ControlDb", Public("an alias of plane::Db")),
    (
        "plane::ControlOptions",
        Show(|shown| {
            shown.debug(&ControlOptions::from_settings(&settings()));
        }),
    ),
    ("plane::ControlPlane", Public(NO_VALUES)),
    ("plane::DataPlane", Public(NO_VALUES)),
    ("plane::DataSchema", Public(NO_VALUES)),
    ("plane::Db", AtWork),
    ("plane::DrainOptions", Public(FIGURES)),
    ("plane::Fence", Public("shows nothing of its connection")),
    ("plane::Finding", Public("words and counters")),
    ("plane::IsolationLevel", Public(WORD)),
    ("plane::KeyType", Public(WORD)),
    ("plane::Reconcile", Public("ids, words and counters")),
    ("plane::ReconcileMode", Public(WORD)),
    ("plane::Recorded", Public("an id, a counter and a word")),
    ("plane::Residence", Public(NAME)),
    ("plane::ResidenceState", Public(WORD)),
    ("plane::RoleName", Public(NAME)),
    (
        "plane::RoleNameError",
        Show(|shown| {
            shown.error(&RoleName::parse(&SECRET.repeat(9)).unwrap_err());
            shown.error(&RoleName::parse(&format!("{SECRET}\0")).unwrap_err());
        }),
    ),
    ("plane::RoleTimeouts", Public(FIGURES)),
    (
        "plane::RowPolicy",
        Public("names of a table, a column and a setting, which are there to be printed"),
    ),
    ("plane::RowSecurityGap", Public("names of tables and policies")),
    (
        "plane::RowSecurityReport",
        Public("names of a role, tables and policies"),
    ),
    (
        "plane::Running",
        Public("process ids, and names of prepared transactions"),
    ),
    ("plane::TenantConn", Public("an alias of plane::Conn")),
    ("plane::TenantDb", Public("an alias of plane::Db")),
    ("plane::TenantTx", Public("an alias of plane::Tx")),
    ("plane::Tx", AtWork),
    ("plane::TxOptions", Public(WORD)),
    ("pool::BreakerOptions", Public(FIGURES)),
    ("pool::Pool", AtWork),
    ("pool::PoolOptions", Public(FIGURES)),
    ("pool::PoolStats", Public(FIGURES)),
    ("pool::StatementLogging", Public(WORD)),
    ("rotation::Census", Public(FIGURES)),
    ("rotation::Checked", Public("an id, a role and versions")),
    (
        "rotation::Cursor",
        Show(|shown| {
            shown.debug(&Cursor::new(SECRET));
        }),
    ),
    ("rotation::Decide", Public("a function, which prints nothing")),
    (
        "rotation::Decision",
        Show(|shown| {
            shown.debug(&Decision::Replace(SealedText::new(SECRET)));
        }),
    ),
    ("rotation::Diagnosis", AtWork),
    ("rotation::Failure", AtWork),
    ("rotation::Import", Public("an alias of rotation::Job")),
    (
        "rotation::Importing",
        Public("the keyring and the opener of a job, shown with it"),
    ),
    ("rotation::Job", AtWork),
    ("rotation::KeyInUse", Public(FIGURES)),
    (
        "rotation::KeyUser",
        Public("an id, the name of a service, and a length of time"),
    ),
    (
        "rotation::LoginRotation",
        Public("the name of a data source, a role, and who does it why"),
    ),
    (
        "rotation::LoginRotationError",
        Public("names, figures, and errors that are shown by themselves"),
    ),
    ("rotation::MemoryStore", AtWork),
    ("rotation::Mode", Public(WORD)),
    ("rotation::PgColumns", AtWork),
    ("rotation::Prepared", Public(WORD)),
    ("rotation::Progress", Public(FIGURES)),
    ("rotation::Promoted", Public(FIGURES)),
    ("rotation::Report", AtWork),
    ("rotation::Reseal", Public("an alias of rotation::Job")),
    (
        "rotation::Resealing",
        Public("the keyring of a job, shown with it"),
    ),
    ("rotation::RotationError", AtWork),
    (
        "rotation::RotationTools",
        Public("references, of which it prints none"),
    ),
    (
        "rotation::StillUsed",
        Public("ids, names of services and stores, and figures"),
    ),
    ("rotation::StoreDiagnosis", AtWork),
    ("rotation::StoreReport", AtWork),
    ("rotation::StoredCredentials", AtWork),
    (
        "rotation::StoredValue",
        Show(|shown| {
            shown.debug(&StoredValue::new("setting", "acme", "token", SECRET));
        }),
    ),
    ("rotation::Use", Public(WORD)),
    (
        "rotation::Visit",
        Public("a position that does not show, and figures"),
    ),
    (
        "rotation::Visited",
        Public("a position that does not show, and figures"),
    ),
    ("rotation::Wanted", Public("a word and the id of a key")),
    ("router::Biplane", AtWork),
    ("router::Builder", AtWork),
    ("router::BrakeHealth", Public(FIGURES)),
    ("router::BrakeOptions", Public(FIGURES)),
    ("router::CacheOptions", Public(FIGURES)),
    ("router::CheckedBuilder", AtWork),
    ("router::Clock", Public(FIGURES)),
    ("router::FeedEngine", Public(WORD)),
    ("router::FeedHealth", Public(FIGURES)),
    ("router::FeedOptions", Public(FIGURES)),
    ("router::Mapped", AtWork),
    ("router::MappedConnector", AtWork),
    (
        "router::OverriddenTenant",
        Public("an id, the name of a data source, and a word"),
    ),
    (
        "router::OverrideHealth",
        Public("the path of a file, who wrote it and why, and figures"),
    ),
    (
        "router::Overrides",
        Show(|shown| {
            let sealed = keyring()
                .seal_credential(DataSourceId::DEFAULT, Role::App, &credential())
                .unwrap();
            let source = |credential: &str| {
                format!(
                    r#"{{ "by": "ann", "reason": "x",
                        "sources": [{{ "name": "a", "id": "{}", "endpoints": [{{ "host": "h" }}], "database": "d",
                            "tls": "disable", "credentials": {{ "app": {{ "version": 1, "sealed": "{credential}" }} }} }}],
                        "tenants": [{{ "tenant": "{}", "source": "a" }}] }}"#,
                    DataSourceId::DEFAULT,
                    TenantId::new(),
                )
            };
            shown.debug(&Overrides::parse(&source(sealed.as_str())).unwrap());
            for wrong in [
                source(SECRET),
                format!(r#"{{ "{SECRET}": 1 }}"#),
                format!("{{ {SECRET}"),
            ] {
                shown.error(&Overrides::parse(&wrong).unwrap_err());
            }
        }),
    ),
    ("router::RouterStats", Public(FIGURES)),
    ("router::Routing", AtWork),
    (
        "router::WarmUp",
        Public("names, and errors, which are shown for themselves"),
    ),
    ("testing::KeyServiceFault", Public(WORD)),
    (
        "testing::MemoryKeyService",
        Show(|shown| {
            let service = MemoryKeyService::new().unwrap();
            let wrapped = runtime()
                .block_on(service.wrap_key(key().id(), &key().to_bytes()))
                .unwrap();
            shown.debug(&service).debug(&wrapped);
        }),
    ),
    ("testing::MemoryStack", AtWork),
    ("testing::faulty::Fault", Public(WORD)),
    ("testing::faulty::FaultyRepository", AtWork),
    ("testing::postgres::Authentication", Public(FOR_TESTS)),
    (
        "testing::postgres::BouncerAuth",
        Show(|shown| {
            shown.debug(&BouncerAuth::Known(vec![credential()]));
            shown.debug(&BouncerAuth::Trust(vec![credential()]));
        }),
    ),
    ("testing::postgres::Certificates", AtWork),
    ("testing::postgres::Cluster", AtWork),
    (
        "testing::postgres::ClusterBuilder",
        Show(|shown| {
            shown.debug(&Cluster::builder());
        }),
    ),
    ("testing::postgres::ClusterError", AtWork),
    ("testing::postgres::Missing", Public("programs and places")),
    ("testing::postgres::PgBouncer", AtWork),
    ("testing::postgres::PgBouncerBuilder", AtWork),
    ("testing::postgres::PgBouncerVersion", Public(FIGURES)),
    ("testing::postgres::PoolMode", Public(FOR_TESTS)),
    ("testing::postgres::RoleAttribute", Public(FOR_TESTS)),
    (
        "testing::postgres::ServerLog",
        Public("what a throwaway server wrote, which is there to be read"),
    ),
    (
        "testing::postgres::UnknownVersion",
        Show(|shown| {
            shown.error(
                &SECRET
                    .parse::<biplane::testing::postgres::PgBouncerVersion>()
                    .unwrap_err(),
            );
        }),
    ),
    ("testing::proxy::Arrivals", Public(FOR_TESTS)),
    ("testing::proxy::Counts", Public(FIGURES)),
    ("testing::proxy::Direction", Public(WORD)),
    ("testing::proxy::FaultProxy", Public("two addresses and figures")),
    ("testing::proxy::NetworkFault", Public(FOR_TESTS)),
    (
        "testing::wait::TimedOut",
        Public("what a test waited for, in the test's own words"),
    ),
];
