//! Every public type: why it can hold no secret, or what it shows when it holds one.
//!
//! To add a type, add a line to [`TYPES`]:
//!
//! - `("room::Type", Public("why it can hold no secret"))` for ids, counters, names of variants;
//! - `("room::Type", Show(|shown| { shown.debug(&value); }))` for the rest, with the canaries of `canary.rs` in every
//!   place of the value that a caller might fill with something of his own, and with each of `debug`, `display`,
//!   `error` (which stands for both, causes included) and `json` that the type has;
//! - `("room::Type", AtWork)` for what takes a server, a router or a runtime to make: show it in `at_work.rs`.

use std::{sync::Arc, time::SystemTime};

use biplane::{
    connector::postgres::{EnvironmentSource, PgConnectorOptions},
    error::{Error, ErrorKind},
    keyring::{
        Distributed, Fingerprints, KeyId, KeySource, KeyState, KeyWrapper, KeyringError, KeyringFile,
        LegacyKey, LiveKeyring, SourceError, Unused,
    },
    plane::{ControlOptions, RoleName, dangerous_assume_tenant},
    repository::{
        Actor, AuditEntry, CredentialPlace, CredentialSlot, Login, NewSource, NewTenant, Page, PageItem,
        Reseal, SealedCredential, SourceChange, Subject,
    },
    secret::{Credential, SecretBytes},
    settings::Dsn,
    tenant::{
        CaCertificate, CredentialVersion, DataSourceId, Domain, Endpoint, Isolation, Resolved, Role,
        SealedText, Slug, StoredCredential, Tenant, TenantId, Tls, TlsMode,
    },
    testing::{
        MemoryKeyService,
        postgres::{BouncerAuth, Cluster},
    },
};
use secrecy::{SecretBox, SecretString};
use serde_json::json;

use crate::{
    canary::{KEY, SECRET, Shown, hex},
    samples::*,
};

/// What is done about a type.
pub(crate) enum How {
    /// It can hold no secret, for this reason.
    Public(&'static str),
    /// It shows this.
    Show(fn(&mut Shown)),
    /// It is shown at work.
    AtWork,
}

use How::{AtWork, Public, Show};

const ID: &str = "an id, which names and opens nothing";
const COUNTER: &str = "a number that rises";
const WORD: &str = "one of a few words";
const FIGURES: &str = "figures alone";
const NAME: &str = "a name, which is there to be read";
const NO_VALUES: &str = "has no values";
const BARE: &str = "says that something is wrong and holds none of it";
const FOR_TESTS: &str = "a setting of a throwaway server";

pub(crate) const TYPES: &[(&str, How)] = &[
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
    ("error::BudgetScope", Public(WORD)),
    (
        "error::Error",
        Show(|shown| {
            for kind in [
                ErrorKind::CredentialUnreadable { key: None },
                ErrorKind::InvalidConfiguration,
            ] {
                for cause in keyring_errors() {
                    shown.error(&Error::new(kind).caused_by(cause));
                }
            }
            for text in wrong_urls() {
                shown.error(&Error::from(Dsn::parse(&text).unwrap_err()));
            }
        }),
    ),
    (
        "error::ErrorKind",
        Public("a word, with a status, a role or a key id"),
    ),
    (
        "keyring::Context",
        Public("immutable ids and logical names, as its contract says"),
    ),
    (
        "keyring::Distributed",
        Show(|shown| {
            shown.debug(&Distributed::confirmed_by_hand(key().id()));
        }),
    ),
    (
        "keyring::Fingerprint",
        Show(|shown| {
            shown.debug(&Fingerprints::new().unwrap().of(&credential()));
        }),
    ),
    (
        "keyring::Fingerprints",
        Show(|shown| {
            shown.debug(&Fingerprints::new().unwrap());
        }),
    ),
    ("keyring::KeepFresh", AtWork),
    (
        "keyring::KeyId",
        Show(|shown| {
            shown.debug(&key().id()).display(&key().id());
        }),
    ),
    (
        "keyring::KeyIdError",
        Show(|shown| {
            shown.error(&SECRET.parse::<KeyId>().unwrap_err());
            shown.error(&hex(&KEY).parse::<KeyId>().unwrap_err());
        }),
    ),
    (
        "keyring::KeyMaterial",
        Show(|shown| {
            shown
                .debug(&key())
                .debug(&key().to_hex())
                .debug(&key().to_bytes());
        }),
    ),
    (
        "keyring::KeySource",
        Show(|shown| {
            shown.debug(&KeySource::variable("BIPLANE_KEYRING"));
        }),
    ),
    ("keyring::KeyState", Public(WORD)),
    ("keyring::KeyStatus", Public("an id, a state and figures")),
    (
        "keyring::Keyring",
        Show(|shown| {
            shown.debug(&keyring());
        }),
    ),
    (
        "keyring::KeyringBuilder",
        Show(|shown| {
            shown.debug(&builder());
        }),
    ),
    (
        "keyring::KeyringError",
        Show(|shown| {
            for error in keyring_errors() {
                shown.error(&error).debug(error.hint());
            }
            shown.debug(KeyringError::PUBLIC_TEXT);
        }),
    ),
    (
        "keyring::KeyringFile",
        Show(|shown| {
            let mut file = KeyringFile::new(key());
            file.add_wrapped(KeyId::from_bytes([7; 8]), SECRET.as_bytes())
                .unwrap();
            shown.debug(&file).debug(&file.to_text());
        }),
    ),
    ("keyring::KeyringHealth", AtWork),
    ("keyring::LegacyEncoding", Public(WORD)),
    (
        "keyring::LegacyKey",
        Show(|shown| {
            shown.debug(&LegacyKey::from_bytes(&KEY).unwrap());
        }),
    ),
    (
        "keyring::LegacyOpener",
        Show(|shown| {
            shown.debug(&legacy());
        }),
    ),
    ("keyring::LegacyPolicy", Public(WORD)),
    ("keyring::LegacyUse", Public(WORD)),
    (
        "keyring::LiveKeyring",
        Show(|shown| {
            shown.debug(&LiveKeyring::new(keyring()));
        }),
    ),
    ("keyring::Refreshed", Public(WORD)),
    (
        "keyring::Sealed",
        Show(|shown| {
            shown.debug(&sealed());
        }),
    ),
    (
        "keyring::SourceError",
        Show(|shown| {
            shown.error(&SourceError::Unset("BIPLANE_KEYRING".into()));
            for error in keyring_errors() {
                if let KeyringError::Source(source) = error {
                    shown.error(&source);
                }
            }
        }),
    ),
    (
        "keyring::UnknownKeyState",
        Show(|shown| {
            shown.error(&SECRET.parse::<KeyState>().unwrap_err());
        }),
    ),
    (
        "keyring::Unused",
        Show(|shown| {
            shown.debug(&Unused::confirmed_by_hand(key().id()));
        }),
    ),
    ("keyring::WrapperError", Public(WORD)),
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
    ("plane::IsolationLevel", Public(WORD)),
    ("plane::RoleName", Public(NAME)),
    (
        "plane::RoleNameError",
        Show(|shown| {
            shown.error(&RoleName::parse(&SECRET.repeat(9)).unwrap_err());
            shown.error(&RoleName::parse(&format!("{SECRET}\0")).unwrap_err());
        }),
    ),
    ("plane::TenantConn", Public("an alias of plane::Conn")),
    ("plane::TenantDb", Public("an alias of plane::Db")),
    ("plane::TenantTx", Public("an alias of plane::Tx")),
    ("plane::Tx", AtWork),
    ("plane::TxOptions", Public(WORD)),
    ("pool::Pool", AtWork),
    ("pool::PoolOptions", Public(FIGURES)),
    ("pool::PoolStats", Public(FIGURES)),
    ("pool::StatementLogging", Public(WORD)),
    (
        "presence::Distribution",
        Public("ids, names of services and states of keys"),
    ),
    ("presence::Heartbeat", AtWork),
    ("presence::HeartbeatBuilder", AtWork),
    (
        "presence::Holder",
        Public("an id, the name of a service, and the state of a key"),
    ),
    (
        "presence::NotEverywhere",
        Public("ids, names of services and states of keys"),
    ),
    (
        "repository::Actor",
        Public("a name and a reason, which the audit keeps, as its contract says"),
    ),
    (
        "repository::AuditEntry",
        Show(|shown| {
            let changed = json!({"settings": {"before": SECRET, "after": {"mail.password": SECRET}}});
            let by = Actor::new("ann", "a ticket");
            shown.debug(&AuditEntry::new(
                SystemTime::now(),
                by,
                Subject::Tenant(TenantId::new()),
                changed,
            ));
        }),
    ),
    (
        "repository::Beat",
        Public("an id, the name of a service, and figures"),
    ),
    ("repository::Change", Public("ids, versions and words")),
    ("repository::ChangeHead", Public(COUNTER)),
    ("repository::ChangeKind", Public(WORD)),
    ("repository::Changes", Public("ids, versions and words")),
    ("repository::ControlSchema", Public(NO_VALUES)),
    ("repository::CredentialPlace", Public("ids and words")),
    ("repository::CredentialSlot", Public(WORD)),
    ("repository::Found", Public("an alias of a Result")),
    ("repository::Grants", Public(NAME)),
    (
        "repository::Instance",
        Public("an id, the name of a service, and figures"),
    ),
    ("repository::InstanceKey", Public("an id, a state and figures")),
    ("repository::KeyReport", Public("an id, a state and figures")),
    (
        "repository::Login",
        Show(|shown| {
            shown.debug(&Login::new(credential()));
        }),
    ),
    ("repository::MemoryControl", AtWork),
    (
        "repository::MemoryCredentials",
        Show(|shown| {
            shown.debug(&credentials());
        }),
    ),
    (
        "repository::NewSource",
        Show(|shown| {
            shown.debug(&NewSource::new("east", location()));
        }),
    ),
    (
        "repository::NewTenant",
        Show(|shown| {
            let mut tenant = NewTenant::new(slug(), DataSourceId::new());
            tenant.settings = secret_settings();
            shown.debug(&tenant);
            tenant.settings = json!([SECRET]);
            shown.debug(&tenant);
        }),
    ),
    (
        "repository::Page",
        Show(|shown| {
            shown.debug(&Page::new(
                vec![PageItem::new(TenantId::new(), Ok(record()))],
                None,
            ));
        }),
    ),
    (
        "repository::PageItem",
        Show(|shown| {
            shown.debug(&PageItem::new(TenantId::new(), Ok(record())));
        }),
    ),
    ("repository::PgTenantAdmin", AtWork),
    ("repository::PgTenants", AtWork),
    (
        "repository::Reseal",
        Show(|shown| {
            let place = CredentialPlace::new(DataSourceId::new(), Role::App, CredentialSlot::Current);
            shown.debug(&Reseal::new(place, SealedText::new(SECRET), sealed().to_text()));
        }),
    ),
    ("repository::ResealOutcome", Public(WORD)),
    (
        "repository::SealedCredential",
        Show(|shown| {
            let place = CredentialPlace::new(DataSourceId::new(), Role::App, CredentialSlot::Current);
            let version = CredentialVersion::FIRST;
            shown.debug(&SealedCredential::new(
                place,
                "east",
                version,
                SealedText::new(SECRET),
            ));
        }),
    ),
    (
        "repository::SourceChange",
        Show(|shown| {
            shown.debug(&SourceChange::default().location(location()));
        }),
    ),
    ("repository::Subject", Public(ID)),
    ("router::Biplane", AtWork),
    ("router::Builder", AtWork),
    ("router::CacheOptions", Public(FIGURES)),
    ("router::CheckedBuilder", AtWork),
    ("router::Clock", Public(FIGURES)),
    ("router::Mapped", AtWork),
    ("router::MappedConnector", AtWork),
    ("router::RouterStats", Public(FIGURES)),
    ("router::Routing", AtWork),
    (
        "secret::Credential",
        Show(|shown| {
            shown.debug(&credential()).debug(&credential().password());
            shown.debug(&Credential::new(SECRET, SecretString::from(SECRET)).unwrap());
            let plaintext = credential().to_plaintext();
            shown.debug(&plaintext);
        }),
    ),
    (
        "secret::CredentialError",
        Show(|shown| {
            shown.error(&Credential::new("app", SecretString::from(format!("{SECRET}\0"))).unwrap_err());
            let bytes: SecretBytes = SecretBox::new([SECRET.as_bytes(), b"\xff"].concat().into_boxed_slice());
            shown.error(&Credential::from_plaintext(&bytes).unwrap_err());
        }),
    ),
    (
        "secret::SecretBytes",
        Show(|shown| {
            let bytes: SecretBytes = SecretBox::new(SECRET.as_bytes().into());
            shown.debug(&bytes);
            shown.debug(&keyring().open(&context(), &sealed()).unwrap());
        }),
    ),
    (
        "settings::Dsn",
        Show(|shown| {
            for text in urls() {
                let dsn = Dsn::parse(&text).unwrap();
                shown.debug(&dsn).display(&dsn);
            }
        }),
    ),
    (
        "settings::DsnError",
        Show(|shown| {
            for text in wrong_urls() {
                shown.error(&Dsn::parse(&text).unwrap_err());
            }
        }),
    ),
    ("settings::Mode", Public(WORD)),
    ("settings::Parameter", Public(WORD)),
    (
        "settings::Settings",
        Show(|shown| {
            shown.debug(&settings());
        }),
    ),
    (
        "settings::SettingsError",
        Show(|shown| {
            for error in settings_errors() {
                shown.error(&error);
            }
        }),
    ),
    (
        "settings::UnknownParameters",
        Show(|shown| {
            for text in wrong_urls() {
                if let biplane::settings::DsnError::UnknownParameters(unknown) =
                    Dsn::parse(&text).unwrap_err()
                {
                    shown.debug(&unknown).display(&unknown);
                }
            }
        }),
    ),
    ("settings::UrlPart", Public(WORD)),
    ("settings::VariableNames", Public("names of variables")),
    ("settings::WithoutPassword", Public(WORD)),
    ("tenant::Access", Public(WORD)),
    (
        "tenant::CaCertificate",
        Show(|shown| {
            shown.debug(&CaCertificate::Pem(
                format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n").into(),
            ));
        }),
    ),
    ("tenant::CredentialVersion", Public(COUNTER)),
    (
        "tenant::DataSource",
        Show(|shown| {
            shown.debug(&source());
        }),
    ),
    ("tenant::DataSourceId", Public(ID)),
    ("tenant::DatabaseId", Public(ID)),
    ("tenant::Domain", Public(NAME)),
    (
        "tenant::DomainError",
        Show(|shown| {
            for text in [
                format!("{SECRET}!.example"),
                format!("{SECRET}:80"),
                SECRET.repeat(40),
            ] {
                shown.error(&Domain::parse(&text).unwrap_err());
            }
        }),
    ),
    (
        "tenant::Endpoint",
        Show(|shown| {
            for endpoint in &Dsn::parse(&urls()[0]).unwrap().server().endpoints {
                shown.debug(endpoint).display(endpoint).json(endpoint);
            }
            shown.display(&Endpoint::new("::1", 5432));
        }),
    ),
    ("tenant::Epoch", Public(COUNTER)),
    (
        "tenant::IdError",
        Show(|shown| {
            shown.error(&SECRET.parse::<TenantId>().unwrap_err());
        }),
    ),
    ("tenant::Incarnation", Public(ID)),
    ("tenant::InstanceId", Public(ID)),
    ("tenant::Isolation", Public(WORD)),
    (
        "tenant::Location",
        Show(|shown| {
            shown.debug(&location());
        }),
    ),
    ("tenant::Placement", Public("an id, a word and a number")),
    ("tenant::PoolSettings", Public(FIGURES)),
    ("tenant::PoolSettingsError", Public(BARE)),
    ("tenant::Pooler", Public(WORD)),
    (
        "tenant::Resolved",
        Show(|shown| {
            shown.debug(&Resolved::by_id(record()));
        }),
    ),
    ("tenant::Role", Public(WORD)),
    (
        "tenant::RoleCredentials",
        Show(|shown| {
            shown.debug(&source().credentials);
        }),
    ),
    (
        "tenant::SealedText",
        Show(|shown| {
            // Also when it is none, but plaintext in the wrong column.
            shown.debug(&SealedText::new(SECRET)).debug(&sealed().to_text());
        }),
    ),
    ("tenant::Seq", Public(COUNTER)),
    (
        "tenant::Server",
        Show(|shown| {
            for text in urls() {
                shown.debug(Dsn::parse(&text).unwrap().server());
            }
        }),
    ),
    ("tenant::Slug", Public(NAME)),
    (
        "tenant::SlugError",
        Show(|shown| {
            for text in [format!("-{SECRET}"), format!("{SECRET}!"), SECRET.repeat(20)] {
                shown.error(&Slug::parse(&text).unwrap_err());
            }
        }),
    ),
    (
        "tenant::StoredCredential",
        Show(|shown| {
            shown.debug(&StoredCredential::new(
                CredentialVersion::FIRST,
                SealedText::new(SECRET),
            ));
        }),
    ),
    (
        "tenant::Tenant",
        Show(|shown| {
            shown.debug(&record().tenant);
            // JSON is how a tenant travels, settings and all; they are no place for secrets, as its contract says.
            shown.json(&Tenant::new(TenantId::new(), slug(), placement()));
        }),
    ),
    ("tenant::TenantId", Public(ID)),
    ("tenant::TenantName", Public(NAME)),
    (
        "tenant::TenantRecord",
        Show(|shown| {
            shown.debug(&record());
        }),
    ),
    ("tenant::TenantRef", Public(NAME)),
    ("tenant::TenantStatus", Public(WORD)),
    (
        "tenant::Tls",
        Show(|shown| {
            shown.debug(&Tls::new(TlsMode::VerifyFull).ca(CaCertificate::Pem(SECRET.into())));
        }),
    ),
    ("tenant::TlsMode", Public(WORD)),
    (
        "tenant::UnknownIsolation",
        Show(|shown| {
            shown.error(&SECRET.parse::<Isolation>().unwrap_err());
        }),
    ),
    (
        "tenant::UnknownRole",
        Show(|shown| {
            shown.error(&SECRET.parse::<Role>().unwrap_err());
        }),
    ),
    (
        "tenant::UnknownStatus",
        Show(|shown| {
            shown.error(&SECRET.parse::<biplane::tenant::TenantStatus>().unwrap_err());
        }),
    ),
    (
        "tenant::UnknownTlsMode",
        Show(|shown| {
            shown.error(&SECRET.parse::<TlsMode>().unwrap_err());
        }),
    ),
    ("tenant::Version", Public(COUNTER)),
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
    (
        "testing::wait::TimedOut",
        Public("what a test waited for, in the test's own words"),
    ),
];

/// Types that hold secrets, so that nobody may write them out or make them of what somebody else wrote.
pub(crate) const NEVER_SERIALIZED: &[&str] = &[
    "keyring::Fingerprint",
    "keyring::Fingerprints",
    "keyring::KeyMaterial",
    "keyring::Keyring",
    "keyring::KeyringFile",
    "keyring::LegacyKey",
    "keyring::LiveKeyring",
    "repository::Login",
    "repository::MemoryCredentials",
    "secret::Credential",
    "settings::Dsn",
    "settings::Settings",
];
