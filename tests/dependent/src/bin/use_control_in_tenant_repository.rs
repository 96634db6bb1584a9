//! The twin of `misuse_control_in_tenant_repository`, which compiles.

use biplane::plane::*;

pub async fn run(db: TenantDb) -> sqlx::Result<()> {
    dependent::Notes::new(db).all().await?;
    Ok(())
}

fn main() {}
