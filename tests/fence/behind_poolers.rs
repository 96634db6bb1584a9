//! The property of the fence with PgBouncer between the routers and the server, while the mover has a connection of its
//! own. Every row says when its transaction and its session began. Once a fence has returned nothing of the tenant's
//! appears until it is placed anew, and afterwards nothing that began before that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    plane::{Fence, IsolationLevel, Residence, RowPolicy, TenantDb, TxOptions},
    repository::{NewSource, TenantAdmin},
    tenant::{DataSourceId, Epoch, Isolation, Location, Role, Slug, TenantId},
    testing::{postgres::PgBouncer, wait},
};
use sqlx::PgConnection;

use crate::{
    data_plane::{self, World, options},
    poolers::{self, Profile, behind_each_pgbouncer, behind_each_pgbouncer_in_session_mode},
    property,
    support::*,
};

/// How many routers there are, each with a connection less than it has writers.
const ROUTERS: usize = 2;
const WRITERS: usize = 3;
const MOVES: usize = 3;

/// A note says when and where it was written.
const TABLE: &str = "
    create function public.session_began() returns timestamptz language sql stable as $$
        select backend_start from pg_stat_get_activity(pg_backend_pid())
    $$;
    create table public.line (
        tenant_id uuid not null, began timestamptz not null default now(),
        session_began timestamptz not null default public.session_began(), text text not null);
    grant select, insert on public.line to app;";

struct Moved {
    tenant: TenantId,
    slug: Slug,
}

struct Town {
    world: World<'static>,
    home: Home<'static>,
    source: DataSourceId,
    isolation: Isolation,
    /// One of them is moved, from the database to the same database at another epoch.
    tenants: Vec<Moved>,
    routers: Vec<Biplane>,
    over: AtomicBool,
    /// How often each writer was told that the tenant is fenced, or not where its route says.
    refused: Vec<AtomicU64>,
    _bouncer: PgBouncer,
}

/// A transaction pooler has one session of the server for all of them. In session mode each connection needs one, and
/// whoever ends a session another.
async fn town(profile: Profile, isolation: Isolation, tenants: usize) -> Arc<Town> {
    let world = World::new(cluster().await);
    let home = Home::empty(world.cluster).await;
    let sessions = match profile.mode {
        biplane::testing::postgres::PoolMode::Session => 12,
        _ => 1,
    };
    // A server that ended all sessions of a pool is asked again at once.
    let bouncer = profile.before(world.cluster, sessions).start().await.unwrap();
    let mut owner = home.owner().await;
    run(&mut owner, TABLE).await.unwrap();
    let key = match isolation {
        Isolation::Row => RowPolicy::new("public", "line", "tenant_id").sql(),
        _ => String::new(),
    };
    run(&mut owner, key).await.unwrap();
    let server = world.cluster.server(&home.database);
    let server = data_plane::through(server, bouncer.pooler(), bouncer.endpoint());
    let mut source = NewSource::new(home.database.replace('_', "-"), Location::Server(server));
    source.database_id = Some(home.id);
    let source = world.control.create_source(&world.by, source).await.unwrap().id;
    world.credentials.set(source, Role::App, login(APP));
    let mut moved = Vec::new();
    for number in 0..tenants {
        let name = format!("{}-{number}", home.database.replace('_', "-"));
        let (tenant, slug) = world.tenant_at(&name, source, isolation).await;
        home.place(tenant, isolation).await;
        moved.push(Moved { tenant, slug });
    }
    if isolation == Isolation::Database {
        let default = format!(
            "alter table public.line alter column tenant_id set default '{}'",
            moved[0].tenant
        );
        run(&mut owner, default).await.unwrap();
    }
    let routers = (0..ROUTERS)
        .map(|_| {
            Biplane::postgres(world.control.clone(), world.credentials.clone())
                .without_changes()
                .pool(options(u32::try_from(WRITERS).unwrap() - 1))
                .build()
                .unwrap()
        })
        .collect();
    Arc::new(Town {
        world,
        home,
        source,
        isolation,
        tenants: moved,
        routers,
        over: AtomicBool::new(false),
        refused: (0..ROUTERS * WRITERS).map(|_| AtomicU64::new(0)).collect(),
        _bouncer: bouncer,
    })
}

async fn what_runs_in_a_poolers_sessions_is_waited_for(profile: Profile) {
    for isolation in [Isolation::Row, Isolation::Database] {
        let home = Home::new(isolation).await;
        let bouncer = profile.start(home.cluster, 1).await;
        let mut app = through(&bouncer.endpoint(), &home.database).await.unwrap();
        let write = "insert into public.note (epoch) values (1)";
        run(&mut app, format!("begin; {}; {write}", home.enter(1)))
            .await
            .unwrap();
        let pid = pid(&mut app).await.to_string();
        let named = home.fence_in_vain().await;
        assert!(named.contains(&pid), "{named}");
        run(&mut app, "commit").await.unwrap();
        home.fence_patiently().await;
        assert_eq!(home.notes().await, "1");
    }
}

async fn in_rows_that_two_tenants_share(profile: Profile) {
    race(town(profile, Isolation::Row, 2).await).await;
}

async fn in_a_database_of_ones_own(profile: Profile) {
    race(town(profile, Isolation::Database, 1).await).await;
}

/// Also what is prepared for a commit in two phases, and what reads before it enters, which no handle does.
async fn by_hand_in_a_shared_database(profile: Profile) {
    by_hand(profile, Isolation::Row).await;
}

async fn by_hand_in_a_database_of_ones_own(profile: Profile) {
    by_hand(profile, Isolation::Database).await;
}

async fn by_hand(profile: Profile, isolation: Isolation) {
    // As many sessions as there are writers: some of them dawdle in transactions.
    let bouncer = profile.start(cluster().await, 4).await;
    let moves = u64::try_from(MOVES * poolers::patience()).unwrap();
    property::race(isolation, Some(bouncer), moves).await;
}

behind_each_pgbouncer!(
    what_runs_in_a_poolers_sessions_is_waited_for,
    in_rows_that_two_tenants_share,
    in_a_database_of_ones_own,
    by_hand_in_a_shared_database,
    by_hand_in_a_database_of_ones_own,
);

behind_each_pgbouncer_in_session_mode!(
    what_runs_in_a_poolers_sessions_is_waited_for,
    in_rows_that_two_tenants_share,
    in_a_database_of_ones_own,
    by_hand_in_a_database_of_ones_own,
);

/// When a fence was about to be committed, and when it had returned and the tenant was about to be placed anew; and how
/// many lines there were then.
struct Fenced {
    from: String,
    at: String,
    lines: i64,
}

async fn race(town: Arc<Town>) {
    let writers: Vec<_> = (0..ROUTERS * WRITERS)
        .map(|number| tokio::spawn(write(Arc::clone(&town), number)))
        .collect();
    let mut owner = town.home.owner().await;
    let mut fences = Vec::new();
    for epoch in 1..=MOVES * poolers::patience() {
        fences.push(town.move_once(&mut owner, u64::try_from(epoch).unwrap()).await);
    }
    town.over.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    for Fenced { from, at, lines } in fences {
        let before = format!("began < '{at}'");
        assert_eq!(
            town.lines(&mut owner, &before).await,
            lines,
            "a line came after its fence"
        );
        if town.isolation == Isolation::Database {
            // By those who had written: who was still logging in was in no list, and has read "fenced" since.
            let old = format!(
                "began >= '{at}' and session_began in (select session_began from public.line where began < '{from}')"
            );
            assert_eq!(
                town.lines(&mut owner, &old).await,
                0,
                "a session outlived its fence"
            );
        }
    }
    if let Some(neighbour) = town.tenants.get(1) {
        let lines = format!(
            "select count(*) from public.line where tenant_id = '{}'",
            neighbour.tenant
        );
        let lines: i64 = text(&mut owner, &lines).await.parse().unwrap();
        assert!(lines > 0, "the neighbour wrote through the same session");
    }
}

impl Town {
    async fn lines(&self, owner: &mut PgConnection, condition: &str) -> i64 {
        let tenant = self.tenants[0].tenant;
        let sql = format!("select count(*) from public.line where tenant_id = '{tenant}' and {condition}");
        text(owner, &sql).await.parse().unwrap()
    }

    async fn move_once(&self, owner: &mut PgConnection, epoch: u64) -> Fenced {
        let tenant = self.tenants[0].tenant;
        let before = self.lines(owner, "true").await;
        wait::until("writers write", LIMIT, async || {
            self.lines(owner, "true").await >= before + 10
        })
        .await
        .unwrap();
        let from = text(owner, "clock_timestamp()").await;
        Fence::new(owner)
            .fence(tenant, Epoch::new(epoch), &patient())
            .await
            .unwrap();
        let lines = self.lines(owner, "true").await;
        // Whoever still believes to be in has tried by then.
        let refused: Vec<u64> = self
            .refused
            .iter()
            .map(|count| count.load(Ordering::SeqCst))
            .collect();
        let all_refused = wait::until("everybody is refused", LIMIT, async || {
            let now = self.refused.iter().map(|count| count.load(Ordering::SeqCst));
            now.zip(&refused)
                .filter(|(now, _)| *now != u64::MAX)
                .all(|(now, then)| now > *then)
                || self.lines(owner, "true").await != lines
        });
        all_refused.await.unwrap();
        assert_eq!(self.lines(owner, "true").await, lines, "written behind the fence");
        let at = text(owner, "clock_timestamp()").await;
        let version = self.world.record(tenant).await.version;
        self.world
            .control
            .place(&self.world.by, tenant, version, self.source, self.isolation)
            .await
            .unwrap();
        let next = Residence::new(tenant, Epoch::new(epoch + 1), self.isolation);
        Fence::new(owner).place(&next).await.unwrap();
        Fenced { from, at, lines }
    }
}

/// Numbers without a pattern, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// Every third writer is the neighbour, if there is one, who is never refused.
async fn write(town: Arc<Town>, number: usize) {
    let neighbour = number.is_multiple_of(WRITERS) && town.tenants.len() > 1;
    let who = &town.tenants[usize::from(neighbour)];
    if neighbour {
        town.refused[number].store(u64::MAX, Ordering::SeqCst);
    }
    let mut dice = Dice(u64::try_from(number).unwrap());
    let db = town.routers[number / WRITERS].route(&who.slug).await.unwrap();
    while !town.over.load(Ordering::SeqCst) {
        let turns = dice.roll(400);
        let done = match dice.roll(8) {
            0 => data_plane::give_up_in_turn(turns, attempt(&db, &mut dice)).await,
            _ => Some(attempt(&db, &mut dice).await),
        };
        tokio::time::sleep(Duration::from_millis(5)).await;
        if let Some(Err(error)) = done {
            assert!(is_expected(&error, neighbour), "{error:?}");
            if is_refusal(&error) {
                town.refused[number].fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

async fn attempt(db: &TenantDb, dice: &mut Dice) -> sqlx::Result<()> {
    let insert = sqlx::query("insert into public.line (text) values ($1)");
    let levels = [
        IsolationLevel::ReadCommitted,
        IsolationLevel::RepeatableRead,
        IsolationLevel::Serializable,
    ];
    match dice.roll(5) {
        0 => insert.bind("by itself").execute(db).await.map(drop),
        1 => sqlx::raw_sql("insert into public.line (text) values ('as text')")
            .execute(db)
            .await
            .map(drop),
        _ => {
            let level = levels[dice.roll(levels.len())];
            let mut tx = db.begin_with(TxOptions::new().isolation(level)).await?;
            insert.bind("in a transaction").execute(&mut tx).await?;
            if dice.roll(3) == 0 {
                tokio::time::sleep(Duration::from_micros(u64::try_from(dice.roll(20_000)).unwrap())).await;
            }
            match dice.roll(5) {
                0 => tx.rollback().await,
                _ => tx.commit().await,
            }
        }
    }
}

fn is_refusal(error: &sqlx::Error) -> bool {
    Error::of(error)
        .is_some_and(|error| matches!(error.kind(), ErrorKind::Fenced { .. } | ErrorKind::StaleRoute))
}

/// Of a neighbour nothing is expected to fail: where rows are shared no session is ended.
fn is_expected(error: &sqlx::Error, neighbour: bool) -> bool {
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .unwrap_or_default();
    // Serializable transactions that do not go together; sessions that a fence has ended.
    code == "40001" || !neighbour && (is_refusal(error) || is_end_of_session(error, &code))
}

fn is_end_of_session(error: &sqlx::Error, code: &str) -> bool {
    let ours =
        Error::of(error).is_some_and(|error| matches!(error.kind(), ErrorKind::DatabaseUnavailable { .. }));
    ours || code == "57P01" || code.starts_with("08") || matches!(error, sqlx::Error::Io(_))
}
