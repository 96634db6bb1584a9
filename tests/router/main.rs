//! What a router promises, held against a control plane in memory that the tests break at will. No server is needed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod brake;
mod close;
mod dropping;
mod feed;
mod freshness;
mod herd;
mod invalidation;
mod memory;
mod model;
mod names;
mod statistics;
mod status;
mod support;
mod unknown;
mod unreachable;
mod warm;
