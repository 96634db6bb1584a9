//! What biplane's own tests use, and yours may: throwaway Postgres servers, conformance suites, faults on demand, and
//! waiting without sleeping for luck.
//!
//! With the features `testing` and `postgres`, ideally in `[dev-dependencies]` alone:
//!
//! - [`conformance`]: what every backend of the repository traits must do, as tests that you run on yours.
//! - [`faulty`]: a control plane that is slow, down or wrong when a test tells it to.
//! - [`proxy`]: a TCP proxy in front of any server that delays, stalls, swallows, throttles, cuts, half-closes, resets and
//!   refuses connections when a test tells it to.
//! - [`MemoryKeyService`]: a key service that wraps keys in memory, and is slow, down or wrong when a test tells it to.
//! - `postgres` (feature `postgres`, Unix alone): Postgres clusters and PgBouncers that a test starts for itself, stops,
//!   kills, pauses and starts again, and that are gone with their files when the test is over, however it ends.
//! - [`MemoryStack`]: control plane, router and data in memory, in one call, on a clock that the test moves.
//! - `tenant_db` (feature `postgres`): a handle on a database that a test already has, as under `#[sqlx::test]`.
//! - [`wait`]: wait for a condition, with a deadline.
//!
//! Without a Postgres server on the machine such tests fail and say what to install. None is skipped: a test that
//! did not run has not passed.

pub mod conformance;
pub mod faulty;
#[cfg(feature = "postgres")]
mod handle;
mod key_service;
mod port;
#[cfg(all(feature = "postgres", unix))]
pub mod postgres;
pub mod proxy;
mod stack;
pub mod wait;

#[cfg(feature = "postgres")]
pub use handle::tenant_db;
pub use key_service::{KeyServiceFault, MemoryKeyService};
pub use stack::MemoryStack;
