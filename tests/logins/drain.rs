//! What becomes of connections that were made with a login which has been replaced.

use biplane::{repository::CredentialSlot::Next, testing::wait};
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
