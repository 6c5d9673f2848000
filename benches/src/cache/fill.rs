//! How fast a cold node is filled: from a peer, beside what the fabric alone moves, and from an S3
//! bucket, beside the origin's client alone.
//!
//! Ours warms a dataset of a few large files on a node that has nothing of it yet, and ends with all of
//! it verified and written to the node's disk. What it is compared with moves the same bytes from memory
//! to memory, and in two further rows between files on the same disk; it does nothing else with them.
//! Both nodes' disks are one here, and slower than the fabric: where there is memory for it
//! (`/dev/shm`), the caches lie there. That is copied to and from by the processors that the fabric
//! needs too, which no real disk asks for.

use std::{
    fs::File,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Instant,
};

use futures::{StreamExt, TryStreamExt, future::join_all, stream};
use trackbed_cache::origin::{
    ListProgress, ListedEntry, ListedKind, ObjectRef, OpenOrigin, OriginError, OriginUrl, Origins,
};
use trackbed_rdma::{
    fabric::{ChunkRequest, ChunkSource, Fabric, FabricConfig, FetchError, Payload, Refusal},
    shard::{Shard, ShardConfig},
    slab::{Lease, PAGE_BYTES, Slab},
};
use trackbed_tests::{cluster::Cluster, node::Node, rclone::RcloneS3};

use super::{Settings, memory_or_disk, refused, s3};
use crate::{BenchError, dataset, paired::Better, row::Case, session::Session};

/// The names of the rows.
pub(super) const NAMES: [&str; 4] = [
    "fill/peer",
    "fill/origin",
    "fill/peer-disks",
    "fill/origin-disks",
];
/// The ratio wanted.
const GOAL: f64 = 0.9;
/// Files of the dataset.
const FILES: usize = 4;
/// Bytes of each.
const FILE_BYTES: u64 = 256 << 20;
/// Bytes of the whole.
const BYTES: u64 = FILES as u64 * FILE_BYTES;
/// Bytes of a chunk.
const CHUNK_BYTES: usize = 4 << 20;
/// Chunks of the whole.
const CHUNKS: u32 = (BYTES / CHUNK_BYTES as u64) as u32;
/// Chunks under way at a time, where a client is measured alone.
const AT_A_TIME: usize = 8;
/// The dataset, and the bucket it is in.
const BUCKET: &str = "fill";
/// A small dataset that makes two nodes meet.
const GREETING: &str = "greeting";
/// Its files, of a chunk each: some are the other node's to bring.
const GREETINGS: usize = 12;

/// Where the comparison's bytes come from and go to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Between {
    /// Disks, as a node's.
    Disks,
    /// Memory.
    Memory,
}

/// Measures those that are wanted.
pub(super) fn measure(
    session: &mut Session<'_>,
    settings: &Settings,
    wanted: &[String],
) -> Result<(), BenchError> {
    let case = |name: &str, peer_name| Case {
        bench: "cache",
        name: name.to_owned(),
        peer_name,
        unit: "MB/s",
        better: Better::Higher,
        goal: GOAL,
    };
    let folder = tempfile::tempdir().map_err(BenchError::io("making a folder"))?;
    let [data, greeting] = ["data", "greeting"].map(|name| folder.path().join(name));
    for each in [&data, &greeting] {
        std::fs::create_dir(each).map_err(BenchError::io("making a folder"))?;
    }
    dataset::write_large(&data, FILES, FILE_BYTES)?;
    dataset::write_large(&greeting, GREETINGS, 1 << 20)?;
    let is_wanted = |name: &str| wanted.iter().any(|each| each == name);
    for (name, peer_name, between) in [
        (NAMES[0], "fabric", Between::Memory),
        (NAMES[2], "fabric and disks", Between::Disks),
    ] {
        if is_wanted(name) {
            session.measure(
                &case(name, peer_name),
                settings.pairs,
                &mut || from_peer(settings, &data, &greeting),
                &mut || fabric_alone(settings, between),
            );
        }
    }
    if !(is_wanted(NAMES[1]) || is_wanted(NAMES[3])) {
        return Ok(());
    }
    let server = s3::server(&[BUCKET])?;
    dataset::write_large(&server.bucket(BUCKET), FILES, FILE_BYTES)?;
    for (name, peer_name, between) in [
        (NAMES[1], "origin client", Between::Memory),
        (NAMES[3], "origin client and disk", Between::Disks),
    ] {
        if is_wanted(name) {
            session.measure(
                &case(name, peer_name),
                settings.pairs,
                &mut || from_origin(settings, &server),
                &mut || settings.runtime.block_on(client_alone(&server, between)),
            );
        }
    }
    Ok(())
}

/// Two nodes, the first of which has all of the dataset: how fast the second gets it. MB/s.
fn from_peer(settings: &Settings, data: &Path, greeting: &Path) -> Result<f64, BenchError> {
    settings.runtime.block_on(async {
        let cluster = nodes(2).await?;
        let [full, cold] = [&cluster.nodes[0], &cluster.nodes[1]];
        for (name, folder) in [(BUCKET, data), (GREETING, greeting)] {
            let origin = format!("file://{}", folder.display());
            full.register(name, &origin).await.map_err(refused)?;
            full.warm(name).await.map_err(refused)?;
        }
        // Meeting a peer is done once; the fabric alone is measured after it has met its own.
        cold.warm(GREETING).await.map_err(refused)?;
        let before = cluster.origin_bytes().await;
        let rate = filled(cold).await?;
        let more = cluster.origin_bytes().await - before;
        if more > 0 {
            return Err(BenchError::Unavailable(format!(
                "{more} bytes came from the origin and not from the peer"
            )));
        }
        Ok(rate)
    })
}

/// One node that has nothing: how fast it gets the dataset from a bucket. MB/s.
fn from_origin(settings: &Settings, server: &RcloneS3) -> Result<f64, BenchError> {
    settings.runtime.block_on(async {
        let cluster = nodes(1).await?;
        let node = &cluster.nodes[0];
        let origin = s3::url(server, BUCKET);
        node.register(BUCKET, &origin).await.map_err(refused)?;
        filled(node).await
    })
}

/// Where caches lie: in memory if there is room for so many of them.
fn place(count: usize) -> PathBuf {
    memory_or_disk(2 * count as u64 * BYTES)
}

/// Nodes with their caches there.
async fn nodes(count: usize) -> Result<Cluster, BenchError> {
    Cluster::start_in(&place(count), count)
        .await
        .map_err(BenchError::io("starting nodes"))
}

/// Brings all of the dataset to the node.
async fn filled(node: &Node) -> Result<f64, BenchError> {
    let start = Instant::now();
    node.warm(BUCKET).await.map_err(refused)?;
    let seconds = start.elapsed().as_secs_f64();
    let held = node.status(BUCKET).await.map_err(refused)?.bytes_present;
    if held != BYTES {
        return Err(BenchError::Unavailable(format!(
            "the node has {held} bytes of {BYTES}"
        )));
    }
    Ok(BYTES as f64 / 1e6 / seconds)
}

/// A file of the dataset's size on the disk that the caches lie on, past the page cache as theirs are.
fn disk(folder: &Path, name: &str) -> Result<Arc<File>, BenchError> {
    let path = folder.join(name);
    let open = |flags| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        options.custom_flags(flags).open(&path)
    };
    let file = match open(nix::fcntl::OFlag::O_DIRECT.bits()) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => open(0),
        opened => opened,
    };
    let file = file.and_then(|file| file.set_len(BYTES).map(|()| file));
    let attempt = || BenchError::io(format!("making {}", path.display()));
    Ok(Arc::new(file.map_err(attempt())?))
}

/// Hands out slots with what a file has, or with whatever is in them.
struct Anything {
    slab: Arc<Slab>,
    from: Option<(Shard, Arc<File>)>,
}

impl ChunkSource for Anything {
    fn serve(
        &self,
        _peer: &str,
        request: ChunkRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Payload, Refusal>> + Send>> {
        let (slab, from) = (Arc::clone(&self.slab), self.from.clone());
        Box::pin(async move {
            let mut lease = slab.lease().await;
            if let Some((shard, file)) = from {
                let offset = u64::from(request.chunk) * CHUNK_BYTES as u64;
                let (read, count) = shard.read_at(file, offset, lease, 0, CHUNK_BYTES).await;
                count.map_err(|_| Refusal::Failed)?;
                lease = read;
            }
            let len = CHUNK_BYTES as u32;
            Ok(Payload { lease, len })
        })
    }
}

/// The fabric between two shards of this process, over TCP as between the nodes. MB/s.
fn fabric_alone(settings: &Settings, between: Between) -> Result<f64, BenchError> {
    let unavailable = |error: &dyn std::error::Error| BenchError::Unavailable(error.to_string());
    let folder = tempfile::tempdir_in(place(2)).map_err(BenchError::io("making a folder"))?;
    let files = match between {
        Between::Memory => None,
        Between::Disks => Some((disk(folder.path(), "from")?, disk(folder.path(), "to")?)),
    };
    let end = |name: &str, slots, from: Option<Arc<File>>| -> Result<(Fabric, Shard), BenchError> {
        let slab = Slab::new(name, CHUNK_BYTES + PAGE_BYTES, slots).map_err(|e| unavailable(&e))?;
        let shard =
            Shard::start(ShardConfig::new(name, slab.clone())).map_err(|e| unavailable(&e))?;
        let config = FabricConfig::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let from = from.map(|file| (shard.clone(), file));
        let source = Arc::new(Anything { slab, from });
        let fabric = Fabric::new(config, shard.clone(), source).map_err(|e| unavailable(&e))?;
        Ok((fabric, shard))
    };
    let (from, to) = files.unzip();
    let (server, shard) = end("server", AT_A_TIME, from.clone())?;
    if let Some(from) = from {
        settings.runtime.block_on(fill_file(&shard, &from))?;
    }
    let (client, shard) = end("client", 1, None)?;
    settings.runtime.block_on(async {
        let connected = async {
            let pending = client.offer("server").await?;
            let answer = server.accept("client", pending.offer_bytes()).await?;
            client.complete(pending, &answer).await
        };
        let link = connected.await.map_err(|e| unavailable(&e))?;
        let start = Instant::now();
        // On the shard, where a node's fills run too.
        let on_shard = shard.clone();
        let fetched = shard.on_shard(move || {
            join_all((0..2 * AT_A_TIME as u32).map(move |asker| {
                let (link, shard, to) = (link.clone(), on_shard.clone(), to.clone());
                async move {
                    for chunk in (asker..CHUNKS).step_by(2 * AT_A_TIME) {
                        let request = ChunkRequest {
                            version: [0; 32],
                            chunk,
                            flags: 0,
                        };
                        let payload = link.fetch(request).await;
                        let payload = payload.map_err(|error: FetchError| {
                            BenchError::Unavailable(error.to_string())
                        })?;
                        if let Some(to) = &to {
                            write_chunk(&shard, to, chunk, payload.lease).await?;
                        }
                    }
                    Ok::<(), BenchError>(())
                }
            }))
        });
        let all: Result<(), BenchError> = fetched.await.into_iter().collect();
        all?;
        Ok(BYTES as f64 / 1e6 / start.elapsed().as_secs_f64())
    })
}

async fn write_chunk(
    shard: &Shard,
    file: &Arc<File>,
    chunk: u32,
    lease: Lease,
) -> Result<(), BenchError> {
    let offset = u64::from(chunk) * CHUNK_BYTES as u64;
    let (_lease, written) = shard
        .write_at(Arc::clone(file), offset, lease, 0, CHUNK_BYTES)
        .await;
    written.map_err(BenchError::io("writing a chunk"))
}

/// Gives all of a file a place on its disk.
async fn fill_file(shard: &Shard, file: &Arc<File>) -> Result<(), BenchError> {
    for chunk in 0..CHUNKS {
        let lease = shard.slab().lease().await;
        write_chunk(shard, file, chunk, lease).await?;
    }
    Ok(())
}

/// The origin's client by itself: every chunk of every object into memory, and to a file. MB/s.
async fn client_alone(server: &RcloneS3, between: Between) -> Result<f64, BenchError> {
    let failed = |error: OriginError| BenchError::Unavailable(error.to_string());
    let url: OriginUrl = s3::url(server, BUCKET).parse().map_err(failed)?;
    let origin = Origins::default().open(&url).await.map_err(failed)?;
    let listing = origin
        .list(&ListProgress::default())
        .await
        .map_err(failed)?;
    let listed: Vec<ListedEntry> = listing.entries().collect();
    let folder = tempfile::tempdir_in(place(1)).map_err(BenchError::io("making a folder"))?;
    let to = match between {
        Between::Disks => Some(disk(folder.path(), "to")?),
        Between::Memory => None,
    };
    // Memory as a node has it: taken once, and touched.
    let slab = Slab::new("client", CHUNK_BYTES, 2 * AT_A_TIME)
        .map_err(|error| BenchError::Unavailable(error.to_string()))?;
    let shard = Shard::start(ShardConfig::new("client", Arc::clone(&slab)))
        .map_err(|error| BenchError::Unavailable(error.to_string()))?;
    let start = Instant::now();
    let pieces = listed.iter().flat_map(|entry| {
        let size = match entry.kind {
            ListedKind::File { size, .. } => size,
            ListedKind::Directory | ListedKind::Symlink { .. } => 0,
        };
        (0..size)
            .step_by(CHUNK_BYTES)
            .map(move |offset| (entry, offset))
    });
    let read: u64 = stream::iter((0..).zip(pieces))
        .map(|(chunk, (entry, offset))| {
            let (origin, slab, shard, to) = (&origin, &slab, &shard, &to);
            async move {
                let ListedKind::File { size, identity } = &entry.kind else {
                    return Ok(0);
                };
                let object = ObjectRef {
                    path: &entry.path,
                    size: *size,
                    identity,
                };
                let mut lease = slab.lease().await;
                let len = CHUNK_BYTES.min((size - offset) as usize);
                let into = &mut lease[..len];
                origin.read(object, offset, into).await.map_err(failed)?;
                if let Some(to) = to {
                    write_chunk(shard, to, chunk, lease).await?;
                }
                Ok::<u64, BenchError>(len as u64)
            }
        })
        .buffer_unordered(2 * AT_A_TIME)
        .try_fold(0, |all, some| async move { Ok(all + some) })
        .await?;
    Ok(read as f64 / 1e6 / start.elapsed().as_secs_f64())
}
