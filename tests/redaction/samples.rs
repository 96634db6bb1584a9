//! Values with a secret in every place that may hold one, and the errors that come of handing them over wrongly.

use std::{num::NonZeroU32, sync::Arc};

use biplane::{
    keyring::{
        Context, KeyMaterial, KeyState, Keyring, KeyringBuilder, KeyringError, LegacyKey, LegacyOpener,
        LegacyPolicy, LegacyUse, Sealed, SourceError,
    },
    repository::{CredentialPlace, CredentialSlot, MemoryCredentials},
    secret::Credential,
    settings::{Dsn, Settings, SettingsError, VariableNames},
    tenant::{
        CaCertificate, CredentialVersion, DataSource, DataSourceId, Isolation, Location, Placement, Role,
        RoleCredentials, SealedText, Server, Slug, StoredCredential, Tenant, TenantId, TenantRecord, Tls,
        TlsMode,
    },
};
use secrecy::SecretString;
use serde_json::json;

use crate::canary::{KEY, SECRET, hex};

pub(crate) fn credential() -> Credential {
    Credential::new("app", SecretString::from(SECRET)).unwrap()
}

pub(crate) fn credentials() -> MemoryCredentials {
    let credentials = MemoryCredentials::new();
    credentials.set(DataSourceId::new(), Role::App, credential());
    credentials
}

pub(crate) fn key() -> KeyMaterial {
    KeyMaterial::from_bytes(&KEY).unwrap()
}

pub(crate) fn builder() -> KeyringBuilder {
    Keyring::builder().key(key(), KeyState::Primary)
}

pub(crate) fn keyring() -> Keyring {
    builder().build().unwrap()
}

pub(crate) fn context() -> Context<'static> {
    Context::new("setting", "018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e57", "mail.password").unwrap()
}

pub(crate) fn sealed() -> Sealed {
    keyring().seal(&context(), SECRET.as_bytes()).unwrap()
}

pub(crate) fn legacy() -> LegacyOpener {
    LegacyOpener::new(LegacyKey::from_bytes(&KEY).unwrap(), LegacyPolicy::ImportOnly)
}

pub(crate) fn slug() -> Slug {
    Slug::parse("acme").unwrap()
}

pub(crate) fn placement() -> Placement {
    Placement::new(DataSourceId::new(), Isolation::Database)
}

pub(crate) fn secret_settings() -> serde_json::Value {
    json!({"theme": "dark", "mail.password": SECRET, "nested": {"list": [SECRET]}})
}

pub(crate) fn record() -> Arc<TenantRecord> {
    let mut tenant = Tenant::new(TenantId::new(), slug(), placement());
    tenant.settings = secret_settings();
    Arc::new(TenantRecord::new(tenant, Arc::new(source())))
}

pub(crate) fn source() -> DataSource {
    let mut source = DataSource::new(DataSourceId::new(), "east", location());
    let stored = |text| StoredCredential::new(CredentialVersion::FIRST, text);
    let mut credentials = RoleCredentials::new(stored(SealedText::new(SECRET)));
    credentials.next = Some(stored(sealed().to_text()));
    source.credentials.insert(Role::App, credentials);
    source
}

pub(crate) fn location() -> Location {
    let mut server: Server = Dsn::parse(&urls()[0]).unwrap().server().clone();
    server.tls = Tls::new(TlsMode::VerifyFull).ca(CaCertificate::Pem(SECRET.into()));
    Location::Server(server)
}

/// With user info in every form that URLs have it.
pub(crate) fn urls() -> [String; 3] {
    [
        format!("postgres://app:{SECRET}@db.example:5432/crm?connection_limit=7"),
        format!("postgres://{SECRET}:{SECRET}%40%2F@h1:5432,h2:5433/crm?pgbouncer=true"),
        format!("postgres://app:x@{SECRET}@%2Frun%2Fpostgresql/crm\n"),
    ]
}

/// With a secret in every place where a mistake puts one.
pub(crate) fn wrong_urls() -> Vec<String> {
    let [good, ..] = urls();
    let mut wrong: Vec<String> = [
        "sslmode",
        "connection_limit",
        "schema",
        "require_auth",
        "pool_timeout",
        "host",
    ]
    .iter()
    .map(|name| format!("{good}&{name}={SECRET}!"))
    .collect();
    wrong.extend([
        SECRET.to_owned(),
        format!("https://{SECRET}@db.example/"),
        format!("mysql://app:{SECRET}@db.example/crm"),
        format!("postgres://app:{SECRET}%zz@db.example/crm"),
        format!("postgres://app:{SECRET}/{SECRET}@db.example/crm"),
        format!("postgres://app:{SECRET}#@db.example/crm"),
        format!("postgres://app:{SECRET}@db.example:{SECRET}/crm"),
        format!("postgres://app:{SECRET}@db.example/{}", SECRET.repeat(9)),
        format!("postgres://app:{SECRET}@{SECRET}!/crm"),
        format!("postgres://:{SECRET}@db.example/crm"),
        format!("postgres://app:{SECRET}@/crm"),
        format!("postgres://app:{SECRET}@db.example"),
        format!("{good}&connection_limit=8"),
        format!("{good}&require_auth=none"),
        format!("{good}&password={SECRET}&{SECRET}&{SECRET}=1"),
        format!("{good}&sslkey={SECRET}&more={SECRET}"),
        format!("{good}{}", SECRET.repeat(600)),
        format!("{good} {SECRET}"),
    ]);
    wrong
}

pub(crate) fn settings() -> Settings {
    let [data, control, _] = urls();
    lookup(&[("BIPLANE_CONTROL_URL", &control), ("BIPLANE_DATA_URL", &data)]).unwrap()
}

pub(crate) fn lookup(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    Settings::from_lookup_with(&VariableNames::default(), |name| {
        let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
        Some((*value).to_owned())
    })
}

pub(crate) fn settings_errors() -> Vec<SettingsError> {
    let [data, control, _] = urls();
    let mut errors: Vec<SettingsError> = wrong_urls()
        .iter()
        .map(|url| lookup(&[("BIPLANE_CONTROL_URL", url)]).unwrap_err())
        .collect();
    let variables: [&[(&str, &str)]; 6] = [
        &[("BIPLANE_CONTROL_URL", &control), ("CONTROL_DB_URL", &data)],
        &[("BIPLANE_CONTROL_URL", &control), ("BIPLANE_DATA_URL", &control)],
        &[("BIPLANE_CONTROL_URL", &control), ("BIPLANE_MODE", SECRET)],
        &[("BIPLANE_CONTROL_URL", &control), ("BIPLANE_MODE", "single")],
        &[("BIPLANE_DATA_URL", &data)],
        &[
            ("BIPLANE_CONTROL_URL", &control),
            ("BIPLANE_DATA_URL", &data.replace("/crm", "/other")),
            ("BIPLANE_MODE", "single"),
        ],
    ];
    errors.extend(variables.map(|variables| lookup(variables).unwrap_err()));
    errors
}

/// From every way of giving keys and values that are wrong and hold secrets.
pub(crate) fn keyring_errors() -> Vec<KeyringError> {
    let digits = hex(&KEY);
    let texts = [
        SECRET.to_owned(),
        format!("{}g", &digits[1..]),
        format!("primary:{digits}\npending:{digits}"),
        format!("pending:{digits}"),
        format!("primary:{digits}0"),
        format!("primary:0123456789abcdef:{digits}"),
        format!("{SECRET}:{digits}"),
        format!("primary:{SECRET}:{digits}"),
        format!("destroyed:{digits}"),
        format!("{{\"biplane_keyring\": 1, \"keys\": [{{\"id\": \"{digits}\"}}]}}"),
        format!("{{\"biplane_keyring\": 1, \"keys\": [{{\"{SECRET}\": \"{digits}\"}}]}}"),
        format!("{{\"biplane_keyring\": 1, \"keys\": [{digits}"),
        format!("{{\"biplane_keyring\": \"{SECRET}\", \"keys\": \"\\u0041{digits}\"}}"),
    ];
    let mut errors: Vec<KeyringError> = texts
        .iter()
        .map(|text| Keyring::parse(text).unwrap_err())
        .collect();
    errors.push(KeyMaterial::from_bytes(SECRET.repeat(2).as_bytes()).unwrap_err());
    errors.push(KeyMaterial::from_bytes(&[KEY, KEY].concat()).unwrap_err());

    let mut changed = sealed().as_bytes().to_vec();
    changed[40] ^= 1;
    let changed = Sealed::from_bytes(&changed).unwrap();
    let bytes = keyring().seal(&context(), &KEY).unwrap();
    let small = builder().max_plaintext(NonZeroU32::MIN).build().unwrap();
    let credential = Context::credential(DataSourceId::DEFAULT, Role::App);
    let no_login = keyring()
        .seal(&credential, format!("a\0{SECRET}\0").as_bytes())
        .unwrap();
    let legacy_value = format!("{}:{}:{digits}", &digits[..32], &digits[32..]);
    errors.extend([
        Sealed::parse(SECRET).unwrap_err(),
        Sealed::parse(&format!("bp1.{digits}.{SECRET}")).unwrap_err(),
        Sealed::from_bytes(&KEY).unwrap_err(),
        keyring().open(&context(), &changed).unwrap_err(),
        keyring().open_string(&context(), &bytes).unwrap_err(),
        small.seal(&context(), SECRET.as_bytes()).unwrap_err(),
        keyring()
            .open_credential(DataSourceId::DEFAULT, Role::App, &no_login.to_text())
            .unwrap_err(),
        legacy().open(SECRET, LegacyUse::Import).unwrap_err(),
        legacy().open(&legacy_value, LegacyUse::Import).unwrap_err(),
        legacy().open(&legacy_value, LegacyUse::Read).unwrap_err(),
        KeyringError::Source(SourceError::Unset("BIPLANE_KEYRING".into())),
    ]);
    errors
}

pub(crate) fn place() -> CredentialPlace {
    CredentialPlace::new(DataSourceId::new(), Role::App, CredentialSlot::Current)
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}
