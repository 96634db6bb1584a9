//! Refused: `&mut Tx<DataPlane>` does not reach the control plane

use biplane::plane::*;

pub async fn run(tx: &mut TenantTx) -> sqlx::Result<()> {
    dependent::plans(tx).await?;
    Ok(())
}

fn main() {}
