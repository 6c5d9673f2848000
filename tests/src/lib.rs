//! End-to-end tests through Trackbed's real interfaces: processes, sockets, mounts.
//!
//! This library is what the tests stand on: a [`cluster`] of `trackbed node` processes on loopback
//! addresses, a [`wire`] that can be put between two of them to do harm, and an S3 service
//! ([`s3_server`]) to take datasets from.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod cluster;
pub mod node;
pub mod privilege;
pub mod s3_server;
pub mod tree;
pub mod wire;
