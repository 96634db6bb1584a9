//! The control plane in the user's own Postgres, 13 or newer.

mod admin;
mod credentials;
mod failure;
mod grants;
mod instances;
mod rows;
mod schema;
mod tenants;

pub use admin::PgTenantAdmin;
pub use grants::Grants;
pub use schema::ControlSchema;
pub use tenants::PgTenants;
