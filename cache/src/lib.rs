//! The dataset cache engine: manifests, origins, store, placement and fill.
//!
//! A dataset version is an immutable [`manifest`] named by its [`digest`]. Its bytes come from an
//! [`origin`], once, and from then on from the nodes that hold them.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod digest;
pub mod manifest;
pub mod metrics;
pub mod origin;
pub mod placement;
pub mod registry;
pub mod seal;
pub mod store;
pub mod verified;
mod workers;

pub use digest::Digest;
pub use manifest::{Entry, EntryIndex, EntryKind, Manifest};
pub use verified::VerifiedBytes;
