//! Each claim about speed, as a ratio against the peer that it names, on the same work in the same run.
//!
//! `cargo bench --bench ratios`, with `--features testing` for those that need a Postgres server, which they start for
//! themselves. One line for each claim:
//!
//! ```text
//! ratio <ours>/<peer> <measured> <=<goal>      how many times the peer's time; >= where a peer is to be slower
//! count <what> <counted> <=<goal>
//! ```
//!
//! The exit code is 1 when a claim misses its goal. Words after `--` choose claims by a part of their name.
//!
//! A claim is a function of a module of this folder; [`CLAIMS`] lists them.

#[cfg(feature = "postgres")]
mod breaker;
#[cfg(all(feature = "postgres", feature = "testing"))]
mod checkout;
#[cfg(all(feature = "postgres", feature = "testing"))]
mod cold_route;
#[cfg(all(feature = "postgres", feature = "testing"))]
mod feed;
#[cfg(all(feature = "postgres", feature = "testing"))]
mod fence;
mod keyring;
mod measure;
#[cfg(all(feature = "postgres", feature = "testing"))]
mod modes;
#[expect(dead_code, reason = "route_hit measures peers that no claim names")]
#[path = "../peers/mod.rs"]
mod peers;
mod route_hit;

use std::process::ExitCode;

use measure::Claim;

const CLAIMS: &[&[fn() -> Claim]] = &[
    route_hit::CLAIMS,
    keyring::CLAIMS,
    #[cfg(feature = "postgres")]
    breaker::CLAIMS,
    #[cfg(all(feature = "postgres", feature = "testing"))]
    checkout::CLAIMS,
    #[cfg(all(feature = "postgres", feature = "testing"))]
    cold_route::CLAIMS,
    #[cfg(all(feature = "postgres", feature = "testing"))]
    feed::CLAIMS,
    #[cfg(all(feature = "postgres", feature = "testing"))]
    fence::CLAIMS,
    #[cfg(all(feature = "postgres", feature = "testing"))]
    modes::CLAIMS,
];

fn main() -> ExitCode {
    // Cargo adds options of its own, such as `--bench`.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let mut missed = 0;
    for claim in CLAIMS.iter().copied().flatten() {
        let claim = claim();
        if !wanted.is_empty() && !wanted.iter().any(|word| claim.name.contains(word.as_str())) {
            continue;
        }
        missed += usize::from(!claim.check());
    }
    ExitCode::from(u8::from(missed > 0))
}
