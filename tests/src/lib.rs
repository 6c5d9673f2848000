//! End-to-end tests through Trackbed's real interfaces: processes, sockets, mounts.
//!
//! This library is what the tests stand on: a [`cluster`] of `trackbed node` processes on loopback
//! addresses, a [`wire`] that can be put between two of them to do harm, and three S3 services
//! to take datasets from: one that can be made to fail ([`s3_server`]), and two that others wrote
//! ([`seaweedfs`], and [`rclone`], which is no bottleneck). For the device [`plugin`], a [`machine`] that is files
//! and a [`kubelet`] on real sockets; for the [`controller`], an API server in the test's process.
//! For traces, a [`collector`].

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod cluster;
pub mod collector;
pub mod controller;
pub mod daemon;
pub mod kubelet;
pub mod machine;
pub mod manifests;
pub mod node;
pub mod plugin;
pub mod privilege;
pub mod rclone;
pub mod reader;
pub mod release;
mod s3_client;
pub mod s3_server;
pub mod seaweedfs;
pub mod tree;
pub mod wire;
