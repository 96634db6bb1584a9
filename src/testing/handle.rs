//! A tenant's handle on a database that a test already has.

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use sqlx::{ConnectOptions, PgPool, postgres::PgSslMode};
use zeroize::Zeroizing;

use crate::{
    Biplane,
    error::{Error, ErrorKind},
    plane::TenantDb,
    repository::{Actor, MemoryControl, MemoryCredentials, NewSource, NewTenant, TenantAdmin},
    secret::Credential,
    tenant::{Endpoint, Location, Role, Server, Slug, TenantStatus, Tls, TlsMode},
};

/// A handle on the database of a pool, such as the one that `#[sqlx::test]` makes: for testing code that takes a
/// [`TenantDb`]. The tenant is active, named `test`, and connects with the pool's own login whatever the role.
///
/// ```no_run
/// # async fn add(_: &biplane::plane::TenantDb, _: &str) -> sqlx::Result<()> { Ok(()) }
/// // #[sqlx::test]
/// async fn a_note_is_stored(pool: sqlx::PgPool) -> sqlx::Result<()> {
///     let db = biplane::testing::tenant_db(&pool).await?;
///     add(&db, "hello").await
/// }
/// ```
///
/// # Errors
/// [`InvalidConfiguration`](ErrorKind::InvalidConfiguration) when the pool's options cannot be followed.
///
/// # Cancel safety
/// Safe.
pub async fn tenant_db(pool: &PgPool) -> Result<TenantDb, Error> {
    let (server, credential) = read_options(pool)?;
    let (control, credentials) = (MemoryControl::new(), MemoryCredentials::new());
    let by = Actor::new("test", "a handle on a given database");
    let source = control
        .create_source(&by, NewSource::new("test", Location::Server(server)))
        .await?;
    for role in Role::ALL {
        credentials.set(source.id, role, credential.clone());
    }
    let slug = Slug::parse("test").map_err(|_| ErrorKind::Internal)?;
    let tenant = control.create(&by, NewTenant::new(slug, source.id)).await?;
    control
        .set_status(&by, tenant.id, tenant.version, TenantStatus::Active)
        .await?;
    // The router is gone when this returns, and nothing changes.
    Biplane::postgres(control, credentials)
        .without_changes()
        .build()?
        .route(tenant.id)
        .await
}

fn read_options(pool: &PgPool) -> Result<(Server, Credential), Error> {
    let options = pool.connect_options();
    let invalid = |what: &'static str| Error::new(ErrorKind::InvalidConfiguration).detail(what);
    let database = options
        .get_database()
        .ok_or_else(|| invalid("the pool names no database"))?;
    let host = match options.get_socket() {
        Some(socket) => socket.to_string_lossy().into_owned(),
        None => options.get_host().to_owned(),
    };
    let mut server = Server::new(Endpoint::new(host, options.get_port()), database);
    server.tls = Tls::new(match options.get_ssl_mode() {
        PgSslMode::Disable | PgSslMode::Allow => TlsMode::Disable,
        PgSslMode::Prefer => TlsMode::Prefer,
        PgSslMode::Require => TlsMode::Require,
        PgSslMode::VerifyCa | PgSslMode::VerifyFull => {
            return Err(invalid(
                "a pool that verifies certificates cannot be followed; give it another TLS mode",
            ));
        }
    });
    // sqlx shows the password in the URL alone.
    let url = options.to_url_lossy();
    let username = options.get_username();
    let credential = match url.password() {
        Some(encoded) => {
            let decoded = Zeroizing::new(percent_decode_str(encoded).collect::<Vec<u8>>());
            let password =
                std::str::from_utf8(&decoded).map_err(|_| invalid("the pool's password is not UTF-8"))?;
            Credential::new(username, SecretString::from(password))
        }
        None => Credential::without_password(username),
    };
    let credential =
        credential.map_err(|error| invalid("the pool's login cannot be used").caused_by(error))?;
    Ok((server, credential))
}
