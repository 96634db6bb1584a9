//! A router of somebody else's make inside [`Biplane`], and as a trait object: the trait stays dyn-compatible.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use biplane::{
    Biplane, TenantRouter,
    breaker::BreakerStatus,
    error::{Error, ErrorKind},
    router::RouterStats,
    tenant::{Slug, TenantId, TenantRef},
};

fn slug(text: &str) -> Slug {
    text.parse().expect("it is a slug")
}

#[derive(Clone, Debug, Default)]
struct ByHand {
    closed: Arc<AtomicUsize>,
    invalidated: Arc<AtomicUsize>,
    braked: Arc<AtomicUsize>,
}

#[async_trait]
impl TenantRouter for ByHand {
    type Handle = &'static str;

    fn cached(&self, name: &TenantRef<'_>) -> Option<&'static str> {
        matches!(name, TenantRef::Slug(slug) if slug.as_str() == "warm").then_some("warm")
    }

    async fn route(&self, name: &TenantRef<'_>) -> Result<&'static str, Error> {
        tokio::task::yield_now().await;
        match name {
            TenantRef::Slug(slug) if slug.as_str() == "cold" => Ok("cold"),
            _ => Err(ErrorKind::UnknownTenant.into()),
        }
    }

    async fn invalidate(&self, _: TenantId) {
        self.invalidated.fetch_add(1, Ordering::Relaxed);
    }

    async fn release_brake(&self) {
        self.braked.fetch_add(1, Ordering::Relaxed);
    }

    async fn freeze(&self) {
        self.braked.fetch_add(10, Ordering::Relaxed);
    }

    async fn thaw(&self) {
        self.braked.fetch_add(100, Ordering::Relaxed);
    }

    async fn close(&self, _: Duration) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    fn stats(&self) -> RouterStats {
        let mut stats = RouterStats::default();
        stats.hits = 7;
        stats
    }

    fn breakers(&self) -> Vec<BreakerStatus> {
        Vec::new()
    }
}

#[tokio::test]
async fn a_router_written_by_hand_works_inside_biplane() {
    let router = ByHand::default();
    let biplane = Biplane::new(router.clone());
    let boxed: Box<dyn TenantRouter<Handle = &'static str>> = Box::new(router.clone());
    assert_eq!(
        boxed.route(&TenantRef::Slug(&slug("cold"))).await.unwrap(),
        "cold"
    );
    assert_eq!(biplane.route(&slug("warm")).await.unwrap(), "warm");
    assert_eq!(biplane.route(&slug("cold")).await.unwrap(), "cold");
    assert_eq!(biplane.cached(&slug("warm")), Some("warm"));
    assert_eq!(biplane.cached(&slug("cold")), None);
    assert_eq!(
        biplane.route(TenantId::new()).await.unwrap_err().kind(),
        ErrorKind::UnknownTenant
    );
    biplane.invalidate(TenantId::new()).await;
    biplane.release_brake().await;
    biplane.freeze().await;
    biplane.thaw().await;
    assert_eq!(router.braked.load(Ordering::Relaxed), 111);
    biplane.clone().close(Duration::from_secs(1)).await;
    assert_eq!(biplane.stats().hits, 7);
    assert_eq!(biplane.breakers(), []);
    assert_eq!(router.invalidated.load(Ordering::Relaxed), 1);
    assert_eq!(router.closed.load(Ordering::Relaxed), 1);
}
