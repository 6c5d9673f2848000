//! CSI Node: requests checked and turned into operations on [`Volumes`].

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use trackbed_proto::csi::v1::node_server::Node;
use trackbed_proto::csi::v1::node_service_capability::{Rpc, Type, rpc};
use trackbed_proto::csi::v1::volume_usage::Unit;
use trackbed_proto::csi::v1::{
    NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest,
    NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, Topology,
    VolumeCondition, VolumeUsage,
};

use super::error::VolumeError;
use super::path::HostPath;
use super::volume::{Access, VolumeId, VolumeSpec};
use super::volumes::{PublishRequest, StageRequest, Volumes};

/// The Node service.
pub(super) struct NodeService {
    pub(super) node_id: String,
    pub(super) topology: BTreeMap<String, String>,
    pub(super) volumes: Arc<Volumes>,
}

/// Answers, and logs what was refused: kubelet shows it in the pod's events only.
fn answer<T, R>(call: &str, volume: &str, result: Result<T, VolumeError>, ok: R) -> Answer<R> {
    match result {
        Ok(_) => {
            tracing::info!(call, volume, "done");
            Ok(Response::new(ok))
        }
        Err(error) => {
            tracing::warn!(call, volume, %error, "refused or failed");
            Err(error.into())
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Answer<NodeStageVolumeResponse> {
        let request = request.into_inner();
        let work = async {
            let volume = VolumeId::parse(&request.volume_id)?;
            let request = StageRequest {
                staging: HostPath::parse("staging_target_path", &request.staging_target_path)?,
                access: Access::parse(request.volume_capability.as_ref())?,
                spec: VolumeSpec::parse(&volume, &request.volume_context)?,
                volume,
            };
            self.volumes.stage(request).await
        };
        let result = work.await;
        let done = NodeStageVolumeResponse {};
        answer("NodeStageVolume", &request.volume_id, result, done)
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Answer<NodeUnstageVolumeResponse> {
        let request = request.into_inner();
        let work = async {
            let volume = VolumeId::parse(&request.volume_id)?;
            let staging = HostPath::parse("staging_target_path", &request.staging_target_path)?;
            self.volumes.unstage(volume, staging).await
        };
        let result = work.await;
        let done = NodeUnstageVolumeResponse {};
        answer("NodeUnstageVolume", &request.volume_id, result, done)
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        let request = request.into_inner();
        let work = async {
            let volume = VolumeId::parse(&request.volume_id)?;
            let target = HostPath::parse("target_path", &request.target_path)?;
            let access = Access::parse(request.volume_capability.as_ref())?;
            VolumeSpec::parse(&volume, &request.volume_context)?;
            if request.staging_target_path.is_empty() {
                return Err(VolumeError::Premature(format!(
                    "volume {:?}: staging_target_path is missing: a dataset is staged before it is published",
                    request.volume_id
                )));
            }
            let staging = HostPath::parse("staging_target_path", &request.staging_target_path)?;
            let request = PublishRequest {
                volume,
                staging,
                target,
                access,
                read_only: request.readonly,
            };
            self.volumes.publish(request).await
        };
        let result = work.await;
        let done = NodePublishVolumeResponse {};
        answer("NodePublishVolume", &request.volume_id, result, done)
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        let work = async {
            let volume = VolumeId::parse(&request.volume_id)?;
            let target = HostPath::parse("target_path", &request.target_path)?;
            self.volumes.unpublish(volume, target).await
        };
        let result = work.await;
        let done = NodeUnpublishVolumeResponse {};
        answer("NodeUnpublishVolume", &request.volume_id, result, done)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Answer<NodeGetVolumeStatsResponse> {
        let request = request.into_inner();
        let volume = VolumeId::parse(&request.volume_id)?;
        if request.volume_path.is_empty() {
            return Err(VolumeError::Invalid("volume_path is missing".into()).into());
        }
        // A path that cannot be one of ours is not found rather than invalid, says the suite.
        let path = HostPath::parse("volume_path", &request.volume_path)
            .map_err(|error| VolumeError::NotFound(error.to_string()))?;
        let stats = self.volumes.stats(volume, path).await?;
        let full = |total: u64, unit: Unit| {
            let total = i64::try_from(total).unwrap_or(i64::MAX);
            VolumeUsage {
                available: 0,
                total,
                used: total,
                unit: unit.into(),
            }
        };
        let usage = stats
            .size
            .map(|(bytes, entries)| vec![full(bytes, Unit::Bytes), full(entries, Unit::Inodes)]);
        Ok(Response::new(NodeGetVolumeStatsResponse {
            usage: usage.unwrap_or_default(),
            volume_condition: Some(VolumeCondition {
                abnormal: stats.abnormal,
                message: stats.message,
            }),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let served = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::VolumeCondition,
        ];
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: served
                .map(|kind| NodeServiceCapability {
                    r#type: Some(Type::Rpc(Rpc {
                        r#type: kind.into(),
                    })),
                })
                .into(),
        }))
    }

    async fn node_get_info(
        &self,
        _request: Request<NodeGetInfoRequest>,
    ) -> Answer<NodeGetInfoResponse> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(Topology {
                segments: self.topology.clone().into_iter().collect(),
            }),
        }))
    }
}
