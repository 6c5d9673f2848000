//! What peers get from this node: chunks from its disk, or, where it owns them, brought for them.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use trackbed_rdma::fabric::{ChunkRequest, ChunkSource, Payload, Refusal};
use trackbed_rdma::slab::Lease;

use super::Inner;
use crate::digest::Digest;
use crate::fill::{Filled, For};
use crate::open::Version;

/// Serves peers for as long as the agent lives; the fabric that holds it does not keep it alive.
pub(super) struct Source(Weak<Inner>);

impl Source {
    pub(super) fn new(inner: &Arc<Inner>) -> Source {
        Source(Arc::downgrade(inner))
    }
}

impl ChunkSource for Source {
    fn serve(
        &self,
        peer: &str,
        request: ChunkRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Payload, Refusal>> + Send>> {
        let (inner, peer) = (self.0.upgrade(), peer.to_owned());
        Box::pin(async move {
            let inner = inner.ok_or(Refusal::Failed)?;
            let payload = serve(&inner, &peer, request).await?;
            inner.counters.peer_out_chunks.add(1);
            inner.counters.peer_out_bytes.add(u64::from(payload.len));
            Ok(payload)
        })
    }
}

async fn serve(inner: &Arc<Inner>, peer: &str, request: ChunkRequest) -> Result<Payload, Refusal> {
    let digest = Digest::from(request.version);
    let version = inner.version(digest, None).await.map_err(|error| {
        tracing::info!(peer, %error, "a peer asked for a version that can't be opened here");
        Refusal::UnknownVersion
    })?;
    version.store().touch();
    let chunk = request.chunk;
    if chunk >= version.manifest().chunks() {
        return Err(Refusal::Malformed);
    }
    let filled = match inner.filler.in_memory(&version, chunk) {
        Some(filled) => filled,
        None => {
            if let Some(payload) = from_disk(inner, &version, chunk).await {
                return Ok(payload);
            }
            if request.flags & ChunkRequest::FORWARDED != 0 {
                return Err(Refusal::NotHere);
            }
            let filled = inner.filler.fill(&version, chunk, For::Peer).await;
            // The fill has logged why.
            filled.map_err(|_| Refusal::Failed)?
        }
    };
    let (lease, len) = owned(inner, filled).await;
    Ok(Payload { lease, len })
}

async fn from_disk(inner: &Inner, version: &Version, chunk: u32) -> Option<Payload> {
    if !version.store().has(chunk) {
        return None;
    }
    let lease = inner.filler.slab.lease().await;
    let (lease, read) = version.store().read_whole(chunk, lease).await;
    read.ok()?;
    Some(Payload {
        lease,
        len: version.manifest().chunk_len(chunk),
    })
}

/// A slot of our own slab to send from. The fill's slot if nobody else needs it; a copy if others
/// do, or if it is a slot of an arena, which is in another peer's protection domain.
async fn owned(inner: &Inner, filled: Arc<Filled>) -> (Lease, u32) {
    let alone = if Arc::ptr_eq(filled.slab(), &inner.filler.slab) {
        Arc::try_unwrap(filled).and_then(|alone| alone.into_lease().map_err(Arc::new))
    } else {
        Err(filled)
    };
    let shared = match alone {
        Ok(owned) => return owned,
        Err(shared) => shared,
    };
    let mut lease = inner.filler.slab.lease().await;
    lease.copy_from_slice(shared.slot());
    (lease, shared.len() as u32)
}
