//! What a user gets: a dataset, fetched once, read on several nodes, through kubelet's interface.

use std::{path::Path, time::Duration};

use tonic::Code;
use trackbed_proto::csi::v1::{
    NodeGetVolumeStatsRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
};
use trackbed_tests::{
    cluster::Cluster,
    node::{publish_request, stage_request},
    privilege, tree,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_fetched_once_and_read_on_every_node() {
    if privilege::missing("mounting") {
        return;
    }
    let cluster = Cluster::start(3).await.expect("three nodes start");
    let origin = cluster.folder().join("origin");
    let bytes = tree::write(&origin).expect("an origin is written");
    let expected = tree::read(&origin).expect("an origin is read");
    cluster.register("demo", &origin).await;

    for node in &cluster.nodes {
        let mount = node
            .mount("demo")
            .await
            .expect("a registered dataset mounts");
        tree::assert_same(&tree::read(&mount).expect("the mount is read"), &expected);
    }

    let taken = cluster.origin_bytes().await;
    assert!(
        taken <= bytes * 102 / 100,
        "{taken} bytes left the origin of {bytes}"
    );
    assert!(
        taken >= bytes,
        "{taken} bytes of {bytes} can't be all of them"
    );
    for node in &cluster.nodes {
        node.unmount("demo")
            .await
            .expect("a mounted dataset unmounts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelet_may_repeat_every_call() {
    if privilege::missing("mounting") {
        return;
    }
    let cluster = Cluster::start(1).await.expect("a node starts");
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("an origin is written");
    cluster.register("demo", &origin).await;
    let node = &cluster.nodes[0];
    let staging = node.folder.join("staging/demo");
    let target = node.target("demo");
    std::fs::create_dir_all(&staging).expect("kubelet makes the staging folder");
    std::fs::create_dir_all(target.parent().expect("a pod has a folder")).expect("kubelet too");
    let mut csi = node.csi().await.expect("the CSI socket answers");

    for _ in 0..2 {
        csi.node_stage_volume(stage_request("demo", &staging))
            .await
            .expect("stage");
    }
    for _ in 0..2 {
        csi.node_publish_volume(publish_request("demo", &staging, &target))
            .await
            .expect("publish");
    }
    let read = std::fs::read(target.join("large/one-chunk.bin")).expect("the pod reads");
    assert_eq!(
        read,
        std::fs::read(origin.join("large/one-chunk.bin")).expect("the origin too")
    );
    let stats = csi
        .node_get_volume_stats(NodeGetVolumeStatsRequest {
            volume_id: "demo".to_owned(),
            volume_path: target.display().to_string(),
            ..Default::default()
        })
        .await
        .expect("stats of a published volume");
    assert!(stats.into_inner().usage.iter().any(|usage| usage.total > 0));

    let unpublish = NodeUnpublishVolumeRequest {
        volume_id: "demo".to_owned(),
        target_path: target.display().to_string(),
    };
    let unstage = NodeUnstageVolumeRequest {
        volume_id: "demo".to_owned(),
        staging_target_path: staging.display().to_string(),
    };
    for _ in 0..2 {
        csi.node_unpublish_volume(unpublish.clone())
            .await
            .expect("unpublish");
    }
    assert!(!target.exists(), "unpublishing removes the target");
    for _ in 0..2 {
        csi.node_unstage_volume(unstage.clone())
            .await
            .expect("unstage");
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts are readable");
    assert!(
        !mounts.contains(&node.folder.display().to_string()),
        "a mount is left:\n{mounts}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_dataset_is_not_found() {
    let cluster = Cluster::start(1).await.expect("a node starts");
    let status = cluster.nodes[0]
        .mount("nothing")
        .await
        .expect_err("nothing is registered");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert!(status.message().contains("nothing"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_comes_back_with_what_it_had() {
    if privilege::missing("mounting") {
        return;
    }
    let mut cluster = Cluster::start(1).await.expect("a node starts");
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("an origin is written");
    let expected = tree::read(&origin).expect("an origin is read");
    cluster.register("demo", &origin).await;
    let node = &mut cluster.nodes[0];
    let mount = node
        .mount("demo")
        .await
        .expect("a registered dataset mounts");
    tree::read(&mount).expect("all of it is read once");

    // What was read in the last moments before a crash may have to be fetched again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.kill();
    node.start().await.expect("a killed node starts again");
    let mount = node
        .mount("demo")
        .await
        .expect("kubelet stages and publishes again");
    tree::assert_same(&tree::read(&mount).expect("the mount is read"), &expected);
    assert_eq!(
        cluster.origin_bytes().await,
        0,
        "the new process had it all on disk"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_flipped_in_one_nodes_cache_is_never_served_where_each_read_is_checked() {
    if privilege::missing("mounting") {
        return;
    }
    let mut cluster = Cluster::prepare(2).expect("two nodes are prepared");
    for node in &mut cluster.nodes {
        node.flag("--expose", "fuse");
        node.start().await.expect("a node starts");
    }
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("an origin is written");
    // More than a node keeps in memory, so that what is read again comes from its disk.
    tree::write_chunks(&origin, 48).expect("an origin is written");
    let expected = tree::read(&origin).expect("an origin is read");
    cluster.register("demo", &origin).await;
    let [near, far] = &cluster.nodes[..] else {
        unreachable!("two were started")
    };
    let mount = near
        .mount("demo")
        .await
        .expect("a registered dataset mounts");
    tree::read(&mount).expect("all of it is read once");

    let flipped = flip_everything(&near.cache());
    assert!(flipped > 3, "only {flipped} files held data");
    // A mount made anew has nothing in the page cache: each byte comes from the damaged files.
    near.unmount("demo")
        .await
        .expect("a mounted dataset unmounts");
    let mount = near
        .mount("demo")
        .await
        .expect("a registered dataset mounts");
    tree::assert_same(&tree::read(&mount).expect("the mount is read"), &expected);
    let counters = near.counters().await.expect("a running node counts");
    assert!(
        counters.corrupt_blocks > 0,
        "the damage was not noticed: {counters:?}"
    );

    flip_everything(&near.cache());
    let mount = far
        .mount("demo")
        .await
        .expect("a registered dataset mounts");
    tree::assert_same(&tree::read(&mount).expect("the mount is read"), &expected);
}

/// Flips a bit in every MiB of every file that holds data of a dataset.
fn flip_everything(cache: &Path) -> usize {
    use std::os::unix::fs::FileExt;
    let mut flipped = 0;
    let cache = &cache.join("versions");
    for (path, _) in tree::read(cache).expect("the versions are a folder of files") {
        let data = path.components().any(|part| part.as_os_str() == "tree")
            || path.file_name().is_some_and(|name| name == "small.pack");
        let path = cache.join(path);
        if !data || !path.is_file() {
            continue;
        }
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("a file");
        let length = file.metadata().expect("a file has a length").len();
        for at in (length.min(1000) / 2..length).step_by(1 << 20) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("inside the file");
            file.write_all_at(&[byte[0] ^ 4], at)
                .expect("inside the file");
        }
        flipped += 1;
    }
    flipped
}
