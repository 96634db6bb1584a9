//! Logins that expire, from an issuer whose server takes them at their word.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    repository::{CredentialSource, Login},
    tenant::{CredentialVersion, DataSource, Role},
    testing::{postgres::Cluster, wait},
};
use secrecy::SecretString;

use crate::{
    data_plane::{LIMIT, World, options, shared},
    login, user,
};

/// Issues database roles that the server lets in until they expire.
#[derive(Clone, Debug)]
struct Issuer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster: &'static Cluster,
    life: Duration,
    fails: AtomicBool,
    /// When each was issued, and when it expires.
    issued: Mutex<Vec<(String, SystemTime, SystemTime)>>,
}

impl Issuer {
    fn new(cluster: &'static Cluster, life: Duration) -> Self {
        Self(Arc::new(Inner {
            cluster,
            life,
            fails: AtomicBool::new(false),
            issued: Mutex::default(),
        }))
    }

    fn issued(&self) -> Vec<(String, SystemTime, SystemTime)> {
        self.0.issued.lock().unwrap().clone()
    }

    fn expiries(&self) -> HashMap<String, SystemTime> {
        let issued = self.issued().into_iter();
        issued.map(|(user, _, expires_at)| (user, expires_at)).collect()
    }
}

#[async_trait]
impl CredentialSource for Issuer {
    fn version(&self, _: &DataSource, _: Role) -> Result<CredentialVersion, Error> {
        Ok(CredentialVersion::FIRST)
    }

    async fn login(&self, _: &DataSource, _: Role) -> Result<Login, Error> {
        if self.0.fails.load(Relaxed) {
            return Err(ErrorKind::CredentialUnreadable { key: None }.into());
        }
        let user = format!("i{}", uuid::Uuid::new_v4().simple());
        let password = SecretString::from("issued");
        self.0.cluster.create_role(&user, &password, &[]).await.unwrap();
        let now = SystemTime::now();
        let expires_at = now + self.0.life;
        let since = expires_at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let until = format!(
            "do $$ begin execute format('alter role {user} valid until %L', to_timestamp({since})); end $$"
        );
        self.0.cluster.sql("postgres", &until).await.unwrap();
        let mut issued = self.0.issued.lock().unwrap();
        issued.push((user.clone(), now, expires_at));
        Ok(Login::new(login(&user, "issued")).expires_at(expires_at))
    }
}

#[tokio::test]
async fn a_login_that_expires_is_renewed_before_it_does_and_nobody_fails() {
    let world = World::new(shared().await);
    let placed = world.tenant().await;
    // It is renewed 5 s before its end at the latest, which a busy machine is not late by.
    let issuer = Issuer::new(world.cluster, Duration::from_secs(20));
    let biplane = Biplane::postgres(world.control.clone(), issuer.clone())
        .pool(options(4))
        .build()
        .unwrap();
    let db = biplane.route(&placed.slug).await.unwrap();
    user(&db).await.unwrap();
    wait::until("it was renewed twice", 2 * LIMIT, async || {
        let callers = (0..3).map(async |_| {
            let at = SystemTime::now();
            (user(&db).await.unwrap(), at)
        });
        let served = futures_util::future::join_all(callers).await;
        let expiries = issuer.expiries();
        for (user, at) in served {
            assert!(at < expiries[&user], "lent when its login had expired");
        }
        issuer.issued().len() > 2
    })
    .await
    .unwrap();
    for two in issuer.issued().windows(2) {
        assert!(two[1].1 < two[0].2, "renewed before it expired");
    }
}

#[tokio::test]
async fn an_issuer_that_fails_is_outlasted_by_the_old_login() {
    let world = World::new(shared().await);
    let placed = world.tenant().await;
    // What happens between the first attempt to renew it and its end has 7 s at least.
    let issuer = Issuer::new(world.cluster, Duration::from_secs(30));
    let biplane = Biplane::postgres(world.control.clone(), issuer.clone())
        .pool(options(8))
        .build()
        .unwrap();
    let db = biplane.route(&placed.slug).await.unwrap();
    let mut held = vec![db.acquire().await.unwrap()];
    issuer.0.fails.store(true, Relaxed);
    wait::until("it could not be renewed", LIMIT, async || {
        biplane.stats().connector.failed_renewals > 0
    })
    .await
    .unwrap();
    // A new connection, with the old login.
    held.push(db.acquire().await.unwrap());
    assert_eq!(issuer.issued().len(), 1);
    issuer.0.fails.store(false, Relaxed);
    wait::until("it is renewed", LIMIT, async || issuer.issued().len() > 1)
        .await
        .unwrap();
    let issued = issuer.issued();
    assert!(issued[1].1 < issued[0].2, "in time");
    drop(held);
    user(&db).await.unwrap();
}
