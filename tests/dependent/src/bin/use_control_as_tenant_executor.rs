//! The twin of `misuse_control_as_tenant_executor`, which compiles.

use biplane::plane::*;

pub async fn run(db: &TenantDb) -> sqlx::Result<()> {
    dependent::notes(db).await?;
    Ok(())
}

fn main() {}
