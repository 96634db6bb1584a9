//! The twin of `misuse_tenant_as_control_executor`, which compiles.

use biplane::plane::*;

pub async fn run(db: &ControlDb) -> sqlx::Result<()> {
    dependent::plans(db).await?;
    Ok(())
}

fn main() {}
