//! The table of the warm path: from a name to a handle with two loads and a comparison.

use std::{
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use foldhash::fast::RandomState;
use papaya::{Compute, HashMap, Operation};

use super::core::Answer;
use crate::{
    connector::{Connector, Route},
    error::Error,
    tenant::{Access, Domain, Slug, TenantId, TenantRef, Version},
};

/// How many names are entered between two clearances of those that lead nowhere any more.
const SWEEP_EVERY: usize = 4_096;

/// A route with its handle. All names of a tenant share it.
pub(super) struct Entry<H> {
    pub(super) route: Arc<Route>,
    /// `None` for a tenant whose status lets nothing through.
    pub(super) handle: Option<H>,
}

struct Bound<H> {
    entry: Arc<Entry<H>>,
    name_version: Option<Version>,
}

pub(super) struct Table<H> {
    ids: HashMap<TenantId, Arc<Entry<H>>, RandomState>,
    slugs: HashMap<Slug, Bound<H>, RandomState>,
    domains: HashMap<Domain, Bound<H>, RandomState>,
    /// Held while an entry is made, so that a route gets one handle. Counts the names entered since the last clearance.
    making: Mutex<usize>,
}

impl<H: Clone> Table<H> {
    pub(super) fn new() -> Self {
        Self {
            ids: HashMap::with_hasher(RandomState::default()),
            slugs: HashMap::with_hasher(RandomState::default()),
            domains: HashMap::with_hasher(RandomState::default()),
            making: Mutex::new(0),
        }
    }

    /// The handle of a name whose route is fresh.
    pub(super) fn handle(&self, name: &TenantRef<'_>, now: u64) -> Option<H> {
        fn fresh<H: Clone>(entry: &Entry<H>, now: u64) -> Option<H> {
            if entry.route.is_fresh(now) {
                entry.handle.clone()
            } else {
                None
            }
        }
        match *name {
            TenantRef::Id(id) => fresh(self.ids.pin().get(&id)?, now),
            TenantRef::Slug(slug) => fresh(&self.slugs.pin().get(slug)?.entry, now),
            TenantRef::Domain(domain) => fresh(&self.domains.pin().get(domain)?.entry, now),
        }
    }

    /// What a name led to the last time.
    pub(super) fn known(&self, name: &TenantRef<'_>) -> Option<Answer> {
        fn answer<H>(bound: &Bound<H>) -> Answer {
            Answer {
                route: Arc::clone(&bound.entry.route),
                name_version: bound.name_version,
            }
        }
        match *name {
            TenantRef::Id(id) => {
                let route = Arc::clone(&self.ids.pin().get(&id)?.route);
                Some(Answer {
                    route,
                    name_version: None,
                })
            }
            TenantRef::Slug(slug) => self.slugs.pin().get(slug).map(answer),
            TenantRef::Domain(domain) => self.domains.pin().get(domain).map(answer),
        }
    }

    /// Enters what a name leads to, unless the name has changed hands since, and gives the entry.
    pub(super) fn enter<C>(
        &self,
        name: &TenantRef<'_>,
        answer: Answer,
        make: impl FnOnce(&Arc<Route>) -> Result<C::Handle, Error>,
    ) -> Result<Arc<Entry<H>>, Error>
    where
        C: Connector<Handle = H>,
    {
        let mut entered = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = self.entry::<C>(&answer.route, make)?;
        let bound = || Bound {
            entry: Arc::clone(&entry),
            name_version: answer.name_version,
        };
        match *name {
            TenantRef::Id(_) => {}
            TenantRef::Slug(slug) => bind(&self.slugs, *slug, bound),
            TenantRef::Domain(domain) => bind(&self.domains, domain.clone(), bound),
        }
        *entered += 1;
        if *entered >= SWEEP_EVERY {
            *entered = 0;
            self.sweep();
        }
        Ok(entry)
    }

    pub(super) fn clear(&self) {
        self.ids.pin().clear();
        self.slugs.pin().clear();
        self.domains.pin().clear();
    }

    /// The entry of a route; made if it is the first time that this route is seen.
    fn entry<C>(
        &self,
        route: &Arc<Route>,
        make: impl FnOnce(&Arc<Route>) -> Result<C::Handle, Error>,
    ) -> Result<Arc<Entry<H>>, Error>
    where
        C: Connector<Handle = H>,
    {
        let ids = self.ids.pin();
        if let Some(entry) = ids
            .get(&route.tenant().id)
            .filter(|entry| Arc::ptr_eq(&entry.route, route))
        {
            return Ok(Arc::clone(entry));
        }
        let handle = match route.access() {
            Access::Refused => None,
            Access::Read | Access::ReadWrite => Some(make(route)?),
        };
        let entry = Arc::new(Entry {
            route: Arc::clone(route),
            handle,
        });
        // A route that was overtaken serves those who waited for it, and is not kept in the place of a newer one.
        if !route.is_retired() {
            ids.insert(route.tenant().id, Arc::clone(&entry));
        }
        Ok(entry)
    }

    fn sweep(&self) {
        self.ids.pin().retain(|_, entry| !entry.route.is_retired());
        self.slugs
            .pin()
            .retain(|_, bound| !bound.entry.route.is_retired());
        self.domains
            .pin()
            .retain(|_, bound| !bound.entry.route.is_retired());
    }
}

/// Binds a name, unless it is bound by a higher version of the name to a route that still stands.
fn bind<K: Hash + Eq, H>(names: &HashMap<K, Bound<H>, RandomState>, name: K, bound: impl Fn() -> Bound<H>) {
    let names = names.pin();
    let _: Compute<'_, K, Bound<H>, ()> = names.compute(name, |current| {
        let new = bound();
        match current {
            _ if new.entry.route.is_retired() => Operation::Abort(()),
            Some((_, old)) if !old.entry.route.is_retired() && old.name_version > new.name_version => {
                Operation::Abort(())
            }
            _ => Operation::Insert(new),
        }
    });
}
