//! The twin of `misuse_untyped_pool_as_tenant`, which compiles.

use biplane::plane::*;

pub async fn run(pool: &sqlx::PgPool) -> sqlx::Result<()> {
    dependent::notes(dangerous_assume_tenant(pool)).await?;
    Ok(())
}

fn main() {}
