//! What a pod gets to see, and what stays as it was.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};

use crate::support::cluster::{Cluster, MemoryDatasets, capability, mounts_below};
use crate::support::{Fault, can_mount, pattern};
use crate::{cats, datasets};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::Code;
use trackbed_csi::expose::VersionView;
use trackbed_proto::csi::v1::NodeGetVolumeStatsRequest;
use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;
use trackbed_proto::csi::v1::volume_capability::{AccessType, MountVolume};
use trackbed_proto::csi::v1::volume_usage::Unit;

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
