//! What becomes of what a query found.

use std::{hash::BuildHasher, sync::Arc};

use super::{Answer, Desk, Known};
use crate::{
    connector::{Route, versions},
    error::{Error, ErrorKind},
    repository::Found,
    router::{
        clock,
        flights::Batch,
        table::{Entry, Named},
    },
    tenant::{Resolved, Tenant, TenantName, Version},
};

/// A query that lands, under the lock.
pub(super) struct Landing<'a, H> {
    pub(super) known: &'a Known<H>,
    pub(super) desk: &'a mut Desk<H>,
    pub(super) batch: &'a Batch<Arc<Entry<H>>>,
    pub(super) asked_at: u64,
    pub(super) now: u64,
}

impl<H: Clone + Send + Sync + 'static> Landing<'_, H> {
    pub(super) fn learn(&mut self, name: &TenantName, outcome: Found) -> Answer<H> {
        let found = outcome?;
        if let Some(resolved) = &found
            && !has_name(&resolved.record.tenant, name)
            && !cfg!(biplane_mutant = "answers_are_not_checked")
        {
            return Err(Error::new(ErrorKind::Internal)
                .detail("the repository answered for another name than it was asked"));
        }
        if let Some(entry) = self.held(name, found.as_ref()) {
            return Ok(entry);
        }
        let Some(resolved) = found else {
            if let Some(given) = self.known.given(name, self.asked_at, self.now) {
                return given;
            }
            self.learn_unknown(name);
            return Err(ErrorKind::UnknownTenant.into());
        };
        let version = resolved.name_version;
        let entry = self.learn_route(name, resolved)?;
        self.learn_name(name, version, entry)
    }

    /// Makes a record the tenant's route, unless something newer is known or it was overtaken.
    fn learn_route(&mut self, name: &TenantName, resolved: Resolved) -> Answer<H> {
        let known = self.known;
        let record = resolved.record;
        let tenant = record.tenant.id;
        if self
            .desk
            .flights
            .is_tenant_overtaken(tenant, record.source.id, self.batch)
        {
            let route = known.served(Route::overtaken(record, self.batch.life, self.asked_at));
            return Ok(Arc::new(Entry::new(Arc::new(route))));
        }
        let fresh_until = known.ages.fresh_until(self.asked_at);
        let sure = !self.desk.flights.is_unsure(self.batch);
        if let Some(current) = known.route(tenant) {
            let (old, new) = (current.versions(), versions(&record));
            // In another life of the control plane a version says nothing, not even that the record is the same.
            let comparable = !current.takes_any_version();
            if new < old && comparable && !cfg!(biplane_mutant = "older_route_wins") {
                let still_its_name = has_name(current.tenant(), name);
                return (still_its_name && current.is_fresh(self.now))
                    .then(|| known.entry_of(&current))
                    .ok_or_else(outdated);
            }
            if new == old && comparable && self.desk.brake.is_held(tenant) {
                // It is known to have changed, so this is older than that.
                return Ok(known.entry_of(&current));
            }
            if new == old && (comparable || *current.record() == *record) {
                self.desk.brake.forget(tenant);
                if sure {
                    current.reassure();
                }
                current.live_on(self.batch.life);
                current.confirm(self.asked_at, fresh_until);
                known.sources.note(&current);
                return Ok(known.entry_of(&current));
            }
        }
        known.forget(tenant);
        self.desk.brake.forget(tenant);
        let route = Arc::new(known.served(Route::new(record, self.batch.life, self.asked_at, fresh_until)));
        if !sure && !cfg!(biplane_mutant = "first_look_confirms") {
            route.doubt();
        }
        let entry = Arc::new(Entry::new(Arc::clone(&route)));
        if cfg!(biplane_mutant = "route_before_entry") {
            known.publish(Arc::clone(&route));
        }
        // The entry comes first: a reader that finds the route must find the one entry that it has.
        if let Some(table) = known.table.upgrade() {
            table.enter(Arc::clone(&entry));
        }
        known.publish(route);
        Ok(entry)
    }

    /// Lets a slug or domain lead there, unless it has changed hands since or that is in doubt.
    fn learn_name(&self, name: &TenantName, version: Option<Version>, entry: Arc<Entry<H>>) -> Answer<H> {
        let Some(table) = self.known.table.upgrade() else {
            return Ok(entry);
        };
        if let Some(bound) = table.named(name).filter(|bound| version < bound.version)
            && !cfg!(biplane_mutant = "names_ignore_versions")
        {
            let fresh = bound.entry.route.is_fresh(self.now);
            return fresh.then_some(bound.entry).ok_or_else(outdated);
        }
        let doubtful = self.desk.flights.is_name_overtaken(name, self.batch)
            && !cfg!(biplane_mutant = "late_name_is_bound");
        if !entry.route.is_retired() && !doubtful {
            table.bind(name, Named::new(Arc::clone(&entry), version));
        }
        Ok(entry)
    }

    fn learn_unknown(&mut self, name: &TenantName) {
        let known = self.known;
        if self.desk.flights.is_name_overtaken(name, self.batch) {
            return;
        }
        match name {
            TenantName::Id(tenant) => {
                // A route that was read after this query had begun knows better.
                if known
                    .route(*tenant)
                    .is_some_and(|route| route.confirmed_at() <= self.asked_at)
                {
                    known.forget(*tenant);
                    self.desk.brake.forget(*tenant);
                }
            }
            TenantName::Slug(_) | TenantName::Domain(_) => {
                if let Some(table) = known.table.upgrade() {
                    table.unbind(name);
                }
            }
        }
        // Each name may be asked for again at a time of its own, after three quarters of the time at the earliest.
        let longest = clock::millis(known.options.unknown_for);
        let shorter = if cfg!(biplane_mutant = "unknown_names_run_out_together") {
            0
        } else {
            known.jitter.hash_one((name, self.now)) % (longest / 4 + 1)
        };
        let until = self.now.saturating_add(longest - shorter);
        known.unknown.insert(name.clone(), until);
    }
}

/// Whether a name is one of the tenant's. A repository that mixes up the order of its answers must not lead one tenant
/// to another's data.
pub(super) fn has_name(tenant: &Tenant, name: &TenantName) -> bool {
    match name {
        TenantName::Id(id) => tenant.id == *id,
        TenantName::Slug(slug) => tenant.slug == *slug,
        TenantName::Domain(domain) => tenant.domains.contains(domain),
    }
}

/// Older data than is known confirms nothing, so it counts as no answer.
fn outdated() -> Error {
    Error::new(ErrorKind::ControlPlaneUnavailable).detail("it answered with older data than is known already")
}
