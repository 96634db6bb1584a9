//! What is held back from open tenants, and how it is let go.
//!
//! A change is judged twice. When the log tells of it, by its kind: all that a look finds is weighed before any of it is
//! applied. And when a record is read that differs from the known one, whoever asked for it and whether the log told or
//! not, because a log that was lost or restored tells nothing. A tenant whose change was let through the first time passes
//! the second.
//!
//! A tenant that is held keeps its route, which is served for as long as its age allows, without asking and without being
//! confirmed. Nothing here is read by a lookup that the cache answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Desk, Known, StartWorker,
    brake::{BrakeHealth, Due, Sample},
    landing::{Landing, has_name},
    start,
};
use crate::{
    connector::{Route, Standing, versions},
    repository::{Change, ChangeKind, Found, Subject},
    router::table::Entry,
    tenant::{Access, DataSourceId, Resolved, Seq, TenantId, TenantName, TenantRecord},
};

/// Changes that were read and not yet applied: of each subject the last that may close or move open tenants, if any may.
#[derive(Debug, Default)]
pub(super) struct News {
    tenants: BTreeMap<TenantId, Option<Seq>>,
    sources: HashMap<DataSourceId, Option<Seq>>,
}

impl News {
    fn is_empty(&self) -> bool {
        self.tenants.is_empty() && self.sources.is_empty()
    }

    pub(super) fn note(&mut self, change: &Change) {
        let seq = closes_or_moves(change.kind).then_some(change.seq);
        let last = match change.subject {
            Subject::Tenant(tenant) => self.tenants.entry(tenant).or_default(),
            Subject::Source(source) => self.sources.entry(source).or_default(),
            Subject::Routing => return,
        };
        *last = (*last).max(seq);
    }
}

/// Credentials are replaced by the thousand when keys rotate, and settings lead nobody anywhere. Of what this release has
/// no word for, the record is judged.
fn closes_or_moves(kind: ChangeKind) -> bool {
    match kind {
        ChangeKind::Names
        | ChangeKind::Status
        | ChangeKind::Placement
        | ChangeKind::Address
        | ChangeKind::Deleted => true,
        ChangeKind::Credential => cfg!(biplane_mutant = "brake_counts_credentials"),
        _ => false,
    }
}

impl<H: Clone + Send + Sync + 'static> Known<H> {
    /// Applies whatever was read and is not held.
    pub(super) fn act(&self, desk: &mut Desk<H>, now: u64, max_workers: usize) -> Vec<StartWorker> {
        let mut workers = match desk.brake.take_due() {
            Some(Due::Release) => self.release(desk, Some(max_workers)),
            Some(Due::Thaw) => self.let_go(desk, Some(max_workers)),
            None => Vec::new(),
        };
        let News {
            tenants: mut changed,
            sources,
        } = std::mem::take(&mut desk.news);
        if !sources.is_empty() {
            self.hear_of_sources();
            self.routes.for_each(|route| {
                // Where it is served from, and where the control plane says that it is.
                for source in [route.source().id, route.record().source.id] {
                    if let Some(seq) = sources.get(&source) {
                        let last = changed.entry(route.tenant().id).or_default();
                        *last = (*last).max(*seq);
                    }
                }
            });
        }
        let held = self.held_of(desk, &changed, now);
        for tenant in changed.into_keys() {
            let Some(route) = self.route(tenant) else { continue };
            if held.contains(&tenant) {
                self.hold(desk, &route);
            } else if !desk.brake.is_held(tenant) {
                workers.extend(self.read_anew(desk, &route, Some(max_workers)));
            }
        }
        workers
    }

    /// Those of the changed tenants that must not be applied now.
    fn held_of(
        &self,
        desk: &mut Desk<H>,
        changed: &BTreeMap<TenantId, Option<Seq>>,
        now: u64,
    ) -> BTreeSet<TenantId> {
        let mut counted = BTreeSet::new();
        for (tenant, seq) in changed {
            let Some(seq) = *seq else { continue };
            if !self.route(*tenant).is_some_and(|route| self.serves(&route, now)) {
                continue;
            }
            if desk.brake.is_released(seq) && !desk.brake.is_frozen() {
                desk.brake.let_pass([*tenant]);
            } else {
                counted.insert(*tenant);
            }
        }
        match desk.brake.admits(
            &counted,
            Sample::default(),
            |recent| self.others(recent, now),
            now,
        ) {
            true => BTreeSet::new(),
            false => counted,
        }
    }

    /// Whether a route is one that somebody would miss: of an open tenant, and not too old to be served.
    pub(super) fn serves(&self, route: &Route, now: u64) -> bool {
        let too_old = now >= self.ages.stale_until(route) && !cfg!(biplane_mutant = "held_routes_never_end");
        route.access() != Access::Refused && !route.is_retired() && !too_old
    }

    fn others(&self, recent: &HashMap<TenantId, u64>, now: u64) -> usize {
        let mut others = 0;
        self.routes.for_each(|route| {
            others += usize::from(self.serves(route, now) && !recent.contains_key(&route.tenant().id));
        });
        others
    }

    /// Keeps a route as it is, for as long as its age allows.
    fn hold(&self, desk: &mut Desk<H>, route: &Route) {
        desk.brake.hold(route.tenant().id);
        route.hold(self.ages.stale_until(route));
    }

    /// Has a tenant that has changed read again, by all its names. Without workers whoever asks next does so.
    fn read_anew(
        &self,
        desk: &mut Desk<H>,
        route: &Arc<Route>,
        max_workers: Option<usize>,
    ) -> Vec<StartWorker> {
        route.expire();
        let Some(max_workers) = max_workers else {
            return Vec::new();
        };
        let names = self.names_of(route);
        names
            .iter()
            .filter_map(|name| start(desk.flights.join(name, max_workers)).1)
            .collect()
    }

    /// Applies what was held, unless something else holds it still.
    fn let_go(&self, desk: &mut Desk<H>, max_workers: Option<usize>) -> Vec<StartWorker> {
        let mut workers = Vec::new();
        for tenant in desk.brake.let_go() {
            if let Some(route) = self.route(tenant)
                && !cfg!(biplane_mutant = "what_was_held_is_lost")
            {
                workers.extend(self.read_anew(desk, &route, max_workers));
            }
        }
        workers
    }

    /// The same, and what is yet to be read again because changes may have been missed is believed as well.
    fn release(&self, desk: &mut Desk<H>, max_workers: Option<usize>) -> Vec<StartWorker> {
        desk.brake.release();
        if !desk.brake.is_frozen() {
            let mut doubted = Vec::new();
            self.routes.for_each(|route| {
                if route.standing() == Standing::Doubted {
                    doubted.push(route.tenant().id);
                }
            });
            desk.brake.let_pass(doubted);
        }
        self.let_go(desk, max_workers)
    }

    /// Releases the brake of this process.
    pub(in crate::router) fn release_brake(&self, max_workers: Option<usize>) -> Vec<StartWorker> {
        let mut desk = self.desk();
        self.release(&mut desk, max_workers)
    }

    pub(in crate::router) fn freeze(&self, now: u64) {
        self.desk().brake.freeze(now);
    }

    pub(in crate::router) fn thaw(&self, max_workers: Option<usize>) -> Vec<StartWorker> {
        let mut desk = self.desk();
        desk.brake.thaw();
        self.let_go(&mut desk, max_workers)
    }

    /// Whether every change that was read acts.
    pub(in crate::router) fn all_acts(&self) -> bool {
        let desk = self.desk();
        desk.brake.held_tenants() == 0 && desk.news.is_empty()
    }

    pub(in crate::router) fn brake_health(&self, now: u64) -> BrakeHealth {
        self.desk().brake.health(now)
    }

    /// Says again that changes are held, if it is time.
    pub(in crate::router) fn remind(&self, now: u64) {
        self.desk().brake.remind(now);
    }
}

impl<H: Clone + Send + Sync + 'static> Landing<'_, H> {
    /// Counts the open tenants that a query would close or move, before it does so to any.
    pub(super) fn weigh(&mut self, outcomes: &[Found]) {
        let (known, now) = (self.known, self.now);
        let sure = !self.desk.flights.is_unsure(self.batch);
        let (mut counted, mut doubted) = (BTreeSet::new(), BTreeSet::new());
        for (flight, outcome) in self.batch.flights.iter().zip(outcomes) {
            let Ok(found) = outcome else { continue };
            for route in self.concerned(&flight.name, found.as_ref()) {
                let tenant = route.tenant().id;
                if !known.serves(&route, now) || self.desk.brake.may_pass(tenant) {
                    continue;
                }
                if sure && route.standing() == Standing::Doubted {
                    doubted.insert(tenant);
                }
                if differs(&route, found.as_ref()) && self.counts(&route, &flight.name, found.as_ref()) {
                    counted.insert(tenant);
                }
            }
        }
        let sample = Sample {
            looked_at: doubted.len(),
            changed: doubted.intersection(&counted).count(),
        };
        let others = |recent: &HashMap<_, _>| known.others(recent, now);
        let brake = &mut self.desk.brake;
        // While something holds, each is judged by itself.
        brake.admits(&counted, sample, others, now);
        brake.remind(now);
    }

    /// What a name is answered with instead of what was found, if that is held.
    pub(super) fn held(&mut self, name: &TenantName, found: Option<&Resolved>) -> Option<Arc<Entry<H>>> {
        if !self.desk.brake.holds() || cfg!(biplane_mutant = "held_routes_are_replaced") {
            return None;
        }
        let known = self.known;
        let held = self.concerned(name, found).into_iter().find(|route| {
            let tenant = route.tenant().id;
            known.serves(route, self.now)
                && !self.desk.brake.may_pass(tenant)
                && differs(route, found)
                && (self.desk.brake.is_held(tenant) || self.counts(route, name, found))
        })?;
        known.hold(self.desk, &held);
        Some(known.entry_of(&held))
    }

    /// The routes that what was found for a name says something about: that which the name leads to, and that of the
    /// tenant which was found.
    fn concerned(&self, name: &TenantName, found: Option<&Resolved>) -> Vec<Arc<Route>> {
        let named = self.known.entry(name).map(|entry| Arc::clone(&entry.route));
        let of_tenant = found.and_then(|found| self.known.route(found.record.tenant.id));
        let same = |one: &Arc<Route>| named.as_ref().is_some_and(|named| Arc::ptr_eq(one, named));
        let other = of_tenant.filter(|route| !same(route));
        named.into_iter().chain(other).collect()
    }

    /// Whether what was found would be believed, rather than be too old for what is known.
    fn counts(&self, route: &Route, name: &TenantName, found: Option<&Resolved>) -> bool {
        let flights = &self.desk.flights;
        let Some(found) = found else {
            let newer = matches!(name, TenantName::Id(_)) && route.confirmed_at() > self.asked_at;
            return !newer
                && !flights.is_name_overtaken(name, self.batch)
                && !cfg!(biplane_mutant = "held_routes_become_unknown");
        };
        let record = &found.record;
        if !has_name(&record.tenant, name) {
            return false;
        }
        if record.tenant.id != route.tenant().id {
            return !flights.is_name_overtaken(name, self.batch);
        }
        let newer = route.takes_any_version() || versions(record) > route.versions();
        newer && !flights.is_tenant_overtaken(record.tenant.id, record.source.id, self.batch)
    }
}

/// Whether what was found is another than the tenant of this route, open and where it was. Of a tenant that an override file
/// alone speaks of, the control plane takes nothing away.
fn differs(route: &Route, found: Option<&Resolved>) -> bool {
    if route.is_given() {
        return false;
    }
    let Some(found) = found else { return true };
    let facts = |record: &TenantRecord| {
        let (tenant, source) = (&record.tenant, &record.source);
        (tenant.id, tenant.status, tenant.placement, source.database_id)
    };
    let (old, new) = (route.record(), &found.record);
    facts(old) != facts(new)
        || old.tenant.slug != new.tenant.slug
        || old.tenant.domains != new.tenant.domains
        || old.source.location != new.source.location
}
