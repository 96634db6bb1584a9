//! Refused: `&mut Tx<ControlPlane>` does not reach a tenant's database

use biplane::plane::*;

pub async fn run(tx: &mut Tx<ControlPlane>) -> sqlx::Result<()> {
    dependent::notes(tx).await?;
    Ok(())
}

fn main() {}
