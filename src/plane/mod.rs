//! The two planes as types: a handle says which one it reaches, and the compiler keeps them apart.
//!
//! A [`Db`] is an sqlx [`Executor`](sqlx::Executor) by reference, a [`Tx`] by mutable reference, so plain sqlx works on
//! them and the plane stays known. Nothing here dereferences to a type of sqlx: the ways out and in have names that a
//! reviewer can search for, and all of them begin with `dangerous`.
//!
//! ```
//! use biplane::plane::{TenantDb, TenantExecutor};
//!
//! pub async fn notes(db: impl TenantExecutor<'_>) -> sqlx::Result<Vec<(i64, String)>> {
//!     sqlx::query_as("select id, text from note").fetch_all(db).await
//! }
//!
//! pub async fn add(db: &TenantDb, text: &str) -> sqlx::Result<()> {
//!     let mut tx = db.begin().await?;
//!     sqlx::query("insert into note (text) values ($1)").bind(text).execute(&mut tx).await?;
//!     tx.commit().await
//! }
//! ```

mod conn;
mod control;
mod dangerous;
mod data_schema;
mod db;
mod executor;
mod fence;
mod lease;
mod role_name;
mod row_security;
pub(crate) mod sqlstate;
mod statement;
mod tables;
mod tx;

use std::fmt::Debug;

pub use self::{
    conn::Conn,
    control::ControlOptions,
    dangerous::{Assumed, dangerous_assume_control, dangerous_assume_tenant},
    data_schema::{DataSchema, RoleTimeouts},
    db::Db,
    executor::{ControlExecutor, TenantExecutor},
    fence::{
        DrainOptions, Fence, Finding, Reconcile, ReconcileMode, Recorded, Residence, ResidenceState, Running,
    },
    role_name::{RoleName, RoleNameError},
    row_security::{KeyType, RowPolicy, RowSecurityGap, RowSecurityReport, TENANT_SETTING},
    tx::{IsolationLevel, Tx, TxOptions},
};
pub(crate) use crate::pool::Listening;
pub(crate) use lease::{Lease, Lent};

/// A plane: [`ControlPlane`] or [`DataPlane`], and nothing else.
pub trait Plane: sealed::Sealed + Debug + Send + Sync + 'static {}

/// Who the tenants are and where their data lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlPlane {}

/// Where the tenants' data lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPlane {}

impl Plane for ControlPlane {}
impl Plane for DataPlane {}

/// The control plane's database.
pub type ControlDb = Db<ControlPlane>;

/// One tenant's database.
pub type TenantDb = Db<DataPlane>;

/// A transaction in one tenant's database.
pub type TenantTx = Tx<DataPlane>;

/// A connection to one tenant's database, held for several statements.
pub type TenantConn = Conn<DataPlane>;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::ControlPlane {}
    impl Sealed for super::DataPlane {}
}
