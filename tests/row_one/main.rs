//! No row is ever committed at an epoch that was fenced and drained, whatever becomes of routers, movers and servers.
//!
//! Routers and movers are processes of their own, each this binary again, with one of the ignored tests as its main function.
//! `BIPLANE_ROW_ONE_ROUNDS=20 cargo test --all-features --test row_one race` runs for minutes. A failure prints the seed of
//! its plan; `BIPLANE_ROW_ONE_SEED` takes it.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../poolers/mod.rs"]
mod poolers;

mod behind_poolers;
mod dice;
mod mover;
mod process;
mod race;
mod router;
mod stopped;
mod succession;
mod verdict;
mod world;
