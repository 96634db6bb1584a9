//! Refused: `&Db<DataPlane>` does not reach the control plane

use biplane::plane::*;

pub async fn run(db: &TenantDb) -> sqlx::Result<()> {
    dependent::plans(db).await?;
    Ok(())
}

fn main() {}
