//! Refused: expected `Db<DataPlane>`, found `Db<ControlPlane>`

use biplane::plane::*;

pub async fn run(db: ControlDb) -> sqlx::Result<()> {
    dependent::Notes::new(db).all().await?;
    Ok(())
}

fn main() {}
