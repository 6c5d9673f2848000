//! Mounting as kubelet does it: over the CSI socket of a node, stage, then publish.

use super::nodes::{Node, unix_channel};
use super::workdir::private_dir;
use crate::exit::Failure;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tonic::Status;
use tonic::transport::Channel;
use trackbed_proto::csi::v1::node_client::NodeClient;
use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;
use trackbed_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use trackbed_proto::csi::v1::{
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
};

/// A dataset mounted on a node, where a pod would see it.
pub(crate) struct Mount {
    volume: String,
    staging: PathBuf,
    target: PathBuf,
    client: NodeClient<Channel>,
    node: String,
}

impl Mount {
    /// Stages and publishes `dataset` on `node`.
    pub(crate) async fn make(node: &Node, dataset: &str) -> Result<Mount, Failure> {
        let staging = node.folder.join("stage");
        let pods = node.folder.join("pods");
        for folder in [&staging, &pods] {
            private_dir(folder).map_err(|error| {
                Failure::failed(format!("cannot make {}: {error}", folder.display()))
            })?;
        }
        let mut mount = Mount {
            volume: format!("demo-{dataset}"),
            staging,
            target: pods.join(dataset),
            client: NodeClient::new(unix_channel(&node.csi_socket()).await?),
            node: node.name.clone(),
        };
        let capability = VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume::default())),
            access_mode: Some(AccessMode {
                mode: Mode::MultiNodeReaderOnly.into(),
            }),
        };
        let volume_context = HashMap::from([("dataset".to_owned(), dataset.to_owned())]);
        let stage = NodeStageVolumeRequest {
            volume_id: mount.volume.clone(),
            staging_target_path: text(&mount.staging),
            volume_capability: Some(capability.clone()),
            volume_context: volume_context.clone(),
            ..Default::default()
        };
        let staged = mount.client.node_stage_volume(stage).await;
        staged.map_err(|status| mount.failed("NodeStageVolume", &status))?;
        let publish = NodePublishVolumeRequest {
            volume_id: mount.volume.clone(),
            staging_target_path: text(&mount.staging),
            target_path: text(&mount.target),
            volume_capability: Some(capability),
            readonly: true,
            volume_context,
            ..Default::default()
        };
        let published = mount.client.node_publish_volume(publish).await;
        published.map_err(|status| mount.failed("NodePublishVolume", &status))?;
        Ok(mount)
    }

    /// Where the dataset is seen.
    pub(crate) fn path(&self) -> &Path {
        &self.target
    }

    /// Unpublishes and unstages.
    pub(crate) async fn remove(mut self) -> Result<(), Failure> {
        let unpublish = NodeUnpublishVolumeRequest {
            volume_id: self.volume.clone(),
            target_path: text(&self.target),
        };
        let unpublished = self.client.node_unpublish_volume(unpublish).await;
        unpublished.map_err(|status| self.failed("NodeUnpublishVolume", &status))?;
        let unstage = NodeUnstageVolumeRequest {
            volume_id: self.volume.clone(),
            staging_target_path: text(&self.staging),
        };
        let unstaged = self.client.node_unstage_volume(unstage).await;
        unstaged.map_err(|status| self.failed("NodeUnstageVolume", &status))?;
        Ok(())
    }

    fn failed(&self, call: &str, status: &Status) -> Failure {
        let code = status.code();
        Failure::failed(format!(
            "{call} on {}: {code:?}: {}",
            self.node,
            status.message()
        ))
    }
}

/// Paths of the demo's folder are text: its name is ours, and clap took its parent as it is.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
