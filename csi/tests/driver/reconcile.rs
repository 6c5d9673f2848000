//! What a driver does at its start with what an earlier one has left.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::Code;
use trackbed_csi::expose::mountinfo::MountTable;
use trackbed_proto::csi::v1::NodeGetVolumeStatsRequest;

use crate::support::cluster::{Cluster, Folder, mounts_below};
use crate::support::{abort_connection, can_mount};
use crate::{cats, datasets};

fn records(folder: &Path) -> usize {
    let state = fs::read_dir(folder.join("state")).expect("lists");
    let names = state.map(|item| item.expect("lists").file_name());
    names
        .filter(|name| name.to_string_lossy().ends_with(".volume.json"))
        .count()
}

/// Stages cats and publishes it twice, and ends as `kill -9` would: all mounts dead.
async fn left_dead(folder: Folder, staging: &str, targets: [&str; 2]) -> Folder {
    let cluster = Cluster::start_in(folder, datasets(), false).await;
    let mut node = cluster.node.clone();
    let mut stage = cluster.stage("cats");
    stage.staging_target_path = cluster.text(staging);
    assert_eq!(code!(node.node_stage_volume(stage)), Code::Ok);
    for target in targets {
        let mut publish = cluster.publish("cats", target);
        publish.staging_target_path = cluster.text(staging);
        assert_eq!(code!(node.node_publish_volume(publish)), Code::Ok);
    }
    let connection = cluster.connection(staging);
    drop(node);
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    abort_connection(connection);
    assert_eq!(records(folder.path()), 1);
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_nothing_is_remembered_of_what_is_not_mounted() {
    if !can_mount() {
        return;
    }
    let folder = left_dead(Folder::new(), "staging-cats", ["t1", "t2"]).await;
    for name in ["t1", "t2", "staging-cats"] {
        umount2(&folder.path().join(name), MntFlags::MNT_DETACH).expect("unmounts");
    }
    let datasets = datasets();
    datasets.put("cats", &cats("purr, purr"));
    let cluster = Cluster::start_in(folder, datasets, true).await;
    while records(cluster.folder.path()) > 0 {
        tokio::task::yield_now().await;
    }
    let mut node = cluster.node.clone();
    let stats = NodeGetVolumeStatsRequest {
        volume_id: "cats".to_owned(),
        volume_path: cluster.text("t1"),
        ..Default::default()
    };
    while code!(node.node_get_volume_stats(stats.clone())) != Code::NotFound {
        tokio::task::yield_now().await;
    }
    assert_eq!(mounts_below(cluster.folder.path()), 0);
    // Staged anew, it shows what the dataset is now.
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    let read = fs::read_to_string(cluster.path("staging-cats/cat.txt"));
    assert_eq!(read.expect("reads"), "purr, purr");
    drop(node);
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_mounts_that_no_record_tells_of_go_below_this_kubelet_and_nowhere_else() {
    if !can_mount() {
        return;
    }
    let folder = left_dead(Folder::new(), "kubelet/staging", ["kubelet/t1", "other/t2"]).await;
    // The records are lost, as with the disk they were on.
    fs::remove_dir_all(folder.path().join("state")).expect("removes");
    let registry = folder.path().join("kubelet/plugins_registry");
    fs::create_dir_all(&registry).expect("makes");
    // Others' mounts, one of which covers a dead one; and a living one of another driver's.
    let theirs = folder.path().join("kubelet/t1");
    let none = None::<&str>;
    mount(
        Some("theirs"),
        &theirs,
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .expect("mounts");
    let living = Cluster::start(&datasets()).await;
    let mut node = living.node.clone();
    let mut stage = living.stage("dogs");
    let elsewhere = folder.path().join("kubelet/living");
    stage.staging_target_path = elsewhere.to_str().expect("UTF-8").to_owned();
    assert_eq!(code!(node.node_stage_volume(stage)), Code::Ok);

    let cluster = Cluster::start_below(folder, Some(registry), datasets(), true).await;
    let is_mounted = |name: &str| cluster.is_mounted(name);
    while is_mounted("kubelet/staging") {
        tokio::task::yield_now().await;
    }
    assert!(
        is_mounted("other/t2"),
        "it is not below this kubelet's folder"
    );
    let top = MountTable::read().expect("reads");
    let top = top.top(&cluster.resolved("kubelet/t1")).expect("mounted");
    assert_eq!(top.source, "theirs");
    let read = fs::read_to_string(elsewhere.join("cat.txt"));
    assert_eq!(read.expect("reads"), "woof!");
    drop(node);
    living.stop().await.1.expect("ends well");
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_never_pile_up_however_often_a_driver_comes_back() {
    if !can_mount() {
        return;
    }
    let mut folder = left_dead(Folder::new(), "staging-cats", ["t1", "t2"]).await;
    for _ in 0..3 {
        let mut cluster = Cluster::start_in(folder, datasets(), false).await;
        for name in ["t1", "t2"] {
            while cluster.condition("cats", name).await.abnormal {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(mounts_below(cluster.folder.path()), 3);
        let connection = cluster.connection("t1");
        let ended;
        (folder, ended) = cluster.stop().await;
        ended.expect("ends well");
        abort_connection(connection);
    }
    assert_eq!(mounts_below(folder.path()), 3);
}
