//! PgBouncers as they are met: the machine's own, which may be as old as 1.18, and one that knows prepared statements, in
//! both modes. A test that is written once runs behind each.
//!
//! The newer one is looked for as `biplane::testing::postgres` says; `tests/run` builds it. A test that needs it is in a
//! module whose name begins with `newer_pgbouncer`, so that it can be left out by name.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test file uses a part of it"
)]

use std::{env, num::NonZeroU32};

use biplane::testing::postgres::{Cluster, PgBouncer, PgBouncerBuilder, PoolMode};

/// One way to meet a PgBouncer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    newer: bool,
    pub mode: PoolMode,
    /// How many prepared statements it keeps.
    pub prepared: u32,
}

/// In transaction mode, unnamed statements alone.
pub const PGBOUNCER: Profile = Profile {
    newer: false,
    mode: PoolMode::Transaction,
    prepared: 0,
};

/// In transaction mode, with so few prepared statements that they drive each other out.
pub const NEWER_PGBOUNCER: Profile = Profile {
    newer: true,
    mode: PoolMode::Transaction,
    prepared: 4,
};

/// In transaction mode, told to keep no prepared statements.
pub const NEWER_PGBOUNCER_UNPREPARED: Profile = Profile {
    prepared: 0,
    ..NEWER_PGBOUNCER
};

/// In session mode.
pub const PGBOUNCER_IN_SESSION_MODE: Profile = Profile {
    mode: PoolMode::Session,
    ..PGBOUNCER
};

/// In session mode.
pub const NEWER_PGBOUNCER_IN_SESSION_MODE: Profile = Profile {
    mode: PoolMode::Session,
    ..NEWER_PGBOUNCER_UNPREPARED
};

impl Profile {
    /// With so many sessions of the server for each database and login.
    pub fn before(self, cluster: &Cluster, sessions: u32) -> PgBouncerBuilder {
        let mut builder = PgBouncer::builder(cluster)
            .pool_mode(self.mode)
            .pool_size(sessions.try_into().unwrap())
            .setting("query_wait_timeout", "60");
        if self.newer {
            builder = builder.newer();
        }
        match NonZeroU32::new(self.prepared) {
            Some(statements) => builder.max_prepared_statements(statements),
            None => builder,
        }
    }

    pub async fn start(self, cluster: &Cluster, sessions: u32) -> PgBouncer {
        self.before(cluster, sessions).start().await.unwrap()
    }
}

/// How often the random ones of these tests go round, as a multiple of what is enough for every day: 1, or what
/// `BIPLANE_POOLER_ROUNDS` says.
pub fn patience() -> usize {
    let times = env::var("BIPLANE_POOLER_ROUNDS").map_or(1, |text| text.parse().expect("a number of rounds"));
    assert!(times > 0, "nothing would be shown");
    times
}

/// A test of each function, behind each PgBouncer in transaction mode.
macro_rules! behind_each_pgbouncer {
    ($($test:ident),+ $(,)?) => {
        crate::poolers::tests_behind!(pgbouncer, PGBOUNCER, $($test),+);
        crate::poolers::tests_behind!(newer_pgbouncer, NEWER_PGBOUNCER, $($test),+);
        crate::poolers::tests_behind!(newer_pgbouncer_unprepared, NEWER_PGBOUNCER_UNPREPARED, $($test),+);
    };
}

/// A test of each function, behind each PgBouncer in session mode.
macro_rules! behind_each_pgbouncer_in_session_mode {
    ($($test:ident),+ $(,)?) => {
        crate::poolers::tests_behind!(pgbouncer_in_session_mode, PGBOUNCER_IN_SESSION_MODE, $($test),+);
        crate::poolers::tests_behind!(
            newer_pgbouncer_in_session_mode, NEWER_PGBOUNCER_IN_SESSION_MODE, $($test),+
        );
    };
}

macro_rules! tests_behind {
    ($module:ident, $profile:ident, $($test:ident),+) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(crate::poolers::$profile).await;
                }
            )+
        }
    };
}

pub(crate) use {behind_each_pgbouncer, behind_each_pgbouncer_in_session_mode, tests_behind};
