//! The code that CSI has for each request that cannot be done.

use std::fs;

use crate::datasets;
use crate::support::can_mount;
use crate::support::cluster::{Cluster, capability, mounts_below};
use tonic::Code;
use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;
use trackbed_proto::csi::v1::volume_capability::{AccessType, BlockVolume, MountVolume};
use trackbed_proto::csi::v1::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
};

#[tokio::test]
async fn a_request_with_something_missing_or_wrong_is_invalid() {
    let datasets = datasets();
    let mut cluster = Cluster::start(&datasets).await;
    let context = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let with = |access_type| {
        let mut capability = capability(Mode::SingleNodeWriter);
        capability.access_type = access_type;
        Some(capability)
    };
    let flagged = MountVolume {
        mount_flags: vec!["rw".to_owned()],
        ..Default::default()
    };
    let good = cluster.stage("cats");
    let stages = [
        NodeStageVolumeRequest {
            volume_id: String::new(),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            volume_id: "x".repeat(300),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            volume_id: "No Name".to_owned(),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            volume_id: "cats@12".to_owned(),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            staging_target_path: String::new(),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            staging_target_path: "relative".to_owned(),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            staging_target_path: "/a/../b".to_owned(),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            staging_target_path: format!("/{}", "a".repeat(5000)),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            volume_capability: None,
            ..good.clone()
        },
        NodeStageVolumeRequest {
            volume_capability: with(None),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            volume_capability: with(Some(AccessType::Block(BlockVolume {}))),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            volume_capability: with(Some(AccessType::Mount(flagged))),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            volume_capability: Some(capability(Mode::Unknown)),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            volume_context: context("datset", "cats"),
            ..good.clone()
        },
        NodeStageVolumeRequest {
            volume_context: context("version", "latest"),
            ..good.clone()
        },
    ];
    for request in stages {
        let said = format!("{request:?}");
        assert_eq!(
            code!(cluster.node.node_stage_volume(request)),
            Code::InvalidArgument,
            "{said}"
        );
    }
    let good = cluster.publish("cats", "target");
    let publishes = [
        NodePublishVolumeRequest {
            volume_id: String::new(),
            ..good.clone()
        },
        NodePublishVolumeRequest {
            target_path: String::new(),
            ..good.clone()
        },
        NodePublishVolumeRequest {
            target_path: "/".to_owned(),
            ..good.clone()
        },
        NodePublishVolumeRequest {
            volume_capability: None,
            ..good.clone()
        },
    ];
    for request in publishes {
        let said = format!("{request:?}");
        assert_eq!(
            code!(cluster.node.node_publish_volume(request)),
            Code::InvalidArgument,
            "{said}"
        );
    }
    let mut unstage = cluster.unstage("cats");
    unstage.staging_target_path.clear();
    assert_eq!(
        code!(cluster.node.node_unstage_volume(unstage)),
        Code::InvalidArgument
    );
    assert_eq!(
        code!(cluster.node.node_unstage_volume(cluster.unstage(""))),
        Code::InvalidArgument
    );
    let mut unpublish = cluster.unpublish("cats", "target");
    unpublish.target_path.clear();
    assert_eq!(
        code!(cluster.node.node_unpublish_volume(unpublish)),
        Code::InvalidArgument
    );
    let unpublish = cluster.unpublish("", "target");
    assert_eq!(
        code!(cluster.node.node_unpublish_volume(unpublish)),
        Code::InvalidArgument
    );
    for (volume, path) in [("", "/x"), ("cats", "")] {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.to_owned(),
            volume_path: path.to_owned(),
            ..Default::default()
        };
        assert_eq!(
            code!(cluster.node.node_get_volume_stats(request)),
            Code::InvalidArgument
        );
    }
    assert_eq!(mounts_below(cluster.folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_has_the_code_that_csi_gives_it() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let mut cluster = Cluster::start(&datasets).await;
    let mut node = cluster.node.clone();
    let stats = |volume: &str, path: &str| NodeGetVolumeStatsRequest {
        volume_id: volume.to_owned(),
        volume_path: path.to_owned(),
        ..Default::default()
    };

    // Nothing staged yet.
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("lions"))),
        Code::NotFound
    );
    *datasets.down.lock() = true;
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Unavailable
    );
    *datasets.down.lock() = false;
    assert_eq!(mounts_below(cluster.folder.path()), 0);
    assert_eq!(
        fs::read_dir(cluster.path("state")).expect("lists").count(),
        0
    );
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t1"))),
        Code::FailedPrecondition
    );
    assert_eq!(
        code!(node.node_get_volume_stats(stats("cats", "/x"))),
        Code::NotFound
    );
    assert_eq!(
        code!(node.node_unstage_volume(cluster.unstage("cats"))),
        Code::Ok
    );
    assert_eq!(
        code!(node.node_unpublish_volume(cluster.unpublish("cats", "t1"))),
        Code::Ok
    );
    assert_eq!(
        code!(node.node_unpublish_volume(cluster.unpublish("cats", "no/such/t1"))),
        Code::Ok
    );

    // Staged.
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    let mut other_args = cluster.stage("cats");
    other_args.volume_capability = Some(capability(Mode::SingleNodeWriter));
    assert_eq!(
        code!(node.node_stage_volume(other_args)),
        Code::AlreadyExists
    );
    let mut other_path = cluster.stage("cats");
    other_path.staging_target_path = cluster.text("elsewhere");
    assert_eq!(
        code!(node.node_stage_volume(other_path)),
        Code::AlreadyExists
    );
    let mut others = cluster.stage("dogs");
    others.staging_target_path = cluster.text("staging-cats");
    assert_eq!(
        code!(node.node_stage_volume(others)),
        Code::FailedPrecondition
    );
    let mut others = cluster.unstage("dogs");
    others.staging_target_path = cluster.text("staging-cats");
    assert_eq!(
        code!(node.node_unstage_volume(others)),
        Code::FailedPrecondition
    );
    let mut unstaged = cluster.publish("cats", "t1");
    unstaged.staging_target_path.clear();
    assert_eq!(
        code!(node.node_publish_volume(unstaged)),
        Code::FailedPrecondition
    );
    for path in ["/x", "relative", "/a/../b"] {
        assert_eq!(
            code!(node.node_get_volume_stats(stats("cats", path))),
            Code::NotFound
        );
    }

    // Published.
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t1"))),
        Code::Ok
    );
    let mut other_args = cluster.publish("cats", "t1");
    other_args.readonly = true;
    assert_eq!(
        code!(node.node_publish_volume(other_args)),
        Code::AlreadyExists
    );
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t2"))),
        Code::Ok
    );
    let mut single = cluster.publish("cats", "t3");
    single.volume_capability = Some(capability(Mode::SingleNodeWriter));
    assert_eq!(
        code!(node.node_publish_volume(single)),
        Code::FailedPrecondition
    );
    assert_eq!(
        code!(node.node_unstage_volume(cluster.unstage("cats"))),
        Code::FailedPrecondition
    );
    assert_eq!(
        code!(node.node_unpublish_volume(cluster.unpublish("dogs", "t1"))),
        Code::FailedPrecondition
    );
    assert!(cluster.is_mounted("t1") && cluster.is_mounted("t2") && !cluster.is_mounted("t3"));
    for target in ["t1", "t2"] {
        assert_eq!(
            code!(node.node_unpublish_volume(cluster.unpublish("cats", target))),
            Code::Ok
        );
    }
    assert_eq!(
        code!(node.node_unstage_volume(cluster.unstage("cats"))),
        Code::Ok
    );
    cluster.node = node;
    cluster.stop().await.1.expect("ends well");
}
