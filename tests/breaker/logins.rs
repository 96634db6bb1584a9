//! What a server says of a login or a database concerns that one alone, and is believed once the control plane has been
//! asked.

use biplane::{
    Biplane,
    error::ErrorKind,
    keyring::{KeyMaterial, KeyState, Keyring},
    pool::BreakerOptions,
    repository::{CredentialSlot, TenantAdmin},
    secret::Credential,
    tenant::{CredentialVersion, Role},
    testing::wait,
};
use secrecy::SecretString;
use sqlx::AssertSqlSafe;
use std::time::Duration;

use crate::{
    behind, behind_with, biplane,
    data_plane::{LIMIT, Placed, Wish, World, backend, options, shared},
    door::{Door, Mode},
    for_good, is_refused, kind,
};

fn password(text: &str) -> SecretString {
    SecretString::from(text)
}

#[tokio::test]
async fn a_wrong_password_closes_its_own_login_and_nothing_else() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    let wrong = Credential::new("postgres", password("wrong")).unwrap();
    let wish = Wish {
        credential: Some(wrong),
        ..Wish::default()
    };
    let locked_out = behind_with(&world, &[&door.endpoint], wish).await;
    let other = behind(&world, &door).await;
    let biplane = biplane(&world, options(4), for_good());
    let db = biplane.route(&locked_out.slug).await.unwrap();
    assert_eq!(kind(db.begin().await), ErrorKind::CredentialRejected);
    let came = door.came();
    for _ in 0..50 {
        assert!(is_refused(kind(db.begin().await)));
    }
    assert_eq!(
        door.came(),
        came,
        "a server that counts wrong passwords counts one"
    );
    backend(&biplane.route(&other.slug).await.unwrap()).await;
    assert_eq!(biplane.stats().connector.open_breakers, 1);
    let right = world.cluster.superuser();
    world.credentials.set(locked_out.source, Role::App, right);
    backend(&db).await;
}

#[tokio::test]
async fn a_database_that_is_missing_closes_nobody_else_out() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    let database = format!("late_{}", std::process::id());
    let wish = Wish {
        server: Some(door.to(world.cluster.server(&database))),
        ..Wish::default()
    };
    let late = world.tenant_on("late", &database, wish).await;
    let other = behind(&world, &door).await;
    let short = Duration::from_millis(20);
    let breakers = BreakerOptions::default().back_off(short, short * 4);
    let biplane = biplane(&world, options(4), breakers);
    let db = biplane.route(&late.slug).await.unwrap();
    assert_eq!(kind(db.begin().await), ErrorKind::DatabaseMissing);
    assert!(is_refused(kind(db.begin().await)));
    backend(&biplane.route(&other.slug).await.unwrap()).await;
    world.cluster.create_database(&database).await.unwrap();
    wait::until("it is found", LIMIT, async || db.begin().await.is_ok())
        .await
        .unwrap();
}

/// A tenant whose login is sealed in the control plane, and a router that reads it there.
struct Sealed<'a> {
    world: World<'a>,
    keyring: Keyring,
    placed: Placed,
    user: String,
    version: Option<CredentialVersion>,
}

impl Sealed<'_> {
    async fn new() -> Self {
        let world = World::new(shared().await);
        let user = format!("sealed_{}", uuid::Uuid::new_v4().simple());
        world
            .cluster
            .create_role(&user, &password("first"), &[])
            .await
            .unwrap();
        let placed = world.tenant().await;
        let key = KeyMaterial::generate().unwrap();
        let keyring = Keyring::builder().key(key, KeyState::Primary).build().unwrap();
        let mut sealed = Self {
            world,
            keyring,
            placed,
            user,
            version: None,
        };
        sealed.store("first").await;
        sealed
    }

    async fn store(&mut self, text: &str) {
        let login = Credential::new(self.user.as_str(), password(text)).unwrap();
        let text = self
            .keyring
            .seal_credential(self.placed.source, Role::App, &login)
            .unwrap();
        let stored = self
            .world
            .control
            .set_credential(
                &self.world.by,
                self.placed.source,
                Role::App,
                CredentialSlot::Current,
                self.version,
                text,
            )
            .await
            .unwrap();
        self.version = Some(stored);
    }

    /// Gives the role another password, and ends its sessions.
    async fn change_password(&self, to: &str) {
        let sql = format!("alter role {} password '{to}'", self.user);
        self.world.cluster.sql("postgres", &sql).await.unwrap();
        let mut watch = self.world.watch(&self.placed.database).await;
        watch.kill_sessions().await;
    }

    fn biplane(&self, breakers: BreakerOptions) -> Biplane {
        // Without a feed, so that what is found out is found out by who is rejected.
        Biplane::postgres(self.world.control.clone(), self.keyring.clone())
            .without_changes()
            .pool(options(4))
            .breakers(breakers)
            .build()
            .unwrap()
    }
}

#[tokio::test]
async fn a_new_password_is_found_by_the_first_who_is_rejected() {
    let mut sealed = Sealed::new().await;
    let biplane = sealed.biplane(for_good());
    let db = biplane.route(&sealed.placed.slug).await.unwrap();
    backend(&db).await;
    // Nobody tells this process, whose route is fresh.
    sealed.store("second").await;
    sealed.change_password("second").await;
    let loads = biplane.stats().loads;
    let callers = (0..8).map(async |_| db.begin().await.map(drop));
    for begun in futures_util::future::join_all(callers).await {
        begun.unwrap();
    }
    assert_eq!(
        biplane.stats().loads,
        loads + 1,
        "the control plane is asked once"
    );
    assert_eq!(biplane.stats().connector.open_breakers, 0);
}

#[tokio::test]
async fn a_password_changed_behind_our_back_heals_when_the_control_plane_has_it() {
    let mut sealed = Sealed::new().await;
    let short = Duration::from_millis(20);
    let biplane = sealed.biplane(BreakerOptions::default().back_off(short, short * 4));
    let db = biplane.route(&sealed.placed.slug).await.unwrap();
    backend(&db).await;
    sealed.change_password("second").await;
    assert_eq!(kind(db.begin().await), ErrorKind::CredentialRejected);
    assert_eq!(biplane.stats().connector.open_breakers, 1);
    sealed.store("second").await;
    wait::until("it is found", LIMIT, async || db.begin().await.is_ok())
        .await
        .unwrap();
    assert_eq!(biplane.stats().connector.open_breakers, 0);
}

#[tokio::test]
async fn many_who_are_rejected_ask_the_control_plane_once() {
    let sealed = Sealed::new().await;
    let biplane = sealed.biplane(for_good());
    let db = biplane.route(&sealed.placed.slug).await.unwrap();
    sealed.change_password("second").await;
    let loads = biplane.stats().loads;
    let refused = futures_util::future::join_all((0..50).map(|_| db.begin())).await;
    let mut rejected = 0;
    for one in refused {
        match kind(one) {
            ErrorKind::CredentialRejected => rejected += 1,
            kind => assert!(is_refused(kind), "{kind:?}"),
        }
    }
    assert_eq!(rejected, 1, "one hears it from the server");
    assert_eq!(biplane.stats().loads, loads + 1);
}

#[tokio::test]
async fn a_route_stays_known_when_the_control_plane_cannot_be_asked_about_a_rejection() {
    use biplane::testing::faulty::{Fault, FaultyRepository};

    let sealed = Sealed::new().await;
    let repository = std::sync::Arc::new(FaultyRepository::new(sealed.world.control.clone()));
    let short = Duration::from_millis(20);
    let biplane = Biplane::postgres(std::sync::Arc::clone(&repository), sealed.keyring.clone())
        .pool(options(4))
        .breakers(BreakerOptions::default().back_off(short, short * 4))
        .build()
        .unwrap();
    let db = biplane.route(&sealed.placed.slug).await.unwrap();
    repository.set(Fault::Unreachable);
    sealed.change_password("second").await;
    assert_eq!(kind(db.begin().await), ErrorKind::CredentialRejected);
    assert!(
        biplane.cached(&sealed.placed.slug).is_some(),
        "nothing is forgotten"
    );
    sealed.change_password("first").await;
    wait::until("the old login works again", LIMIT, async || {
        db.begin().await.is_ok()
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_server_that_dies_while_a_login_is_rejected_is_known_to_be_dead() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    door.set(Mode::Says("28P01"));
    let placed = behind(&world, &door).await;
    let short = Duration::from_millis(1);
    let breakers = BreakerOptions::default().back_off(short, short * 2);
    let biplane = biplane(&world, options(4), breakers);
    let db = biplane.route(&placed.slug).await.unwrap();
    assert_eq!(kind(db.begin().await), ErrorKind::CredentialRejected);
    door.set(Mode::Shut);
    wait::until("both are left alone", LIMIT, async || {
        drop(db.begin().await);
        biplane.stats().connector.open_breakers == 2
    })
    .await
    .unwrap();
    door.set(Mode::Through);
    wait::until("both are taken back", LIMIT, async || db.begin().await.is_ok())
        .await
        .unwrap();
    let _: i32 = sqlx::query_scalar(AssertSqlSafe("select 1"))
        .fetch_one(&db)
        .await
        .unwrap();
}
