//! The twin of `misuse_tenant_as_control_argument`, which compiles.

use biplane::plane::*;

pub async fn run(db: &ControlDb) -> sqlx::Result<()> {
    dependent::count_plans(db).await?;
    Ok(())
}

fn main() {}
