//! Looking at every sealed value.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::keyring::{KeyId, KeyState, Keyring, KeyringError};

use super::{
    Decision, Failure, Mode, Report, RotationError, SealedStore, StoreReport, Wanted,
    engine::{Pace, Run},
    report::write_failures,
};

/// What [`doctor`] found. It prints itself for an operator: counts, key ids and owners, and no byte of any value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diagnosis {
    /// One entry for each store, in the order in which they were given.
    pub stores: Vec<StoreDiagnosis>,
}

/// What was found in one store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreDiagnosis {
    /// The name of the store.
    pub store: Arc<str>,
    /// How many values there are.
    pub values: u64,
    /// How many of them open.
    pub opened: u64,
    /// The keys that values say they are sealed under.
    pub keys: BTreeMap<KeyId, KeyInUse>,
    /// How many values are not sealed, or not in a version that this release knows. They are among the failed.
    pub unsealed: u64,
    /// How many values do not open.
    pub failed: u64,
    /// The first 100 of those.
    pub failures: Vec<Failure>,
}

/// How a key is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyInUse {
    /// What the keyring has it for; `None` when the keyring lacks it.
    pub state: Option<KeyState>,
    /// How many values are sealed under it.
    pub values: u64,
    /// How many of those do not open.
    pub failed: u64,
}

/// Opens every value of these stores with the keys of a keyring, and tells what does not open and whose it is. It writes
/// nothing and takes no locks.
///
/// Run it before a key is disabled, after a backup is restored, and whenever somebody has written by hand: a value that
/// was swapped with another tenant's looks right until it is opened.
///
/// ```
/// use biplane::keyring::{Context, KeyMaterial, KeyState, Keyring};
/// use biplane::rotation::{MemoryStore, doctor};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let keyring = Keyring::builder().key(KeyMaterial::generate()?, KeyState::Primary).build()?;
/// let store = MemoryStore::new("settings", "setting");
/// let of_acme = keyring.seal(&Context::new("setting", "acme", "token")?, b"secret")?;
/// store.insert("globex", "token", of_acme.to_text().as_str());
///
/// let diagnosis = doctor(&keyring, &[&store]).await?;
/// assert!(!diagnosis.is_healthy());
/// assert_eq!(&*diagnosis.stores[0].failures[0].owner, "globex");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`RotationError::Store`] when a store cannot be read. That values do not open is what it tells, and no error.
///
/// # Cancel safety
/// Safe: it only reads.
pub async fn doctor(keyring: &Keyring, stores: &[&dyn SealedStore]) -> Result<Diagnosis, RotationError> {
    let mut diagnosis = Diagnosis::default();
    for store in stores {
        let mut found = StoreDiagnosis::new(store.name());
        let mut report = StoreReport::new(store.name(), 0, 0);
        let outcome = Run {
            store: *store,
            wanted: Wanted::All,
            mode: Mode::Look,
            pace: &Pace::default(),
            judge: &mut |value| {
                let context = value.context();
                let outcome = context.and_then(|context| keyring.open_text(&context, value.text()).map(drop));
                found.count(keyring, value.key_id(), outcome.as_ref().err());
                outcome.map(|()| Decision::Keep)
            },
            listener: None,
        }
        .work_off(&mut report)
        .await;
        if let Err(source) = outcome {
            return Err(RotationError::Store {
                store: report.store,
                source,
                report: Box::new(Report::default()),
            });
        }
        (found.failed, found.failures) = (report.failed, report.failures);
        diagnosis.stores.push(found);
    }
    Ok(diagnosis)
}

impl Diagnosis {
    /// Whether every value opens.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.stores.iter().all(|store| store.failed == 0)
    }

    /// Keys that values are sealed under and that the keyring lacks.
    pub fn missing_keys(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.keys()
            .filter(|(_, key)| key.state.is_none())
            .map(|(id, _)| id)
    }

    /// Each key with its use, once for each store.
    fn keys(&self) -> impl Iterator<Item = (KeyId, KeyInUse)> + '_ {
        let stores = self.stores.iter();
        stores.flat_map(|store| store.keys.iter().map(|(id, key)| (*id, *key)))
    }
}

impl StoreDiagnosis {
    fn new(store: &str) -> Self {
        Self {
            store: store.into(),
            ..Self::default()
        }
    }

    fn count(&mut self, keyring: &Keyring, key: Option<KeyId>, error: Option<&KeyringError>) {
        self.values += 1;
        self.opened += u64::from(error.is_none());
        match key {
            Some(id) => {
                let entry = self.keys.entry(id).or_insert_with(|| KeyInUse {
                    state: keyring.state(id),
                    values: 0,
                    failed: 0,
                });
                entry.values += 1;
                entry.failed += u64::from(error.is_some());
            }
            None => self.unsealed += 1,
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for store in &self.stores {
            write!(f, "{store}")?;
        }
        Ok(())
    }
}

impl fmt::Display for StoreDiagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            store,
            values,
            opened,
            keys,
            unsealed,
            failed,
            failures,
        } = self;
        writeln!(f, "{store}: {values} values, {opened} open, {failed} do not")?;
        for (id, key) in keys {
            let KeyInUse {
                state,
                values,
                failed,
            } = key;
            match state {
                Some(state) => write!(f, "  key {id} ({state})")?,
                None => write!(f, "  key {id} (not in the keyring)")?,
            }
            match failed {
                0 => writeln!(f, ": {values} values")?,
                failed => writeln!(f, ": {values} values, of which {failed} do not open")?,
            }
        }
        if *unsealed > 0 {
            writeln!(f, "  not sealed: {unsealed} values")?;
        }
        write_failures(f, failures, *failed)
    }
}
