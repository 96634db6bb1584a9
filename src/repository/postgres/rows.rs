//! Reading rows that arrive as JSON.
//!
//! They are parsed here and not by the database driver, so that one value that nobody can understand is an error of its
//! own row and not of the whole query.

use std::{collections::BTreeMap, str::FromStr, sync::Arc, time::Duration};

use serde_json::Value;

use crate::{
    error::{Error, ErrorKind},
    repository::{InstanceKey, KeyReport},
    tenant::{
        CaCertificate, CredentialVersion, DataSource, DataSourceId, DatabaseId, Domain, Endpoint, Epoch,
        Location, Placement, PoolSettings, Pooler, Role, RoleCredentials, SealedText, Server, Slug,
        StoredCredential, Tenant, TenantId, Tls, Version,
    },
};

/// Reads a row of `tenant`.
pub(super) fn parse_tenant(row: &Value) -> Result<Tenant, Error> {
    let row = Row(row);
    let mut tenant = Tenant::new(
        TenantId::from_uuid(row.parsed("id")?),
        row.parsed::<Slug>("slug")?,
        Placement::new(
            DataSourceId::from_uuid(row.parsed("data_source_id")?),
            row.parsed("isolation")?,
        ),
    );
    let domains = row.value("domains")?.as_array();
    tenant.domains = domains
        .and_then(|domains| domains.iter().map(parse_domain).collect())
        .ok_or_else(|| malformed("domains"))?;
    tenant.domains.sort_unstable();
    tenant.status = row.parsed("status")?;
    tenant.placement.epoch = Epoch::new(row.counter("epoch")?);
    tenant.version = Version::new(row.counter("version")?);
    tenant.settings = row.value("settings")?.clone();
    if !tenant.settings.is_object() {
        return Err(malformed("settings"));
    }
    Ok(tenant)
}

/// Reads a row of `data_source` that has its rows of `credential` as an array in `credentials`.
pub(super) fn parse_source(row: &Value) -> Result<DataSource, Error> {
    let row = Row(row);
    let mut source = DataSource::new(
        DataSourceId::from_uuid(row.parsed("id")?),
        row.text("name")?,
        parse_location(row)?,
    );
    source.version = Version::new(row.counter("version")?);
    let (min, max) = (row.u32("pool_min")?, row.u32("pool_max")?);
    source.pool =
        PoolSettings::new(min, max).map_err(|error| malformed("pool_min, pool_max").caused_by(error))?;
    source.database_id = row.optional("database_id", |row, key| {
        row.parsed(key).map(DatabaseId::from_uuid)
    })?;
    source.credentials = parse_credentials(row.value("credentials")?)?;
    Ok(source)
}

/// Reads rows of `instance_key` that have the microseconds since their use in `idle`.
pub(super) fn parse_instance_keys(rows: &Value) -> Result<Vec<InstanceKey>, Error> {
    let rows = rows.as_array().ok_or_else(|| malformed("keys"))?;
    let key = |row| {
        let row = Row(row);
        let report = KeyReport::new(row.parsed("key_id")?, row.parsed("state")?)
            .opens(row.count("opens")?)
            .seals(row.count("seals")?)
            .refused(row.count("refused")?);
        // Below nothing, when the server's clock was put back.
        let idle = row.value("idle")?.as_i64().ok_or_else(|| malformed("used_at"))?;
        let idle = Duration::from_micros(u64::try_from(idle).unwrap_or_default());
        Ok(InstanceKey::new(report, idle))
    };
    rows.iter().map(key).collect()
}

fn parse_credentials(rows: &Value) -> Result<BTreeMap<Role, RoleCredentials>, Error> {
    let mut current = BTreeMap::new();
    let mut next = BTreeMap::new();
    for row in rows.as_array().ok_or_else(|| malformed("credentials"))? {
        let row = Row(row);
        let credential = StoredCredential::new(
            CredentialVersion::new(row.counter("version")?),
            SealedText::new(row.text("sealed")?),
        );
        let slot = match row.text("slot")? {
            "current" => &mut current,
            "next" => &mut next,
            _ => return Err(malformed("slot")),
        };
        slot.insert(row.parsed::<Role>("role")?, credential);
    }
    let mut credentials: BTreeMap<_, _> = current
        .into_iter()
        .map(|(role, current)| (role, RoleCredentials::new(current)))
        .collect();
    for (role, prepared) in next {
        credentials.get_mut(&role).ok_or_else(|| malformed("slot"))?.next = Some(prepared);
    }
    Ok(credentials)
}

fn parse_location(row: Row<'_>) -> Result<Location, Error> {
    match row.text("location")? {
        "environment" => Ok(Location::Environment),
        "memory" => Ok(Location::Memory),
        "server" => parse_server(row).map(Location::Server),
        _ => Err(malformed("location")),
    }
}

fn parse_server(row: Row<'_>) -> Result<Server, Error> {
    let endpoints = row.value("endpoints")?.as_array();
    let endpoints: Vec<Endpoint> = endpoints
        .and_then(|endpoints| endpoints.iter().map(parse_endpoint).collect())
        .ok_or_else(|| malformed("endpoints"))?;
    let first = endpoints.first().ok_or_else(|| malformed("endpoints"))?;
    let mut server = Server::new(first.clone(), row.text("database")?);
    server.endpoints = endpoints;
    server.cluster = row.text("cluster")?.into();
    server.region = row.optional("region", |row, key| row.text(key).map(Arc::from))?;
    server.tls = Tls::new(row.parsed("tls_mode")?);
    let pem = row.optional("tls_ca_pem", |row, key| row.text(key))?;
    let file = row.optional("tls_ca_file", |row, key| row.text(key))?;
    server.tls.ca = match (pem, file) {
        (None, None) => None,
        (Some(pem), None) => Some(CaCertificate::Pem(pem.into())),
        (None, Some(file)) => Some(CaCertificate::File(file.into())),
        (Some(_), Some(_)) => return Err(malformed("tls_ca_pem, tls_ca_file")),
    };
    server.pooler = match row.text("pooler")? {
        "direct" => Pooler::Direct,
        "session" => Pooler::Session,
        "transaction" => Pooler::Transaction {
            max_prepared_statements: row.u32("max_prepared_statements")?,
        },
        _ => return Err(malformed("pooler")),
    };
    Ok(server)
}

fn parse_endpoint(endpoint: &Value) -> Option<Endpoint> {
    // Written by hand, 5432.0 is the same number to the schema's constraint.
    let number = endpoint.get("port")?.as_f64()?;
    let port = number as u16;
    let host = endpoint.get("host")?.as_str()?;
    (f64::from(port) == number && port > 0 && !host.is_empty()).then(|| Endpoint::new(host, port))
}

/// Only the canonical form counts: the row must name what a lookup would ask for.
fn parse_domain(domain: &Value) -> Option<Domain> {
    let text = domain.as_str()?;
    Domain::parse(text).ok().filter(|domain| domain.as_str() == text)
}

fn malformed(column: &'static str) -> Error {
    Error::new(ErrorKind::MalformedRecord).detail(format!("column {column}"))
}

#[derive(Clone, Copy)]
struct Row<'a>(&'a Value);

impl<'a> Row<'a> {
    fn value(self, column: &'static str) -> Result<&'a Value, Error> {
        self.0.get(column).ok_or_else(|| malformed(column))
    }

    fn text(self, column: &'static str) -> Result<&'a str, Error> {
        self.value(column)?.as_str().ok_or_else(|| malformed(column))
    }

    fn parsed<T: FromStr>(self, column: &'static str) -> Result<T, Error> {
        self.text(column)?.parse().map_err(|_| malformed(column))
    }

    fn u32(self, column: &'static str) -> Result<u32, Error> {
        let number = self.value(column)?.as_u64();
        number
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| malformed(column))
    }

    fn count(self, column: &'static str) -> Result<u64, Error> {
        self.value(column)?.as_u64().ok_or_else(|| malformed(column))
    }

    /// Counters begin at 1.
    fn counter(self, column: &'static str) -> Result<u64, Error> {
        let number = self.count(column)?;
        if number > 0 {
            Ok(number)
        } else {
            Err(malformed(column))
        }
    }

    fn optional<T>(
        self,
        column: &'static str,
        read: impl FnOnce(Self, &'static str) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        if self.value(column)?.is_null() {
            return Ok(None);
        }
        read(self, column).map(Some)
    }
}
