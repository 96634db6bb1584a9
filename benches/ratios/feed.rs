//! What following changes costs a lookup, and how soon a change acts in another process.

use std::{
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use biplane::{
    Biplane,
    connector::memory::MemoryDb,
    plane::{ControlDb, ControlOptions},
    repository::{
        Actor, ChangeSource, ControlSchema, Grants, MemoryControl, NewTenant, PgTenantAdmin, PgTenants,
        TenantAdmin,
    },
    router::FeedOptions,
    tenant::{DataSourceId, Isolation, Slug, Tenant, TenantRef, TenantStatus},
    testing::{postgres::Cluster, wait},
};
use tokio::sync::oneshot;

use crate::{
    measure::{Claim, Goal, on_one_thread, on_two_threads, ratio_of_pairs, time},
    peers::{Cached, Lookup, random_order, slugs, warm_router},
};

pub(crate) const CLAIMS: &[fn() -> Claim] = &[
    followed_against_not,
    queries_of_a_cold_start,
    push_median,
    push_longest,
    poll_median,
    poll_longest,
];

const TENANTS: usize = 1_000;
const LOOKUPS: usize = 4_000;
/// Changes that are timed, spread over so many tenants.
const CHANGES: usize = 200;
const AT_ONCE: usize = 8;
/// Far longer than anything here takes: what is not there by then never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The feed confirms all routes fifty times a second, which is fifty times as often as it does.
fn followed_against_not() -> Claim {
    Claim::new(
        "route_hit_followed/route_hit_sync",
        Goal::RatioAtMost(1.05),
        || {
            let slugs = slugs(TENANTS);
            let order = random_order(&slugs, LOOKUPS);
            ratio_of_pairs(
                || (Followed::start(&slugs), Cached(warm_router(&slugs))),
                |with| time(|| with.cached.look_up(order.iter())),
                |without| time(|| without.look_up(order.iter())),
            )
        },
    )
}

/// A router whose feed runs on a thread of its own.
struct Followed {
    cached: Cached,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Followed {
    fn start(slugs: &[Slug]) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, built) = std::sync::mpsc::channel();
        let slugs = slugs.to_vec();
        let thread = thread::spawn(move || {
            let runtime = on_one_thread();
            runtime.block_on(async move {
                let control = MemoryControl::new();
                for slug in &slugs {
                    add(&control, *slug).await;
                }
                let biplane = Biplane::memory(control, |_| ())
                    .feed(FeedOptions::default().interval(Duration::from_millis(20)))
                    .map(|db| Arc::new(db.tenant().as_uuid().as_u64_pair().1))
                    .build()
                    .expect("the settings are valid");
                wait::until("the feed has its position", PATIENCE, async || {
                    biplane.stats().feed.applied.is_some()
                })
                .await
                .expect("it looks fifty times a second");
                for slug in &slugs {
                    biplane.route(slug).await.expect("the tenant is there");
                }
                ready.send(biplane).expect("somebody waits");
                // The feed runs for as long as its runtime does.
                let _ = stopped.await;
            });
        });
        Self {
            cached: Cached(built.recv().expect("the thread builds it")),
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it ends");
        }
    }
}

fn queries_of_a_cold_start() -> Claim {
    Claim::new("cold_start_1000_tenants_queries", Goal::CountAtMost(20), || {
        on_postgres(async |stage| {
            let mut slugs = Vec::new();
            for slug in crate::peers::slugs(TENANTS) {
                slugs.push(add(&stage.admin, slug).await.slug);
            }
            let names: Vec<_> = slugs.iter().map(TenantRef::Slug).collect();
            let biplane = stage.router(ChangeSource::polled(stage.tenants.clone()));
            assert_eq!(biplane.warm_up(&names).await.routed, TENANTS);
            biplane.stats().loads as f64
        })
    })
}

fn push_median() -> Claim {
    let goal = Goal::CountAtMost(100);
    Claim::new("change_acts_by_push_median_ms", goal, || by_push().median)
}

fn push_longest() -> Claim {
    let goal = Goal::CountAtMost(3_000);
    Claim::new("change_acts_by_push_longest_ms", goal, || by_push().longest)
}

fn poll_median() -> Claim {
    let goal = Goal::CountAtMost(1_200);
    Claim::new("change_acts_by_polling_median_ms", goal, || by_polling().median)
}

fn poll_longest() -> Claim {
    let goal = Goal::CountAtMost(3_000);
    Claim::new("change_acts_by_polling_longest_ms", goal, || by_polling().longest)
}

#[derive(Clone, Copy)]
struct Times {
    median: f64,
    longest: f64,
}

fn by_push() -> Times {
    static TIMES: OnceLock<Times> = OnceLock::new();
    let push = |tenants: PgTenants| ChangeSource::pushed(tenants.clone(), tenants);
    *TIMES.get_or_init(|| changes_until_they_act(push))
}

fn by_polling() -> Times {
    static TIMES: OnceLock<Times> = OnceLock::new();
    *TIMES.get_or_init(|| changes_until_they_act(ChangeSource::polled))
}

/// From the moment at which a commit is acknowledged to that at which a handle in another process obeys it.
fn changes_until_they_act(source: impl FnOnce(PgTenants) -> ChangeSource) -> Times {
    let mut times = on_postgres(async |stage| {
        let biplane = stage.router(source(stage.tenants.clone()));
        let mut tasks = Vec::new();
        for n in 0..AT_ONCE {
            let slug = Slug::parse(&format!("tenant-{n}")).expect("it is a slug");
            let mut tenant = add(&stage.admin, slug).await;
            let held = biplane.route(&slug).await.expect("the tenant is there");
            let admin = stage.admin.clone();
            tasks.push(tokio::spawn(async move {
                let mut times = Vec::new();
                for change in 0..CHANGES / AT_ONCE {
                    // At no particular moment between two looks.
                    let pause = (change * 379 + n * 131) % 1_000;
                    tokio::time::sleep(Duration::from_millis(pause as u64)).await;
                    let status = [TenantStatus::Suspended, TenantStatus::Active][change % 2];
                    tenant = admin
                        .set_status(&by(), tenant.id, tenant.version, status)
                        .await
                        .expect("nobody else writes");
                    let committed = Instant::now();
                    let acts = async {
                        while held.read(|()| ()).await.is_ok() != (status == TenantStatus::Active) {
                            // What is measured is told to a millisecond, so it is looked at as often.
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    };
                    tokio::time::timeout(PATIENCE, acts)
                        .await
                        .expect("the change acts");
                    times.push(committed.elapsed());
                }
                times
            }));
        }
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await.expect("it does not panic"));
        }
        times
    });
    times.sort_unstable();
    let millis = |time: Duration| (time.as_secs_f64() * 1_000.0).round();
    Times {
        median: millis(times[times.len() / 2]),
        longest: millis(times[times.len() - 1]),
    }
}

struct Stage {
    tenants: PgTenants,
    admin: PgTenantAdmin,
}

impl Stage {
    fn router(&self, changes: ChangeSource) -> Biplane<MemoryDb<()>> {
        Biplane::memory(self.tenants.clone(), |_| ())
            .changes(changes)
            .build()
            .expect("the settings are valid")
    }
}

fn on_postgres<T>(work: impl AsyncFnOnce(&Stage) -> T) -> T {
    let runtime = on_two_threads();
    runtime.block_on(async {
        let cluster = Cluster::start().await.expect("a server starts");
        let mut owner = cluster.connect("postgres").await.expect("it can be reached");
        ControlSchema::install_on(&mut owner, &Grants::none())
            .await
            .expect("the schema is new");
        // Reading and writing are two processes' work.
        let connect = || {
            let options = ControlOptions::new(cluster.server("postgres"), cluster.superuser());
            ControlDb::connect(options).expect("the settings are valid")
        };
        let stage = Stage {
            tenants: PgTenants::new(connect()),
            admin: PgTenantAdmin::new(connect()),
        };
        work(&stage).await
    })
}

async fn add(admin: &impl TenantAdmin, slug: Slug) -> Tenant {
    let mut new = NewTenant::new(slug, DataSourceId::DEFAULT);
    new.isolation = Isolation::Row;
    let tenant = admin.create(&by(), new).await.expect("the slug is free");
    admin
        .set_status(&by(), tenant.id, tenant.version, TenantStatus::Active)
        .await
        .expect("it may be opened")
}

fn by() -> Actor {
    Actor::new("bench", "measuring")
}
