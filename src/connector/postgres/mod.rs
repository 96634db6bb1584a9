//! Handles on Postgres databases.

mod servers;
mod stacks;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;

pub use self::servers::PgServers;
use self::stacks::{StackKey, Stacks};
use super::{Connector, ConnectorStats, Route, Routes, TenantRoute};
use crate::{
    breaker::BreakerStatus,
    error::{Error, ErrorKind},
    plane::{Lease, Lent, TenantDb},
    pool::{
        BreakerOptions, Dial, Entry, Guard, Keeper, Logins, Passport, Pool, PoolOptions, Successor, Upkeep,
        check_server,
    },
    repository::{CredentialSource, Login},
    secret::Credential,
    settings::Settings,
    tenant::{Access, CredentialVersion, DataSource, Location, PoolSettings, Role, Server, Tenant, TenantId},
};

/// How often a checkout starts over because the route changed while it waited for a connection. More means that the
/// control plane changes faster than connections can be had.
const MAX_REROUTES: usize = 3;

/// What a [`PgConnector`] is made of.
#[derive(Debug)]
#[non_exhaustive]
pub struct PgConnectorOptions {
    /// Where logins come from.
    pub credentials: Arc<dyn CredentialSource>,
    /// How many connections, and for how long.
    pub pool: PoolOptions,
    /// When a server or a login that fails is left alone.
    pub breakers: BreakerOptions,
    /// What servers show as the name of the application: `biplane` by default.
    pub service: Arc<str>,
    /// The schemas that unqualified names are looked up in: `public` by default, whatever the database role would have,
    /// so that a database role of the control plane cannot lead into its schema.
    pub search_path: Arc<str>,
    /// The database of the data source `default`, whose address the control plane does not keep.
    pub environment: Option<EnvironmentSource>,
}

/// The data source that a process's own configuration defines.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EnvironmentSource {
    /// Where it is.
    pub server: Server,
    /// Its login, for the role [`Role::App`].
    pub credential: Credential,
    /// Its limits.
    pub pool: PoolSettings,
}

impl EnvironmentSource {
    /// A data source with this address and login.
    #[must_use]
    pub const fn new(server: Server, credential: Credential, pool: PoolSettings) -> Self {
        Self {
            server,
            credential,
            pool,
        }
    }

    /// The data source that the environment describes, if it does.
    #[must_use]
    pub fn from_settings(settings: &Settings) -> Option<Self> {
        let data = settings.data()?;
        Some(Self::new(
            data.server().clone(),
            data.credential().clone(),
            data.pool(),
        ))
    }
}

impl PgConnectorOptions {
    /// The defaults, with logins from here.
    #[must_use]
    pub fn new(credentials: Arc<dyn CredentialSource>) -> Self {
        Self {
            credentials,
            pool: PoolOptions::default(),
            breakers: BreakerOptions::default(),
            service: "biplane".into(),
            search_path: "public".into(),
            environment: None,
        }
    }

    fn environment_login(&self, source: &DataSource, role: Role) -> Option<&Credential> {
        let environment = self.environment.as_ref()?;
        (source.location == Location::Environment && role == Role::App).then_some(&environment.credential)
    }

    fn credential_version(&self, source: &DataSource, role: Role) -> Result<CredentialVersion, Error> {
        match self.environment_login(source, role) {
            Some(_) => Ok(CredentialVersion::ZERO),
            None => self.credentials.version(source, role),
        }
    }
}

/// Makes handles on Postgres databases: of tenants that have one of their own, and of tenants that share one by schema or
/// by row.
#[derive(Clone)]
pub struct PgConnector(Arc<Inner>);

struct Inner {
    pool: Pool,
    options: Arc<PgConnectorOptions>,
    stacks: Mutex<Stacks>,
    /// Whose handles it has made, to ask what is known of data sources: one, unless somebody shares it.
    routers: Mutex<Vec<Weak<dyn Routes>>>,
    told_unfenced: AtomicBool,
}

impl PgConnector {
    /// A connector without connections.
    ///
    /// # Errors
    /// [`InvalidConfiguration`](ErrorKind::InvalidConfiguration) for settings that cannot work.
    pub fn new(options: PgConnectorOptions) -> Result<Self, Error> {
        if let Some(environment) = &options.environment {
            check_server(&environment.server)?;
        }
        let pool = Pool::with_breakers(options.pool.clone(), options.breakers)?;
        let inner = Arc::new(Inner {
            pool,
            options: Arc::new(options),
            stacks: Mutex::default(),
            routers: Mutex::default(),
            told_unfenced: AtomicBool::default(),
        });
        let upkeep: Arc<dyn Upkeep> = Arc::<Inner>::clone(&inner);
        inner.pool.be_looked_after(Arc::downgrade(&upkeep));
        Ok(Self(inner))
    }

    /// The pool that all its handles share.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }
}

#[async_trait]
impl Connector for PgConnector {
    type Handle = TenantDb;

    fn handle(&self, _: &Tenant, route: TenantRoute) -> Result<TenantDb, Error> {
        self.0.know(route.routes());
        let lease = PgLease {
            connector: Arc::clone(&self.0),
            route,
            role: Role::default(),
        };
        Ok(TenantDb::new(Arc::new(lease)))
    }

    async fn close(&self, deadline: Duration) {
        self.0.pool.close(deadline).await;
    }

    fn stats(&self) -> ConnectorStats {
        let pool = self.0.pool.stats();
        ConnectorStats {
            pools: pool.stacks,
            connections: usize::try_from(pool.connections).unwrap_or(usize::MAX),
            resting: pool.resting,
            waiting: pool.waiting,
            open_breakers: pool.open_breakers,
            refused: pool.refused,
            outdated: usize::try_from(pool.outdated).unwrap_or(usize::MAX),
            failed_renewals: pool.failed_renewals,
            unfenced: self.0.unfenced(),
        }
    }

    fn breakers(&self) -> Vec<BreakerStatus> {
        self.0.pool.breakers()
    }
}

#[derive(Clone)]
struct PgLease {
    connector: Arc<Inner>,
    route: TenantRoute,
    role: Role,
}

#[async_trait]
impl Lease for PgLease {
    async fn lease(&self) -> Result<Lent, Error> {
        let mut route = self.route.current().await?;
        for _ in 0..MAX_REROUTES {
            let stack = self.connector.stack(&route, self.role)?;
            let checkout = stack.checkout().await;
            // The tenant may have been moved or suspended while this waited, and then it waited at the wrong place.
            if cfg!(biplane_mutant = "routes_are_not_looked_at_again") || self.route.is_current(&route)? {
                return Ok(Lent::new(checkout?, access(&route, self.role), entry(&route)));
            }
            let now = self.route.current().await?;
            if let Ok(checkout) = checkout
                && leads_alike(&route, &now)
                && !cfg!(biplane_mutant = "any_change_sends_callers_back")
            {
                return Ok(Lent::new(checkout, access(&now, self.role), entry(&now)));
            }
            route = now;
        }
        Err(Error::new(ErrorKind::ControlPlaneUnavailable)
            .detail("the route changed with every attempt to follow it"))
    }

    async fn refresh(&self, refused: &Entry) -> Result<(), Error> {
        let is_another = |route: &Route| entry(route).as_ref() != Some(refused);
        // Somebody may have asked meanwhile.
        if is_another(&*self.route.current().await?) {
            return Ok(());
        }
        // The first answer may be one that was under way before the database refused.
        if !is_another(&*self.route.reload().await?) {
            self.route.reload().await?;
        }
        Ok(())
    }

    fn tenant(&self) -> Option<TenantId> {
        Some(self.route.tenant())
    }

    fn role(&self) -> Role {
        self.role
    }

    fn with_role(&self, role: Role) -> Arc<dyn Lease> {
        Arc::new(Self { role, ..self.clone() })
    }

    fn pool(&self) -> &Pool {
        &self.connector.pool
    }

    fn route_age(&self) -> Option<Duration> {
        self.route.age()
    }

    fn is_overridden(&self) -> Option<bool> {
        self.route.is_overridden()
    }
}

/// Whether a connection that one route led to is one that the other leads to: the login alone may be another, and what is at
/// work with the one before it may go on.
fn leads_alike(before: &Route, now: &Route) -> bool {
    let ((old, new), (from, to)) = ((before.tenant(), now.tenant()), (before.source(), now.source()));
    old.placement == new.placement
        && from.id == to.id
        && from.location == to.location
        && from.database_id == to.database_id
}

/// How to enter the tenant's rows. Whether there is a fence is what the control plane says, never what is found: to look
/// for one would let everybody in wherever it is missing.
fn entry(route: &Route) -> Option<Entry> {
    let placement = route.tenant().placement;
    route.source().database_id.map(|database| Entry {
        tenant: route.tenant().id,
        epoch: placement.epoch,
        database,
        isolation: placement.isolation,
    })
}

/// What a handle may do: as much as both the tenant's status and its own role let it.
fn access(route: &Route, role: Role) -> Access {
    match role_access(role) {
        Access::ReadWrite => route.access(),
        limited => limited,
    }
}

const fn role_access(role: Role) -> Access {
    match role {
        Role::App | Role::Service => Access::ReadWrite,
        Role::ReadOnly => Access::Read,
    }
}

impl Inner {
    /// A router makes handles here.
    fn know(&self, router: &Arc<dyn Routes>) {
        let mut routers = self.routers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |known: &Weak<dyn Routes>| std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(router));
        if !routers.iter().any(is_it) {
            routers.retain(|known| known.strong_count() > 0);
            routers.push(Arc::downgrade(router));
        }
    }

    fn routers(&self) -> Vec<Arc<dyn Routes>> {
        let routers = self.routers.lock().unwrap_or_else(PoisonError::into_inner);
        routers.iter().filter_map(Weak::upgrade).collect()
    }

    fn dial(
        &self,
        key: StackKey,
        source: &Arc<DataSource>,
        credential: CredentialVersion,
    ) -> Result<(Dial, PoolSettings), Error> {
        let role = key.role;
        let (server, pool) = match (&source.location, &self.options.environment) {
            (Location::Server(server), _) => (server.clone(), source.pool),
            (Location::Environment, Some(environment)) => (environment.server.clone(), environment.pool),
            (Location::Environment, None) => {
                return Err(Error::new(ErrorKind::InvalidConfiguration)
                    .detail("the tenant is on the data source of the environment, which defines none; set BIPLANE_DATA_URL"));
            }
            (Location::Memory, _) => {
                return Err(Error::new(ErrorKind::InvalidConfiguration)
                    .detail("the tenant is on a data source in memory; use the memory connector"));
            }
        };
        let dial = Dial {
            guard: Some(Guard::new(
                key.source,
                role,
                credential,
                key.alone,
                &server.endpoints,
            )),
            server,
            logins: Keeper::new(SourceLogins {
                options: Arc::clone(&self.options),
                source: Arc::clone(source),
                role,
            }),
            search_path: Arc::clone(&self.options.search_path),
            application_name: Arc::clone(&self.options.service),
            database_id: source.database_id,
            access: role_access(role),
            prefers_primary: role_access(role) == Access::ReadWrite,
            turn: tokio::sync::Mutex::default(),
            successor: Successor::default(),
        };
        Ok((dial, pool))
    }
}

impl From<Login> for Passport {
    fn from(login: Login) -> Self {
        Self {
            credential: login.credential,
            expires_at: login.expires_at,
        }
    }
}

/// Opens the credential of a data source and role, when a connection is made.
struct SourceLogins {
    options: Arc<PgConnectorOptions>,
    source: Arc<DataSource>,
    role: Role,
}

#[async_trait]
impl Logins for SourceLogins {
    async fn login(&self) -> Result<Passport, Error> {
        match self.options.environment_login(&self.source, self.role) {
            Some(credential) => Ok(Login::new(credential.clone()).into()),
            None => {
                let login = self.options.credentials.login(&self.source, self.role);
                Ok(login.await?.into())
            }
        }
    }

    async fn next_login(&self) -> Result<Option<Passport>, Error> {
        match self.options.environment_login(&self.source, self.role) {
            Some(_) => Ok(None),
            None => {
                let next = self.options.credentials.next_login(&self.source, self.role);
                Ok(next.await?.map(Passport::from))
            }
        }
    }
}

impl fmt::Debug for PgConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PgConnector").field(&self.0.pool).finish()
    }
}

impl fmt::Debug for PgLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgLease")
            .field("tenant", &self.route.tenant())
            .field("role", &self.role)
            .finish()
    }
}
