//! A control plane in memory that breaks one promise.

#[path = "wrong_push.rs"]
mod push;

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use biplane::{
    error::{Error, ErrorKind},
    repository::{
        Actor, AuditEntry, Beat, ChangeHead, ChangeKind, ChangeLog, Changes, CredentialPlace, CredentialSlot,
        CredentialStore, Found, Instance, Instances, KeyReport, MemoryControl, NewSource, NewTenant, Page,
        Reseal, ResealOutcome, SealedCredential, SourceChange, TenantAdmin, TenantRepository,
    },
    tenant::{
        CredentialVersion, DataSource, DataSourceId, Domain, InstanceId, Isolation, Role, SealedText, Seq,
        Slug, Tenant, TenantId, TenantRecord, TenantRef, TenantStatus, Version,
    },
    testing::conformance::{Backend, ReadBackend, async_trait, seed_through},
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum How {
    MalformedIsUnknown,
    MalformedFailsTheCall,
    HitsFirst,
    DuplicatesAnsweredOnce,
    DeletedAreUnknown,
    NamesHaveNoVersion,
    SourcesNotShared,
    SettingsLost,
    SourcesCached,
    TornRecords,
    ListRepeats,
    ListEndsEarly,
    ListBySlug,
    ListHidesMalformed,
    VersionsIgnored,
    SlugFreedOnDelete,
    ForbiddenIsSilent,
    ActorMadeUp,
    PlacingInPlaceDoesNothing,
    NewestChangesFirst,
    TruncationIsSilent,
    SettingsAreNotLogged,
    ResealsAreChanges,
    OpeningsAreSilent,
    ResealsAnswerInAnyOrder,
    ResealsWinOverChanges,
    PagesGoBySource,
    LeavingIsIgnored,
    OldKeysStay,
    KeysAreNeverIdle,
    SilenceIsNotCounted,
    PromotionsCompareNothing,
    PromotionsTakeTwoSteps,
    DiscardingDoesNothing,
    PruningTakesAll,
    PushTellsOnce,
    PushTellsTheFirstListenerAlone,
    PushTellsTooSoon,
    PushLagsBehind,
    PushTellsBeats,
    FreezingIsIgnored,
    ReleasesReachAhead,
}

#[derive(Clone, Debug)]
pub(crate) struct Wrong {
    how: How,
    inner: MemoryControl,
    sources: Arc<Mutex<HashMap<DataSourceId, Arc<DataSource>>>>,
    beats: push::Beats,
    listened_to: push::Listened,
}

impl Wrong {
    pub(crate) fn new(how: How) -> Self {
        Self {
            how,
            inner: MemoryControl::new(),
            sources: Arc::default(),
            beats: push::Beats::default(),
            listened_to: push::Listened::default(),
        }
    }

    async fn tenant(&self, id: TenantId) -> Option<Tenant> {
        let mut found = self.inner.find(&[TenantRef::Id(id)]).await.unwrap();
        let found = found.remove(0).unwrap()?;
        Some(found.record.tenant.clone())
    }

    /// The version to compare with: what is there, for a control plane that ignores what the caller read.
    async fn expected(&self, id: TenantId, expected: Version) -> Version {
        match self.how {
            How::VersionsIgnored => self.tenant(id).await.map_or(expected, |tenant| tenant.version),
            _ => expected,
        }
    }

    async fn credentials_of(
        &self,
        source: DataSourceId,
        role: Role,
    ) -> Option<biplane::tenant::RoleCredentials> {
        use biplane::repository::CredentialStore as _;
        let all = self
            .inner
            .sealed_credentials(None, NonZeroU32::MAX)
            .await
            .unwrap();
        let name = all
            .iter()
            .find(|one| one.place.source == source)?
            .source_name
            .clone();
        let source = self.inner.source(&name).await.unwrap()?;
        source.credentials.get(&role).cloned()
    }

    fn actor(&self, by: &Actor) -> Actor {
        match self.how {
            How::ActorMadeUp => Actor::new("system", "unknown"),
            _ => by.clone(),
        }
    }

    fn record(&self, record: &Arc<TenantRecord>) -> Arc<TenantRecord> {
        let mut wrong = TenantRecord::clone(record);
        match self.how {
            How::SourcesNotShared => wrong.source = Arc::new(DataSource::clone(&record.source)),
            How::SettingsLost => wrong.tenant.settings = serde_json::json!({}),
            How::SourcesCached => {
                let mut sources = self.sources.lock().unwrap();
                let known = sources.entry(record.source.id);
                wrong.source = Arc::clone(known.or_insert_with(|| Arc::clone(&record.source)));
            }
            _ => return Arc::clone(record),
        }
        Arc::new(wrong)
    }

    fn outcome(&self, found: Found) -> Result<Found, Error> {
        let malformed = found
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::MalformedRecord);
        let deleted =
            matches!(&found, Ok(Some(found)) if found.record.tenant.status == TenantStatus::Deleted);
        match self.how {
            How::MalformedIsUnknown if malformed => Ok(Ok(None)),
            How::MalformedFailsTheCall if malformed => Err(ErrorKind::MalformedRecord.into()),
            How::DeletedAreUnknown if deleted => Ok(Ok(None)),
            _ => Ok(found.map(|found| {
                found.map(|mut found| {
                    found.record = self.record(&found.record);
                    if self.how == How::NamesHaveNoVersion {
                        found.name_version = None;
                    }
                    found
                })
            })),
        }
    }
}

#[async_trait]
impl TenantRepository for Wrong {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        let found = self.inner.find(names).await?;
        let mut found: Vec<Found> = found
            .into_iter()
            .map(|found| self.outcome(found))
            .collect::<Result<_, _>>()?;
        match self.how {
            How::HitsFirst => found.sort_by_key(|found| !matches!(found, Ok(Some(_)))),
            How::DuplicatesAnsweredOnce => {
                let mut seen = HashSet::new();
                for (name, found) in names.iter().zip(&mut found) {
                    if !seen.insert(name) {
                        *found = Ok(None);
                    }
                }
            }
            How::TornRecords => {
                // Long enough for somebody to write between the two halves.
                tokio::time::sleep(Duration::from_millis(1)).await;
                let later = self.inner.find(names).await?;
                for (found, later) in found.iter_mut().zip(later) {
                    if let (Ok(Some(found)), Ok(Some(later))) = (found, later) {
                        let torn =
                            TenantRecord::new(found.record.tenant.clone(), Arc::clone(&later.record.source));
                        found.record = Arc::new(torn);
                    }
                }
            }
            _ => {}
        }
        Ok(found)
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        let mut page = match (self.how, after) {
            (How::ListRepeats, Some(after)) => {
                let before = after.as_uuid().as_u128() - 1;
                let before = TenantId::from_uuid(uuid::Uuid::from_u128(before));
                self.inner.list(Some(before), limit).await?
            }
            _ => self.inner.list(after, limit).await?,
        };
        match self.how {
            How::ListEndsEarly => page.next = None,
            How::ListBySlug => page
                .items
                .sort_by_key(|item| item.record.as_ref().ok().map(|it| it.tenant.slug)),
            How::ListHidesMalformed => page.items.retain(|item| item.record.is_ok()),
            How::DeletedAreUnknown => page.items.retain(|item| {
                let record = item.record.as_ref();
                record.map_or(true, |record| record.tenant.status != TenantStatus::Deleted)
            }),
            _ => {}
        }
        Ok(page)
    }
}

#[async_trait]
impl ChangeLog for Wrong {
    async fn head(&self) -> Result<ChangeHead, Error> {
        let mut head = self.inner.head().await?;
        if self.how == How::ReleasesReachAhead {
            head.released = head.seq;
        }
        Ok(head)
    }

    async fn since(&self, after: Seq, limit: NonZeroU32) -> Result<Changes, Error> {
        let mut changes = self.inner.since(after, limit).await?;
        match self.how {
            How::ReleasesReachAhead => changes.head.released = changes.head.seq,
            How::NewestChangesFirst => {
                let all = self.inner.since(after, NonZeroU32::MAX).await?.changes;
                let rest = all.len().saturating_sub(limit.get() as usize);
                changes.changes = all[rest..].to_vec();
            }
            How::TruncationIsSilent => changes.truncated = false,
            How::SettingsAreNotLogged => changes
                .changes
                .retain(|change| change.kind != ChangeKind::Settings),
            _ => {}
        }
        Ok(changes)
    }
}

#[async_trait]
impl TenantAdmin for Wrong {
    async fn create_source(&self, by: &Actor, source: NewSource) -> Result<DataSource, Error> {
        self.inner.create_source(&self.actor(by), source).await
    }

    async fn source(&self, name: &str) -> Result<Option<DataSource>, Error> {
        self.inner.source(name).await
    }

    async fn update_source(
        &self,
        by: &Actor,
        id: DataSourceId,
        expected: Version,
        change: SourceChange,
    ) -> Result<DataSource, Error> {
        self.inner
            .update_source(&self.actor(by), id, expected, change)
            .await
    }

    async fn set_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        slot: CredentialSlot,
        expected: Option<CredentialVersion>,
        sealed: SealedText,
    ) -> Result<CredentialVersion, Error> {
        self.inner
            .set_credential(&self.actor(by), source, role, slot, expected, sealed)
            .await
    }

    async fn promote_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        current: CredentialVersion,
        next: CredentialVersion,
    ) -> Result<CredentialVersion, Error> {
        let by = self.actor(by);
        let stored = self.credentials_of(source, role).await;
        match (self.how, stored) {
            (How::PromotionsCompareNothing, Some(stored)) if stored.next.is_some() => {
                let next = stored.next.unwrap().version;
                self.inner
                    .promote_credential(&by, source, role, stored.current.version, next)
                    .await
            }
            (How::PromotionsTakeTwoSteps, Some(stored)) if stored.next.is_some() => {
                let text = stored.next.unwrap().sealed;
                let version = self
                    .inner
                    .set_credential(&by, source, role, CredentialSlot::Current, Some(current), text)
                    .await?;
                self.inner.discard_credential(&by, source, role, next).await?;
                Ok(version)
            }
            _ => {
                self.inner
                    .promote_credential(&by, source, role, current, next)
                    .await
            }
        }
    }

    async fn discard_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        next: CredentialVersion,
    ) -> Result<(), Error> {
        if self.how == How::DiscardingDoesNothing {
            return Ok(());
        }
        self.inner
            .discard_credential(&self.actor(by), source, role, next)
            .await
    }

    async fn create(&self, by: &Actor, tenant: NewTenant) -> Result<Tenant, Error> {
        self.inner.create(&self.actor(by), tenant).await
    }

    async fn rename(&self, by: &Actor, id: TenantId, expected: Version, slug: Slug) -> Result<Tenant, Error> {
        let expected = self.expected(id, expected).await;
        self.inner.rename(&self.actor(by), id, expected, slug).await
    }

    async fn set_status(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        status: TenantStatus,
    ) -> Result<Tenant, Error> {
        let expected = self.expected(id, expected).await;
        let result = self.inner.set_status(&self.actor(by), id, expected, status).await;
        match (self.how, result) {
            (How::ForbiddenIsSilent, Err(error))
                if matches!(error.kind(), ErrorKind::ForbiddenTransition { .. }) =>
            {
                Ok(self.tenant(id).await.unwrap())
            }
            (_, result) => result,
        }
    }

    async fn place(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        source: DataSourceId,
        isolation: Isolation,
    ) -> Result<Tenant, Error> {
        if self.how == How::PlacingInPlaceDoesNothing
            && let Some(tenant) = self.tenant(id).await
            && (tenant.placement.source, tenant.placement.isolation) == (source, isolation)
        {
            return Ok(tenant);
        }
        let expected = self.expected(id, expected).await;
        self.inner
            .place(&self.actor(by), id, expected, source, isolation)
            .await
    }

    async fn set_settings(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        settings: serde_json::Value,
    ) -> Result<Tenant, Error> {
        let expected = self.expected(id, expected).await;
        self.inner
            .set_settings(&self.actor(by), id, expected, settings)
            .await
    }

    async fn add_domain(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        domain: Domain,
    ) -> Result<Tenant, Error> {
        let expected = self.expected(id, expected).await;
        self.inner.add_domain(&self.actor(by), id, expected, domain).await
    }

    async fn remove_domain(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        domain: &Domain,
    ) -> Result<Tenant, Error> {
        let expected = self.expected(id, expected).await;
        self.inner
            .remove_domain(&self.actor(by), id, expected, domain)
            .await
    }

    async fn delete(&self, by: &Actor, id: TenantId, expected: Version) -> Result<Tenant, Error> {
        let mut expected = self.expected(id, expected).await;
        if self.how == How::SlugFreedOnDelete {
            let slug = Slug::parse(&format!("gone-{}", id.as_uuid().simple())).unwrap();
            let renamed = self.inner.rename(by, id, expected, slug).await?;
            expected = renamed.version;
        }
        self.inner.delete(&self.actor(by), id, expected).await
    }

    async fn release_brake(&self, by: &Actor) -> Result<(), Error> {
        self.inner.release_brake(&self.actor(by)).await
    }

    async fn freeze(&self, by: &Actor) -> Result<(), Error> {
        match self.how {
            How::FreezingIsIgnored => Ok(()),
            _ => self.inner.freeze(&self.actor(by)).await,
        }
    }

    async fn thaw(&self, by: &Actor) -> Result<(), Error> {
        self.inner.thaw(&self.actor(by)).await
    }

    async fn audit(&self, tenant: Option<TenantId>, limit: NonZeroU32) -> Result<Vec<AuditEntry>, Error> {
        self.inner.audit(tenant, limit).await
    }
}

#[async_trait]
impl CredentialStore for Wrong {
    async fn sealed_credentials(
        &self,
        after: Option<CredentialPlace>,
        limit: NonZeroU32,
    ) -> Result<Vec<SealedCredential>, Error> {
        let mut page = self.inner.sealed_credentials(after, limit).await?;
        if let (How::PagesGoBySource, Some(after)) = (self.how, after) {
            page = self.inner.sealed_credentials(None, NonZeroU32::MAX).await?;
            page.retain(|held| held.place.source > after.source);
            page.truncate(limit.get() as usize);
        }
        Ok(page)
    }

    async fn record_opening(&self, by: &Actor, place: CredentialPlace) -> Result<SealedCredential, Error> {
        if self.how == How::OpeningsAreSilent {
            let all = self.inner.sealed_credentials(None, NonZeroU32::MAX).await?;
            let held = all.into_iter().find(|held| held.place == place);
            return held.ok_or_else(|| ErrorKind::MissingCredential { role: place.role }.into());
        }
        self.inner.record_opening(by, place).await
    }

    async fn reseal_credentials(&self, by: &Actor, batch: &[Reseal]) -> Result<Vec<ResealOutcome>, Error> {
        let all = self.inner.sealed_credentials(None, NonZeroU32::MAX).await?;
        let held = |place| all.iter().find(|held| held.place == place);
        match self.how {
            How::ResealsWinOverChanges => {
                let mut batch = batch.to_vec();
                for one in &mut batch {
                    if let Some(held) = held(one.place) {
                        one.before = held.sealed.clone();
                    }
                }
                self.inner.reseal_credentials(by, &batch).await
            }
            How::ResealsAreChanges => {
                let mut outcomes = Vec::new();
                for one in batch {
                    let CredentialPlace {
                        source, role, slot, ..
                    } = one.place;
                    outcomes.push(match held(one.place) {
                        Some(held) if held.sealed == one.before => {
                            let expected = Some(held.version);
                            let after = one.after.clone();
                            self.inner
                                .set_credential(by, source, role, slot, expected, after)
                                .await?;
                            ResealOutcome::Replaced
                        }
                        _ => ResealOutcome::Changed,
                    });
                }
                Ok(outcomes)
            }
            _ => {
                let mut outcomes = self.inner.reseal_credentials(by, batch).await?;
                if self.how == How::ResealsAnswerInAnyOrder {
                    outcomes.reverse();
                }
                Ok(outcomes)
            }
        }
    }
}

#[async_trait]
impl Instances for Wrong {
    async fn beat(&self, beat: &Beat) -> Result<(), Error> {
        let mut beat = beat.clone();
        if self.how == How::OldKeysStay {
            let known = self.inner.instances().await?;
            let known = known.iter().filter(|known| known.id == beat.id);
            let old: Vec<KeyReport> = known
                .flat_map(|known| &known.keys)
                .map(|key| key.report)
                .collect();
            let new: HashSet<_> = beat.keys.iter().map(|key| key.id).collect();
            beat.keys
                .extend(old.into_iter().filter(|old| !new.contains(&old.id)));
        }
        // Nobody may be listening.
        let _ = self.beats.0.send(());
        self.inner.beat(&beat).await
    }

    async fn leave(&self, instance: InstanceId) -> Result<(), Error> {
        match self.how {
            How::LeavingIsIgnored => Ok(()),
            _ => self.inner.leave(instance).await,
        }
    }

    async fn instances(&self) -> Result<Vec<Instance>, Error> {
        let mut listed = self.inner.instances().await?;
        for instance in &mut listed {
            match self.how {
                How::KeysAreNeverIdle => instance.keys.iter_mut().for_each(|key| key.idle = Duration::ZERO),
                How::SilenceIsNotCounted => instance.silent = Duration::ZERO,
                _ => {}
            }
        }
        Ok(listed)
    }
}

#[async_trait]
impl ReadBackend for Wrong {
    fn tenants(&self) -> Arc<dyn TenantRepository> {
        Arc::new(self.clone())
    }

    async fn seed(&self, tenants: &[TenantRecord]) {
        seed_through(&self.inner, tenants).await;
    }

    async fn spoil(&self, tenant: TenantId) {
        self.inner.corrupt(tenant).unwrap();
    }
}

#[async_trait]
impl Backend for Wrong {
    fn admin(&self) -> Arc<dyn TenantAdmin> {
        Arc::new(self.clone())
    }

    fn changes(&self) -> Arc<dyn ChangeLog> {
        Arc::new(self.clone())
    }

    fn credentials(&self) -> Arc<dyn CredentialStore> {
        Arc::new(self.clone())
    }

    fn instances(&self) -> Arc<dyn Instances> {
        Arc::new(self.clone())
    }

    async fn pass(&self, time: Duration) {
        self.inner.advance(time);
    }

    async fn prune(&self, keep: Duration) {
        self.inner.prune_changes(match self.how {
            How::PruningTakesAll => Duration::ZERO,
            _ => keep,
        });
    }
}
