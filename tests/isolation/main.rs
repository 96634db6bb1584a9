//! Tenants in a database of their own, in a schema of a shared one, and in rows of shared tables, all in one program: what
//! keeps them apart, and what each may do.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../data_plane/mod.rs"]
mod data_plane;
#[path = "../poolers/mod.rs"]
mod poolers;

mod crowd;
mod entry;
mod homes;
mod own_code;
mod pooler;
mod row_security;
mod sessions;
