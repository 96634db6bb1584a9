//! The table of the warm path: from a name to a handle without a lock.

use std::sync::{Arc, OnceLock};

use super::sync::Map;
use crate::{
    connector::Route,
    error::Error,
    tenant::{Domain, Slug, Tenant, TenantId, TenantName, TenantRef, Version},
};

/// A route with the handle that is made of it. All names of a tenant share it.
pub(super) struct Entry<H> {
    pub(super) route: Arc<Route>,
    /// Made by the first caller that wants it. A connector that has none to give is not asked again.
    handle: OnceLock<Result<H, Error>>,
}

impl<H: Clone> Entry<H> {
    pub(super) const fn new(route: Arc<Route>) -> Self {
        Self {
            route,
            handle: OnceLock::new(),
        }
    }

    /// The handle, made now if it was not, or why there is none.
    pub(super) fn handle(&self, make: impl FnOnce(&Tenant) -> Result<H, Error>) -> Result<H, Error> {
        self.route.check_open()?;
        self.handle.get_or_init(|| make(self.route.tenant())).clone()
    }

    #[inline]
    fn made(&self) -> Option<H> {
        self.handle.get()?.as_ref().ok().cloned()
    }
}

/// What a name leads to.
pub(super) struct Named<H> {
    pub(super) entry: Arc<Entry<H>>,
    /// That of the entry. From here the processor fetches both at once; one after the other takes a fifth longer.
    route: Arc<Route>,
    /// The version of the name, which rises when it changes hands. An id has none.
    pub(super) version: Option<Version>,
}

impl<H: Clone> Named<H> {
    pub(super) fn new(entry: Arc<Entry<H>>, version: Option<Version>) -> Self {
        let route = Arc::clone(&entry.route);
        Self {
            entry,
            route,
            version,
        }
    }

    #[inline]
    fn fresh_handle(&self, now: u64) -> Option<H> {
        if self.route.is_fresh(now) {
            self.entry.made()
        } else {
            None
        }
    }
}

/// Entries by name. Written under the lock of [`Known`](super::known::Known) alone, read by anybody at any time.
pub(super) struct Table<H> {
    ids: Map<TenantId, Named<H>>,
    slugs: Map<Slug, Named<H>>,
    domains: Map<Domain, Named<H>>,
}

impl<H: Clone> Table<H> {
    pub(super) fn new() -> Self {
        Self {
            ids: Map::new(),
            slugs: Map::new(),
            domains: Map::new(),
        }
    }

    /// The handle of a name whose route is fresh, if somebody has made it.
    #[inline]
    pub(super) fn handle(&self, name: &TenantRef<'_>, now: u64) -> Option<H> {
        match *name {
            TenantRef::Id(id) => self.ids.read(&id, |named| named.fresh_handle(now))?,
            TenantRef::Slug(slug) => self.slugs.read(slug, |named| named.fresh_handle(now))?,
            TenantRef::Domain(domain) => self.domains.read(domain, |named| named.fresh_handle(now))?,
        }
    }

    /// The entry of a tenant.
    pub(super) fn entry(&self, tenant: TenantId) -> Option<Arc<Entry<H>>> {
        self.ids.read(&tenant, |named| Arc::clone(&named.entry))
    }

    /// What a slug or domain leads to; of an id nothing is kept but the entry.
    pub(super) fn named(&self, name: &TenantName) -> Option<Named<H>> {
        match name {
            TenantName::Id(_) => None,
            TenantName::Slug(slug) => self.slugs.read(slug, Named::clone),
            TenantName::Domain(domain) => self.domains.read(domain, Named::clone),
        }
    }

    /// Makes an entry the one of its tenant.
    pub(super) fn enter(&self, entry: Arc<Entry<H>>) {
        self.ids.insert(entry.route.tenant().id, Named::new(entry, None));
    }

    /// Lets a slug or domain lead to an entry.
    pub(super) fn bind(&self, name: &TenantName, named: Named<H>) {
        match name {
            TenantName::Id(_) => {}
            TenantName::Slug(slug) => self.slugs.insert(*slug, named),
            TenantName::Domain(domain) => self.domains.insert(domain.clone(), named),
        }
    }

    /// Lets a slug or domain lead nowhere.
    pub(super) fn unbind(&self, name: &TenantName) {
        match name {
            TenantName::Id(_) => {}
            TenantName::Slug(slug) => self.slugs.remove(slug),
            TenantName::Domain(domain) => self.domains.remove(domain),
        }
    }

    /// Removes the entry of a route that was retired, and every name that still leads to it: those of its record, since
    /// no other is ever bound to it.
    pub(super) fn forget(&self, route: &Arc<Route>) {
        let tenant = route.tenant();
        let same = |named: &Named<H>| Arc::ptr_eq(&named.route, route);
        if self.ids.read(&tenant.id, same) == Some(true) {
            self.ids.remove(&tenant.id);
        }
        if self.slugs.read(&tenant.slug, same) == Some(true) {
            self.slugs.remove(&tenant.slug);
        }
        for domain in &tenant.domains {
            if self.domains.read(domain, same) == Some(true) {
                self.domains.remove(domain);
            }
        }
    }

    /// The slug and domains that lead to a route.
    pub(super) fn names_of(&self, route: &Arc<Route>) -> Vec<TenantName> {
        let tenant = route.tenant();
        let names = std::iter::once(TenantName::Slug(tenant.slug))
            .chain(tenant.domains.iter().cloned().map(TenantName::Domain));
        names
            .filter(|name| {
                self.named(name)
                    .is_some_and(|named| Arc::ptr_eq(&named.route, route))
            })
            .collect()
    }

    /// Lets any version of the names of a route replace what they lead to.
    pub(super) fn forget_name_versions(&self, route: &Arc<Route>) {
        for name in self.names_of(route) {
            if let Some(named) = self.named(&name) {
                let version = None;
                self.bind(&name, Named { version, ..named });
            }
        }
    }

    pub(super) fn clear(&self) {
        self.ids.clear();
        self.slugs.clear();
        self.domains.clear();
    }

    /// How many names of all kinds it holds.
    #[cfg(all(test, biplane_shuttle))]
    pub(super) fn names(&self) -> usize {
        self.ids.len() + self.slugs.len() + self.domains.len()
    }
}

impl<H> Clone for Named<H> {
    fn clone(&self) -> Self {
        Self {
            entry: Arc::clone(&self.entry),
            route: Arc::clone(&self.route),
            version: self.version,
        }
    }
}
