//! Asking data servers about logins.

use std::{fmt, num::NonZeroU32, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{Connection, Executor};

use super::{EnvironmentSource, role_access};
use crate::{
    error::{Error, ErrorKind},
    pool::{Checkout, Dial, Keeper, Logins, Passport, Pool, PoolOptions, Successor},
    repository::DataServers,
    secret::Credential,
    tenant::{Access, DataSource, Location, Role},
};

/// How long connecting may take, and the answer after that: several times what a request may wait, because no request
/// waits for this, and a server that has much to do is to be asked all the same.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long to take leave of a server.
const GOODBYE: Duration = Duration::from_secs(2);

const SESSIONS: &str = "
    select pg_catalog.count(*)
    from pg_catalog.pg_stat_activity
    where usename = $1 and pid <> pg_catalog.pg_backend_pid()";

/// Postgres servers, asked on a connection of its own each time, which is no part of any pool.
#[derive(Clone)]
pub struct PgServers {
    environment: Option<Arc<EnvironmentSource>>,
    patience: Duration,
}

impl Default for PgServers {
    fn default() -> Self {
        Self {
            environment: None,
            patience: PATIENCE,
        }
    }
}

impl PgServers {
    /// The servers that the control plane knows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// And the data source that the environment of this process defines.
    #[must_use]
    pub fn with_environment(mut self, environment: EnvironmentSource) -> Self {
        self.environment = Some(Arc::new(environment));
        self
    }

    /// How long a server may take to let us in, and as long again to answer; 20 s unless told, because no request waits
    /// for it. Above 0, or nothing can be asked. A pooler lets clients in by itself, and would keep them waiting for as long as
    /// its server is silent.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    async fn connect(
        &self,
        source: &DataSource,
        role: Role,
        credential: &Credential,
    ) -> Result<(Pool, Checkout), Error> {
        let server = match (&source.location, &self.environment) {
            (Location::Server(server), _) => server.clone(),
            (Location::Environment, Some(environment)) => environment.server.clone(),
            _ => {
                return Err(Error::new(ErrorKind::InvalidConfiguration)
                    .detail("the data source is on no Postgres server that is known here"));
            }
        };
        let mut options = PoolOptions::default().cap(NonZeroU32::MIN);
        (options.connect_timeout, options.wait_timeout) =
            (self.patience, self.patience.saturating_add(GOODBYE));
        let pool = Pool::new(options)?;
        let access = role_access(role);
        let dial = Dial {
            server,
            logins: Keeper::new(Given(credential.clone())),
            search_path: "public".into(),
            application_name: "biplane (login)".into(),
            database_id: source.database_id,
            access,
            // As services do: a standby knows of no session at the primary.
            prefers_primary: access == Access::ReadWrite,
            turn: tokio::sync::Mutex::default(),
            guard: None,
            successor: Successor::default(),
        };
        let stack = pool.stack(dial, NonZeroU32::MIN, 0, None)?;
        let checkout = stack.checkout().await?;
        Ok((pool, checkout))
    }

    async fn answer<T>(&self, answer: impl Future<Output = sqlx::Result<T>>) -> Result<T, Error> {
        if cfg!(biplane_mutant = "silent_servers_are_waited_for") {
            return Ok(answer.await?);
        }
        match tokio::time::timeout(self.patience, answer).await {
            Ok(answered) => Ok(answered?),
            Err(_) => Err(Error::new(ErrorKind::DatabaseUnavailable { retry_after: None })
                .detail("it let us in and did not answer in time; behind a pooler, its server may be down")),
        }
    }
}

#[async_trait]
impl DataServers for PgServers {
    async fn log_in(&self, source: &DataSource, role: Role, credential: &Credential) -> Result<(), Error> {
        let (pool, mut checkout) = self.connect(source, role, credential).await?;
        // A pooler may have let us in by itself: it logs in at the server when there is something to do there.
        let answered = match cfg!(biplane_mutant = "poolers_vouch_for_servers") {
            true => Ok(()),
            false => {
                let asked = checkout.hand_over().execute("select 1");
                self.answer(asked).await.map(drop)
            }
        };
        drop(checkout);
        pool.close(GOODBYE).await;
        answered
    }

    async fn sessions(
        &self,
        source: &DataSource,
        role: Role,
        credential: &Credential,
        user: &str,
    ) -> Result<u64, Error> {
        let (pool, mut checkout) = self.connect(source, role, credential).await?;
        let asked = async {
            // A statement with parameters is several messages, and between two of them a transaction pooler may have given
            // the session to somebody else.
            let mut tx = checkout.hand_over().begin().await?;
            let counted: i64 = sqlx::query_scalar(SESSIONS)
                .bind(user)
                .persistent(false)
                .fetch_one(&mut *tx)
                .await?;
            tx.rollback().await?;
            Ok(counted)
        };
        let counted = self.answer(asked).await;
        drop(checkout);
        pool.close(GOODBYE).await;
        Ok(counted?.unsigned_abs())
    }
}

impl fmt::Debug for PgServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgServers").finish_non_exhaustive()
    }
}

struct Given(Credential);

#[async_trait]
impl Logins for Given {
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
