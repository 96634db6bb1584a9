//! Warm lookups: 1,000 tenants in random order, by slug, through what a service holds (`Biplane`, a trait object).

use biplane::tenant::Slug;

use crate::{
    measure::{Claim, Goal, ratio_of_pairs, time, time_on},
    peers::{
        ArcSwapMap, Cached, Lookup, MokaFuture, MokaSync, Routed, StdMap, random_order, slugs, warm_router,
    },
};

pub(crate) const CLAIMS: &[fn() -> Claim] = &[
    sync_against_hashmap,
    moka_against_sync,
    moka_future_against_route,
    two_threads,
    allocations_of_cached,
    allocations_of_route,
];

const TENANTS: usize = 1_000;

/// Lookups in a round: some hundred microseconds, much shorter than what a scheduler gives a thread at a time.
const LOOKUPS: usize = 4_000;

/// The peer is the fastest that cannot be changed: std's map with its default hasher, and a clone of an `Arc`.
fn sync_against_hashmap() -> Claim {
    Claim::new("route_hit_sync/hashmap", Goal::RatioAtMost(1.5), || {
        let slugs = slugs(TENANTS);
        compare(&slugs, || Cached(warm_router(&slugs)), || StdMap::new(&slugs))
    })
}

fn moka_against_sync() -> Claim {
    Claim::new("moka_sync/route_hit_sync", Goal::RatioAtLeast(5.0), || {
        let slugs = slugs(TENANTS);
        compare(&slugs, || MokaSync::new(&slugs), || Cached(warm_router(&slugs)))
    })
}

fn moka_future_against_route() -> Claim {
    Claim::new("moka_future_dyn/route_async", Goal::RatioAtLeast(5.0), || {
        let slugs = slugs(TENANTS);
        compare(&slugs, || MokaFuture::new(&slugs), || Routed(warm_router(&slugs)))
    })
}

/// Two threads that want the same tenant write the same reference count, whatever the map.
fn two_threads() -> Claim {
    Claim::new(
        "route_hit_2threads/arcswap_2threads",
        Goal::RatioAtMost(1.0),
        || {
            let slugs = slugs(TENANTS);
            let hot = vec![slugs[TENANTS / 2]; 2 * LOOKUPS];
            // Which cache lines the count shares with what else decides more than the maps do.
            ratio_of_pairs(
                || (Cached(warm_router(&slugs)), ArcSwapMap::new(&slugs)),
                |ours| time_on(2, || ours.look_up(hot.iter())),
                |peer| time_on(2, || peer.look_up(hot.iter())),
            )
        },
    )
}

fn allocations_of_cached() -> Claim {
    Claim::new("route_hit_sync/allocations", Goal::CountAtMost(0), || {
        let slugs = slugs(TENANTS);
        allocations(&Cached(warm_router(&slugs)), &slugs)
    })
}

fn allocations_of_route() -> Claim {
    Claim::new("route_async/allocations", Goal::CountAtMost(0), || {
        let slugs = slugs(TENANTS);
        allocations(&Routed(warm_router(&slugs)), &slugs)
    })
}

/// Over many pairs: where the entries of one lie in memory, and how they hash, makes a third of the time either way.
fn compare<A: Lookup, B: Lookup>(slugs: &[Slug], first: impl Fn() -> A, second: impl Fn() -> B) -> f64 {
    let order = random_order(slugs, LOOKUPS);
    ratio_of_pairs(
        || (first(), second()),
        |first| time(|| first.look_up(order.iter())),
        |second| time(|| second.look_up(order.iter())),
    )
}

/// Allocations of one lookup of every tenant.
fn allocations<L: Lookup>(lookup: &L, slugs: &[Slug]) -> f64 {
    // What a thread allocates once, on its first lookup, is not of the lookup.
    lookup.look_up(slugs.iter());
    let counted = allocation_counter::measure(|| lookup.look_up(slugs.iter()));
    counted.count_total as f64
}
