//! Replacing the login of a data source while everything runs.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    error::{Error, ErrorKind},
    keyring::{Keyring, KeyringError},
    presence::{PRESUMED_DEAD, WaitError, wait_applied},
    repository::{Actor, ChangeLog, CredentialSlot, DataServers, Instances, TenantAdmin},
    secret::Credential,
    tenant::{CredentialVersion, DataSource, DataSourceId, Role, RoleCredentials, Seq, StoredCredential},
};

/// How often a server is asked whether somebody is still logged in, which nobody tells. Each question is a connection, and
/// sessions end when their work does: a fraction of a second is soon enough for both.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Replaces the login of a data source and role, and nobody fails meanwhile.
///
/// 1. [`prepare`](Self::prepare): the new login is sealed and stored as the next one, which routers try where the server
///    rejects the current one.
/// 2. [`check`](Self::check): the server takes the new login, from where this runs.
/// 3. [`promote`](Self::promote): it is the current one, from now on.
/// 4. [`applied`](Self::applied): every live process knows.
/// 5. [`unused`](Self::unused): nobody is logged in as the old database role any more. Retire it.
///
/// [`run`](Self::run) does the first four. Every step may be repeated, and after a crash at any of them the whole begins
/// again with the same login and goes on where it was; [`prepared`](Self::prepared) has that login if it was lost. What
/// somebody else has changed meanwhile is never overwritten.
///
/// The page [`credentials`](crate::manual::credentials) says it as an operator does it, and with psql.
///
/// ```no_run
/// use biplane::{
///     error::Error,
///     rotation::{LoginRotation, LoginRotationError, RotationTools},
///     repository::Actor,
///     secret::Credential,
///     tenant::Role,
/// };
///
/// # async fn rotate(tools: RotationTools<'_>, new: Credential) -> Result<(), LoginRotationError> {
/// let rotation = LoginRotation::new("east", Role::App, Actor::new("ann", "monthly, OPS-12"));
/// rotation.run(&tools, &new).await?;                 // app_a gives way to app_b …
/// rotation.unused(&tools, "app_a").await?;           // … and may be locked out or dropped now
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LoginRotation {
    source: Arc<str>,
    role: Role,
    by: Actor,
    patience: Duration,
    presumed_dead: Duration,
}

/// What a [`LoginRotation`] works with.
#[derive(Clone, Copy)]
pub struct RotationTools<'a> {
    /// Where credentials are stored.
    pub admin: &'a dyn TenantAdmin,
    /// Where that is logged.
    pub changes: &'a dyn ChangeLog,
    /// The processes that have to know.
    pub instances: &'a dyn Instances,
    /// The servers that have to take the login.
    pub servers: &'a dyn DataServers,
    /// Seals and opens: every process must have its primary key.
    pub keyring: &'a Keyring,
}

/// The evidence that the server takes the prepared login, for [`LoginRotation::promote`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    source: DataSourceId,
    role: Role,
    current: CredentialVersion,
    next: CredentialVersion,
}

/// A login that is the current one now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Promoted {
    /// Its version.
    pub version: CredentialVersion,
    /// Whoever has applied the change log up to here knows of it.
    pub seq: Seq,
}

/// Whether a login waits to be promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prepared {
    /// It is the next one.
    Next,
    /// It is the current one already.
    Current,
}

/// Why a login is not replaced, or not yet. Nothing is half done: repeat the step when what stands in the way is gone.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginRotationError {
    /// No data source has this name.
    #[error("there is no data source {0}")]
    UnknownSource(Arc<str>),
    /// There is no current login to be replaced.
    #[error(
        "data source {source_name} has no credential for role {role}; store the first one as the current one"
    )]
    NothingToReplace {
        /// The data source.
        source_name: Arc<str>,
        /// For what a login is missing.
        role: Role,
    },
    /// Another login is prepared: somebody else is at it, or was.
    #[error("another login is prepared, at version {0}; go on with it, or discard it")]
    Underway(CredentialVersion),
    /// No login is prepared.
    #[error("no login is prepared; prepare one first")]
    NothingPrepared,
    /// The server does not take the new login, or could not be asked. The current one is as it was.
    #[error("the data source does not take the prepared login")]
    NotAccepted(#[source] Error),
    /// Somebody has changed the credentials since they were looked at.
    #[error("the credentials were changed meanwhile; look again")]
    Changed,
    /// A stored credential does not open, or the new one cannot be sealed.
    #[error("a credential could not be sealed or opened")]
    Keyring(#[source] KeyringError),
    /// Some live process does not know yet. The old login must go on working.
    #[error("not every process knows of the new login; the old one must go on working")]
    NotApplied(#[source] WaitError),
    /// The database role is that of a login which is in use, or prepared.
    #[error("the database role is that of a login which is in use or prepared; it is not the old one")]
    NotTheOldOne,
    /// Somebody is still logged in as the old database role.
    #[error("{0} sessions are still logged in as the old database role")]
    StillConnected(u64),
    /// The control plane or the server could not be asked.
    #[error("the control plane or the data source could not be asked")]
    NotAsked(#[source] Error),
}

impl LoginRotation {
    /// A rotation of the login of a data source, by its name, and a role.
    #[must_use]
    pub fn new(source: impl Into<Arc<str>>, role: Role, by: Actor) -> Self {
        Self {
            source: source.into(),
            role,
            by,
            patience: Duration::from_secs(60),
            presumed_dead: PRESUMED_DEAD,
        }
    }

    /// How long to wait for processes that do not know yet, and for sessions that have not ended: 1 min by default, some
    /// beats of a heartbeat. It may be waited for again.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// For how long a process must have been silent to be [presumed dead](PRESUMED_DEAD).
    #[must_use]
    pub const fn presumed_dead(mut self, silent: Duration) -> Self {
        self.presumed_dead = silent;
        self
    }

    /// Brings the new login into use everywhere: prepares it, checks it, promotes it and waits until every live process
    /// knows. The old one must go on working meanwhile, and until [`LoginRotation::unused`] says so; where there is one
    /// database role whose password changes, change it between [`LoginRotation::prepare`] and this.
    ///
    /// # Errors
    /// Those of the steps.
    ///
    /// # Cancel safety
    /// Each step is whole or did not happen. Run it again, with the same login, to go on.
    pub async fn run(
        &self,
        tools: &RotationTools<'_>,
        login: &Credential,
    ) -> Result<Promoted, LoginRotationError> {
        let promoted = match self.prepare(tools, login).await? {
            Prepared::Next => {
                let checked = self.check(tools).await?;
                self.promote(tools, &checked).await?
            }
            Prepared::Current => self.in_use(tools).await?,
        };
        self.applied(tools, promoted.seq).await?;
        Ok(promoted)
    }

    /// Seals a login and stores it as the next one. If it is that already, or the current one, nothing is done.
    ///
    /// # Errors
    /// [`LoginRotationError::Underway`], [`LoginRotationError::NothingToReplace`], [`LoginRotationError::UnknownSource`],
    /// [`LoginRotationError::Changed`], [`LoginRotationError::Keyring`], [`LoginRotationError::NotAsked`].
    ///
    /// # Cancel safety
    /// It is stored or not; repeat it.
    pub async fn prepare(
        &self,
        tools: &RotationTools<'_>,
        login: &Credential,
    ) -> Result<Prepared, LoginRotationError> {
        let (source, stored) = self.look(tools).await?;
        if let Some(next) = &stored.next {
            let next_login = self.open(tools, &source, next)?;
            return match is_same(&next_login, login) {
                true => Ok(Prepared::Next),
                false => Err(LoginRotationError::Underway(next.version)),
            };
        }
        if is_same(&self.open(tools, &source, &stored.current)?, login) {
            return Ok(Prepared::Current);
        }
        let sealed = tools
            .keyring
            .seal_credential(source.id, self.role, login)
            .map_err(LoginRotationError::Keyring)?;
        tools
            .admin
            .set_credential(&self.by, source.id, self.role, CredentialSlot::Next, None, sealed)
            .await
            .map_err(changed)?;
        Ok(Prepared::Next)
    }

    /// The login that is prepared, for whoever lost it on the way.
    ///
    /// # Errors
    /// As [`LoginRotation::prepare`].
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn prepared(
        &self,
        tools: &RotationTools<'_>,
    ) -> Result<Option<Credential>, LoginRotationError> {
        let (source, stored) = self.look(tools).await?;
        let next = stored.next.as_ref();
        next.map(|next| self.open(tools, &source, next)).transpose()
    }

    /// Gives the rotation up: what is prepared is discarded, and the current login stays.
    ///
    /// # Errors
    /// [`LoginRotationError::NothingPrepared`], and as [`LoginRotation::prepare`].
    ///
    /// # Cancel safety
    /// It is discarded or not; repeat it.
    pub async fn discard(&self, tools: &RotationTools<'_>) -> Result<(), LoginRotationError> {
        let (source, stored) = self.look(tools).await?;
        let next = stored.next.ok_or(LoginRotationError::NothingPrepared)?;
        tools
            .admin
            .discard_credential(&self.by, source.id, self.role, next.version)
            .await
            .map_err(changed)
    }

    /// Logs in to the data source with the prepared login, and out again. What it proves it proves from where this runs:
    /// the services may be let in from elsewhere.
    ///
    /// # Errors
    /// [`LoginRotationError::NotAccepted`], [`LoginRotationError::NothingPrepared`], and as [`LoginRotation::prepare`].
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    pub async fn check(&self, tools: &RotationTools<'_>) -> Result<Checked, LoginRotationError> {
        let (source, stored) = self.look(tools).await?;
        let next = stored.next.ok_or(LoginRotationError::NothingPrepared)?;
        let login = self.open(tools, &source, &next)?;
        if !cfg!(biplane_mutant = "unchecked_logins_are_promoted") {
            tools
                .servers
                .log_in(&source, self.role, &login)
                .await
                .map_err(LoginRotationError::NotAccepted)?;
        }
        Ok(Checked {
            source: source.id,
            role: self.role,
            current: stored.current.version,
            next: next.version,
        })
    }

    /// Makes the prepared login the current one, if both are what was checked.
    ///
    /// # Errors
    /// [`LoginRotationError::Changed`], [`LoginRotationError::NotAsked`].
    ///
    /// # Cancel safety
    /// It is promoted or not. [`LoginRotation::run`] finds out.
    pub async fn promote(
        &self,
        tools: &RotationTools<'_>,
        checked: &Checked,
    ) -> Result<Promoted, LoginRotationError> {
        let Checked {
            source,
            role,
            current,
            next,
        } = *checked;
        let version = tools
            .admin
            .promote_credential(&self.by, source, role, current, next)
            .await
            .map_err(changed)?;
        let head = tools.changes.head().await.map_err(LoginRotationError::NotAsked)?;
        Ok(Promoted {
            version,
            seq: head.seq,
        })
    }

    /// Waits until every live process has applied the change log up to there.
    ///
    /// # Errors
    /// [`LoginRotationError::NotApplied`], with those that have not; also where no process sends heartbeats that
    /// tell: there is nobody to ask then, so make sure by other means.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn applied(&self, tools: &RotationTools<'_>, seq: Seq) -> Result<(), LoginRotationError> {
        if cfg!(biplane_mutant = "rotations_wait_for_nobody") {
            return Ok(());
        }
        wait_applied(tools.instances, seq, self.presumed_dead, self.patience)
            .await
            .map_err(LoginRotationError::NotApplied)
    }

    /// Waits until nobody is logged in to the server as this database role, which is the old one's: then it may be locked
    /// out or dropped. That is your own step; nothing here takes a login away.
    ///
    /// Every session of the role at the server counts, in whatever database and of whatever program, because all of them
    /// would be hit. Asked is the first endpoint of the data source that answers: sessions at its other endpoints, such as
    /// standbys, are not seen. Who is not connected just now is not seen either: a role that several data sources log in
    /// with is unused only when all of them have another.
    ///
    /// # Errors
    /// [`LoginRotationError::StillConnected`], [`LoginRotationError::NotTheOldOne`],
    /// [`LoginRotationError::NotAsked`], and as [`LoginRotation::prepare`].
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn unused(&self, tools: &RotationTools<'_>, old: &str) -> Result<(), LoginRotationError> {
        let deadline = Instant::now() + self.patience;
        loop {
            let (source, stored) = self.look(tools).await?;
            let current = self.open(tools, &source, &stored.current)?;
            let next = stored.next.as_ref();
            let next = next.map(|next| self.open(tools, &source, next)).transpose()?;
            let in_use = |login: &Credential| login.username() == old;
            if in_use(&current) || next.as_ref().is_some_and(in_use) {
                return Err(LoginRotationError::NotTheOldOne);
            }
            let sessions = match cfg!(biplane_mutant = "old_sessions_are_not_looked_for") {
                true => 0,
                false => tools
                    .servers
                    .sessions(&source, self.role, &current, old)
                    .await
                    .map_err(LoginRotationError::NotAsked)?,
            };
            if sessions == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(LoginRotationError::StillConnected(sessions));
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// As [`LoginRotation::promote`] said, or later.
    async fn in_use(&self, tools: &RotationTools<'_>) -> Result<Promoted, LoginRotationError> {
        let (_, stored) = self.look(tools).await?;
        let head = tools.changes.head().await.map_err(LoginRotationError::NotAsked)?;
        Ok(Promoted {
            version: stored.current.version,
            seq: head.seq,
        })
    }

    async fn look(
        &self,
        tools: &RotationTools<'_>,
    ) -> Result<(DataSource, RoleCredentials), LoginRotationError> {
        let source = tools
            .admin
            .source(&self.source)
            .await
            .map_err(LoginRotationError::NotAsked)?
            .ok_or_else(|| LoginRotationError::UnknownSource(Arc::clone(&self.source)))?;
        match source.credentials.get(&self.role).cloned() {
            Some(stored) => Ok((source, stored)),
            None => Err(LoginRotationError::NothingToReplace {
                source_name: Arc::clone(&self.source),
                role: self.role,
            }),
        }
    }

    fn open(
        &self,
        tools: &RotationTools<'_>,
        source: &DataSource,
        stored: &StoredCredential,
    ) -> Result<Credential, LoginRotationError> {
        tools
            .keyring
            .open_credential(source.id, self.role, &stored.sealed)
            .map_err(LoginRotationError::Keyring)
    }
}

fn changed(error: Error) -> LoginRotationError {
    match error.kind() {
        ErrorKind::VersionConflict => LoginRotationError::Changed,
        _ => LoginRotationError::NotAsked(error),
    }
}

/// Both are the operator's own, so nobody learns from how long this takes.
fn is_same(one: &Credential, other: &Credential) -> bool {
    one.to_plaintext() == other.to_plaintext()
}

impl fmt::Debug for RotationTools<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotationTools").finish_non_exhaustive()
    }
}
