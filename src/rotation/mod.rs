//! Bringing stored values under another key, and out of an older system; and replacing logins ([`LoginRotation`]).
//!
//! A key is rotated while everything runs. Each step waits for the one before:
//!
//! 1. Add the new key as *pending* to the keyring of every process.
//! 2. When every live process has it, make it *primary*, and the old one *decrypt-only*.
//! 3. [`Reseal`] the stored values. It may be stopped, run again, and run several times at once.
//! 4. [`doctor`] looks whether everything opens.
//! 5. [`unused`] proves that no value is left under the old key and nobody opens any, which disabling it asks for.
//! 6. Disable the old key, which can be undone, and after a while destroy it.
//!
//! What an older system encrypted comes in by [`Import`].
//!
//! Values are kept in a [`SealedStore`]: [`StoredCredentials`] are the control plane's own, `PgColumns` is a table of
//! yours, [`MemoryStore`] is for tests.
//!
//! ```no_run
//! use std::sync::Arc;
//! use biplane::{
//!     keyring::{KeyId, Keyring, Unused},
//!     plane::ControlDb,
//!     repository::{Actor, Instances, PgTenantAdmin},
//!     rotation::{self, PgColumns, Reseal, StoredCredentials, doctor},
//! };
//!
//! # async fn rotate(
//! #     control: ControlDb, instances: &dyn Instances, keyring: Keyring, old: KeyId,
//! # ) -> Result<Unused, Box<dyn std::error::Error>> {
//! let by = Actor::new("ann", "yearly rotation of keys");
//! let credentials = Arc::new(StoredCredentials::new(PgTenantAdmin::new(control.clone()), by));
//! let integrations = Arc::new(
//!     PgColumns::new(control, "public", "integration")
//!         .purpose("integration")
//!         .column("stripe_key", "stripe.key"),
//! );
//! let report = Reseal::new(keyring.clone())
//!     .store(Arc::clone(&credentials))
//!     .store(Arc::clone(&integrations))
//!     .on_progress(|progress| println!("{} of {}", progress.done, progress.wanted))
//!     .run()
//!     .await?;
//! println!("{report}{}", doctor(&keyring, &[&credentials, &integrations]).await?);
//!
//! let evidence =
//!     rotation::unused(old, &[&credentials, &integrations], Some(instances), rotation::QUIET_FOR).await?;
//! # Ok(evidence)
//! # }
//! ```

mod credentials;
mod doctor;
mod engine;
mod job;
mod login;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
mod report;
mod store;
mod unused;

pub use credentials::StoredCredentials;
pub use doctor::{Diagnosis, KeyInUse, StoreDiagnosis, doctor};
pub use job::{Import, Importing, Job, Reseal, Resealing, Work};
pub use login::{Checked, LoginRotation, LoginRotationError, Prepared, Promoted, RotationTools};
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::PgColumns;
pub use report::{Failure, Progress, Report, RotationError, StoreReport};
pub use store::{Census, Cursor, Decide, Decision, Mode, SealedStore, StoredValue, Visit, Visited, Wanted};
pub use unused::{KeyUser, QUIET_FOR, StillUsed, Use, unused};
