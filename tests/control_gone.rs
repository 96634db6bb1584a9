//! Tenants in use notice nothing of a control plane that cannot be asked, whatever keeps it from answering, and its
//! return is noticed.
//!
//! Routes are fresh for a moment only, so that each has to be asked for again all the while.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;

use std::time::Duration;

use biplane::{
    Biplane,
    connector::memory::MemoryDb,
    error::{Error, ErrorKind},
    plane::{ControlDb, ControlOptions},
    repository::{Actor, ChangeLog, ControlSchema, NewSource, NewTenant, PgTenants, TenantAdmin},
    router::{CacheOptions, FeedOptions},
    tenant::{Isolation, Location, Slug, Tenant, TenantStatus},
    testing::{
        postgres::Cluster,
        proxy::{Arrivals, Direction, FaultProxy, NetworkFault},
        wait,
    },
};
use control::{ADMIN, Postgres, ROUTER, cluster, create_role, grants, login, owner, patient, run};

const PATIENCE: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_millis(20);
const TENANTS: usize = 12;

fn by() -> Actor {
    Actor::new("a test", "to see what happens")
}

/// A process with tenants in use, whose control plane is reached through a proxy.
struct World {
    control: Postgres,
    proxy: FaultProxy,
    router: Biplane<MemoryDb<u32>>,
    used: Vec<(Tenant, MemoryDb<u32>)>,
}

async fn tenant(control: &Postgres, name: &str) -> Tenant {
    let admin = control.pg_admin();
    let source = NewSource::new(format!("source-of-{name}"), Location::Memory);
    let source = admin.create_source(&by(), source).await.unwrap();
    let mut new = NewTenant::new(Slug::parse(name).unwrap(), source.id);
    new.isolation = Isolation::Row;
    let tenant = admin.create(&by(), new).await.unwrap();
    let status = TenantStatus::Active;
    admin
        .set_status(&by(), tenant.id, tenant.version, status)
        .await
        .unwrap()
}

async fn world() -> World {
    let control = control::postgres().await;
    world_on(cluster().await, control).await
}

async fn world_on(cluster: &Cluster, control: Postgres) -> World {
    let server = cluster.server(&control.database);
    let proxy = FaultProxy::start(&server.endpoints[0]).await.unwrap();
    let options = ControlOptions::new(proxy.through(&server).unwrap(), login(ROUTER));
    let tenants = PgTenants::new(ControlDb::connect(options).unwrap());
    let cache = CacheOptions::default()
        .fresh_for(MOMENT)
        .refresh_for(2 * MOMENT)
        .retry_after(MOMENT)
        .load_timeout(10 * MOMENT);
    let router = Biplane::memory(tenants, |_| 0_u32)
        .cache(cache)
        .feed(
            FeedOptions::default()
                .interval(5 * MOMENT)
                .query_timeout(10 * MOMENT),
        )
        .build()
        .unwrap();
    let mut used = Vec::new();
    for n in 0..TENANTS {
        let tenant = tenant(&control, &format!("tenant-{n}")).await;
        let held = wait::until_some("it is routed", PATIENCE, async || {
            router.route(&tenant.slug).await.ok()
        })
        .await
        .unwrap();
        used.push((tenant, held));
    }
    let world = World {
        control,
        proxy,
        router,
        used,
    };
    let head = world.control.pg_tenants().head().await.unwrap().seq;
    // Until then a tenant that changed is refused when it cannot be read again in time, and everybody was just created.
    wait::until("nothing that happened is news to it", PATIENCE, async || {
        let told = world.router.applied() >= head && world.router.stats().feed.unsure_tenants == 0;
        let works = world.work().await.is_ok();
        told && works && world.router.stats().cached_tenants == TENANTS
    })
    .await
    .unwrap();
    world
}

impl World {
    /// Everybody works, by a handle that is held and by one that is asked for.
    async fn work(&self) -> Result<(), Error> {
        for (tenant, held) in &self.used {
            held.write(|count| *count += 1).await?;
            let asked = self.router.route(&tenant.slug).await?;
            asked.read(|count| assert!(*count > 0)).await?;
        }
        Ok(())
    }

    /// Works until the control plane could not be asked for long enough that every route was asked for in vain, then
    /// until it is back and a change acts again.
    async fn goes_on_while(&self, gone: impl AsyncFnOnce(), back: impl AsyncFnOnce()) {
        let before = self.router.stats();
        gone().await;
        let noticed = async || {
            self.work().await.unwrap();
            let now = self.router.stats();
            now.failed_loads >= before.failed_loads + 3
                && now.served_stale >= before.served_stale + TENANTS as u64
                && now.feed.failing_for > Some(10 * MOMENT)
        };
        wait::until("the control plane was asked in vain", PATIENCE, noticed)
            .await
            .unwrap();
        // The age of what is served is told.
        assert!(self.used.iter().all(|(_, held)| held.route_age() > Some(MOMENT)));
        let unknown = Slug::parse("somebody-else").unwrap();
        let answer = kind(self.router.route(&unknown).await);
        assert!(
            answer.is_some_and(|kind| kind != ErrorKind::UnknownTenant),
            "{answer:?}"
        );

        back().await;
        let (acme, held) = &self.used[0];
        let suspended = wait::until_some("the control plane can be written", PATIENCE, async || {
            let admin = self.control.pg_admin();
            admin
                .set_status(&by(), acme.id, acme.version, TenantStatus::Suspended)
                .await
                .ok()
        })
        .await
        .unwrap();
        wait::until("a change acts", PATIENCE, async || {
            let status = TenantStatus::Suspended;
            kind(held.read(|_| ()).await) == Some(ErrorKind::Inactive { status })
        })
        .await
        .unwrap();
        assert_eq!(suspended.id, acme.id);
    }
}

fn kind<T>(outcome: Result<T, Error>) -> Option<ErrorKind> {
    outcome.err().map(|error| error.kind())
}

#[tokio::test]
async fn it_refuses_connections() {
    let world = world().await;
    let proxy = &world.proxy;
    let gone = async || {
        proxy.set_arrivals(Arrivals::Refuse).await.unwrap();
        proxy.reset();
    };
    world
        .goes_on_while(gone, async || proxy.heal().await.unwrap())
        .await;
}

#[tokio::test]
async fn it_resets_each_connection() {
    let world = world().await;
    let proxy = &world.proxy;
    let gone = async || {
        proxy.set_arrivals(Arrivals::Reset).await.unwrap();
        proxy.reset();
    };
    world
        .goes_on_while(gone, async || proxy.heal().await.unwrap())
        .await;
}

#[tokio::test]
async fn it_accepts_and_says_nothing() {
    let world = world().await;
    let proxy = &world.proxy;
    let gone = async || proxy.set(Direction::ToClient, NetworkFault::Stall);
    world
        .goes_on_while(gone, async || proxy.heal().await.unwrap())
        .await;
}

#[tokio::test]
async fn the_network_swallows_everything() {
    let world = world().await;
    let proxy = &world.proxy;
    let gone = async || proxy.set(Direction::Both, NetworkFault::BlackHole);
    let back = async || {
        proxy.heal().await.unwrap();
        proxy.reset();
    };
    world.goes_on_while(gone, back).await;
}

#[tokio::test]
async fn it_answers_too_late() {
    let world = world().await;
    let proxy = &world.proxy;
    let gone = async || proxy.set(Direction::ToClient, NetworkFault::Delay(25 * MOMENT));
    world
        .goes_on_while(gone, async || proxy.heal().await.unwrap())
        .await;
}

#[tokio::test]
async fn it_lets_nobody_into_its_database() {
    let world = world().await;
    let database = &world.control.database;
    let allow = async |allow: bool| {
        let mut elsewhere = owner("postgres").await;
        let sql = format!(
            "alter database {database} allow_connections {allow};
             select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'"
        );
        run(&mut elsewhere, sql).await.unwrap();
    };
    world
        .goes_on_while(async || allow(false).await, async || allow(true).await)
        .await;
}

#[tokio::test]
async fn its_router_may_read_no_more() {
    let world = world().await;
    let mut dba = owner(&world.control.database).await;
    let mut another = owner(&world.control.database).await;
    let revoke = format!("revoke usage on schema biplane_control from {ROUTER}");
    let grant = format!("grant usage on schema biplane_control to {ROUTER}");
    world
        .goes_on_while(
            async || run(&mut dba, revoke).await.unwrap(),
            async || run(&mut another, grant).await.unwrap(),
        )
        .await;
}

#[tokio::test]
async fn its_schema_is_gone() {
    let world = world().await;
    let mut dba = owner(&world.control.database).await;
    let mut another = owner(&world.control.database).await;
    world
        .goes_on_while(
            async || {
                run(&mut dba, "alter schema biplane_control rename to elsewhere")
                    .await
                    .unwrap();
            },
            async || {
                run(&mut another, "alter schema elsewhere rename to biplane_control")
                    .await
                    .unwrap();
            },
        )
        .await;
}

#[tokio::test]
async fn it_is_stopped_in_the_middle_of_everything() {
    let own = Cluster::start().await.unwrap();
    for role in [ROUTER, ADMIN] {
        create_role(&own, role).await;
    }
    own.create_database("control").await.unwrap();
    let mut superuser = own.connect("control").await.unwrap();
    run(&mut superuser, ControlSchema::install_sql(&grants()))
        .await
        .unwrap();
    let connect = |role: &str| patient(own.server("control"), login(role));
    let control = Postgres {
        database: "control".to_owned(),
        router: connect(ROUTER),
        admin: connect(ADMIN),
    };
    let world = world_on(&own, control).await;
    world
        .goes_on_while(
            async || own.pause().await.unwrap(),
            async || own.resume().await.unwrap(),
        )
        .await;
}
