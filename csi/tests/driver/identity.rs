//! What kubelet and the provisioner learn of the driver before they ask for a volume.

use std::fs;
use std::os::unix::fs::MetadataExt;

use trackbed_csi::driver::{DRIVER_NAME, TOPOLOGY_NODE};
use trackbed_proto::csi::v1::{
    ControllerGetCapabilitiesRequest, GetPluginCapabilitiesRequest, GetPluginInfoRequest,
    NodeGetCapabilitiesRequest, NodeGetInfoRequest, ProbeRequest,
    controller_service_capability as controller, node_service_capability as node,
    plugin_capability as plugin,
};

use crate::datasets;
use crate::support::cluster::Cluster;

#[tokio::test]
async fn the_plugin_says_its_name_and_that_it_is_ready() {
    let mut cluster = Cluster::start(&datasets()).await;
    let info = cluster
        .identity
        .get_plugin_info(GetPluginInfoRequest {})
        .await;
    let info = info.expect("answers").into_inner();
    assert_eq!(info.name, DRIVER_NAME);
    // What the suite asks of a name: at most 63 bytes, a letter at both ends.
    assert!(info.name.len() <= 63);
    assert!(info.name.starts_with(char::is_alphabetic) && info.name.ends_with(char::is_alphabetic));
    assert!(!info.vendor_version.is_empty());
    let probe = cluster.identity.probe(ProbeRequest {}).await;
    assert_eq!(probe.expect("answers").into_inner().ready, Some(true));

    let socket = fs::symlink_metadata(cluster.path("csi.sock")).expect("there");
    assert_eq!(socket.mode() & 0o777, 0o600);
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert!(!folder.path().join("csi.sock").exists());
}

#[tokio::test]
async fn the_plugin_has_a_controller_and_volumes_grow_while_in_use() {
    let mut cluster = Cluster::start(&datasets()).await;
    let capabilities = cluster
        .identity
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await;
    let types: Vec<_> = capabilities
        .expect("answers")
        .into_inner()
        .capabilities
        .into_iter()
        .map(|capability| capability.r#type.expect("a type"))
        .collect();
    let controller = plugin::Type::Service(plugin::Service {
        r#type: plugin::service::Type::ControllerService.into(),
    });
    let expansion = plugin::Type::VolumeExpansion(plugin::VolumeExpansion {
        r#type: plugin::volume_expansion::Type::Online.into(),
    });
    assert_eq!(types, [controller, expansion]);
}

#[tokio::test]
async fn a_node_says_who_it_is_and_where() {
    let mut cluster = Cluster::start(&datasets()).await;
    let info = cluster.node.node_get_info(NodeGetInfoRequest {}).await;
    let info = info.expect("answers").into_inner();
    assert_eq!(info.node_id, "node-1");
    assert_eq!(info.max_volumes_per_node, 0);
    let segments = info.accessible_topology.expect("a topology").segments;
    assert_eq!(segments[TOPOLOGY_NODE], "node-1");
    assert_eq!(segments["zone"], "a");
}

#[tokio::test]
async fn each_service_says_what_it_can() {
    let mut cluster = Cluster::start(&datasets()).await;
    let can = cluster
        .node
        .node_get_capabilities(NodeGetCapabilitiesRequest {})
        .await;
    let can = can.expect("answers").into_inner().capabilities;
    let can: Vec<_> = can
        .into_iter()
        .map(|capability| match capability.r#type {
            Some(node::Type::Rpc(rpc)) => rpc.r#type(),
            None => node::rpc::Type::Unknown,
        })
        .collect();
    assert_eq!(
        can,
        [
            node::rpc::Type::StageUnstageVolume,
            node::rpc::Type::GetVolumeStats,
            node::rpc::Type::VolumeCondition,
            node::rpc::Type::SingleNodeMultiWriter,
        ]
    );
    let can = cluster
        .controller
        .controller_get_capabilities(ControllerGetCapabilitiesRequest {})
        .await;
    let can = can.expect("answers").into_inner().capabilities;
    let can: Vec<_> = can
        .into_iter()
        .map(|capability| match capability.r#type {
            Some(controller::Type::Rpc(rpc)) => rpc.r#type(),
            None => controller::rpc::Type::Unknown,
        })
        .collect();
    assert_eq!(
        can,
        [
            controller::rpc::Type::CreateDeleteVolume,
            controller::rpc::Type::ListVolumes,
            controller::rpc::Type::GetCapacity,
            controller::rpc::Type::CreateDeleteSnapshot,
            controller::rpc::Type::ListSnapshots,
            controller::rpc::Type::CloneVolume,
            controller::rpc::Type::ExpandVolume,
            controller::rpc::Type::VolumeCondition,
            controller::rpc::Type::GetVolume,
            controller::rpc::Type::SingleNodeMultiWriter,
            controller::rpc::Type::GetSnapshot,
        ]
    );
}
