//! A real cache agent behind the driver: a directory as origin, read through a pod's mount.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use support::cluster::{Cluster, mounts_below};
use support::{can_mount, pattern};
use tempfile::TempDir;
use trackbed_cache::origin::{ListProgress, Origins};
use trackbed_cache::registry::FileRegistry;
use trackbed_cache::seal::SLOT_BYTES;
use trackbed_cache::{
    Agent, AgentConfig, ControlError, Digest, Member, OriginUrl, PeerControl, Registry,
};
use trackbed_rdma::shard::{Shard, ShardConfig};
use trackbed_rdma::slab::Slab;

/// A node without others.
struct NoPeers;

impl PeerControl for NoPeers {
    fn connect<'a>(
        &'a self,
        member: &'a Member,
        _offer: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ControlError>> {
        Box::pin(async { Err(alone(member)) })
    }

    fn manifest<'a>(
        &'a self,
        member: &'a Member,
        _version: Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, ControlError>> {
        Box::pin(async { Err(alone(member)) })
    }
}

fn alone(member: &Member) -> ControlError {
    ControlError {
        node: member.name.clone(),
        address: member.control.clone(),
        why: "there are no others in this test".to_owned(),
    }
}

/// An origin with small files, large ones, an empty one and a link, and a place for a cache.
struct Site {
    folder: TempDir,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Site {
    fn new() -> Site {
        let folder = tempfile::tempdir().expect("a folder");
        let files = vec![
            ("empty", vec![]),
            ("labels.json", b"{\"a\": 1}\n".to_vec()),
            ("images/1.jpg", pattern(104_321, 1)),
            ("images/2.jpg", pattern(65_536, 2)),
            ("shards/0.tar", pattern((9 << 20) + 17, 3)),
        ];
        let site = Site { folder, files };
        for (path, content) in &site.files {
            let path = site.origin().join(path);
            fs::create_dir_all(path.parent().expect("below")).expect("makes");
            fs::write(path, content).expect("writes");
        }
        symlink("shards/0.tar", site.origin().join("latest")).expect("links");
        fs::create_dir(site.path("registry")).expect("makes");
        fs::write(
            site.path("registry/members.json"),
            r#"{"members": [{"name": "node-1", "control": "127.0.0.1:1"}]}"#,
        )
        .expect("writes");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn origin(&self) -> PathBuf {
        self.path("origin")
    }

    async fn agent(&self) -> Agent {
        let slab = Slab::new("cache", SLOT_BYTES, 16).expect("memory");
        let shard = Shard::start(ShardConfig::new("shard", slab.clone())).expect("a ring");
        let registry = FileRegistry::open(&self.path("registry")).expect("a registry");
        let registry: Arc<dyn Registry> = Arc::new(registry);
        let config = AgentConfig::new("node-1", self.path("cache"));
        let origins = Arc::new(Origins::default());
        Agent::start(config, shard, slab, registry, Arc::new(NoPeers), origins)
            .await
            .expect("an agent")
    }

    async fn register(&self, agent: &Agent) {
        let url: OriginUrl = format!("file://{}", self.origin().display())
            .parse()
            .expect("a URL");
        let name = "set".parse().expect("a name");
        agent
            .register(&name, &url, &ListProgress::default())
            .await
            .expect("registers");
    }

    /// Reads every byte through a mount and compares it with the origin.
    fn check(&self, mount: &Path) {
        for (path, content) in &self.files {
            assert!(
                fs::read(mount.join(path)).expect("reads") == *content,
                "{path}"
            );
        }
        let (_, shard) = &self.files[4];
        assert!(fs::read(mount.join("latest")).expect("reads") == *shard);
    }
}

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
