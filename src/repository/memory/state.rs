//! What a control plane in memory holds, and the rules that its tables, constraints and triggers would enforce.

mod credentials;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::Hash,
    num::NonZeroU32,
    ops::Bound,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    error::{Error, ErrorKind},
    tenant::{
        CredentialVersion, DataSource, DataSourceId, Domain, Incarnation, InstanceId, Isolation, Location,
        Placement, Resolved, Role, Seq, Slug, Tenant, TenantId, TenantRecord, TenantRef, TenantStatus,
        Version,
    },
};

use super::super::{
    Actor, AuditEntry, Beat, Change, ChangeHead, ChangeKind, Changes, Found, Instance, NewSource, NewTenant,
    Page, PageItem, SourceChange, Subject,
    facts::{differences, source_facts, tenant_facts},
    rules::{self, Edit},
};
use super::instances::Presence;

pub(super) struct State {
    /// How far the clock of this control plane is before the system's.
    ahead: Duration,
    presence: Presence,
    incarnation: Incarnation,
    seq: Seq,
    pruned_through: Seq,
    released: Seq,
    frozen: bool,
    changes: VecDeque<Change>,
    audit: Vec<AuditEntry>,
    sources: BTreeMap<DataSourceId, Source>,
    tenants: BTreeMap<TenantId, Row>,
    slugs: HashMap<Slug, Name>,
    domains: HashMap<Domain, Name>,
}

struct Source {
    record: Arc<DataSource>,
    /// The highest version that a role's credentials ever had.
    versions: BTreeMap<Role, CredentialVersion>,
}

struct Row {
    tenant: Tenant,
    malformed: bool,
}

/// A name that was given at least once; free when nobody owns it.
struct Name {
    owner: Option<TenantId>,
    version: Version,
}

impl State {
    pub(super) fn new() -> Self {
        let mut state = Self {
            ahead: Duration::ZERO,
            presence: Presence::default(),
            incarnation: Incarnation::from_uuid(Uuid::new_v4()),
            seq: Seq::ZERO,
            pruned_through: Seq::ZERO,
            released: Seq::ZERO,
            frozen: false,
            changes: VecDeque::new(),
            audit: Vec::new(),
            sources: BTreeMap::new(),
            tenants: BTreeMap::new(),
            slugs: HashMap::new(),
            domains: HashMap::new(),
        };
        let default = DataSource::new(DataSourceId::DEFAULT, "default", Location::Environment);
        state.insert_source(&Actor::new("biplane", "installation"), default);
        state
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.ahead = self.ahead.saturating_add(by);
    }

    fn now(&self) -> SystemTime {
        let now = SystemTime::now();
        now.checked_add(self.ahead).unwrap_or(now)
    }

    pub(super) fn beat(&mut self, beat: &Beat) {
        self.presence.beat(self.now(), beat);
    }

    pub(super) fn leave(&mut self, instance: InstanceId) {
        self.presence.leave(instance);
    }

    pub(super) fn instances(&self) -> Vec<Instance> {
        self.presence.list(self.now())
    }

    pub(super) fn tenant_count(&self) -> usize {
        self.tenants.len()
    }

    pub(super) fn set_malformed(&mut self, id: TenantId, malformed: bool) -> Result<(), Error> {
        self.tenants
            .get_mut(&id)
            .ok_or(ErrorKind::UnknownTenant)?
            .malformed = malformed;
        Ok(())
    }

    pub(super) fn find(&self, name: &TenantRef<'_>) -> Found {
        let named = |name: Option<&Name>| {
            let name = name?;
            Some((name.owner?, Some(name.version)))
        };
        let hit = match *name {
            TenantRef::Id(id) => Some((id, None)),
            TenantRef::Slug(slug) => named(self.slugs.get(slug)),
            TenantRef::Domain(domain) => named(self.domains.get(domain)),
        };
        let Some((id, name_version)) = hit else {
            return Ok(None);
        };
        let Some(row) = self.tenants.get(&id) else {
            return Ok(None);
        };
        let record = self.join(row)?;
        Ok(Some(match name_version {
            Some(version) => Resolved::by_name(record, version),
            None => Resolved::by_id(record),
        }))
    }

    pub(super) fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Page {
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rows = self.tenants.range((begin, Bound::Unbounded));
        let limit = usize::try_from(limit.get()).unwrap_or(usize::MAX);
        let items: Vec<_> = rows
            .by_ref()
            .take(limit)
            .map(|(id, row)| PageItem::new(*id, self.join(row)))
            .collect();
        let more = rows.next().is_some();
        let next = items.last().map(|item| item.id).filter(|_| more);
        Page::new(items, next)
    }

    pub(super) fn head(&self) -> ChangeHead {
        let mut head = ChangeHead::new(self.incarnation, self.seq);
        head.released = self.released;
        head.frozen = self.frozen;
        head
    }

    pub(super) fn since(&self, after: Seq, limit: NonZeroU32) -> Changes {
        let limit = usize::try_from(limit.get()).unwrap_or(usize::MAX);
        let begin = self.changes.partition_point(|change| change.seq <= after);
        let mut changes = Changes::new(
            self.head(),
            self.changes.range(begin..).take(limit).copied().collect(),
        );
        changes.truncated = after < self.pruned_through;
        changes
    }

    pub(super) fn prune(&mut self, keep: Duration) -> u64 {
        let now = self.now();
        let old = |change: &Change| now.duration_since(change.at).is_ok_and(|age| age >= keep);
        let mut removed = 0;
        while let Some(change) = self.changes.pop_front_if(|change| old(change)) {
            self.pruned_through = change.seq;
            removed += 1;
        }
        removed
    }

    pub(super) fn renew_incarnation(&mut self) -> Incarnation {
        self.incarnation = Incarnation::from_uuid(Uuid::new_v4());
        self.released = Seq::ZERO;
        self.incarnation
    }

    pub(super) fn release_brake(&mut self, by: &Actor) {
        let changed = json!({ "brake": { "before": null, "after": "released" } });
        self.log(by, Subject::Routing, &[ChangeKind::Released], changed);
        self.released = self.seq;
    }

    pub(super) fn set_frozen(&mut self, by: &Actor, frozen: bool) {
        let kind = match frozen {
            true => ChangeKind::Frozen,
            false => ChangeKind::Thawed,
        };
        let changed = json!({ "frozen": { "before": self.frozen, "after": frozen } });
        self.frozen = frozen;
        self.log(by, Subject::Routing, &[kind], changed);
    }

    pub(super) fn audit(&self, tenant: Option<TenantId>, limit: NonZeroU32) -> Vec<AuditEntry> {
        self.audit
            .iter()
            .rev()
            .filter(|entry| tenant.is_none() || entry.tenant == tenant)
            .take(usize::try_from(limit.get()).unwrap_or(usize::MAX))
            .cloned()
            .collect()
    }

    pub(super) fn source(&self, name: &str) -> Option<DataSource> {
        let mut sources = self.sources.values().map(|source| &source.record);
        sources
            .find(|source| &*source.name == name)
            .map(|source| DataSource::clone(source))
    }

    /// By its name or its id.
    pub(super) fn source_named(&self, name: &str) -> Option<DataSource> {
        let mut sources = self.sources.values().map(|source| &source.record);
        sources
            .find(|source| &*source.name == name || source.id.to_string() == name)
            .map(|source| DataSource::clone(source))
    }

    pub(super) fn unfenced_sources(&self) -> u64 {
        let open = self.tenants.values().map(|row| &row.tenant);
        let open = open.filter(|tenant| tenant.status != TenantStatus::Deleted);
        let used: BTreeSet<DataSourceId> = open.map(|tenant| tenant.placement.source).collect();
        let unfenced = used
            .iter()
            .filter_map(|id| self.sources.get(id))
            .filter(|source| {
                source.record.database_id.is_none() && source.record.location != Location::Memory
            });
        unfenced.count() as u64
    }

    pub(super) fn create_source(&mut self, by: &Actor, new: NewSource) -> Result<DataSource, Error> {
        let taken = self.sources.values().any(|other| {
            let same_database = new.database_id.is_some() && other.record.database_id == new.database_id;
            other.record.id == new.id || other.record.name == new.name || same_database
        });
        if taken {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let mut source = DataSource::new(new.id, new.name, new.location);
        source.pool = new.pool;
        source.database_id = new.database_id;
        self.insert_source(by, source.clone());
        Ok(source)
    }

    pub(super) fn update_source(
        &mut self,
        by: &Actor,
        id: DataSourceId,
        expected: Version,
        change: SourceChange,
    ) -> Result<DataSource, Error> {
        let before = Arc::clone(&self.known_source(id)?.record);
        if before.version != expected {
            return Err(ErrorKind::VersionConflict.into());
        }
        let mut after = change.applied_to(&before);
        let shared = |other: &Source| other.record.id != id && other.record.database_id == after.database_id;
        if after.database_id.is_some() && self.sources.values().any(shared) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if after == *before {
            return Ok(after);
        }
        after.version = before.version.next();
        let changed = differences(&source_facts(&before), &source_facts(&after));
        self.replace_source(after.clone());
        self.log(by, Subject::Source(id), &[ChangeKind::Address], changed);
        Ok(after)
    }

    pub(super) fn create(&mut self, by: &Actor, new: NewTenant) -> Result<Tenant, Error> {
        if self.tenants.contains_key(&new.id) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let mut tenant = Tenant::new(new.id, new.slug, Placement::new(new.source, new.isolation));
        tenant.domains = new.domains;
        tenant.domains.sort_unstable();
        tenant.domains.dedup();
        tenant.settings = new.settings;
        self.store(by, None, tenant)
    }

    pub(super) fn edit(
        &mut self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        edit: Edit<'_>,
    ) -> Result<Tenant, Error> {
        let row = self.tenants.get(&id).ok_or(ErrorKind::UnknownTenant)?;
        if row.malformed {
            return Err(malformed());
        }
        let before = row.tenant.clone();
        let after = rules::edited(&before, expected, edit)?;
        if after == before {
            return Ok(after);
        }
        self.store(by, Some(before), after)
    }

    /// Writes a new or changed tenant after everything that could refuse it.
    fn store(&mut self, by: &Actor, before: Option<Tenant>, after: Tenant) -> Result<Tenant, Error> {
        self.known_source(after.placement.source)?;
        let id = after.id;
        if owned_by_another(&self.slugs, id, [&after.slug])
            || owned_by_another(&self.domains, id, &after.domains)
        {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let place = |tenant: &Tenant| (tenant.placement.source, tenant.placement.isolation);
        if before.as_ref().map(place) != Some(place(&after)) {
            self.check_exclusive(&after)?;
        }

        let old_slug = before.as_ref().map(|before| before.slug);
        let old_domains = before.as_ref().map_or(&[][..], |before| &before.domains);
        hand_over(&mut self.slugs, id, old_slug.as_slice(), &[after.slug]);
        hand_over(&mut self.domains, id, old_domains, &after.domains);
        let facts_before = before.as_ref().map_or_else(Map::new, tenant_facts);
        let changed = differences(&facts_before, &tenant_facts(&after));
        let kinds = kinds(before.is_none(), &after, &changed);
        let row = Row {
            tenant: after.clone(),
            malformed: false,
        };
        self.tenants.insert(id, row);
        self.log(by, Subject::Tenant(id), &kinds, changed);
        Ok(after)
    }

    fn check_exclusive(&self, tenant: &Tenant) -> Result<(), Error> {
        let alone = tenant.placement.isolation == Isolation::Database;
        let crowded = self.tenants.values().map(|row| &row.tenant).any(|other| {
            other.id != tenant.id
                && other.placement.source == tenant.placement.source
                && other.status != TenantStatus::Deleted
                && (alone || other.placement.isolation == Isolation::Database)
        });
        if crowded { Err(rules::exclusive()) } else { Ok(()) }
    }

    fn join(&self, row: &Row) -> Result<Arc<TenantRecord>, Error> {
        if row.malformed {
            return Err(malformed());
        }
        let source = self
            .sources
            .get(&row.tenant.placement.source)
            .expect("a tenant is only ever placed on a data source that exists");
        Ok(Arc::new(TenantRecord::new(
            row.tenant.clone(),
            Arc::clone(&source.record),
        )))
    }

    fn known_source(&self, id: DataSourceId) -> Result<&Source, Error> {
        self.sources
            .get(&id)
            .ok_or_else(|| ErrorKind::UnknownDataSource.into())
    }

    fn insert_source(&mut self, by: &Actor, record: DataSource) {
        let id = record.id;
        let changed = differences(&Map::new(), &source_facts(&record));
        let source = Source {
            record: Arc::new(record),
            versions: BTreeMap::new(),
        };
        self.sources.insert(id, source);
        self.log(by, Subject::Source(id), &[ChangeKind::Created], changed);
    }

    fn replace_source(&mut self, record: DataSource) {
        if let Some(source) = self.sources.get_mut(&record.id) {
            source.record = Arc::new(record);
        }
    }

    fn log(&mut self, by: &Actor, subject: Subject, kinds: &[ChangeKind], changed: Value) {
        let at = self.now();
        self.audit.push(AuditEntry::new(at, by.clone(), subject, changed));
        for kind in kinds {
            self.seq = self.seq.next();
            self.changes.push_back(Change::new(self.seq, subject, *kind, at));
        }
    }
}

fn kinds(created: bool, after: &Tenant, changed: &Value) -> Vec<ChangeKind> {
    if created {
        return vec![ChangeKind::Created];
    }
    let status = match after.status {
        TenantStatus::Deleted => ChangeKind::Deleted,
        _ => ChangeKind::Status,
    };
    [
        (ChangeKind::Names, &["slug", "domains"][..]),
        (status, &["status"]),
        (ChangeKind::Placement, &["data_source_id", "isolation", "epoch"]),
        (ChangeKind::Settings, &["settings"]),
    ]
    .into_iter()
    .filter(|(_, facts)| facts.iter().any(|fact| changed.get(fact).is_some()))
    .map(|(kind, _)| kind)
    .collect()
}

fn owned_by_another<'a, K: Hash + Eq + 'a>(
    names: &HashMap<K, Name>,
    id: TenantId,
    wanted: impl IntoIterator<Item = &'a K>,
) -> bool {
    wanted
        .into_iter()
        .filter_map(|name| names.get(name)?.owner)
        .any(|owner| owner != id)
}

/// Frees the names that the tenant no longer has and gives it those that it did not have; each change of hands raises
/// the version of the name.
fn hand_over<K: Hash + Eq + Clone>(names: &mut HashMap<K, Name>, id: TenantId, before: &[K], after: &[K]) {
    for lost in before.iter().filter(|name| !after.contains(name)) {
        if let Some(name) = names.get_mut(lost) {
            name.owner = None;
            name.version = name.version.next();
        }
    }
    for gained in after.iter().filter(|name| !before.contains(name)) {
        names
            .entry(gained.clone())
            .and_modify(|name| {
                name.owner = Some(id);
                name.version = name.version.next();
            })
            .or_insert(Name {
                owner: Some(id),
                version: Version::FIRST,
            });
    }
}

fn malformed() -> Error {
    Error::new(ErrorKind::MalformedRecord).detail("made so on purpose")
}
