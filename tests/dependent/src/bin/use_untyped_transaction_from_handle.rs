//! The twin of `misuse_untyped_transaction_from_handle`, which compiles.

use biplane::plane::*;

pub async fn run(conn: &mut TenantConn) -> sqlx::Result<()> {
    sqlx::Acquire::begin(conn).await?;
    Ok(())
}

fn main() {}
