//! Refused: expected `Db<ControlPlane>`, found `Db<DataPlane>`

use biplane::plane::*;

pub async fn run(db: TenantDb) -> sqlx::Result<()> {
    dependent::Plans::new(db).all().await?;
    Ok(())
}

fn main() {}
