//! Handles on Postgres databases.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;

use super::{Connector, ConnectorStats, Route, TenantRoute};
use crate::{
    breaker::BreakerStatus,
    error::{Error, ErrorKind},
    plane::{Lease, Lent, TenantDb},
    pool::{BreakerOptions, Dial, Guard, Logins, Pool, PoolOptions, Renewal, Stack, check_server},
    repository::CredentialSource,
    secret::Credential,
    settings::Settings,
    tenant::{
        Access, CredentialVersion, DataSource, DataSourceId, Isolation, Location, PoolSettings, Role, Server,
        Tenant, TenantId, Version,
    },
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

/// Makes handles on Postgres databases, one tenant to a database.
#[derive(Clone)]
pub struct PgConnector(Arc<Inner>);

struct Inner {
    pool: Pool,
    options: Arc<PgConnectorOptions>,
    stacks: Mutex<HashMap<(DataSourceId, Role), Current>>,
}

/// The stack in use for a data source and role, and what it was made for.
struct Current {
    version: Version,
    credential: CredentialVersion,
    source: Arc<DataSource>,
    stack: Stack,
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
        Ok(Self(Arc::new(Inner {
            pool,
            options: Arc::new(options),
            stacks: Mutex::default(),
        })))
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
            let checkout = stack.checkout(|| Some(self.renewal())).await;
            // The tenant may have been moved or suspended while this waited, and then it waited at the wrong place.
            if cfg!(biplane_mutant = "routes_are_not_looked_at_again") || self.route.is_current(&route)? {
                return Ok(Lent::new(checkout?, access(&route, self.role)));
            }
            route = self.route.current().await?;
        }
        Err(Error::new(ErrorKind::ControlPlaneUnavailable)
            .detail("the route changed with every attempt to follow it"))
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
}

impl PgLease {
    fn renewal(&self) -> Arc<dyn Renewal> {
        Arc::new(RouteRenewal {
            connector: Arc::downgrade(&self.connector),
            route: self.route.clone(),
            role: self.role,
        })
    }
}

/// Asks the control plane again where a tenant's data is. Kept by the stack, so it must not keep that alive.
struct RouteRenewal {
    connector: Weak<Inner>,
    route: TenantRoute,
    role: Role,
}

#[async_trait]
impl Renewal for RouteRenewal {
    async fn renew(&self) {
        if let Ok(route) = self.route.reload().await
            && let Some(connector) = self.connector.upgrade()
        {
            // If there is no stack for it, the next checkout says why.
            let _ = connector.stack(&route, self.role);
        }
    }
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
    /// The stack for a route and role. It is led elsewhere if the address or the credential is another than the last
    /// time.
    fn stack(&self, route: &Route, role: Role) -> Result<Stack, Error> {
        let isolation = route.tenant().placement.isolation;
        if isolation != Isolation::Database {
            return Err(ErrorKind::UnsupportedIsolation { isolation }.into());
        }
        let source = route.source();
        let credential = self.options.credential_version(source, role)?;
        let mut stacks = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        match stacks.entry((source.id, role)) {
            Entry::Occupied(mut entry) => {
                let current = entry.get_mut();
                // A route that is older than what others use is served with what they use.
                if current.version <= source.version {
                    if !current.serves(source, credential) {
                        let (dial, pool) = self.dial(source, role, credential)?;
                        current.stack.renew(dial, pool.max(), pool.min())?;
                        current.source = Arc::clone(source);
                        current.credential = credential;
                    }
                    current.version = source.version;
                }
                Ok(current.stack.clone())
            }
            Entry::Vacant(entry) => {
                let (dial, pool) = self.dial(source, role, credential)?;
                let stack = self.pool.stack(dial, pool.max(), pool.min())?;
                entry.insert(Current {
                    version: source.version,
                    credential,
                    source: Arc::clone(source),
                    stack: stack.clone(),
                });
                Ok(stack)
            }
        }
    }

    fn dial(
        &self,
        source: &Arc<DataSource>,
        role: Role,
        credential: CredentialVersion,
    ) -> Result<(Dial, PoolSettings), Error> {
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
            guard: Some(Guard::new(source.id, role, credential, &server.endpoints)),
            server,
            logins: Box::new(SourceLogins {
                options: Arc::clone(&self.options),
                source: Arc::clone(source),
                role,
            }),
            search_path: Arc::clone(&self.options.search_path),
            application_name: Arc::clone(&self.options.service),
            database_id: source.database_id,
            access: role_access(role),
            turn: tokio::sync::Mutex::default(),
        };
        Ok((dial, pool))
    }
}

impl Current {
    fn serves(&self, source: &DataSource, credential: CredentialVersion) -> bool {
        // Who read the version of a credential just before it rose must not take everybody back to it.
        let overtaken = self.version == source.version && credential < self.credential;
        (self.credential == credential || overtaken)
            && self.source.location == source.location
            && self.source.pool == source.pool
            && self.source.database_id == source.database_id
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
    async fn login(&self) -> Result<Credential, Error> {
        match self.options.environment_login(&self.source, self.role) {
            Some(credential) => Ok(credential.clone()),
            None => Ok(self
                .options
                .credentials
                .login(&self.source, self.role)
                .await?
                .credential),
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
