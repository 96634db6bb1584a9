//! What biplane's own tests use, and yours may.

pub mod conformance;
pub mod faulty;
