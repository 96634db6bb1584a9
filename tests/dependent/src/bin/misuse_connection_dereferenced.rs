//! Refused: `Conn<DataPlane>` cannot be dereferenced

use biplane::plane::*;

pub async fn run(conn: &mut TenantConn) -> sqlx::Result<()> {
    let _: &mut sqlx::PgConnection = &mut **conn;
    Ok(())
}

fn main() {}
