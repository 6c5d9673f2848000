//! The CSI driver through its socket, as kubelet, the provisioner and the snapshotter use it.

#[path = "../support/mod.rs"]
mod support;

/// The code of a call, `Ok` included.
macro_rules! code {
    ($call:expr) => {
        $call
            .await
            .map_or_else(|status| status.code(), |_| Code::Ok)
    };
}

mod codes;
mod concurrency;
mod created;
mod identity;
mod inline;
mod isolation;
mod lifecycle;
mod lists;
mod mounting;
mod reconcile;
mod registration;
mod restart;
mod snapshots;

use std::sync::Arc;

use support::cluster::{MemoryDatasets, capability};
use support::{MemoryVersion, file, pattern};
use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;
use trackbed_proto::csi::v1::{CapacityRange, CreateSnapshotRequest, CreateVolumeRequest};

/// Texts must differ in length: it and the time are what tells versions apart.
fn cats(text: &str) -> Arc<MemoryVersion> {
    MemoryVersion::new(
        &[
            file("cat.txt", text.as_bytes()),
            file("more/big", &pattern(200_000, 1)),
        ],
        4 << 20,
    )
}

fn datasets() -> Arc<MemoryDatasets> {
    let datasets = MemoryDatasets::new();
    datasets.put("cats", &cats("meow"));
    datasets.put("dogs", &cats("woof!"));
    datasets
}

/// What the conformance suite asks for: 10 GiB for one writer.
const TEN_GIB: i64 = 10 << 30;

/// A volume as the conformance suite creates it: without parameters that name a dataset.
fn create_request(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange {
            required_bytes: TEN_GIB,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

/// A volume of a dataset.
fn create_of(name: &str, dataset: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        parameters: [("dataset".to_owned(), dataset.to_owned())].into(),
        ..create_request(name)
    }
}

fn snapshot_request(name: &str, volume: &str) -> CreateSnapshotRequest {
    CreateSnapshotRequest {
        name: name.to_owned(),
        source_volume_id: volume.to_owned(),
        ..Default::default()
    }
}
