//! Refused: expected `&Db<DataPlane>`, found `&Db<ControlPlane>`

use biplane::plane::*;

pub async fn run(db: &ControlDb) -> sqlx::Result<()> {
    dependent::count_notes(db).await?;
    Ok(())
}

fn main() {}
