//! End-to-end tests through Trackbed's real interfaces: processes, sockets, mounts.
//!
//! This library is what the tests stand on: a [`cluster`] of `trackbed node` processes on loopback
//! addresses, a [`wire`] that can be put between two of them to do harm, and three S3 services
//! to take datasets from: one that can be made to fail ([`s3_server`]), and two that others wrote
//! ([`seaweedfs`], and [`rclone`], which is no bottleneck).

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod cluster;
pub mod node;
pub mod privilege;
pub mod rclone;
mod s3_client;
pub mod s3_server;
pub mod seaweedfs;
pub mod tree;
pub mod wire;
