//! The twin of `misuse_control_transaction_as_tenant`, which compiles.

use biplane::plane::*;

pub async fn run(tx: &mut TenantTx) -> sqlx::Result<()> {
    dependent::notes(tx).await?;
    Ok(())
}

fn main() {}
