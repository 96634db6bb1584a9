//! Refused: `&Pool<Postgres>` does not reach a tenant's database

use biplane::plane::*;

pub async fn run(pool: &sqlx::PgPool) -> sqlx::Result<()> {
    dependent::notes(pool).await?;
    Ok(())
}

fn main() {}
