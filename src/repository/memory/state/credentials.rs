//! The logins of data sources: two slots for each role, and versions that only rise.

use std::{num::NonZeroU32, sync::Arc};

use serde_json::json;
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
        let source = self.sources.get_mut(&id).ok_or(ErrorKind::UnknownDataSource)?;
        let known = source.record.credentials.get(&role);
        let stored = match slot {
            CredentialSlot::Current => known.map(|known| &known.current),
            CredentialSlot::Next => known.and_then(|known| known.next.as_ref()),
        };
        let before = stored.map(|stored| stored.version);
        if before != expected {
            return Err(ErrorKind::VersionConflict.into());
        }
        let last = source.versions.get(&role).copied();
        let version = last.map_or(CredentialVersion::FIRST, CredentialVersion::next);
        let stored = StoredCredential::new(version, sealed);
        let mut record = DataSource::clone(&source.record);
        match (record.credentials.get_mut(&role), slot) {
            (Some(known), CredentialSlot::Current) => known.current = stored,
            (Some(known), CredentialSlot::Next) => known.next = Some(stored),
            (None, CredentialSlot::Current) => {
                record.credentials.insert(role, RoleCredentials::new(stored));
            }
            (None, CredentialSlot::Next) => return Err(rules::next_without_current()),
        }
        record.version = record.version.next();
        source.versions.insert(role, version);
        source.record = Arc::new(record);
        let fact = format!("credential.{role}.{}", slot.as_str());
        let changed = json!({ fact: { "before": before, "after": version } });
        self.log(by, Subject::Source(id), &[ChangeKind::Credential], changed);
        Ok(version)
    }

    pub(in super::super) fn promote_credential(
        &mut self,
        by: &Actor,
        id: DataSourceId,
        role: Role,
        (current, next): (CredentialVersion, CredentialVersion),
    ) -> Result<CredentialVersion, Error> {
        let source = self.sources.get_mut(&id).ok_or(ErrorKind::UnknownDataSource)?;
        let mut record = DataSource::clone(&source.record);
        let known = record
            .credentials
            .get_mut(&role)
            .ok_or(ErrorKind::VersionConflict)?;
        let prepared = known
            .next
            .take_if(|prepared| prepared.version == next && known.current.version == current)
            .ok_or(ErrorKind::VersionConflict)?;
        let last = source.versions.get(&role).copied();
        let version = last.map_or(CredentialVersion::FIRST, CredentialVersion::next);
        known.current = StoredCredential::new(version, prepared.sealed);
        record.version = record.version.next();
        source.versions.insert(role, version);
        source.record = Arc::new(record);
        let fact = |slot: CredentialSlot| format!("credential.{role}.{}", slot.as_str());
        let changed = json!({
            fact(CredentialSlot::Current): { "before": current, "after": version },
            fact(CredentialSlot::Next): { "before": next, "after": null },
        });
        self.log(by, Subject::Source(id), &[ChangeKind::Credential], changed);
        Ok(version)
    }

    pub(in super::super) fn discard_credential(
        &mut self,
        by: &Actor,
        id: DataSourceId,
        role: Role,
        next: CredentialVersion,
    ) -> Result<(), Error> {
        let source = self.sources.get_mut(&id).ok_or(ErrorKind::UnknownDataSource)?;
        let mut record = DataSource::clone(&source.record);
        let known = record
            .credentials
            .get_mut(&role)
            .ok_or(ErrorKind::VersionConflict)?;
        known
            .next
            .take_if(|prepared| prepared.version == next)
            .ok_or(ErrorKind::VersionConflict)?;
        record.version = record.version.next();
        source.record = Arc::new(record);
        let fact = format!("credential.{role}.{}", CredentialSlot::Next.as_str());
        let changed = json!({ fact: { "before": next, "after": null } });
        self.log(by, Subject::Source(id), &[ChangeKind::Credential], changed);
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
        let Some(source) = self.sources.get_mut(&id) else {
            return ResealOutcome::Changed;
        };
        let mut record = DataSource::clone(&source.record);
        let held = record.credentials.get_mut(&role).and_then(|known| match slot {
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
        record.version = record.version.next();
        source.record = Arc::new(record);
        let key = |text: &SealedText| text.as_str().split('.').nth(1).unwrap_or_default().to_owned();
        let fact = format!("credential.{role}.{}.key", slot.as_str());
        let changed = json!({ fact: { "before": key(&one.before), "after": key(&one.after) } });
        self.log(by, Subject::Source(id), &[ChangeKind::Credential], changed);
        ResealOutcome::Replaced
    }

    pub(in super::super) fn record_opening(
        &mut self,
        by: &Actor,
        place: CredentialPlace,
    ) -> Result<SealedCredential, Error> {
        let source = &self.known_source(place.source)?.record;
        let known = source.credentials.get(&place.role);
        let held = known.and_then(|known| match place.slot {
            CredentialSlot::Current => Some(&known.current),
            CredentialSlot::Next => known.next.as_ref(),
        });
        let held = held.ok_or_else(|| rules::empty_slot(&source.name, place))?;
        let name = Arc::clone(&source.name);
        let opened = SealedCredential::new(place, name, held.version, held.sealed.clone());
        let fact = format!("credential.{}.{}.opened", place.role, place.slot.as_str());
        let key = opened.sealed.as_str().split('.').nth(1).unwrap_or_default();
        let changed = json!({ fact: { "version": opened.version, "key": key } });
        if !cfg!(biplane_mutant = "openings_leave_no_trace") {
            self.log(by, Subject::Source(place.source), &[], changed);
        }
        Ok(opened)
    }
}
