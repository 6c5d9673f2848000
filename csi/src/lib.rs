//! The CSI driver that mounts cached datasets in pods.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod expose;
