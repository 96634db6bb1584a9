//! Refused: `Tx<DataPlane>` cannot be dereferenced

use biplane::plane::*;

pub async fn run(tx: &mut TenantTx) -> sqlx::Result<()> {
    let _: &mut sqlx::PgConnection = &mut **tx;
    Ok(())
}

fn main() {}
