//! Nodes of a cache in one process: real agents, discs and TCP, an origin in memory.

mod faulty;
mod origin;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::executor::block_on;
use futures::future::BoxFuture;
use nix::fcntl::{Flock, FlockArg};
use trackbed_cache::origin::ListProgress;
use trackbed_cache::registry::{Readers, RegistryError};
use trackbed_cache::seal::SLOT_BYTES;
use trackbed_cache::{
    Agent, AgentConfig, AgentError, ControlError, DatasetName, DatasetRecord, Device, Digest,
    EntryKind, Member, OpenVersion, PeerControl, ReadError, Registry,
};
use trackbed_rdma::fabric::{ChunkSource, Fabric, FabricConfig};
use trackbed_rdma::shard::{Shard, ShardConfig};
use trackbed_rdma::slab::Slab;

pub(crate) use faulty::{Fault, Faulty};
pub(crate) use origin::MemoryOrigin;
use origin::OpenMemory;

pub(crate) type Files = BTreeMap<Vec<u8>, Vec<u8>>;

/// Bytes that differ from place to place and file to file.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = vec![0; len.next_multiple_of(8)];
    for place in bytes.chunks_exact_mut(8) {
        place.copy_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A small generator (splitmix64), so that a failing test fails again.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// Small files, large ones, empty ones, lengths around blocks, pages and chunks, odd names.
pub(crate) fn some_files() -> Files {
    let mut files = Files::new();
    let mut random = Random(1);
    for n in 0..120 {
        let len = random.below(90_000) as usize;
        files.insert(
            format!("train/{:02}/{n}.jpg", n % 7).into_bytes(),
            bytes(n, len),
        );
    }
    const MIB: usize = 1 << 20;
    let lengths = [
        MIB - 1,
        MIB,
        MIB + 1,
        4 * MIB,
        4 * MIB + 1,
        9 * MIB + 4095,
        0,
        65_536,
        65_537,
        1,
    ];
    for (n, len) in lengths.into_iter().enumerate() {
        files.insert(
            format!("shards/{n}.tar").into_bytes(),
            bytes(1000 + n as u64, len),
        );
    }
    files.insert(b"odd/\xff\xfe name\n".to_vec(), bytes(7, 5000));
    files
}

/// What all nodes share: members and datasets, and the way to each other's control interface.
#[derive(Default)]
pub(crate) struct Town {
    pub(crate) members: Mutex<Vec<Member>>,
    datasets: Mutex<HashMap<DatasetName, DatasetRecord>>,
    agents: Mutex<HashMap<String, Answering>>,
}

/// Who answers at a node's control interface.
#[derive(Clone)]
enum Answering {
    Agent(Agent),
    /// A fabric alone, serving whatever it likes.
    Impostor(Fabric),
}

impl Registry for Town {
    fn members(&self) -> Result<Vec<Member>, RegistryError> {
        Ok(lock(&self.members).clone())
    }

    fn dataset(&self, name: &DatasetName) -> Result<Option<DatasetRecord>, RegistryError> {
        Ok(lock(&self.datasets).get(name).cloned())
    }

    fn datasets(&self) -> Result<Vec<DatasetRecord>, RegistryError> {
        Ok(lock(&self.datasets).values().cloned().collect())
    }

    fn put_dataset<'a>(
        &'a self,
        record: &'a DatasetRecord,
    ) -> BoxFuture<'a, Result<(), RegistryError>> {
        lock(&self.datasets).insert(record.name.clone(), record.clone());
        async { Ok(()) }.boxed()
    }
}

/// One node's way to the others.
struct Phone {
    node: String,
    town: Arc<Town>,
}

impl Phone {
    fn call(&self, member: &Member) -> Result<Answering, ControlError> {
        let agent = lock(&self.town.agents).get(&member.name).cloned();
        agent.ok_or_else(|| self.error(member, "connection refused"))
    }

    fn error(&self, member: &Member, why: impl ToString) -> ControlError {
        let (node, address) = (member.name.clone(), member.control.clone());
        ControlError {
            node,
            address,
            why: why.to_string(),
        }
    }
}

impl PeerControl for Phone {
    fn connect<'a>(
        &'a self,
        member: &'a Member,
        offer: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ControlError>> {
        async move {
            match self.call(member)? {
                Answering::Agent(agent) => {
                    let answer = agent.accept_peer(&self.node, offer).await;
                    answer.map_err(|e| self.error(member, e))
                }
                Answering::Impostor(fabric) => {
                    let answer = fabric.accept(&self.node, offer).await;
                    answer.map_err(|e| self.error(member, e))
                }
            }
        }
        .boxed()
    }

    fn manifest<'a>(
        &'a self,
        member: &'a Member,
        version: Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, ControlError>> {
        async move {
            match self.call(member)? {
                Answering::Agent(agent) => {
                    let found = agent.manifest_bytes(version).await;
                    found.map_err(|e| self.error(member, e))
                }
                Answering::Impostor(_) => Ok(None),
            }
        }
        .boxed()
    }
}

/// A running node.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) agent: Agent,
    cache_dirs: Vec<PathBuf>,
    town: Arc<Town>,
}

/// Nodes that share an origin, a registry and a temporary directory.
pub(crate) struct Cluster {
    pub(crate) origin: Arc<MemoryOrigin>,
    pub(crate) town: Arc<Town>,
    directory: tempfile::TempDir,
}

impl Cluster {
    pub(crate) fn new(files: Files) -> Cluster {
        Cluster {
            origin: MemoryOrigin::new(files),
            town: Arc::default(),
            directory: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    pub(crate) fn cache_dir(&self, node: &str) -> PathBuf {
        self.directory.path().join(node)
    }

    pub(crate) fn version_dir(&self, node: &str, version: Digest) -> PathBuf {
        self.cache_dir(node)
            .join("versions")
            .join(version.to_string())
    }

    /// Starts a node with the usual settings.
    pub(crate) fn start(&self, name: &str) -> Node {
        self.try_start(self.config(name)).expect("the node starts")
    }

    pub(crate) fn start_all<const N: usize>(&self, names: [&str; N]) -> [Node; N] {
        names.map(|name| self.start(name))
    }

    pub(crate) fn config(&self, name: &str) -> AgentConfig {
        AgentConfig::new(name, self.cache_dir(name))
    }

    pub(crate) fn try_start(&self, config: AgentConfig) -> Result<Node, AgentError> {
        self.try_start_on(config, |shard| Arc::new(shard))
    }

    /// Starts a node on a disk of the test's making.
    pub(crate) fn try_start_on(
        &self,
        config: AgentConfig,
        device: impl FnOnce(Shard) -> Arc<dyn Device>,
    ) -> Result<Node, AgentError> {
        let (name, cache_dirs) = (config.node.clone(), config.cache_dirs.clone());
        let slab = Slab::new(&name, SLOT_BYTES, 8).expect("some memory");
        let shard = Shard::start(ShardConfig::new(&name, Arc::clone(&slab))).expect("an io_uring");
        let phone = Phone {
            node: name.clone(),
            town: Arc::clone(&self.town),
        };
        let agent = block_on(Agent::start_on(
            config,
            device(shard.clone()),
            shard.clone(),
            slab,
            Arc::clone(&self.town) as _,
            Arc::new(phone),
            Arc::new(OpenMemory(Arc::clone(&self.origin))),
        ))?;
        let mut fabric = FabricConfig::tcp("127.0.0.1:0".parse().expect("an address"));
        fabric.arena_slots = 4;
        let fabric = Fabric::new(fabric, shard, agent.source()).expect("a port");
        agent.set_fabric(fabric);
        self.join(&name, Answering::Agent(agent.clone()));
        Ok(Node {
            name,
            agent,
            cache_dirs,
            town: Arc::clone(&self.town),
        })
    }

    /// Starts a node whose disks fail as they are told.
    pub(crate) fn start_on_faulty(&self, config: AgentConfig) -> (Node, Arc<Faulty>) {
        let mut disk = None;
        let node = self.try_start_on(config, |shard| {
            let faulty = Faulty::new(shard);
            disk = Some(Arc::clone(&faulty));
            faulty
        });
        (node.expect("starts"), disk.expect("made"))
    }

    fn join(&self, name: &str, answering: Answering) {
        let member = Member {
            name: name.to_owned(),
            control: String::new(),
            weight: 1,
        };
        let mut members = lock(&self.town.members);
        if !members.contains(&member) {
            members.push(member);
        }
        lock(&self.town.agents).insert(name.to_owned(), answering);
    }

    /// Adds a member that is trusted like any other and serves what `source` makes up.
    pub(crate) fn add_impostor(
        &self,
        name: &str,
        source: impl FnOnce(&Arc<Slab>) -> Arc<dyn ChunkSource>,
    ) {
        let slab = Slab::new(name, SLOT_BYTES, 4).expect("some memory");
        let shard = Shard::start(ShardConfig::new(name, Arc::clone(&slab))).expect("an io_uring");
        let config = FabricConfig::tcp("127.0.0.1:0".parse().expect("an address"));
        let fabric = Fabric::new(config, shard, source(&slab)).expect("a port");
        self.join(name, Answering::Impostor(fabric));
    }

    /// Registers the origin as dataset `d` through `node`.
    pub(crate) fn register(&self, node: &Node) -> DatasetRecord {
        let origin = "/memory".parse().expect("a URL");
        let progress = ListProgress::default();
        block_on(node.agent.register(&name(), &origin, &progress)).expect("registered")
    }
}

fn name() -> DatasetName {
    "d".parse().expect("a name")
}

impl Node {
    /// Registers a folder of the origin as the dataset of that name.
    pub(crate) fn register_folder(&self, folder: &str, readers: Readers) -> DatasetRecord {
        let origin = format!("/memory/{folder}").parse().expect("a URL");
        let (name, progress) = (folder.parse().expect("a name"), ListProgress::default());
        let registered = self.agent.register_for(&name, &origin, readers, &progress);
        block_on(registered).expect("registered")
    }

    pub(crate) fn open_named(&self, name: &str) -> Arc<OpenVersion> {
        let name = name.parse().expect("a name");
        block_on(self.agent.open(&name, None)).expect("the dataset opens")
    }

    pub(crate) fn open(&self) -> Arc<OpenVersion> {
        block_on(self.agent.open(&name(), None)).expect("the dataset opens")
    }

    /// Ends the node as a crash of its process would be seen by others; its directory stays, and is
    /// free for the next unless something has the node's versions open.
    pub(crate) fn stop(self) {
        lock(&self.town.agents).remove(&self.name);
        drop(self.agent);
        for directory in self.cache_dirs {
            let file = std::fs::File::open(directory.join("lock"));
            wait_until_unlocked(file.expect("the node had made it"));
        }
    }
}

/// A node's own threads may be in the middle of something.
fn wait_until_unlocked(mut file: std::fs::File) {
    for _ in 0..500 {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_free) => return,
            Err((taken, _)) => file = taken,
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Reads a whole file.
pub(crate) fn read_file(version: &OpenVersion, path: &[u8]) -> Result<Vec<u8>, ReadError> {
    let entry = version.manifest().find(path).expect("listed");
    let mut file = Vec::new();
    loop {
        let bytes = block_on(version.read(entry, file.len() as u64, 1 << 20))?;
        if bytes.is_empty() {
            return Ok(file);
        }
        file.extend_from_slice(&bytes);
    }
}

/// Reads every file and compares it with the origin's.
pub(crate) fn assert_all_right(version: &OpenVersion, files: &Files) {
    for (path, expected) in files {
        let shown = String::from_utf8_lossy(path);
        let found = read_file(version, path).unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert!(found == *expected, "{shown} is not what the origin has");
    }
    let listed = version.manifest().entries();
    let listed = listed
        .filter(|entry| matches!(entry.kind, EntryKind::File { .. }))
        .count();
    assert_eq!(listed, files.len());
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All files below a directory.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files.extend(files_below(&path))
        } else {
            files.push(path)
        }
    }
    files
}
