//! The CSI driver that mounts cached datasets in pods.
//!
//! [`expose`] shows a dataset version as files; [`driver`] does so when kubelet asks for it, and
//! [`register`] makes kubelet ask; [`keeper`] is the process that serves the mounts, so that neither
//! needs to live for a read.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod cached;
pub mod driver;
pub mod expose;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod keeper;
mod readers;
pub mod register;
