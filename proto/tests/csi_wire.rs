//! kubelet speaks field numbers, not names: these bytes were worked out from the specification.

use std::collections::HashMap;

use prost::Message;
use trackbed_proto::csi::v1::validate_volume_capabilities_response::Confirmed;
use trackbed_proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
    CreateSnapshotRequest, CreateVolumeRequest, GetCapacityRequest, GetCapacityResponse,
    GetPluginInfoResponse, ListSnapshotsRequest, ListVolumesResponse, NodeGetInfoResponse,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodeServiceCapability,
    NodeStageVolumeRequest, ProbeResponse, Snapshot, Topology, TopologyRequirement,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume,
    VolumeCapability, VolumeCondition, VolumeContentSource, VolumeUsage,
    controller_service_capability as controller, list_volumes_response,
    node_service_capability as node, plugin_capability as plugin, volume_capability as capability,
    volume_content_source as source, volume_usage,
};
use trackbed_proto::pluginregistration::v1::{PluginInfo, RegistrationStatus};

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
    use controller::rpc::Type as Controller;
    use node::rpc::Type as Rpc;
    use plugin::service::Type as Service;

    let controller = [
        Controller::Unknown,
        Controller::CreateDeleteVolume,
        Controller::PublishUnpublishVolume,
        Controller::ListVolumes,
        Controller::GetCapacity,
        Controller::CreateDeleteSnapshot,
        Controller::ListSnapshots,
        Controller::CloneVolume,
        Controller::PublishReadonly,
        Controller::ExpandVolume,
        Controller::ListVolumesPublishedNodes,
        Controller::VolumeCondition,
        Controller::GetVolume,
        Controller::SingleNodeMultiWriter,
        Controller::ModifyVolume,
        Controller::GetSnapshot,
    ];
    assert!(controller.map(i32::from).into_iter().eq(0..16));
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
fn a_create_request_of_the_provisioner_is_understood_byte_for_byte_but_for_its_secrets() {
    let known = b"\x0a\x01n\x12\x04\x08\x01\x10\x02\x1a\x0f\x12\x09\x0a\x01f\x12\x01m\x1a\x01g\
        \x1a\x02\x08\x03\x22\x06\x0a\x01a\x12\x01b";
    let secrets = b"\x2a\x06\x0a\x01c\x12\x01d";
    let rest =
        b"\x32\x05\x0a\x03\x0a\x01s\x3a\x14\x0a\x08\x0a\x06\x0a\x01k\x12\x01v\x12\x08\x0a\x06\
        \x0a\x01k\x12\x01w\x42\x06\x0a\x01x\x12\x01y";
    let topology = |value| Topology {
        segments: one("k", value),
    };
    let request = CreateVolumeRequest {
        name: "n".into(),
        capacity_range: Some(CapacityRange {
            required_bytes: 1,
            limit_bytes: 2,
        }),
        volume_capabilities: vec![reader()],
        parameters: one("a", "b"),
        volume_content_source: Some(VolumeContentSource {
            r#type: Some(source::Type::Snapshot(source::SnapshotSource {
                snapshot_id: "s".into(),
            })),
        }),
        accessibility_requirements: Some(TopologyRequirement {
            requisite: vec![topology("v")],
            preferred: vec![topology("w")],
        }),
        mutable_parameters: one("x", "y"),
    };
    let sent = [&known[..], secrets, rest].concat();
    assert_eq!(CreateVolumeRequest::decode(&sent[..]), Ok(request.clone()));
    assert_eq!(request.encode_to_vec(), [&known[..], rest].concat());
}

#[test]
fn the_controller_s_answers_have_the_numbers_the_side_cars_expect() {
    let volume = Volume {
        capacity_bytes: 1,
        volume_id: "i".into(),
        volume_context: one("a", "b"),
        content_source: Some(VolumeContentSource {
            r#type: Some(source::Type::Volume(source::VolumeSource {
                volume_id: "s".into(),
            })),
        }),
        accessible_topology: vec![Topology {
            segments: one("k", "v"),
        }],
    };
    let bytes = b"\x08\x01\x12\x01i\x1a\x06\x0a\x01a\x12\x01b\x22\x05\x12\x03\x0a\x01s\
        \x2a\x08\x0a\x06\x0a\x01k\x12\x01v";
    assert_eq!(volume.encode_to_vec(), bytes);
    let snapshot = Snapshot {
        size_bytes: 1,
        snapshot_id: "i".into(),
        source_volume_id: "v".into(),
        creation_time: Some(prost_types::Timestamp {
            seconds: 2,
            nanos: 3,
        }),
        ready_to_use: true,
        group_snapshot_id: "g".into(),
    };
    assert_eq!(
        snapshot.encode_to_vec(),
        b"\x08\x01\x12\x01i\x1a\x01v\x22\x04\x08\x02\x10\x03\x28\x01\x32\x01g"
    );
    let list = ListVolumesResponse {
        entries: vec![list_volumes_response::Entry {
            volume: Some(Volume::default()),
            status: Some(list_volumes_response::VolumeStatus {
                published_node_ids: vec!["n".into()],
                volume_condition: Some(VolumeCondition::default()),
            }),
        }],
        next_token: "t".into(),
    };
    assert_eq!(
        list.encode_to_vec(),
        b"\x0a\x09\x0a\x00\x12\x05\x0a\x01n\x12\x00\x12\x01t"
    );
    let capacity = GetCapacityResponse {
        available_capacity: 1,
        maximum_volume_size: Some(2),
        minimum_volume_size: Some(3),
    };
    assert_eq!(
        capacity.encode_to_vec(),
        b"\x08\x01\x12\x02\x08\x02\x1a\x02\x08\x03"
    );
    let grown = ControllerExpandVolumeResponse {
        capacity_bytes: 1,
        node_expansion_required: true,
    };
    assert_eq!(grown.encode_to_vec(), b"\x08\x01\x10\x01");
}

#[test]
fn the_controller_s_requests_have_the_specification_s_numbers() {
    let snapshots = ListSnapshotsRequest {
        max_entries: 1,
        starting_token: "t".into(),
        source_volume_id: "v".into(),
        snapshot_id: "s".into(),
    };
    assert_eq!(
        snapshots.encode_to_vec(),
        b"\x08\x01\x12\x01t\x1a\x01v\x22\x01s"
    );
    let snapshot = CreateSnapshotRequest {
        source_volume_id: "v".into(),
        name: "n".into(),
        parameters: one("a", "b"),
    };
    assert_eq!(
        snapshot.encode_to_vec(),
        b"\x0a\x01v\x12\x01n\x22\x06\x0a\x01a\x12\x01b"
    );
    let expand = ControllerExpandVolumeRequest {
        volume_id: "v".into(),
        capacity_range: Some(CapacityRange::default()),
        volume_capability: Some(reader()),
    };
    assert_eq!(
        expand.encode_to_vec(),
        b"\x0a\x01v\x12\x00\x22\x0f\x12\x09\x0a\x01f\x12\x01m\x1a\x01g\x1a\x02\x08\x03"
    );
    let validate = ValidateVolumeCapabilitiesRequest {
        volume_id: "v".into(),
        volume_context: one("a", "b"),
        volume_capabilities: vec![],
        parameters: one("c", "d"),
        mutable_parameters: one("e", "f"),
    };
    assert_eq!(
        validate.encode_to_vec(),
        b"\x0a\x01v\x12\x06\x0a\x01a\x12\x01b\x22\x06\x0a\x01c\x12\x01d\x32\x06\x0a\x01e\x12\x01f"
    );
    let confirmed = ValidateVolumeCapabilitiesResponse {
        confirmed: Some(Confirmed {
            volume_context: one("a", "b"),
            volume_capabilities: vec![],
            parameters: one("c", "d"),
            mutable_parameters: one("e", "f"),
        }),
        message: "m".into(),
    };
    assert_eq!(
        confirmed.encode_to_vec(),
        b"\x0a\x18\x0a\x06\x0a\x01a\x12\x01b\x1a\x06\x0a\x01c\x12\x01d\x22\x06\x0a\x01e\x12\x01f\x12\x01m"
    );
    let capacity = GetCapacityRequest {
        volume_capabilities: vec![],
        parameters: one("a", "b"),
        accessible_topology: Some(Topology::default()),
    };
    assert_eq!(
        capacity.encode_to_vec(),
        b"\x12\x06\x0a\x01a\x12\x01b\x1a\x00"
    );
}

#[test]
fn a_registration_has_the_numbers_kubelet_expects() {
    let info = PluginInfo {
        r#type: "CSIPlugin".into(),
        name: "n".into(),
        endpoint: "e".into(),
        supported_versions: vec!["1.0.0".into()],
    };
    assert_eq!(
        info.encode_to_vec(),
        b"\x0a\x09CSIPlugin\x12\x01n\x1a\x01e\x22\x051.0.0"
    );
    let status = RegistrationStatus {
        plugin_registered: true,
        error: "e".into(),
    };
    assert_eq!(status.encode_to_vec(), b"\x08\x01\x12\x01e");
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
