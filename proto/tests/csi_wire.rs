//! kubelet speaks field numbers, not names: these bytes were worked out from the specification.

use std::collections::HashMap;

use prost::Message;
use trackbed_proto::csi::v1::{
    GetPluginInfoResponse, NodeGetInfoResponse, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodeServiceCapability, NodeStageVolumeRequest, ProbeResponse,
    Topology, VolumeCapability, VolumeCondition, VolumeUsage, node_service_capability as node,
    plugin_capability as plugin, volume_capability as capability, volume_usage,
};

fn one(key: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_owned())])
}

fn reader() -> VolumeCapability {
    VolumeCapability {
        access_type: Some(capability::AccessType::Mount(capability::MountVolume {
            fs_type: "f".into(),
            mount_flags: vec!["m".into()],
            volume_mount_group: "g".into(),
        })),
        access_mode: Some(capability::AccessMode {
            mode: capability::access_mode::Mode::MultiNodeReaderOnly.into(),
        }),
    }
}

#[test]
fn a_stage_request_of_kubelet_is_understood_byte_for_byte() {
    let bytes = b"\x0a\x01v\x12\x06\x0a\x01a\x12\x01b\x1a\x01s\
        \x22\x0f\x12\x09\x0a\x01f\x12\x01m\x1a\x01g\x1a\x02\x08\x03\
        \x2a\x06\x0a\x01c\x12\x01d\x32\x06\x0a\x01e\x12\x01f";
    let request = NodeStageVolumeRequest {
        volume_id: "v".into(),
        publish_context: one("a", "b"),
        staging_target_path: "s".into(),
        volume_capability: Some(reader()),
        secrets: one("c", "d"),
        volume_context: one("e", "f"),
    };
    assert_eq!(request.encode_to_vec(), bytes);
    assert_eq!(NodeStageVolumeRequest::decode(&bytes[..]), Ok(request));
}

#[test]
fn a_publish_request_of_kubelet_is_understood_byte_for_byte() {
    let bytes = b"\x0a\x01v\x12\x06\x0a\x01a\x12\x01b\x1a\x01s\x22\x01t\
        \x2a\x0f\x12\x09\x0a\x01f\x12\x01m\x1a\x01g\x1a\x02\x08\x03\x30\x01\
        \x3a\x06\x0a\x01c\x12\x01d\x42\x06\x0a\x01e\x12\x01f";
    let request = NodePublishVolumeRequest {
        volume_id: "v".into(),
        publish_context: one("a", "b"),
        staging_target_path: "s".into(),
        target_path: "t".into(),
        volume_capability: Some(reader()),
        readonly: true,
        secrets: one("c", "d"),
        volume_context: one("e", "f"),
    };
    assert_eq!(request.encode_to_vec(), bytes);
    assert_eq!(NodePublishVolumeRequest::decode(&bytes[..]), Ok(request));
}

#[test]
fn answers_have_the_numbers_kubelet_expects() {
    let info = GetPluginInfoResponse {
        name: "n".into(),
        vendor_version: "v".into(),
        manifest: one("a", "b"),
    };
    assert_eq!(
        info.encode_to_vec(),
        b"\x0a\x01n\x12\x01v\x1a\x06\x0a\x01a\x12\x01b"
    );
    assert_eq!(
        ProbeResponse { ready: Some(true) }.encode_to_vec(),
        b"\x0a\x02\x08\x01"
    );
    let node = NodeGetInfoResponse {
        node_id: "n".into(),
        max_volumes_per_node: 5,
        accessible_topology: Some(Topology {
            segments: one("a", "b"),
        }),
    };
    assert_eq!(
        node.encode_to_vec(),
        b"\x0a\x01n\x10\x05\x1a\x08\x0a\x06\x0a\x01a\x12\x01b"
    );
    let stats = NodeGetVolumeStatsResponse {
        usage: vec![VolumeUsage {
            available: 1,
            total: 2,
            used: 3,
            unit: volume_usage::Unit::Inodes.into(),
        }],
        volume_condition: Some(VolumeCondition {
            abnormal: true,
            message: "m".into(),
        }),
    };
    assert_eq!(
        stats.encode_to_vec(),
        b"\x0a\x08\x08\x01\x10\x02\x18\x03\x20\x02\x12\x05\x08\x01\x12\x01m"
    );
    let condition = NodeServiceCapability {
        r#type: Some(node::Type::Rpc(node::Rpc {
            r#type: node::rpc::Type::VolumeCondition.into(),
        })),
    };
    assert_eq!(condition.encode_to_vec(), b"\x0a\x02\x08\x04");
}

#[test]
fn enums_have_the_specification_s_values() {
    use capability::access_mode::Mode;
    use node::rpc::Type as Rpc;
    use plugin::service::Type as Service;

    let modes = [
        Mode::Unknown,
        Mode::SingleNodeWriter,
        Mode::SingleNodeReaderOnly,
        Mode::MultiNodeReaderOnly,
        Mode::MultiNodeSingleWriter,
        Mode::MultiNodeMultiWriter,
        Mode::SingleNodeSingleWriter,
        Mode::SingleNodeMultiWriter,
    ];
    assert_eq!(modes.map(i32::from), [0, 1, 2, 3, 4, 5, 6, 7]);
    let rpcs = [
        Rpc::Unknown,
        Rpc::StageUnstageVolume,
        Rpc::GetVolumeStats,
        Rpc::ExpandVolume,
        Rpc::VolumeCondition,
        Rpc::SingleNodeMultiWriter,
        Rpc::VolumeMountGroup,
    ];
    assert_eq!(rpcs.map(i32::from), [0, 1, 2, 3, 4, 5, 6]);
    let services = [
        Service::Unknown,
        Service::ControllerService,
        Service::VolumeAccessibilityConstraints,
        Service::GroupControllerService,
        Service::SnapshotMetadataService,
    ];
    assert_eq!(services.map(i32::from), [0, 1, 2, 3, 4]);
}

#[test]
fn a_logged_request_shows_no_secret() {
    let stage = NodeStageVolumeRequest {
        secrets: one("token", "hunter2"),
        ..Default::default()
    };
    let publish = NodePublishVolumeRequest {
        secrets: one("token", "hunter2"),
        ..Default::default()
    };
    for logged in [format!("{stage:?}"), format!("{publish:?}")] {
        assert!(logged.contains("token"), "{logged}");
        assert!(!logged.contains("hunter2"), "{logged}");
    }
}
