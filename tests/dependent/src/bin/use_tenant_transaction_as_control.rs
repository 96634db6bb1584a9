//! The twin of `misuse_tenant_transaction_as_control`, which compiles.

use biplane::plane::*;

pub async fn run(tx: &mut Tx<ControlPlane>) -> sqlx::Result<()> {
    dependent::plans(tx).await?;
    Ok(())
}

fn main() {}
