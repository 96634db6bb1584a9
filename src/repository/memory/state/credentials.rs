//! The logins of data sources: two slots for each role, and versions that only rise.

use std::{num::NonZeroU32, sync::Arc};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    super::super::{
        Actor, ChangeKind, CredentialPlace, CredentialSlot, Reseal, ResealOutcome, SealedCredential, Subject,
        rules,
    },
    State,
};
use crate::{
    error::{Error, ErrorKind},
    tenant::{
        CredentialVersion, DataSource, DataSourceId, Role, RoleCredentials, SealedText, StoredCredential,
    },
};

impl State {
    pub(in super::super) fn set_credential(
        &mut self,
        by: &Actor,
        id: DataSourceId,
        role: Role,
        slot: CredentialSlot,
        expected: Option<CredentialVersion>,
        sealed: SealedText,
    ) -> Result<CredentialVersion, Error> {
        let mut record = self.copy_of_source(id)?;
        let known = record.credentials.get_mut(&role);
        let before = slot.of(known.as_deref()).map(|stored| stored.version);
        if before != expected {
            return Err(ErrorKind::VersionConflict.into());
        }
        let version = self.next_version(id, role);
        let stored = StoredCredential::new(version, sealed);
        match (known, slot) {
            (Some(known), CredentialSlot::Current) => known.current = stored,
            (Some(known), CredentialSlot::Next) => known.next = Some(stored),
            (None, CredentialSlot::Current) => {
                record.credentials.insert(role, RoleCredentials::new(stored));
            }
            (None, CredentialSlot::Next) => return Err(rules::next_without_current()),
        }
        self.note_version(id, role, version);
        let changed = json!({ fact(role, slot): { "before": before, "after": version } });
        self.keep_logins(by, record, changed);
        Ok(version)
    }

    pub(in super::super) fn promote_credential(
        &mut self,
        by: &Actor,
        id: DataSourceId,
        role: Role,
        (current, next): (CredentialVersion, CredentialVersion),
    ) -> Result<CredentialVersion, Error> {
        let mut record = self.copy_of_source(id)?;
        let known = record
            .credentials
            .get_mut(&role)
            .ok_or(ErrorKind::VersionConflict)?;
        let prepared = known
            .next
            .take_if(|prepared| prepared.version == next && known.current.version == current)
            .ok_or(ErrorKind::VersionConflict)?;
        let version = self.next_version(id, role);
        known.current = StoredCredential::new(version, prepared.sealed);
        self.note_version(id, role, version);
        let changed = json!({
            fact(role, CredentialSlot::Current): { "before": current, "after": version },
            fact(role, CredentialSlot::Next): { "before": next, "after": null },
        });
        self.keep_logins(by, record, changed);
        Ok(version)
    }

    pub(in super::super) fn discard_credential(
        &mut self,
        by: &Actor,
        id: DataSourceId,
        role: Role,
        next: CredentialVersion,
    ) -> Result<(), Error> {
        let mut record = self.copy_of_source(id)?;
        let known = record.credentials.get_mut(&role);
        known
            .and_then(|known| known.next.take_if(|prepared| prepared.version == next))
            .ok_or(ErrorKind::VersionConflict)?;
        let changed = json!({ fact(role, CredentialSlot::Next): { "before": next, "after": null } });
        self.keep_logins(by, record, changed);
        Ok(())
    }

    pub(in super::super) fn sealed_credentials(
        &self,
        after: Option<CredentialPlace>,
        limit: NonZeroU32,
    ) -> Vec<SealedCredential> {
        let begin = after.map_or(DataSourceId::from_uuid(Uuid::nil()), |place| place.source);
        let mut page = Vec::new();
        for (id, source) in self.sources.range(begin..) {
            let mut held: Vec<SealedCredential> = Vec::new();
            for (role, credentials) in &source.record.credentials {
                let current = (CredentialSlot::Current, Some(&credentials.current));
                let next = (CredentialSlot::Next, credentials.next.as_ref());
                for (slot, stored) in [current, next] {
                    let place = CredentialPlace::new(*id, *role, slot);
                    held.extend(stored.filter(|_| Some(place) > after).map(|stored| {
                        let name = Arc::clone(&source.record.name);
                        SealedCredential::new(place, name, stored.version, stored.sealed.clone())
                    }));
                }
            }
            held.sort_unstable_by_key(|credential| credential.place);
            page.append(&mut held);
            if page.len() >= usize::try_from(limit.get()).unwrap_or(usize::MAX) {
                break;
            }
        }
        page.truncate(usize::try_from(limit.get()).unwrap_or(usize::MAX));
        page
    }

    pub(in super::super) fn reseal(&mut self, by: &Actor, one: &Reseal) -> ResealOutcome {
        let CredentialPlace {
            source: id,
            role,
            slot,
        } = one.place;
        let Ok(mut record) = self.copy_of_source(id) else {
            return ResealOutcome::Changed;
        };
        let known = record.credentials.get_mut(&role);
        let held = known.and_then(|known| match slot {
            CredentialSlot::Current => Some(&mut known.current),
            CredentialSlot::Next => known.next.as_mut(),
        });
        let Some(held) = held.filter(|held| held.sealed == one.before) else {
            return ResealOutcome::Changed;
        };
        if one.before == one.after {
            return ResealOutcome::Replaced;
        }
        held.sealed = one.after.clone();
        let fact = format!("{}.key", fact(role, slot));
        let changed = json!({ fact: { "before": key(&one.before), "after": key(&one.after) } });
        self.keep_logins(by, record, changed);
        ResealOutcome::Replaced
    }

    pub(in super::super) fn record_opening(
        &mut self,
        by: &Actor,
        place: CredentialPlace,
    ) -> Result<SealedCredential, Error> {
        let source = &self.known_source(place.source)?.record;
        let held = place.slot.of(source.credentials.get(&place.role));
        let held = held.ok_or_else(|| rules::empty_slot(&source.name, place))?;
        let name = Arc::clone(&source.name);
        let opened = SealedCredential::new(place, name, held.version, held.sealed.clone());
        let fact = format!("{}.opened", fact(place.role, place.slot));
        let changed = json!({ fact: { "version": opened.version, "key": key(&opened.sealed) } });
        if !cfg!(biplane_mutant = "openings_leave_no_trace") {
            self.log(by, Subject::Source(place.source), &[], changed);
        }
        Ok(opened)
    }

    /// To be changed and kept.
    fn copy_of_source(&self, id: DataSourceId) -> Result<DataSource, Error> {
        Ok(DataSource::clone(&self.known_source(id)?.record))
    }

    fn keep_logins(&mut self, by: &Actor, mut record: DataSource, changed: Value) {
        record.version = record.version.next();
        let subject = Subject::Source(record.id);
        self.replace_source(record);
        self.log(by, subject, &[ChangeKind::Credential], changed);
    }

    fn next_version(&self, id: DataSourceId, role: Role) -> CredentialVersion {
        let last = self
            .sources
            .get(&id)
            .and_then(|source| source.versions.get(&role));
        last.map_or(CredentialVersion::FIRST, |last| last.next())
    }

    /// It is never given again, whatever becomes of the login.
    fn note_version(&mut self, id: DataSourceId, role: Role, version: CredentialVersion) {
        if let Some(source) = self.sources.get_mut(&id) {
            source.versions.insert(role, version);
        }
    }
}

/// What the audit log calls a slot.
fn fact(role: Role, slot: CredentialSlot) -> String {
    format!("credential.{role}.{}", slot.as_str())
}

/// The id of the key that a text was sealed with.
fn key(text: &SealedText) -> &str {
    text.as_str().split('.').nth(1).unwrap_or_default()
}
