//! Refused: `&Db<ControlPlane>` does not reach a tenant's database

use biplane::plane::*;

pub async fn run(db: &ControlDb) -> sqlx::Result<()> {
    dependent::notes(db).await?;
    Ok(())
}

fn main() {}
