//! Reads a chunk from the origin and makes its seal: what an owner does, once for everyone.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, TryStreamExt};
use futures_timer::Delay;
use trackbed_rdma::slab::Lease;

use super::Filler;
use crate::manifest::Extent;
use crate::open::Version;
use crate::origin::{ObjectRef, Origin, OriginError};
use crate::seal::{Seal, put_trailer};

/// Objects of a pack that are read at the same time.
const CONCURRENT_READS: usize = 32;
/// Attempts at one read, the first included.
const ATTEMPTS: u32 = 4;
/// Wait before the second attempt; four times as long before each further one.
const RETRY_WAIT: Duration = Duration::from_millis(50);

impl Filler {
    pub(super) async fn read_origin(
        &self,
        version: &Arc<Version>,
        chunk: u32,
    ) -> Result<(Lease, Arc<Seal>), OriginError> {
        let origin = version.open_origin(&*self.origins).await?;
        let manifest = version.manifest();
        let mut lease = self.slab.lease().await;
        let extents = manifest.extents(chunk);
        {
            let len = manifest.chunk_len(chunk) as usize;
            let mut rest = &mut lease[..len];
            let mut reads = Vec::with_capacity(extents.len());
            for extent in extents {
                let (into, after) = rest.split_at_mut(extent.len as usize);
                rest = after;
                reads.push((extent, into));
            }
            stream::iter(reads.into_iter().map(Ok))
                .try_for_each_concurrent(CONCURRENT_READS, |(extent, into)| {
                    self.read_extent(&*origin, version, extent, into)
                })
                .await?;
        }
        let len = manifest.chunk_len(chunk) as usize;
        let (lease, seal) = self
            .workers
            .run(move || {
                let seal = Seal::of(&lease[..len]);
                if let Some(seal) = &seal {
                    put_trailer(&mut lease, seal);
                }
                (lease, seal)
            })
            .await;
        let seal = seal.expect("a manifest's chunks have 1 byte to 4 MiB");
        Ok((lease, Arc::new(seal)))
    }

    async fn read_extent(
        &self,
        origin: &dyn Origin,
        version: &Version,
        extent: Extent,
        into: &mut [u8],
    ) -> Result<(), OriginError> {
        let manifest = version.manifest();
        let path = manifest.path(extent.entry);
        let identity = manifest
            .identity(extent.entry)
            .expect("extents are parts of files");
        let size = manifest.file_size(extent.entry);
        let object = ObjectRef {
            path: &path,
            size,
            identity: &identity,
        };
        let mut wait = RETRY_WAIT;
        let mut attempt = 1;
        loop {
            self.counters.origin_requests.add(1);
            match origin.read(object, extent.file_offset, into).await {
                Ok(()) => {
                    self.counters.origin_bytes.add(u64::from(extent.len));
                    self.budget.succeeded();
                    return Ok(());
                }
                Err(error) => {
                    self.counters.origin_errors.add(1);
                    if attempt == ATTEMPTS || !error.is_transient() || !self.budget.may_retry() {
                        return Err(error);
                    }
                    tracing::debug!(%error, attempt, "reading from the origin again");
                }
            }
            Delay::new(wait).await;
            wait *= 4;
            attempt += 1;
        }
    }
}
