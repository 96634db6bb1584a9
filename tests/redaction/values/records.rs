//! What the control plane keeps, and what is reported to it.

use std::time::SystemTime;

use biplane::{
    repository::{
        Actor, AuditEntry, ChangeSource, Login, MemoryControl, NewSource, NewTenant, Page, PageItem, Reseal,
        SealedCredential, SourceChange, Subject,
    },
    settings::Dsn,
    tenant::{
        CaCertificate, CredentialVersion, DataSourceId, Domain, Endpoint, Isolation, Resolved, Role,
        SealedText, Slug, StoredCredential, Tenant, TenantId, Tls, TlsMode,
    },
};
use serde_json::json;

use super::{
    BARE, COUNTER, FIGURES,
    How::{self, AtWork, Public, Show},
    ID, NAME, NO_VALUES, WORD,
};
use crate::{
    canary::SECRET,
    samples::{
        credential, credentials, location, place, placement, record, sealed, secret_settings, slug, source,
        urls,
    },
};

pub(super) const TYPES: &[(&str, How)] = &[
    (
        "presence::Distribution",
        Public("ids, states and names of services"),
    ),
    ("presence::Heartbeat", AtWork),
    ("presence::HeartbeatBuilder", AtWork),
    (
        "presence::Holder",
        Public("an id, a state and the name of a service"),
    ),
    (
        "presence::Lagging",
        Public("an id, the name of a service, and figures"),
    ),
    (
        "presence::NotApplied",
        Public("ids, names of services, and figures"),
    ),
    ("presence::NotEverywhere", AtWork),
    (
        "presence::WaitError",
        Public("one of two errors, each shown by itself"),
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
        Public("an id, the name of a service and figures"),
    ),
    ("repository::Change", Public("ids, versions and words")),
    ("repository::ChangeHead", Public(COUNTER)),
    ("repository::ChangeHint", Public(COUNTER)),
    ("repository::ChangeKind", Public(WORD)),
    (
        "repository::ChangeSource",
        Show(|shown| {
            let control = MemoryControl::new();
            shown.debug(&ChangeSource::pushed(control.clone(), control));
        }),
    ),
    ("repository::Changes", Public("ids, versions and words")),
    ("repository::ControlSchema", Public(NO_VALUES)),
    ("repository::CredentialPlace", Public("an id and two words")),
    ("repository::CredentialSlot", Public(WORD)),
    ("repository::Found", Public("an alias of a Result")),
    ("repository::Grants", Public(NAME)),
    (
        "repository::Instance",
        Public("an id, the name of a service and figures"),
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
        "repository::SourceChange",
        Show(|shown| {
            shown.debug(&SourceChange::default().location(location()));
        }),
    ),
    (
        "repository::Reseal",
        Show(|shown| {
            shown.debug(&Reseal::new(place(), SealedText::new(SECRET), sealed().to_text()));
        }),
    ),
    ("repository::ResealOutcome", Public(WORD)),
    (
        "repository::SealedCredential",
        Show(|shown| {
            let slip = SealedText::new(SECRET);
            shown.debug(&SealedCredential::new(
                place(),
                "east",
                CredentialVersion::FIRST,
                slip,
            ));
        }),
    ),
    ("repository::Subject", Public(ID)),
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
];
