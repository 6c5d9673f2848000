//! What a node tells of itself: its CacheNode object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::timeout;
use trackbed_cache::DiskStatus;
use trackbed_controller::api::{CacheNode, CachedDataset, Disk, DiskState, RACK_LABEL, ZONE_LABEL};

use super::registry::KubernetesRegistry;
use super::{ANSWER_WITHIN, MANAGER, reason};
use crate::keeper::BUILD;

/// The object without its status: what is applied when the node starts.
pub(super) fn object(registry: &KubernetesRegistry, disks: &[DiskStatus]) -> Value {
    let config = registry.config();
    let mut labels = serde_json::Map::new();
    let disks = disks.iter().map(|disk| Disk {
        path: disk.directory.display().to_string(),
        capacity_bytes: signed(disk.capacity_bytes),
    });
    let mut spec = json!({ "address": config.address, "disks": disks.collect::<Vec<_>>() });
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

/// Its status: a heartbeat, and what is on its disks.
pub(super) fn status(
    registry: &KubernetesRegistry,
    disks: &[DiskStatus],
    datasets: &[CachedDataset],
) -> Value {
    let free = disks.iter().map(|disk| disk.free_bytes);
    let states = disks.iter().map(|disk| DiskState {
        path: disk.directory.display().to_string(),
        used_bytes: signed(disk.stored_bytes),
        free_bytes: signed(disk.free_bytes),
        in_service: disk.in_service,
    });
    json!({ "apiVersion": "trackbed.io/v1", "kind": "CacheNode",
        "metadata": { "name": registry.node() },
        "status": {
            "heartbeat": Time(Timestamp::now()),
            "reportEverySeconds": registry.config().report_every.as_secs(),
            "agentVersion": BUILD,
            "freeBytes": signed(free.fold(0, u64::saturating_add)),
            "disks": states.collect::<Vec<_>>(),
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
