//! The custom resources of the group `trackbed.io`.
//!
//! A [`Dataset`] is what somebody wants cached, and what became of it; a [`CacheNode`] is a node of
//! the cache, kept by its agent. The Rust types are the source: [`manifests`] gives the
//! CustomResourceDefinitions that `deploy/crds` holds, whose schemas and rules the API server checks
//! every object with, so that what arrives here has been checked already. A [`Caffe2Job`] is a training
//! job, whose pods the controller makes.
//!
//! A chunk's state is never in the API: it is known to the node that has it.

// KubeSchema makes public types within functions, and columns of one type are no mistake.
#[allow(unreachable_pub, clippy::duplicated_attributes)]
mod cachenode;
#[allow(unreachable_pub, clippy::duplicated_attributes)]
pub mod caffe2job;
#[allow(unreachable_pub, clippy::duplicated_attributes)]
mod dataset;
mod manifest;

pub use cachenode::{CacheNode, CacheNodeSpec, CacheNodeStatus, CachedDataset, Disk, DiskState};
pub use caffe2job::{Caffe2Job, Caffe2JobSpec, Caffe2JobStatus, KubeflowCaffe2Job};
pub use dataset::{
    CachedOn, CredentialsReference, Dataset, DatasetSpec, DatasetStatus, MAX_EARLIER, Phase, WarmUp,
};
pub use manifest::{ManifestError, manifests};

/// The API group.
pub const GROUP: &str = "trackbed.io";

/// The type of the condition that says whether a dataset has a version that can be read.
pub const READY: &str = "Ready";

/// The type of the condition that says whether what was to be warmed is on the nodes it was to be
/// warmed on.
pub const WARMED: &str = "Warmed";

/// The label by which a zone is known, on nodes and on cache nodes.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The label by which a rack is known on cache nodes.
pub const RACK_LABEL: &str = "topology.trackbed.io/rack";
