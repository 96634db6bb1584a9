//! What users of the throwaway servers rely on.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(
    clippy::print_stdout,
    reason = "one test talks to itself in another process, one prints a measurement"
)]

mod bouncer;
mod life;
mod made_to_order;
mod processes;
#[cfg(any(
    feature = "tls-rustls-ring-webpki",
    feature = "tls-rustls-ring-native-roots",
    feature = "tls-rustls-aws-lc-rs",
    feature = "tls-native-tls"
))]
mod tls;

use std::{net::TcpStream, time::Duration};

use biplane::{secret::Credential, tenant::Endpoint, testing::postgres::Cluster};
use secrecy::ExposeSecret;
use sqlx::{
    AssertSqlSafe, Executor, PgConnection, Row,
    postgres::{PgConnectOptions, PgSslMode},
};

/// Generous: these tests run beside many others on two cores.
const LIMIT: Duration = Duration::from_secs(60);

fn listening(endpoint: &Endpoint) -> bool {
    TcpStream::connect((&*endpoint.host, endpoint.port)).is_ok()
}

fn options(endpoint: &Endpoint, database: &str, who: &Credential) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&endpoint.host)
        .port(endpoint.port)
        .username(who.username())
        .password(who.password().map_or("", |password| password.expose_secret()))
        .database(database)
        .ssl_mode(PgSslMode::Disable)
}

/// By the simple protocol, which every mode of every pooler lets through.
async fn ask(connection: &mut PgConnection, sql: &str) -> Result<String, sqlx::Error> {
    let row = connection
        .fetch_one(sqlx::raw_sql(AssertSqlSafe(format!("select ({sql})::text"))))
        .await?;
    row.try_get(0)
}

async fn ask_cluster(cluster: &Cluster, sql: &str) -> String {
    let mut connection = cluster.connect("postgres").await.unwrap();
    ask(&mut connection, sql).await.unwrap()
}
