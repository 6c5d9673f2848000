//! The CSI driver through its socket, as kubelet uses it.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use support::cluster::{Cluster, Folder, MemoryDatasets, capability, mounts_below};
use support::{Fault, MemoryVersion, abort_connection, can_mount, file, pattern};
use tonic::Code;
use trackbed_csi::driver::{DRIVER_NAME, TOPOLOGY_NODE};
use trackbed_csi::expose::VersionView;
use trackbed_proto::csi::v1::node_service_capability::{Type, rpc};
use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;
use trackbed_proto::csi::v1::volume_capability::{AccessType, BlockVolume, MountVolume};
use trackbed_proto::csi::v1::volume_usage::Unit;
use trackbed_proto::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest,
    NodeGetInfoRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, ProbeRequest,
};

/// Texts must differ in length: it and the time are what tells versions apart.
fn cats(text: &str) -> Arc<MemoryVersion> {
    MemoryVersion::new(
        &[
            file("cat.txt", text.as_bytes()),
            file("more/big", &pattern(200_000, 1)),
        ],
        4 << 20,
    )
}

fn datasets() -> Arc<MemoryDatasets> {
    let datasets = MemoryDatasets::new();
    datasets.put("cats", &cats("meow"));
    datasets.put("dogs", &cats("woof!"));
    datasets
}

/// The code of a call, `Ok` included.
macro_rules! code {
    ($call:expr) => {
        $call
            .await
            .map_or_else(|status| status.code(), |_| Code::Ok)
    };
}

#[tokio::test]
async fn kubelet_learns_who_serves_and_what() {
    let datasets = datasets();
    let mut cluster = Cluster::start(&datasets).await;
    let info = cluster
        .identity
        .get_plugin_info(GetPluginInfoRequest {})
        .await;
    let info = info.expect("answers").into_inner();
    assert_eq!(info.name, DRIVER_NAME);
    assert!(!info.vendor_version.is_empty());
    let capabilities = cluster
        .identity
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await;
    assert!(
        capabilities
            .expect("answers")
            .into_inner()
            .capabilities
            .is_empty()
    );
    let probe = cluster.identity.probe(ProbeRequest {}).await;
    assert_eq!(probe.expect("answers").into_inner().ready, Some(true));

    let info = cluster.node.node_get_info(NodeGetInfoRequest {}).await;
    let info = info.expect("answers").into_inner();
    assert_eq!(info.node_id, "node-1");
    let segments = info.accessible_topology.expect("a topology").segments;
    assert_eq!(segments[TOPOLOGY_NODE], "node-1");
    assert_eq!(segments["zone"], "a");
    let can = cluster
        .node
        .node_get_capabilities(NodeGetCapabilitiesRequest {})
        .await;
    let can: Vec<_> = can
        .expect("answers")
        .into_inner()
        .capabilities
        .into_iter()
        .map(|capability| match capability.r#type {
            Some(Type::Rpc(rpc)) => rpc.r#type(),
            None => rpc::Type::Unknown,
        })
        .collect();
    assert_eq!(
        can,
        [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::VolumeCondition
        ]
    );

    let socket = fs::symlink_metadata(cluster.path("csi.sock")).expect("there");
    assert_eq!(socket.mode() & 0o777, 0o600);
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert!(!folder.path().join("csi.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reads_its_dataset_and_every_call_may_come_twice() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let mut cluster = Cluster::start(&datasets).await;
    for _ in 0..2 {
        for _ in 0..2 {
            cluster
                .node
                .node_stage_volume(cluster.stage("cats"))
                .await
                .expect("stages");
        }
        for _ in 0..2 {
            let publish = cluster.publish("cats", "pods/1/mount");
            cluster
                .node
                .node_publish_volume(publish)
                .await
                .expect("publishes");
        }
        let read = fs::read_to_string(cluster.path("pods/1/mount/cat.txt"));
        assert_eq!(read.expect("reads"), "meow");
        assert!(fs::write(cluster.path("pods/1/mount/new"), "x").is_err());
        assert_eq!(mounts_below(cluster.folder.path()), 2);

        let request = NodeGetVolumeStatsRequest {
            volume_id: "cats".to_owned(),
            volume_path: cluster.text("pods/1/mount"),
            ..Default::default()
        };
        let stats = cluster.node.node_get_volume_stats(request).await;
        let stats = stats.expect("known").into_inner();
        let used: Vec<_> = stats
            .usage
            .iter()
            .map(|u| (u.unit(), u.used, u.total))
            .collect();
        assert_eq!(
            used,
            [(Unit::Bytes, 200_004, 200_004), (Unit::Inodes, 4, 4)]
        );
        let condition = stats.volume_condition.expect("a condition");
        assert!(
            !condition.abnormal && condition.message.contains("25.0 %"),
            "{condition:?}"
        );

        for _ in 0..2 {
            let unpublish = cluster.unpublish("cats", "pods/1/mount");
            cluster
                .node
                .node_unpublish_volume(unpublish)
                .await
                .expect("unpublishes");
            assert!(!cluster.path("pods/1/mount").exists());
        }
        for _ in 0..2 {
            cluster
                .node
                .node_unstage_volume(cluster.unstage("cats"))
                .await
                .expect("unstages");
        }
        assert_eq!(mounts_below(cluster.folder.path()), 0);
        assert_eq!(
            fs::read_dir(cluster.path("state")).expect("lists").count(),
            0
        );
    }
    cluster.stop().await.1.expect("ends well");
}

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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_trackbed_s_is_never_covered_or_removed() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let cluster = Cluster::start(&datasets).await;
    let mut node = cluster.node.clone();
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );

    let folder = cluster.path("foreign");
    fs::create_dir(&folder).expect("makes");
    mount(
        Some("theirs"),
        &folder,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .expect("mounts");
    fs::write(folder.join("precious"), "x").expect("writes");
    let refused = node
        .node_publish_volume(cluster.publish("cats", "foreign"))
        .await;
    let refused = refused.expect_err("refused");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("theirs"), "{refused}");
    let unpublish = cluster.unpublish("cats", "foreign");
    assert_eq!(
        code!(node.node_unpublish_volume(unpublish)),
        Code::FailedPrecondition
    );
    assert!(folder.join("precious").exists());
    umount2(&folder, MntFlags::MNT_DETACH).expect("unmounts");

    fs::write(cluster.path("a-file"), "precious").expect("writes");
    symlink("/", cluster.path("a-link")).expect("links");
    fs::create_dir(cluster.path("full")).expect("makes");
    fs::write(cluster.path("full/precious"), "x").expect("writes");
    for name in ["a-file", "a-link"] {
        let publish = cluster.publish("cats", name);
        assert_eq!(
            code!(node.node_publish_volume(publish)),
            Code::FailedPrecondition,
            "{name}"
        );
    }
    for name in ["a-file", "a-link", "full"] {
        let unpublish = cluster.unpublish("cats", name);
        assert_eq!(
            code!(node.node_unpublish_volume(unpublish)),
            Code::FailedPrecondition,
            "{name}"
        );
        assert!(fs::symlink_metadata(cluster.path(name)).is_ok(), "{name}");
    }
    assert!(cluster.path("full/precious").exists());
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert_eq!(mounts_below(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_to_write_is_mounted_read_only_and_noexec_is_held() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let cluster = Cluster::start(&datasets).await;
    let mut node = cluster.node.clone();
    let mut wanted = capability(Mode::SingleNodeWriter);
    wanted.access_type = Some(AccessType::Mount(MountVolume {
        fs_type: "ext4".to_owned(),
        mount_flags: vec!["noexec".to_owned(), "ro".to_owned()],
        ..Default::default()
    }));
    let mut stage = cluster.stage("pvc-1");
    stage.volume_context = [("dataset", "dogs"), ("csi.storage.k8s.io/pod.name", "p")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    stage.volume_capability = Some(wanted.clone());
    assert_eq!(code!(node.node_stage_volume(stage)), Code::Ok);
    let mut publish = cluster.publish("pvc-1", "t");
    publish.volume_context = [("dataset".to_owned(), "dogs".to_owned())].into();
    publish.volume_capability = Some(wanted);
    assert_eq!(code!(node.node_publish_volume(publish)), Code::Ok);
    assert_eq!(
        fs::read_to_string(cluster.path("t/cat.txt")).expect("reads"),
        "woof!"
    );
    let table = trackbed_csi::expose::mountinfo::MountTable::read().expect("reads");
    let top = table.top(&cluster.resolved("t")).expect("mounted");
    for option in ["ro", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(
            top.options.split(',').any(|has| has == option),
            "{}",
            top.options
        );
    }
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_while_another_is_under_way_is_aborted_and_one_that_is_left_ends_well() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let cluster = Cluster::start(&datasets).await;
    let mut node = cluster.node.clone();
    let held = datasets.gate.acquire_many(1000).await.expect("free");
    let mut opening = datasets.opening.subscribe();
    let (mut slow, request) = (node.clone(), cluster.stage("cats"));
    let first = tokio::spawn(async move { slow.node_stage_volume(request).await });
    opening.wait_for(|&count| count == 1).await.expect("opens");

    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Aborted
    );
    assert_eq!(
        code!(node.node_unstage_volume(cluster.unstage("cats"))),
        Code::Aborted
    );
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t"))),
        Code::Aborted
    );
    // kubelet's deadline passes; the operation goes on.
    first.abort();
    drop(held);
    while code!(node.node_stage_volume(cluster.stage("cats"))) == Code::Aborted {}
    assert_eq!(*opening.borrow(), 1);
    assert!(cluster.is_mounted("staging-cats"));
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_mix_of_concurrent_calls_ends_in_order() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let cluster = Cluster::start(&datasets).await;
    let mut calls = tokio::task::JoinSet::new();
    for caller in 0..8u64 {
        let mut node = cluster.node.clone();
        let volume = ["cats", "dogs"][caller as usize % 2];
        let target = format!("{volume}-target-{}", caller % 4);
        let (stage, unstage) = (cluster.stage(volume), cluster.unstage(volume));
        let publish = cluster.publish(volume, &target);
        let unpublish = cluster.unpublish(volume, &target);
        let choices = pattern(24, caller + 1);
        calls.spawn(async move {
            for choice in choices {
                let code = match choice % 4 {
                    0 => code!(node.node_stage_volume(stage.clone())),
                    1 => code!(node.node_publish_volume(publish.clone())),
                    2 => code!(node.node_unpublish_volume(unpublish.clone())),
                    _ => code!(node.node_unstage_volume(unstage.clone())),
                };
                let expected = [Code::Ok, Code::Aborted, Code::FailedPrecondition];
                assert!(expected.contains(&code), "{code:?}");
            }
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("no panic");
    }
    let mut node = cluster.node.clone();
    for volume in ["cats", "dogs"] {
        for target in 0..4 {
            let unpublish = cluster.unpublish(volume, &format!("{volume}-target-{target}"));
            assert_eq!(code!(node.node_unpublish_volume(unpublish)), Code::Ok);
        }
        assert_eq!(
            code!(node.node_unstage_volume(cluster.unstage(volume))),
            Code::Ok
        );
    }
    assert_eq!(mounts_below(cluster.folder.path()), 0);
    assert_eq!(
        fs::read_dir(cluster.path("state")).expect("lists").count(),
        0
    );
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staged_volume_keeps_its_version_until_it_is_unstaged() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let mut cluster = Cluster::start(&datasets).await;
    let mut node = cluster.node.clone();
    let cat = cluster.path("staging-cats/cat.txt");
    let read = || fs::read_to_string(&cat);
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    datasets.put("cats", &cats("purr, purr"));
    cluster.kill_mount("cats", "staging-cats").await;
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    assert_eq!(read().expect("reads"), "meow");
    assert_eq!(
        code!(node.node_unstage_volume(cluster.unstage("cats"))),
        Code::Ok
    );
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    assert_eq!(read().expect("reads"), "purr, purr");
    assert_eq!(
        code!(node.node_unstage_volume(cluster.unstage("cats"))),
        Code::Ok
    );

    let old = cats("meow").manifest().digest();
    let mut pinned = cluster.stage("cats");
    pinned.volume_context = [("version".to_owned(), old.to_string())].into();
    assert_eq!(code!(node.node_stage_volume(pinned)), Code::Ok);
    assert_eq!(read().expect("reads"), "meow");
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_mount_is_told_and_repaired_and_blocks_nothing() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let mut cluster = Cluster::start(&datasets).await;
    let mut node = cluster.node.clone();
    let folder = cluster.folder.path().to_owned();
    let read = |name: &str| fs::read_to_string(folder.join(name).join("cat.txt"));
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t1"))),
        Code::Ok
    );
    cluster.kill_mount("cats", "staging-cats").await;
    read("t1").expect_err("dead");
    // Publishing a second target repairs the staging mount, and with it the first target.
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t2"))),
        Code::Ok
    );
    for name in ["staging-cats", "t1", "t2"] {
        assert_eq!(read(name).expect("reads"), "meow", "{name}");
    }
    assert_eq!(mounts_below(cluster.folder.path()), 3);

    let condition = cluster.kill_mount("cats", "staging-cats").await;
    assert!(condition.message.contains("dead"), "{condition:?}");
    for target in ["t1", "t2"] {
        let unpublish = cluster.unpublish("cats", target);
        assert_eq!(code!(node.node_unpublish_volume(unpublish)), Code::Ok);
    }
    assert_eq!(
        code!(node.node_unstage_volume(cluster.unstage("cats"))),
        Code::Ok
    );
    assert_eq!(mounts_below(cluster.folder.path()), 0);
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_driver_mounts_again_what_the_last_one_left_dead() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let folder = Folder::new();
    let cluster = Cluster::start_in(folder, datasets.clone(), false).await;
    let mut node = cluster.node.clone();
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t1"))),
        Code::Ok
    );
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t2"))),
        Code::Ok
    );
    let connection = cluster.connection("t1");
    drop(node);
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert_eq!(mounts_below(folder.path()), 3);
    // As after kill -9, and a reboot of the pod at t2; meanwhile the dataset moved on.
    abort_connection(connection);
    umount2(&folder.path().join("t2"), MntFlags::MNT_DETACH).expect("unmounts");
    datasets.put("cats", &cats("purr, purr"));

    let mut cluster = Cluster::start_in(folder, datasets.clone(), true).await;
    while cluster.condition("cats", "t1").await.abnormal {
        tokio::task::yield_now().await;
    }
    let read = fs::read_to_string(cluster.path("t1/cat.txt"));
    assert_eq!(read.expect("reads"), "meow");
    assert_eq!(mounts_below(cluster.folder.path()), 2);
    let mut node = cluster.node.clone();
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t1"))),
        Code::Ok
    );
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t2"))),
        Code::Ok
    );
    drop(node);
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert_eq!(mounts_below(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_cannot_mount_again_says_so_and_goes_on_with_other_volumes() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let folder = Folder::new();
    let cluster = Cluster::start_in(folder, datasets.clone(), false).await;
    let mut node = cluster.node.clone();
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    let connection = cluster.connection("staging-cats");
    drop(node);
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    abort_connection(connection);
    *datasets.down.lock() = true;

    let mut cluster = Cluster::start_in(folder, datasets.clone(), true).await;
    while !cluster
        .condition("cats", "staging-cats")
        .await
        .message
        .contains("no peer answers")
    {
        tokio::task::yield_now().await;
    }
    *datasets.down.lock() = false;
    let mut node = cluster.node.clone();
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("dogs"))),
        Code::Ok
    );
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    assert!(!cluster.condition("cats", "staging-cats").await.abnormal);
    drop(node);
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert_eq!(mounts_below(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_leaves_nothing_behind_takes_dead_mounts_away_too() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let cluster = Cluster::start_in(Folder::new(), datasets.clone(), false).await;
    let mut node = cluster.node.clone();
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t"))),
        Code::Ok
    );
    let connection = cluster.connection("t");
    drop(node);
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    abort_connection(connection);
    *datasets.down.lock() = true;
    let cluster = Cluster::start_in(folder, datasets, true).await;
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert_eq!(mounts_below(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unstaging_waits_for_no_open_file() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let cluster = Cluster::start(&datasets).await;
    let mut node = cluster.node.clone();
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    assert_eq!(
        code!(node.node_publish_volume(cluster.publish("cats", "t"))),
        Code::Ok
    );
    let open = fs::File::open(cluster.path("t/more/big")).expect("opens");
    assert_eq!(
        code!(node.node_unpublish_volume(cluster.unpublish("cats", "t"))),
        Code::Ok
    );
    assert_eq!(
        code!(node.node_unstage_volume(cluster.unstage("cats"))),
        Code::Ok
    );
    assert_eq!(mounts_below(cluster.folder.path()), 0);
    let mut bytes = vec![0; 200_000];
    open.read_exact_at(&mut bytes, 0).expect("still reads");
    assert!(bytes == pattern(200_000, 1));
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_read_is_named_in_the_condition() {
    if !can_mount() {
        return;
    }
    let datasets = MemoryDatasets::new();
    let version = cats("meow");
    datasets.put("cats", &version);
    let mut cluster = Cluster::start(&datasets).await;
    let mut node = cluster.node.clone();
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    version.break_file("more/big", Fault::Error);
    let path = cluster.path("staging-cats/more/big");
    let refused = tokio::task::spawn_blocking(|| fs::read(path))
        .await
        .expect("no panic");
    assert!(refused.is_err());
    let condition = cluster.condition("cats", "staging-cats").await;
    assert!(condition.abnormal, "{condition:?}");
    assert!(
        condition.message.contains("more/big: no holder answers"),
        "{condition:?}"
    );
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_ends_while_it_stages_leaves_no_mount() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let cluster = Cluster::start(&datasets).await;
    let held = datasets.gate.acquire_many(1000).await.expect("free");
    let mut opening = datasets.opening.subscribe();
    let (mut slow, request) = (cluster.node.clone(), cluster.stage("cats"));
    let first = tokio::spawn(async move { slow.node_stage_volume(request).await });
    opening.wait_for(|&count| count == 1).await.expect("opens");
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    drop(held);
    first.await.expect("no panic").expect_err("given up");
    assert_eq!(mounts_below(folder.path()), 0);
}
