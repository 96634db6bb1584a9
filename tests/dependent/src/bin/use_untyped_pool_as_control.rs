//! The twin of `misuse_untyped_pool_as_control`, which compiles.

use biplane::plane::*;

pub async fn run(pool: &sqlx::PgPool) -> sqlx::Result<()> {
    dependent::plans(dangerous_assume_control(pool)).await?;
    Ok(())
}

fn main() {}
