//! The data plane's ground floor: pinned memory, the thread that drives one io_uring, safe verbs,
//! and the fabric that brings chunks from peers over verbs or TCP.
//!
//! All unsafe code of Trackbed lives in this crate.

pub mod fabric;
pub mod shard;
pub mod slab;
