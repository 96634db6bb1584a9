//! The columns of the control-plane schema as JSON: what the audit records of a change, and what the Postgres backend
//! writes.

use serde_json::{Map, Value, json};

use crate::tenant::{CaCertificate, DataSource, Location, Pooler, Server, Tenant};

/// The facts of a tenant by column, without id and version.
pub(super) fn tenant_facts(tenant: &Tenant) -> Map<String, Value> {
    facts(json!({
        "slug": tenant.slug,
        "domains": tenant.domains,
        "status": tenant.status.as_str(),
        "data_source_id": tenant.placement.source,
        "isolation": tenant.placement.isolation.as_str(),
        "epoch": tenant.placement.epoch,
        "settings": tenant.settings,
    }))
}

/// The facts of a data source by column, without id, version and credentials.
pub(super) fn source_facts(source: &DataSource) -> Map<String, Value> {
    let mut columns = facts(json!({
        "name": &*source.name,
        "location": location_name(&source.location),
        "pool_min": source.pool.min(),
        "pool_max": source.pool.max(),
        "database_id": source.database_id,
    }));
    if let Location::Server(server) = &source.location {
        columns.extend(server_facts(server));
    }
    columns
}

/// The facts that differ, each with its values before and after, as the triggers of the schema write them.
pub(super) fn differences(before: &Map<String, Value>, after: &Map<String, Value>) -> Value {
    let value = |facts: &Map<String, Value>, key: &str| facts.get(key).cloned().unwrap_or(Value::Null);
    let mut changed = Map::new();
    for key in before.keys().chain(after.keys()) {
        let (before, after) = (value(before, key), value(after, key));
        if before != after {
            changed.insert(key.clone(), json!({ "before": before, "after": after }));
        }
    }
    Value::Object(changed)
}

fn server_facts(server: &Server) -> Map<String, Value> {
    let (pem, file) = match &server.tls.ca {
        None => (None, None),
        Some(CaCertificate::Pem(pem)) => (Some(&**pem), None),
        Some(CaCertificate::File(path)) => (None, path.to_str()),
    };
    let (pooler, prepared) = match server.pooler {
        Pooler::Direct => ("direct", None),
        Pooler::Session => ("session", None),
        Pooler::Transaction {
            max_prepared_statements,
        } => ("transaction", Some(max_prepared_statements)),
    };
    let endpoints: Vec<Value> = server
        .endpoints
        .iter()
        .map(|endpoint| json!({ "host": &*endpoint.host, "port": endpoint.port }))
        .collect();
    facts(json!({
        "cluster": &*server.cluster,
        "region": server.region.as_deref(),
        "endpoints": endpoints,
        "database": &*server.database,
        "tls_mode": server.tls.mode.as_str(),
        "tls_ca_pem": pem,
        "tls_ca_file": file,
        "pooler": pooler,
        "max_prepared_statements": prepared,
    }))
}

const fn location_name(location: &Location) -> &'static str {
    match location {
        Location::Environment => "environment",
        Location::Server(_) => "server",
        Location::Memory => "memory",
    }
}

fn facts(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(facts) => facts,
        _ => Map::new(),
    }
}
