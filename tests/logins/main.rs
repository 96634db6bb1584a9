//! Logins that are replaced, change behind our back, or expire, while everybody works.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../data_plane/mod.rs"]
mod data_plane;
#[path = "../poolers/mod.rs"]
mod poolers;

mod behind_poolers;
mod drain;
mod expiry;
mod flow;
mod load;
mod next;
mod unused;

use biplane::{
    Biplane,
    keyring::{KeyMaterial, KeyState, Keyring},
    plane::TenantDb,
    pool::{BreakerOptions, PoolOptions},
    repository::{CredentialSlot, TenantAdmin},
    secret::Credential,
    tenant::{CredentialVersion, DataSource, Role, RoleCredentials},
};
use data_plane::{LIMIT, Placed, World, shared};
use secrecy::SecretString;

/// Tenants whose logins are sealed in the control plane.
struct Sealed {
    world: World<'static>,
    keyring: Keyring,
}

impl Sealed {
    async fn new() -> Self {
        let key = KeyMaterial::generate().unwrap();
        Self {
            world: World::new(shared().await),
            keyring: Keyring::builder().key(key, KeyState::Primary).build().unwrap(),
        }
    }

    /// A database role that may log in, and nothing more.
    async fn role(&self, password: &str) -> Credential {
        let name = format!("r{}", uuid::Uuid::new_v4().simple());
        let password = SecretString::from(password);
        self.world
            .cluster
            .create_role(&name, &password, &[])
            .await
            .unwrap();
        Credential::new(&name, password).unwrap()
    }

    async fn password(&self, user: &str, password: &str) -> Credential {
        self.sql(&format!("alter role {user} password '{password}'"))
            .await;
        login(user, password)
    }

    async fn sql(&self, sql: &str) {
        self.world.cluster.sql("postgres", sql).await.unwrap();
    }

    /// A tenant with this login.
    async fn tenant(&self, login: &Credential) -> Placed {
        let placed = self.world.tenant().await;
        self.store(&placed, CredentialSlot::Current, login).await;
        placed
    }

    async fn store(&self, placed: &Placed, slot: CredentialSlot, login: &Credential) -> CredentialVersion {
        let stored = self.stored(placed).await;
        let there = stored.as_ref().and_then(|stored| match slot {
            CredentialSlot::Next => stored.next.as_ref(),
            _ => Some(&stored.current),
        });
        let sealed = self
            .keyring
            .seal_credential(placed.source, Role::App, login)
            .unwrap();
        let (control, by) = (&self.world.control, &self.world.by);
        control
            .set_credential(
                by,
                placed.source,
                Role::App,
                slot,
                there.map(|there| there.version),
                sealed,
            )
            .await
            .unwrap()
    }

    async fn promote(&self, placed: &Placed) {
        let stored = self.stored(placed).await.unwrap();
        let next = stored.next.unwrap().version;
        let (control, by) = (&self.world.control, &self.world.by);
        control
            .promote_credential(by, placed.source, Role::App, stored.current.version, next)
            .await
            .unwrap();
    }

    async fn source(&self, placed: &Placed) -> DataSource {
        let source = self.world.control.source(&placed.source_name).await.unwrap();
        source.unwrap()
    }

    async fn stored(&self, placed: &Placed) -> Option<RoleCredentials> {
        self.source(placed).await.credentials.get(&Role::App).cloned()
    }

    fn biplane(&self, pool: PoolOptions) -> Biplane {
        Biplane::postgres(self.world.control.clone(), self.keyring.clone())
            .pool(patient(pool))
            .build()
            .unwrap()
    }

    /// Without a feed, so that what is found out is found out by who is rejected.
    fn unfed(&self, pool: PoolOptions, breakers: BreakerOptions) -> Biplane {
        Biplane::postgres(self.world.control.clone(), self.keyring.clone())
            .without_changes()
            .pool(patient(pool))
            .breakers(breakers)
            .build()
            .unwrap()
    }

    /// How many of them are in one database.
    async fn sessions_of_at(&self, user: &str, database: &str) -> i64 {
        let mut connection = self.world.cluster.connect("postgres").await.unwrap();
        sqlx::query_scalar("select count(*) from pg_stat_activity where usename = $1 and datname = $2")
            .bind(user)
            .bind(database)
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }

    /// How many sessions there are of a database role.
    async fn sessions_of(&self, user: &str) -> i64 {
        let mut connection = self.world.cluster.connect("postgres").await.unwrap();
        sqlx::query_scalar("select count(*) from pg_stat_activity where usename = $1")
            .bind(user)
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }
}

/// A machine that is busy with other tests does not keep anybody from the server.
const fn patient(pool: PoolOptions) -> PoolOptions {
    pool.connect_timeout(LIMIT).wait_timeout(LIMIT)
}

fn login(user: &str, password: &str) -> Credential {
    Credential::new(user, SecretString::from(password)).unwrap()
}

async fn user(db: &TenantDb) -> sqlx::Result<String> {
    sqlx::query_scalar("select current_user::text")
        .fetch_one(db)
        .await
}
