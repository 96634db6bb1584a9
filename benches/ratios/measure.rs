//! Measuring two things against each other on a machine that does other things besides.

use std::{
    hint::black_box,
    sync::Barrier,
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Runtime};

/// For what is compared on one thread.
pub(crate) fn on_one_thread() -> Runtime {
    let built = Builder::new_current_thread().enable_all().build();
    built.expect("a runtime starts")
}

/// For what others do at the same time.
pub(crate) fn on_two_threads() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    let built = builder.worker_threads(2).enable_all().build();
    built.expect("a runtime starts")
}

/// Something to be held against a goal.
pub(crate) struct Claim {
    /// `ours/peer`, or what is counted.
    pub(crate) name: &'static str,
    pub(crate) goal: Goal,
    /// Measures; called only for a claim that is wanted.
    pub(crate) measure: Box<dyn FnOnce() -> f64>,
}

#[derive(Clone, Copy)]
pub(crate) enum Goal {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    CountAtMost(u64),
}

impl Claim {
    pub(crate) fn new(name: &'static str, goal: Goal, measure: impl FnOnce() -> f64 + 'static) -> Self {
        Self {
            name,
            goal,
            measure: Box::new(measure),
        }
    }

    /// Measures, prints the line, and says whether the goal was met.
    #[expect(clippy::print_stdout, reason = "the lines are what this program is for")]
    pub(crate) fn check(self) -> bool {
        let Self { name, goal, measure } = self;
        let measured = measure();
        let met = match goal {
            Goal::RatioAtMost(most) => {
                println!("ratio {name} {measured:.2} <={most}");
                measured <= most
            }
            Goal::RatioAtLeast(least) => {
                println!("ratio {name} {measured:.2} >={least}");
                measured >= least
            }
            Goal::CountAtMost(most) => {
                println!("count {name} {measured} <={most}");
                measured <= most as f64
            }
        };
        if !met {
            println!("      missed");
        }
        met
    }
}

/// Rounds of a comparison. The median of as many is steady to a hundredth or two on a busy machine of two cores.
const ROUNDS: usize = 301;

/// How many times as long the first takes as the second.
///
/// Each is run in turn for a short round, and each round gives a ratio of its own, so that whatever slows the machine
/// down for longer than a round slows both. The median leaves out the rounds that were disturbed in the middle.
pub(crate) fn ratio(first: impl FnMut() -> Duration, second: impl FnMut() -> Duration) -> f64 {
    median_of_rounds(ROUNDS, first, second)
}

fn median_of_rounds(
    rounds: usize,
    mut first: impl FnMut() -> Duration,
    mut second: impl FnMut() -> Duration,
) -> f64 {
    // The first rounds fill caches and let the clock of the processor rise.
    for _ in 0..10 {
        black_box((first(), second()));
    }
    let ratios = (0..rounds).map(|round| {
        // Neither always goes first.
        let (a, b) = if round % 2 == 0 {
            let a = first();
            (a, second())
        } else {
            let b = second();
            (first(), b)
        };
        a.as_secs_f64() / b.as_secs_f64()
    });
    median(ratios.collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The same for what depends on where its data lies in memory, which one pair of instances cannot tell from what it costs:
/// the median over many pairs, each made anew.
pub(crate) fn ratio_of_pairs<A, B>(
    mut pair: impl FnMut() -> (A, B),
    mut first: impl FnMut(&A) -> Duration,
    mut second: impl FnMut(&B) -> Duration,
) -> f64 {
    const PAIRS: usize = 41;
    const ROUNDS_OF_PAIR: usize = 21;
    let ratios = (0..PAIRS).map(|_| {
        let (a, b) = pair();
        median_of_rounds(ROUNDS_OF_PAIR, || first(&a), || second(&b))
    });
    median(ratios.collect())
}

/// The time that `work` takes.
pub(crate) fn time(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// The time that `threads` take which do the same work at once.
pub(crate) fn time_on(threads: usize, work: impl Fn() + Sync) -> Duration {
    let ready = Barrier::new(threads);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    ready.wait();
                    let begun = Instant::now();
                    work();
                    begun.elapsed()
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("the work does not panic"))
            .max()
            .expect("there is a thread")
    })
}
