//! What an override file says, applied to what is known.
//!
//! A route keeps what the control plane says beside what is served instead, so that an override comes and goes without
//! anybody being asked. Versions are compared by what the control plane says.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, atomic::Ordering},
};

use super::{Answer, Known};
use crate::{
    connector::Route,
    error::{Error, ErrorKind},
    router::{
        overrides::{InForce, Override},
        table::{Entry, Named, Table},
    },
    tenant::{DataSource, TenantId, TenantName, TenantRecord},
};

/// The overrides in force, and in which order files have said what they say.
#[derive(Default)]
pub(super) struct Said {
    force: Arc<InForce>,
    /// How many different things files have said of tenants so far.
    sayings: u64,
    /// Which of them is in force for each tenant. A file that says the same again says nothing new.
    of: HashMap<TenantId, u64>,
}

impl Said {
    /// Makes this all that is said, and gives what was said before.
    fn put(&mut self, force: &Arc<InForce>) -> Arc<InForce> {
        let before = std::mem::replace(&mut self.force, Arc::clone(force));
        self.of.retain(|tenant, _| force.tenants.contains_key(tenant));
        for (tenant, said) in &force.tenants {
            if before.tenants.get(tenant) != Some(said) {
                self.sayings += 1;
                self.of.insert(*tenant, self.sayings);
            }
        }
        before
    }

    fn saying(&self, tenant: TenantId) -> u64 {
        self.of.get(&tenant).copied().unwrap_or_default()
    }
}

impl<H: Clone + Send + Sync + 'static> Known<H> {
    /// Makes this all that is overridden. Routes that are served otherwise from now on are replaced, at once and for every
    /// handle; all others are left alone.
    ///
    /// # Errors
    /// When it gives a name to one tenant that is known to lead to another. Then nothing has changed.
    pub(in crate::router) fn put_in_force(&self, force: &Arc<InForce>, now: u64) -> Result<(), Error> {
        let _desk = self.desk();
        let Some(table) = self.table.upgrade().filter(|_| !self.is_closed()) else {
            return Ok(());
        };
        for (name, tenant) in force.names() {
            let others =
                |named: &Named<H>| named.entry.route.tenant().id != tenant && !named.entry.route.is_given();
            if table.named(name).as_ref().is_some_and(others) {
                return Err(Error::new(ErrorKind::InvalidConfiguration).detail(format!(
                    "override file, tenant {tenant}: one of its names belongs to another tenant"
                )));
            }
        }
        let before = self.said().put(force);
        self.unknown.invalidate_all();
        let tenants: BTreeSet<TenantId> = before
            .tenants
            .keys()
            .chain(force.tenants.keys())
            .copied()
            .collect();
        for tenant in tenants {
            let (was, is) = (before.tenants.get(&tenant), force.tenants.get(&tenant));
            match (self.route(tenant), is) {
                (Some(_), Some(_)) if was == is => {}
                (Some(_), None) if cfg!(biplane_mutant = "overrides_outlive_their_file") => {}
                (Some(route), None) if route.is_given() => self.forget(tenant),
                (Some(route), is) if !route.is_given() => {
                    let saying = self.said().saying(tenant);
                    let anew = route.overridden_by(is.map(|said| said.applied_to(route.record())), saying);
                    self.replace(&table, &route, Arc::new(anew));
                }
                (known, Some(said)) => {
                    if known.is_some() {
                        self.forget(tenant);
                    }
                    if let Some(record) = said.record() {
                        self.give(&table, record, now);
                    }
                }
                (_, None) => {}
            }
        }
        Ok(())
    }

    /// The overrides in force.
    pub(in crate::router) fn overrides(&self) -> Arc<InForce> {
        Arc::clone(&self.said().force)
    }

    /// A data source may have changed, or changes of one may have been missed.
    pub(super) fn hear_of_sources(&self) {
        if !cfg!(biplane_mutant = "overrides_are_not_looked_up_again") {
            self.heard_of_sources.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Rises whenever a data source may have changed.
    pub(in crate::router) fn heard_of_sources(&self) -> u64 {
        self.heard_of_sources.load(Ordering::Acquire)
    }

    /// Whether overrides in force may lead elsewhere when their data sources are looked up again, and are let to.
    pub(in crate::router) fn would_override_otherwise(&self, force: &InForce) -> bool {
        force.is_outdated(self.heard_of_sources()) && !self.desk().brake.is_frozen()
    }

    /// A data source of a cached tenant, as the control plane has it, by its name or id.
    pub(in crate::router) fn source(&self, name: &str) -> Option<Arc<DataSource>> {
        let mut found = None;
        self.routes.for_each(|route| {
            let source = &route.record().source;
            let wanted = !route.is_given() && (&*source.name == name || source.id.to_string() == name);
            if wanted
                && found
                    .as_ref()
                    .is_none_or(|other: &Arc<DataSource>| other.version < source.version)
            {
                found = Some(Arc::clone(source));
            }
        });
        found
    }

    /// A route of what the control plane says, or of what is said instead.
    pub(super) fn served(&self, route: Route) -> Route {
        let overrides = self.overrides();
        let tenant = route.tenant().id;
        match overrides.tenants.get(&tenant) {
            Some(said) => {
                let served = Override::applied_to(said, route.record());
                route.overridden_by(Some(served), self.said().saying(tenant))
            }
            None => route,
        }
    }

    /// What the file says of a name that the control plane does not know.
    pub(super) fn given(&self, name: &TenantName, asked_at: u64, now: u64) -> Option<Answer<H>> {
        let overrides = self.overrides();
        let tenant = overrides.named(name)?;
        let table = self.table.upgrade()?;
        let route = self.route(tenant);
        let fresh_until = self.ages.fresh_until(asked_at);
        let route = match route.filter(|route| route.is_given()) {
            Some(route) => route,
            // It has other names now.
            None if self.route(tenant).is_some() && !matches!(name, TenantName::Id(_)) => return None,
            None => {
                self.forget(tenant);
                self.give(&table, overrides.tenants.get(&tenant)?.record()?, now)
            }
        };
        route.reassure();
        route.confirm(asked_at, fresh_until);
        Some(Ok(self.entry_of(&route)))
    }

    /// Lets a tenant be known by what the file says alone, until the control plane says more.
    fn give(&self, table: &Table<H>, record: Arc<TenantRecord>, now: u64) -> Arc<Route> {
        let saying = self.said().saying(record.tenant.id);
        let route = Arc::new(Route::given(record, saying, now));
        let entry = Arc::new(Entry::new(Arc::clone(&route)));
        table.enter(Arc::clone(&entry));
        self.publish(Arc::clone(&route));
        let tenant = route.tenant();
        let slug = TenantName::Slug(tenant.slug);
        let domains = tenant.domains.iter().cloned().map(TenantName::Domain);
        for name in std::iter::once(slug).chain(domains) {
            if table.named(&name).is_none() {
                table.bind(&name, Named::new(Arc::clone(&entry), None));
            }
        }
        route
    }

    /// Puts a route in the place of another of the same record, under the same names.
    fn replace(&self, table: &Table<H>, old: &Arc<Route>, new: Arc<Route>) {
        let names: Vec<_> = table
            .names_of(old)
            .into_iter()
            .filter_map(|name| Some((table.named(&name)?.version, name)))
            .collect();
        let tenant = old.tenant().id;
        self.forget(tenant);
        let entry = Arc::new(Entry::new(Arc::clone(&new)));
        table.enter(Arc::clone(&entry));
        self.publish(new);
        for (version, name) in names {
            table.bind(&name, Named::new(Arc::clone(&entry), version));
        }
    }

    fn said(&self) -> super::MutexGuard<'_, Said> {
        // Nothing that runs under this lock leaves a half-made change behind when it panics.
        self.overrides.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
