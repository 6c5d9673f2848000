//! How fast chunks of 4 MiB come from a peer over loopback TCP, or over verbs on the devices named:
//! `cargo run --release -p trackbed-rdma --example fabric_speed [seconds [client's device [server's
//! device]]]`. The server serves the same slot's bytes as they are, so that only the fabric is measured.

use std::error::Error;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use futures::future::join_all;
use trackbed_rdma::fabric::{
    ChunkRequest, ChunkSource, Fabric, FabricConfig, FetchError, Payload, Refusal,
};
use trackbed_rdma::shard::{Shard, ShardConfig};
use trackbed_rdma::slab::{PAGE_BYTES, Slab};

const CHUNK_BYTES: usize = 4 << 20;

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

fn node(name: &str, slots: usize, device: Option<String>) -> Result<Fabric, Box<dyn Error>> {
    let slab = Slab::new(name, CHUNK_BYTES + PAGE_BYTES, slots)?;
    let shard = Shard::start(ShardConfig::new(name, Arc::clone(&slab)))?;
    let config = match device {
        Some(device) => FabricConfig::verbs(Some(device)),
        None => FabricConfig::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
    };
    Ok(Fabric::new(config, shard, Arc::new(Anything(slab)))?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds: u64 = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let device = arguments.next();
    let other = arguments.next().or_else(|| device.clone());
    let (client, server) = (node("client", 1, device)?, node("server", 8, other)?);
    let link = block_on(async {
        let pending = client.offer("server").await?;
        let answer = server.accept("client", pending.offer_bytes()).await?;
        client.complete(pending, &answer).await
    })?;
    let start = Instant::now();
    let end = start + Duration::from_secs(seconds);
    // Eight askers, each with one chunk under way.
    let fetched = block_on(join_all((0..8).map(|asker| {
        let link = link.clone();
        async move {
            let mut count = 0u64;
            while Instant::now() < end {
                let request = ChunkRequest {
                    version: [0; 32],
                    chunk: asker,
                    flags: 0,
                };
                link.fetch(request).await?;
                count += 1;
            }
            Ok::<u64, FetchError>(count)
        }
    })));
    let chunks = fetched.into_iter().sum::<Result<u64, FetchError>>()?;
    let taken = start.elapsed().as_secs_f64();
    let rate = chunks as f64 * CHUNK_BYTES as f64 / taken / 1e9;
    println!("{chunks} chunks of 4 MiB in {taken:.2} s: {rate:.2} GB/s");
    println!("{:?}", client.counters());
    Ok(())
}
