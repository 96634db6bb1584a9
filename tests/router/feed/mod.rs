//! A change in the control plane acts in a router that nobody told: what the feed promises, and what it does when its log
//! fails, lies, was pruned or begins another life.
//!
//! Tokio's time is paused, so that looks come as soon as the test waits; the router's clock moves by hand.

mod changes;
mod lives;
mod looks;
mod pushes;
mod running;

pub(crate) use self::lives::Restorable;
use biplane::{
    Biplane,
    connector::memory::MemoryDb,
    error::ErrorKind,
    repository::{ChangeSource, MemoryControl},
    router::{Clock, FeedOptions},
    tenant::{Tenant, TenantStatus},
    testing::faulty::FaultyRepository,
};

use crate::support::{Notes, Steps, seconds, settle};

pub(crate) const SUSPENDED: Option<ErrorKind> = Some(ErrorKind::Inactive {
    status: TenantStatus::Suspended,
});

/// A router that looks at the log of its control plane, each of which the test breaks on its own.
struct World {
    control: MemoryControl,
    repository: FaultyRepository<MemoryControl>,
    log: FaultyRepository<MemoryControl>,
    clock: Clock,
    biplane: Biplane<MemoryDb<Notes>>,
}

impl World {
    /// Waits for looks that begin after now, and for whatever they entail.
    async fn looks(&self, number: usize) {
        let calls = self.log.calls();
        for n in 1..=number {
            self.log.reached(calls + n).await;
            settle().await;
        }
    }

    /// An active tenant whose route is cached and followed.
    async fn cached(&self, name: &str) -> (Tenant, MemoryDb<Notes>) {
        let tenant = self.control.tenant(name).await;
        let db = self.biplane.route(&tenant.slug).await.unwrap();
        (tenant, db)
    }
}

fn world() -> World {
    world_with(FeedOptions::default())
}

fn world_with(options: FeedOptions) -> World {
    let control = MemoryControl::new();
    let repository = FaultyRepository::new(control.clone());
    let log = FaultyRepository::new(control.clone());
    let clock = Clock::manual();
    let biplane = Biplane::memory(repository.clone(), |_| Notes::new())
        .changes(ChangeSource::polled(log.clone()))
        .feed(options)
        .clock(clock.clone())
        .build()
        .unwrap();
    World {
        control,
        repository,
        log,
        clock,
        biplane,
    }
}

pub(crate) async fn some_looks() {
    tokio::time::sleep(seconds(6)).await;
    settle().await;
}
