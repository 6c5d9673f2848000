//! A volume's whole life, as the conformance suite and kubelet lead it: created, staged, published,
//! looked at, and all of it backwards.

use std::collections::HashMap;
use std::fs;

use tonic::Code;
use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;
use trackbed_proto::csi::v1::{
    DeleteVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Volume,
};

use crate::support::can_mount;
use crate::support::cluster::{Cluster, capability, mounts_below};
use crate::{cats, create_of, create_request, datasets};

const STAGING: &str = "csi-staging";
const TARGET: &str = "csi-mount/target";

fn stage(cluster: &Cluster, volume: &Volume, mode: Mode) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: cluster.text(STAGING),
        volume_capability: Some(capability(mode)),
        volume_context: volume.volume_context.clone(),
        ..Default::default()
    }
}

fn publish(cluster: &Cluster, volume: &Volume, mode: Mode) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: cluster.text(STAGING),
        target_path: cluster.text(TARGET),
        volume_capability: Some(capability(mode)),
        volume_context: volume.volume_context.clone(),
        ..Default::default()
    }
}

/// What the suite does after each of its cases.
async fn clean_up(cluster: &mut Cluster, volume: &Volume) {
    let volume_id = volume.volume_id.clone();
    let unpublish = NodeUnpublishVolumeRequest {
        volume_id: volume_id.clone(),
        target_path: cluster.text(TARGET),
    };
    let unstage = NodeUnstageVolumeRequest {
        volume_id: volume_id.clone(),
        staging_target_path: cluster.text(STAGING),
    };
    for _ in 0..2 {
        let unpublished = cluster.node.node_unpublish_volume(unpublish.clone()).await;
        unpublished.expect("unpublishes");
        let unstaged = cluster.node.node_unstage_volume(unstage.clone()).await;
        unstaged.expect("unstages");
        let delete = DeleteVolumeRequest {
            volume_id: volume_id.clone(),
        };
        cluster
            .controller
            .delete_volume(delete)
            .await
            .expect("deletes");
    }
    assert!(!cluster.path(TARGET).exists());
    assert_eq!(mounts_below(cluster.folder.path()), 0);
}

/// The suite's «should work» (each call once) and «should be idempotent» (each ten times).
async fn live(dataset: Option<&str>, times: usize) {
    let mut cluster = Cluster::start(&datasets()).await;
    // It makes the folder above the target and the staging folder itself.
    fs::create_dir_all(cluster.path("csi-mount")).expect("makes");
    fs::create_dir_all(cluster.path(STAGING)).expect("makes");
    let request = match dataset {
        Some(dataset) => create_of("sanity-node-full", dataset),
        None => create_request("sanity-node-full"),
    };
    let volume = cluster.create(request).await;
    for _ in 0..times {
        let request = stage(&cluster, &volume, Mode::SingleNodeWriter);
        cluster
            .node
            .node_stage_volume(request)
            .await
            .expect("stages");
    }
    for _ in 0..times {
        let request = publish(&cluster, &volume, Mode::SingleNodeWriter);
        let published = cluster.node.node_publish_volume(request).await;
        published.expect("publishes");
    }
    // However often it was asked for: one mount at each place.
    assert_eq!(mounts_below(cluster.folder.path()), 2);
    assert!(fs::write(cluster.path(TARGET).join("new"), "x").is_err());
    let stats = NodeGetVolumeStatsRequest {
        volume_id: volume.volume_id.clone(),
        volume_path: cluster.text(TARGET),
        ..Default::default()
    };
    let stats = cluster.node.node_get_volume_stats(stats).await;
    let stats = stats.expect("answers").into_inner();
    assert!(!stats.usage.is_empty());
    let condition = stats.volume_condition.expect("a condition");
    let names = fs::read_dir(cluster.path(TARGET)).expect("lists").count();
    match dataset {
        Some(dataset) => {
            assert_eq!(names, 2);
            assert!(!condition.abnormal && condition.message.contains(dataset));
        }
        None => {
            assert_eq!(names, 0);
            assert!(condition.abnormal && condition.message.contains("StorageClass"));
        }
    }
    clean_up(&mut cluster, &volume).await;
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_names_no_dataset_works_as_an_empty_directory_and_says_so() {
    if can_mount() {
        live(None, 1).await;
        live(None, 10).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_a_dataset_works_and_each_call_may_come_ten_times() {
    if can_mount() {
        live(Some("cats"), 1).await;
        live(Some("cats"), 10).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_created_volume_shows_the_version_of_its_creation_and_must_be_there() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let mut cluster = Cluster::start(&datasets).await;
    let volume = cluster.create(create_of("a", "cats")).await;
    datasets.put("cats", &cats("purr, purr"));
    let mut request = stage(&cluster, &volume, Mode::MultiNodeReaderOnly);
    // By its id alone, and with the context that it was created with.
    for context in [HashMap::new(), volume.volume_context.clone()] {
        request.volume_context = context;
        let staged = cluster.node.node_stage_volume(request.clone()).await;
        staged.expect("stages");
    }
    let read = fs::read_to_string(cluster.path(STAGING).join("cat.txt"));
    assert_eq!(read.expect("reads"), "meow");
    request.volume_context = [("dataset".to_owned(), "dogs".to_owned())].into();
    let code = code!(cluster.node.node_stage_volume(request.clone()));
    assert_eq!(code, Code::InvalidArgument);
    clean_up(&mut cluster, &volume).await;
    request.volume_context = volume.volume_context.clone();
    let code = code!(cluster.node.node_stage_volume(request));
    assert_eq!(code, Code::NotFound);
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_mode_says_at_how_many_places_of_a_node_a_volume_is_shown() {
    if !can_mount() {
        return;
    }
    let several = [
        (Mode::SingleNodeWriter, Code::FailedPrecondition),
        (Mode::SingleNodeReaderOnly, Code::FailedPrecondition),
        (Mode::SingleNodeSingleWriter, Code::FailedPrecondition),
        (Mode::SingleNodeMultiWriter, Code::Ok),
        (Mode::MultiNodeReaderOnly, Code::Ok),
        (Mode::MultiNodeSingleWriter, Code::Ok),
        (Mode::MultiNodeMultiWriter, Code::Ok),
    ];
    let mut cluster = Cluster::start(&datasets()).await;
    for (mode, expected) in several {
        let volume = cluster.create(create_of("a", "cats")).await;
        let mut node = cluster.node.clone();
        let staged = node.node_stage_volume(stage(&cluster, &volume, mode)).await;
        staged.expect("stages");
        let first = publish(&cluster, &volume, mode);
        assert_eq!(code!(node.node_publish_volume(first.clone())), Code::Ok);
        let other_args = NodePublishVolumeRequest {
            readonly: true,
            ..first.clone()
        };
        assert_eq!(
            code!(node.node_publish_volume(other_args)),
            Code::AlreadyExists,
            "{mode:?}"
        );
        let elsewhere = NodePublishVolumeRequest {
            target_path: cluster.text("csi-mount/other_target"),
            ..first.clone()
        };
        let code = code!(node.node_publish_volume(elsewhere.clone()));
        assert_eq!(code, expected, "{mode:?}");
        // What was refused leaves nothing behind.
        let is_there = cluster.path("csi-mount/other_target").exists();
        assert_eq!(is_there, expected == Code::Ok, "{mode:?}");
        let unpublish = NodeUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: elsewhere.target_path,
        };
        assert_eq!(code!(node.node_unpublish_volume(unpublish)), Code::Ok);
        clean_up(&mut cluster, &volume).await;
    }
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staging_path_that_shows_something_else_is_not_published() {
    if !can_mount() {
        return;
    }
    let mut cluster = Cluster::start(&datasets()).await;
    let [a, b] = ["cats", "dogs"].map(|dataset| create_of(dataset, dataset));
    let (a, b) = (cluster.create(a).await, cluster.create(b).await);
    let mut node = cluster.node.clone();
    let mode = Mode::MultiNodeReaderOnly;
    assert_eq!(
        code!(node.node_stage_volume(stage(&cluster, &a, mode))),
        Code::Ok
    );
    // Another volume, and the same one as if it showed another dataset.
    let mut as_another = publish(&cluster, &a, mode);
    as_another.volume_context = b.volume_context.clone();
    for request in [publish(&cluster, &b, mode), as_another] {
        let refused = node.node_publish_volume(request).await;
        let refused = refused.expect_err("refused");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(!cluster.path(TARGET).exists());
    }
    clean_up(&mut cluster, &a).await;
    cluster.stop().await.1.expect("ends well");
}
