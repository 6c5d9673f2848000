//! End-to-end tests through Trackbed's real interfaces: processes, sockets, mounts.
//!
//! This library is what the tests stand on: a [`cluster`] of `trackbed node` processes on loopback
//! addresses, and a [`wire`] that can be put between two of them to do harm.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod cluster;
pub mod node;
pub mod wire;
