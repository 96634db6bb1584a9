//! What nobody holds any more is freed: nothing holds itself.

use std::{
    num::NonZeroU32,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use biplane::{
    Biplane,
    connector::memory::MemoryDb,
    error::Error,
    repository::{Found, MemoryControl, Page, TenantRepository},
    router::Clock,
    tenant::{TenantId, TenantRef},
    testing::faulty::{Fault, FaultyRepository},
};

use crate::support::{Steps, domain, settle, slug};

/// A repository that can be seen to be freed.
#[derive(Debug)]
struct Tracked(
    FaultyRepository<MemoryControl>,
    #[expect(dead_code, reason = "its count is looked at")] Arc<()>,
);

#[async_trait]
impl TenantRepository for Tracked {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        self.0.find(names).await
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        self.0.list(after, limit).await
    }
}

/// A handle with something in it that can be seen to be freed.
#[derive(Clone)]
struct Handle {
    db: MemoryDb<Arc<()>>,
    token: Arc<()>,
}

struct Rig {
    control: MemoryControl,
    faulty: FaultyRepository<MemoryControl>,
    biplane: Biplane<Handle>,
    repository: Weak<()>,
    data: Weak<()>,
}

fn rig() -> Rig {
    let control = MemoryControl::new();
    let faulty = FaultyRepository::new(control.clone());
    let (held, data) = (Arc::new(()), Arc::new(()));
    let rig = (Arc::downgrade(&held), Arc::downgrade(&data));
    let biplane = Biplane::memory(Tracked(faulty.clone(), held), move |_| Arc::clone(&data))
        .clock(Clock::manual())
        .map(|db| Handle {
            db,
            token: Arc::new(()),
        })
        .build()
        .unwrap();
    Rig {
        control,
        faulty,
        biplane,
        repository: rig.0,
        data: rig.1,
    }
}

impl Rig {
    fn is_freed(&self) -> bool {
        self.repository.strong_count() == 0 && self.data.strong_count() == 0
    }
}

/// Drops the router of a rig.
fn without_router(rig: Rig) -> Rig {
    let gone = Biplane::memory(MemoryControl::new(), |_| Arc::new(()))
        .map(|db| Handle {
            db,
            token: Arc::new(()),
        })
        .build()
        .unwrap();
    Rig { biplane: gone, ..rig }
}

#[tokio::test]
async fn the_router_frees_everything_when_the_last_clone_goes() {
    let rig = rig();
    let acme = rig.control.tenant("acme").await;
    let handle = rig.biplane.route(&acme.slug).await.unwrap();
    rig.biplane.route(&domain("acme.example")).await.unwrap();
    rig.biplane.route(&slug("nobody")).await.err().unwrap();
    handle.db.read(|_| ()).await.unwrap();
    let token = Arc::downgrade(&handle.token);
    drop(handle);
    assert!(token.upgrade().is_some());
    let rig = without_router(rig);
    settle().await;
    assert!(token.upgrade().is_none());
    assert!(rig.is_freed());
}

#[tokio::test]
async fn a_handle_outlives_its_router_and_frees_what_is_left() {
    let rig = rig();
    let acme = rig.control.tenant("acme").await;
    let handle = rig.biplane.route(&acme.slug).await.unwrap();
    let rig = without_router(rig);
    handle.db.read(|_| ()).await.unwrap();
    rig.control
        .turn(acme.id, biplane::tenant::TenantStatus::ReadOnly)
        .await;
    handle.db.read(|_| ()).await.unwrap();
    assert!(!rig.is_freed());
    drop(handle);
    settle().await;
    assert!(rig.is_freed());
}

#[tokio::test(start_paused = true)]
async fn a_load_under_way_keeps_it_all_no_longer_than_its_time_limit() {
    let rig = rig();
    rig.faulty.set(Fault::Hang);
    let biplane = rig.biplane.clone();
    let caller = tokio::spawn(async move { biplane.route(&slug("acme")).await.map(drop) });
    rig.faulty.reached(1).await;
    caller.abort();
    let _ = caller.await;
    let rig = without_router(rig);
    tokio::time::sleep(Duration::from_secs(3)).await;
    settle().await;
    assert!(rig.is_freed());
}

#[tokio::test]
async fn routes_that_are_replaced_do_not_pile_up() {
    let live = Arc::new(AtomicUsize::new(0));
    let control = MemoryControl::new();
    let acme = control.tenant("acme").await;
    let count = Arc::clone(&live);
    let biplane: Biplane<Arc<Counted>> = Biplane::memory(control, |_| ())
        .map(move |_| Arc::new(Counted::new(&count)))
        .build()
        .unwrap();
    for _ in 0..5_000 {
        biplane.route(&acme.slug).await.unwrap();
        biplane.route(&domain("acme.example")).await.unwrap();
        biplane.invalidate(acme.id).await;
    }
    // The table frees in batches.
    let live = live.load(Ordering::SeqCst);
    assert!(live <= 500, "{live} handles of one tenant are alive");
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(live))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
