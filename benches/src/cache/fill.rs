//! How fast a cold node is filled: from a peer, beside what the fabric alone moves, and from an S3
//! bucket, beside the origin's client alone.
//!
//! Ours warms a dataset of a few large files on a node that has nothing yet; it ends with all of it
//! verified and written to the node's disk. The peer moves the same bytes from memory to memory and does
//! nothing else with them. Both nodes' disks are one here, and slower than the fabric: where there is
//! memory for it (`/dev/shm`), the caches lie there.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
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
    slab::{PAGE_BYTES, Slab},
};
use trackbed_tests::{cluster::Cluster, node::Node, seaweedfs::SeaweedFs};

use super::{Settings, files_below, refused, s3};
use crate::{BenchError, dataset, paired::Better, row::Case, session::Session};

/// The names of the rows.
pub(super) const NAMES: [&str; 2] = ["fill/peer", "fill/origin"];
/// The ratio wanted.
const GOAL: f64 = 0.9;
/// Files of the dataset.
const FILES: usize = 4;
/// Bytes of each.
const FILE_BYTES: u64 = 128 << 20;
/// Bytes of the whole.
const BYTES: u64 = FILES as u64 * FILE_BYTES;
/// Bytes of a chunk.
const CHUNK_BYTES: usize = 4 << 20;
/// Chunks under way at a time, where a client is measured alone.
const AT_A_TIME: usize = 8;
/// A file system in memory.
const MEMORY: &str = "/dev/shm";
/// The dataset, and the bucket it is in.
const BUCKET: &str = "fill";

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
    dataset::write_large(folder.path(), FILES, FILE_BYTES)?;
    let [peer, origin] = NAMES.map(|name| wanted.iter().any(|each| each == name));
    if peer {
        session.measure(
            &case(NAMES[0], "fabric"),
            settings.pairs,
            &mut || from_peer(settings, folder.path()),
            &mut || fabric_alone(settings),
        );
    }
    if origin {
        let server = settings.runtime.block_on(async {
            let server = s3::server().await?;
            let objects = files_below(folder.path())?
                .into_iter()
                .map(|path| s3::object(folder.path(), &path));
            let objects = objects.collect::<Result<Vec<_>, _>>()?;
            let put = server.put(BUCKET, objects).await;
            put.map_err(BenchError::io("putting the dataset into a bucket"))?;
            Ok::<_, BenchError>(server)
        })?;
        session.measure(
            &case(NAMES[1], "origin client"),
            settings.pairs,
            &mut || from_origin(settings, &server),
            &mut || settings.runtime.block_on(client_alone(&server)),
        );
    }
    Ok(())
}

/// Two nodes, the first of which has all of the dataset: how fast the second gets it. MB/s.
fn from_peer(settings: &Settings, folder: &Path) -> Result<f64, BenchError> {
    settings.runtime.block_on(async {
        let cluster = nodes(2).await?;
        let [full, cold] = [&cluster.nodes[0], &cluster.nodes[1]];
        let origin = format!("file://{}", folder.display());
        full.register(BUCKET, &origin).await.map_err(refused)?;
        full.warm(BUCKET).await.map_err(refused)?;
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
fn from_origin(settings: &Settings, server: &SeaweedFs) -> Result<f64, BenchError> {
    settings.runtime.block_on(async {
        let cluster = nodes(1).await?;
        let node = &cluster.nodes[0];
        let origin = s3::url(server, BUCKET);
        node.register(BUCKET, &origin).await.map_err(refused)?;
        filled(node).await
    })
}

/// Nodes with their caches in memory where there is room for them.
async fn nodes(count: usize) -> Result<Cluster, BenchError> {
    let room = nix::sys::statvfs::statvfs(MEMORY).is_ok_and(|memory| {
        memory.blocks_available() * memory.fragment_size() > 2 * count as u64 * BYTES
    });
    let folder = if room {
        MEMORY.into()
    } else {
        std::env::temp_dir()
    };
    Cluster::start_in(&folder, count)
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

/// Hands out slots with whatever is in them.
struct Anything(Arc<Slab>);

impl ChunkSource for Anything {
    fn serve(
        &self,
        _peer: &str,
        _request: ChunkRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Payload, Refusal>> + Send>> {
        let slab = Arc::clone(&self.0);
        Box::pin(async move {
            Ok(Payload {
                lease: slab.lease().await,
                len: CHUNK_BYTES as u32,
            })
        })
    }
}

/// The fabric between two shards of this process, over TCP as between the nodes. MB/s.
fn fabric_alone(settings: &Settings) -> Result<f64, BenchError> {
    let unavailable = |error: &dyn std::error::Error| BenchError::Unavailable(error.to_string());
    let end = |name: &str, slots| -> Result<Fabric, BenchError> {
        let slab = Slab::new(name, CHUNK_BYTES + PAGE_BYTES, slots).map_err(|e| unavailable(&e))?;
        let shard =
            Shard::start(ShardConfig::new(name, slab.clone())).map_err(|e| unavailable(&e))?;
        let config = FabricConfig::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        Fabric::new(config, shard, Arc::new(Anything(slab))).map_err(|e| unavailable(&e))
    };
    let (client, server) = (end("client", 1)?, end("server", AT_A_TIME)?);
    settings.runtime.block_on(async {
        let connected = async {
            let pending = client.offer("server").await?;
            let answer = server.accept("client", pending.offer_bytes()).await?;
            client.complete(pending, &answer).await
        };
        let link = connected.await.map_err(|e| unavailable(&e))?;
        let start = Instant::now();
        let chunks = (BYTES / CHUNK_BYTES as u64) as u32;
        let fetched = join_all((0..AT_A_TIME as u32).map(|asker| {
            let link = link.clone();
            async move {
                for chunk in (asker..chunks).step_by(AT_A_TIME) {
                    let request = ChunkRequest {
                        version: [0; 32],
                        chunk,
                        flags: 0,
                    };
                    link.fetch(request).await?;
                }
                Ok::<(), FetchError>(())
            }
        }))
        .await;
        let all: Result<(), FetchError> = fetched.into_iter().collect();
        all.map_err(|error| unavailable(&error))?;
        Ok(BYTES as f64 / 1e6 / start.elapsed().as_secs_f64())
    })
}

/// The origin's client by itself: every chunk of every object into memory. MB/s.
async fn client_alone(server: &SeaweedFs) -> Result<f64, BenchError> {
    let failed = |error: OriginError| BenchError::Unavailable(error.to_string());
    let url: OriginUrl = s3::url(server, BUCKET).parse().map_err(failed)?;
    let origin = Origins::default().open(&url).await.map_err(failed)?;
    let listing = origin
        .list(&ListProgress::default())
        .await
        .map_err(failed)?;
    let listed: Vec<ListedEntry> = listing.entries().collect();
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
    let read: u64 = stream::iter(pieces)
        .map(|(entry, offset)| {
            let origin = Arc::clone(&origin);
            async move {
                let ListedKind::File { size, identity } = &entry.kind else {
                    return Ok(0);
                };
                let object = ObjectRef {
                    path: &entry.path,
                    size: *size,
                    identity,
                };
                let mut into = vec![0; CHUNK_BYTES.min((size - offset) as usize)];
                origin.read(object, offset, &mut into).await?;
                Ok(into.len() as u64)
            }
        })
        .buffer_unordered(AT_A_TIME)
        .try_fold(0, |all, some| async move { Ok(all + some) })
        .await
        .map_err(failed)?;
    Ok(read as f64 / 1e6 / start.elapsed().as_secs_f64())
}
