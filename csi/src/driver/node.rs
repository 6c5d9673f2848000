//! CSI Node: requests checked and turned into operations on [`Volumes`].

use std::collections::{BTreeMap, HashMap};
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

use tokio::task::spawn_blocking;

use super::error::VolumeError;
use super::ledger::{Ledger, volume_key};
use super::path::HostPath;
use super::spec::{Said, VolumeSpec};
use super::volume::{Access, VolumeId};
use super::volumes::{PublishRequest, StageRequest, Volumes};

/// The Node service.
pub(super) struct NodeService {
    pub(super) node_id: String,
    pub(super) topology: BTreeMap<String, String>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) volumes: Arc<Volumes>,
}

impl NodeService {
    /// What a volume to be staged shows: a volume that was created is looked up by its id, and its
    /// context must be the one it was created with; others are described by context and id.
    async fn spec(
        &self,
        volume: &VolumeId,
        context: &HashMap<String, String>,
    ) -> Result<VolumeSpec, VolumeError> {
        let said = said(volume, context)?;
        let Some(key) = volume_key(volume.as_str()) else {
            return said.spec_or_id(volume);
        };
        let ledger = self.ledger.clone();
        let found = spawn_blocking(move || ledger.volumes.get(key)).await;
        match (found.unwrap_or(Err(VolumeError::Panicked)), said.spec()) {
            (Ok(Some(entry)), said) if said.as_ref().is_none_or(|said| *said == entry.content) => {
                Ok(entry.content)
            }
            (Ok(Some(entry)), _) => Err(VolumeError::Invalid(format!(
                "volume {:?} was created with {}, and its volume_context has something else",
                volume.as_str(),
                entry.content
            ))),
            (Ok(None), _) => Err(VolumeError::NotFound(format!(
                "there is no volume {:?}: it was deleted, or this node's registry is another",
                volume.as_str()
            ))),
            // The registry is needed to learn what the context tells as well.
            (Err(error), Some(spec)) => {
                tracing::warn!(%error, volume = volume.as_str(), "going by the volume's context");
                Ok(spec)
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn publish(&self, request: &NodePublishVolumeRequest) -> Result<(), VolumeError> {
        let volume = VolumeId::parse(&request.volume_id)?;
        let target = HostPath::parse("target_path", &request.target_path)?;
        let access = Access::parse(request.volume_capability.as_ref())?;
        let said = said(&volume, &request.volume_context)?;
        let inline = said.ephemeral && request.staging_target_path.is_empty();
        if request.staging_target_path.is_empty() && !inline {
            return Err(VolumeError::Premature(format!(
                "volume {:?}: staging_target_path is missing: a dataset is staged before it is published",
                request.volume_id
            )));
        }
        let mut publish = PublishRequest {
            staging: target.clone(),
            said: match volume_key(volume.as_str()) {
                Some(_) => said.spec(),
                None if inline => said.spec(),
                None => Some(said.spec_or_id(&volume)?),
            },
            volume,
            target,
            access,
            read_only: request.readonly,
            namespace: said.pod_namespace,
        };
        if inline {
            let Some(spec) = publish.said.clone() else {
                return Err(VolumeError::Invalid(format!(
                    "volume {:?} is part of its pod's specification and names no dataset: set \"dataset\" in its volumeAttributes",
                    request.volume_id
                )));
            };
            return self.volumes.publish_inline(publish, spec).await;
        }
        publish.staging = HostPath::parse("staging_target_path", &request.staging_target_path)?;
        self.volumes.publish(publish).await
    }
}

fn said(volume: &VolumeId, context: &HashMap<String, String>) -> Result<Said, VolumeError> {
    let about = format!("volume {:?}", volume.as_str());
    Said::parse(&about, "volume_context (volumeAttributes)", context)
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
    #[tracing::instrument(
        target = "trackbed_traces",
        name = "csi.stage",
        skip_all,
        fields(volume = request.get_ref().volume_id),
        err
    )]
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
                spec: self.spec(&volume, &request.volume_context).await?,
                inline: false,
                volume,
            };
            self.volumes.stage(request).await
        };
        let result = work.await;
        let done = NodeStageVolumeResponse {};
        answer("NodeStageVolume", &request.volume_id, result, done)
    }

    #[tracing::instrument(
        target = "trackbed_traces",
        name = "csi.unstage",
        skip_all,
        fields(volume = request.get_ref().volume_id),
        err
    )]
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

    #[tracing::instrument(
        target = "trackbed_traces",
        name = "csi.publish",
        skip_all,
        fields(volume = request.get_ref().volume_id),
        err
    )]
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        let request = request.into_inner();
        let result = self.publish(&request).await;
        let done = NodePublishVolumeResponse {};
        answer("NodePublishVolume", &request.volume_id, result, done)
    }

    #[tracing::instrument(
        target = "trackbed_traces",
        name = "csi.unpublish",
        skip_all,
        fields(volume = request.get_ref().volume_id),
        err
    )]
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
            rpc::Type::SingleNodeMultiWriter,
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
