//! The same through PgBouncer, which gives tenants of one database the same sessions of the server. Movers connect directly.

use biplane::testing::postgres::PoolMode;

use crate::{
    poolers::{Profile, behind_each_pgbouncer, behind_each_pgbouncer_in_session_mode},
    race, stopped,
    world::World,
};

/// For each database and login: fewer than there are tenants and routers.
const FEW: u32 = 2;
/// As many as one process holds on to, and some for the others.
const ENOUGH: u32 = 24;

async fn routers_write_while_movers_die(profile: Profile) {
    let sessions = if profile.mode == PoolMode::Session {
        ENOUGH
    } else {
        FEW
    };
    race::run(World::behind(profile, sessions).await).await;
}

async fn a_router_that_was_stopped_past_the_drain_commits_nothing(profile: Profile) {
    stopped::commits_nothing(World::behind(profile, ENOUGH).await).await;
}

behind_each_pgbouncer!(
    routers_write_while_movers_die,
    a_router_that_was_stopped_past_the_drain_commits_nothing,
);

behind_each_pgbouncer_in_session_mode!(
    routers_write_while_movers_die,
    a_router_that_was_stopped_past_the_drain_commits_nothing,
);
