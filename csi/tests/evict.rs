//! What is mounted on a node is not evicted from it, by whichever process it was mounted.

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use support::can_mount;
use support::cluster::{Cluster, Folder};
use support::site::Site;
use trackbed_cache::{Agent, AgentError, DatasetName, Showable};
use trackbed_csi::expose::mountinfo::MountTable;
use trackbed_csi::expose::native;

fn set() -> DatasetName {
    "set".parse().expect("a name")
}

async fn complete(agent: &Agent) {
    let version = agent.open(&set(), None).await.expect("opens");
    version.warm().await.expect("all of it");
    while !matches!(version.showable(), Showable::Native(_)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn evicting(agent: &Agent, cluster: &Cluster) {
    let mounted = Arc::clone(&cluster.mounted);
    agent.begin_evicting(Box::new(move || mounted()));
}

async fn assert_kept(agent: &Agent) {
    let error = agent.evict(&set(), None).await.expect_err("it is mounted");
    assert!(matches!(error, AgentError::Kept { .. }), "{error}");
}

async fn stage_and_publish(cluster: &Cluster) {
    let mut node = cluster.node.clone();
    let staged = node.node_stage_volume(cluster.stage("set")).await;
    staged.expect("stages");
    let published = node
        .node_publish_volume(cluster.publish("set", "pod"))
        .await;
    published.expect("publishes");
}

async fn take_away(cluster: &Cluster) {
    let mut node = cluster.node.clone();
    let unpublished = node
        .node_unpublish_volume(cluster.unpublish("set", "pod"))
        .await;
    unpublished.expect("unpublishes");
    let unstaged = node.node_unstage_volume(cluster.unstage("set")).await;
    unstaged.expect("unstages");
}

async fn check(site: &Arc<Site>, mount: &Path) {
    let (site, mount) = (site.clone(), mount.to_owned());
    let checked = tokio::task::spawn_blocking(move || site.check(&mount));
    checked.await.expect("right");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_has_mounted_natively_is_kept_also_from_a_node_that_has_just_started() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let agent = site.agent_with(|config| config.lay_out = true).await;
    site.register(&agent).await;
    complete(&agent).await;
    let cluster = Cluster::start_in(Folder::new(), Arc::new(agent.clone()), false).await;
    evicting(&agent, &cluster);
    stage_and_publish(&cluster).await;
    let table = MountTable::read().expect("reads");
    let top = table.top(&cluster.resolved("pod")).expect("mounted");
    assert!(native::version_of(top).is_some());
    assert_kept(&agent).await;
    agent.flush().await;
    let mounted = Arc::clone(&cluster.mounted);
    let (folder, _) = cluster.stop().await;
    assert_eq!(mounted().len(), 1, "it is left mounted");
    assert_kept(&agent).await;
    drop((agent, mounted));

    // The volume's record is lost; the kernel still has it mounted.
    for record in fs::read_dir(folder.path().join("state")).expect("lists") {
        let path = record.expect("lists").path();
        if path.is_file() {
            fs::remove_file(path).expect("removes");
        }
    }
    let agent = site.agent_with(|config| config.capacity = 1).await;
    let cluster = Cluster::start_in(folder, Arc::new(agent.clone()), true).await;
    evicting(&agent, &cluster);
    assert_kept(&agent).await;
    let pod = cluster.path("pod");
    check(&site, &pod).await;
    // Staged again, as kubelet does, it can be taken away; then it goes, as there is no room.
    stage_and_publish(&cluster).await;
    take_away(&cluster).await;
    let evicted = agent.evict(&set(), None).await;
    evicted.expect("nothing keeps it");
    assert_eq!(agent.counters().stored_bytes, 0);
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_evicted_after_its_pod_is_mounted_and_read_again() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let agent = site.agent_with(|config| config.lay_out = true).await;
    site.register(&agent).await;
    let cluster = Cluster::start_with(Arc::new(agent.clone())).await;
    evicting(&agent, &cluster);
    for round in 0..3 {
        stage_and_publish(&cluster).await;
        check(&site, &cluster.path("pod")).await;
        match round {
            1 => complete(&agent).await,
            // What was read may have been in memory still.
            _ => drop(agent.open(&set(), None).await.expect("opens").warm().await),
        }
        assert_kept(&agent).await;
        take_away(&cluster).await;
        let evicted = agent.evict(&set(), None).await.expect("nothing keeps it");
        assert_eq!(evicted.len(), 1);
        let counters = agent.counters();
        assert_eq!((counters.stored_bytes, counters.corrupt_blocks), (0, 0));
    }
    cluster.stop().await.1.expect("ends well");
}
