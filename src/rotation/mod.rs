//! Bringing stored values under another key, and out of an older system.
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
//! Values are kept in a [`SealedStore`]: `PgColumns` is a table of yours, [`MemoryStore`] is for tests.
//!
//! ```no_run
//! use biplane::{keyring::Keyring, plane::ControlDb, rotation::{PgColumns, Reseal, doctor}};
//! use std::sync::Arc;
//!
//! # async fn rotate(control: ControlDb, keyring: Keyring) -> Result<(), Box<dyn std::error::Error>> {
//! let integrations = Arc::new(
//!     PgColumns::new(control, "public", "integration")
//!         .purpose("integration")
//!         .column("stripe_key", "stripe.key"),
//! );
//! let report = Reseal::new(keyring.clone())
//!     .store(Arc::clone(&integrations))
//!     .on_progress(|progress| println!("{} of {}", progress.done, progress.wanted))
//!     .run()
//!     .await?;
//! println!("{report}{}", doctor(&keyring, &[&integrations]).await?);
//! # Ok(())
//! # }
//! ```

mod doctor;
mod engine;
mod job;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
mod report;
mod store;
mod unused;

pub use doctor::{Diagnosis, KeyInUse, StoreDiagnosis, doctor};
pub use job::{Import, Importing, Job, Reseal, Resealing, Work};
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::PgColumns;
pub use report::{Failure, Progress, Report, RotationError, StoreReport};
pub use store::{Census, Cursor, Decide, Decision, Mode, SealedStore, StoredValue, Visit, Visited, Wanted};
pub use unused::StillUsed;
