//! What peers get from this node: chunks from its disk, or, where it owns them, brought for them.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use trackbed_rdma::fabric::{ChunkRequest, ChunkSource, Payload, Refusal, Wait};
use trackbed_rdma::slab::Lease;

use super::Inner;
use super::referrals::{Key, Turn};
use crate::digest::Digest;
use crate::fill::{Filled, For};
use crate::open::Version;
use crate::registry::tag_of;

/// How long somebody to whom an owner has named us waits for a chunk that is on its way to us. It may be
/// on its way to us from somebody who waits in turn: this ends rings, should owners' news make one.
const NAMED_WAIT: Duration = Duration::from_secs(5);

/// Serves peers for as long as the agent lives; the fabric that holds it does not keep it alive.
pub(super) struct Source(Weak<Inner>);

impl Source {
    pub(super) fn new(inner: &Arc<Inner>) -> Source {
        Source(Arc::downgrade(inner))
    }
}

impl ChunkSource for Source {
    fn before(&self, _: &str, request: ChunkRequest) -> Option<Wait> {
        (request.flags & ChunkRequest::NAMED != 0).then(|| {
            let inner = self.0.upgrade();
            Box::pin(async move {
                if let Some(inner) = inner {
                    arrival(&inner, request).await;
                }
            }) as Wait
        })
    }

    fn serve(
        &self,
        peer: &str,
        request: ChunkRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Payload, Refusal>> + Send>> {
        let (inner, peer) = (self.0.upgrade(), peer.to_owned());
        Box::pin(async move {
            let inner = inner.ok_or(Refusal::Failed)?;
            let copy = Copy::begin(&inner, &peer, request)?;
            let payload = serve(&inner, &peer, request).await?;
            if let Some(copy) = copy {
                copy.leave();
            }
            inner.counters.peer_out_chunks.add(1);
            inner.counters.peer_out_bytes.add(u64::from(payload.len));
            Ok(payload)
        })
    }

    fn ended(&self, peer: &str, request: ChunkRequest, delivered: bool) {
        if let Some(inner) = self.0.upgrade()
            && let Some(key) = counted(request)
        {
            let mut referrals = inner.referrals.lock();
            referrals.ended(key, tag_of(peer), delivered, Instant::now());
        }
    }
}

/// What a request is counted as: one that another has referred here is not ours to spread.
fn counted(request: ChunkRequest) -> Option<Key> {
    let forwarded = request.flags & ChunkRequest::FORWARDED != 0;
    (!forwarded).then(|| (Digest::from(request.version), request.chunk))
}

/// A copy of a chunk that a peer is sent, until the fabric has it. Dropped before, it is not sent.
struct Copy<'a> {
    inner: &'a Inner,
    key: Key,
    who: u32,
}

impl<'a> Copy<'a> {
    /// Notes that the peer is sent a copy, or says whom it is to ask instead. `None` for a copy that
    /// is not counted.
    fn begin(
        inner: &'a Inner,
        peer: &str,
        request: ChunkRequest,
    ) -> Result<Option<Copy<'a>>, Refusal> {
        let Some(key) = counted(request) else {
            return Ok(None);
        };
        let (who, now) = (tag_of(peer), Instant::now());
        let mut referrals = inner.referrals.lock();
        if request.flags & ChunkRequest::MAY_BE_REFERRED == 0 {
            referrals.insists(key, who, now);
        } else if let Turn::Name(whom) = referrals.ask(key, who, now) {
            return Err(Refusal::AskInstead(whom));
        }
        Ok(Some(Copy { inner, key, who }))
    }

    /// The fabric tells what becomes of it from now on.
    fn leave(self) {
        let now = Instant::now();
        self.inner.referrals.lock().leaves(self.key, self.who, now);
        std::mem::forget(self);
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        let mut referrals = self.inner.referrals.lock();
        referrals.ended(self.key, self.who, false, Instant::now());
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
            if version.store().has(chunk) {
                let lease = inner.filler.slab.lease().await;
                if let Some(payload) = from_disk(&version, chunk, lease).await {
                    return Ok(payload);
                }
            }
            if request.flags & ChunkRequest::FORWARDED != 0 {
                return Err(Refusal::NotHere);
            }
            let filled = inner.filler.fill(&version, chunk, For::Peer).await;
            // The fill has logged why.
            filled.map_err(|_| Refusal::Failed)?
        }
    };
    match owned(inner, filled) {
        Some(payload) => Ok(payload),
        None => when_there_is_room(inner, &version, chunk).await,
    }
}

/// Waits for a chunk that is on its way to us, if it is.
async fn arrival(inner: &Arc<Inner>, request: ChunkRequest) {
    let digest = Digest::from(request.version);
    // Serving it says what is wrong.
    if let Ok(version) = inner.version(digest, None).await
        && request.chunk < version.manifest().chunks()
    {
        let filler = &inner.filler;
        filler.arrival(&version, request.chunk, NAMED_WAIT).await;
    }
}

/// The chunk, read into a slot.
async fn from_disk(version: &Version, chunk: u32, lease: Lease) -> Option<Payload> {
    if !version.store().has(chunk) {
        return None;
    }
    let (lease, read) = version.store().read_whole(chunk, lease).await;
    read.ok()?;
    Some(Payload {
        lease,
        len: version.manifest().chunk_len(chunk),
    })
}

/// The chunk in a slot of our own slab to send from: the fill's slot if nobody else needs it, a copy if
/// others do, or if it is a slot of an arena, which is in another peer's protection domain. `None` if no
/// slot is free.
fn owned(inner: &Inner, filled: Arc<Filled>) -> Option<Payload> {
    let alone = if Arc::ptr_eq(filled.slab(), &inner.filler.slab) {
        Arc::try_unwrap(filled).and_then(|alone| alone.into_lease().map_err(Arc::new))
    } else {
        Err(filled)
    };
    match alone {
        Ok((lease, len)) => Some(Payload { lease, len }),
        Err(shared) => Some(copy(inner.filler.slab.try_lease()?, &shared)),
    }
}

fn copy(mut lease: Lease, from: &Filled) -> Payload {
    lease.copy_from_slice(from.slot());
    let len = from.len() as u32;
    Payload { lease, len }
}

/// The chunk, which was here a moment ago, in the next slot that is free. Nothing is held while it is waited
/// for: those who wait for a slot and hold another would wait for each other.
async fn when_there_is_room(
    inner: &Inner,
    version: &Version,
    chunk: u32,
) -> Result<Payload, Refusal> {
    let lease = inner.filler.slab.lease().await;
    if let Some(filled) = inner.filler.in_memory(version, chunk) {
        return Ok(copy(lease, &filled));
    }
    // One that the disk did not take is brought anew when it is asked for again.
    let payload = from_disk(version, chunk, lease).await;
    payload.ok_or(Refusal::Busy)
}
