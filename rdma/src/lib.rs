//! Safe verbs, the io_uring shard, and the peer fabric over verbs or TCP.

pub mod sys;
pub mod verbs;
