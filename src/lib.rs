//! Ask for a tenant, get a handle on that tenant's database, and never on anybody else's.
//!
//! biplane is the part of a multi-tenant service that knows where each tenant's data lives. The *control plane*, a
//! Postgres database, knows the tenants and holds their credentials, sealed; the *data plane* is any number of Postgres
//! servers with a database per tenant. A service embeds biplane to live with that split.
//!
//! ```
//! use biplane::{Biplane, plane::TenantExecutor, tenant::Slug};
//!
//! async fn notes(db: impl TenantExecutor<'_>) -> sqlx::Result<Vec<(i64, String)>> {
//!     sqlx::query_as("select id, text from note").fetch_all(db).await
//! }
//!
//! async fn handle_request(biplane: &Biplane, host: &str) -> Result<usize, Box<dyn std::error::Error>> {
//!     let slug = Slug::parse(host.split('.').next().unwrap_or_default())?;
//!     let db = biplane.route(&slug).await?;
//!     Ok(notes(&db).await?.len())
//! }
//! ```
//!
//! # Where to begin
//! - [`TenantRouter`] is the trait at the centre, with its contract; [`Biplane`] is what a service holds.
//! - [`plane`] has the handles: [`TenantDb`](plane::TenantDb), transactions, and the executors that keep the two planes
//!   apart.
//! - [`repository`] has the traits of the control plane, and their backends in memory and on Postgres. A team with a
//!   `tenants` table of its own implements [`TenantRepository`](repository::TenantRepository).
//! - [`keyring`] seals the credentials, and [`rotation`] brings stored values under another key.
//! - [`presence`] tells the control plane which processes live, and which keys they have.
//! - [`settings`] reads both planes from the environment.
//! - [`connector`] and [`pool`] make connections; [`breaker`] tells what they leave alone for now.
//! - [`manual`] has pages to read, such as the [format of sealed values](manual::keyring_format).
//! - `testing` (feature `testing`) is what biplane's own tests use, and yours may.
//!
//! Decide on [`ErrorKind`](error::ErrorKind), which [`Error::of`](error::Error::of) also finds inside an sqlx error.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod breaker;
pub mod connector;
pub mod error;
pub mod keyring;
pub mod manual;
#[cfg(feature = "postgres")]
pub mod plane;
#[cfg(feature = "postgres")]
pub mod pool;
pub mod presence;
pub mod repository;
pub mod rotation;
pub mod router;
pub mod secret;
pub mod settings;
pub mod tenant;
#[cfg(feature = "testing")]
pub mod testing;

pub use router::{Biplane, TenantRouter};

/// The programs of the README, compiled and run.
#[cfg(all(doctest, feature = "postgres", feature = "testing"))]
#[doc = include_str!("../README.md")]
struct Readme;
