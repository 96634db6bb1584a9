//! A tenant with a database of its own enters once for a session, and a fence ends the session.

use biplane::tenant::Isolation;
use sqlx::{Connection, PgConnection};

use crate::support::*;

async fn entered(home: &Home<'_>) -> PgConnection {
    let mut app = home.app().await;
    run(&mut app, home.enter_session(1)).await.unwrap();
    run(&mut app, "insert into public.note (epoch) values (1)")
        .await
        .unwrap();
    app
}

#[tokio::test]
async fn a_session_that_entered_before_the_fence_writes_nothing_after_it() {
    let home = Home::new(Isolation::Database).await;
    let (mut idle, mut fresh) = (entered(&home).await, home.app().await);
    home.fence_patiently().await;
    assert_eq!(home.notes().await, "1");
    for session in [&mut idle, &mut fresh] {
        run(session, "insert into public.note (epoch) values (1)")
            .await
            .unwrap_err();
    }
    assert_eq!(home.notes().await, "1");
    // Who comes now is refused, and comes in again once it is open.
    let mut later = home.app().await;
    assert_eq!(refused(&mut later, home.enter_session(1)).await, "BP002");
    home.unfence().await;
    run(&mut later, home.enter_session(1)).await.unwrap();
}

#[tokio::test]
async fn a_statement_under_way_has_a_grace_and_is_then_ended() {
    let home = Home::new(Isolation::Database).await;
    let mut app = entered(&home).await;
    let busy = pid(&mut app).await;
    let working = tokio::spawn(async move {
        run(
            &mut app,
            "insert into public.note (epoch) select 1 from pg_sleep(600)",
        )
        .await
    });
    biplane::testing::wait::until("it works", LIMIT, async || {
        let sql =
            format!("select count(*) from pg_stat_activity where pid = {busy} and wait_event = 'PgSleep'");
        text(&mut home.owner().await, &sql).await == "1"
    })
    .await
    .unwrap();
    let named = home.fence_in_vain().await;
    assert!(named.contains(&busy.to_string()), "{named}");
    assert!(!working.is_finished(), "its grace was longer than the deadline");
    home.fence_patiently().await;
    working.await.unwrap().unwrap_err();
    assert_eq!(home.notes().await, "1");
}

#[tokio::test]
async fn sessions_of_others_are_left_alone() {
    let home = Home::new(Isolation::Database).await;
    let mut superuser = home.owner().await;
    home.fence_patiently().await;
    superuser.ping().await.unwrap();
    // In a shared database no session has entered as a whole.
    let home = Home::new(Isolation::Row).await;
    let mut app = home.app().await;
    home.fence_patiently().await;
    app.ping().await.unwrap();
}

#[tokio::test]
async fn only_a_tenant_with_a_database_of_its_own_enters_a_session() {
    for isolation in [Isolation::Schema, Isolation::Row] {
        let home = Home::new(isolation).await;
        let mut app = home.app().await;
        assert_eq!(refused(&mut app, home.enter_session(1)).await, "BP005");
        assert_eq!(text(&mut app, "current_setting('app.tenant_id', true)").await, "");
    }
}

#[tokio::test]
async fn what_a_session_enters_with_stays_until_it_ends() {
    let home = Home::new(Isolation::Database).await;
    let mut app = entered(&home).await;
    let tenant = home.tenant.to_string();
    for _ in 0..2 {
        assert_eq!(text(&mut app, "current_setting('app.tenant_id')").await, tenant);
        let name = text(&mut app, "current_setting('application_name')").await;
        assert_eq!(name.matches(&tenant).count(), 1, "{name}");
        // A transaction in it enters as well, and changes nothing of that.
        run(&mut app, format!("begin; {}; commit", home.enter(1)))
            .await
            .unwrap();
    }
    assert_eq!(refused(&mut app, home.enter_session(2)).await, "BP001");
}
