//! CSI Controller: volumes and snapshots made by name. Any node answers, and all the same, as what
//! there is to remember is in the registry ([`Ledger`]).
//!
//! A volume is pinned to a version when it is created: it shows the same bytes on every node for
//! as long as it exists, whatever becomes of the dataset. Nothing is copied: a clone or a snapshot
//! is another name for the same version. Every node can show every volume, so there are no
//! topology constraints to tell; a scheduler that prefers nodes with cached data must not be bound
//! to them.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status};
use trackbed_cache::registry::{DatasetName, DatasetRecord};
use trackbed_proto::csi::v1::controller_server::Controller;
use trackbed_proto::csi::v1::controller_service_capability::{Rpc, Type, rpc};
use trackbed_proto::csi::v1::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse,
    ControllerGetVolumeRequest, ControllerGetVolumeResponse, ControllerServiceCapability,
    CreateSnapshotRequest, CreateSnapshotResponse, CreateVolumeRequest, CreateVolumeResponse,
    DeleteSnapshotRequest, DeleteSnapshotResponse, DeleteVolumeRequest, DeleteVolumeResponse,
    GetCapacityRequest, GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse,
    ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
};

use super::error::VolumeError;
use super::ledger::Ledger;
use super::volumes::Volumes;
use super::{Datasets, OpenFailure};

mod capacity;
mod create;
mod find;
mod inspect;
mod page;
mod snapshot;

pub(super) use inspect::NO_DATASET;

/// The Controller service. Clones are the same.
#[derive(Clone)]
pub(super) struct ControllerService {
    pub(super) ledger: Arc<Ledger>,
    pub(super) datasets: Arc<dyn Datasets>,
    /// Opens versions, for their sizes.
    pub(super) volumes: Arc<Volumes>,
}

impl ControllerService {
    /// Runs what waits for the disk on a thread that may.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ControllerService) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, VolumeError> {
        let service = self.clone();
        spawn_blocking(move || work(&service))
            .await
            .unwrap_or(Err(VolumeError::Panicked))
    }

    /// What the registry says of a dataset.
    fn record(&self, dataset: &DatasetName) -> Result<Option<DatasetRecord>, VolumeError> {
        self.datasets.record(dataset).map_err(|error| match error {
            OpenFailure::Unknown(why) => VolumeError::NotFound(why),
            OpenFailure::Unavailable(why) => VolumeError::Unavailable(why),
        })
    }
}

/// A required field of the request is not there.
fn missing(field: &str) -> VolumeError {
    VolumeError::Invalid(format!("{field} is missing"))
}

/// Answers, and logs changes and what was refused.
fn answer<T>(call: &str, about: &str, result: Result<T, VolumeError>) -> Answer<T> {
    match result {
        Ok(answer) => {
            tracing::info!(call, about, "done");
            Ok(Response::new(answer))
        }
        Err(error) => {
            tracing::warn!(call, about, %error, "refused or failed");
            Err(error.into())
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Answer<CreateVolumeResponse> {
        let request = request.into_inner();
        let name = request.name.clone();
        let created = self
            .create(request)
            .await
            .map(|volume| CreateVolumeResponse {
                volume: Some(volume),
            });
        answer("CreateVolume", &name, created)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Answer<DeleteVolumeResponse> {
        let id = request.into_inner().volume_id;
        let deleted = self.delete(id.clone()).await;
        answer(
            "DeleteVolume",
            &id,
            deleted.map(|()| DeleteVolumeResponse {}),
        )
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<ValidateVolumeCapabilitiesResponse> {
        Ok(Response::new(self.validate(request.into_inner()).await?))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Answer<ListVolumesResponse> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Answer<ControllerGetVolumeResponse> {
        let id = request.into_inner().volume_id;
        Ok(Response::new(self.volume(id).await?))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Answer<ControllerExpandVolumeResponse> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        let expanded = self.expand(request).await;
        let expanded = expanded.map(|capacity_bytes| ControllerExpandVolumeResponse {
            capacity_bytes,
            node_expansion_required: false,
        });
        answer("ControllerExpandVolume", &id, expanded)
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Answer<GetCapacityResponse> {
        Ok(Response::new(self.capacity(request.into_inner()).await?))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Answer<CreateSnapshotResponse> {
        let request = request.into_inner();
        let name = request.name.clone();
        let taken = self.take_snapshot(request).await;
        let taken = taken.map(|snapshot| CreateSnapshotResponse {
            snapshot: Some(snapshot),
        });
        answer("CreateSnapshot", &name, taken)
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Answer<DeleteSnapshotResponse> {
        let id = request.into_inner().snapshot_id;
        let deleted = self.drop_snapshot(id.clone()).await;
        answer(
            "DeleteSnapshot",
            &id,
            deleted.map(|()| DeleteSnapshotResponse {}),
        )
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Answer<ListSnapshotsResponse> {
        Ok(Response::new(self.snapshots(request.into_inner()).await?))
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Answer<GetSnapshotResponse> {
        let snapshot = self.snapshot(request.into_inner().snapshot_id).await?;
        Ok(Response::new(GetSnapshotResponse {
            snapshot: Some(snapshot),
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _request: Request<ControllerGetCapabilitiesRequest>,
    ) -> Answer<ControllerGetCapabilitiesResponse> {
        let served = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::ListVolumes,
            rpc::Type::GetCapacity,
            rpc::Type::CreateDeleteSnapshot,
            rpc::Type::ListSnapshots,
            rpc::Type::CloneVolume,
            rpc::Type::ExpandVolume,
            rpc::Type::VolumeCondition,
            rpc::Type::GetVolume,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::GetSnapshot,
        ];
        Ok(Response::new(ControllerGetCapabilitiesResponse {
            capabilities: served
                .map(|kind| ControllerServiceCapability {
                    r#type: Some(Type::Rpc(Rpc {
                        r#type: kind.into(),
                    })),
                })
                .into(),
        }))
    }
}
