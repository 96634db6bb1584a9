//! The fence in a data-plane database: who enters, and that nobody commits behind a mover's back.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../data_plane/mod.rs"]
mod data_plane;
#[path = "../poolers/mod.rs"]
mod poolers;

mod behind_poolers;
mod by_hand;
mod copies;
mod drain;
mod durable;
mod entry;
mod failover;
mod giving_up;
mod grants;
mod parallel;
mod property;
mod roles;
mod sessions;
mod succession;
mod support;
