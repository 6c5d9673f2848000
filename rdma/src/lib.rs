//! Safe verbs, the io_uring shard, and the peer fabric over verbs or TCP.

pub mod bench;
pub mod devices;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
pub mod sys;
pub mod verbs;
