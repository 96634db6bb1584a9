//! The twin of `misuse_tenant_in_control_repository`, which compiles.

use biplane::plane::*;

pub async fn run(db: ControlDb) -> sqlx::Result<()> {
    dependent::Plans::new(db).all().await?;
    Ok(())
}

fn main() {}
