//! What the control plane keeps, behind small traits: read tenants, write tenants, follow changes, open credentials.
//!
//! A router needs [`TenantRepository`] alone, and a [`CredentialSource`] if its connector connects to anything. A team
//! with a `tenants` table of its own implements the former and runs the conformance suite of the `testing` feature on
//! it. Without a [`ChangeLog`] a routing change is noticed by time limits alone, without a [`ChangePush`] when the log is
//! next looked at, and without [`Instances`] nobody can
//! tell which processes have a key, so that promoting one needs a person's word.

mod admin;
mod changes;
mod credentials;
mod facts;
mod instances;
mod logins;
mod memory;
mod opening;
#[cfg(feature = "postgres")]
mod postgres;
mod push;
mod reseal;
mod rules;
mod tenants;

pub use admin::{Actor, AuditEntry, CredentialSlot, NewSource, NewTenant, SourceChange, TenantAdmin};
pub use changes::{Change, ChangeHead, ChangeKind, ChangeLog, Changes, Subject};
pub use credentials::{CredentialSource, DataServers, Login};
pub use instances::{Beat, Instance, InstanceKey, Instances, KeyReport};
pub use logins::MemoryCredentials;
pub use memory::MemoryControl;
pub use opening::open_credential;
#[cfg(feature = "postgres")]
pub use postgres::{ControlSchema, Grants, PgTenantAdmin, PgTenants};
pub use push::{ChangeHint, ChangeListener, ChangePush, ChangeSource};
pub use reseal::{CredentialPlace, CredentialStore, Reseal, ResealOutcome, SealedCredential};
pub use tenants::{Found, Page, PageItem, TenantRepository};
