//! The jobs that write: re-sealing and importing.

use std::{fmt, num::NonZeroU32, sync::Arc, time::Duration};

use secrecy::ExposeSecret;

use crate::{
    keyring::{Context, KeyState, Keyring, KeyringError, LegacyOpener, LegacyUse, Sealed},
    secret::SecretBytes,
    tenant::SealedText,
};

use super::{
    Census, Decision, Mode, Progress, Report, RotationError, SealedStore, StoreReport, StoredValue, Wanted,
    engine::{Listener, Pace, Run},
};

/// Brings every value of some stores under the primary key of a keyring.
///
/// Each value is opened, sealed anew, opened again to be sure, and written if it still is what was read. Values that are
/// under the primary key are not even read, so a run that was stopped is finished by the next one, and several may work
/// on one store at once. Make the new key primary in *every* process before: others may write meanwhile, but what they
/// seal under the old key is left for another run.
///
/// ```
/// use biplane::keyring::{Context, KeyMaterial, KeyState, Keyring};
/// use biplane::rotation::{MemoryStore, Reseal};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (old, new) = (KeyMaterial::generate()?, KeyMaterial::generate()?);
/// let before = Keyring::builder().key(KeyMaterial::from_hex(&hex(&old))?, KeyState::Primary).build()?;
/// let after = Keyring::builder().key(old, KeyState::DecryptOnly).key(new, KeyState::Primary).build()?;
///
/// let store = MemoryStore::new("settings", "setting");
/// let field = Context::new("setting", "acme", "mail.password")?;
/// store.insert("acme", "mail.password", before.seal(&field, b"correct horse")?.to_text().as_str());
///
/// let report = Reseal::new(after.clone()).store(store.clone()).run().await?;
/// assert_eq!(report.done(), 1);
///
/// let text = store.find("acme", "mail.password").expect("it is still there");
/// assert!(text.starts_with(&format!("bp1.{}.", after.primary())));
/// assert!(after.open_text(&field, &text).is_ok());
/// # Ok(())
/// # }
/// # fn hex(key: &KeyMaterial) -> String {
/// #     secrecy::ExposeSecret::expose_secret(&key.to_hex()).to_owned()
/// # }
/// ```
pub type Reseal = Job<Resealing>;

/// Seals what an older system encrypted, under the primary key of a keyring.
///
/// A value is opened by the [`LegacyOpener`], which decides by its policy, sealed for its owner and field, opened again
/// to be sure, and written if it still is what was read: in its place, or into another column. What is sealed already is
/// left, so a run that was stopped is finished by the next one. A value that does not open stays as it is, and the
/// report names its owner and what is wrong, such as a value in hex where base64 was expected.
///
/// ```no_run
/// use biplane::keyring::{Keyring, LegacyEncoding, LegacyKey, LegacyOpener, LegacyPolicy};
/// use biplane::{plane::ControlDb, rotation::{Import, PgColumns}};
///
/// # async fn import(control: ControlDb, keyring: Keyring) -> Result<(), Box<dyn std::error::Error>> {
/// let legacy = LegacyOpener::new(LegacyKey::from_env("OLD_ENCRYPTION_KEY")?, LegacyPolicy::ImportOnly)
///     .expecting(LegacyEncoding::Base64);
/// let integrations = PgColumns::new(control, "public", "integration")
///     .purpose("integration")
///     .column("stripe_key", "stripe.key")
///     .column("mail_password", "mail.password");
///
/// let report = Import::new(legacy, keyring).store(integrations).dry_run().run().await?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
pub type Import = Job<Importing>;

/// Goes over stores and seals what is to be sealed: [`Reseal`] or [`Import`].
///
/// # Cancel safety
/// [`run`](Job::run) may be dropped at any moment, and the process may die: every value is as it was or sealed anew, and
/// running again goes on.
pub struct Job<W> {
    work: W,
    stores: Vec<(Box<dyn SealedStore>, Expectation)>,
    pace: Pace,
    mode: Mode,
    listener: Option<Listener>,
}

/// What [`Reseal`] does to a value.
#[derive(Debug)]
pub struct Resealing {
    keyring: Keyring,
}

/// What [`Import`] does to a value.
#[derive(Debug)]
pub struct Importing {
    legacy: Arc<LegacyOpener>,
    keyring: Keyring,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expectation {
    Values,
    Anything,
}

/// What a job does to a value: [`Resealing`] or [`Importing`], and nothing else.
pub trait Work: sealed::Rewrite {}

impl Work for Resealing {}
impl Work for Importing {}

impl Job<Resealing> {
    /// Re-seals with this keyring: one snapshot from beginning to end.
    #[must_use]
    pub fn new(keyring: Keyring) -> Self {
        Self::doing(Resealing { keyring })
    }
}

impl Job<Importing> {
    /// Opens with this opener, which counts it as imports, and seals with this keyring.
    #[must_use]
    pub fn new(legacy: impl Into<Arc<LegacyOpener>>, keyring: Keyring) -> Self {
        Self::doing(Importing {
            legacy: legacy.into(),
            keyring,
        })
    }
}

impl<W: Work> Job<W> {
    fn doing(work: W) -> Self {
        Self {
            work,
            stores: Vec::new(),
            pace: Pace::default(),
            mode: Mode::Change,
            listener: None,
        }
    }

    /// Works on this store too, in which there are values: finding none is an error, because a job that looked at the
    /// wrong table would otherwise report success.
    #[must_use]
    pub fn store(mut self, store: impl SealedStore) -> Self {
        self.stores.push((Box::new(store), Expectation::Values));
        self
    }

    /// Works on this store too, which may be empty.
    #[must_use]
    pub fn store_that_may_be_empty(mut self, store: impl SealedStore) -> Self {
        self.stores.push((Box::new(store), Expectation::Anything));
        self
    }

    /// How many rows a page has: 500 by default, which are locked for some milliseconds, no longer than by any short
    /// transaction.
    #[must_use]
    pub const fn page(mut self, rows: NonZeroU32) -> Self {
        self.pace.page = rows;
        self
    }

    /// How many values are worked on in a second at most; as many as the database takes by default, because a page holds
    /// nobody up. Set it where replicas or disks are short.
    #[must_use]
    pub const fn rate(mut self, values_per_second: NonZeroU32) -> Self {
        self.pace.rate = Some(values_per_second);
        self
    }

    /// How long to wait, without any progress, for values that others hold locked: 30 s by default, longer than a
    /// transaction should hold a row. Zero goes over each store once.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.pace.patience = patience;
        self
    }

    /// How many failures of a store are kept with owner and cause: 100 by default, which show what is wrong. All are
    /// counted.
    #[must_use]
    pub const fn keep_failures(mut self, failures: usize) -> Self {
        self.pace.kept_failures = failures;
        self
    }

    /// Opens and seals everything, writes nothing, and reports what it would have done. It takes no locks and needs no
    /// privilege to write.
    #[must_use]
    pub const fn dry_run(mut self) -> Self {
        self.mode = Mode::Look;
        self
    }

    /// Calls this after each page. The same goes out as an event of `tracing`, at the level debug.
    #[must_use]
    pub fn on_progress(mut self, listener: impl FnMut(&Progress<'_>) + Send + 'static) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// Goes over all stores, one after the other.
    ///
    /// A value that fails is reported and keeps nothing else from being done. That values failed, or were held by others
    /// until patience ran out, or that nothing was found, is an error all the same, so that a program which passes it on
    /// exits with a failure.
    ///
    /// # Errors
    /// [`RotationError`], with the report of what was done.
    ///
    /// # Cancel safety
    /// Safe: every value is as it was or sealed anew. Run it again to go on.
    pub async fn run(&mut self) -> Result<Report, RotationError> {
        if self.stores.is_empty() {
            return Err(RotationError::NoStore);
        }
        self.work.check().map_err(RotationError::Keyring)?;
        let mut report = Report {
            stores: Vec::new(),
            dry_run: self.mode == Mode::Look,
        };
        let mode = match self.mode {
            Mode::Look if cfg!(biplane_mutant = "dry_runs_write") => Mode::Change,
            mode => mode,
        };
        let mut empty = Vec::new();
        for (store, expectation) in &self.stores {
            let store: &dyn SealedStore = &**store;
            let mut entry = StoreReport::new(store.name(), 0, 0);
            let outcome = async {
                let (found, wanted) = self.work.survey(store).await?;
                (entry.found, entry.wanted) = (found, wanted);
                let work = &self.work;
                let mut run = Run {
                    store,
                    wanted: work.wanted(),
                    mode,
                    pace: &self.pace,
                    judge: &mut |value| work.rewrite(value).map(Decision::Replace),
                    listener: self.listener.as_mut(),
                };
                run.work_off(&mut entry).await.map_err(Stop::Store)
            }
            .await;
            let name = Arc::clone(&entry.store);
            say(&entry);
            if entry.found == 0 && *expectation == Expectation::Values && outcome.is_ok() {
                empty.push(Arc::clone(&name));
            }
            report.stores.push(entry);
            match outcome {
                Ok(()) => {}
                Err(Stop::Stale(key)) => return Err(RotationError::StaleKeyring(key)),
                Err(Stop::Store(source)) => {
                    return Err(RotationError::Store {
                        store: name,
                        source,
                        report: Box::new(report),
                    });
                }
            }
        }
        if cfg!(biplane_mutant = "nothing_found_is_success") {
            empty.clear();
        }
        if report.failed() > 0 || report.busy() > 0 {
            Err(RotationError::Incomplete(Box::new(report)))
        } else if !empty.is_empty() {
            Err(RotationError::NothingFound {
                stores: empty,
                report: Box::new(report),
            })
        } else {
            Ok(report)
        }
    }
}

impl<W: fmt::Debug> fmt::Debug for Job<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("work", &self.work)
            .field("stores", &self.stores)
            .field("pace", &self.pace)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

mod sealed {
    use async_trait::async_trait;

    use super::{KeyringError, SealedStore, SealedText, Stop, StoredValue, Wanted};

    #[async_trait]
    pub trait Rewrite: Send + Sync {
        /// Whether the job may begin at all.
        fn check(&self) -> Result<(), KeyringError>;

        /// Which values need it.
        fn wanted(&self) -> Wanted;

        /// How many values there are that it is about, and how many need it.
        async fn survey(&self, store: &dyn SealedStore) -> Result<(u64, u64), Stop>;

        /// The value that is to stand in its place.
        fn rewrite(&self, value: &StoredValue<'_>) -> Result<SealedText, KeyringError>;
    }
}

/// Why a job cannot go on.
#[derive(Debug)]
pub enum Stop {
    /// The store failed.
    Store(crate::error::Error),
    /// The keyring is older than what it is to work on.
    Stale(crate::keyring::KeyId),
}

#[async_trait::async_trait]
impl sealed::Rewrite for Resealing {
    fn check(&self) -> Result<(), KeyringError> {
        Ok(())
    }

    fn wanted(&self) -> Wanted {
        Wanted::NotUnder(self.keyring.primary())
    }

    async fn survey(&self, store: &dyn SealedStore) -> Result<(u64, u64), Stop> {
        let census: Census = store.census().await.map_err(Stop::Store)?;
        let pending = |key| self.keyring.state(key) == Some(KeyState::Pending);
        match census.keys().find(|(key, _)| pending(*key)) {
            Some((key, _)) => Err(Stop::Stale(key)),
            None => Ok((
                census.total(),
                census.total() - census.under(self.keyring.primary()),
            )),
        }
    }

    fn rewrite(&self, value: &StoredValue<'_>) -> Result<SealedText, KeyringError> {
        let context = value.context()?;
        let plaintext = self.keyring.open_text(&context, value.text())?;
        seal_verified(&self.keyring, &context, &plaintext, Keyring::seal)
    }
}

#[async_trait::async_trait]
impl sealed::Rewrite for Importing {
    fn check(&self) -> Result<(), KeyringError> {
        self.legacy.check_policy(LegacyUse::Import)
    }

    fn wanted(&self) -> Wanted {
        Wanted::ToImport
    }

    async fn survey(&self, store: &dyn SealedStore) -> Result<(u64, u64), Stop> {
        let wanted = store.count(Wanted::ToImport).await.map_err(Stop::Store)?;
        let census = store.census().await.map_err(Stop::Store)?;
        let imported = census.total() - census.unsealed();
        Ok((imported + wanted, wanted))
    }

    fn rewrite(&self, value: &StoredValue<'_>) -> Result<SealedText, KeyringError> {
        let context = value.context()?;
        let plaintext = self.legacy.open(value.text(), LegacyUse::Import)?;
        seal_verified(&self.keyring, &context, &plaintext, Keyring::seal)
    }
}

/// Seals, and opens again from the text that is about to take the only copy's place.
fn seal_verified(
    keyring: &Keyring,
    context: &Context<'_>,
    plaintext: &SecretBytes,
    seal: impl FnOnce(&Keyring, &Context<'_>, &[u8]) -> Result<Sealed, KeyringError>,
) -> Result<SealedText, KeyringError> {
    let text = seal(keyring, context, plaintext.expose_secret())?.to_text();
    if cfg!(biplane_mutant = "seals_are_not_verified") {
        return Ok(text);
    }
    let opened = keyring.open_text(context, text.as_str())?;
    if opened.expose_secret() == plaintext.expose_secret() {
        Ok(text)
    } else {
        Err(KeyringError::Authentication(keyring.primary()))
    }
}

fn say(entry: &StoreReport) {
    let StoreReport {
        store,
        found,
        wanted,
        done,
        overtaken,
        failed,
        busy,
        ..
    } = entry;
    if *failed > 0 || *busy > 0 {
        tracing::warn!(%store, found, wanted, done, overtaken, failed, busy, "sealed values are left to do");
    } else {
        tracing::info!(%store, found, wanted, done, overtaken, "a store of sealed values is done");
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretBox;

    use super::*;
    use crate::keyring::KeyMaterial;

    fn keyring() -> Keyring {
        Keyring::builder()
            .key(KeyMaterial::generate().unwrap(), KeyState::Primary)
            .build()
            .unwrap()
    }

    fn plaintext() -> SecretBytes {
        SecretBox::new(b"the only copy".to_vec().into_boxed_slice())
    }

    #[test]
    fn a_seal_that_does_not_open_again_is_never_written() {
        let keys = keyring();
        let context = Context::new("setting", "acme", "token").unwrap();
        let damaged = |keyring: &Keyring, context: &Context<'_>, plaintext: &[u8]| {
            let sealed = keyring.seal(context, plaintext)?;
            let mut bytes = sealed.as_bytes().to_vec();
            bytes[40] ^= 1;
            Sealed::from_bytes(&bytes)
        };
        let refused = seal_verified(&keys, &context, &plaintext(), damaged).unwrap_err();
        assert_eq!(refused, KeyringError::Authentication(keys.primary()));

        let for_another = |keyring: &Keyring, _: &Context<'_>, plaintext: &[u8]| {
            keyring.seal(&Context::new("setting", "globex", "token")?, plaintext)
        };
        let refused = seal_verified(&keys, &context, &plaintext(), for_another).unwrap_err();
        assert_eq!(refused, KeyringError::Authentication(keys.primary()));
    }

    #[test]
    fn a_seal_of_something_else_is_never_written() {
        let keys = keyring();
        let context = Context::new("setting", "acme", "token").unwrap();
        let truncated = |keyring: &Keyring, context: &Context<'_>, plaintext: &[u8]| {
            keyring.seal(context, &plaintext[..plaintext.len() - 1])
        };
        let refused = seal_verified(&keys, &context, &plaintext(), truncated).unwrap_err();
        assert_eq!(refused, KeyringError::Authentication(keys.primary()));
    }
}
