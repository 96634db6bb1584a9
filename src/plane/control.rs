//! Reaching the control plane.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{ControlDb, Lease, Lent};
use crate::{
    error::{Error, ErrorKind},
    pool::{
        Dial, Entry, Keeper, Listening, Logins, Passport, Pool, PoolOptions, PoolStats, Stack, Successor,
    },
    secret::Credential,
    settings::Settings,
    tenant::{Access, Role, Server, TenantId},
};

/// How a process reaches the control plane.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ControlOptions {
    /// Where it is.
    pub server: Server,
    /// The login, which for a router needs to read only.
    pub credential: Credential,
    /// The schema that unqualified names are looked up in: `biplane_control` by default.
    pub search_path: Arc<str>,
    /// What the server shows as the name of the application: `biplane-control` by default.
    pub application_name: Arc<str>,
    /// How many connections, and for how long. 4 at most by default: a router that is warm needs hardly one, and many
    /// processes share the control plane.
    pub pool: PoolOptions,
}

impl ControlOptions {
    /// A control plane with the defaults.
    #[must_use]
    pub fn new(server: Server, credential: Credential) -> Self {
        Self {
            server,
            credential,
            search_path: "biplane_control".into(),
            application_name: "biplane-control".into(),
            pool: PoolOptions::default().cap(NonZeroU32::MIN.saturating_add(3)),
        }
    }

    /// The control plane that the environment describes, with whatever its URL says about connections.
    #[must_use]
    pub fn from_settings(settings: &Settings) -> Self {
        let dsn = settings.control();
        let mut options = Self::new(dsn.server().clone(), dsn.credential().clone());
        options.search_path = settings.control_search_path().into();
        if let Some(name) = dsn.application_name() {
            options.application_name = name.into();
        }
        if let Some(limit) = dsn.connection_limit() {
            options.pool = options.pool.cap(limit);
        }
        if let Some(timeout) = dsn.connect_timeout() {
            options.pool = options.pool.connect_timeout(timeout);
        }
        if let Some(timeout) = dsn.pool_timeout() {
            options.pool = options.pool.wait_timeout(timeout);
        }
        options
    }
}

impl ControlDb {
    /// A handle on the control plane. Nothing connects before its first use.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfiguration`] for settings that cannot work, such as a TLS mode that was not compiled in.
    pub fn connect(options: ControlOptions) -> Result<Self, Error> {
        let cap = options.pool.cap;
        let pool = Pool::new(options.pool)?;
        let dial = Dial {
            server: options.server,
            logins: Keeper::new(Fixed(options.credential)),
            search_path: options.search_path,
            application_name: options.application_name,
            database_id: None,
            access: Access::ReadWrite,
            prefers_primary: false,
            turn: tokio::sync::Mutex::default(),
            // Who asks the control plane pauses by itself after a failure, and must not learn late that it is back.
            guard: None,
            successor: Successor::default(),
        };
        let stack = pool.stack(dial, cap, 0, None)?;
        Ok(Self::new(Arc::new(ControlLease { pool, stack })))
    }

    /// Whether the control plane can be listened to.
    pub(crate) fn may_listen(&self) -> bool {
        self.fixed_stack().is_some_and(Stack::may_listen)
    }

    /// Listens to a channel, on a connection of its own.
    pub(crate) async fn listen(&self, channel: &str) -> Result<Listening, Error> {
        let stack = self.fixed_stack().ok_or_else(|| {
            Error::new(ErrorKind::InvalidConfiguration).detail("this handle has no server to listen to")
        })?;
        stack.listen(channel).await.map_err(could_not_ask)
    }

    /// How its connections are doing.
    #[must_use]
    pub fn pool_stats(&self) -> PoolStats {
        self.pool().stats()
    }

    /// Ends its connections: what is in use may go on until `deadline`. Every clone of the handle is closed with it.
    ///
    /// # Cancel safety
    /// Safe: the handle stays closed; call it again to go on waiting.
    pub async fn close(&self, deadline: Duration) {
        self.pool().close(deadline).await;
    }
}

struct Fixed(Credential);

#[async_trait]
impl Logins for Fixed {
    async fn login(&self) -> Result<Passport, Error> {
        Ok(Passport {
            credential: self.0.clone(),
            expires_at: None,
        })
    }

    async fn next_login(&self) -> Result<Option<Passport>, Error> {
        Ok(None)
    }
}

#[derive(Clone, Debug)]
struct ControlLease {
    pool: Pool,
    stack: Stack,
}

#[async_trait]
impl Lease for ControlLease {
    async fn lease(&self) -> Result<Lent, Error> {
        match self.stack.checkout().await {
            Ok(checkout) => Ok(Lent::new(checkout, Access::ReadWrite, None)),
            Err(error) => Err(could_not_ask(error)),
        }
    }

    /// It has no routes: nothing is entered, and so nothing refused.
    async fn refresh(&self, _: &Entry) -> Result<(), Error> {
        Ok(())
    }

    fn tenant(&self) -> Option<TenantId> {
        None
    }

    fn role(&self) -> Role {
        Role::App
    }

    fn with_role(&self, _: Role) -> Arc<dyn Lease> {
        Arc::new(self.clone())
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn fixed_stack(&self) -> Option<&Stack> {
        Some(&self.stack)
    }

    fn route_age(&self) -> Option<Duration> {
        None
    }

    fn is_overridden(&self) -> Option<bool> {
        None
    }
}

/// Whatever keeps us from asking the control plane means that we do not know, never that something does not exist.
fn could_not_ask(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Closed | ErrorKind::InvalidConfiguration => error,
        _ => Error::new(ErrorKind::ControlPlaneUnavailable).caused_by(error),
    }
}
