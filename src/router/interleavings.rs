//! Thousands of orders of the steps by which routes are read, learnt and forgotten, tried by shuttle.
//!
//! What runs is the router's own code: [`Known`], [`Table`], `Flights` and the freshness of routes, with shuttle's lock
//! and atomics in the place of std's, and a map behind a lock in the place of papaya's. What it does not cover: papaya
//! itself, memory orders weaker than sequential consistency, and `Core`'s tasks and time limits, in whose place stand
//! threads that do the same calls.
//!
//! Run by `tests/mutants shuttle`; see [`sync`](super::sync).

use std::sync::{Arc, OnceLock};

use shuttle::{
    check_pct, check_random,
    future::block_on,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use super::{
    CacheOptions,
    known::{Admission, Known, Page, StartWorker},
    table::{Entry, Table},
};
use crate::{
    error::{Error, ErrorKind},
    repository::{Change, ChangeHead, ChangeKind, Found, Subject},
    tenant::{
        DataSource, DataSourceId, Incarnation, Isolation, Location, Placement, Resolved, Seq, Slug, Tenant,
        TenantId, TenantName, TenantRecord, TenantRef, TenantStatus, Version,
    },
};

const NOW: u64 = 1_000;

/// What a handle is made of here: the version of the route, and which of its handles it is.
type Handle = (u64, Arc<()>);

const SLUG: Slug = match Slug::parse("acme") {
    Ok(slug) => slug,
    Err(_) => panic!("it is a slug"),
};

fn tried(scenario: fn()) {
    check_random(scenario, 4_000);
    check_pct(scenario, 4_000, 3);
}

/// A control plane: who has the slug, and which version each tenant and the slug are at.
struct Truth {
    tenants: Vec<(TenantId, u64)>,
    owner: usize,
    slug_version: u64,
}

struct World {
    known: Known<Handle>,
    table: Arc<Table<Handle>>,
    truth: Mutex<Truth>,
    queries: std::sync::atomic::AtomicU64,
    /// Std's, because the `OnceLock` in which handles are made is std's as well: to be moved to another thread in there
    /// would be to wait for oneself.
    made: std::sync::atomic::AtomicU64,
}

impl World {
    fn new() -> Arc<Self> {
        let table = Arc::new(Table::new());
        let tenants = vec![(TenantId::new(), 1), (TenantId::new(), 1)];
        Arc::new(Self {
            known: Known::new(CacheOptions::default(), None, &table),
            table,
            truth: Mutex::new(Truth {
                tenants,
                owner: 0,
                slug_version: 1,
            }),
            queries: 0.into(),
            made: 0.into(),
        })
    }

    fn id(&self, tenant: usize) -> TenantId {
        self.truth.lock().unwrap().tenants[tenant].0
    }

    /// Changes a tenant, and announces it.
    fn change(&self, tenant: usize) {
        self.truth.lock().unwrap().tenants[tenant].1 += 1;
        self.known.invalidate(self.id(tenant));
    }

    /// Gives the slug to the other tenant, and announces both.
    fn move_slug(&self) {
        {
            let mut truth = self.truth.lock().unwrap();
            truth.owner = 1;
            truth.slug_version += 2;
            truth.tenants.iter_mut().for_each(|(_, version)| *version += 1);
        }
        self.known.invalidate(self.id(0));
        self.known.invalidate(self.id(1));
    }

    fn read(&self, name: &TenantName) -> Found {
        let truth = self.truth.lock().unwrap();
        let (n, by_name) = match name {
            TenantName::Id(id) => (
                truth.tenants.iter().position(|(other, _)| other == id).unwrap(),
                false,
            ),
            _ => (truth.owner, true),
        };
        let (id, version) = truth.tenants[n];
        let slug = match n == truth.owner {
            true => SLUG,
            false => Slug::parse("other").unwrap(),
        };
        let placement = Placement::new(DataSourceId::DEFAULT, Isolation::Row);
        let mut tenant = Tenant::new(id, slug, placement);
        tenant.status = TenantStatus::Active;
        tenant.version = Version::new(version);
        let record = Arc::new(TenantRecord::new(tenant, source()));
        Ok(Some(match by_name {
            true => Resolved::by_name(record, Version::new(truth.slug_version)),
            false => Resolved::by_id(record),
        }))
    }

    /// What a worker's task does.
    fn work(&self) {
        while let Some(batch) = self.known.take(500) {
            self.queries.fetch_add(1, SeqCst);
            let outcomes = batch
                .flights
                .iter()
                .map(|flight| self.read(&flight.name))
                .collect();
            self.known.land(&batch, Ok(outcomes), NOW, NOW);
        }
    }

    /// What a caller does: the warm path, then the cold one.
    fn route(self: &Arc<Self>, name: &TenantName) -> Result<Handle, Error> {
        if let Some(handle) = self.table.handle(&name.as_ref(), NOW) {
            return Ok(handle);
        }
        let entry = match self.known.settled(name, NOW) {
            Some(settled) => settled?,
            None => self.load(name)?,
        };
        if self.known.is_closed() {
            return Err(ErrorKind::Closed.into());
        }
        entry.handle(|tenant| {
            self.made.fetch_add(1, SeqCst);
            Ok((tenant.version.value(), Arc::new(())))
        })
    }

    fn load(self: &Arc<Self>, name: &TenantName) -> Result<Arc<Entry<Handle>>, Error> {
        match self.known.join(name, NOW, 2) {
            Admission::Settled(settled) => settled,
            Admission::Refreshing(..) => panic!("nothing ages here"),
            Admission::Refused(error, _) => Err(error),
            Admission::Wait(flight, None, _) => block_on(flight.outcome()),
            Admission::Wait(flight, Some(StartWorker), _) => {
                let world = Arc::clone(self);
                let worker = thread::spawn(move || world.work());
                let outcome = block_on(flight.outcome());
                worker.join().unwrap();
                outcome
            }
        }
    }

    /// Changes a tenant, which the feed finds out and applies.
    fn change_and_look(self: &Arc<Self>, tenant: usize) {
        let version = {
            let mut truth = self.truth.lock().unwrap();
            truth.tenants[tenant].1 += 1;
            truth.tenants[tenant].1
        };
        let subject = Subject::Tenant(self.id(tenant));
        let at = std::time::SystemTime::UNIX_EPOCH;
        let change = Change::new(Seq::new(version), subject, ChangeKind::Settings, at);
        self.look(&[change]);
    }

    fn look(self: &Arc<Self>, changes: &[Change]) {
        let page = Page {
            changes,
            head: head(),
            is_last: true,
            asked_at: NOW,
        };
        let followed = self.known.follow(&page, 2);
        join(
            followed
                .workers
                .into_iter()
                .map(|StartWorker| spawn(self, |world| world.work())),
        );
    }

    fn names(&self) -> [TenantName; 2] {
        [TenantName::Id(self.id(0)), TenantName::Slug(SLUG)]
    }
}

fn head() -> ChangeHead {
    ChangeHead::new(Incarnation::from_uuid(uuid::Uuid::nil()), Seq::ZERO)
}

fn source() -> Arc<DataSource> {
    static SOURCE: OnceLock<Arc<DataSource>> = OnceLock::new();
    let made = || {
        Arc::new(DataSource::new(
            DataSourceId::DEFAULT,
            "default",
            Location::Memory,
        ))
    };
    Arc::clone(SOURCE.get_or_init(made))
}

fn spawn(world: &Arc<World>, run: impl FnOnce(&Arc<World>) + Send + 'static) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || run(&world))
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    // All are started before the first is waited for: an iterator may start each as it is asked for it.
    let threads: Vec<_> = threads.into_iter().collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn nothing_read_before_an_announcement_is_given_to_who_asks_after_it() {
    tried(|| {
        let world = World::new();
        let announced = Arc::new(AtomicU64::new(1));
        let mut threads: Vec<_> = world
            .names()
            .into_iter()
            .map(|name| {
                let announced = Arc::clone(&announced);
                spawn(&world, move |world| {
                    for _ in 0..2 {
                        let least = announced.load(SeqCst);
                        let (version, _) = world.route(&name).unwrap();
                        assert!(version >= least, "{version} after {least} was announced");
                    }
                })
            })
            .collect();
        threads.push(spawn(&world, move |world| {
            world.change(0);
            announced.store(2, SeqCst);
        }));
        join(threads);
        for name in world.names() {
            assert_eq!(world.route(&name).unwrap().0, 2);
        }
    });
}

#[test]
fn nothing_older_than_what_the_feed_has_applied_is_given_to_who_asks_after_it() {
    tried(|| {
        let world = World::new();
        let applied = Arc::new(AtomicU64::new(1));
        let mut threads: Vec<_> = world
            .names()
            .into_iter()
            .map(|name| {
                let applied = Arc::clone(&applied);
                spawn(&world, move |world| {
                    for _ in 0..2 {
                        let least = applied.load(SeqCst);
                        let (version, _) = world.route(&name).unwrap();
                        assert!(version >= least, "{version} after {least} was applied");
                    }
                })
            })
            .collect();
        threads.push(spawn(&world, move |world| {
            world.change_and_look(0);
            applied.store(2, SeqCst);
            // Nothing more has changed, which confirms the rest.
            world.look(&[]);
        }));
        join(threads);
        for name in world.names() {
            assert_eq!(world.route(&name).unwrap().0, 2);
        }
    });
}

#[test]
fn what_is_served_because_a_load_failed_does_not_outlast_a_change() {
    tried(|| {
        let world = World::new();
        let name = TenantName::Id(world.id(0));
        world.route(&name).unwrap();
        world.known.begin_to_follow(&head(), NOW);
        // So much later that it has to be asked for.
        let later = NOW + 1_000_000;
        let came = Arc::new(AtomicBool::new(false));
        let failing = spawn(&world, {
            let (name, came) = (name.clone(), Arc::clone(&came));
            move |world| {
                if let Admission::Wait(flight, worker, moment) = world.known.join(&name, later, 1) {
                    came.store(true, SeqCst);
                    if worker.is_some() {
                        let unavailable = || Err(ErrorKind::ControlPlaneUnavailable.into());
                        while let Some(batch) = world.known.take(500) {
                            world.known.land(&batch, unavailable(), later, later);
                        }
                    }
                    if block_on(flight.outcome()).is_err() {
                        world.known.stale(&name, later, moment);
                    }
                }
            }
        });
        let came_before = Arc::new(AtomicBool::new(false));
        let changing = spawn(&world, {
            let came_before = Arc::clone(&came_before);
            move |world| {
                came_before.store(came.load(SeqCst), SeqCst);
                let subject = Subject::Tenant(world.id(0));
                let at = std::time::SystemTime::UNIX_EPOCH;
                let changes = [Change::new(Seq::FIRST, subject, ChangeKind::Status, at)];
                let page = Page {
                    changes: &changes,
                    head: head(),
                    is_last: true,
                    asked_at: later,
                };
                // Nobody reads it again: its workers fail as well.
                for StartWorker in world.known.follow(&page, 1).workers {
                    while let Some(batch) = world.known.take(500) {
                        let unavailable = Err(ErrorKind::ControlPlaneUnavailable.into());
                        world.known.land(&batch, unavailable, later, later);
                    }
                }
            }
        });
        join([failing, changing]);
        // Who comes after the change, and fails, knows that nothing newer can be had.
        if came_before.load(SeqCst) {
            let served = world.table.handle(&name.as_ref(), later);
            assert!(
                served.is_none(),
                "served without asking when its change was applied"
            );
        }
    });
}

#[test]
fn a_slug_that_moved_leads_to_nobody_else_once_that_is_announced() {
    tried(|| {
        let world = World::new();
        let moved = Arc::new(AtomicBool::new(false));
        let slug = TenantName::Slug(SLUG);
        let caller = |moved: &Arc<AtomicBool>| {
            let (moved, slug) = (Arc::clone(moved), slug.clone());
            spawn(&world, move |world| {
                for _ in 0..2 {
                    let over = moved.load(SeqCst);
                    world.route(&slug).unwrap();
                    let entry = world.known.settled(&slug, NOW);
                    if let (true, Some(Ok(entry))) = (over, entry) {
                        assert_eq!(entry.route.tenant().id, world.id(1));
                    }
                }
            })
        };
        let threads = [
            caller(&moved),
            caller(&moved),
            spawn(&world, {
                let moved = Arc::clone(&moved);
                move |world| {
                    world.move_slug();
                    moved.store(true, SeqCst);
                }
            }),
        ];
        join(threads);
        world.route(&slug).unwrap();
        let entry = world.known.settled(&slug, NOW).unwrap().unwrap();
        assert_eq!(entry.route.tenant().id, world.id(1));
    });
}

#[test]
fn all_callers_of_a_cold_tenant_are_one_load_and_one_handle() {
    tried(|| {
        let world = World::new();
        let slug = TenantName::Slug(SLUG);
        join((0..3).map(|_| {
            let slug = slug.clone();
            spawn(&world, move |world| drop(world.route(&slug).unwrap()))
        }));
        assert_eq!(world.queries.load(SeqCst), 1);
        assert_eq!(world.made.load(SeqCst), 1);
    });
}

#[test]
fn a_route_has_one_handle_by_whatever_name_it_was_asked_for() {
    tried(|| {
        let world = World::new();
        let names = world.names();
        join(names.into_iter().chain(world.names()).map(|name| {
            spawn(&world, move |world| {
                // The second time, the route may be known and its entry on the way.
                drop(world.route(&name).unwrap());
                drop(world.route(&name).unwrap());
            })
        }));
        assert_eq!(world.made.load(SeqCst), 1);
    });
}

#[test]
fn a_stale_route_that_is_served_on_does_not_outlive_its_invalidation() {
    tried(|| {
        let world = World::new();
        let names = world.names();
        for name in &names {
            world.route(name).unwrap();
        }
        let announced = Arc::new(AtomicBool::new(false));
        let serving = spawn(&world, {
            let (announced, names) = (Arc::clone(&announced), names.clone());
            move |world| {
                for name in &names {
                    let over = announced.load(SeqCst);
                    assert!(!(world.known.stale(name, NOW, u64::MAX).is_some() && over));
                }
            }
        });
        let announcing = spawn(&world, {
            let names = names.clone();
            move |world| {
                world.known.invalidate(world.id(0));
                announced.store(true, SeqCst);
                for name in &names {
                    assert!(world.table.handle(&name.as_ref(), NOW).is_none());
                }
            }
        });
        join([serving, announcing]);
        for name in &names {
            assert!(world.table.handle(&name.as_ref(), NOW).is_none());
        }
    });
}

#[test]
fn a_closed_router_serves_nobody_and_keeps_nothing() {
    tried(|| {
        let world = World::new();
        let closed = Arc::new(AtomicBool::new(false));
        let mut threads: Vec<_> = world
            .names()
            .into_iter()
            .map(|name| {
                let closed = Arc::clone(&closed);
                spawn(&world, move |world| {
                    for _ in 0..2 {
                        let over = closed.load(SeqCst);
                        match world.route(&name) {
                            Ok(_) => assert!(!over, "served after it was closed"),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed),
                        }
                    }
                })
            })
            .collect();
        threads.push(spawn(&world, move |world| {
            world.known.close();
            closed.store(true, SeqCst);
        }));
        join(threads);
        assert_eq!((world.known.tenants(), world.table.names()), (0, 0));
        assert!(world.table.handle(&TenantRef::Slug(&SLUG), NOW).is_none());
    });
}

#[test]
fn a_worker_that_is_stopped_leaves_nobody_waiting() {
    tried(|| {
        let world = World::new();
        let doomed = |world: &Arc<World>, name: &TenantName| match world.known.join(name, NOW, 1) {
            Admission::Wait(flight, None, _) => drop(block_on(flight.outcome())),
            Admission::Wait(flight, Some(StartWorker), _) => {
                let stopping = spawn(world, |world| {
                    let batch = world.known.take(1);
                    let stopped = ErrorKind::ControlPlaneUnavailable.into();
                    if batch.is_some() {
                        world.known.abandon(batch.as_ref(), &stopped);
                    }
                });
                drop(block_on(flight.outcome()));
                stopping.join().unwrap();
            }
            _ => {}
        };
        join(
            world
                .names()
                .into_iter()
                .map(|name| spawn(&world, move |world| doomed(world, &name))),
        );
        // Shuttle reports whoever still waits; and workers can be started as before.
        assert_eq!(world.route(&TenantName::Slug(SLUG)).unwrap().0, 1);
    });
}
