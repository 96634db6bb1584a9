//! What is known of data sources, whichever of their tenants it was read with.
//!
//! Connections belong to a data source and not to a tenant: they must hear of a new login also when the tenant who used
//! them last has moved away or was suspended, and must go when nobody is left on the data source.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError},
};

use crate::{
    connector::{OfSource, Route},
    router::sync::{Mutex, MutexGuard},
    tenant::{DataSourceId, TenantId},
};

/// The data sources that cached tenants are on, by what the control plane says.
#[derive(Default)]
pub(super) struct Sources(Mutex<HashMap<DataSourceId, Lodgers>>);

/// Who is on a data source.
struct Lodgers {
    /// Whose record says the newest thing of it.
    newest: Arc<Route>,
    tenants: HashSet<TenantId>,
}

impl Sources {
    /// A route has been published.
    pub(super) fn add(&self, route: &Arc<Route>) {
        if route.is_given() {
            return;
        }
        let mut all = self.all();
        let lodgers = all.entry(route.record().source.id).or_insert_with(|| Lodgers {
            newest: Arc::clone(route),
            tenants: HashSet::new(),
        });
        lodgers.tenants.insert(route.tenant().id);
        lodgers.note(route);
    }

    /// A route was confirmed.
    pub(super) fn note(&self, route: &Arc<Route>) {
        if let Some(lodgers) = self.all().get_mut(&route.record().source.id) {
            lodgers.note(route);
        }
    }

    /// A route is gone.
    pub(super) fn remove(&self, route: &Route) {
        if route.is_given() {
            return;
        }
        let mut all = self.all();
        let source = route.record().source.id;
        if let Some(lodgers) = all.get_mut(&source) {
            lodgers.tenants.remove(&route.tenant().id);
            if lodgers.tenants.is_empty() {
                all.remove(&source);
            }
        }
    }

    pub(super) fn find(&self, source: DataSourceId, now: u64) -> Option<OfSource> {
        let all = self.all();
        let Lodgers { newest, tenants } = all.get(&source)?;
        let reader = newest.tenant().id;
        Some(OfSource {
            newest: Arc::clone(newest),
            is_fresh: newest.is_fresh(now),
            // Whoever said it may be elsewhere by now.
            tenant: match tenants.contains(&reader) {
                true => reader,
                false => *tenants.iter().next()?,
            },
        })
    }

    pub(super) fn clear(&self) {
        self.all().clear();
    }

    fn all(&self) -> MutexGuard<'_, HashMap<DataSourceId, Lodgers>> {
        // Nothing that runs under this lock leaves a half-made change behind when it panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lodgers {
    fn note(&mut self, route: &Arc<Route>) {
        let of_another = self.newest.tenant().id != route.tenant().id;
        if of_another && cfg!(biplane_mutant = "sources_follow_one_tenant") {
            return;
        }
        if self.newest.precedence_of_record() <= route.precedence_of_record() {
            self.newest = Arc::clone(route);
        }
    }
}
