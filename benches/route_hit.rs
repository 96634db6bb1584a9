//! Warm lookups by slug against the maps and caches that one would use instead.
//!
//! `cargo bench --bench route_hit`, with 1, 1,000 and 100,000 tenants, on one thread and on two. Before the times it
//! prints how often each allocates in a lookup. The claims are in `benches/ratios`.

mod peers;

use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

use biplane::tenant::Slug;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use peers::{
    ArcSwapMap, Cached, Lookup, MokaFuture, MokaSync, Papaya, QuickCache, Routed, StdMap, random_order,
    slugs, warm_router,
};

const LOOKUPS: usize = 4_096;

fn route_hit(criterion: &mut Criterion) {
    for tenants in [1, 1_000, 100_000] {
        let slugs = slugs(tenants);
        let order = random_order(&slugs, LOOKUPS);
        let biplane = warm_router(&slugs);
        let all: [&dyn Bench; 8] = [
            &StdMap::new(&slugs),
            &ArcSwapMap::new(&slugs),
            &Papaya::new(&slugs),
            &QuickCache::new(&slugs),
            &MokaSync::new(&slugs),
            &MokaFuture::new(&slugs),
            &Cached(biplane.clone()),
            &Routed(biplane),
        ];
        for lookup in all {
            lookup.count_allocations(tenants, &order);
        }
        for threads in [1, 2] {
            let mut group = criterion.benchmark_group(format!("{tenants} tenants, {threads} threads"));
            group.throughput(Throughput::Elements(1));
            group.sample_size(20);
            group.warm_up_time(Duration::from_millis(300));
            group.measurement_time(Duration::from_secs(1));
            for lookup in all {
                group.bench_function(BenchmarkId::from_parameter(lookup.label()), |bencher| {
                    bencher.iter_custom(|lookups| lookup.time(&order, lookups, threads));
                });
            }
            group.finish();
        }
    }
}

/// A lookup whose loop was compiled for it, so that the trait object costs once a round and not once a lookup.
trait Bench {
    fn label(&self) -> &'static str;
    fn time(&self, order: &[Slug], lookups: u64, threads: usize) -> Duration;
    fn count_allocations(&self, tenants: usize, order: &[Slug]);
}

impl<L: Lookup> Bench for L {
    fn label(&self) -> &'static str {
        self.name()
    }

    /// How long each of the threads needs for so many lookups, all of them at work.
    fn time(&self, order: &[Slug], lookups: u64, threads: usize) -> Duration {
        let ready = Barrier::new(threads);
        let run = || {
            ready.wait();
            let begun = Instant::now();
            let lookups = usize::try_from(lookups).unwrap_or(usize::MAX);
            self.look_up(order.iter().cycle().take(lookups));
            begun.elapsed()
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
            let own = run();
            others
                .into_iter()
                .map(|thread| thread.join().expect("the work does not panic"))
                .fold(own, Duration::max)
        })
    }

    #[expect(clippy::print_stdout, reason = "a bench talks to whoever runs it")]
    fn count_allocations(&self, tenants: usize, order: &[Slug]) {
        let run = || self.look_up(order.iter());
        run();
        let counted = allocation_counter::measure(run).count_total as f64 / order.len() as f64;
        println!(
            "{tenants} tenants, {}: {counted} allocations in a lookup",
            self.name()
        );
    }
}

criterion_group!(benches, route_hit);
criterion_main!(benches);
