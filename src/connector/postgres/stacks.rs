//! The stacks of a connector: which there are, where they lead, and when they go.
//!
//! Where a stack leads is what the newest route says that leads to it, whoever came with that. Once a second stacks with
//! connections are told what the routers know, so that what rests follows though nobody comes.

use std::{
    collections::{HashMap, HashSet, hash_map},
    sync::{
        Arc, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{Inner, Route, Routes};
use crate::{
    connector::Precedence,
    error::{Error, ErrorKind},
    pool::{Renewal, Stack, Upkeep},
    tenant::{CredentialVersion, DataSource, DataSourceId, Isolation, Role, TenantId},
};

/// How many tenants of a data source are asked for at most to find out whether its login has changed. Who was asked may
/// turn out to have moved away.
const MAX_ASKED: usize = 3;

/// How many looks in a row must find nobody on a data source before its connections are closed. A tenant who is being read
/// anew is nowhere for a moment.
const LOOKS_IN_VAIN: u8 = 2;

/// Who shares a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StackKey {
    pub(super) source: DataSourceId,
    pub(super) role: Role,
    /// An overridden tenant has a stack of its own, so that what a file says never leads those elsewhere that others use,
    /// nor lets its failures be theirs.
    pub(super) alone: Option<TenantId>,
}

pub(super) type Stacks = HashMap<StackKey, Current>;

/// The stack in use for a data source and role, and what it was made for.
pub(super) struct Current {
    precedence: Precedence,
    credential: CredentialVersion,
    source: Arc<DataSource>,
    stack: Stack,
    /// Since when nothing of it is connected.
    idle_since: Option<Instant>,
    /// How many looks in a row have found nobody who is led there.
    in_vain: u8,
    /// Whether it is being asked for just now.
    asking: Arc<AtomicBool>,
}

/// Where a stack is to lead.
struct Lead {
    source: Arc<DataSource>,
    precedence: Precedence,
    /// Whom to ask for it, where what is known is not fresh.
    ask: Vec<Ask>,
}

type Ask = (Arc<dyn Routes>, TenantId);

impl StackKey {
    pub(super) fn of(route: &Route, role: Role) -> Self {
        Self {
            source: route.source().id,
            role,
            alone: route.is_overridden().then_some(route.tenant().id),
        }
    }

    /// What routers know of it; `None` when none leads anybody there.
    fn lead(&self, routers: &[Arc<dyn Routes>]) -> Option<Lead> {
        let mut lead: Option<Lead> = None;
        for router in routers {
            let Some(found) = self.lead_of(router) else {
                continue;
            };
            match &mut lead {
                Some(lead) => {
                    lead.ask.extend(found.ask);
                    if lead.precedence < found.precedence {
                        (lead.source, lead.precedence) = (found.source, found.precedence);
                    }
                }
                None => lead = Some(found),
            }
        }
        lead
    }

    fn lead_of(&self, router: &Arc<dyn Routes>) -> Option<Lead> {
        let ask = |tenant, is_fresh: bool| match is_fresh {
            true => Vec::new(),
            false => vec![(Arc::clone(router), tenant)],
        };
        match self.alone {
            Some(tenant) => {
                let route = router.known(tenant)?;
                (Self::of(&route, self.role) == *self).then(|| Lead {
                    source: Arc::clone(route.source()),
                    precedence: route.precedence(),
                    ask: ask(tenant, router.current(tenant).is_some()),
                })
            }
            None => {
                let known = router.of_source(self.source)?;
                Some(Lead {
                    source: Arc::clone(&known.newest.record().source),
                    precedence: known.newest.precedence_of_record(),
                    ask: ask(known.tenant, known.is_fresh),
                })
            }
        }
    }

    /// Whom to ask for it in any case.
    fn whom_to_ask(&self, routers: Vec<Arc<dyn Routes>>) -> Vec<Ask> {
        let tenant = |router: &Arc<dyn Routes>| match self.alone {
            Some(tenant) => Some(tenant),
            None => Some(router.of_source(self.source)?.tenant),
        };
        let with_tenant = |router| Some((tenant(&router)?, router));
        let asks = routers.into_iter().filter_map(with_tenant);
        asks.map(|(tenant, router)| (router, tenant)).collect()
    }
}

impl Inner {
    /// Data sources in use that are not fenced.
    pub(super) fn unfenced(&self) -> usize {
        let stacks = self.stacks();
        let unfenced = stacks
            .iter()
            .filter(|(_, current)| current.source.database_id.is_none());
        unfenced.map(|(key, _)| key.source).collect::<HashSet<_>>().len()
    }

    /// The stack for a route and role. It is led elsewhere if the route says something newer of the address or the
    /// credential than whoever came before; a route that is older is served with what the others use.
    pub(super) fn stack(self: &Arc<Self>, route: &Route, role: Role) -> Result<Stack, Error> {
        let (key, mut source, mut precedence) =
            (StackKey::of(route, role), route.source(), route.precedence());
        let isolation = route.tenant().placement.isolation;
        if isolation != Isolation::Database
            && source.database_id.is_none()
            && !cfg!(biplane_mutant = "shared_databases_need_no_fence")
        {
            return Err(Error::new(ErrorKind::UnsupportedIsolation { isolation }).detail(
                "tenants that share a database are kept apart by its fence; install the schema biplane there and give the \
                 data source its database_id",
            ));
        }
        let mut credential = self.options.credential_version(source, role)?;
        if let Some(current) = self.stacks().get_mut(&key) {
            self.lead(key, current, source, precedence, credential)?;
            return Ok(current.stack.clone());
        }
        // What the stack knew that was here before is known elsewhere still.
        let newer = key.lead(&self.routers());
        if let Some(newer) = newer.as_ref().filter(|newer| newer.precedence > precedence) {
            (source, precedence) = (&newer.source, newer.precedence);
            credential = self.options.credential_version(source, role)?;
        }
        match self.stacks().entry(key) {
            hash_map::Entry::Occupied(mut entry) => {
                let current = entry.get_mut();
                self.lead(key, current, source, precedence, credential)?;
                Ok(current.stack.clone())
            }
            hash_map::Entry::Vacant(entry) => {
                let current = self.begin(key, source, precedence, credential)?;
                Ok(entry.insert(current).stack.clone())
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        key: StackKey,
        source: &Arc<DataSource>,
        precedence: Precedence,
        credential: CredentialVersion,
    ) -> Result<Current, Error> {
        let (dial, pool) = self.dial(key, source, credential)?;
        let renewal = StackRenewal {
            connector: Arc::downgrade(self),
            key,
        };
        let stack = self
            .pool
            .stack(dial, pool.max(), pool.min(), Some(Arc::new(renewal)))?;
        if source.database_id.is_none() && !self.told_unfenced.swap(true, Ordering::Relaxed) {
            tracing::info!(
                data_source = %source.name,
                "a data source without a database_id is not fenced; the statistics count those in use"
            );
        }
        Ok(Current {
            precedence,
            credential,
            source: Arc::clone(source),
            stack,
            idle_since: None,
            in_vain: 0,
            asking: Arc::default(),
        })
    }

    /// Leads a stack where this data source says, unless what it goes by is newer.
    fn lead(
        &self,
        key: StackKey,
        current: &mut Current,
        source: &Arc<DataSource>,
        precedence: Precedence,
        credential: CredentialVersion,
    ) -> Result<(), Error> {
        if precedence < current.precedence {
            return Ok(());
        }
        if !current.serves(source, precedence, credential) {
            let (dial, pool) = self.dial(key, source, credential)?;
            let is_other_login = !current.precedence.is_comparable_with(precedence)
                && !cfg!(biplane_mutant = "breakers_outlive_their_file");
            current
                .stack
                .renew(dial, pool.max(), pool.min(), is_other_login)?;
            current.source = Arc::clone(source);
            current.credential = credential;
        } else if current.is_told_otherwise(source, precedence, key.role) {
            let (dial, _) = self.dial(key, source, current.credential)?;
            current.stack.refresh(dial);
            current.source = Arc::clone(source);
        }
        current.precedence = precedence;
        Ok(())
    }

    /// Tells a stack what is known of where it leads.
    fn tell(&self, key: StackKey, lead: &Lead) {
        // If there can be no stack for it, the next checkout says why.
        let Ok(credential) = self.options.credential_version(&lead.source, key.role) else {
            return;
        };
        if let Some(current) = self.stacks().get_mut(&key) {
            let _ = self.lead(key, current, &lead.source, lead.precedence, credential);
        }
    }

    fn catch_up(&self, key: StackKey) {
        if let Some(lead) = key.lead(&self.routers()) {
            self.tell(key, &lead);
        }
    }

    fn ask(self: &Arc<Self>, key: StackKey, asking: Arc<AtomicBool>, ask: Vec<Ask>) {
        if asking.swap(true, Ordering::Relaxed) {
            return;
        }
        let (asking, connector) = (Asking(asking), Arc::downgrade(self));
        self.pool.spawn(async move {
            // Whatever becomes of the tenant, what was read of the data source is known by then.
            let _ = join_all(ask.iter().map(|(router, tenant)| router.route(*tenant))).await;
            if let Some(connector) = connector.upgrade() {
                connector.catch_up(key);
            }
            drop(asking);
        });
    }

    fn stacks(&self) -> MutexGuard<'_, Stacks> {
        self.stacks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upkeep for Inner {
    fn look_after(self: Arc<Self>) {
        let (routers, now) = (self.routers(), Instant::now());
        let mut leads = Vec::new();
        let look = |key: &StackKey, current: &mut Current| {
            let lead = match current.stack.is_in_use() {
                true => current.look(key.lead(&routers)),
                false => return current.is_over(now, self.pool.idle_timeout()),
            };
            if let Some(lead) = lead {
                leads.push((*key, Arc::clone(&current.asking), lead));
            }
            false
        };
        let over: Vec<_> = self.stacks().extract_if(look).collect();
        // Once the lock is released.
        drop(over);
        if cfg!(biplane_mutant = "who_rests_is_not_told") {
            return;
        }
        for (key, asking, lead) in leads {
            self.tell(key, &lead);
            if !lead.ask.is_empty() {
                self.ask(key, asking, lead.ask);
            }
        }
    }
}

impl Current {
    /// A look at a stack with connections. Where nobody is led any more, those at rest are closed.
    fn look(&mut self, lead: Option<Lead>) -> Option<Lead> {
        self.idle_since = None;
        self.in_vain = match lead {
            Some(_) => 0,
            None => self.in_vain.saturating_add(1),
        };
        if self.in_vain >= LOOKS_IN_VAIN && !cfg!(biplane_mutant = "lifted_overrides_keep_connections") {
            self.stack.put_away();
        }
        lead
    }

    /// Whether a stack without connections may go. It is made again as it was, but for what it has learnt of a server that
    /// was full or a login that was rejected, which is out of date when nobody came for so long.
    fn is_over(&mut self, now: Instant, idle_timeout: std::time::Duration) -> bool {
        if cfg!(biplane_mutant = "stacks_stay_for_ever") {
            return false;
        }
        let since = *self.idle_since.get_or_insert(now);
        self.in_vain >= LOOKS_IN_VAIN || now.saturating_duration_since(since) >= idle_timeout
    }

    /// Whether the record says otherwise how to log in, with the same login: sealed anew, or with another one to follow.
    fn is_told_otherwise(&self, source: &DataSource, precedence: Precedence, role: Role) -> bool {
        self.precedence < precedence
            && self.source.credentials.get(&role) != source.credentials.get(&role)
            && !cfg!(biplane_mutant = "what_is_prepared_is_not_seen")
    }

    fn serves(&self, source: &DataSource, precedence: Precedence, credential: CredentialVersion) -> bool {
        // Who read the version of a credential just before it rose must not take everybody back to it.
        let overtaken = self.precedence == precedence && credential < self.credential;
        // Of another life or another file, the same version may be another login's.
        let same_login =
            self.precedence.is_comparable_with(precedence) || self.source.credentials == source.credentials;
        ((self.credential == credential && same_login) || overtaken)
            && self.source.location == source.location
            && self.source.pool == source.pool
            && self.source.database_id == source.database_id
    }
}

/// While a stack is asked for.
struct Asking(Arc<AtomicBool>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Asks the control plane again where a data source is, or an overridden tenant.
struct StackRenewal {
    connector: Weak<Inner>,
    key: StackKey,
}

#[async_trait]
impl Renewal for StackRenewal {
    async fn renew(&self) {
        let mut asked = Vec::new();
        for _ in 0..MAX_ASKED {
            let Some(connector) = self.connector.upgrade() else {
                return;
            };
            let mut ask = self.key.whom_to_ask(connector.routers());
            ask.retain(|(_, tenant)| !asked.contains(tenant));
            drop(connector);
            if ask.is_empty() {
                return;
            }
            asked.extend(ask.iter().map(|(_, tenant)| *tenant));
            let routes = join_all(ask.iter().map(|(router, tenant)| router.reload(*tenant))).await;
            let Some(connector) = self.connector.upgrade() else {
                return;
            };
            connector.catch_up(self.key);
            // What was overtaken while it was read is known to nobody else, and may be what is looked for.
            for route in routes.into_iter().flatten() {
                if StackKey::of(&route, self.key.role) == self.key {
                    let _ = connector.stack(&route, self.key.role);
                }
            }
        }
    }
}
