//! Settings, names, passwords and roles.

use std::time::Duration;

use biplane::{
    secret::Credential,
    testing::postgres::{Authentication, Certificates, Cluster, ClusterError, PgBouncer, RoleAttribute},
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{ConnectOptions, postgres::PgConnectOptions};

use crate::{ask, ask_cluster, options};

#[tokio::test]
async fn a_setting_that_postgres_refuses_is_named_in_its_own_words() {
    let error = Cluster::builder()
        .setting("no_such_setting", "it's \\ odd")
        .start()
        .await
        .unwrap_err();
    let ClusterError::Start(log) = &error else {
        panic!("{error:?}");
    };
    assert!(log.as_str().contains("no_such_setting"), "{log}");
}

#[tokio::test]
async fn settings_reach_the_server() {
    let cluster = Cluster::builder()
        .max_connections(7)
        .setting("application_name", "it's a \\ test")
        .start()
        .await
        .unwrap();
    assert_eq!(
        ask_cluster(&cluster, "current_setting('max_connections')").await,
        "7"
    );
    let reset = "select reset_val from pg_settings where name = 'application_name'";
    let file = "select setting from pg_file_settings where name = 'application_name'";
    assert_ne!(ask_cluster(&cluster, reset).await, "");
    assert_eq!(ask_cluster(&cluster, file).await, "it's a \\ test");
    assert_eq!(ask_cluster(&cluster, "current_setting('fsync')").await, "off");
}

#[tokio::test]
async fn a_durable_cluster_writes_through() {
    let cluster = Cluster::builder().durable().start().await.unwrap();
    assert_eq!(ask_cluster(&cluster, "current_setting('fsync')").await, "on");
    assert_eq!(
        ask_cluster(&cluster, "current_setting('synchronous_commit')").await,
        "on"
    );
}

#[tokio::test]
async fn system_identifiers_differ_when_asked_for() {
    let own = Cluster::builder().own_system_identifier();
    let (one, two) = tokio::join!(own.clone().start(), own.start());
    let identifier = "select system_identifier from pg_control_system()";
    let one = ask_cluster(&one.unwrap(), identifier).await;
    assert_ne!(one, ask_cluster(&two.unwrap(), identifier).await);
}

#[tokio::test]
async fn names_and_passwords_may_hold_any_character() {
    let cluster = Cluster::start().await.unwrap();
    let odd = r#"a"b'c\d$$ é;--"#;
    cluster.create_database(odd).await.unwrap();
    let role = cluster
        .create_role(odd, &SecretString::from(odd), &[])
        .await
        .unwrap();
    let mut connection = cluster.connect_as(&role, odd).await.unwrap();
    assert_eq!(ask(&mut connection, "current_user").await.unwrap(), odd);
    assert_eq!(ask(&mut connection, "current_database()").await.unwrap(), odd);
    let url = cluster.url(odd, &role);
    let by_url: PgConnectOptions = url.expose_secret().parse().unwrap();
    let mut connection = by_url.connect().await.unwrap();
    assert_eq!(ask(&mut connection, "current_database()").await.unwrap(), odd);
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let cluster = Cluster::start().await.unwrap();
    let right = SecretString::from("right");
    cluster.create_role("app", &right, &[]).await.unwrap();
    let wrong = Credential::new("app", SecretString::from("wrong")).unwrap();
    let by_tcp = options(&cluster.endpoint(), "postgres", &wrong).connect().await;
    let by_tcp = by_tcp.unwrap_err();
    assert_eq!(by_tcp.as_database_error().unwrap().code().unwrap(), "28P01");
    assert!(cluster.connect_as(&wrong, "postgres").await.is_err());
}

#[tokio::test]
async fn a_trusting_cluster_asks_for_no_password() {
    let cluster = Cluster::builder()
        .authentication(Authentication::Trust)
        .start()
        .await
        .unwrap();
    let nobody = Credential::without_password("postgres").unwrap();
    let mut connection = options(&cluster.endpoint(), "postgres", &nobody)
        .connect()
        .await
        .unwrap();
    assert_eq!(ask(&mut connection, "current_user").await.unwrap(), "postgres");
}

#[tokio::test]
async fn roles_get_what_they_are_given_and_no_more() {
    let cluster = Cluster::start().await.unwrap();
    let password = SecretString::from("secret");
    cluster.create_role("plain", &password, &[]).await.unwrap();
    let given = [
        RoleAttribute::CreateDatabase,
        RoleAttribute::BypassRowSecurity,
        RoleAttribute::ConnectionLimit(3),
    ];
    cluster.create_role("given", &password, &given).await.unwrap();
    let attributes = |role: &str| {
        format!(
            "select concat_ws(' ', rolsuper, rolcreatedb, rolcreaterole, rolbypassrls, rolreplication, \
             rolconnlimit) from pg_roles where rolname = '{role}'"
        )
    };
    assert_eq!(ask_cluster(&cluster, &attributes("plain")).await, "f f f f f -1");
    assert_eq!(ask_cluster(&cluster, &attributes("given")).await, "f t f t f 3");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_starts_while_the_clock_is_paused() {
    let began = tokio::time::Instant::now();
    let cluster = Cluster::start().await.unwrap();
    cluster.restart().await.unwrap();
    cluster.kill().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn nothing_printed_holds_a_password() {
    let cluster = Cluster::start().await.unwrap();
    let superuser = cluster.superuser();
    let password = superuser.password().unwrap().expose_secret();
    let bouncer = PgBouncer::builder(&cluster);
    for printed in [
        format!("{cluster:?}"),
        format!("{bouncer:?}"),
        format!("{:?}", Cluster::builder()),
    ] {
        assert!(!printed.contains(password), "{printed}");
    }
}

#[tokio::test]
async fn a_cluster_that_insists_on_tls_refuses_plain_connections() {
    let certificates = Certificates::generate().unwrap();
    let cluster = Cluster::builder().tls_only(certificates).start().await.unwrap();
    let refused = options(&cluster.endpoint(), "postgres", &cluster.superuser())
        .connect()
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "28000");
    assert_eq!(ask_cluster(&cluster, "current_setting('ssl')").await, "on");
}
