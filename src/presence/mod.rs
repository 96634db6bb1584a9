//! Presence: a process says that it lives and which keys it has, and an operator asks who lacks one.
//!
//! - [`Heartbeat`]: a task that tells the control plane, every few seconds, and when something changed.
//! - [`missing`]: who has a key and who does not, which is what promoting it depends on: sealed under a key that a process
//!   has not loaded, a value does not open there.
//! - [`wait_applied`]: waits until a change of the control plane acts in every live process.
//!
//! Presence is no lease. A process that cannot tell the control plane goes on working, and so does one that has been
//! silent for long; what follows from silence is for whoever asks.
//!
//! ```
//! use std::time::Duration;
//!
//! use biplane::{
//!     keyring::{KeyMaterial, KeyState, Keyring, LiveKeyring},
//!     presence::{self, Heartbeat},
//!     repository::MemoryControl,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = KeyMaterial::generate()?;
//! let id = key.id();
//! let keyring = LiveKeyring::new(Keyring::builder().key(key, KeyState::Primary).build()?);
//!
//! let control = MemoryControl::new();                    // or PgTenants::new(…)
//! let heartbeat = Heartbeat::builder(control.clone(), "notes")
//!     .keyring(keyring)
//!     .start()?;
//! heartbeat.beat_now().await?;
//!
//! let distribution = presence::missing(&control, id, presence::PRESUMED_DEAD).await?;
//! assert!(distribution.is_everywhere());
//!
//! heartbeat.close(Duration::from_secs(5)).await?;
//! # Ok(())
//! # }
//! ```

mod applied;
mod distribution;
mod heartbeat;

pub use applied::{Lagging, NotApplied, WaitError, wait_applied};
pub use distribution::{Distribution, Holder, NotEverywhere, PRESUMED_DEAD, missing};
pub use heartbeat::{Heartbeat, HeartbeatBuilder};
