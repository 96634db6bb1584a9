//! What becomes of connections that were made with a login which has been replaced.

use biplane::{
    Biplane,
    error::Error,
    plane::{DataSchema, RoleName, TenantDb},
    pool::PoolOptions,
    repository::{
        CredentialSlot::{self, Next},
        NewSource, TenantAdmin,
    },
    router::FeedOptions,
    secret::Credential,
    tenant::{DatabaseId, Isolation, Location, Slug, TenantId, TenantStatus},
    testing::wait,
};
use serde_json::json;
use std::time::Duration;

use crate::{
    Sealed,
    data_plane::{LIMIT, Placed, options},
    user,
};

/// A tenant whose login is going to be replaced.
struct Begun {
    sealed: Sealed,
    old: Credential,
    new: Credential,
    placed: Placed,
    biplane: Biplane,
    db: TenantDb,
}

async fn begin(pool: PoolOptions) -> Begun {
    let sealed = Sealed::new().await;
    let (old, new) = (sealed.role("old").await, sealed.role("new").await);
    let placed = sealed.tenant(&old).await;
    let biplane = sealed.biplane(pool);
    let db = biplane.route(&placed.slug).await.unwrap();
    Begun {
        sealed,
        old,
        new,
        placed,
        biplane,
        db,
    }
}

impl Begun {
    async fn replace_login(&self) {
        self.sealed.store(&self.placed, Next, &self.new).await;
        self.sealed.promote(&self.placed).await;
    }

    async fn sessions_of_old(&self) -> i64 {
        self.sealed.sessions_of(self.old.username()).await
    }
}

#[tokio::test]
async fn connections_at_rest_close_when_their_login_is_replaced_though_nobody_comes() {
    let it = begin(options(4)).await;
    let two = (it.db.acquire().await.unwrap(), it.db.acquire().await.unwrap());
    drop(two);
    assert_eq!(it.sessions_of_old().await, 2);
    it.replace_login().await;
    wait::until("they are closed", LIMIT, async || it.sessions_of_old().await == 0)
        .await
        .unwrap();
    assert_eq!(user(&it.db).await.unwrap(), it.new.username());
}

#[tokio::test]
async fn work_goes_on_with_the_old_login_and_is_counted_until_it_ends() {
    let it = begin(options(4)).await;
    let mut held = it.db.begin().await.unwrap();
    it.replace_login().await;
    wait::until("it is known", LIMIT, async || {
        it.biplane.stats().connector.outdated == 1
    })
    .await
    .unwrap();
    let at_work: String = sqlx::query_scalar("select current_user::text")
        .fetch_one(&mut held)
        .await
        .unwrap();
    assert_eq!(at_work, it.old.username());
    assert_eq!(user(&it.db).await.unwrap(), it.new.username());
    assert_eq!(it.biplane.stats().connector.outdated, 1);
    held.commit().await.unwrap();
    wait::until("it is over", LIMIT, async || {
        it.biplane.stats().connector.outdated == 0
    })
    .await
    .unwrap();
    assert_eq!(it.sessions_of_old().await, 0);
}

#[tokio::test]
async fn work_that_outlasts_the_drain_timeout_is_ended() {
    let mut pool = options(4);
    pool.drain_timeout = Duration::from_millis(100);
    let it = begin(pool).await;
    let mut held = it.db.begin().await.unwrap();
    it.replace_login().await;
    wait::until("it is ended", LIMIT, async || it.sessions_of_old().await == 0)
        .await
        .unwrap();
    sqlx::query("select 1").execute(&mut held).await.unwrap_err();
    drop(held);
    wait::until("nothing is left", LIMIT, async || {
        it.biplane.stats().connector.outdated == 0
    })
    .await
    .unwrap();
}

/// A fenced database without tenants, for whoever logs in with one of these.
async fn home(sealed: &Sealed, logins: [&Credential; 2]) -> (Placed, DatabaseId) {
    let world = &sealed.world;
    let name = format!("home{}", uuid::Uuid::new_v4().simple());
    world.cluster.create_database(&name).await.unwrap();
    let id = DatabaseId::new();
    let readers = logins.map(|login| RoleName::parse(login.username()).unwrap());
    let mut owner = world.cluster.connect(&name).await.unwrap();
    DataSchema::install(&mut owner, id, &readers).await.unwrap();
    let mut source = NewSource::new(name.as_str(), Location::Server(world.cluster.server(&name)));
    source.database_id = Some(id);
    let source = world.control.create_source(&world.by, source).await.unwrap().id;
    let home = Placed {
        id: TenantId::new(),
        slug: Slug::parse("nobody").unwrap(),
        source,
        source_name: name.clone(),
        database: name,
    };
    sealed.store(&home, CredentialSlot::Current, logins[0]).await;
    (home, id)
}

/// A tenant who shares it.
async fn lodger(sealed: &Sealed, home: &(Placed, DatabaseId), name: &str) -> (TenantId, Slug) {
    let (Placed { source, database, .. }, id) = home;
    let world = &sealed.world;
    let name = format!("{name}-{}", uuid::Uuid::new_v4().simple());
    let (tenant, slug) = world.tenant_at(&name, *source, Isolation::Row).await;
    let sql = format!(
        "insert into biplane.residence (tenant_id, epoch, state, isolation, database_id)
         values ('{tenant}', 1, 'open', 'row', '{id}')"
    );
    world.cluster.sql(database, &sql).await.unwrap();
    (tenant, slug)
}

/// Connections belong to a data source: who had them last may be gone, and nobody else need come.
#[tokio::test]
async fn connections_at_rest_close_whatever_became_of_the_tenant_who_waited_for_them() {
    for fate in ["suspended", "moved", "overridden"] {
        let sealed = Sealed::new().await;
        let world = &sealed.world;
        let (old, new) = (sealed.role("old").await, sealed.role("new").await);
        let shared = home(&sealed, [&old, &new]).await;
        let (elsewhere, _) = home(&sealed, [&old, &new]).await;
        let (last, of_last) = lodger(&sealed, &shared, "last").await;
        let (_, of_first) = lodger(&sealed, &shared, "first").await;
        let (_, of_another) = lodger(&sealed, &shared, "another").await;
        let desk = tempfile::tempdir().unwrap();
        let file = desk.path().join("overrides.json");
        let biplane = Biplane::postgres(world.control.clone(), sealed.keyring.clone())
            .pool(options(4))
            .feed(FeedOptions::default().interval(Duration::from_millis(50)))
            .overrides(&file)
            .build()
            .unwrap();
        let slug = of_last;
        let of_last = biplane.route(&slug).await.unwrap();
        let db = biplane.route(&of_first).await.unwrap();
        let _knows_of_it = biplane.route(&of_another).await.unwrap();
        let first = db.begin().await.unwrap();
        drop((of_last.begin().await.unwrap(), first));

        match fate {
            "suspended" => world.status(last, TenantStatus::Suspended).await,
            "moved" => {
                let version = world.record(last).await.version;
                let to = elsewhere.source;
                let moved = world.control.place(&world.by, last, version, to, Isolation::Row);
                moved.await.unwrap();
            }
            _ => {
                let tenants = json!([{ "tenant": last, "source": elsewhere.source_name }]);
                let text = json!({ "by": "ann", "reason": "a test", "sources": [], "tenants": tenants });
                std::fs::write(&file, text.to_string()).unwrap();
            }
        }
        // Nobody has said elsewhere that it lives there.
        wait::until("its route is known to have changed", LIMIT, async || {
            of_last.begin().await.is_err()
        })
        .await
        .unwrap();
        let sessions =
            async |login: &Credential| sealed.sessions_of_at(login.username(), &shared.0.database).await;
        assert_ne!(sessions(&old).await, 0, "{fate}");
        sealed.store(&shared.0, Next, &new).await;
        sealed.promote(&shared.0).await;
        wait::until("they are closed", LIMIT, async || sessions(&old).await == 0)
            .await
            .unwrap_or_else(|error| panic!("{fate}: {error:?}"));
        assert_eq!(user(&db).await.unwrap(), new.username());
    }
}

#[tokio::test]
async fn connections_at_rest_close_where_nobody_is_left_but_the_suspended() {
    let it = begin(options(4)).await;
    assert_eq!(user(&it.db).await.unwrap(), it.old.username());
    it.sealed
        .world
        .status(it.placed.id, TenantStatus::Suspended)
        .await;
    wait::until("it is known", LIMIT, async || {
        let refused = user(&it.db).await.err();
        refused.is_some_and(|error| Error::of(&error).is_some())
    })
    .await
    .unwrap();
    it.replace_login().await;
    wait::until("they are closed", LIMIT, async || it.sessions_of_old().await == 0)
        .await
        .unwrap();
}
