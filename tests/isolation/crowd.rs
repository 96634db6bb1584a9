//! Many tenants in three modes, at random, through one connection, and given up at any point: nobody ever finds a row, a
//! type or a setting of anybody else's.
//!
//! `BIPLANE_POOLER_ROUNDS=50` does 50 times as much of what goes through PgBouncer as it is done every day, and
//! `BIPLANE_ISOLATION_ROUNDS=10000 cargo test --all-features --test isolation crowd` runs for minutes. A failure prints the
//! seed; `BIPLANE_ISOLATION_SEED` takes it.

use std::{env, fmt::Debug};

use biplane::{
    plane::TenantDb,
    tenant::Isolation,
    testing::postgres::{PgBouncer, PoolMode},
};
use futures_util::{StreamExt, future::join_all};
use sqlx::{Executor, Row};

use crate::{
    data_plane::{LIMIT, World, give_up_after, give_up_in_turn, options, through},
    homes::{Home, Own, Resident, add_by, handle, unaware, world},
    poolers::{self, Profile, behind_each_pgbouncer, behind_each_pgbouncer_in_session_mode},
    sessions::{LEFTOVERS, Mood},
};

fn setting<T: std::str::FromStr<Err: Debug>>(name: &str, default: T) -> T {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Numbers without a pattern that matters (xorshift64*, Vigna 2014), the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(mixed).unwrap() % limit
    }
}

/// What tenants do. All of it is allowed, much of it is untidy, and some fails.
const DEEDS: usize = 16;

async fn deed(number: usize, db: &TenantDb, me: &Resident) -> sqlx::Result<()> {
    match number {
        0 | 1 => add_by(db, &me.name, "by itself").await,
        2 => {
            let mut tx = db.begin().await?;
            add_by(&mut tx, &me.name, "kept").await?;
            tx.commit().await
        }
        3 => {
            let mut tx = db.begin().await?;
            add_by(&mut tx, &me.name, "lost").await?;
            sqlx::query("select 1 / 0").execute(&mut tx).await?;
            tx.commit().await
        }
        4 => {
            let mut rows = sqlx::query("select owner, generate_series(1, 100) from note").fetch(db);
            rows.next().await.transpose().map(drop)
        }
        5 => db.execute("select hide('loot')").await.map(drop),
        6 => {
            let mut tx = db.begin().await?;
            tx.execute("select hide('loot')").await?;
            tx.commit().await
        }
        7 => db
            .execute("set my.own = 'loot'; set work_mem = '9MB'; listen somewhere")
            .await
            .map(drop),
        8 => db
            .execute("create temporary table note as select 'somebody' as owner, 'x' as text")
            .await
            .map(drop),
        9 => {
            let mut tx = db.begin().await?;
            tx.execute("create temporary table if not exists loot (secret text)")
                .await?;
            tx.execute("prepare mine as select secret from loot").await?;
            tx.execute("declare mine cursor with hold for select secret from loot")
                .await?;
            tx.commit().await
        }
        10 => {
            let mut tx = db.begin().await?;
            tx.execute("savepoint here").await?;
            let failed = tx.execute("select nothing").await;
            assert!(failed.is_err());
            tx.execute("rollback to here").await?;
            add_by(&mut tx, &me.name, "after a savepoint").await?;
            tx.commit().await
        }
        11 => {
            let mut tx = db.begin().await?;
            tx.dangerous_connection()
                .execute("set role none; set application_name = 'loot'")
                .await?;
            tx.commit().await
        }
        12 => db.execute("select pg_sleep(0.003)").await.map(drop),
        13 => db
            .execute("select set_config('app.tenant_id', 'loot', false), pg_advisory_lock(4711)")
            .await
            .map(drop),
        14 => {
            let mut tx = db.begin().await?;
            let bare = tx.dangerous_connection();
            let mut copy = bare.copy_in_raw("copy note (owner, text) from stdin").await?;
            copy.send(format!("{}\tcopied\n", me.name).into_bytes()).await?;
            copy.finish().await?;
            tx.commit().await
        }
        _ => sqlx::query("update note set text = 'changed' where owner = $1 or true")
            .bind("somebody")
            .execute(db)
            .await
            .map(drop),
    }
}

/// Looks around as a tenant, in one transaction.
async fn look(db: &TenantDb, me: &Resident, keeps_own: bool) -> sqlx::Result<()> {
    let mut tx = db.begin().await?;
    let left: String = sqlx::query_scalar(LEFTOVERS)
        .bind(format!("{}_app", me.database))
        .bind(&me.role)
        .bind(me.id.to_string())
        .fetch_one(&mut tx)
        .await?;
    if !(keeps_own && me.isolation == Isolation::Database) {
        assert_eq!(left, "", "{me:?} found {left}");
    }
    let owners: Vec<String> = sqlx::query_scalar("select distinct owner from note")
        .fetch_all(&mut tx)
        .await?;
    assert!(
        owners.iter().all(|owner| *owner == me.name),
        "{me:?} saw {owners:?}"
    );
    for row in sqlx::query("select * from note where $1 limit 3")
        .bind(true)
        .fetch_all(&mut tx)
        .await?
    {
        assert_eq!(row.try_get::<String, _>("owner")?, me.name);
        assert!(
            ["x", "by itself", "kept", "after a savepoint", "copied", "changed"]
                .contains(&row.try_get::<&str, _>("text")?)
        );
        match me.isolation {
            Isolation::Schema => assert_eq!(row.try_get::<Mood, _>("mood")?.0, format!("of {}", me.name)),
            _ => assert_eq!(row.try_get::<uuid::Uuid, _>("tenant_id")?, *me.id.as_uuid()),
        }
    }
    if me.isolation == Isolation::Schema {
        let mine = Mood(format!("of {}", me.name));
        let stored: Mood = sqlx::query_scalar("select $1::mood")
            .bind(&mine)
            .fetch_one(&mut tx)
            .await?;
        assert_eq!(stored, mine);
    }
    tx.commit().await
}

/// Whether something failed that fails by what was asked, and not by who asked before.
fn is_own_doing(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else {
        return false;
    };
    // Division by zero; a cursor, statement or table of one's own that is there already; COPY into shared tables.
    matches!(
        error.code().as_deref(),
        Some("22012" | "42P03" | "42P05" | "42P07" | "0A000")
    )
}

struct Crowd {
    world: World<'static>,
    residents: Vec<Resident>,
    dbs: Vec<TenantDb>,
    /// Whether a tenant alone in its database may find what it left itself: its sessions are a transaction pooler's.
    keeps_own: bool,
    _biplane: biplane::Biplane,
    _bouncer: Option<PgBouncer>,
}

/// Three tenants by schema, one of them with a role of its own, and three by row, all in one database; and two with one of
/// their own if they are asked for. One connection for all.
async fn crowd(alone: usize) -> Crowd {
    crowd_behind(None, alone, 1).await
}

/// The same behind a PgBouncer, to which there are so many connections, and which has one session of the server for each
/// database and login.
async fn crowd_behind(profile: Option<Profile>, alone: usize, connections: u32) -> Crowd {
    let world = world().await;
    let bouncer = match profile {
        // In session mode whoever cancels a statement needs another session.
        Some(profile) if profile.mode == PoolMode::Session => Some(profile.start(world.cluster, 3).await),
        Some(profile) => Some(profile.start(world.cluster, 1).await),
        None => None,
    };
    let way = |server| match &bouncer {
        Some(bouncer) => through(server, bouncer.pooler(), bouncer.endpoint()),
        None => server,
    };
    let home = Home::reached_by(&world, way).await;
    let mut residents = vec![home.in_schema(&world, Own::Role).await];
    for isolation in [
        Isolation::Schema,
        Isolation::Schema,
        Isolation::Row,
        Isolation::Row,
        Isolation::Row,
    ] {
        residents.push(home.resident(&world, isolation).await);
    }
    for _ in 0..alone {
        residents.push(
            Home::reached_by(&world, way)
                .await
                .resident(&world, Isolation::Database)
                .await,
        );
    }
    let biplane = unaware(&world, options(connections));
    let mut dbs = Vec::new();
    for resident in &residents {
        let db = handle(&biplane, resident).await;
        add_by(&db, &resident.name, "x").await.unwrap();
        dbs.push(db);
    }
    Crowd {
        world,
        residents,
        dbs,
        keeps_own: profile.is_some_and(|profile| profile.mode == PoolMode::Transaction),
        _biplane: biplane,
        _bouncer: bouncer,
    }
}

impl Crowd {
    /// Does random things as some of them, gives half up at a random point, and looks around as one of the others each time.
    async fn roam(&self, random: &mut Random, phase: usize, rounds: usize) {
        let count = self.residents.len() / 2;
        for _ in 0..rounds {
            let one = random.below(count) * 2 + phase % 2;
            let (db, me) = (&self.dbs[one], &self.residents[one]);
            let (what, way, turns) = (random.below(DEEDS), random.below(4), random.below(60));
            let done = match way {
                0 => give_up_in_turn(turns, deed(what, db, me)).await,
                1 => give_up_after(turns / 6, deed(what, db, me)).await,
                _ => Some(deed(what, db, me).await),
            };
            if let Some(Err(error)) = done {
                assert!(is_own_doing(&error), "{me:?}, {what}: {error:?}");
            }
            let other = random.below(count) * 2 + (phase + 1) % 2;
            let (db, me) = (&self.dbs[other], &self.residents[other]);
            if random.below(4) == 0 {
                drop(give_up_in_turn(turns, look(db, me, self.keeps_own)).await);
            } else {
                look(db, me, self.keeps_own).await.unwrap();
            }
        }
    }

    /// Whoever looks around next has nothing of his own left anywhere: what is seen to change a session has it cleaned.
    async fn tidy_up(&self) {
        for db in &self.dbs {
            db.execute("set my.own = ''").await.unwrap();
        }
    }

    async fn until_idle(&self) {
        for resident in &self.residents {
            self.world.watch(&resident.database).await.until_idle().await;
        }
    }
}

/// How often those who leave something and those who look around change places.
const PHASES: usize = 4;

#[expect(clippy::print_stdout, reason = "shown when the test fails")]
async fn run(name: &str, crowd: Crowd, tasks: u64, rounds: usize) {
    let seed: u64 = setting("BIPLANE_ISOLATION_SEED", u64::from(std::process::id()) * 2 + 1);
    println!("{name}: BIPLANE_ISOLATION_SEED={seed}");
    let mut randoms: Vec<_> = (0..tasks)
        .map(|task| Random(seed.wrapping_add(task << 32)))
        .collect();
    for phase in 0..PHASES {
        crowd.tidy_up().await;
        let roaming = randoms
            .iter_mut()
            .map(|random| crowd.roam(random, phase, rounds / PHASES));
        tokio::time::timeout(LIMIT * 60, join_all(roaming)).await.unwrap();
    }
    crowd.until_idle().await;
}

#[tokio::test]
async fn nobody_in_a_crowd_that_shares_one_connection_finds_what_is_anothers() {
    let rounds = setting("BIPLANE_ISOLATION_ROUNDS", 400);
    run("one after the other", crowd(0).await, 1, rounds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_when_all_of_them_come_at_once() {
    let rounds = setting("BIPLANE_ISOLATION_ROUNDS", 400);
    run("at once", crowd(0).await, 4, rounds / 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_with_tenants_that_have_databases_of_their_own_among_them() {
    // Each change of databases costs a connection.
    let rounds = setting("BIPLANE_ISOLATION_ROUNDS", 48);
    run("three modes", crowd(2).await, 2, rounds / 2).await;
}

/// Everybody's transactions run in one session of the server, in any order.
async fn nobody_behind_one_session_of_the_server_finds_what_is_anothers(profile: Profile) {
    let rounds = 80 * poolers::patience();
    run(
        "one session",
        crowd_behind(Some(profile), 0, 4).await,
        4,
        rounds / 4,
    )
    .await;
}

async fn nor_with_databases_of_their_own_behind_the_same_pooler(profile: Profile) {
    let rounds = 48 * poolers::patience();
    run(
        "three modes",
        crowd_behind(Some(profile), 2, 6).await,
        4,
        rounds / 4,
    )
    .await;
}

/// One connection, for each has a session of the server for as long as it lives.
async fn nobody_in_a_session_that_a_pooler_gave_finds_what_is_anothers(profile: Profile) {
    let rounds = 60 * poolers::patience();
    run(
        "a session of a pooler's",
        crowd_behind(Some(profile), 0, 1).await,
        2,
        rounds / 2,
    )
    .await;
}

behind_each_pgbouncer!(
    nobody_behind_one_session_of_the_server_finds_what_is_anothers,
    nor_with_databases_of_their_own_behind_the_same_pooler,
);

async fn nor_in_such_a_session_with_databases_of_their_own_beside_it(profile: Profile) {
    let rounds = 24 * poolers::patience();
    run(
        "three modes, in sessions of a pooler's",
        crowd_behind(Some(profile), 2, 1).await,
        2,
        rounds / 2,
    )
    .await;
}

behind_each_pgbouncer_in_session_mode!(
    nobody_in_a_session_that_a_pooler_gave_finds_what_is_anothers,
    nor_in_such_a_session_with_databases_of_their_own_beside_it,
);
