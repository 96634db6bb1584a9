//! The text of an override file, checked whole.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use uuid::Uuid;

use super::value::{Fields, Value, parse, refused};
use crate::{
    error::Error,
    tenant::{
        CaCertificate, CredentialVersion, DataSourceId, DatabaseId, Domain, Endpoint, Epoch, Pooler, Role,
        RoleCredentials, SealedText, Server, Slug, StoredCredential, TenantId, TenantStatus, Tls,
    },
};

/// What an override file says, once it was found to make sense: strictly, and as a whole.
///
/// A router reads the file by itself, with [`Builder::overrides`](super::super::Builder::overrides). This is for a
/// program that checks one before it is put in place. The format is in [`manual::overrides`](crate::manual::overrides).
#[derive(Clone, Debug)]
pub struct Overrides {
    pub(super) by: Arc<str>,
    pub(super) reason: Arc<str>,
    pub(super) sources: HashMap<String, Listed>,
    pub(super) tenants: Vec<Entry>,
    holds_sealed_text: bool,
}

/// A tenant that an override file speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OverriddenTenant {
    /// Whose data is elsewhere.
    pub tenant: TenantId,
    /// On which data source, by its name or id: one of the file's own, or else one of the control plane's.
    pub source: Arc<str>,
    /// The status that the file gives the tenant, if it gives one.
    pub status: Option<TenantStatus>,
    /// Whether the file says enough to serve the tenant without the control plane.
    pub is_whole: bool,
}

/// A data source of the file's own.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) name: Arc<str>,
    pub(super) server: Server,
    pub(super) database_id: Option<DatabaseId>,
    pub(super) login: LoginOf,
}

/// Whose credentials open a data source of the file's own.
#[derive(Clone, Debug)]
pub(super) enum LoginOf {
    /// Those of the data source that the tenant is on.
    Tenant,
    /// Those of a data source of the control plane, by name or id.
    Source(Arc<str>),
    /// Those of the data source with this id, which are here if the control plane keeps them.
    Itself(DataSourceId, BTreeMap<Role, RoleCredentials>),
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) tenant: TenantId,
    pub(super) source: Arc<str>,
    pub(super) status: Option<TenantStatus>,
    pub(super) slug: Option<Slug>,
    pub(super) domains: Vec<Domain>,
    pub(super) epoch: Option<Epoch>,
}

impl Overrides {
    /// Reads the text of an override file.
    ///
    /// # Errors
    /// [`InvalidConfiguration`](crate::error::ErrorKind::InvalidConfiguration) with the line, or the entry and field, and
    /// the rule that is broken; never with a value.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let value = parse(text)?;
        let fields = Fields::of(&value, String::new(), &["by", "reason", "sources", "tenants"])?;
        let mut sources = HashMap::new();
        let mut places = Vec::new();
        let mut holds_sealed_text = false;
        for (place, value) in numbered(&fields, "sources")? {
            let listed = listed(value, &place)?;
            places.push((place.clone(), Arc::clone(&listed.name)));
            if let LoginOf::Itself(_, credentials) = &listed.login {
                holds_sealed_text |= !credentials.is_empty();
            }
            if sources.insert(listed.name.to_string(), listed).is_some() {
                return Err(refused(&place, "another data source of the file has this name"));
            }
        }
        let mut tenants: Vec<Entry> = Vec::new();
        let mut ids = HashSet::new();
        let mut names = HashSet::new();
        for (place, value) in numbered(&fields, "tenants")? {
            let entry = entry(value, &place)?;
            if !ids.insert(entry.tenant) && !cfg!(biplane_mutant = "overrides_take_tenants_twice") {
                return Err(refused(&place, "another entry is about this tenant"));
            }
            let slug = entry.slug.iter().map(|slug| slug.as_str().to_owned());
            let domains = entry.domains.iter().map(|domain| domain.as_str().to_owned());
            for name in slug.chain(domains) {
                if !names.insert(name) {
                    return Err(refused(
                        &place,
                        "another name of the file is the same as one of this entry",
                    ));
                }
            }
            tenants.push(entry);
        }
        let unused = |(_, name): &&(String, Arc<str>)| !tenants.iter().any(|entry| entry.source == *name);
        if let Some((place, _)) = places.iter().find(unused) {
            return Err(refused(
                place,
                "no tenant of the file is on it; is the name of one mistyped?",
            ));
        }
        Ok(Self {
            by: fields.required("by", fields.text("by")?)?.into(),
            reason: fields.required("reason", fields.text("reason")?)?.into(),
            sources,
            tenants,
            holds_sealed_text,
        })
    }

    /// The tenants that it speaks of, in the order of the file.
    pub fn tenants(&self) -> impl Iterator<Item = OverriddenTenant> + '_ {
        self.tenants.iter().map(|entry| OverriddenTenant {
            tenant: entry.tenant,
            source: Arc::clone(&entry.source),
            status: entry.status,
            is_whole: entry.slug.is_some()
                && entry.status.is_some()
                && self
                    .sources
                    .get(&*entry.source)
                    .is_some_and(|source| matches!(source.login, LoginOf::Itself(..))),
        })
    }

    /// The data sources of the control plane that it names.
    pub(super) fn elsewhere(&self) -> HashSet<Arc<str>> {
        let named = self.tenants.iter().map(|entry| &entry.source);
        let logins = self.sources.values().filter_map(|source| match &source.login {
            LoginOf::Source(name) => Some(name),
            LoginOf::Tenant | LoginOf::Itself(..) => None,
        });
        named
            .filter(|name| !self.sources.contains_key(&***name))
            .chain(logins)
            .cloned()
            .collect()
    }

    /// Whether nobody but the services should read the file.
    pub(super) const fn holds_sealed_text(&self) -> bool {
        self.holds_sealed_text
    }
}

fn numbered<'a>(fields: &Fields<'a>, name: &str) -> Result<Vec<(String, &'a Value)>, Error> {
    let list = fields.list(name)?;
    Ok((1..).map(|n| format!("{name} no. {n}")).zip(list).collect())
}

fn listed(value: &Value, place: &str) -> Result<Listed, Error> {
    let fields = Fields::of(
        value,
        place.to_owned(),
        &[
            "name",
            "id",
            "login_of",
            "cluster",
            "region",
            "endpoints",
            "database",
            "tls",
            "ca_file",
            "ca_pem",
            "pooler",
            "max_prepared_statements",
            "database_id",
            "credentials",
        ],
    )?;
    let name = fields.required("name", fields.text("name")?)?;
    check_name(name, &fields.place("name"))?;
    let mut endpoints = Vec::new();
    for (place, value) in numbered(&fields, "endpoints")? {
        endpoints.push(endpoint(value, fields.place(&place))?);
    }
    let Some(first) = endpoints.first() else {
        return Err(refused(place, "it has no endpoints"));
    };
    let database = fields.required("database", fields.text("database")?)?;
    let mut server = Server::new(first.clone(), database);
    if let Some(cluster) = fields.text("cluster")? {
        server.cluster = cluster.into();
    }
    server.region = fields.text("region")?.map(Arc::from);
    server.endpoints = endpoints;
    let mode = fields.parsed("tls", "disable, prefer, require, verify-ca or verify-full")?;
    server.tls = Tls::new(fields.required("tls", mode)?);
    match (fields.text("ca_file")?, fields.text("ca_pem")?) {
        (None, None) => {}
        (Some(file), None) => server.tls = server.tls.ca(CaCertificate::File(file.into())),
        (None, Some(pem)) => server.tls = server.tls.ca(CaCertificate::Pem(pem.into())),
        (Some(_), Some(_)) => {
            return Err(refused(
                &fields.place("ca_pem"),
                "there is a ca_file as well; which one counts?",
            ));
        }
    }
    server.pooler = pooler(&fields)?;
    for text in [&server.cluster, &server.database]
        .into_iter()
        .chain(&server.region)
    {
        check_plain(text, place)?;
    }
    Ok(Listed {
        name: name.into(),
        server,
        database_id: fields.parsed("database_id", "a UUID")?.map(DatabaseId::from_uuid),
        login: login(&fields)?,
    })
}

fn endpoint(value: &Value, place: String) -> Result<Endpoint, Error> {
    let fields = Fields::of(value, place.clone(), &["host", "port"])?;
    let host = fields.required("host", fields.text("host")?)?;
    check_plain(host, &place)?;
    let port = fields
        .number("port")?
        .unwrap_or(u64::from(Endpoint::DEFAULT_PORT));
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(Endpoint::new(host, port)),
        _ => Err(refused(&fields.place("port"), "it is not a port")),
    }
}

/// As the control plane has it: errors and logs name data sources, so that it had better be nothing but a name.
fn check_name(name: &str, place: &str) -> Result<(), Error> {
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if (1..=63).contains(&name.len()) && name.bytes().all(of_name)
        || cfg!(biplane_mutant = "overrides_name_anything")
    {
        return Ok(());
    }
    Err(refused(
        place,
        "it is not a name of 1 to 63 letters, digits, underscores, dots and hyphens",
    ))
}

/// A URL may hold a password, and errors and logs name hosts and databases.
fn check_plain(text: &str, place: &str) -> Result<(), Error> {
    if text.contains("://") || text.contains('@') {
        return Err(refused(place, "it holds a URL or a login where a name is wanted"));
    }
    Ok(())
}

fn pooler(fields: &Fields<'_>) -> Result<Pooler, Error> {
    let prepared = fields.number("max_prepared_statements")?;
    match (fields.text("pooler")?, prepared) {
        (None | Some("direct"), None) => Ok(Pooler::Direct),
        (Some("session"), None) => Ok(Pooler::Session),
        (Some("transaction"), Some(prepared)) if u32::try_from(prepared).is_ok() => Ok(Pooler::Transaction {
            max_prepared_statements: u32::try_from(prepared).unwrap_or_default(),
        }),
        _ => Err(refused(
            &fields.place("pooler"),
            "it is direct, session, or transaction with max_prepared_statements",
        )),
    }
}

fn login(fields: &Fields<'_>) -> Result<LoginOf, Error> {
    let id = fields
        .parsed::<Uuid>("id", "a UUID")?
        .map(DataSourceId::from_uuid);
    let credentials = match fields.find("credentials") {
        None => BTreeMap::new(),
        Some(value) => credentials(value, &fields.place("credentials"))?,
    };
    match (id, fields.text("login_of")?) {
        (Some(id), None) => Ok(LoginOf::Itself(id, credentials)),
        (None, _) if !credentials.is_empty() => Err(refused(
            &fields.place("credentials"),
            "they open for one data source alone; give its id",
        )),
        (None, Some(name)) => Ok(LoginOf::Source(name.into())),
        (None, None) => Ok(LoginOf::Tenant),
        (Some(_), Some(_)) => Err(refused(
            &fields.place("login_of"),
            "a data source with an id has its own login",
        )),
    }
}

fn credentials(value: &Value, place: &str) -> Result<BTreeMap<Role, RoleCredentials>, Error> {
    let roles: Vec<&'static str> = Role::ALL.iter().map(|role| role.as_str()).collect();
    let fields = Fields::of(value, place.to_owned(), &roles)?;
    let mut credentials = BTreeMap::new();
    for role in Role::ALL {
        let Some(value) = fields.find(role.as_str()) else {
            continue;
        };
        let fields = Fields::of(value, fields.place(role.as_str()), &["version", "sealed"])?;
        let version = fields.required("version", fields.number("version")?)?;
        let sealed = fields.required("sealed", fields.text("sealed")?)?;
        if !is_sealed(sealed) && !cfg!(biplane_mutant = "overrides_take_plain_passwords") {
            return Err(refused(
                &fields.place("sealed"),
                "it is not a sealed value; a plain password has no place in this file",
            ));
        }
        let stored = StoredCredential::new(CredentialVersion::new(version), SealedText::new(sealed));
        credentials.insert(role, RoleCredentials::new(stored));
    }
    Ok(credentials)
}

/// The form that the control plane demands as well: `bp1.<key id>.<base64url of at least 72 bytes>`.
fn is_sealed(text: &str) -> bool {
    let mut parts = text.split('.');
    let (version, key, body) = (
        parts.next(),
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let of_key = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let of_body = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    version == Some("bp1")
        && parts.next().is_none()
        && key.len() == 16
        && key.bytes().all(of_key)
        && body.len() >= 96
        && body.bytes().all(of_body)
}

fn entry(value: &Value, place: &str) -> Result<Entry, Error> {
    let names = ["tenant", "source", "status", "slug", "domains", "epoch"];
    let fields = Fields::of(value, place.to_owned(), &names)?;
    let tenant = fields.parsed::<Uuid>("tenant", "the id of a tenant")?;
    let mut domains = Vec::new();
    for (place, value) in numbered(&fields, "domains")? {
        let domain = match value {
            Value::Text(text) => Domain::parse(text).ok(),
            _ => None,
        };
        domains.push(domain.ok_or_else(|| refused(&fields.place(&place), "it is not a domain"))?);
    }
    let entry = Entry {
        tenant: TenantId::from_uuid(fields.required("tenant", tenant)?),
        source: fields.required("source", fields.text("source")?)?.into(),
        status: fields.parsed("status", "a status")?,
        slug: match fields.text("slug")? {
            None => None,
            Some(text) => {
                Some(Slug::parse(text).map_err(|_| refused(&fields.place("slug"), "it is not a slug"))?)
            }
        },
        domains,
        epoch: fields.number("epoch")?.map(Epoch::new),
    };
    if entry.epoch == Some(Epoch::ZERO) {
        return Err(refused(&fields.place("epoch"), "an epoch begins at 1"));
    }
    if entry.slug.is_none() && !(entry.domains.is_empty() && entry.epoch.is_none()) {
        return Err(refused(
            place,
            "domains and epoch are for a tenant that the process does not know, and need its slug",
        ));
    }
    if entry.slug.is_some() && entry.status.is_none() {
        return Err(refused(
            place,
            "a tenant with a slug may have to be served by this file alone; say its status",
        ));
    }
    Ok(entry)
}
