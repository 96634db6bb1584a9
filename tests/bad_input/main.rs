//! Bad input of every sort: an error of its own kind, which says what to do and shows no secret, on a control plane in
//! Postgres and on one in memory, also through an executor of sqlx's.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod before_asking;
#[path = "../control/mod.rs"]
mod control;
mod in_memory;
#[path = "../planes/mod.rs"]
mod planes;
mod unreachable;

use std::time::Duration;

use biplane::{
    error::{Error, ErrorKind},
    plane::{DataSchema, RoleName, TenantDb, dangerous_assume_control},
    repository::{CredentialSlot, NewSource, TenantRepository},
    secret::Credential,
    tenant::{
        DatabaseId, Domain, Isolation, Location, Role, Server, Slug, Tenant, TenantId, TenantRef,
        TenantStatus, Tls, TlsMode,
    },
};
use control::{ROUTER, cluster, damage, login, owner, run};
use planes::{Home, Planes, by, judge, judge_sqlx, keyring, says_nothing_secret, slug};
use secrecy::SecretString;
use sqlx::postgres::PgQueryResult;

/// Each case as a test for each control plane.
macro_rules! on_both_control_planes {
    ($($case:ident),+ $(,)?) => {
        mod postgres_control {
            $(#[tokio::test]
            async fn $case() {
                crate::$case(crate::Planes::postgres().await).await;
            })+
        }

        mod memory_control {
            $(#[tokio::test]
            async fn $case() {
                crate::$case(crate::Planes::memory().await).await;
            })+
        }
    };
}

on_both_control_planes!(
    an_unknown_name,
    a_credential_sealed_for_another_tenants_data_source,
    a_credential_sealed_for_another_role,
    a_missing_key,
    one_malformed_record_among_many,
    a_database_that_is_not_the_one_meant,
    a_missing_role,
    an_empty_password,
    a_login_without_password_where_the_server_asks_for_one,
    a_wrong_password,
    a_database_that_does_not_exist,
    a_server_that_does_not_answer,
    a_tls_mode_that_cannot_be_met,
    an_isolation_that_is_not_served,
    a_tenant_that_is_not_open,
    a_write_to_a_tenant_that_is_open_for_reads,
    a_closed_router,
);

/// A statement whose text no error may show.
async fn ask(db: &TenantDb) -> sqlx::Result<PgQueryResult> {
    sqlx::query("insert into note (text) values ('canary in a statement')")
        .execute(db)
        .await
}

/// Through an executor, in a transaction and on a held connection the kind is the same; or the login is left alone after
/// it failed, and that is why.
async fn refused(db: &TenantDb, kind: ErrorKind, advice: &str) {
    judge_sqlx(ask(db).await, kind, advice);
    for error in [
        db.begin().await.map(drop).unwrap_err(),
        db.acquire().await.map(drop).unwrap_err(),
    ] {
        says_nothing_secret(&error);
        let error = Error::from(error);
        match (error.kind(), std::error::Error::source(&error)) {
            (ErrorKind::DatabaseUnavailable { retry_after: Some(_) }, Some(cause)) => {
                judge(cause.downcast_ref().unwrap(), kind, advice);
            }
            _ => judge(&error, kind, advice),
        }
    }
}

async fn works(db: &TenantDb) {
    assert_eq!(ask(db).await.unwrap().rows_affected(), 1);
}

/// A control plane that could not be asked is left alone for a moment.
async fn works_again(db: &TenantDb) {
    let patience = Duration::from_secs(60);
    biplane::testing::wait::until("it works again", patience, async || ask(db).await.is_ok())
        .await
        .unwrap();
}

async fn route(planes: &Planes, home: &Home) -> TenantDb {
    planes.biplane().route(&home.tenant.slug).await.unwrap()
}

async fn an_unknown_name(planes: Planes) {
    let home = planes.add("acme").await;
    let biplane = planes.biplane();
    let (kind, advice) = (ErrorKind::UnknownTenant, "no such tenant");
    // Twice: the second is answered from memory.
    for _ in 0..2 {
        let domain = Domain::parse("acme.example").unwrap();
        judge(&biplane.route(&slug("acme-2")).await.unwrap_err(), kind, advice);
        judge(&biplane.route(&domain).await.unwrap_err(), kind, advice);
        judge(&biplane.route(TenantId::new()).await.unwrap_err(), kind, advice);
    }
    works(&biplane.route(&home.tenant.slug).await.unwrap()).await;
}

/// Somebody who can write to the control plane copies acme's sealed login to globex's data source.
async fn a_credential_sealed_for_another_tenants_data_source(planes: Planes) {
    let acme = planes.add("acme").await;
    let globex = planes.add_without_login("globex").await;
    let stolen = planes.source(&acme).await.credentials[&Role::App]
        .current
        .sealed
        .clone();
    planes
        .admin
        .set_credential(
            &by(),
            globex.source,
            Role::App,
            CredentialSlot::Current,
            None,
            stolen,
        )
        .await
        .unwrap();
    let key = Some(planes.keyring.primary());
    let kind = ErrorKind::CredentialUnreadable { key };
    let advice = "load the key that sealed it, or seal it again for this data source and role";
    refused(&route(&planes, &globex).await, kind, advice).await;
    works(&route(&planes, &acme).await).await;
}

async fn a_credential_sealed_for_another_role(planes: Planes) {
    let acme = planes.add("acme").await;
    let swapped = planes.source(&acme).await.credentials[&Role::App]
        .current
        .sealed
        .clone();
    planes
        .admin
        .set_credential(
            &by(),
            acme.source,
            Role::Service,
            CredentialSlot::Current,
            None,
            swapped,
        )
        .await
        .unwrap();
    let key = Some(planes.keyring.primary());
    let kind = ErrorKind::CredentialUnreadable { key };
    let db = route(&planes, &acme).await;
    refused(&db.with_role(Role::Service), kind, "role service").await;
    works(&db).await;
}

async fn a_missing_key(planes: Planes) {
    let home = planes.add("acme").await;
    let others = planes.builder_with(keyring()).build().unwrap();
    let db = others.route(&home.tenant.slug).await.unwrap();
    let sealed_by = planes.keyring.primary();
    let kind = ErrorKind::CredentialUnreadable { key: Some(sealed_by) };
    refused(&db, kind, &format!("key {sealed_by} is not in the keyring")).await;
    works(&route(&planes, &home).await).await;
}

async fn one_malformed_record_among_many(planes: Planes) {
    let mut homes = Vec::new();
    for name in ["one", "two", "three"] {
        homes.push(planes.add(name).await);
    }
    let biplane = planes.biplane();
    let held = biplane.route(&homes[1].tenant.slug).await.unwrap();
    works(&held).await;
    planes.spoil(&homes[1]).await;
    biplane.invalidate(homes[1].tenant.id).await;

    let (kind, advice) = (ErrorKind::MalformedRecord, "correct it there");
    judge(
        &biplane.route(&homes[1].tenant.slug).await.unwrap_err(),
        kind,
        advice,
    );
    judge(
        &biplane.route(homes[1].tenant.id).await.unwrap_err(),
        kind,
        advice,
    );
    refused(&held, kind, advice).await;
    for home in [&homes[0], &homes[2]] {
        works(&biplane.route(&home.tenant.slug).await.unwrap()).await;
    }
    // In one question and in one page, each record answers for itself.
    let slugs: Vec<Slug> = homes.iter().map(|home| home.tenant.slug).collect();
    let names: Vec<TenantRef<'_>> = slugs.iter().map(TenantRef::Slug).collect();
    let found = planes.tenants.find(&names).await.unwrap();
    assert!(found[0].is_ok() && found[2].is_ok());
    judge(found[1].as_ref().unwrap_err(), kind, advice);
    let page = planes
        .tenants
        .list(None, const { std::num::NonZeroU32::new(10).unwrap() })
        .await
        .unwrap();
    assert_eq!(page.items.iter().filter(|item| item.record.is_ok()).count(), 2);
}

async fn a_database_that_is_not_the_one_meant(planes: Planes) {
    let home = planes.add("acme").await;
    works(&route(&planes, &home).await).await;
    let kind = ErrorKind::WrongDatabase;

    let mut owner = owner(&home.database).await;
    DataSchema::stamp(&mut owner, DatabaseId::new()).await.unwrap();
    let db = route(&planes, &home).await;
    refused(&db, kind, "it says that it is another one").await;
    run(&mut owner, "delete from biplane.database").await.unwrap();
    refused(&db, kind, "it was never stamped").await;
    let login = RoleName::parse(home.login.username()).unwrap();
    DataSchema::install(&mut owner, home.database_id, &[login])
        .await
        .unwrap();
    // What it said of tenants is believed again when somebody has looked at it.
    let reconciled = "update biplane.residence set state = 'open'";
    run(&mut owner, reconciled).await.unwrap();
    works(&db).await;

    run(&mut owner, DataSchema::uninstall_sql()).await.unwrap();
    refused(&route(&planes, &home).await, kind, "it has no schema biplane").await;
}

async fn a_missing_role(planes: Planes) {
    let home = planes.add("acme").await;
    let db = route(&planes, &home).await;
    for role in [Role::Service, Role::ReadOnly] {
        let kind = ErrorKind::MissingCredential { role };
        refused(
            &db.with_role(role),
            kind,
            "no credential for this role; store one",
        )
        .await;
    }
    works(&db).await;
}

async fn an_empty_password(planes: Planes) {
    let home = planes.add_without_login("acme").await;
    let empty = Credential::new(home.login.username(), SecretString::from("")).unwrap();
    planes.seal(&home, Role::App, &empty).await;
    let advice = "store one, or say explicitly that none is needed";
    refused(&route(&planes, &home).await, ErrorKind::MissingPassword, advice).await;
}

/// Here somebody said that no password is needed, and the server says otherwise.
async fn a_login_without_password_where_the_server_asks_for_one(planes: Planes) {
    let home = planes.add_without_login("acme").await;
    let bare = Credential::without_password(home.login.username()).unwrap();
    planes.seal(&home, Role::App, &bare).await;
    let advice = "refused the credential; store the one that it expects";
    refused(
        &route(&planes, &home).await,
        ErrorKind::CredentialRejected,
        advice,
    )
    .await;
}

async fn a_wrong_password(planes: Planes) {
    let home = planes.add_without_login("acme").await;
    let wrong = Credential::new(home.login.username(), SecretString::from("canary-wrong")).unwrap();
    planes.seal(&home, Role::App, &wrong).await;
    let advice = "refused the credential; store the one that it expects";
    refused(
        &route(&planes, &home).await,
        ErrorKind::CredentialRejected,
        advice,
    )
    .await;
}

async fn a_database_that_does_not_exist(planes: Planes) {
    let mut server = cluster().await.server("nowhere");
    server.database = "nowhere".into();
    let home = at(&planes, server).await;
    let advice = "create it or correct the data source";
    refused(&route(&planes, &home).await, ErrorKind::DatabaseMissing, advice).await;
}

async fn a_server_that_does_not_answer(planes: Planes) {
    // A port that was just free, and that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut server = cluster().await.server("postgres");
    server.endpoints[0].port = free;
    let home = at(&planes, server).await;
    let error = ask(&route(&planes, &home).await).await.unwrap_err();
    says_nothing_secret(&error);
    let error = Error::from(error);
    // When to try again may be said or not.
    assert!(
        matches!(error.kind(), ErrorKind::DatabaseUnavailable { .. }),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .starts_with("the database could not be reached; try again"),
        "{error}"
    );
}

#[cfg(not(any(
    feature = "tls-rustls-ring-webpki",
    feature = "tls-rustls-ring-native-roots",
    feature = "tls-rustls-aws-lc-rs",
    feature = "tls-native-tls"
)))]
async fn a_tls_mode_that_cannot_be_met(planes: Planes) {
    use biplane::plane::{ControlDb, ControlOptions};

    let advice = "build with a tls- feature";
    for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        let mut server = cluster().await.server("postgres");
        server.tls = Tls::new(mode);
        let control = ControlDb::connect(ControlOptions::new(server.clone(), login(ROUTER)));
        judge(&control.unwrap_err(), ErrorKind::InvalidConfiguration, advice);
        let home = at_named(&planes, server, mode.as_str()).await;
        refused(
            &route(&planes, &home).await,
            ErrorKind::InvalidConfiguration,
            advice,
        )
        .await;
    }
}

#[cfg(any(
    feature = "tls-rustls-ring-webpki",
    feature = "tls-rustls-ring-native-roots",
    feature = "tls-rustls-aws-lc-rs",
    feature = "tls-native-tls"
))]
async fn a_tls_mode_that_cannot_be_met(planes: Planes) {
    // This server has no certificate, and what was demanded is not quietly left out.
    for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        let mut server = cluster().await.server("postgres");
        server.tls = Tls::new(mode);
        let home = at_named(&planes, server, mode.as_str()).await;
        let kind = ErrorKind::DatabaseUnavailable { retry_after: None };
        judge_sqlx(ask(&route(&planes, &home).await).await, kind, "TLS");
    }
}

async fn an_isolation_that_is_not_served(planes: Planes) {
    for isolation in [Isolation::Schema, Isolation::Row] {
        // Without a fence nobody shares a database.
        let home = at_named(&planes, cluster().await.server("postgres"), isolation.as_str()).await;
        let (id, version) = (home.tenant.id, home.tenant.version);
        planes
            .admin
            .place(&by(), id, version, home.source, isolation)
            .await
            .unwrap();
        let kind = ErrorKind::UnsupportedIsolation { isolation };
        let biplane = planes.biplane();
        match biplane.route(&home.tenant.slug).await {
            Ok(db) => refused(&db, kind, isolation.as_str()).await,
            Err(error) => judge(&error, kind, isolation.as_str()),
        }
    }
}

async fn set_status(planes: &Planes, tenant: &Tenant, status: TenantStatus) -> Tenant {
    let changed = planes
        .admin
        .set_status(&by(), tenant.id, tenant.version, status)
        .await;
    changed.unwrap()
}

async fn a_tenant_that_is_not_open(planes: Planes) {
    let home = planes.add("acme").await;
    let biplane = planes.biplane();
    let held = biplane.route(&home.tenant.slug).await.unwrap();
    works(&held).await;
    let mut tenant = home.tenant.clone();
    for status in [
        TenantStatus::Suspended,
        TenantStatus::Archived,
        TenantStatus::Deleted,
    ] {
        tenant = set_status(&planes, &tenant, status).await;
        biplane.invalidate(tenant.id).await;
        let kind = ErrorKind::Inactive { status };
        judge(
            &biplane.route(tenant.id).await.unwrap_err(),
            kind,
            status.as_str(),
        );
        refused(&held, kind, status.as_str()).await;
    }
}

async fn a_write_to_a_tenant_that_is_open_for_reads(planes: Planes) {
    let home = planes.add("acme").await;
    set_status(&planes, &home.tenant, TenantStatus::ReadOnly).await;
    let db = route(&planes, &home).await;
    let advice = "open for reads only";
    judge_sqlx(ask(&db).await, ErrorKind::ReadOnly, advice);
    let mut tx = db.begin().await.unwrap();
    let write = sqlx::query("insert into note (text) values ('canary in a statement')");
    judge_sqlx(write.execute(&mut tx).await, ErrorKind::ReadOnly, advice);
    sqlx::query("select text from note").fetch_all(&db).await.unwrap();
}

async fn a_closed_router(planes: Planes) {
    let home = planes.add("acme").await;
    let biplane = planes.biplane();
    let held = biplane.route(&home.tenant.slug).await.unwrap();
    works(&held).await;
    biplane.close(Duration::from_secs(5)).await;
    let (kind, advice) = (ErrorKind::Closed, "the router is closed");
    judge(&biplane.route(&home.tenant.slug).await.unwrap_err(), kind, advice);
    judge(&biplane.route(&slug("nobody")).await.unwrap_err(), kind, advice);
    refused(&held, kind, advice).await;
}

/// A tenant whose data source has another address than its database.
async fn at(planes: &Planes, server: Server) -> Home {
    at_named(planes, server, "elsewhere").await
}

async fn at_named(planes: &Planes, server: Server, name: &str) -> Home {
    let who = login(ROUTER);
    let database = server.database.to_string();
    let (tenant, source) = planes
        .place(name, NewSource::new(name, Location::Server(server)))
        .await;
    let home = Home {
        tenant,
        source,
        database,
        database_id: DatabaseId::new(),
        login: who,
    };
    planes.seal(&home, Role::App, &home.login).await;
    home
}

/// A data source in memory has no server, and a data source of the environment may have none either.
#[tokio::test]
async fn a_data_source_of_another_make_than_the_connector() {
    let planes = Planes::memory().await;
    let (tenant, source) = planes
        .place("acme", NewSource::new("acme", Location::Memory))
        .await;
    let sealed = planes
        .keyring
        .seal_credential(source, Role::App, &login(ROUTER))
        .unwrap();
    planes
        .admin
        .set_credential(&by(), source, Role::App, CredentialSlot::Current, None, sealed)
        .await
        .unwrap();
    let db = planes.biplane().route(&tenant.slug).await.unwrap();
    refused(&db, ErrorKind::InvalidConfiguration, "use the memory connector").await;
}

/// Neither the schema nor, if somebody goes around it, the reader lets such settings through.
#[tokio::test]
async fn pool_settings_that_cannot_work_in_the_control_plane() {
    let planes = Planes::postgres().await;
    let (home, other) = (planes.add("acme").await, planes.add("globex").await);
    let mut owner = owner(&planes.control().database).await;
    for (min, max, advice) in [(0, 0, "max is 0"), (3, 2, "min is larger than max")] {
        let change = format!(
            "update biplane_control.data_source set pool_min = {min}, pool_max = {max} where id = '{}'",
            home.source
        );
        let set = "set biplane.actor = 'ann'; set biplane.reason = 'a mistake';";
        let error = run(&mut owner, format!("{set} {change}")).await.unwrap_err();
        let constraint = error.as_database_error().unwrap().constraint().map(str::to_owned);
        assert_eq!(constraint.as_deref(), Some("data_source_pool"));

        damage(&mut owner, "data_source", "data_source_pool", &change).await;
        let error = planes.biplane().route(&home.tenant.slug).await.unwrap_err();
        judge(&error, ErrorKind::MalformedRecord, advice);
        works(&route(&planes, &other).await).await;
        let repair = format!(
            "update biplane_control.data_source set pool_min = 0, pool_max = 10 where id = '{}'",
            home.source
        );
        damage(&mut owner, "data_source", "data_source_pool", &repair).await;
        let constraint = "alter table biplane_control.data_source add constraint data_source_pool
            check (pool_min >= 0 and pool_min <= pool_max and pool_max > 0)";
        run(&mut owner, constraint).await.unwrap();
    }
}

/// The kind survives the way through code that returns sqlx's errors, wherever it wraps an executor of its own.
#[tokio::test]
async fn the_kind_survives_code_that_knows_sqlx_alone() {
    async fn count<'c>(db: impl sqlx::Executor<'c, Database = sqlx::Postgres>) -> sqlx::Result<i64> {
        sqlx::query_scalar("select count(*) from note")
            .fetch_one(db)
            .await
    }

    let planes = Planes::postgres().await;
    let home = planes.add("acme").await;
    let biplane = planes.biplane();
    let db = biplane.route(&home.tenant.slug).await.unwrap();
    let control = planes.control().router.clone();
    biplane.close(Duration::from_secs(1)).await;
    judge_sqlx(count(&db).await, ErrorKind::Closed, "the router is closed");
    control.close(Duration::from_secs(1)).await;
    judge_sqlx(count(&control).await, ErrorKind::Closed, "closed");
    judge_sqlx(
        count(dangerous_assume_control(&control)).await,
        ErrorKind::Closed,
        "closed",
    );
}
