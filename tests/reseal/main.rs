//! What is promised about stored values while keys are rotated: nothing is lost, nothing is left, and what is wrong is
//! named.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../control/mod.rs"]
mod control;
#[path = "../sealed/mod.rs"]
mod sealed;

mod columns;
mod credentials;
mod diagnosis;
mod evidence;
mod held;
mod memory;
mod refused;
mod writers;
