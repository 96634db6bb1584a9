//! The import: what a team with tables of its own would write.
//!
//! A row is read whole before anything is written, so that a row which cannot be followed leaves nothing behind, and
//! its error names it. The other rows go on.

use std::error::Error as StdError;

use biplane::{
    keyring::{Keyring, LegacyEncoding, LegacyKey, LegacyOpener, LegacyPolicy, LegacyUse},
    plane::{DataSchema, RoleName},
    repository::{Actor, CredentialSlot, NewSource, NewTenant, PgTenantAdmin, TenantAdmin},
    secret::Credential,
    settings::{Dsn, WithoutPassword},
    tenant::{
        DatabaseId, Domain, Location, PoolSettings, Role, Server, Slug, Tenant, TenantId, TenantStatus,
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use crate::{Result, servers::Servers};

/// Writes what it finds into the control plane.
pub(crate) struct Importer<'a> {
    pub(crate) admin: PgTenantAdmin,
    pub(crate) keyring: Keyring,
    pub(crate) legacy_key: LegacyKey,
    pub(crate) servers: &'a Servers,
}

/// A row of `tenants`, as the CRM stored it.
pub(crate) struct CrmRow {
    id: Uuid,
    slug: String,
    name: String,
    region: String,
    pool_settings: Value,
    encrypted_url: String,
    encrypted_restricted_key: String,
    encrypted_service_key: String,
    service_user: String,
    value_encoding: String,
}

/// A row of `cities`.
pub(crate) struct CityRow {
    slug: String,
    name: String,
    look: Value,
    custom_domain: Option<String>,
    db_url: String,
}

/// A row that could not be imported.
#[derive(Debug, thiserror::Error)]
#[error("row {row} of {table}: {what}")]
pub(crate) struct RowError {
    table: &'static str,
    row: String,
    what: &'static str,
    source: Box<dyn StdError + Send + Sync>,
}

/// What a row says, understood and checked.
struct Found {
    id: TenantId,
    slug: Slug,
    domains: Vec<Domain>,
    settings: Value,
    server: Server,
    pool: PoolSettings,
    logins: Vec<(Role, Credential)>,
}

pub(crate) async fn crm_rows(connection: &mut PgConnection) -> Result<Vec<CrmRow>> {
    let read = |row: PgRow| -> sqlx::Result<CrmRow> {
        Ok(CrmRow {
            id: row.try_get("id")?,
            slug: row.try_get("slug")?,
            name: row.try_get("name")?,
            region: row.try_get("region")?,
            pool_settings: row.try_get("pool_settings")?,
            encrypted_url: row.try_get("encrypted_url")?,
            encrypted_restricted_key: row.try_get("encrypted_restricted_key")?,
            encrypted_service_key: row.try_get("encrypted_service_key")?,
            service_user: row.try_get("service_user")?,
            value_encoding: row.try_get("value_encoding")?,
        })
    };
    let rows = sqlx::query("select * from tenants order by slug")
        .try_map(read)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

pub(crate) async fn city_rows(connection: &mut PgConnection) -> Result<Vec<CityRow>> {
    let read = |row: PgRow| -> sqlx::Result<CityRow> {
        let (logo, colours): (String, Value) = (row.try_get("logo")?, row.try_get("colours")?);
        Ok(CityRow {
            slug: row.try_get("slug")?,
            name: row.try_get("name")?,
            look: json!({ "logo": logo, "colours": colours }),
            custom_domain: row.try_get("custom_domain")?,
            db_url: row.try_get("db_url")?,
        })
    };
    let rows = sqlx::query("select * from cities order by slug")
        .try_map(read)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

impl CrmRow {
    /// The encoding that the row says its values have, which need not be true.
    pub(crate) fn declared_encoding(&self) -> Result<LegacyEncoding> {
        match &*self.value_encoding {
            "hex" => Ok(LegacyEncoding::Hex),
            "base64" => Ok(LegacyEncoding::Base64),
            _ => Err("the CRM knows two encodings".into()),
        }
    }
}

impl Importer<'_> {
    /// Imports a tenant of the CRM, whose values are expected in this encoding.
    pub(crate) async fn crm(
        &self,
        row: &CrmRow,
        encoding: LegacyEncoding,
    ) -> std::result::Result<Tenant, RowError> {
        let named = |what| failed("tenants", &row.slug, what);
        let found = self
            .read_crm(row, encoding)
            .map_err(|(what, error)| named(what)(error))?;
        self.store(found).await.map_err(named("could not be stored"))
    }

    /// Imports a city.
    pub(crate) async fn city(&self, row: &CityRow) -> std::result::Result<Tenant, RowError> {
        let named = |what| failed("cities", &row.slug, what);
        let found = read_city(row).map_err(named("is not complete"))?;
        self.store(found).await.map_err(named("could not be stored"))
    }

    fn read_crm(&self, row: &CrmRow, encoding: LegacyEncoding) -> std::result::Result<Found, Problem> {
        // Old values may be opened to be sealed anew, and for nothing else.
        let legacy = LegacyOpener::new(self.legacy_key.clone(), LegacyPolicy::ImportOnly).expecting(encoding);
        let open = |value: &str| legacy.open_string(value, LegacyUse::Import);

        let url = open(&row.encrypted_url).map_err(because_of("encrypted_url"))?;
        // The passwords stand in columns of their own, so the URL has none.
        let dsn = Dsn::parse_with(url.expose_secret(), WithoutPassword::Accept)
            .map_err(because_of("encrypted_url"))?;
        let login = |user: &str, password: SecretString| Credential::new(user, password);
        let restricted =
            open(&row.encrypted_restricted_key).map_err(because_of("encrypted_restricted_key"))?;
        let service = open(&row.encrypted_service_key).map_err(because_of("encrypted_service_key"))?;
        let mut server = dsn.server().clone();
        server.region = Some(row.region.as_str().into());
        Ok(Found {
            id: TenantId::from_uuid(row.id),
            slug: Slug::parse(&row.slug).map_err(because_of("slug"))?,
            domains: Vec::new(),
            settings: json!({ "system": "crm", "name": row.name }),
            server,
            pool: serde_json::from_value(row.pool_settings.clone()).map_err(because_of("pool_settings"))?,
            logins: vec![
                (
                    Role::App,
                    login(dsn.credential().username(), restricted).map_err(because_of("encrypted_url"))?,
                ),
                (
                    Role::Service,
                    login(&row.service_user, service).map_err(because_of("service_user"))?,
                ),
            ],
        })
    }

    /// Makes the database say which one it is, and writes data source, sealed logins and tenant.
    async fn store(&self, found: Found) -> Result<Tenant> {
        let by = Actor::new("two_planes", "import from the older systems");
        let database_id = DatabaseId::new();
        let mut readers = Vec::new();
        for (_, login) in &found.logins {
            readers.push(RoleName::parse(login.username())?);
        }
        let admin = self.servers.data_server(&found.server)?;
        let mut owner = admin.connect(&found.server.database).await?;
        DataSchema::install(&mut owner, database_id, &readers).await?;

        let mut source = NewSource::new(found.slug.as_str(), Location::Server(found.server));
        source.pool = found.pool;
        source.database_id = Some(database_id);
        let source = self.admin.create_source(&by, source).await?;
        for (role, login) in &found.logins {
            // Sealed for this data source and this role: moved anywhere else, it does not open.
            let sealed = self.keyring.seal_credential(source.id, *role, login)?;
            self.admin
                .set_credential(&by, source.id, *role, CredentialSlot::Current, None, sealed)
                .await?;
        }

        let mut tenant = NewTenant::new(found.slug, source.id);
        tenant.id = found.id;
        tenant.domains = found.domains;
        tenant.settings = found.settings;
        let tenant = self.admin.create(&by, tenant).await?;
        // Where a database is fenced, nobody enters whom it does not know.
        sqlx::query(
            "insert into biplane.residence (tenant_id, epoch, state, isolation, database_id)
             values ($1, $2, 'open', $3, $4)",
        )
        .bind(tenant.id.as_uuid())
        .bind(i64::try_from(tenant.placement.epoch.value())?)
        .bind(tenant.placement.isolation.as_str())
        .bind(database_id.as_uuid())
        .execute(&mut owner)
        .await?;
        let open = TenantStatus::Active;
        Ok(self
            .admin
            .set_status(&by, tenant.id, tenant.version, open)
            .await?)
    }
}

fn read_city(row: &CityRow) -> Result<Found> {
    let dsn = Dsn::parse(&row.db_url)?;
    let domain = row.custom_domain.as_deref().map(Domain::parse).transpose()?;
    Ok(Found {
        id: TenantId::new(),
        slug: Slug::parse(&row.slug)?,
        domains: domain.into_iter().collect(),
        settings: json!({ "system": "cities", "name": row.name, "look": row.look }),
        server: dsn.server().clone(),
        pool: dsn.pool(),
        logins: vec![(Role::App, dsn.credential().clone())],
    })
}

/// What cannot be read, and why.
type Problem = (&'static str, Box<dyn StdError + Send + Sync>);

fn because_of<E: StdError + Send + Sync + 'static>(column: &'static str) -> impl Fn(E) -> Problem {
    move |error| (column, error.into())
}

fn failed(
    table: &'static str,
    row: &str,
    what: &'static str,
) -> impl Fn(Box<dyn StdError + Send + Sync>) -> RowError {
    move |source| RowError {
        table,
        row: row.to_owned(),
        what,
        source,
    }
}

impl RowError {
    /// The cause, if it is of this type.
    pub(crate) fn cause<E: StdError + 'static>(&self) -> Option<&E> {
        self.source.downcast_ref()
    }
}

/// An error with its causes, in one line.
pub(crate) fn because(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line = format!("{line}: {cause}");
        next = cause.source();
    }
    line
}
