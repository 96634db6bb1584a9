//! Refused: `&Db<DataPlane>: sqlx::Acquire<'_>` is not satisfied

use biplane::plane::*;

pub async fn run(db: &TenantDb) -> sqlx::Result<()> {
    sqlx::Acquire::begin(db).await?;
    Ok(())
}

fn main() {}
