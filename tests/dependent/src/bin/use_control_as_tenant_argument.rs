//! The twin of `misuse_control_as_tenant_argument`, which compiles.

use biplane::plane::*;

pub async fn run(db: &TenantDb) -> sqlx::Result<()> {
    dependent::count_notes(db).await?;
    Ok(())
}

fn main() {}
