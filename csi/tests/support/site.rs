//! A real cache agent, and a directory as its origin.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tempfile::TempDir;
use trackbed_cache::origin::{ListProgress, OpenOrigin, Origins};
use trackbed_cache::registry::FileRegistry;
use trackbed_cache::seal::SLOT_BYTES;
use trackbed_cache::{
    Agent, AgentConfig, ControlError, Device, Digest, Member, OriginUrl, PeerControl, Registry,
};
use trackbed_rdma::shard::{Shard, ShardConfig};
use trackbed_rdma::slab::Slab;

use super::pattern;

/// A node without others.
pub(crate) struct NoPeers;

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
pub(crate) struct Site {
    folder: TempDir,
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
}

impl Site {
    pub(crate) fn new() -> Site {
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn origin(&self) -> PathBuf {
        self.path("origin")
    }

    pub(crate) async fn agent(&self) -> Agent {
        self.agent_with(|_| {}).await
    }

    pub(crate) async fn agent_with(&self, change: impl FnOnce(&mut AgentConfig)) -> Agent {
        self.agent_on(change, |shard| Arc::new(shard)).await
    }

    /// On a disk of the test's making.
    pub(crate) async fn agent_on(
        &self,
        change: impl FnOnce(&mut AgentConfig),
        device: impl FnOnce(Shard) -> Arc<dyn Device>,
    ) -> Agent {
        let origins = Arc::new(Origins::default());
        self.agent_of(change, device, origins).await
    }

    /// With origins of the test's making.
    pub(crate) async fn agent_of(
        &self,
        change: impl FnOnce(&mut AgentConfig),
        device: impl FnOnce(Shard) -> Arc<dyn Device>,
        origins: Arc<dyn OpenOrigin>,
    ) -> Agent {
        let slab = Slab::new("cache", SLOT_BYTES, 16).expect("memory");
        let shard = Shard::start(ShardConfig::new("shard", slab.clone())).expect("a ring");
        let registry = FileRegistry::open(&self.path("registry")).expect("a registry");
        let registry: Arc<dyn Registry> = Arc::new(registry);
        let mut config = AgentConfig::new("node-1", self.path("cache"));
        change(&mut config);
        let device = device(shard.clone());
        let peers = Arc::new(NoPeers);
        Agent::start_on(config, device, shard, slab, registry, peers, origins)
            .await
            .expect("an agent")
    }

    pub(crate) async fn register(&self, agent: &Agent) {
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
    pub(crate) fn check(&self, mount: &Path) {
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
