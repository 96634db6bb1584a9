//! The twin of `misuse_connection_dereferenced`, which compiles.

use biplane::plane::*;

pub async fn run(conn: &mut TenantConn) -> sqlx::Result<()> {
    let _: &mut sqlx::PgConnection = conn.dangerous_connection()?;
    Ok(())
}

fn main() {}
