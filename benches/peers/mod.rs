//! What a lookup is measured against: the same tenants, under the same keys, in the maps and caches that one would use
//! instead. Each gives out a clone of an `Arc`, as a router gives out a handle.

use std::{collections::HashMap, hint::black_box, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use biplane::{
    Biplane,
    repository::{Actor, MemoryControl, NewTenant, TenantAdmin},
    tenant::{DataSourceId, Isolation, Slug, TenantStatus},
};
use futures_util::FutureExt;

/// What a lookup ends in.
pub(crate) type Handle = Arc<u64>;

/// After which what is known of a tenant has to be read again, in whatever can forget: so long that nothing does while it
/// is measured.
const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// Something that turns slugs into handles.
pub(crate) trait Lookup: Sync {
    /// The name in reports.
    fn name(&self) -> &'static str;

    /// Looks tenants up that are there, one after the other.
    fn look_up<'a>(&self, slugs: impl Iterator<Item = &'a Slug> + Send);
}

/// For maps and caches that answer at once.
fn one_by_one<'a>(slugs: impl Iterator<Item = &'a Slug>, lookup: impl Fn(&Slug) -> Handle) {
    for slug in slugs {
        black_box(lookup(black_box(slug)));
    }
}

/// For those that are awaited, in a task, as a handler of requests awaits them.
fn awaiting(lookups: impl Future<Output = ()>) {
    lookups.now_or_never().expect("warm, it does not wait");
}

/// That many tenants.
pub(crate) fn slugs(tenants: usize) -> Vec<Slug> {
    (0..tenants as u64)
        .map(|n| {
            let scattered = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Slug::parse(&format!("tenant-{scattered:x}")).expect("it is a slug")
        })
        .collect()
}

/// `lookups` of them in random order, the same at every call.
pub(crate) fn random_order(slugs: &[Slug], lookups: usize) -> Vec<Slug> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..lookups)
        .map(|_| slugs[usize::try_from(next() % slugs.len() as u64).expect("it is an index")])
        .collect()
}

fn entries(slugs: &[Slug]) -> impl Iterator<Item = (Slug, Handle)> {
    slugs.iter().zip(0..).map(|(slug, n)| (*slug, Arc::new(n)))
}

/// A router that knows these tenants and has routed to each of them.
pub(crate) fn warm_router(slugs: &[Slug]) -> Biplane<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    runtime.block_on(async {
        let control = MemoryControl::new();
        let by = Actor::new("bench", "warm-up");
        for slug in slugs {
            let mut tenant = NewTenant::new(*slug, DataSourceId::DEFAULT);
            tenant.isolation = Isolation::Row;
            let tenant = control.create(&by, tenant).await.expect("the slug is free");
            control
                .set_status(&by, tenant.id, tenant.version, TenantStatus::Active)
                .await
                .expect("it may be opened");
        }
        let biplane = Biplane::memory(control, |_| ())
            .cache(biplane::router::CacheOptions::default().fresh_for(EXPIRY))
            .map(|db| Arc::new(db.tenant().as_uuid().as_u64_pair().1))
            .build()
            .expect("the settings are valid");
        for slug in slugs {
            biplane.route(slug).await.expect("the tenant is there");
        }
        biplane
    })
}

/// Ours, without waiting.
pub(crate) struct Cached(pub(crate) Biplane<Handle>);

impl Lookup for Cached {
    fn name(&self) -> &'static str {
        "biplane cached"
    }

    fn look_up<'a>(&self, slugs: impl Iterator<Item = &'a Slug> + Send) {
        one_by_one(slugs, |slug| self.0.cached(slug).expect("the route is warm"));
    }
}

/// Ours, as handlers call it.
pub(crate) struct Routed(pub(crate) Biplane<Handle>);

impl Lookup for Routed {
    fn name(&self) -> &'static str {
        "biplane route"
    }

    fn look_up<'a>(&self, slugs: impl Iterator<Item = &'a Slug> + Send) {
        awaiting(async {
            for slug in slugs {
                let handle = self.0.route(black_box(slug)).await;
                black_box(handle.expect("the route is warm"));
            }
        });
    }
}

/// A map that nobody can change.
pub(crate) struct StdMap(HashMap<Slug, Handle>);

impl StdMap {
    pub(crate) fn new(slugs: &[Slug]) -> Self {
        Self(entries(slugs).collect())
    }
}

impl Lookup for StdMap {
    fn name(&self) -> &'static str {
        "HashMap"
    }

    fn look_up<'a>(&self, slugs: impl Iterator<Item = &'a Slug> + Send) {
        one_by_one(slugs, |slug| Arc::clone(&self.0[slug]));
    }
}

/// A map that is replaced whole.
pub(crate) struct ArcSwapMap(ArcSwap<HashMap<Slug, Handle>>);

impl ArcSwapMap {
    pub(crate) fn new(slugs: &[Slug]) -> Self {
        Self(ArcSwap::from_pointee(entries(slugs).collect()))
    }
}

impl Lookup for ArcSwapMap {
    fn name(&self) -> &'static str {
        "ArcSwap<HashMap>"
    }

    fn look_up<'a>(&self, slugs: impl Iterator<Item = &'a Slug> + Send) {
        one_by_one(slugs, |slug| Arc::clone(&self.0.load()[slug]));
    }
}

/// A concurrent map.
pub(crate) struct Papaya(papaya::HashMap<Slug, Handle>);

impl Papaya {
    pub(crate) fn new(slugs: &[Slug]) -> Self {
        Self(entries(slugs).collect())
    }
}

impl Lookup for Papaya {
    fn name(&self) -> &'static str {
        "papaya"
    }

    fn look_up<'a>(&self, slugs: impl Iterator<Item = &'a Slug> + Send) {
        one_by_one(slugs, |slug| {
            self.0
                .pin()
                .get(slug)
                .map(Arc::clone)
                .expect("the tenant is there")
        });
    }
}

/// A bounded cache with a cheap policy.
pub(crate) struct QuickCache(quick_cache::sync::Cache<Slug, Handle>);

impl QuickCache {
    pub(crate) fn new(slugs: &[Slug]) -> Self {
        // Its shards fill unevenly; with less room than this it evicts.
        let cache = quick_cache::sync::Cache::new(slugs.len() * 4 + 64);
        for (slug, handle) in entries(slugs) {
            cache.insert(slug, handle);
        }
        Self(cache)
    }
}

impl Lookup for QuickCache {
    fn name(&self) -> &'static str {
        "quick_cache"
    }

    fn look_up<'a>(&self, slugs: impl Iterator<Item = &'a Slug> + Send) {
        one_by_one(slugs, |slug| self.0.get(slug).expect("the tenant is there"));
    }
}

/// A cache whose entries expire, as a router's do: without that it would lead to where a tenant was for ever.
pub(crate) struct MokaSync(moka::sync::Cache<Slug, Handle>);

impl MokaSync {
    pub(crate) fn new(slugs: &[Slug]) -> Self {
        let cache = moka::sync::Cache::builder()
            .max_capacity(slugs.len() as u64 * 2)
            .time_to_live(EXPIRY)
            .build();
        for (slug, handle) in entries(slugs) {
            cache.insert(slug, handle);
        }
        cache.run_pending_tasks();
        Self(cache)
    }
}

impl Lookup for MokaSync {
    fn name(&self) -> &'static str {
        "moka::sync"
    }

    fn look_up<'a>(&self, slugs: impl Iterator<Item = &'a Slug> + Send) {
        one_by_one(slugs, |slug| self.0.get(slug).expect("the tenant is there"));
    }
}

#[async_trait]
trait Route: Send + Sync {
    async fn route(&self, slug: &Slug) -> Option<Handle>;
}

#[async_trait]
impl Route for moka::future::Cache<Slug, Handle> {
    async fn route(&self, slug: &Slug) -> Option<Handle> {
        self.get(slug).await
    }
}

/// Such a cache for async code, behind a trait object, which is how applications hold their router.
pub(crate) struct MokaFuture(Arc<dyn Route>);

impl MokaFuture {
    pub(crate) fn new(slugs: &[Slug]) -> Self {
        let cache = moka::future::Cache::builder()
            .max_capacity(slugs.len() as u64 * 2)
            .time_to_live(EXPIRY)
            .build();
        let fill = async {
            for (slug, handle) in entries(slugs) {
                cache.insert(slug, handle).await;
            }
            cache.run_pending_tasks().await;
        };
        tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime starts")
            .block_on(fill);
        Self(Arc::new(cache))
    }
}

impl Lookup for MokaFuture {
    fn name(&self) -> &'static str {
        "moka::future behind dyn"
    }

    fn look_up<'a>(&self, slugs: impl Iterator<Item = &'a Slug> + Send) {
        awaiting(async {
            for slug in slugs {
                let handle = self.0.route(black_box(slug)).await;
                black_box(handle.expect("the tenant is there"));
            }
        });
    }
}
