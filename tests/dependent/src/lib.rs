//! Repositories of an application, one for each plane.

use biplane::plane::{ControlDb, ControlExecutor, TenantDb, TenantExecutor};

/// Notes live in the data plane.
#[derive(Clone, Debug)]
pub struct Notes {
    db: TenantDb,
}

impl Notes {
    pub fn new(db: TenantDb) -> Self {
        Self { db }
    }

    pub async fn all(&self) -> sqlx::Result<Vec<(i64, String)>> {
        notes(&self.db).await
    }
}

/// Plans live in the control plane.
#[derive(Clone, Debug)]
pub struct Plans {
    db: ControlDb,
}

impl Plans {
    pub fn new(db: ControlDb) -> Self {
        Self { db }
    }

    pub async fn all(&self) -> sqlx::Result<Vec<(i64, String)>> {
        plans(&self.db).await
    }
}

pub async fn notes(db: impl TenantExecutor<'_>) -> sqlx::Result<Vec<(i64, String)>> {
    sqlx::query_as("select id, text from note").fetch_all(db).await
}

pub async fn plans(db: impl ControlExecutor<'_>) -> sqlx::Result<Vec<(i64, String)>> {
    sqlx::query_as("select id, name from plan").fetch_all(db).await
}

pub async fn count_notes(db: &TenantDb) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from note").fetch_one(db).await
}

pub async fn count_plans(db: &ControlDb) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from plan").fetch_one(db).await
}
