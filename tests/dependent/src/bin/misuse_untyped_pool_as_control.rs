//! Refused: `&Pool<Postgres>` does not reach the control plane

use biplane::plane::*;

pub async fn run(pool: &sqlx::PgPool) -> sqlx::Result<()> {
    dependent::plans(pool).await?;
    Ok(())
}

fn main() {}
