//! Four nodes that read a shared dataset for two epochs: through Trackbed, beside each of them over its
//! own mount of NFS over RDMA.
//!
//! Each node is a network namespace with a soft-RoCE device, all joined by a switch; a fifth is the NFS
//! server, the kernel's own. The dataset lies on one disk, and all of it goes over that server on both
//! sides: what the peer reads there twice on each node, Trackbed's owners read there as their origin
//! (`file://`, the NFS mount of their own node) and hand to each other over verbs. The nodes' caches lie
//! on the same disk as the dataset.
//!
//! The clock runs from the first call, when page caches are empty, no node has anything and every node
//! has the share mounted, to the last byte of the second epoch. So ours includes listing the dataset,
//! mounting it and filling the cold caches. Between the epochs all that was written goes to the disk
//! and the page caches of clients and server are dropped, on the clock too. The readers are the
//! same on both sides: on each node a process of its own, a data loader of two workers, which reads
//! every file once an epoch in an order of its own and compares its checksum.

mod reader;
mod server;
mod tree;

use std::{
    cell::RefCell,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Instant,
};

use futures::future::{join_all, try_join_all};
use trackbed_tests::cluster::Cluster;

use self::{reader::Readers, server::Server};
use super::{Settings, drop_caches, refused};
use crate::{
    BenchError, dataset, paired::Better, row::Case, session::Session, soft_roce::SoftRoce,
};

pub use self::reader::{ReadOptions, answer};

/// The name of the row.
pub(super) const NAME: &str = "nfs-rdma/shared";
/// The ratio wanted.
const GOAL: f64 = 1.5;
/// Nodes that read; the server is one more.
const NODES: usize = 4;
/// How often each node reads all of it.
const EPOCHS: u64 = 2;
/// The dataset's name.
const DATASET: &str = "shared";
/// A small dataset that makes the nodes meet, as their NFS mounts have met the server.
const GREETING: &str = "greeting";
/// Its files: enough for each node to want something of each other.
const GREETINGS: usize = 16;
/// Bytes of each: the least that is not packed with others into one chunk.
const GREETING_BYTES: u64 = 1 << 20;
/// The disk: in the virtual machine a fresh one.
const DISK: &str = "/var/lib/trackbed";
/// No peer dies, but an emulated machine is slow.
const PEER_TIMEOUT_SECONDS: u16 = 60;

/// Measures the row.
pub(super) fn measure(session: &mut Session<'_>, settings: &Settings) -> Result<(), BenchError> {
    let folder = tempfile::Builder::new()
        .prefix("nfs")
        .tempdir_in(DISK)
        .map_err(BenchError::io(format!("making a folder on {DISK}")))?;
    let [export, mount, greeting] =
        ["export", "mount", GREETING].map(|name| folder.path().join(name));
    for each in [&export, &mount, &greeting] {
        std::fs::create_dir(each).map_err(BenchError::io("making a folder"))?;
    }
    dataset::write_large(&greeting, GREETINGS, GREETING_BYTES)?;
    let tree = tree::write(&export)?;
    eprintln!(
        "{NAME}: {} files, {:.1} MB; {NODES} nodes, {EPOCHS} epochs",
        tree.files.len(),
        megabytes(tree.bytes())
    );
    let network = SoftRoce::switched(NODES + 1)?;
    let server = Server::start(&network.ends[NODES], &export)?;
    let mut readers = Readers::start(&network.ends[..NODES], &tree, folder.path())?;
    readers.mount(server.address(), &mount)?;
    // The server holds off the first open until its grace period is over, and what is read first is
    // slow in every way: that is nobody's time.
    readers.read(0, &vec![mount.clone(); NODES])?;
    let scene = Scene {
        settings,
        network: &network,
        folder: folder.path(),
        mount: &mount,
        greeting: &greeting,
        bytes: tree.bytes(),
        readers: RefCell::new(readers),
    };
    let case = Case {
        bench: "cache",
        name: NAME.to_owned(),
        peer_name: "NFS over RDMA",
        unit: "s",
        better: Better::Lower,
        goal: GOAL,
    };
    session.measure(&case, settings.pairs, &mut || scene.ours(), &mut || {
        scene.theirs()
    });
    Ok(())
}

/// All that the runs need.
struct Scene<'a> {
    settings: &'a Settings,
    network: &'a SoftRoce,
    folder: &'a Path,
    /// Where each node, in its own mount namespace, has the share.
    mount: &'a Path,
    /// Where the greeting lies, on every node.
    greeting: &'a Path,
    bytes: u64,
    readers: RefCell<Readers>,
}

impl Scene<'_> {
    /// Seconds of both epochs over the nodes' NFS mounts.
    fn theirs(&self) -> Result<f64, BenchError> {
        empty_caches()?;
        let start = Instant::now();
        let roots = vec![self.mount.to_owned(); NODES];
        let laps = self.epochs(&roots, start)?;
        told("NFS over RDMA", &laps);
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds from registering the dataset to the end of both epochs through nodes that had nothing.
    fn ours(&self) -> Result<f64, BenchError> {
        let runtime = &self.settings.runtime;
        let cluster = runtime.block_on(self.nodes())?;
        let before = runtime.block_on(moved(&cluster))?;
        empty_caches()?;
        let start = Instant::now();
        let roots = runtime
            .block_on(async {
                let origin = format!("file://{}", self.mount.display());
                cluster.nodes[0].register(DATASET, &origin).await?;
                try_join_all(cluster.nodes.iter().map(|node| node.mount(DATASET))).await
            })
            .map_err(refused)?;
        let mounted = start.elapsed().as_secs_f64();
        let mut laps = vec![mounted];
        laps.extend(self.epochs(&roots, start)?);
        let seconds = start.elapsed().as_secs_f64();
        told("Trackbed", &laps);
        let after = runtime.block_on(moved(&cluster))?;
        eprintln!(
            "{NAME}: of {:.1} MB, {:.1} MB came from the share and {:.1} MB from peers",
            megabytes(self.bytes),
            megabytes(after.origin - before.origin),
            megabytes(after.peers - before.peers),
        );
        runtime
            .block_on(try_join_all(
                cluster.nodes.iter().map(|node| node.unmount(DATASET)),
            ))
            .map_err(refused)?;
        Ok(seconds)
    }

    /// Reads all epochs; the seconds at the end of each.
    fn epochs(&self, roots: &[PathBuf], start: Instant) -> Result<Vec<f64>, BenchError> {
        let mut readers = self.readers.borrow_mut();
        let mut laps = Vec::new();
        for epoch in 0..EPOCHS {
            if epoch > 0 {
                empty_caches()?;
                laps.push(start.elapsed().as_secs_f64());
            }
            readers.read(epoch, roots)?;
            laps.push(start.elapsed().as_secs_f64());
        }
        Ok(laps)
    }

    /// Starts nodes that have nothing, each where its reader is.
    async fn nodes(&self) -> Result<Cluster, BenchError> {
        let addresses = self.network.ends[..NODES].iter().map(|end| {
            let parsed: Result<Ipv4Addr, _> = end.address.parse();
            parsed.expect("it was made from numbers")
        });
        let addresses: Vec<_> = addresses.collect();
        let started = BenchError::io("starting nodes");
        let prepared = Cluster::prepare_at(self.folder, &addresses, "verbs");
        let mut cluster = match prepared {
            Ok(cluster) => cluster,
            Err(error) => return Err(started(error)),
        };
        for (index, node) in cluster.nodes.iter_mut().enumerate() {
            node.flag("--rdma-device", &self.network.ends[index].device);
            node.flag("--peer-timeout", PEER_TIMEOUT_SECONDS);
            let enter = self.readers.borrow().enter(index);
            let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
            node.prefix(&enter);
        }
        let all = join_all(cluster.nodes.iter_mut().map(|node| node.start())).await;
        let all: std::io::Result<()> = all.into_iter().collect();
        all.map_err(started)?;
        let origin = format!("file://{}", self.greeting.display());
        let met = async {
            cluster.nodes[0].register(GREETING, &origin).await?;
            try_join_all(cluster.nodes.iter().map(|node| node.warm(GREETING))).await
        };
        met.await.map_err(refused)?;
        Ok(cluster)
    }
}

/// Bytes that all nodes together have read.
struct Moved {
    origin: u64,
    peers: u64,
}

/// What the nodes have moved so far, which must be over verbs: else it is not what this case is about.
async fn moved(cluster: &Cluster) -> Result<Moved, BenchError> {
    let (mut origin, mut peers) = (0, 0);
    for node in &cluster.nodes {
        let counters = node.counters().await.map_err(refused)?;
        origin += counters.origin_bytes;
        peers += counters.peer_bytes;
        let fabric = counters
            .fabric
            .map(|fabric| fabric.kind)
            .unwrap_or_default();
        if fabric != "verbs" {
            return Err(BenchError::Unavailable(format!(
                "{} talks to peers over {fabric:?} and not over verbs",
                node.name
            )));
        }
    }
    Ok(Moved { origin, peers })
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn told(who: &str, laps: &[f64]) {
    let laps: Vec<String> = laps.iter().map(|lap| format!("{lap:.1}")).collect();
    eprintln!("{NAME}: {who}: seconds by then {}", laps.join(", "));
}

/// Has all that was written on the disk, and nothing of it in memory.
fn empty_caches() -> Result<(), BenchError> {
    nix::unistd::sync();
    drop_caches()
}
