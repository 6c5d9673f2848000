//! Our side: reads on a shard's thread.

use std::{fs::File, path::Path, sync::Arc};

use futures::executor::block_on;
use trackbed_rdma::{
    shard::{Reads, Shard, ShardConfig},
    slab::{Lease, Slab},
};

use super::{BLOCK, Blocks, DEPTH, Places, open, short};
use crate::PeersError;

/// A shard with its buffers registered.
pub struct Ours {
    shard: Shard,
    file: Arc<File>,
    places: Places,
}

impl Ours {
    /// Starts a shard for reads of this file.
    pub fn open(path: &Path) -> Result<Self, PeersError> {
        let (file, blocks) = open(path)?;
        let slab = Slab::new("bench", BLOCK, DEPTH.into())
            .map_err(PeersError::of("mapping buffers of ours"))?;
        let shard = Shard::start(ShardConfig::new("bench", slab))
            .map_err(PeersError::of("starting a shard of ours"))?;
        Ok(Self {
            shard,
            file: Arc::new(file),
            places: Places::of(blocks),
        })
    }
}

impl Blocks for Ours {
    fn read(&mut self, count: u64) -> Result<(), PeersError> {
        let slab = self.shard.slab();
        let leases: Vec<Lease> = std::iter::from_fn(|| slab.try_lease()).collect();
        let (file, places) = (Arc::clone(&self.file), self.places.clone());
        self.places = block_on(self.shard.with_reads(file, DEPTH, move |reads| {
            read_on(reads, leases, places, count)
        }))?;
        Ok(())
    }
}

/// Reads so many blocks; where it would have gone on.
async fn read_on(
    mut reads: Reads,
    leases: Vec<Lease>,
    mut places: Places,
    count: u64,
) -> Result<Places, PeersError> {
    let mut left = count;
    for lease in leases {
        if left == 0 {
            break;
        }
        left -= 1;
        reads
            .push(places.next(), lease, 0, BLOCK)
            .map_err(PeersError::of("beginning a read of ours"))?;
    }
    let mut failed = None;
    loop {
        reads.ended().await;
        let ended = reads.read_on(|_, outcome| {
            match outcome {
                Ok(bytes) if bytes.len() == BLOCK => {}
                Ok(bytes) => failed = Some(short(bytes.len())),
                Err(error) => failed = Some(PeersError::of("a read of ours")(error)),
            }
            if left == 0 || failed.is_some() {
                return None;
            }
            left -= 1;
            Some(places.next())
        });
        if ended == 0 {
            break;
        }
    }
    failed.map_or(Ok(places), Err)
}
