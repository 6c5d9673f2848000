//! The data plane's ground floor: pinned memory, the thread that drives one io_uring, safe verbs,
//! and the fabric that brings chunks from peers over verbs or TCP.
//!
//! All unsafe code of Trackbed lives in this crate.

pub mod bench;
pub mod check;
pub mod devices;
pub mod fabric;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod kernel_files;
pub mod mesh;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
mod security;
pub mod shard;
pub mod slab;
pub mod sys;
pub mod verbs;
