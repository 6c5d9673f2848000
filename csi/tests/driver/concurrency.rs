//! Calls that come at the same time, or are left half-way.

use std::fs;

use crate::datasets;
use crate::support::cluster::{Cluster, mounts_below};
use crate::support::{can_mount, pattern};
use tonic::Code;

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
