//! Logins that expire, from an issuer whose server takes them at their word.

use std::{
    collections::{HashMap, HashSet},
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
    tenant::{CredentialVersion, DataSource, DataSourceId, Role},
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
    /// Where another life is meant.
    lives: Mutex<HashMap<DataSourceId, Duration>>,
    fails: AtomicBool,
    /// Whose logins are never issued.
    hangs: Mutex<HashSet<DataSourceId>>,
    /// How many of each.
    issued_for: Mutex<HashMap<DataSourceId, usize>>,
    /// When each was issued, and when it expires.
    issued: Mutex<Vec<(String, SystemTime, SystemTime)>>,
}

impl Issuer {
    fn new(cluster: &'static Cluster, life: Duration) -> Self {
        Self(Arc::new(Inner {
            cluster,
            life,
            lives: Mutex::default(),
            hangs: Mutex::default(),
            issued_for: Mutex::default(),
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

    async fn login(&self, source: &DataSource, _: Role) -> Result<Login, Error> {
        if self.0.fails.load(Relaxed) {
            return Err(ErrorKind::CredentialUnreadable { key: None }.into());
        }
        let hangs = self.0.hangs.lock().unwrap().contains(&source.id);
        if hangs {
            std::future::pending::<()>().await;
        }
        let life = self.0.lives.lock().unwrap().get(&source.id).copied();
        let life = life.unwrap_or(self.0.life);
        let user = format!("i{}", uuid::Uuid::new_v4().simple());
        let password = SecretString::from("issued");
        self.0.cluster.create_role(&user, &password, &[]).await.unwrap();
        let now = SystemTime::now();
        let expires_at = now + life;
        let since = expires_at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let until = format!(
            "do $$ begin execute format('alter role {user} valid until %L', to_timestamp({since})); end $$"
        );
        self.0.cluster.sql("postgres", &until).await.unwrap();
        *self.0.issued_for.lock().unwrap().entry(source.id).or_default() += 1;
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

/// The one that hangs is due first, and hangs until the other login has expired.
#[tokio::test]
async fn an_issuer_that_hangs_keeps_no_other_login_from_being_renewed() {
    let world = World::new(shared().await);
    let (hangs, other) = (world.tenant().await, world.tenant().await);
    let issuer = Issuer::new(world.cluster, Duration::from_secs(16));
    let shorter = (hangs.source, Duration::from_secs(12));
    issuer.0.lives.lock().unwrap().extend([shorter]);
    let biplane = Biplane::postgres(world.control.clone(), issuer.clone())
        .pool(options(4))
        .build()
        .unwrap();
    for placed in [&hangs, &other] {
        user(&biplane.route(&placed.slug).await.unwrap()).await.unwrap();
    }
    issuer.0.hangs.lock().unwrap().insert(hangs.source);
    let issued_for = |source| issuer.0.issued_for.lock().unwrap().get(&source).copied();
    wait::until("the other is renewed", LIMIT, async || {
        issued_for(other.source) > Some(1)
    })
    .await
    .unwrap();
    assert_eq!(issued_for(hangs.source), Some(1), "it hung all the while");
}
