//! The dataset cache engine: manifests, origins, store, placement and fill.
//!
//! A dataset version is an immutable [`Manifest`] named by its [`Digest`]. Its bytes come from an
//! [`origin`], once, and from then on from the nodes that hold them. An [`Agent`] is the cache on
//! one node; an [`OpenVersion`] reads a version there.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod agent;
pub mod digest;
pub mod disk;
pub mod erofs;
pub mod fill;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod manifest;
mod membership;
pub mod metrics;
pub mod open;
pub mod origin;
pub mod peers;
pub mod placement;
pub mod registry;
mod replace;
pub mod seal;
pub mod store;
mod sync;
pub mod verified;
mod workers;

pub use agent::{Agent, AgentConfig, AgentError};
pub use digest::Digest;
pub use disk::VersionReader;
pub use manifest::{Entry, EntryIndex, EntryKind, Manifest};
pub use metrics::AgentCounters;
pub use open::{Brought, OpenVersion, Progress, ReadError};
pub use origin::OriginUrl;
pub use peers::{ControlError, PeerControl};
pub use registry::{DatasetName, DatasetRecord, Member, Registry};
pub use store::{Device, DiskStatus, ImageMended, Showable};
pub use verified::VerifiedBytes;
