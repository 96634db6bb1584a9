//! PgBouncer before a cluster.

use std::num::NonZeroU32;

use biplane::{
    secret::Credential,
    tenant::Pooler,
    testing::postgres::{BouncerAuth, Cluster, PgBouncer, PgBouncerVersion, PoolMode},
};
use secrecy::SecretString;
use sqlx::{ConnectOptions, Connection};

use crate::{ask, listening, options};

#[tokio::test]
async fn a_pgbouncer_in_transaction_mode_gives_many_clients_one_session() {
    let cluster = Cluster::start().await.unwrap();
    let role = cluster
        .create_role("app", &SecretString::from("s3cret \"quoted\""), &[])
        .await
        .unwrap();
    let bouncer = PgBouncer::builder(&cluster)
        .pool_size(NonZeroU32::MIN)
        .start()
        .await
        .unwrap();
    assert_eq!(
        bouncer.pooler(),
        Pooler::Transaction {
            max_prepared_statements: 0
        }
    );
    let options = options(&bouncer.endpoint(), "postgres", &role);
    let (mut one, mut two) = (options.connect().await.unwrap(), options.connect().await.unwrap());
    let first = ask(&mut one, "pg_backend_pid()").await.unwrap();
    assert_eq!(ask(&mut two, "pg_backend_pid()").await.unwrap(), first);
    assert_eq!(ask(&mut two, "current_user").await.unwrap(), "app");
}

#[tokio::test]
async fn a_pgbouncer_in_session_mode_gives_each_client_a_session() {
    let cluster = Cluster::start().await.unwrap();
    let bouncer = PgBouncer::builder(&cluster)
        .pool_mode(PoolMode::Session)
        .start()
        .await
        .unwrap();
    assert_eq!(bouncer.pooler(), Pooler::Session);
    let options = options(&bouncer.endpoint(), "postgres", &cluster.superuser());
    let (mut one, mut two) = (options.connect().await.unwrap(), options.connect().await.unwrap());
    let first = ask(&mut one, "pg_backend_pid()").await.unwrap();
    assert_ne!(ask(&mut two, "pg_backend_pid()").await.unwrap(), first);
}

#[tokio::test]
async fn a_pgbouncer_refuses_wrong_passwords_and_unknown_users() {
    let cluster = Cluster::start().await.unwrap();
    let role = cluster
        .create_role("app", &SecretString::from("right"), &[])
        .await
        .unwrap();
    let wrong = Credential::new("app", SecretString::from("wrong")).unwrap();
    let asking = PgBouncer::builder(&cluster).start().await.unwrap();
    assert!(
        options(&asking.endpoint(), "postgres", &role)
            .connect()
            .await
            .is_ok()
    );
    assert!(
        options(&asking.endpoint(), "postgres", &wrong)
            .connect()
            .await
            .is_err()
    );
    let knowing = PgBouncer::builder(&cluster)
        .auth(BouncerAuth::Known(vec![role.clone()]))
        .start()
        .await
        .unwrap();
    assert!(
        options(&knowing.endpoint(), "postgres", &role)
            .connect()
            .await
            .is_ok()
    );
    assert!(
        options(&knowing.endpoint(), "postgres", &wrong)
            .connect()
            .await
            .is_err()
    );
    assert!(
        options(&knowing.endpoint(), "postgres", &cluster.superuser())
            .connect()
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_trusting_pgbouncer_asks_for_no_password() {
    let cluster = Cluster::start().await.unwrap();
    let role = cluster
        .create_role("app", &SecretString::from("right"), &[])
        .await
        .unwrap();
    let bouncer = PgBouncer::builder(&cluster)
        .auth(BouncerAuth::Trust(vec![role]))
        .start()
        .await
        .unwrap();
    let bare = Credential::without_password("app").unwrap();
    let mut connection = options(&bouncer.endpoint(), "postgres", &bare)
        .connect()
        .await
        .unwrap();
    assert_eq!(ask(&mut connection, "current_user").await.unwrap(), "app");
}

#[tokio::test]
async fn a_killed_pgbouncer_comes_back_at_the_same_address() {
    let cluster = Cluster::start().await.unwrap();
    let bouncer = PgBouncer::builder(&cluster).start().await.unwrap();
    let endpoint = bouncer.endpoint();
    let options = options(&endpoint, "postgres", &cluster.superuser());
    let mut held = options.connect().await.unwrap();
    bouncer.kill().await.unwrap();
    assert!(!listening(&endpoint));
    assert!(held.ping().await.is_err());
    bouncer.start_again().await.unwrap();
    assert_eq!(bouncer.endpoint(), endpoint);
    options.connect().await.unwrap();
}

#[tokio::test]
async fn prepared_statements_need_a_newer_pgbouncer() {
    let cluster = Cluster::start().await.unwrap();
    let bouncer = PgBouncer::builder(&cluster)
        .max_prepared_statements(NonZeroU32::MIN)
        .start()
        .await
        .unwrap();
    assert!(bouncer.version() >= PgBouncerVersion::PREPARED_STATEMENTS);
    let max_prepared_statements = 1;
    assert_eq!(
        bouncer.pooler(),
        Pooler::Transaction {
            max_prepared_statements
        }
    );
    let none = PgBouncer::builder(&cluster).newer().start().await.unwrap();
    assert_eq!(none.version(), bouncer.version());
    let max_prepared_statements = 0;
    assert_eq!(
        none.pooler(),
        Pooler::Transaction {
            max_prepared_statements
        }
    );
}
