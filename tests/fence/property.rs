//! The property of the fence under whatever writers do: rows carry the epoch they were entered at, and once a fence at an
//! epoch has returned, no row of that epoch or an older one appears any more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use biplane::{
    plane::{Fence, Residence},
    tenant::{Epoch, Isolation, Pooler},
    testing::postgres::PgBouncer,
};
use sqlx::PgConnection;

use crate::support::*;

const WRITERS: u64 = 6;
const MOVES: u64 = 20;

struct Race {
    home: Home<'static>,
    isolation: Isolation,
    /// What writers connect through, if not directly.
    pooler: Option<PgBouncer>,
    /// What a route would say. Always late.
    epoch: AtomicU64,
    over: AtomicBool,
}

/// Numbers without a pattern, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    /// Lets others go first, now and then for long.
    async fn dawdle(&mut self) {
        match self.roll(8) {
            0..4 => {}
            4..7 => tokio::time::sleep(Duration::from_micros(self.roll(3000))).await,
            _ => tokio::time::sleep(Duration::from_millis(self.roll(40))).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_of_a_fenced_epoch_appears_in_a_shared_database() {
    race(Isolation::Row, None, MOVES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_of_a_fenced_epoch_appears_in_a_database_of_ones_own() {
    race(Isolation::Database, None, MOVES).await;
}

pub(crate) async fn race(isolation: Isolation, pooler: Option<PgBouncer>, moves: u64) {
    let race = Arc::new(Race {
        home: Home::new(isolation).await,
        isolation,
        pooler,
        epoch: AtomicU64::new(1),
        over: AtomicBool::new(false),
    });
    let writers: Vec<_> = (0..WRITERS)
        .map(|seed| tokio::spawn(write(Arc::clone(&race), Dice(seed))))
        .collect();
    let mut dice = Dice(WRITERS);
    let mut counted = Vec::new();
    for epoch in 1..=moves {
        // As many rows as there are writers were stored at this epoch, so that something is there to be fenced.
        let enough = i64::try_from(WRITERS).unwrap();
        biplane::testing::wait::until("writers write", LIMIT, async || {
            race.rows(epoch, "=").await >= enough
        })
        .await
        .unwrap();
        dice.dawdle().await;
        race.home.fence(epoch, patient()).await.unwrap();
        counted.push((epoch, race.rows(epoch, "<=").await));
        dice.dawdle().await;
        let next = Residence::new(race.home.tenant, Epoch::new(epoch + 1), isolation);
        Fence::new(&mut race.home.owner().await)
            .place(&next)
            .await
            .unwrap();
        race.epoch.store(epoch + 1, Ordering::SeqCst);
    }
    race.over.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    for (epoch, rows) in counted {
        assert_eq!(
            race.rows(epoch, "<=").await,
            rows,
            "rows of epoch {epoch} came after its fence"
        );
    }
}

impl Race {
    async fn app(&self) -> sqlx::Result<PgConnection> {
        match &self.pooler {
            Some(pooler) => through(&pooler.endpoint(), &self.home.database).await,
            None => Ok(self.home.app().await),
        }
    }

    /// Whether a session stays the same from one statement to the next.
    fn has_sessions(&self) -> bool {
        let pooler = self.pooler.as_ref();
        pooler.is_none_or(|pooler| pooler.pooler() == Pooler::Session)
    }

    async fn rows(&self, epoch: u64, comparison: &str) -> i64 {
        let sql = format!("select count(*) from public.note where epoch {comparison} {epoch}");
        text(&mut self.home.owner().await, &sql).await.parse().unwrap()
    }
}

async fn write(race: Arc<Race>, mut dice: Dice) {
    while !race.over.load(Ordering::SeqCst) {
        // A pooler may have nothing but sessions that a fence has just ended.
        let Ok(mut app) = race.app().await else { continue };
        // Sessions end by fences, and then the next one begins.
        while !race.over.load(Ordering::SeqCst) {
            if attempt(&race, &mut app, &mut dice).await.is_err() && run(&mut app, "rollback").await.is_err()
            {
                break;
            }
        }
    }
}

async fn attempt(race: &Race, app: &mut PgConnection, dice: &mut Dice) -> sqlx::Result<()> {
    let home = &race.home;
    let epoch = race.epoch.load(Ordering::SeqCst);
    let insert = format!("insert into public.note (epoch) values ({epoch})");
    dice.dawdle().await;
    if race.isolation == Isolation::Database && race.has_sessions() && dice.roll(3) == 0 {
        run(app, home.enter_session(epoch)).await?;
        for _ in 0..dice.roll(5) {
            dice.dawdle().await;
            run(app, &*insert).await?;
        }
        // An unwrapped statement is for the epoch that the session entered at.
        return Ok(());
    }
    let level = LEVELS[usize::try_from(dice.roll(3)).unwrap()];
    run(app, format!("begin isolation level {level}")).await?;
    if dice.roll(2) == 0 {
        dice.dawdle().await;
        run(app, "select count(*) from public.note where epoch = 0").await?;
        dice.dawdle().await;
    }
    run(app, home.enter(epoch)).await?;
    dice.dawdle().await;
    run(app, insert).await?;
    dice.dawdle().await;
    if dice.roll(4) > 0 {
        return run(app, "commit").await;
    }
    let name = format!("p{}", biplane::tenant::TenantId::new());
    run(app, format!("prepare transaction '{name}'")).await?;
    dice.dawdle().await;
    let finish = format!("commit prepared '{name}'");
    match run(app, &*finish).await {
        Ok(()) => Ok(()),
        // Its session was ended; it is not lost, and another one has to finish it.
        Err(_) => run(&mut home.app().await, finish).await,
    }
}
