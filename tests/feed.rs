//! A change in one process acts in another that nobody told, on a real control plane: by push, by polling alone, and after
//! everything that can happen to a connection, a server and a database.
//!
//! Routes are believed for an hour here, and the control plane is looked at once a day where push is meant: what acts, acts
//! by the feed.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;

use std::{num::NonZeroU32, time::Duration};

use biplane::{
    Biplane,
    connector::memory::MemoryDb,
    error::{Error, ErrorKind},
    plane::{ControlDb, ControlOptions},
    repository::{
        Actor, Beat, ChangeHint, ChangeLog, ChangePush, ChangeSource, ControlSchema, Instances, NewSource,
        NewTenant, PgTenantAdmin, PgTenants, TenantAdmin, TenantRepository,
    },
    router::{Builder, CacheOptions, FeedEngine, FeedOptions},
    tenant::{InstanceId, Isolation, Location, Pooler, Slug, Tenant, TenantRef, TenantStatus},
    testing::{
        postgres::Cluster,
        proxy::{Direction, FaultProxy, NetworkFault},
        wait,
    },
};
use control::{
    ADMIN, Postgres, ROUTER, by_hand, cluster, create_role, grants, handle, login, owner, pg_dump, postgres,
    psql, run, text,
};

const PATIENCE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const HOUR: Duration = Duration::from_secs(60 * 60);

const SUSPENDED: Option<ErrorKind> = Some(ErrorKind::Inactive {
    status: TenantStatus::Suspended,
});

type Router = Biplane<MemoryDb<()>>;

fn by() -> Actor {
    Actor::new("a test", "to see what happens")
}

fn patient() -> FeedOptions {
    FeedOptions::default().query_timeout(PATIENCE)
}

/// A process with a router, as a builder.
fn process(
    tenants: &PgTenants,
) -> Builder<impl biplane::router::ConnectorSettings<Connector = Memory> + use<>> {
    let cache = CacheOptions::default().fresh_for(HOUR).load_timeout(PATIENCE);
    Biplane::memory(tenants.clone(), |_| ()).cache(cache)
}

type Memory = biplane::connector::memory::MemoryConnector<()>;

/// One that hears of changes by push, and hardly looks.
async fn by_push(tenants: &PgTenants) -> Router {
    let router = process(tenants).feed(patient().interval(DAY)).build().unwrap();
    listening(&router).await;
    router
}

async fn listening(router: &Router) {
    wait::until("it listens", PATIENCE, async || {
        let feed = router.stats().feed;
        feed.listening && feed.applied.is_some()
    })
    .await
    .unwrap();
}

/// One that looks every second, and hears nothing.
async fn by_polling(tenants: &PgTenants) -> Router {
    let changes = ChangeSource::polled(tenants.clone());
    let router = process(tenants).changes(changes).feed(patient()).build().unwrap();
    wait::until("it has looked", PATIENCE, async || {
        router.stats().feed.applied.is_some()
    })
    .await
    .unwrap();
    assert_eq!(router.stats().feed.engine, FeedEngine::Polling);
    router
}

async fn tenant(admin: &PgTenantAdmin, name: &str) -> Tenant {
    let source = NewSource::new(format!("source-of-{name}"), Location::Memory);
    let source = admin.create_source(&by(), source).await.unwrap();
    let mut new = NewTenant::new(Slug::parse(name).unwrap(), source.id);
    new.isolation = Isolation::Row;
    let tenant = admin.create(&by(), new).await.unwrap();
    admin
        .set_status(&by(), tenant.id, tenant.version, TenantStatus::Active)
        .await
        .unwrap()
}

async fn now(tenants: &PgTenants, tenant: &Tenant) -> Tenant {
    let mut found = tenants.find(&[TenantRef::Id(tenant.id)]).await.unwrap();
    found.pop().unwrap().unwrap().unwrap().record.tenant.clone()
}

async fn turn(control: &Postgres, tenant: &Tenant, status: TenantStatus) -> Tenant {
    let version = now(&control.pg_tenants(), tenant).await.version;
    let admin = control.pg_admin();
    admin.set_status(&by(), tenant.id, version, status).await.unwrap()
}

fn kind<T>(outcome: Result<T, Error>) -> Option<ErrorKind> {
    outcome.err().map(|error| error.kind())
}

/// A handle that was given out before, as the other process holds it.
async fn held(router: &Router, tenant: &Tenant) -> MemoryDb<()> {
    router.route(&tenant.slug).await.unwrap()
}

async fn becomes(what: &'static str, held: &MemoryDb<()>, expected: Option<ErrorKind>) {
    wait::until(what, PATIENCE, async || {
        kind(held.read(|()| ()).await) == expected
    })
    .await
    .unwrap();
}

/// A tenant may be read anew, and newer, a moment before all that it took was applied.
async fn applies_all(control: &Postgres, router: &Router) {
    let head = control.pg_tenants().head().await.unwrap().seq;
    let all = async || router.applied() >= head;
    wait::until("it has applied all changes", PATIENCE, all)
        .await
        .unwrap();
}

/// Suspends and opens the tenant, and waits each time until that acts.
async fn acts(control: &Postgres, held: &MemoryDb<()>, tenant: &Tenant) {
    for (status, refused) in [(TenantStatus::Suspended, SUSPENDED), (TenantStatus::Active, None)] {
        turn(control, tenant, status).await;
        becomes("the change acts", held, refused).await;
    }
}

#[tokio::test]
async fn a_change_in_one_process_acts_in_another_by_push() {
    let control = postgres().await;
    let router = by_push(&control.pg_tenants()).await;
    assert_eq!(router.stats().feed.engine, FeedEngine::Push);
    let acme = tenant(&control.pg_admin(), "acme").await;
    let held = held(&router, &acme).await;
    for _ in 0..5 {
        acts(&control, &held, &acme).await;
    }
    // A tenant that comes to be under a name that was unknown.
    let zeta = Slug::parse("zeta").unwrap();
    assert_eq!(kind(router.route(&zeta).await), Some(ErrorKind::UnknownTenant));
    tenant(&control.pg_admin(), "zeta").await;
    let routed = async || router.route(&zeta).await.is_ok();
    wait::until("the new tenant is found", PATIENCE, routed)
        .await
        .unwrap();
    applies_all(&control, &router).await;
}

#[tokio::test]
async fn a_change_in_one_process_acts_in_another_by_polling_alone() {
    let control = postgres().await;
    let router = by_polling(&control.pg_tenants()).await;
    let acme = tenant(&control.pg_admin(), "acme").await;
    let held = held(&router, &acme).await;
    for _ in 0..3 {
        acts(&control, &held, &acme).await;
    }
}

#[tokio::test]
async fn a_change_by_hand_acts_as_well() {
    let control = postgres().await;
    let router = by_push(&control.pg_tenants()).await;
    let acme = tenant(&control.pg_admin(), "acme").await;
    let held = held(&router, &acme).await;
    let mut owner = owner(&control.database).await;
    by_hand(
        &mut owner,
        "update biplane_control.tenant set status = 'suspended' where slug = 'acme'",
    )
    .await
    .unwrap();
    becomes("the change acts", &held, SUSPENDED).await;
}

#[tokio::test]
async fn behind_a_transaction_pooler_nobody_listens_and_changes_act_all_the_same() {
    let control = postgres().await;
    let mut server = cluster().await.server(&control.database);
    server.pooler = Pooler::Transaction {
        max_prepared_statements: 0,
    };
    let pooled = ControlDb::connect(ControlOptions::new(server, login(ROUTER))).unwrap();
    let router = process(&PgTenants::new(pooled)).feed(patient()).build().unwrap();
    let acme = tenant(&control.pg_admin(), "acme").await;
    let held = held(&router, &acme).await;
    acts(&control, &held, &acme).await;
    let feed = router.stats().feed;
    assert_eq!((feed.engine, feed.listening), (FeedEngine::Polling, false));
}

#[tokio::test]
async fn what_is_committed_while_the_listening_session_is_ended_acts_by_push() {
    let control = postgres().await;
    let router = by_push(&control.pg_tenants()).await;
    let acme = tenant(&control.pg_admin(), "acme").await;
    let held = held(&router, &acme).await;
    acts(&control, &held, &acme).await;
    let mut owner = owner(&control.database).await;
    for (round, (status, refused)) in [(TenantStatus::Suspended, SUSPENDED), (TenantStatus::Active, None)]
        .into_iter()
        .enumerate()
    {
        listening(&router).await;
        let ended = text(
            &mut owner,
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where datname = current_database() and application_name like '% (listening)'",
        )
        .await;
        assert_eq!(ended, "1");
        turn(&control, &acme, status).await;
        becomes("the change acts", &held, refused).await;
        wait::until("the loss is counted", PATIENCE, async || {
            router.stats().feed.push_losses == round as u64 + 1
        })
        .await
        .unwrap();
    }
    listening(&router).await;
    acts(&control, &held, &acme).await;
}

#[tokio::test]
async fn a_control_plane_that_was_killed_is_followed_again() {
    let own = Cluster::start().await.unwrap();
    create_role(&own, ROUTER).await;
    create_role(&own, ADMIN).await;
    own.create_database("control").await.unwrap();
    let mut superuser = own.connect("control").await.unwrap();
    run(&mut superuser, ControlSchema::install_sql(&grants()))
        .await
        .unwrap();
    drop(superuser);
    let connect = |role: &str| {
        let options = ControlOptions::new(own.server("control"), login(role));
        ControlDb::connect(options).unwrap()
    };
    let control = Postgres {
        database: "control".to_owned(),
        router: connect(ROUTER),
        admin: connect(ADMIN),
    };
    let (push, poll) = (
        by_push(&control.pg_tenants()).await,
        by_polling(&control.pg_tenants()).await,
    );
    let acme = tenant(&control.pg_admin(), "acme").await;
    let handles = [held(&push, &acme).await, held(&poll, &acme).await];
    for held in &handles {
        acts(&control, held, &acme).await;
    }
    // Each waited for one of them alone, and whoever still knows a tenant as suspended keeps it out.
    for (router, held) in [&push, &poll].into_iter().zip(&handles) {
        applies_all(&control, router).await;
        becomes("it is open everywhere", held, None).await;
    }
    own.kill().await.unwrap();
    wait::until("both notice", PATIENCE, async || {
        !push.stats().feed.listening && poll.stats().feed.failing_for.is_some()
    })
    .await
    .unwrap();
    // Those in use notice nothing, and the age of their routes is told.
    for held in &handles {
        held.read(|()| ()).await.unwrap();
        held.route_age().unwrap();
    }
    own.start_again().await.unwrap();
    let version = wait::until_some("the control plane answers", PATIENCE, async || {
        let mut found = control.pg_tenants().find(&[TenantRef::Id(acme.id)]).await.ok()?;
        Some(found.pop()?.ok()??.record.tenant.version)
    })
    .await
    .unwrap();
    let admin = control.pg_admin();
    admin
        .set_status(&by(), acme.id, version, TenantStatus::Suspended)
        .await
        .unwrap();
    for held in &handles {
        becomes("the change acts", held, SUSPENDED).await;
    }
    listening(&push).await;
    let recovered = async || poll.stats().feed.failing_for.is_none();
    wait::until("it can be read again", PATIENCE, recovered)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_control_plane_that_was_restored_is_believed_with_lower_versions() {
    let control = postgres().await;
    let (push, poll) = (
        by_push(&control.pg_tenants()).await,
        by_polling(&control.pg_tenants()).await,
    );
    let acme = tenant(&control.pg_admin(), "acme").await;
    let dump = pg_dump(&control.database, &[]).await;
    for status in [TenantStatus::ReadOnly, TenantStatus::Active].repeat(3) {
        turn(&control, &acme, status).await;
    }
    let handles = [held(&push, &acme).await, held(&poll, &acme).await];
    let before = now(&control.pg_tenants(), &acme).await;
    applies_all(&control, &push).await;
    applies_all(&control, &poll).await;

    // The backup takes the place of the database, and the operator begins another life.
    let database = &control.database;
    let mut superuser = owner("postgres").await;
    run(&mut superuser, format!("drop database {database} with (force)"))
        .await
        .unwrap();
    run(&mut superuser, format!("create database {database}"))
        .await
        .unwrap();
    // As one transaction, so that nobody sees half of it.
    let another_life = "update biplane_control.meta set incarnation = gen_random_uuid()";
    psql(database, &format!("begin;\n{dump}\n{another_life};\ncommit;\n"))
        .await
        .unwrap();
    psql(database, &ControlSchema::install_sql(&grants()))
        .await
        .unwrap();
    let suspended = turn(&control, &acme, TenantStatus::Suspended).await;
    assert!(suspended.version < before.version);
    for (router, held) in [&push, &poll].into_iter().zip(&handles) {
        becomes("the older version acts", held, SUSPENDED).await;
        assert_eq!(router.stats().feed.resyncs, 1);
    }
    turn(&control, &acme, TenantStatus::Active).await;
    for held in &handles {
        becomes("what comes after acts", held, None).await;
    }
}

/// What an administrator does from psql: by hand, as the role that has the grants, saying who and why.
#[tokio::test]
async fn a_bulk_suspension_is_held_in_all_processes_until_it_is_released_from_psql() {
    const TENANTS: usize = 24;
    let control = postgres().await;
    let mut tenants = Vec::new();
    for n in 0..TENANTS {
        tenants.push(tenant(&control.pg_admin(), &format!("tenant-{n}")).await);
    }
    let routers = [
        by_push(&control.pg_tenants()).await,
        by_polling(&control.pg_tenants()).await,
    ];
    let mut handles = Vec::new();
    for router in &routers {
        for tenant in &tenants {
            handles.push(held(router, tenant).await);
        }
    }
    let all_are = async |what: &'static str, refused: Option<ErrorKind>| {
        for held in &handles {
            becomes(what, held, refused).await;
        }
    };
    let all_applied = async || {
        for router in &routers {
            applies_all(&control, router).await;
        }
    };
    all_applied().await;
    let mut admin = cluster()
        .await
        .connect_as(&login(ADMIN), &control.database)
        .await
        .unwrap();
    let mut by_hand = async |sql: &str| by_hand(&mut admin, sql).await.unwrap();
    let everybody = |status: &str| format!("update biplane_control.tenant set status = '{status}'");

    // The `where` was forgotten.
    by_hand(&everybody("suspended")).await;
    for router in &routers {
        wait::until("it is braked", PATIENCE, async || {
            router.stats().brake.held_tenants == TENANTS
        })
        .await
        .unwrap();
        let brake = router.stats().brake;
        assert!(brake.braked_for.is_some());
        assert_eq!((brake.changed, brake.of), (TENANTS, TENANTS));
        assert!(router.applied() < control.pg_tenants().head().await.unwrap().seq);
    }
    for held in &handles {
        held.read(|()| ()).await.unwrap();
    }
    by_hand("select biplane_control.release_brake()").await;
    all_are("what was held acts", SUSPENDED).await;
    all_applied().await;

    // Opening takes nothing from anybody; and what is meant is said in the same transaction.
    by_hand(&everybody("active")).await;
    all_are("they are open again", None).await;
    all_applied().await;
    let meant = format!(
        "{}; select biplane_control.release_brake()",
        everybody("suspended")
    );
    by_hand(&meant).await;
    all_are("what is meant acts", SUSPENDED).await;
    by_hand(&everybody("active")).await;
    all_are("they are open again", None).await;
    all_applied().await;

    by_hand("select biplane_control.freeze()").await;
    for router in &routers {
        let frozen = async || router.stats().brake.frozen_everywhere.is_some();
        wait::until("it is frozen", PATIENCE, frozen).await.unwrap();
    }
    by_hand("update biplane_control.tenant set status = 'suspended' where slug = 'tenant-0'").await;
    for router in &routers {
        let holds = async || router.stats().brake.held_tenants == 1;
        wait::until("it is held", PATIENCE, holds).await.unwrap();
        router.route(&tenants[0].slug).await.unwrap();
    }
    by_hand("select biplane_control.thaw()").await;
    for held in [&handles[0], &handles[TENANTS]] {
        becomes("what was held acts", held, SUSPENDED).await;
    }
    for router in &routers {
        assert_eq!(router.stats().brake.engaged, 1);
    }
    // Everything is in the audit, with who and why.
    let audit = control.pg_admin().audit(None, NonZeroU32::MAX).await.unwrap();
    let of_all = audit
        .iter()
        .filter(|entry| entry.tenant.is_none() && entry.source.is_none());
    assert_eq!(of_all.filter(|entry| &*entry.actor == "ann").count(), 4);
}

#[tokio::test]
async fn changes_that_were_pruned_before_they_were_read_act_all_the_same() {
    let control = postgres().await;
    let (push, poll) = (
        by_push(&control.pg_tenants()).await,
        by_polling(&control.pg_tenants()).await,
    );
    let acme = tenant(&control.pg_admin(), "acme").await;
    let handles = [held(&push, &acme).await, held(&poll, &acme).await];
    for held in &handles {
        acts(&control, held, &acme).await;
    }
    let mut owner = owner(&control.database).await;
    // The log alone cannot be read.
    let log = format!("select on biplane_control.change {} {ROUTER}", "{}");
    let sql = |verb: &str, preposition: &str| format!("{verb} {}", log.replace("{}", preposition));
    run(&mut owner, sql("revoke", "from")).await.unwrap();
    turn(&control, &acme, TenantStatus::Suspended).await;
    wait::until("both fail", PATIENCE, async || {
        let failing = |router: &Router| router.stats().feed.failing_for.is_some();
        failing(&push) && failing(&poll)
    })
    .await
    .unwrap();
    assert_eq!(push.stats().feed.last_error, Some(ErrorKind::MissingPrivilege));
    control.pg_admin().prune_changes(Duration::ZERO).await.unwrap();
    run(&mut owner, sql("grant", "to")).await.unwrap();
    // Somebody else's change is what the one that only listens hears of.
    tenant(&control.pg_admin(), "other").await;
    for (router, held) in [&push, &poll].into_iter().zip(&handles) {
        becomes("the change that was pruned acts", held, SUSPENDED).await;
        assert_eq!(router.stats().feed.resyncs, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_commits_in_any_order_none_is_missed() {
    const WRITERS: usize = 8;
    let control = postgres().await.with_slow_commits().await;
    let (push, poll) = (
        by_push(&control.pg_tenants()).await,
        by_polling(&control.pg_tenants()).await,
    );
    let mut tenants = Vec::new();
    for n in 0..WRITERS {
        tenants.push(tenant(&control.pg_admin(), &format!("tenant-{n}")).await);
    }
    let mut handles = Vec::new();
    for router in [&push, &poll] {
        for tenant in &tenants {
            handles.push((held(router, tenant).await, tenant.clone()));
        }
    }
    let writers: Vec<_> = tenants
        .iter()
        .map(|tenant| {
            let (admin, mut tenant) = (control.pg_admin(), tenant.clone());
            tokio::spawn(async move {
                // Begins and ends open, and is suspended last.
                for status in [TenantStatus::Suspended, TenantStatus::Active].repeat(5) {
                    let version = tenant.version;
                    tenant = admin.set_status(&by(), tenant.id, version, status).await.unwrap();
                }
                let (id, version) = (tenant.id, tenant.version);
                admin
                    .set_status(&by(), id, version, TenantStatus::Suspended)
                    .await
                    .unwrap();
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    for (held, tenant) in &handles {
        becomes("the last change of each acts", held, SUSPENDED).await;
        assert_eq!(
            now(&control.pg_tenants(), tenant).await.status,
            TenantStatus::Suspended
        );
    }
    applies_all(&control, &push).await;
    applies_all(&control, &poll).await;
}

#[tokio::test]
async fn nothing_but_routing_changes_is_notified() {
    let control = postgres().await;
    let tenants = control.pg_tenants();
    let mut listener = tenants.listen().await.unwrap();
    let id = InstanceId::new();
    for _ in 0..3 {
        tenants.beat(&Beat::new(id, "test")).await.unwrap();
    }
    tenants.leave(id).await.unwrap();
    control.pg_admin().prune_changes(Duration::ZERO).await.unwrap();
    let source = NewSource::new("east", Location::Memory);
    control.pg_admin().create_source(&by(), source).await.unwrap();
    let head = tenants.head().await.unwrap().seq;
    assert_eq!(listener.next().await.unwrap(), ChangeHint::Reached(head));
    // What anybody else says on the channel is no position.
    let mut somebody = owner(&control.database).await;
    run(&mut somebody, "notify biplane_change, 'no such thing'")
        .await
        .unwrap();
    assert_eq!(listener.next().await.unwrap(), ChangeHint::Look);
}

#[tokio::test]
async fn a_router_that_is_closed_or_dropped_leaves_no_session_behind() {
    let control = postgres().await;
    let mut owner = owner(&control.database).await;
    for close in [true, false] {
        let reader = handle(&control.database, login(ROUTER)).await;
        let router = by_push(&PgTenants::new(reader.clone())).await;
        if close {
            router.close(Duration::from_secs(1)).await;
        }
        let kept = close.then_some(router);
        reader.close(Duration::from_secs(1)).await;
        let gone = wait::until("its sessions are gone", PATIENCE, async || {
            let sessions = "select count(*) from pg_stat_activity
                where datname = current_database() and usename = 'biplane_router'";
            text(&mut owner, sessions).await == "0"
        });
        gone.await.unwrap();
        drop(kept);
    }
}

#[tokio::test]
async fn a_page_is_as_long_as_it_is_said_to_be_and_all_of_them_act() {
    let control = postgres().await;
    let options = patient().page(NonZeroU32::new(3).unwrap()).interval(DAY);
    let router = process(&control.pg_tenants()).feed(options).build().unwrap();
    listening(&router).await;
    let acme = tenant(&control.pg_admin(), "acme").await;
    let held = held(&router, &acme).await;
    let mut owner = owner(&control.database).await;
    let many: String = (0..20)
        .map(|n| {
            format!(
                "insert into biplane_control.data_source (id, name, location)
                 values (gen_random_uuid(), 'many-{n}', 'memory');"
            )
        })
        .collect();
    by_hand(
        &mut owner,
        &format!("{many} update biplane_control.tenant set status = 'suspended' where slug = 'acme'"),
    )
    .await
    .unwrap();
    becomes("the last of them acts", &held, SUSPENDED).await;
}

/// A process whose connections to the control plane, the listening one among them, all break at once in this way, and
/// which nobody tells. New ones are well.
async fn goes_on_after(breaks: impl FnOnce(&FaultProxy)) {
    const TIMEOUT: Duration = Duration::from_secs(5);
    let control = postgres().await;
    let server = cluster().await.server(&control.database);
    let proxy = FaultProxy::start(&server.endpoints[0]).await.unwrap();
    let options = ControlOptions::new(proxy.through(&server).unwrap(), login(ROUTER));
    let tenants = PgTenants::new(ControlDb::connect(options).unwrap());
    let cache = CacheOptions::default().fresh_for(HOUR).load_timeout(TIMEOUT);
    let router = Biplane::memory(tenants, |_| ())
        .cache(cache)
        .feed(FeedOptions::default().query_timeout(TIMEOUT))
        .build()
        .unwrap();
    listening(&router).await;
    let acme = tenant(&control.pg_admin(), "acme").await;
    let held = held(&router, &acme).await;
    acts(&control, &held, &acme).await;

    breaks(&proxy);
    acts(&control, &held, &acme).await;
    // A listener that is silent for good is found by what it does not tell, and replaced.
    let replaced = async || {
        acts(&control, &held, &acme).await;
        router.stats().feed.push_losses > 0 && router.stats().feed.listening
    };
    wait::until("it listens anew", PATIENCE, replaced).await.unwrap();
}

#[tokio::test]
async fn a_change_acts_after_the_network_swallows_everything() {
    goes_on_after(|proxy| proxy.set_open(Direction::Both, NetworkFault::BlackHole)).await;
}

#[tokio::test]
async fn a_change_acts_after_the_network_swallows_what_the_control_plane_says() {
    goes_on_after(|proxy| proxy.set_open(Direction::ToClient, NetworkFault::BlackHole)).await;
}

#[tokio::test]
async fn a_change_acts_after_connections_are_half_closed() {
    goes_on_after(|proxy| proxy.set_open(Direction::ToClient, NetworkFault::HalfClose)).await;
}

#[tokio::test]
async fn a_change_acts_after_connections_are_reset() {
    goes_on_after(FaultProxy::reset).await;
}
