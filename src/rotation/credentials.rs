//! The credentials that the control plane stores.

use std::num::NonZeroU32;

use async_trait::async_trait;

use crate::{
    error::{Error, ErrorKind},
    repository::{Actor, CredentialPlace, CredentialSlot, CredentialStore, Reseal, ResealOutcome},
    tenant::DataSourceId,
};

use super::{
    Census, Decide, Decision, Mode, SealedStore, StoredValue, Visit, Visited, Wanted,
    store::{Cursor, key_of},
};

/// How many credentials are read at a time for counting: as many as a page of the jobs.
const PAGE: NonZeroU32 = NonZeroU32::MIN.saturating_add(499);
const SLOTS: [CredentialSlot; 2] = [CredentialSlot::Current, CredentialSlot::Next];

/// The credentials that the control plane stores, current and next ones, on Postgres (`PgTenantAdmin`) or in memory
/// ([`MemoryControl`](crate::repository::MemoryControl)).
///
/// What is sealed anew stays the same credential: its version stays and no pool connects again, while the change log
/// tells routers to take up the new text. Each page is a change that the audit has, by this actor.
///
/// There are no legacy values here; an import finds nothing to do.
#[derive(Debug)]
pub struct StoredCredentials<S> {
    store: S,
    by: Actor,
}

impl<S: CredentialStore> StoredCredentials<S> {
    /// The credentials of this control plane, changed by this actor.
    #[must_use]
    pub const fn new(store: S, by: Actor) -> Self {
        Self { store, by }
    }

    /// Calls `count` with each credential's text.
    async fn each(&self, mut count: impl FnMut(&str) + Send) -> Result<(), Error> {
        let mut after = None;
        loop {
            let page = self.store.sealed_credentials(after, PAGE).await?;
            page.iter().for_each(|one| count(one.sealed.as_str()));
            match page.last() {
                Some(last) => after = Some(last.place),
                None => return Ok(()),
            }
        }
    }
}

#[async_trait]
impl<S: CredentialStore> SealedStore for StoredCredentials<S> {
    fn name(&self) -> &str {
        "credentials"
    }

    async fn census(&self) -> Result<Census, Error> {
        let mut census = Census::default();
        self.each(|text| census.add(key_of(text), 1)).await?;
        Ok(census)
    }

    async fn count(&self, wanted: Wanted) -> Result<u64, Error> {
        let mut count = 0;
        self.each(|text| count += u64::from(wanted.includes(text)))
            .await?;
        Ok(count)
    }

    async fn visit(&self, page: &Visit<'_>, decide: &mut Decide<'_>) -> Result<Visited, Error> {
        let after = page.after.and_then(place);
        let read = self.store.sealed_credentials(after, page.limit).await?;
        let next = read
            .last()
            .filter(|_| u32::try_from(read.len()).is_ok_and(|read| read >= page.limit.get()))
            .map(|last| cursor(last.place));
        let mut batch = Vec::new();
        for credential in read {
            if !page.wanted.includes(credential.sealed.as_str()) {
                continue;
            }
            let (place, name) = (credential.place, &credential.source_name);
            let (owner, role) = (place.source.to_string(), place.role.as_str());
            let label = match place.slot {
                CredentialSlot::Current => format!("{role} of {name}"),
                slot => format!("{role} ({}) of {name}", slot.as_str()),
            };
            // The parts of `Context::credential`.
            let value = StoredValue::new("credential", &owner, role, credential.sealed.as_str());
            if let Decision::Replace(after) = decide(&value.labelled(&label)) {
                batch.push(Reseal::new(place, credential.sealed, after));
            }
        }
        if page.mode == Mode::Look || batch.is_empty() {
            return Ok(Visited::new(0, next));
        }
        let outcomes = self
            .store
            .reseal_credentials(&self.by, &batch)
            .await
            .map_err(again)?;
        let replaced = outcomes
            .iter()
            .filter(|outcome| **outcome == ResealOutcome::Replaced);
        Ok(Visited::new(replaced.count() as u64, next))
    }
}

/// A batch that lost to another transaction did not happen, and may be tried again as it is.
fn again(error: Error) -> Error {
    match error.kind() {
        ErrorKind::VersionConflict => Error::new(ErrorKind::TransactionConflict)
            .detail("a page of credentials lost to another transaction")
            .caused_by(error),
        _ => error,
    }
}

fn cursor(place: CredentialPlace) -> Cursor {
    Cursor::new(format!("{} {} {}", place.source, place.role, place.slot.as_str()))
}

fn place(cursor: &Cursor) -> Option<CredentialPlace> {
    let mut parts = cursor.as_str().split(' ');
    let source = DataSourceId::from_uuid(parts.next()?.parse().ok()?);
    let role = parts.next()?.parse().ok()?;
    let slot = parts.next()?;
    let slot = SLOTS.into_iter().find(|known| known.as_str() == slot)?;
    Some(CredentialPlace::new(source, role, slot))
}
