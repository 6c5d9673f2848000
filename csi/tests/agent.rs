//! A real cache agent behind the driver: a directory as origin, read through a pod's mount.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use support::can_mount;
use support::cluster::{Cluster, mounts_below};
use support::site::Site;
use trackbed_cache::Agent;

async fn staged(agent: &Agent) -> Cluster {
    let cluster = Cluster::start_with(Arc::new(agent.clone())).await;
    let mut node = cluster.node.clone();
    node.node_stage_volume(cluster.stage("set"))
        .await
        .expect("stages");
    node.node_publish_volume(cluster.publish("set", "pod"))
        .await
        .expect("publishes");
    cluster
}

async fn in_pod<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

/// Damages every cached file of at least a block, a byte in each block.
fn flip_bytes_below(folder: &Path) -> usize {
    let mut flipped = 0;
    for item in fs::read_dir(folder).expect("lists") {
        let path = item.expect("lists").path();
        let meta = fs::symlink_metadata(&path).expect("stats");
        if meta.is_dir() {
            flipped += flip_bytes_below(&path);
        } else if path.file_name().is_some_and(|name| name == "small.pack")
            || path.components().any(|part| part.as_os_str() == "tree")
        {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .expect("opens");
            for offset in (100..meta.len()).step_by(64 << 10) {
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset).expect("reads");
                file.write_all_at(&[byte[0] ^ 0x10], offset)
                    .expect("writes");
                flipped += 1;
            }
            file.sync_all().expect("syncs");
        }
    }
    flipped
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reads_what_the_origin_has_and_what_is_cached_needs_no_origin() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let agent = site.agent().await;
    site.register(&agent).await;
    let mut cluster = staged(&agent).await;
    let condition = cluster.condition("set", "pod").await;
    assert!(condition.message.contains(" 0.0 %"), "{condition:?}");
    let (reader, pod) = (site.clone(), cluster.path("pod"));
    in_pod(move || reader.check(&pod)).await;
    agent.flush().await;
    let condition = cluster.condition("set", "pod").await;
    assert!(condition.message.contains(" 100.0 %"), "{condition:?}");
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert_eq!(mounts_below(folder.path()), 0);
    drop(agent);

    // The node comes back, the origin does not.
    fs::rename(site.origin(), site.path("elsewhere")).expect("renames");
    let agent = site.agent().await;
    let cluster = staged(&agent).await;
    let (reader, pod) = (site.clone(), cluster.path("pod"));
    in_pod(move || reader.check(&pod)).await;
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_flipped_in_the_cache_never_reaches_a_pod() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let agent = site.agent().await;
    site.register(&agent).await;
    let cluster = staged(&agent).await;
    let (reader, pod) = (site.clone(), cluster.path("pod"));
    in_pod(move || reader.check(&pod)).await;
    agent.flush().await;
    cluster.stop().await.1.expect("ends well");
    drop(agent);

    // With the origin there, the right bytes come from it.
    assert!(flip_bytes_below(&site.path("cache")) > 100);
    let agent = site.agent().await;
    let cluster = staged(&agent).await;
    let (reader, pod) = (site.clone(), cluster.path("pod"));
    in_pod(move || reader.check(&pod)).await;
    agent.flush().await;
    cluster.stop().await.1.expect("ends well");
    drop(agent);

    // Without it, there is an error.
    assert!(flip_bytes_below(&site.path("cache")) > 100);
    fs::rename(site.origin(), site.path("elsewhere")).expect("renames");
    let agent = site.agent().await;
    let cluster = staged(&agent).await;
    for path in ["images/1.jpg", "shards/0.tar"] {
        let path = cluster.path("pod").join(path);
        let refused = in_pod(move || fs::read(path))
            .await
            .expect_err("unreadable");
        assert_eq!(refused.raw_os_error(), Some(nix::errno::Errno::EIO as i32));
    }
    cluster.stop().await.1.expect("ends well");
}
