//! Which login a connection is made with: the current one, one that was kept because it expires, or the next one.
//!
//! A login that does not expire is asked for at each connect and not kept. One that expires is kept until it is time for
//! another, because its issuer is asked for each; that time comes well before the end, so that an issuer which fails has
//! the rest of it to recover in, during which the old login goes on.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use secrecy::ExposeSecret;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    PoolOptions,
    dial::{Dial, Dialed, NotDialed, Purpose},
    failure::Blame,
    later, locked,
};
use crate::{
    error::{Error, ErrorKind},
    secret::Credential,
    tenant::Endpoint,
};

/// How long before its end a login is renewed at most. With a token of an hour that is once in 55 minutes, and leaves an
/// issuer which is down as long as most outages last.
const LONGEST_MARGIN: Duration = Duration::from_secs(300);

/// How long a renewal may take for which nobody waits.
const RENEWAL: Duration = Duration::from_secs(10);

/// How long somebody who connects waits for a renewal while the old login works.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long an issuer that failed is left alone while the old login works: a tenth of what is left of that, within these.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Gives the login for a connection, at the moment when it is made.
#[async_trait]
pub(crate) trait Logins: Send + Sync + 'static {
    async fn login(&self) -> Result<Passport, Error>;

    /// The login that is to follow, if one is prepared.
    async fn next_login(&self) -> Result<Option<Passport>, Error>;
}

/// A login, and until when it works, if it expires.
#[derive(Clone)]
pub(crate) struct Passport {
    pub(crate) credential: Credential,
    pub(crate) expires_at: Option<SystemTime>,
}

impl Passport {
    /// Whether the password is there and empty, for which sqlx would take one from the environment.
    fn is_blank(&self) -> bool {
        let password = self.credential.password();
        password.is_some_and(|password| password.expose_secret().is_empty())
    }
}

/// What a pool counts about logins.
#[derive(Debug, Default)]
pub(super) struct LoginCounts {
    /// Logins that were renewed before they expired.
    pub(super) renewed: AtomicU64,
    /// Attempts at that which failed.
    pub(super) not_renewed: AtomicU64,
    /// Connections that were made with the next login.
    pub(super) next: AtomicU64,
}

/// The logins of one dial.
pub(crate) struct Keeper {
    source: Box<dyn Logins>,
    kept: Mutex<State>,
    /// Whoever asks an issuer, alone.
    asking: tokio::sync::Mutex<()>,
    /// When the login that is kept expires, for those who may not wait for a lock; 0 if none is.
    kept_until: AtomicU64,
    /// Whether logins of this source expire; known from the first one on.
    expires: AtomicBool,
    /// Whether the server rejected the current login and took the next one, the last time.
    prefers_next: AtomicBool,
    counts: OnceLock<Arc<LoginCounts>>,
}

#[derive(Default)]
struct State {
    kept: Option<Kept>,
    /// Since a renewal failed: when it is tried again.
    retry_at: Option<Instant>,
}

struct Kept {
    passport: Passport,
    expires_at: SystemTime,
    renew_at: SystemTime,
}

/// Until when a connection may be used, by the login that it was made with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Authorisation {
    expires_at: SystemTime,
    /// When it is given up, if there is another login to replace it with.
    retire_at: SystemTime,
}

/// A login that is being tried.
struct Try {
    passport: Passport,
    which: Which,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// The current one, as it was kept.
    Kept,
    /// The current one, as it was given just now.
    Current,
    Next,
}

impl Keeper {
    pub(crate) fn new(source: impl Logins) -> Self {
        Self {
            source: Box::new(source),
            kept: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            kept_until: AtomicU64::new(0),
            expires: AtomicBool::new(false),
            prefers_next: AtomicBool::new(false),
            counts: OnceLock::new(),
        }
    }

    /// Says where to count.
    pub(super) fn count_in(&self, counts: &Arc<LoginCounts>) {
        // A dial belongs to one pool.
        let _ = self.counts.set(Arc::clone(counts));
    }

    /// The current login.
    pub(super) async fn current(&self) -> Result<Credential, Error> {
        Ok(self.give(PATIENCE).await?.passport.credential)
    }

    /// Whether the login that is kept is to be replaced by now.
    pub(super) fn is_due(&self) -> bool {
        if self.kept_until.load(Relaxed) == 0 {
            return false;
        }
        let state = self.state();
        let waits = state.retry_at.is_some_and(|at| Instant::now() < at);
        !waits
            && state
                .kept
                .as_ref()
                .is_some_and(|kept| kept.renew_at <= SystemTime::now())
    }

    /// Whether a login is kept.
    pub(super) fn keeps_any(&self) -> bool {
        self.kept_until.load(Relaxed) != 0
    }

    /// Whether the login that is kept has expired.
    pub(super) fn is_over(&self) -> bool {
        self.kept_until.load(Relaxed) != 0 && self.still_valid().is_none()
    }

    /// Replaces the login that is kept, before it expires.
    pub(super) async fn renew(&self) {
        // What fails is counted and told where it does.
        let _ = self.give(RENEWAL).await;
    }

    /// Wipes the login that is kept.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        self.kept_until.store(0, Relaxed);
        *state = State::default();
    }

    async fn give(&self, patience: Duration) -> Result<Try, Error> {
        if let Some(kept) = self.still_fresh() {
            return Ok(kept);
        }
        if !self.expires.load(Relaxed) {
            return self.ask().await;
        }
        let _alone = match self.still_valid() {
            // Somebody asks already, and the old one will do.
            Some(old) => match self.asking.try_lock() {
                Ok(alone) => alone,
                Err(_) => return Ok(old),
            },
            None => self.asking.lock().await,
        };
        if let Some(kept) = self.still_fresh() {
            return Ok(kept);
        }
        let Some(old) = self.still_valid() else {
            return self.ask().await;
        };
        if self.state().retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(old);
        }
        let failure = match timeout(patience, self.ask()).await {
            Ok(Ok(new)) => {
                self.count(|counts| &counts.renewed);
                return Ok(new);
            }
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        self.note_failure(failure.as_ref());
        Ok(old)
    }

    async fn ask(&self) -> Result<Try, Error> {
        let passport = self.source.login().await?;
        self.keep(&passport);
        Ok(Try {
            passport,
            which: Which::Current,
        })
    }

    fn keep(&self, passport: &Passport) {
        let Some(expires_at) = passport.expires_at else {
            return;
        };
        self.expires.store(true, Relaxed);
        let now = SystemTime::now();
        let Ok(life) = expires_at.duration_since(now) else {
            // By our clock it has expired already. The server's may be another; it is used this once.
            return;
        };
        let margin = match cfg!(biplane_mutant = "logins_are_used_to_the_end") {
            true => Duration::ZERO,
            false => margin(life, random()),
        };
        let mut state = self.state();
        if state.retry_at.take().is_some() {
            tracing::info!("a login is renewed again");
        }
        self.kept_until.store(micros(expires_at), Relaxed);
        state.kept = Some(Kept {
            passport: passport.clone(),
            expires_at,
            renew_at: expires_at - margin,
        });
    }

    fn note_failure(&self, error: Option<&Error>) {
        self.count(|counts| &counts.not_renewed);
        let mut state = self.state();
        let Some(kept) = &state.kept else { return };
        let left = kept
            .expires_at
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        if state.retry_at.is_none() {
            let reason = error.map_or_else(|| "no answer in time".to_owned(), ToString::to_string);
            tracing::warn!(
                expires_in_s = left.as_secs(),
                %reason,
                "a login could not be renewed; the old one is used until it expires"
            );
        }
        let wait = (left / 10).clamp(RETRY.0, RETRY.1);
        state.retry_at = Some(later(Instant::now(), wait.mul_f64(0.5 + random() / 2.0)));
    }

    /// The login that is kept, if it is not time yet for another.
    fn still_fresh(&self) -> Option<Try> {
        self.kept(|kept| kept.renew_at)
    }

    /// The login that is kept, if it has not expired.
    fn still_valid(&self) -> Option<Try> {
        self.kept(|kept| match cfg!(biplane_mutant = "old_logins_end_early") {
            true => kept.renew_at,
            false => kept.expires_at,
        })
    }

    fn kept(&self, until: impl Fn(&Kept) -> SystemTime) -> Option<Try> {
        if self.kept_until.load(Relaxed) == 0 {
            return None;
        }
        let state = self.state();
        let kept = state
            .kept
            .as_ref()
            .filter(|kept| SystemTime::now() < until(kept))?;
        Some(Try {
            passport: kept.passport.clone(),
            which: Which::Kept,
        })
    }

    /// What to begin with.
    async fn first(&self) -> Result<Try, Error> {
        if self.prefers_next.load(Relaxed)
            && let Some(next) = self.next().await
        {
            return Ok(next);
        }
        self.give(PATIENCE).await
    }

    /// What to go on with when the server has rejected one.
    async fn after(&self, rejected: Which, first: Which) -> Option<Try> {
        match rejected {
            // It may have been revoked before its time.
            Which::Kept => {
                self.forget();
                match self.ask().await {
                    Ok(current) => Some(current),
                    Err(_) if first == Which::Next => None,
                    Err(_) => self.next().await,
                }
            }
            Which::Current if first == Which::Next => None,
            Which::Current => self.next().await,
            Which::Next if first == Which::Next => {
                self.prefers_next.store(false, Relaxed);
                self.give(PATIENCE).await.ok()
            }
            Which::Next => None,
        }
    }

    async fn next(&self) -> Option<Try> {
        if cfg!(biplane_mutant = "next_logins_are_not_tried") {
            return None;
        }
        // One that does not open is as good as none; the rejection of the current one is what is told.
        let passport = self.source.next_login().await.ok()??;
        Some(Try {
            passport,
            which: Which::Next,
        })
    }

    fn count(&self, of: impl Fn(&LoginCounts) -> &AtomicU64) {
        if let Some(counts) = self.counts.get() {
            of(counts).fetch_add(1, Relaxed);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.kept)
    }
}

impl Dial {
    /// The login to begin with.
    pub(super) async fn first_login(&self, deadline: Instant) -> Result<Passes<'_>, NotDialed> {
        match timeout_at(deadline, self.logins.first()).await {
            Ok(login) => {
                let now = login?;
                if now.passport.is_blank() {
                    return Err(Error::new(ErrorKind::MissingPassword).into());
                }
                Ok(Passes {
                    dial: self,
                    first: now.which,
                    now,
                })
            }
            Err(_) => Err(self.unavailable("no login in time").into()),
        }
    }
}

/// The logins that one attempt goes through.
pub(super) struct Passes<'a> {
    dial: &'a Dial,
    first: Which,
    now: Try,
}

impl Passes<'_> {
    pub(super) const fn credential(&self) -> &Credential {
        &self.now.passport.credential
    }

    /// Connects to one endpoint, with one login after the other until the server takes one.
    pub(super) async fn connect_to(
        &mut self,
        endpoint: &Endpoint,
        purpose: Purpose,
        options: &PoolOptions,
        until: Instant,
    ) -> Result<Dialed, NotDialed> {
        let mut rejection: Option<NotDialed> = None;
        loop {
            let tried = self
                .dial
                .connect_to(endpoint, self.credential(), purpose, options, until)
                .await;
            let not = match tried {
                Ok(mut dialed) => {
                    self.settle(rejection.as_ref());
                    dialed.authorisation = self.now.passport.expires_at.map(Authorisation::new);
                    return Ok(dialed);
                }
                Err(not) => not,
            };
            let rejected = not.blame == Blame::Login && not.error.kind() == ErrorKind::CredentialRejected;
            if !rejected {
                return Err(not);
            }
            let not = rejection.take().unwrap_or(not);
            let another = self.dial.logins.after(self.now.which, self.first);
            match timeout_at(until, another).await {
                Ok(Some(next)) if !next.passport.is_blank() => {
                    rejection = Some(not);
                    self.now = next;
                }
                _ => return Err(not),
            }
        }
    }

    fn settle(&self, rejection: Option<&NotDialed>) {
        let logins = &self.dial.logins;
        let with_next = self.now.which == Which::Next;
        if with_next {
            logins.count(|counts| &counts.next);
        }
        let before = logins.prefers_next.swap(with_next, Relaxed);
        if with_next && !before && rejection.is_some() {
            tracing::warn!(
                database = %self.dial.whereabouts(),
                "the server rejects the current credential and takes the next one; promote it"
            );
        }
    }
}

impl Authorisation {
    fn new(expires_at: SystemTime) -> Self {
        let now = SystemTime::now();
        let left = expires_at.duration_since(now).unwrap_or_default();
        let margin = margin(left, 1.0);
        // Between the last renewal and the end, and not all at once.
        let early = margin.mul_f64(0.75 - random() / 2.0);
        Self {
            expires_at,
            retire_at: expires_at.checked_sub(early).unwrap_or(now),
        }
    }

    /// Whether a connection is to be closed: its login has expired, or will and there is a newer one.
    pub(super) fn is_over(&self, logins: &Keeper) -> bool {
        if cfg!(biplane_mutant = "authorisations_are_outlived") {
            return false;
        }
        let now = SystemTime::now();
        let newer = || logins.kept_until.load(Relaxed) > micros(self.expires_at);
        now >= self.expires_at || now >= self.retire_at && newer()
    }
}

/// How long before its end a login with that much life left is renewed: a quarter to a third of it, at random so that
/// processes which started together do not come to the issuer together.
fn margin(life: Duration, random: f64) -> Duration {
    (life / 3)
        .min(LONGEST_MARGIN)
        .mul_f64(0.75 + random.clamp(0.0, 1.0) / 4.0)
}

fn micros(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Between 0 and 1.
fn random() -> f64 {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    f64::from(random) / f64::from(u32::MAX)
}
