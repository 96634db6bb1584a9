//! What every control plane must do, as tests that you run on yours.
//!
//! A backend of the traits in [`repository`](crate::repository) is right when it passes these. There is one function
//! for each behaviour, and a macro that makes one `#[tokio::test]` of each:
//!
//! - [`reading_conformance!`](crate::reading_conformance) for a
//!   [`TenantRepository`](crate::repository::TenantRepository) over tables of your own; implement [`ReadBackend`].
//! - [`repository_conformance!`](crate::repository_conformance) for a whole control plane that also writes, keeps a
//!   change log and knows who lives; implement [`Backend`] as well.
//! - [`push_conformance!`](crate::push_conformance) for a [`ChangePush`](crate::repository::ChangePush) beside it;
//!   implement [`PushBackend`] too.
//!
//! ```
//! # use std::{sync::Arc, time::Duration};
//! use biplane::{
//!     repository::{ChangeLog, CredentialStore, Instances, MemoryControl, TenantAdmin, TenantRepository},
//!     tenant::{TenantId, TenantRecord},
//!     testing::conformance::{Backend, ReadBackend, async_trait, seed_through},
//! };
//!
//! #[derive(Debug)]
//! struct Memory(MemoryControl);
//!
//! #[async_trait]
//! impl ReadBackend for Memory {
//!     fn tenants(&self) -> Arc<dyn TenantRepository> {
//!         Arc::new(self.0.clone())
//!     }
//!     async fn seed(&self, tenants: &[TenantRecord]) {
//!         seed_through(&self.0, tenants).await;
//!     }
//!     async fn spoil(&self, tenant: TenantId) {
//!         self.0.corrupt(tenant).expect("the tenant was seeded");
//!     }
//! }
//!
//! #[async_trait]
//! impl Backend for Memory {
//!     fn admin(&self) -> Arc<dyn TenantAdmin> {
//!         Arc::new(self.0.clone())
//!     }
//!     fn changes(&self) -> Arc<dyn ChangeLog> {
//!         Arc::new(self.0.clone())
//!     }
//!     fn credentials(&self) -> Arc<dyn CredentialStore> {
//!         Arc::new(self.0.clone())
//!     }
//!     fn instances(&self) -> Arc<dyn Instances> {
//!         Arc::new(self.0.clone())
//!     }
//!     async fn prune(&self, keep: Duration) {
//!         self.0.prune_changes(keep);
//!     }
//!     async fn pass(&self, time: Duration) {
//!         self.0.advance(time);
//!     }
//! }
//!
//! async fn start() -> Memory {
//!     Memory(MemoryControl::new())
//! }
//!
//! biplane::repository_conformance!(memory, start);
//! # fn main() {}
//! ```
//!
//! # Panics
//! A behaviour that does not hold panics with what was expected, as tests do.

mod backend;
pub mod changes;
pub mod concurrency;
pub mod credentials;
pub mod instances;
mod list;
pub mod names;
pub mod push;
pub mod reading;
pub mod sources;
mod support;
pub mod writing;

pub use async_trait::async_trait;
pub use backend::{Backend, PushBackend, ReadBackend, seed_through};
pub use support::{example_tenants, within_a_minute};
