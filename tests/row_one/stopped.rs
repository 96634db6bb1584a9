//! A router that is stopped in the middle of everything, and goes on when its tenants are elsewhere.

use std::time::Duration;

use biplane::{
    plane::Fence,
    settings::Settings,
    tenant::{Isolation, TenantId},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    mover::{Moved, Mover},
    process::Process,
    router::{self, Journal, LEVELS, Way},
    world::{LIMIT, Place, TENANTS, World, run, slug},
};

/// How long a mover waits for what does not end.
pub(crate) const IMPATIENCE: Duration = Duration::from_millis(1_000);

impl World {
    /// A router in the test's own process.
    pub(crate) fn biplane(&self) -> biplane::Biplane {
        let url = self.control_url().to_owned();
        let lookup = |name: &str| (name == "BIPLANE_CONTROL_URL").then(|| url.clone());
        let settings = Settings::from_lookup(lookup).unwrap();
        router::biplane(&settings, self.keyring.clone(), "test")
    }

    /// Whether the database lets the tenant in.
    pub(crate) async fn is_open(&self, tenant: &str) -> bool {
        let place = self.control.place(tenant).await;
        let id = self.id(tenant).await;
        let residences = Fence::new(&mut self.owner(place).await).residences().await;
        let all = residences.unwrap();
        let here = all.iter().find(|residence| residence.tenant == id);
        here.unwrap().state == biplane::plane::ResidenceState::Open
    }

    pub(crate) async fn id(&self, tenant: &str) -> TenantId {
        self.control.tenant(tenant).await.unwrap().tenant.id
    }

    pub(crate) async fn epoch(&self, tenant: &str) -> u64 {
        let record = self.control.tenant(tenant).await.unwrap();
        record.tenant.placement.epoch.value()
    }
}

/// The process ids of the server that an error names.
fn named(detail: &str) -> Vec<i32> {
    let after = detail.split("process ids ").nth(1).unwrap_or_default();
    let words = after.split(|c: char| !c.is_ascii_digit());
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Of these sessions, those of a router.
async fn of_router(owner: &mut PgConnection, pids: &[i32], router: &str) -> Vec<i32> {
    sqlx::query_scalar(
        "select pid from pg_stat_activity
         where pid = any ($1) and datname = current_database() and starts_with(application_name, $2)",
    )
    .bind(pids)
    .bind(router)
    .fetch_all(owner)
    .await
    .unwrap()
}

/// Does as a person does whom a mover has told who is in its way: ends the sessions of the router that does not go on, and
/// rolls back what it has prepared.
pub(crate) async fn end_work_of(world: &World, tenant: &str, router: &str, detail: &str) -> usize {
    let place = world.control.place(tenant).await;
    let mut owner = world.owner(place).await;
    let pids = of_router(&mut owner, &named(detail), router).await;
    let ended: Vec<bool> =
        sqlx::query_scalar("select pg_terminate_backend(pid, 60000) from unnest($1::int[]) as session (pid)")
            .bind(&pids)
            .fetch_all(&mut owner)
            .await
            .unwrap();
    assert!(ended.into_iter().all(|ended| ended), "they end");
    let prepared: Vec<String> = sqlx::query_scalar(
        "select gid from pg_prepared_xacts where database = current_database() and starts_with(gid, $1)",
    )
    .bind(router)
    .fetch_all(&mut owner)
    .await
    .unwrap();
    for name in &prepared {
        let mut superuser = world.data[place.server].connect(place.database()).await.unwrap();
        run(&mut superuser, format!("rollback prepared '{name}'"))
            .await
            .unwrap();
    }
    pids.len() + prepared.len()
}

#[tokio::test]
async fn a_router_that_was_stopped_past_the_drain_commits_nothing() {
    commits_nothing(World::new().await).await;
}

pub(crate) async fn commits_nothing(mut world: World) {
    let biplane = world.biplane();
    let journal = Journal::open(world.directory(), "test");
    let mut mover = Mover::start(&world);
    let main = "router::a_process_that_is_told_to_write";
    let mut router = Process::start(main, &world.variables("stopped", 0));
    // There and back: sessions of one server rest for ever, and those of the other for half a second.
    for server in [1, 0] {
        router.tell("hold").await;
        assert_eq!(router.hear().await, "holding");
        router.stop();
        for (tenant, isolation) in TENANTS {
            let to = Place::new(server, isolation);
            let before = world.epoch(tenant).await;
            let mut moved = mover.move_to(tenant, to, IMPATIENCE, "").await;
            // The drain ends sessions of a database of its own, and the server `west` transactions that have entered and
            // rest. Those of a shared database that have read and not entered may be anybody's until somebody ends them.
            let undrained = match isolation {
                Isolation::Database => false,
                Isolation::Schema => true,
                _ => server == 1,
            };
            assert_eq!(moved != Moved::Done, undrained, "{tenant}: {moved:?}");
            if let Moved::Undrained(detail) = moved {
                // As contracted, the tenant is open again, and whoever is in the way is named.
                assert!(world.is_open(tenant).await && world.epoch(tenant).await == before);
                let db = biplane.route(&slug(tenant)).await.unwrap();
                let id = Uuid::new_v4();
                router::insert(&db, db.tenant(), id, Way::Statement)
                    .await
                    .unwrap();
                journal.committed(tenant, Way::Statement, id);
                let mut owner = world.owner(world.control.place(tenant).await).await;
                let pids = named(&detail);
                let theirs = of_router(&mut owner, &pids, "stopped").await;
                assert!(
                    !pids.is_empty() && theirs.len() == pids.len(),
                    "somebody else is named: {detail}"
                );
                let ended = end_work_of(&world, tenant, "stopped", &detail).await;
                assert_eq!(ended, pids.len());
                moved = mover.move_to(tenant, to, LIMIT, "").await;
                assert_eq!(moved, Moved::Done, "{tenant}");
            }
        }
        router.resume();
        router.tell("finish").await;
        let mut refused = 0;
        loop {
            let said = router.hear().await;
            match said.as_str() {
                "finished" => break,
                said => assert!(said.ends_with("refused"), "{said}"),
            }
            refused += 1;
        }
        let held = usize::from(world.lends_sessions);
        assert_eq!(refused, TENANTS.len() * 2 * LEVELS.len() + held);
        for (tenant, _) in TENANTS {
            router.tell(&format!("write {tenant}")).await;
            assert_eq!(router.hear().await, "written", "{tenant}");
        }
    }
    router.end().await;
    world.judge().await;
}
