//! Certificates of its own, and of others.

use biplane::{
    tenant::CaCertificate,
    testing::postgres::{Certificates, Cluster},
};
use secrecy::ExposeSecret;
use sqlx::{
    ConnectOptions,
    postgres::{PgConnectOptions, PgSslMode},
};

use crate::{ask, options};

async fn connect(cluster: &Cluster, mode: PgSslMode, ca: CaCertificate) -> Result<String, sqlx::Error> {
    let CaCertificate::Pem(ca) = ca else {
        panic!("generated certificates are text");
    };
    let mut connection = options(&cluster.endpoint(), "postgres", &cluster.superuser())
        .ssl_mode(mode)
        .ssl_root_cert_from_pem(ca.as_bytes().to_vec())
        .connect()
        .await?;
    ask(
        &mut connection,
        "select ssl from pg_stat_ssl where pid = pg_backend_pid()",
    )
    .await
}

#[tokio::test]
async fn its_own_authority_is_trusted_and_another_is_not() {
    let certificates = Certificates::generate().unwrap();
    let cluster = Cluster::builder()
        .tls_only(certificates.clone())
        .start()
        .await
        .unwrap();
    for mode in [PgSslMode::VerifyCa, PgSslMode::VerifyFull] {
        assert_eq!(connect(&cluster, mode, certificates.ca()).await.unwrap(), "true");
        let refused = connect(&cluster, mode, certificates.unrelated_ca())
            .await
            .unwrap_err();
        assert!(refused.as_database_error().is_none(), "{refused:?}");
    }
}

#[tokio::test]
async fn a_certificate_for_another_host_fails_full_verification_alone() {
    let certificates = Certificates::generate_for(&["elsewhere.example"]).unwrap();
    let cluster = Cluster::builder()
        .tls(certificates.clone())
        .start()
        .await
        .unwrap();
    assert_eq!(
        connect(&cluster, PgSslMode::VerifyCa, certificates.ca())
            .await
            .unwrap(),
        "true"
    );
    connect(&cluster, PgSslMode::VerifyFull, certificates.ca())
        .await
        .unwrap_err();
    assert_eq!(
        connect(&cluster, PgSslMode::Disable, certificates.ca())
            .await
            .unwrap(),
        "false"
    );
}

#[tokio::test]
async fn a_url_for_a_cluster_with_certificates_demands_them() {
    let certificates = Certificates::generate().unwrap();
    let cluster = Cluster::builder().tls_only(certificates).start().await.unwrap();
    let url = cluster.url("postgres", &cluster.superuser());
    let options: PgConnectOptions = url.expose_secret().parse().unwrap();
    assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
    options.connect().await.unwrap();
}
