//! The race: routers write, movers move and die, routers stop and go on, servers are killed, and neighbours export.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Debug,
    str::FromStr,
    time::Instant,
};

use biplane::{
    plane::{IsolationLevel, TenantTx, TxOptions},
    tenant::{Isolation, Role},
    testing::wait,
};

use crate::{
    dice::Dice,
    mover::{Moved, Mover, STEPS},
    process::Process,
    router::Way,
    stopped::{IMPATIENCE, end_work_of},
    verdict::{journal, journals},
    world::{LIMIT, Place, TENANTS, World, neighbour, slug},
};

const ROUTERS: usize = 3;
/// Moves that nothing disturbs, in each round.
const QUIET: usize = 4;

/// What happens in a round, in an order of chance.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A tenant moves.
    Move,
    /// A mover is killed before a step, or in it.
    Kill { step: &'static str, within: bool },
    /// A router is stopped, and all tenants move.
    Stop,
    /// A mover's server is killed when the fence has returned, and so is the mover.
    PowerCut,
}

fn setting<T: FromStr<Err: Debug>>(name: &str, default: impl FnOnce() -> T) -> T {
    env::var(name).map_or_else(|_| default(), |text| text.parse().unwrap())
}

/// Tells how to repeat what has failed.
struct Seed(u64);

impl Drop for Seed {
    #[expect(clippy::print_stderr, reason = "the harness shows it with the failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat the plan with BIPLANE_ROW_ONE_SEED={}", self.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn race() {
    run(World::new().await).await;
}

pub(crate) async fn run(world: World) {
    let rounds = setting("BIPLANE_ROW_ONE_ROUNDS", || 1);
    let chance = || uuid::Uuid::new_v4().as_u64_pair().0 >> 16;
    let seed = Seed(setting("BIPLANE_ROW_ONE_SEED", chance));
    let mut race = Race::start(world, seed.0).await;
    for _ in 0..rounds {
        for event in race.plan() {
            race.until_all_have_written().await;
            race.happen(event).await;
        }
    }
    race.finish().await;
}

struct Race {
    world: World,
    dice: Dice,
    routers: Vec<Process>,
    mover: Mover,
    /// Of the neighbours: open from beginning to end, or to a power cut.
    exports: Vec<TenantTx>,
    biplane: biplane::Biplane,
}

impl Race {
    async fn start(world: World, seed: u64) -> Self {
        let biplane = world.biplane();
        let mut exports = Vec::new();
        for server in 0..world.data.len() {
            exports.push(export(&biplane, server).await);
        }
        let routers = (0..ROUTERS).map(|number| {
            let variables = world.variables(&name(number), seed.wrapping_add(number as u64));
            Process::start("router::a_process_that_writes", &variables)
        });
        let race = Self {
            routers: routers.collect(),
            mover: Mover::start(&world),
            dice: Dice::new(seed),
            exports,
            biplane,
            world,
        };
        race.until_every_way_was_gone().await;
        race
    }

    /// Each step is killed at once in each round, before it or in it, and in the next round the other way.
    fn plan(&mut self) -> Vec<Event> {
        let mut plan = vec![Event::Stop, Event::Stop, Event::PowerCut];
        plan.extend([Event::Move; QUIET]);
        for step in STEPS {
            let within = self.dice.roll(2) == 0;
            plan.push(Event::Kill { step, within });
        }
        self.dice.shuffle(&mut plan);
        plan
    }

    async fn happen(&mut self, event: Event) {
        let tenant = self.dice.choose(&TENANTS).0;
        let to = self.dice.choose(&Place::all(tenant));
        match event {
            Event::Move => self.move_patiently(tenant, to).await,
            Event::Kill { step, within } => {
                if within {
                    self.mover.begin(tenant, to, LIMIT, "-").await;
                    self.mover.until(step).await;
                } else {
                    let moved = self.mover.move_to(tenant, to, LIMIT, step).await;
                    assert_eq!(moved, Moved::Halted, "{step} of {tenant} to {to}");
                }
                self.replace_mover().await;
                self.settle_or_move(tenant).await;
            }
            Event::Stop => self.stop_a_router().await,
            Event::PowerCut => self.cut_power(tenant, to).await,
        }
    }

    async fn move_patiently(&mut self, tenant: &str, to: Place) {
        let moved = self.mover.move_to(tenant, to, LIMIT, "").await;
        assert_eq!(moved, Moved::Done, "{tenant} to {to}");
    }

    /// The next mover does what is left, now or on its way to somewhere else.
    async fn settle_or_move(&mut self, tenant: &str) {
        if self.dice.roll(2) == 0 {
            let settled = self.mover.settle(tenant, "").await;
            assert_eq!(settled, Moved::Done, "{tenant}");
        } else {
            let to = self.dice.choose(&Place::all(tenant));
            self.move_patiently(tenant, to).await;
        }
        assert!(self.world.is_open(tenant).await, "{tenant}");
    }

    async fn replace_mover(&mut self) {
        let dead = std::mem::replace(&mut self.mover, Mover::start(&self.world));
        dead.0.kill().await;
    }

    async fn stop_a_router(&mut self) {
        let stopped = self.dice.roll(ROUTERS);
        self.routers[stopped].stop();
        for (tenant, _) in TENANTS {
            let to = self.dice.choose(&Place::all(tenant));
            let until = Instant::now() + LIMIT;
            // Either the drain ends what the router has begun, or it names it and the tenant is open again.
            while let moved = self.mover.move_to(tenant, to, IMPATIENCE, "").await
                && moved != Moved::Done
            {
                let Moved::Undrained(detail) = moved else {
                    panic!("{tenant} to {to}: {moved:?}");
                };
                assert!(Instant::now() < until, "{detail}");
                assert!(self.world.is_open(tenant).await, "{detail}");
                end_work_of(&self.world, tenant, &name(stopped), &detail).await;
            }
        }
        let file = self.world.directory().join(name(stopped));
        let before = journal(&file).len();
        self.routers[stopped].resume();
        wait::until("it goes on", LIMIT, async || journal(&file).len() > before)
            .await
            .unwrap();
    }

    async fn cut_power(&mut self, tenant: &str, to: Place) {
        let place = self.world.control.place(tenant).await;
        let moved = self.mover.move_to(tenant, to, LIMIT, "copy").await;
        assert_eq!(moved, Moved::Halted, "{tenant} to {to}");
        let server = &self.world.data[place.server];
        server.kill().await.unwrap();
        server.start_again().await.unwrap();
        assert!(!self.world.is_open(tenant).await, "{tenant}: the fence was lost");
        self.replace_mover().await;
        self.settle_or_move(tenant).await;
        self.exports[place.server] = export(&self.biplane, place.server).await;
    }

    /// So that there is something to fence.
    async fn until_all_have_written(&self) {
        let count = || {
            let mut rows: BTreeMap<String, usize> = BTreeMap::new();
            for told in journals(self.world.directory()) {
                *rows.entry(told.tenant).or_default() += 1;
            }
            rows
        };
        let before = count();
        wait::until("each tenant's writers write", LIMIT, async || {
            let now = count();
            TENANTS.iter().all(|(tenant, _)| now[*tenant] > before[*tenant])
        })
        .await
        .unwrap();
    }

    /// So that no kind of writer is left out.
    async fn until_every_way_was_gone(&self) {
        let mut expected: BTreeSet<(String, String)> = BTreeSet::new();
        for (tenant, isolation) in TENANTS {
            let ways = Way::ALL.into_iter();
            let holds = isolation == Isolation::Database && self.world.lends_sessions;
            let ways = ways.filter(|way| *way != Way::Held || holds);
            expected.extend(ways.map(|way| (tenant.to_owned(), format!("{way:?}"))));
        }
        wait::until("every way of writing in every mode", LIMIT, async || {
            let told = journals(self.world.directory()).into_iter();
            let gone: BTreeSet<_> = told.map(|told| (told.tenant, told.way)).collect();
            gone.is_superset(&expected)
        })
        .await
        .unwrap();
    }

    async fn finish(mut self) {
        self.until_all_have_written().await;
        for mut export in self.exports {
            let rows: i64 = sqlx::query_scalar("select count(*) from note")
                .fetch_one(&mut export)
                .await
                .unwrap();
            assert_eq!(rows, 0, "rows of others, or later ones");
            export.commit().await.unwrap();
        }
        for router in self.routers {
            router.end().await;
        }
        self.mover.0.end().await;
        self.world.judge().await;
    }
}

fn name(number: usize) -> String {
    format!("router-{number}")
}

/// A transaction of a neighbour's that stays open, with a login that may rest in one.
async fn export(biplane: &biplane::Biplane, server: usize) -> TenantTx {
    let options = TxOptions::new()
        .isolation(IsolationLevel::RepeatableRead)
        .read_only();
    let neighbour = neighbour(server);
    let exporting = async || {
        let db = biplane.route(&slug(&neighbour)).await.ok()?;
        let mut tx = db.with_role(Role::Service).begin_with(options).await.ok()?;
        sqlx::query("select count(*) from note")
            .execute(&mut tx)
            .await
            .ok()?;
        Some(tx)
    };
    // A server that has just been killed is left alone for a moment.
    wait::until_some("the export begins", LIMIT, exporting)
        .await
        .unwrap()
}
