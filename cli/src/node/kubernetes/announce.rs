//! What a node tells of itself: its CacheNode object.

use std::path::Path;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};
use tokio::time::timeout;
use trackbed_controller::api::{CacheNode, CachedDataset, RACK_LABEL, ZONE_LABEL};

use super::registry::KubernetesRegistry;
use super::{ANSWER_WITHIN, MANAGER, reason};
use crate::keeper::BUILD;

/// The space of a cache's folder, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    /// The most that the cache may take.
    capacity: u64,
    free: u64,
}

impl Space {
    /// Asks the file system; `bound` is the most the cache may hold, if that is bounded.
    pub(super) fn of(folder: &Path, bound: Option<u64>) -> Space {
        let disk = statvfs(folder).ok();
        let size = disk.map_or(0, |disk| disk.blocks().saturating_mul(disk.fragment_size()));
        let free = disk.map_or(0, |disk| {
            disk.blocks_available().saturating_mul(disk.fragment_size())
        });
        let capacity = bound.unwrap_or(size).min(size);
        Space {
            capacity,
            free: free.min(capacity),
        }
    }
}

/// The object without its status: what is applied when the node starts.
pub(super) fn object(registry: &KubernetesRegistry, folder: &Path, space: Space) -> Value {
    let config = registry.config();
    let mut labels = serde_json::Map::new();
    let mut spec = json!({ "address": config.address,
        "disks": [{ "path": folder.display().to_string(), "capacityBytes": signed(space.capacity) }] });
    if let Some(weight) = config.weight {
        spec["weight"] = weight.into();
    }
    for (value, field, label) in [
        (&config.zone, "zone", ZONE_LABEL),
        (&config.rack, "rack", RACK_LABEL),
    ] {
        if let Some(value) = value {
            spec[field] = value.as_str().into();
            labels.insert(label.to_owned(), value.as_str().into());
        }
    }
    json!({ "apiVersion": "trackbed.io/v1", "kind": "CacheNode",
        "metadata": { "name": registry.node(), "labels": labels }, "spec": spec })
}

/// Its status: a heartbeat, and what is on its disk.
pub(super) fn status(
    registry: &KubernetesRegistry,
    space: Space,
    datasets: &[CachedDataset],
) -> Value {
    json!({ "apiVersion": "trackbed.io/v1", "kind": "CacheNode",
        "metadata": { "name": registry.node() },
        "status": {
            "heartbeat": Time(Timestamp::now()),
            "reportEverySeconds": registry.config().report_every.as_secs(),
            "agentVersion": BUILD,
            "freeBytes": signed(space.free),
            "datasets": datasets,
        } })
}

/// Applies the object; what an administrator has set otherwise (its weight, labels) stays.
pub(super) async fn apply(registry: &KubernetesRegistry, object: &Value) -> Result<(), String> {
    let api: Api<CacheNode> = Api::all(registry.client());
    let how = PatchParams::apply(MANAGER).force();
    answered(
        timeout(
            ANSWER_WITHIN,
            api.patch(registry.node(), &how, &Patch::Apply(object)),
        )
        .await,
    )
}

/// Applies the status.
pub(super) async fn apply_status(
    registry: &KubernetesRegistry,
    status: &Value,
) -> Result<(), String> {
    let api: Api<CacheNode> = Api::all(registry.client());
    let how = PatchParams::apply(MANAGER).force();
    answered(
        timeout(
            ANSWER_WITHIN,
            api.patch_status(registry.node(), &how, &Patch::Apply(status)),
        )
        .await,
    )
}

/// A call's outcome; why it failed as one text.
pub(super) fn answered<T>(
    called: Result<Result<T, kube::Error>, tokio::time::error::Elapsed>,
) -> Result<(), String> {
    match called {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) => Err(format!("no answer within {ANSWER_WITHIN:?}")),
    }
}

/// The API has signed numbers.
pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
