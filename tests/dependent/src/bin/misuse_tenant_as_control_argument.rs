//! Refused: expected `&Db<ControlPlane>`, found `&Db<DataPlane>`

use biplane::plane::*;

pub async fn run(db: &TenantDb) -> sqlx::Result<()> {
    dependent::count_plans(db).await?;
    Ok(())
}

fn main() {}
