//! Mounts that died, and drivers that come back.

use std::fs;

use crate::support::cluster::{Cluster, Folder, mounts_below};
use crate::support::{abort_connection, can_mount};
use crate::{cats, datasets};
use nix::mount::{MntFlags, umount2};
use tonic::Code;

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
async fn a_volume_that_could_not_be_mounted_again_is_as_soon_as_its_dataset_can_be_had() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let cluster = Cluster::start_in(Folder::new(), datasets.clone(), false).await;
    let mut node = cluster.node.clone();
    let staged = node.node_stage_volume(cluster.stage("cats")).await;
    staged.expect("stages");
    let published = node.node_publish_volume(cluster.publish("cats", "t")).await;
    published.expect("publishes");
    drop(node);
    let connection = cluster.connection("staging-cats");
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    abort_connection(connection);
    *datasets.down.lock() = true;

    let mut cluster = Cluster::start_in(folder, datasets.clone(), true).await;
    loop {
        let condition = cluster.condition("cats", "t").await;
        if condition.message.contains("no peer answers") {
            break;
        }
        tokio::task::yield_now().await;
    }
    // kubelet does nothing: for it the volume is published.
    *datasets.down.lock() = false;
    while cluster.condition("cats", "t").await.abnormal {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
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
