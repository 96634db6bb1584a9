//! What becomes of connections that were made with a login which has been replaced.

use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    repository::{CredentialSlot::Next, TenantAdmin},
    router::FeedOptions,
    tenant::{Isolation, TenantStatus},
    testing::wait,
};
use serde_json::json;
use std::time::Duration;

use crate::{
    Sealed,
    data_plane::{LIMIT, options},
    user,
};

#[tokio::test]
async fn connections_at_rest_close_when_their_login_is_replaced_though_nobody_comes() {
    let sealed = Sealed::new().await;
    let (old, new) = (sealed.role("old").await, sealed.role("new").await);
    let placed = sealed.tenant(&old).await;
    let biplane = sealed.biplane(options(4));
    let db = biplane.route(&placed.slug).await.unwrap();
    let two = (db.acquire().await.unwrap(), db.acquire().await.unwrap());
    drop(two);
    assert_eq!(sealed.sessions_of(old.username()).await, 2);
    sealed.store(&placed, Next, &new).await;
    sealed.promote(&placed).await;
    wait::until("they are closed", LIMIT, async || {
        sealed.sessions_of(old.username()).await == 0
    })
    .await
    .unwrap();
    assert_eq!(user(&db).await.unwrap(), new.username());
}

#[tokio::test]
async fn work_goes_on_with_the_old_login_and_is_counted_until_it_ends() {
    let sealed = Sealed::new().await;
    let (old, new) = (sealed.role("old").await, sealed.role("new").await);
    let placed = sealed.tenant(&old).await;
    let biplane = sealed.biplane(options(4));
    let db = biplane.route(&placed.slug).await.unwrap();
    let mut held = db.begin().await.unwrap();
    sealed.store(&placed, Next, &new).await;
    sealed.promote(&placed).await;
    wait::until("it is known", LIMIT, async || {
        biplane.stats().connector.outdated == 1
    })
    .await
    .unwrap();
    let at_work: String = sqlx::query_scalar("select current_user::text")
        .fetch_one(&mut held)
        .await
        .unwrap();
    assert_eq!(at_work, old.username());
    assert_eq!(user(&db).await.unwrap(), new.username());
    assert_eq!(biplane.stats().connector.outdated, 1);
    held.commit().await.unwrap();
    wait::until("it is over", LIMIT, async || {
        biplane.stats().connector.outdated == 0
    })
    .await
    .unwrap();
    assert_eq!(sealed.sessions_of(old.username()).await, 0);
}

#[tokio::test]
async fn work_that_outlasts_the_drain_timeout_is_ended() {
    let sealed = Sealed::new().await;
    let (old, new) = (sealed.role("old").await, sealed.role("new").await);
    let placed = sealed.tenant(&old).await;
    let mut pool = options(4);
    pool.drain_timeout = Duration::from_millis(100);
    let biplane = sealed.biplane(pool);
    let db = biplane.route(&placed.slug).await.unwrap();
    let mut held = db.begin().await.unwrap();
    sealed.store(&placed, Next, &new).await;
    sealed.promote(&placed).await;
    wait::until("it is ended", LIMIT, async || {
        sealed.sessions_of(old.username()).await == 0
    })
    .await
    .unwrap();
    sqlx::query("select 1").execute(&mut held).await.unwrap_err();
    drop(held);
    wait::until("nothing is left", LIMIT, async || {
        biplane.stats().connector.outdated == 0
    })
    .await
    .unwrap();
}

/// Connections belong to a data source: who had them last may be gone, and nobody else need come.
#[tokio::test]
async fn connections_at_rest_close_whatever_became_of_the_tenant_who_waited_for_them() {
    for fate in ["suspended", "moved", "overridden"] {
        let sealed = Sealed::new().await;
        let world = &sealed.world;
        let (old, new) = (sealed.role("old").await, sealed.role("new").await);
        let (placed, elsewhere) = (sealed.tenant(&old).await, sealed.tenant(&old).await);
        let name = format!("{fate}-{}", std::process::id());
        let (last, slug) = world.tenant_at(&name, placed.source, Isolation::Database).await;
        let desk = tempfile::tempdir().unwrap();
        let file = desk.path().join("overrides.json");
        let biplane = Biplane::postgres(world.control.clone(), sealed.keyring.clone())
            .pool(options(4))
            .feed(FeedOptions::default().interval(Duration::from_millis(50)))
            .overrides(&file)
            .build()
            .unwrap();
        let of_last = biplane.route(&slug).await.unwrap();
        let db = biplane.route(&placed.slug).await.unwrap();
        let first = db.acquire().await.unwrap();
        drop((of_last.acquire().await.unwrap(), first));
        assert_eq!(sealed.sessions_of(old.username()).await, 2, "{fate}");

        match fate {
            "suspended" => world.status(last, TenantStatus::Suspended).await,
            "moved" => {
                let version = world.record(last).await.version;
                let to = elsewhere.source;
                let moved = world
                    .control
                    .place(&world.by, last, version, to, Isolation::Database);
                moved.await.unwrap();
            }
            _ => {
                let tenants = json!([{ "tenant": last, "source": elsewhere.source_name }]);
                let text = json!({ "by": "ann", "reason": "a test", "sources": [], "tenants": tenants });
                std::fs::write(&file, text.to_string()).unwrap();
            }
        }
        wait::until(
            "its route is known to have changed",
            LIMIT,
            async || match biplane.route(&slug).await {
                Ok(of_last) => {
                    of_last.is_overridden() == Some(true) || is_at(&of_last, &elsewhere.database).await
                }
                Err(error) => matches!(error.kind(), ErrorKind::Inactive { .. }),
            },
        )
        .await
        .unwrap();
        sealed.store(&placed, Next, &new).await;
        sealed.promote(&placed).await;
        wait::until("they are closed", LIMIT, async || {
            sealed.sessions_of_at(old.username(), &placed.database).await == 0
        })
        .await
        .unwrap_or_else(|error| panic!("{fate}: {error}"));
        assert_eq!(user(&db).await.unwrap(), new.username());
    }
}

async fn is_at(db: &biplane::plane::TenantDb, database: &str) -> bool {
    let found: Result<String, _> = sqlx::query_scalar("select current_database()::text")
        .fetch_one(db)
        .await;
    found.is_ok_and(|found| found == database)
}

#[tokio::test]
async fn connections_at_rest_close_where_nobody_is_left_but_the_suspended() {
    let sealed = Sealed::new().await;
    let (old, new) = (sealed.role("old").await, sealed.role("new").await);
    let placed = sealed.tenant(&old).await;
    let biplane = sealed.biplane(options(4));
    let db = biplane.route(&placed.slug).await.unwrap();
    assert_eq!(user(&db).await.unwrap(), old.username());
    sealed.world.status(placed.id, TenantStatus::Suspended).await;
    wait::until("it is known", LIMIT, async || {
        let refused = user(&db).await.err();
        refused.is_some_and(|error| Error::of(&error).is_some())
    })
    .await
    .unwrap();
    sealed.store(&placed, Next, &new).await;
    sealed.promote(&placed).await;
    wait::until("they are closed", LIMIT, async || {
        sealed.sessions_of(old.username()).await == 0
    })
    .await
    .unwrap();
}
