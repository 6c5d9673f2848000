//! Much data, made cheaply and compared byte by byte; and a node that fetches it whatever happens.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::executor::block_on;
use futures::future::join_all;
use futures::lock::Mutex;
use trackbed_rdma::fabric::{
    ChunkRequest, ChunkSource, Fabric, FabricConfig, FabricError, FetchError, Payload, PeerLink,
    Refusal, TRAILER_BYTES, trailer_at,
};
use trackbed_rdma::shard::{Shard, ShardConfig};
use trackbed_rdma::slab::{PAGE_BYTES, Slab};
use trackbed_rdma::verbs::{Context, Endpoint};

use super::{chunk, roll, wait_until};

/// What chunks are cut from.
static POOL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut word = 7;
    let mut pool = Vec::with_capacity(POOL_BYTES);
    while pool.len() < POOL_BYTES {
        word = roll(word);
        pool.extend(word.to_le_bytes());
    }
    pool
});

const POOL_BYTES: usize = 20 << 20;

/// A chunk's data: of nearly all of a slot, and no two from the same place.
fn data(number: u32, capacity: usize) -> &'static [u8] {
    let len = capacity - number as usize % 5 * 1001;
    let start = (number as usize).wrapping_mul(70_001) % (POOL_BYTES - capacity);
    &POOL[start..start + len]
}

fn trailer(number: u32) -> &'static [u8] {
    let start = (number as usize).wrapping_mul(513) % (POOL_BYTES - TRAILER_BYTES);
    &POOL[start..start + TRAILER_BYTES]
}

/// Whether a payload is that chunk, byte for byte.
pub(crate) fn is_right(number: u32, payload: &Payload) -> bool {
    let capacity = payload.lease.slab().slot_bytes() - PAGE_BYTES;
    payload.data() == data(number, capacity) && payload.trailer() == trailer(number)
}

struct Source(Arc<Slab>);

impl ChunkSource for Source {
    fn serve(
        &self,
        _peer: &str,
        request: ChunkRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Payload, Refusal>> + Send>> {
        let slab = Arc::clone(&self.0);
        Box::pin(async move {
            let mut lease = slab.lease().await;
            let bytes = data(request.chunk, slab.slot_bytes() - PAGE_BYTES);
            lease[..bytes.len()].copy_from_slice(bytes);
            let at = trailer_at(&slab);
            lease[at..at + TRAILER_BYTES].copy_from_slice(trailer(request.chunk));
            Ok(Payload {
                lease,
                len: bytes.len() as u32,
            })
        })
    }
}

/// A node that serves such chunks, and can fetch them.
pub(crate) struct Node {
    pub(crate) shard: Shard,
    pub(crate) fabric: Fabric,
}

impl Node {
    pub(crate) fn new(name: &str, capacity: usize, slots: usize, config: FabricConfig) -> Node {
        Node::with(name, capacity, slots, |shard, source| {
            Fabric::new(config, shard, source)
        })
    }

    pub(crate) fn on_device(
        name: &str,
        capacity: usize,
        slots: usize,
        context: &Arc<Context>,
        config: FabricConfig,
    ) -> Node {
        let context = Arc::clone(context);
        Node::with(name, capacity, slots, |shard, source| {
            Fabric::on_device(context, config, shard, source)
        })
    }

    fn with(
        name: &str,
        capacity: usize,
        slots: usize,
        make: impl FnOnce(Shard, Arc<Source>) -> Result<Fabric, FabricError>,
    ) -> Node {
        let slab = Slab::new(name, capacity + PAGE_BYTES, slots).expect("slab");
        let shard = Shard::start(ShardConfig::new(name, Arc::clone(&slab))).expect("shard");
        let fabric = make(shard.clone(), Arc::new(Source(slab)));
        let fabric = fabric.unwrap_or_else(|error| panic!("{error}"));
        Node { shard, fabric }
    }

    /// A link on which this node asks the other.
    pub(crate) async fn link_to(&self, server: &Node) -> Result<PeerLink, FabricError> {
        Ok(self.meet(server).await?.0)
    }

    /// The same over verbs, with the numbers of our queue pair and of the server's.
    pub(crate) async fn meet(
        &self,
        server: &Node,
    ) -> Result<(PeerLink, Option<(u32, u32)>), FabricError> {
        let pending = self.fabric.offer("server").await?;
        let offer = pending.offer_bytes().to_vec();
        let answer = server.fabric.accept("client", &offer).await?;
        let number = |greeting: &[u8]| Some(Endpoint::decode(&greeting[24..56]).ok()?.qp_number);
        let numbers = number(&offer).zip(number(&answer));
        Ok((self.fabric.complete(pending, &answer).await?, numbers))
    }
}

/// How a soak went.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Bytes that arrived and were compared, each right.
    pub(crate) bytes: u64,
    /// Payloads that arrived altered, and were fetched again.
    pub(crate) altered: u64,
    /// Fetches that ended with their link, and were made again.
    pub(crate) failed: u64,
    /// Links it took.
    pub(crate) links: u64,
}

/// Fetches about that many bytes with many requests under way, meets the server again whenever the link
/// ends, and compares all that arrives. `met` is told of each new link's queue pairs, `progress` how many
/// bytes have arrived.
pub(crate) fn soak(
    client: &Node,
    server: &Node,
    bytes: u64,
    met: impl Fn((u32, u32)),
    progress: impl Fn(u64),
) -> Outcome {
    let (arrived, altered, failed) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let next = Cell::new(0);
    block_on(async {
        let meet = async || {
            for _ in 0..1000 {
                match client.meet(server).await {
                    Ok((link, numbers)) => {
                        numbers.into_iter().for_each(&met);
                        return link;
                    }
                    // The weather may strike a meeting too.
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
            panic!("the two could not meet again");
        };
        let link = Mutex::new((1u64, meet().await));
        let fetcher = async || {
            while arrived.get() < bytes {
                let number = next.replace(next.get() + 1);
                loop {
                    let (generation, current) = {
                        let link = link.lock().await;
                        (link.0, link.1.clone())
                    };
                    match current.fetch(chunk(number)).await {
                        Ok(payload) if is_right(number, &payload) => {
                            arrived.set(arrived.get() + u64::from(payload.len));
                            progress(arrived.get());
                            break;
                        }
                        Ok(_) => altered.set(altered.get() + 1),
                        Err(FetchError::Refused(refusal)) => panic!("chunk {number}: {refusal}"),
                        Err(_) => {
                            failed.set(failed.get() + 1);
                            assert!(!current.is_alive());
                            let mut link = link.lock().await;
                            if link.0 == generation {
                                *link = (generation + 1, meet().await);
                            }
                        }
                    }
                }
            }
        };
        join_all((0..24).map(|_| fetcher())).await;
        let links = link.lock().await.0;
        // Nothing of the server's memory was lost to any of the links.
        drop(link);
        wait_until(|| client.fabric.counters().links_ended == links);
        wait_until(|| server.shard.slab().free_slots() == server.shard.slab().slots());
        Outcome {
            bytes: arrived.get(),
            altered: altered.get(),
            failed: failed.get(),
            links,
        }
    })
}

/// How much a soak moves: a GiB, or what `TRACKBED_SOAK_BYTES` says.
pub(crate) fn soak_bytes(default: u64) -> u64 {
    std::env::var("TRACKBED_SOAK_BYTES")
        .ok()
        .and_then(|bytes| bytes.parse().ok())
        .unwrap_or(default)
}
