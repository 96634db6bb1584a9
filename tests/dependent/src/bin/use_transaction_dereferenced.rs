//! The twin of `misuse_transaction_dereferenced`, which compiles.

use biplane::plane::*;

pub async fn run(tx: &mut TenantTx) -> sqlx::Result<()> {
    let _: &mut sqlx::PgConnection = tx.dangerous_connection();
    Ok(())
}

fn main() {}
