//! Volumes created by name: what makes two calls ask for the same, and what is refused.

use std::collections::HashMap;

use tonic::Code;
use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;
use trackbed_proto::csi::v1::volume_capability::{AccessType, BlockVolume};
use trackbed_proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest,
    GetCapacityRequest, Topology, TopologyRequirement, ValidateVolumeCapabilitiesRequest,
};

use crate::support::cluster::{Cluster, capability};
use crate::{TEN_GIB, create_of, create_request, datasets};

fn delete(id: &str) -> DeleteVolumeRequest {
    DeleteVolumeRequest {
        volume_id: id.to_owned(),
    }
}

fn map(entries: &[(&str, &str)]) -> HashMap<String, String> {
    let entries = entries.iter();
    entries
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

fn exactly(bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange {
        required_bytes: bytes,
        limit_bytes: bytes,
    })
}

#[tokio::test]
async fn a_volume_needs_a_name_and_a_use() {
    let cluster = Cluster::start(&datasets()).await;
    let mut controller = cluster.controller.clone();
    let mut block = capability(Mode::SingleNodeWriter);
    block.access_type = Some(AccessType::Block(BlockVolume {}));
    let good = create_request("a");
    let refused = [
        create_request(""),
        create_request(&"x".repeat(129)),
        create_request("a\u{1}b"),
        CreateVolumeRequest {
            volume_capabilities: vec![],
            ..good.clone()
        },
        CreateVolumeRequest {
            volume_capabilities: vec![capability(Mode::Unknown)],
            ..good.clone()
        },
        CreateVolumeRequest {
            volume_capabilities: vec![capability(Mode::SingleNodeWriter), block],
            ..good.clone()
        },
        CreateVolumeRequest {
            volume_content_source: Some(Default::default()),
            ..good.clone()
        },
        CreateVolumeRequest {
            capacity_range: exactly(-1),
            ..good.clone()
        },
    ];
    for request in refused {
        let said = format!("{request:?}");
        let code = code!(controller.create_volume(request));
        assert_eq!(code, Code::InvalidArgument, "{said}");
    }
    let mut impossible = good;
    impossible.capacity_range = Some(CapacityRange {
        required_bytes: 2,
        limit_bytes: 1,
    });
    assert_eq!(
        code!(controller.create_volume(impossible)),
        Code::OutOfRange
    );
    assert_eq!(
        code!(controller.delete_volume(delete(""))),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn an_unknown_key_is_refused_by_name_and_kubernetes_own_are_not() {
    let mut cluster = Cluster::start(&datasets()).await;
    let mut controller = cluster.controller.clone();
    let mut request = create_request("a");
    request.parameters = map(&[("datset", "cats")]);
    let refused = controller.create_volume(request.clone()).await;
    let refused = refused.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("datset"), "{refused}");
    for parameters in [
        [("dataset", "No Name")],
        [("version", "latest")],
        [("version", &"0".repeat(64))],
    ] {
        request.parameters = map(&parameters);
        let code = code!(controller.create_volume(request.clone()));
        assert_eq!(code, Code::InvalidArgument, "{parameters:?}");
    }
    request.parameters = map(&[("dataset", "lions")]);
    let code = code!(controller.create_volume(request.clone()));
    assert_eq!(code, Code::NotFound);
    request.parameters = map(&[("dataset", "cats"), ("version", &"0".repeat(64))]);
    let code = code!(controller.create_volume(request.clone()));
    assert_eq!(code, Code::NotFound);
    request.parameters.clear();
    request.mutable_parameters = map(&[("speed", "high")]);
    let refused = controller.create_volume(request.clone()).await;
    let refused = refused.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("speed"), "{refused}");

    request.mutable_parameters.clear();
    request.parameters = map(&[
        ("dataset", "cats"),
        ("csi.storage.k8s.io/pvc/name", "claim"),
        ("csi.storage.k8s.io/fstype", "ext4"),
    ]);
    let volume = cluster.create(request).await;
    assert_eq!(volume.volume_context["dataset"], "cats");
}

#[tokio::test]
async fn the_same_name_is_the_same_volume_and_another_size_is_refused() {
    let mut cluster = Cluster::start(&datasets()).await;
    let mut controller = cluster.controller.clone();
    let mut request = create_request("twice");
    request.capacity_range = exactly(TEN_GIB);
    let first = cluster.create(request.clone()).await;
    assert_eq!(first.capacity_bytes, TEN_GIB);
    assert!(first.volume_id.len() <= 128);
    let second = cluster.create(request.clone()).await;
    assert_eq!(first, second);
    // A volume of this size is within these ranges too.
    for range in [None, Some(CapacityRange::default())] {
        request.capacity_range = range;
        assert_eq!(cluster.create(request.clone()).await, first);
    }
    request.capacity_range = exactly(2 * TEN_GIB);
    assert_eq!(
        code!(controller.create_volume(request)),
        Code::AlreadyExists
    );
    let other = create_of("twice", "cats");
    assert_eq!(code!(controller.create_volume(other)), Code::AlreadyExists);
    cluster.create(create_of("cats-1", "cats")).await;
    let other = create_of("cats-1", "dogs");
    assert_eq!(code!(controller.create_volume(other)), Code::AlreadyExists);
}

#[tokio::test]
async fn a_name_has_up_to_128_bytes() {
    let mut cluster = Cluster::start(&datasets()).await;
    let names = [
        "x".repeat(128),
        "ü".repeat(64),
        "../../etc/passwd".to_owned(),
    ];
    let mut ids = Vec::new();
    for name in &names {
        let volume = cluster.create(create_request(name)).await;
        assert!(volume.capacity_bytes >= TEN_GIB);
        ids.push(volume.volume_id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), names.len());
}

#[tokio::test]
async fn a_volume_is_as_large_as_its_data_at_least() {
    let mut cluster = Cluster::start(&datasets()).await;
    let mut controller = cluster.controller.clone();
    let mut request = create_of("small", "cats");
    request.capacity_range = None;
    let volume = cluster.create(request.clone()).await;
    assert_eq!(volume.capacity_bytes, 200_004);
    request.name = "too small".to_owned();
    request.capacity_range = exactly(1000);
    assert_eq!(code!(controller.create_volume(request)), Code::OutOfRange);
}

#[tokio::test]
async fn wherever_a_volume_is_wanted_it_can_be() {
    let mut cluster = Cluster::start(&datasets()).await;
    let here = Topology {
        segments: map(&[("topology.csi.trackbed.io/node", "node-1")]),
    };
    let mut request = create_of("here", "cats");
    request.accessibility_requirements = Some(TopologyRequirement {
        requisite: vec![here.clone()],
        preferred: vec![here],
    });
    let volume = cluster.create(request).await;
    // Not bound to any node: that would keep pods from all others for ever.
    assert!(volume.accessible_topology.is_empty());
}

#[tokio::test]
async fn what_is_deleted_is_gone_and_deleting_what_is_not_there_is_fine() {
    let mut cluster = Cluster::start(&datasets()).await;
    let mut controller = cluster.controller.clone();
    let volume = cluster.create(create_request("a")).await;
    for id in [
        "fake-vol-id",
        "cats",
        "volume:../../x",
        &volume.volume_id,
        &volume.volume_id,
    ] {
        assert_eq!(
            code!(controller.delete_volume(delete(id))),
            Code::Ok,
            "{id}"
        );
    }
    // The name is free again.
    cluster.create(create_of("a", "cats")).await;
}

#[tokio::test]
async fn a_use_is_confirmed_or_the_reason_against_it_told() {
    let mut cluster = Cluster::start(&datasets()).await;
    let mut controller = cluster.controller.clone();
    let volume = cluster.create(create_of("a", "cats")).await;
    let good = ValidateVolumeCapabilitiesRequest {
        volume_id: volume.volume_id.clone(),
        volume_context: volume.volume_context.clone(),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..Default::default()
    };
    for id in [&volume.volume_id, "cats"] {
        let mut request = good.clone();
        request.volume_id = id.to_owned();
        let answer = controller.validate_volume_capabilities(request).await;
        let confirmed = answer.expect("answers").into_inner().confirmed;
        let confirmed = confirmed.expect("confirmed");
        assert_eq!(confirmed.volume_capabilities, good.volume_capabilities);
        assert_eq!(confirmed.volume_context, good.volume_context);
    }

    let mut block = capability(Mode::SingleNodeWriter);
    block.access_type = Some(AccessType::Block(BlockVolume {}));
    let doubtful = [
        ValidateVolumeCapabilitiesRequest {
            volume_capabilities: vec![block],
            ..good.clone()
        },
        ValidateVolumeCapabilitiesRequest {
            volume_context: map(&[("dataset", "dogs")]),
            ..good.clone()
        },
        ValidateVolumeCapabilitiesRequest {
            parameters: map(&[("speed", "high")]),
            ..good.clone()
        },
    ];
    for request in doubtful {
        let answer = controller.validate_volume_capabilities(request).await;
        let answer = answer.expect("answers").into_inner();
        assert!(answer.confirmed.is_none() && !answer.message.is_empty());
    }

    let mut request = good.clone();
    request.volume_id.clear();
    let code = code!(controller.validate_volume_capabilities(request));
    assert_eq!(code, Code::InvalidArgument);
    let mut request = good.clone();
    request.volume_capabilities.clear();
    let code = code!(controller.validate_volume_capabilities(request));
    assert_eq!(code, Code::InvalidArgument);
    for id in ["fake-vol-id-1234567890", "volume:12", "No Name"] {
        let mut request = good.clone();
        request.volume_id = id.to_owned();
        let code = code!(controller.validate_volume_capabilities(request));
        assert_eq!(code, Code::NotFound, "{id}");
    }
}

#[tokio::test]
async fn a_volume_grows_and_never_shrinks() {
    let mut cluster = Cluster::start(&datasets()).await;
    let mut controller = cluster.controller.clone();
    let volume = cluster.create(create_request("a")).await;
    let expand = |id: &str, capacity_range| ControllerExpandVolumeRequest {
        volume_id: id.to_owned(),
        capacity_range,
        ..Default::default()
    };
    let at_least = |required_bytes| {
        Some(CapacityRange {
            required_bytes,
            limit_bytes: 0,
        })
    };
    let more = TEN_GIB + (1 << 30);
    for asked in [more, more, TEN_GIB] {
        let request = expand(&volume.volume_id, at_least(asked));
        let grown = controller.controller_expand_volume(request).await;
        let grown = grown.expect("grows").into_inner();
        assert_eq!(grown.capacity_bytes, more);
        assert!(!grown.node_expansion_required);
    }
    let wrong = [
        (expand("", at_least(more)), Code::InvalidArgument),
        (expand(&volume.volume_id, None), Code::InvalidArgument),
        (expand("", None), Code::InvalidArgument),
        (expand("fake-vol-id", at_least(more)), Code::NotFound),
        (expand(&volume.volume_id, exactly(5)), Code::OutOfRange),
    ];
    for (request, expected) in wrong {
        let said = format!("{request:?}");
        let code = code!(controller.controller_expand_volume(request));
        assert_eq!(code, expected, "{said}");
    }
}

#[tokio::test]
async fn a_node_tells_what_its_cache_can_hold() {
    let mut cluster = Cluster::start(&datasets()).await;
    let answer = cluster
        .controller
        .get_capacity(GetCapacityRequest::default())
        .await;
    assert!(answer.expect("answers").into_inner().available_capacity > 0);
    let mut block = capability(Mode::SingleNodeWriter);
    block.access_type = Some(AccessType::Block(BlockVolume {}));
    let of_blocks = GetCapacityRequest {
        volume_capabilities: vec![block],
        ..Default::default()
    };
    let answer = cluster.controller.get_capacity(of_blocks).await;
    assert_eq!(answer.expect("answers").into_inner().available_capacity, 0);
    let unknown = GetCapacityRequest {
        parameters: map(&[("speed", "high")]),
        ..Default::default()
    };
    let code = code!(cluster.controller.get_capacity(unknown));
    assert_eq!(code, Code::InvalidArgument);
}
