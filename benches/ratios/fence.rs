//! What it costs to enter, and how long a fence takes, beside the other way of doing both: locks.
//!
//! The peer `locked` is what [`biplane::manual::fence`] says of it: whoever enters takes a shared advisory lock and
//! `FOR SHARE` on the tenant's row, and the mover takes the advisory lock alone, so that it waits for those before it and
//! those after it wait for it. It returns as soon as it has it, with nothing to list.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use biplane::{
    plane::{DataSchema, DrainOptions, Fence, Residence, RoleName},
    tenant::{DatabaseId, Epoch, Isolation, TenantId},
    testing::postgres::Cluster,
};
use sqlx::{AssertSqlSafe, PgConnection, raw_sql};
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    checkout::Pinned,
    measure::{Claim, Goal, on_two_threads, ratio},
};

pub(crate) const CLAIMS: &[fn() -> Claim] = &[
    || enter("begin_and_enter_again/begin", 1, Entry::Again, Entry::None),
    || enter("begin_and_enter_again_32/begin_32", 32, Entry::Again, Entry::None),
    || enter("begin_and_enter/begin", 1, Entry::Fence, Entry::None),
    || enter("begin_and_enter_32/begin_32", 32, Entry::Fence, Entry::None),
    || enter("begin_and_enter/locked", 1, Entry::Fence, Entry::Locked),
    || enter("begin_and_enter_32/locked_32", 32, Entry::Fence, Entry::Locked),
    || fences("fence_60_writers_median_ms", 300, Entry::Fence, 50),
    || fences("fence_60_writers_p99_ms", 1_000, Entry::Fence, 99),
    // Only to be held beside the others.
    || fences("fence_60_writers_locked_median_ms", 10_000, Entry::Locked, 50),
    || fences("fence_60_writers_locked_p99_ms", 10_000, Entry::Locked, 99),
];

const WRITERS: usize = 60;
/// Enough that the 99th of a hundred stands for something.
const FENCES: usize = 100;
const TRIPS: usize = 20;

/// The peer. Its owner writes for those who enter, who may not.
const LOCKED: &str = "
    create function public.enter_locked(tenant uuid, epoch bigint) returns void
    language plpgsql security definer as $f$
    declare home biplane.residence;
    begin
        perform pg_advisory_xact_lock_shared(7, uuid_hash(tenant));
        select * into home from biplane.residence as r where r.tenant_id = enter_locked.tenant for share;
        if home.epoch is distinct from enter_locked.epoch or home.state <> 'open' then
            raise exception using errcode = 'BP002', message = 'fenced';
        end if;
        perform set_config('app.tenant_id', tenant::text, true);
    end $f$;
    grant execute on function public.enter_locked to app;
    create table public.note (id bigint generated always as identity, epoch bigint);
    grant select, insert on public.note to app";

#[derive(Clone, Copy)]
enum Entry {
    None,
    Fence,
    /// In a session that has entered.
    Again,
    Locked,
}

fn enter(name: &'static str, clients: usize, ours: Entry, peer: Entry) -> Claim {
    let goal = match peer {
        Entry::None => Goal::RatioAtMost(1.6),
        _ => Goal::RatioAtMost(1.0),
    };
    Claim::new(name, goal, move || {
        // One client alone does nothing while the server works: on two processors it would wake another each time, which
        // takes longer than what is compared.
        let pinned = (clients == 1).then(Pinned::new);
        let bench = Bench::start(match ours {
            Entry::Again => Isolation::Database,
            _ => Isolation::Row,
        });
        let mut first = bench.connections(clients, ours);
        let mut second = bench.connections(clients, peer);
        let measured = ratio(
            || bench.transactions(&mut first, ours),
            || bench.transactions(&mut second, peer),
        );
        drop(pinned);
        measured
    })
}

fn fences(name: &'static str, goal: u64, entry: Entry, percentile: usize) -> Claim {
    Claim::new(name, Goal::CountAtMost(goal), move || {
        let bench = Bench::start(Isolation::Row);
        let mut times = bench.fences(entry);
        times.sort();
        let place = (times.len() * percentile).div_ceil(100) - 1;
        times[place].as_secs_f64() * 1000.0
    })
}

struct Bench {
    runtime: Runtime,
    cluster: Arc<Cluster>,
    tenant: TenantId,
    database: DatabaseId,
}

impl Bench {
    fn start(isolation: Isolation) -> Self {
        let runtime = on_two_threads();
        let (tenant, database) = (TenantId::new(), DatabaseId::new());
        let cluster = runtime
            .block_on(server(tenant, database, isolation))
            .expect("a server starts");
        Self {
            runtime,
            cluster: Arc::new(cluster),
            tenant,
            database,
        }
    }

    fn connections(&self, number: usize, entry: Entry) -> Vec<Option<PgConnection>> {
        self.runtime.block_on(async {
            let mut connections = Vec::new();
            for _ in 0..number {
                let mut connection = connect(&self.cluster).await;
                if let Entry::Again = entry {
                    let (tenant, database) = (self.tenant, self.database);
                    let session = format!("select biplane.enter_session_v1('{tenant}', 1, '{database}')");
                    send(&mut connection, &session).await.expect("it enters");
                }
                connections.push(Some(connection));
            }
            connections
        })
    }

    fn begin(&self, entry: Entry) -> String {
        let (tenant, database) = (self.tenant, self.database);
        match entry {
            Entry::None => "begin".to_owned(),
            Entry::Fence => format!("begin; select biplane.enter_v1('{tenant}', 1, '{database}')"),
            Entry::Again => format!("begin; execute biplane_{}_1", tenant.as_uuid().simple()),
            Entry::Locked => format!("begin; select public.enter_locked('{tenant}', 1)"),
        }
    }

    /// As many at once as there are connections, each a few times: begin, one statement, commit.
    fn transactions(&self, connections: &mut [Option<PgConnection>], entry: Entry) -> Duration {
        let begin = self.begin(entry);
        self.runtime.block_on(async {
            let begun = Instant::now();
            let mut running = JoinSet::new();
            for (place, slot) in connections.iter_mut().enumerate() {
                let mut connection = slot.take().expect("it was put back");
                let begin = begin.clone();
                running.spawn(async move {
                    for _ in 0..TRIPS {
                        send(&mut connection, &begin).await.expect("it enters");
                        send(&mut connection, "select 1").await.expect("it answers");
                        send(&mut connection, "commit").await.expect("it commits");
                    }
                    (place, connection)
                });
            }
            while let Some(done) = running.join_next().await {
                let (place, connection) = done.expect("no task panics");
                connections[place] = Some(connection);
            }
            begun.elapsed()
        })
    }

    /// How long each of many fences takes while writers write, who are let in again after each.
    fn fences(&self, entry: Entry) -> Vec<Duration> {
        self.runtime.block_on(async {
            let over = Arc::new(AtomicBool::new(false));
            let begin = self.begin(entry);
            let mut writers = JoinSet::new();
            for _ in 0..WRITERS {
                let (cluster, over, begin) = (Arc::clone(&self.cluster), Arc::clone(&over), begin.clone());
                writers.spawn(async move {
                    let mut connection = connect(&cluster).await;
                    while !over.load(Ordering::Relaxed) {
                        if send(&mut connection, &begin).await.is_ok() {
                            send(&mut connection, "insert into public.note (epoch) values (1)")
                                .await
                                .expect("it writes");
                        }
                        send(&mut connection, "commit").await.expect("it ends");
                    }
                });
            }
            let mut mover = self
                .cluster
                .connect("postgres")
                .await
                .expect("the server is there");
            let mut times = Vec::new();
            for _ in 0..FENCES {
                // Between fences the writers come up to speed.
                tokio::time::sleep(Duration::from_millis(50)).await;
                times.push(match entry {
                    Entry::Locked => self.fence_locked(&mut mover).await,
                    _ => self.fence(&mut mover).await,
                });
            }
            over.store(true, Ordering::Relaxed);
            while let Some(done) = writers.join_next().await {
                done.expect("no writer panics");
            }
            times
        })
    }

    async fn fence(&self, mover: &mut PgConnection) -> Duration {
        let options = DrainOptions::default().deadline(Duration::from_secs(60));
        let mut fence = Fence::new(mover);
        let taken = fence
            .fence(self.tenant, Epoch::FIRST, &options)
            .await
            .expect("it fences");
        fence.unfence(self.tenant, Epoch::FIRST).await.expect("it opens");
        taken
    }

    async fn fence_locked(&self, mover: &mut PgConnection) -> Duration {
        let tenant = self.tenant;
        let fence = format!(
            "begin; select pg_advisory_xact_lock(7, uuid_hash('{tenant}'));
             update biplane.residence set state = 'fenced' where tenant_id = '{tenant}'; commit"
        );
        let begun = Instant::now();
        send(mover, &fence).await.expect("it fences");
        let taken = begun.elapsed();
        let unfence = format!("update biplane.residence set state = 'open' where tenant_id = '{tenant}'");
        send(mover, &unfence).await.expect("it opens");
        taken
    }
}

async fn send(connection: &mut PgConnection, sql: &str) -> sqlx::Result<()> {
    raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await
        .map(drop)
}

async fn connect(cluster: &Cluster) -> PgConnection {
    let login = biplane::secret::Credential::new("app", secrecy::SecretString::from("a-password"))
        .expect("a name and a password");
    cluster
        .connect_as(&login, "postgres")
        .await
        .expect("the server is there")
}

async fn server(
    tenant: TenantId,
    database: DatabaseId,
    isolation: Isolation,
) -> Result<Cluster, Box<dyn std::error::Error>> {
    let cluster = Cluster::builder().max_connections(200).durable().start().await?;
    cluster
        .create_role("app", &secrecy::SecretString::from("a-password"), &[])
        .await?;
    let mut owner = cluster.connect("postgres").await?;
    DataSchema::install(&mut owner, database, &[RoleName::parse("app")?]).await?;
    Fence::new(&mut owner)
        .place(&Residence::new(tenant, Epoch::FIRST, isolation))
        .await?;
    send(&mut owner, LOCKED).await?;
    Ok(cluster)
}
