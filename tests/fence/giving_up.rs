//! A fence that fails gives the tenant back, whatever it failed of, or says that it could not; and it ends in time.

use biplane::{
    error::ErrorKind,
    plane::{DataSchema, Fence, RoleName, RoleTimeouts},
    tenant::{Epoch, Isolation},
    testing::{
        proxy::{Direction, FaultProxy, NetworkFault},
        wait,
    },
};
use secrecy::ExposeSecret;
use sqlx::{ConnectOptions, postgres::PgConnectOptions};
use std::time::Duration;

use crate::support::*;

/// The sessions of a superuser are not the mover's to end, and it finds that out when the tenant is closed.
#[tokio::test]
async fn a_fence_that_may_not_end_a_session_opens_the_tenant_again() {
    let home = Home::new(Isolation::Database).await;
    let (mighty, mover) = (
        format!("mighty_{}", home.database),
        format!("mover_{}", home.database),
    );
    for name in [&mighty, &mover] {
        create_login(home.cluster, name).await;
    }
    let mut owner = home.owner().await;
    let superuser = home.cluster.superuser();
    let sql = format!(
        "alter role {mighty} superuser;
         grant \"{}\", pg_read_all_stats, pg_signal_backend to {mover}",
        superuser.username()
    );
    run(&mut owner, sql).await.unwrap();
    let role = RoleName::parse(&mighty).unwrap();
    DataSchema::allow(&mut owner, &role, RoleTimeouts::new())
        .await
        .unwrap();
    let mut session = home.login(&mighty).await;
    run(&mut session, home.enter_session(1)).await.unwrap();
    let mut connection = home.login(&mover).await;
    let error = Fence::new(&mut connection)
        .fence(home.tenant, Epoch::FIRST, &patient())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege, "{error}");
    assert!(error.to_string().contains("superuser"), "{error}");
    assert_eq!(home.state().await, "open");
    run(&mut session, "insert into public.note (epoch) values (1)")
        .await
        .unwrap();
    run(&mut home.app().await, home.enter(1)).await.unwrap();
}

#[tokio::test]
async fn a_fence_waits_for_a_locked_residence_no_longer_than_its_deadline_and_names_who_has_it() {
    let home = Home::new(Isolation::Row).await;
    let mut by_hand = home.owner().await;
    let sql = format!("begin; select biplane.fence_v1('{}', 1)", home.tenant);
    run(&mut by_hand, sql).await.unwrap();
    let pid = pid(&mut by_hand).await.to_string();
    let mut owner = home.owner().await;
    let mut fence = Fence::new(&mut owner);
    let error = fence
        .fence(home.tenant, Epoch::FIRST, &hasty())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Undrained, "{error}");
    assert!(error.to_string().contains(&pid), "{error}");
    run(&mut by_hand, "rollback").await.unwrap();
    assert_eq!(home.state().await, "open");
    // The same connection goes on.
    fence.fence(home.tenant, Epoch::FIRST, &patient()).await.unwrap();
    assert_eq!(home.state().await, "fenced");
}

#[tokio::test]
async fn a_fence_behind_a_dead_network_ends_and_says_that_the_tenant_may_be_closed() {
    let home = Home::new(Isolation::Row).await;
    let (mut app, _) = home.writing("read committed").await;
    let proxy = FaultProxy::start(&home.cluster.endpoint()).await.unwrap();
    let (through, superuser) = (proxy.endpoint(), home.cluster.superuser());
    let mut mover = PgConnectOptions::new()
        .host(&through.host)
        .port(through.port)
        .database(&home.database)
        .username(superuser.username())
        .password(superuser.password().map_or("", ExposeSecret::expose_secret))
        .connect()
        .await
        .unwrap();
    let mut fence = Fence::new(&mut mover);
    let drain = patient().deadline(Duration::from_secs(5));
    let fencing = tokio::time::timeout(LIMIT, fence.fence(home.tenant, Epoch::FIRST, &drain));
    let cutting = async {
        wait::until("the fence is committed", LIMIT, async || {
            home.state().await == "fenced"
        })
        .await
        .unwrap();
        proxy.set(Direction::Both, NetworkFault::BlackHole);
    };
    let (fenced, ()) = tokio::join!(fencing, cutting);
    let error = fenced.expect("it ends").unwrap_err();
    let unavailable = ErrorKind::DatabaseUnavailable { retry_after: None };
    assert_eq!(error.kind(), unavailable, "{error}");
    assert!(
        error.to_string().contains("unfence it on another connection"),
        "{error}"
    );
    assert_eq!(home.state().await, "fenced", "nobody could be told");
    home.unfence().await;
    run(&mut app, "commit").await.unwrap();
    run(&mut home.app().await, home.enter(1)).await.unwrap();
}
