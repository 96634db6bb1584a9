//! What both backends demand before they write, so that the same wrong value is the same error on each.
//!
//! The Postgres schema enforces the same rules on whoever writes by hand; these come first because they can say which
//! rule was broken without repeating the value.

use crate::{
    error::{Error, ErrorKind},
    tenant::{
        CaCertificate, DataSourceId, Domain, Isolation, Location, SealedText, Server, Slug, Tenant,
        TenantStatus, Version,
    },
};

use super::{Actor, Beat, CredentialPlace, NewSource, NewTenant, Reseal, SourceChange};

/// What serde_json reads back is nested 128 levels deep at most, the record around the settings included.
const DEEPEST_SETTINGS: u32 = 100;

const URL: &str =
    "an address holds a URL or a login where a name is wanted; take the URL apart with settings::Dsn first";

/// A change of one tenant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Edit<'a> {
    Rename(Slug),
    Status(TenantStatus),
    Place(DataSourceId, Isolation),
    Settings(&'a serde_json::Value),
    AddDomain(&'a Domain),
    RemoveDomain(&'a Domain),
}

/// What can be said of an edit before anything is read.
pub(super) fn edit(edit: Edit<'_>) -> Result<(), Error> {
    match edit {
        Edit::Settings(value) => settings(value),
        _ => Ok(()),
    }
}

/// The tenant after the edit. It has the same version when the edit changes nothing.
pub(super) fn edited(tenant: &Tenant, expected: Version, edit: Edit<'_>) -> Result<Tenant, Error> {
    if tenant.version != expected {
        return Err(ErrorKind::VersionConflict.into());
    }
    let mut next = tenant.clone();
    match edit {
        Edit::Status(to) => {
            let from = tenant.status;
            if !from.can_become(to) {
                return Err(ErrorKind::ForbiddenTransition { from, to }.into());
            }
            next.status = to;
            if to == TenantStatus::Deleted {
                next.domains.clear();
            }
        }
        _ if tenant.status == TenantStatus::Deleted => {
            return Err(ErrorKind::Inactive {
                status: tenant.status,
            }
            .into());
        }
        Edit::Rename(slug) => next.slug = slug,
        Edit::Place(source, isolation) => {
            next.placement.source = source;
            next.placement.isolation = isolation;
            next.placement.epoch = next.placement.epoch.next();
        }
        Edit::Settings(value) => next.settings = value.clone(),
        Edit::AddDomain(domain) => {
            if let Err(place) = next.domains.binary_search(domain) {
                next.domains.insert(place, domain.clone());
            }
        }
        Edit::RemoveDomain(domain) => match next.domains.binary_search(domain) {
            Ok(place) => {
                next.domains.remove(place);
            }
            Err(_) => return Err(invalid("the tenant does not have this domain")),
        },
    }
    if next != *tenant {
        next.version = tenant.version.next();
    }
    Ok(next)
}

pub(super) fn actor(by: &Actor) -> Result<(), Error> {
    for (text, empty) in [
        (&by.name, "the actor has no name"),
        (&by.reason, "the actor gives no reason"),
    ] {
        if text.trim().is_empty() {
            return Err(invalid(empty));
        }
        no_nul(text)?;
    }
    Ok(())
}

pub(super) fn new_source(source: &NewSource) -> Result<(), Error> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !(1..=63).contains(&source.name.len()) || !source.name.bytes().all(inner) {
        return Err(invalid(
            "the name of a data source has 1 to 63 letters, digits, hyphens, underscores and dots",
        ));
    }
    location(&source.location)
}

pub(super) fn source_change(change: &SourceChange) -> Result<(), Error> {
    change.location.as_ref().map_or(Ok(()), location)
}

pub(super) fn new_tenant(tenant: &NewTenant) -> Result<(), Error> {
    settings(&tenant.settings)
}

/// The outer form `bp1.<key id>.<base64url of at least 72 bytes>`, which no password and no URL has. Whether it opens
/// is for the keyring to say.
pub(super) fn sealed(text: &SealedText) -> Result<(), Error> {
    const SHORTEST_BODY: usize = 96;
    let mut parts = text.as_str().splitn(3, '.');
    let form = (parts.next(), parts.next(), parts.next());
    let ok = if let (Some("bp1"), Some(key), Some(body)) = form {
        key.len() == 16
            && key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            && body.len() >= SHORTEST_BODY
            && body.len() % 4 != 1
            && body
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    } else {
        false
    };
    if ok {
        Ok(())
    } else {
        Err(invalid(
            "a credential is stored sealed (bp1.…), and this text is not; seal it with the keyring first",
        ))
    }
}

/// Every new text, before any is stored.
pub(super) fn reseal(batch: &[Reseal]) -> Result<(), Error> {
    batch.iter().try_for_each(|one| {
        // What was read is compared alone, but could not even be asked about.
        no_nul(one.before.as_str())?;
        sealed(&one.after)
    })
}

pub(super) fn beat(beat: &Beat) -> Result<(), Error> {
    if beat.service.trim().is_empty() {
        return Err(invalid(
            "a beat names the service that the instance is a process of",
        ));
    }
    no_nul(&beat.service)?;
    let mut ids: Vec<_> = beat.keys.iter().map(|key| key.id).collect();
    ids.sort_unstable();
    match ids.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(invalid("a beat reports each key once")),
        false => Ok(()),
    }
}

pub(super) fn invalid(detail: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput).detail(detail)
}

pub(super) fn exclusive() -> Error {
    invalid(
        "the placement would put two tenants into one database that is one tenant's alone; choose another data source",
    )
}

pub(super) fn empty_slot(source: &str, place: CredentialPlace) -> Error {
    Error::new(ErrorKind::MissingCredential { role: place.role }).detail(format!(
        "the slot {} of data source {source} is empty",
        place.slot.as_str()
    ))
}

pub(super) fn next_without_current() -> Error {
    invalid("a next credential needs a current one; store that first")
}

fn location(location: &Location) -> Result<(), Error> {
    match location {
        Location::Server(server) => check_server(server),
        _ => Ok(()),
    }
}

fn check_server(server: &Server) -> Result<(), Error> {
    if server.cluster.is_empty() || server.database.is_empty() || server.region.as_deref() == Some("") {
        return Err(invalid("cluster, region and database of a server have names"));
    }
    if server.endpoints.is_empty() {
        return Err(invalid("a server has at least one endpoint"));
    }
    for endpoint in &server.endpoints {
        if endpoint.host.is_empty() || endpoint.port == 0 {
            return Err(invalid("an endpoint has a host and a port from 1 to 65535"));
        }
        no_nul(&endpoint.host)?;
        no_url(&endpoint.host)?;
        if endpoint.host.contains('@') {
            return Err(invalid(URL));
        }
    }
    match &server.tls.ca {
        Some(CaCertificate::Pem(pem)) if pem.is_empty() => {
            return Err(invalid("the certificate authority is empty"));
        }
        Some(CaCertificate::Pem(pem)) => no_nul(pem)?,
        Some(CaCertificate::File(path)) => match path.to_str() {
            None | Some("") => {
                return Err(invalid(
                    "the file of the certificate authority has a name in UTF-8",
                ));
            }
            Some(path) => {
                no_nul(path)?;
                no_url(path)?;
            }
        },
        None => {}
    }
    for name in [
        &*server.cluster,
        &*server.database,
        server.region.as_deref().unwrap_or_default(),
    ] {
        no_nul(name)?;
        no_url(name)?;
    }
    Ok(())
}

fn settings(value: &serde_json::Value) -> Result<(), Error> {
    if !value.is_object() {
        return Err(invalid("the settings are a JSON object"));
    }
    let mut open = vec![(value, 1)];
    while let Some((value, depth)) = open.pop() {
        if depth > DEEPEST_SETTINGS {
            return Err(invalid("the settings are nested more than 100 levels deep"));
        }
        match value {
            serde_json::Value::String(text) => no_nul(text)?,
            serde_json::Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            serde_json::Value::Object(fields) => {
                for (key, value) in fields {
                    no_nul(key)?;
                    open.push((value, depth + 1));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A whole URL in a field of its own would show its password in every description, and stand in the audit for ever.
fn no_url(text: &str) -> Result<(), Error> {
    if text.contains("://") {
        return Err(invalid(URL));
    }
    Ok(())
}

fn no_nul(text: &str) -> Result<(), Error> {
    if text.contains('\0') {
        return Err(invalid(
            "a text holds a NUL character, which Postgres cannot store",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_column_of_plaintext_would_hold_is_not_sealed() {
        let body = "A".repeat(98);
        assert!(sealed(&SealedText::new(format!("bp1.0123456789abcdef.{body}"))).is_ok());
        for text in [
            "postgres://app:secret@db.example/acme".to_owned(),
            "0123456789abcdef:0123456789abcdef:AAAA".to_owned(),
            format!("bp1.0123456789ABCDEF.{body}"),
            format!("bp2.0123456789abcdef.{body}"),
            format!("bp1.0123456789abcde.{body}"),
            format!("bp1.0123456789abcdef.{body}="),
            format!("bp1.0123456789abcdef.{body}."),
            format!("bp1.0123456789abcdef.{}", "A".repeat(95)),
            format!("bp1.0123456789abcdef.{}", "A".repeat(97)),
            String::new(),
        ] {
            let error = sealed(&SealedText::new(text.as_str())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_check_panic_or_appear_in_its_error(text in any::<String>()) {
            if let Err(error) = sealed(&SealedText::new(text.as_str())) {
                prop_assert!(text.len() < 6 || !error.to_string().contains(&text));
            }
        }
    }
}
