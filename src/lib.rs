//! Ask for a tenant, get a handle on that tenant's database, and never on anybody else's.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod connector;
pub mod error;
pub mod keyring;
#[cfg(feature = "postgres")]
pub mod plane;
#[cfg(feature = "postgres")]
pub mod pool;
pub mod repository;
pub mod router;
pub mod secret;
pub mod settings;
pub mod tenant;
#[cfg(feature = "testing")]
pub mod testing;

pub use router::{Biplane, TenantRouter};
