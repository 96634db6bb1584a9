//! The statements that the manual gives to whoever fences by hand, run as they stand there.

use biplane::{
    plane::Fence,
    tenant::{DatabaseId, Isolation},
    testing::wait,
};
use sqlx::{Connection, PgConnection};

use crate::support::*;

/// The statements of the block that holds these words, about this tenant and with its epoch.
fn statements(with: &str, home: &Home<'_>, epoch: u64) -> Vec<String> {
    let page = include_str!("../../src/manual/fence.md");
    let mut blocks = page.split("```sql\n").skip(1);
    let block = blocks.find(|block| block.contains(with)).unwrap();
    let block = block.split("```").next().unwrap();
    let block = block
        .replace("018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e57", &home.tenant.to_string())
        .replace("', 7", &format!("', {epoch}"));
    let lines = block
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default());
    let block: String = lines.collect::<Vec<_>>().join("\n");
    let statements = block.split(';').map(str::trim);
    statements
        .filter(|statement| !statement.is_empty())
        .map(str::to_owned)
        .collect()
}

async fn how_many(connection: &mut PgConnection, statement: &str) -> i64 {
    let found = text(
        connection,
        &format!("select count(*) from ({statement}) as found"),
    )
    .await;
    found.parse().unwrap()
}

#[tokio::test]
async fn a_tenant_is_fenced_by_hand() {
    for isolation in [Isolation::Row, Isolation::Database] {
        let home = Home::new(isolation).await;
        let steps = statements("create temp table listed", &home, 1);
        let [fence, list, left, prepared, end, still] = &*steps else {
            panic!("{steps:?}");
        };
        let (mut app, pid) = home.writing("repeatable read").await;
        let mut owner = home.owner().await;
        let fenced_at = text(&mut owner, fence).await;
        run(&mut owner, &**list).await.unwrap();
        assert_ne!(how_many(&mut owner, left).await, 0);
        let named = format!("{left} where pid = {pid}");
        assert_ne!(how_many(&mut owner, &named).await, 0, "who writes is named");
        let name = format!("by_hand_{}", home.database);
        run(&mut app, format!("prepare transaction '{name}'"))
            .await
            .unwrap();
        if isolation == Isolation::Database {
            run(&mut owner, &**end).await.unwrap();
        }
        wait::until("nobody is left", LIMIT, async || {
            how_many(&mut owner, left).await == 0
        })
        .await
        .unwrap();
        assert_eq!(how_many(&mut owner, prepared).await, 1);
        run(&mut owner, format!("commit prepared '{name}'"))
            .await
            .unwrap();
        assert_eq!(how_many(&mut owner, prepared).await, 0);
        let still = still.replace("state, changed_at", "concat(state, ' ', changed_at)");
        assert_eq!(text(&mut owner, &still).await, format!("fenced {fenced_at}"));
        assert_eq!(refused(&mut home.app().await, home.enter(1)).await, "BP002");
    }
}

#[tokio::test]
async fn a_copy_is_stamped_and_confirmed_by_hand() {
    let home = Home::new(Isolation::Row).await;
    let mut owner = home.owner().await;
    let steps = statements("biplane.stamp_v1", &home, 1);
    let [stamp, confirm, left] = &*steps else {
        panic!("{steps:?}");
    };
    // As another one, as which nobody has confirmed it.
    let id = "018f4e7a-5c1b-7cc0-8000-00000000000d"
        .parse::<DatabaseId>()
        .unwrap();
    run(&mut owner, &**stamp).await.unwrap();
    assert_eq!(home.state().await, "restored");
    assert_eq!(how_many(&mut owner, left).await, 1);
    assert_eq!(text(&mut owner, confirm).await, "true");
    assert_eq!(how_many(&mut owner, left).await, 0);
    let enter = home.enter(1).replace(&home.id.to_string(), &id.to_string());
    run(&mut home.app().await, enter).await.unwrap();
}

#[tokio::test]
async fn a_database_is_told_by_hand_to_follow_failovers() {
    let home = Home::new(Isolation::Row).await;
    let mut owner = home.owner().await;
    for statement in statements("follows_failover = true", &home, 1) {
        run(&mut owner, statement).await.unwrap();
    }
    assert_eq!(
        text(&mut owner, "select follows_failover from biplane.database").await,
        "true"
    );
    run(&mut home.app().await, home.enter(1)).await.unwrap();
}

#[tokio::test]
async fn whoever_takes_over_by_hand_ends_the_mover_before() {
    let home = Home::new(Isolation::Row).await;
    let steps = statements("pg_try_advisory_lock", &home, 1);
    let [end, lock] = &*steps else {
        panic!("{steps:?}");
    };
    let (mut first, mut second) = (home.owner().await, home.owner().await);
    Fence::new(&mut first)
        .take_over(home.tenant, LIMIT)
        .await
        .unwrap();
    assert_eq!(text(&mut second, lock).await, "false");
    wait::until("the second statement says t", LIMIT, async || {
        run(&mut second, &**end).await.unwrap();
        text(&mut second, lock).await == "true"
    })
    .await
    .unwrap();
    first.ping().await.unwrap_err();
}
