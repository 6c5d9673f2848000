//! Our side of a link, whatever carries it: what we asked, where the answers go, when it is over.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{Either, select};
use parking_lot::Mutex;

use super::counters::Counters;
use super::frame::FrameError;
use super::{ChunkRequest, FetchError, Payload};
use crate::shard::Shard;
use crate::slab::{Lease, Slab};

/// A link to a peer on which we ask and it writes into our arena. Cheap to clone; ends with its
/// last clone. Once it has ended it stays so: make another.
#[derive(Clone)]
pub struct PeerLink {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    asks: async_channel::Sender<Ask>,
    /// Keeps the thread that drives the link.
    _shard: Shard,
}

/// What both the askers and the driver of a link see.
struct Shared {
    peer: String,
    /// What the peer writes into. A slot is leased from before it is asked for until the payload
    /// is dropped, so there are never more requests under way than slots.
    arena: Arc<Slab>,
    end: Mutex<Option<LinkEnd>>,
    /// Closed when the link ends: what waits for a slot learns of it.
    ended: async_channel::Receiver<Infallible>,
}

/// Why a link ended.
#[derive(Debug, Clone)]
pub(super) enum LinkEnd {
    /// The peer or the way to it is gone.
    Gone(String),
    /// The peer gave no sign of life for that long while it owed answers.
    Silent(Duration),
    /// The peer sent what it must not.
    Malformed(String),
    /// All handles are dropped.
    Unused,
}

impl LinkEnd {
    pub(super) fn frame(error: FrameError) -> LinkEnd {
        LinkEnd::Malformed(format!("a frame was refused: {error}"))
    }

    fn error(&self, peer: &str) -> FetchError {
        let peer = peer.to_owned();
        match self {
            LinkEnd::Gone(reason) => FetchError::Gone {
                peer,
                reason: reason.clone(),
            },
            LinkEnd::Silent(waited) => FetchError::Timeout {
                peer,
                waited: *waited,
            },
            LinkEnd::Malformed(reason) => FetchError::Malformed {
                peer,
                reason: reason.clone(),
            },
            LinkEnd::Unused => FetchError::Gone {
                peer,
                reason: "the link was closed on this side".to_owned(),
            },
        }
    }
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkEnd::Gone(reason) | LinkEnd::Malformed(reason) => f.write_str(reason),
            LinkEnd::Silent(waited) => write!(f, "no sign of life for {waited:?}"),
            LinkEnd::Unused => f.write_str("no longer used"),
        }
    }
}

/// A request on its way to the link's driver.
pub(super) struct Ask {
    pub(super) request: ChunkRequest,
    pub(super) lease: Lease,
    pub(super) answer: oneshot::Sender<Result<Payload, FetchError>>,
}

impl PeerLink {
    /// Brings a chunk: its data at the start of the lease, its trailer in the slot's last page.
    ///
    /// Waits for a slot of the arena, in order of arrival. Dropping the future is always safe: the
    /// slot stays out of use until the peer has answered or the link is over.
    pub async fn fetch(&self, request: ChunkRequest) -> Result<Payload, FetchError> {
        let shared = &self.inner.shared;
        let lease = {
            let lease = std::pin::pin!(shared.arena.lease());
            // Nothing is ever sent: it only ends, with the link.
            let ended = std::pin::pin!(shared.ended.recv());
            match select(ended, lease).await {
                Either::Right((lease, _)) => lease,
                Either::Left(_) => return Err(shared.error()),
            }
        };
        let (answer, answered) = oneshot::channel();
        let ask = Ask {
            request,
            lease,
            answer,
        };
        if self.inner.asks.send(ask).await.is_err() {
            return Err(shared.error());
        }
        answered.await.unwrap_or_else(|_| Err(shared.error()))
    }

    /// Whether the link still works, as far as is known.
    pub fn is_alive(&self) -> bool {
        self.inner.shared.end.lock().is_none()
    }

    /// The peer's name.
    pub fn peer(&self) -> &str {
        &self.inner.shared.peer
    }
}

impl fmt::Debug for PeerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerLink")
            .field("peer", &self.inner.shared.peer)
            .field("end", &*self.inner.shared.end.lock())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn error(&self) -> FetchError {
        let end = self.end.lock();
        end.as_ref().unwrap_or(&LinkEnd::Unused).error(&self.peer)
    }
}

/// The driver's side of a link, before it runs on the shard.
pub(super) struct Driver {
    shared: Arc<Shared>,
    pub(super) asks: async_channel::Receiver<Ask>,
    ender: async_channel::Sender<Infallible>,
    pub(super) counters: Arc<Counters>,
    /// How long the peer may give no sign of life while it owes an answer.
    pub(super) deadline: Duration,
}

impl Driver {
    /// What the peer writes into.
    pub(super) fn arena(&self) -> &Arc<Slab> {
        &self.shared.arena
    }

    /// The peer's name.
    pub(super) fn peer(&self) -> &str {
        &self.shared.peer
    }

    /// Makes the end known, unless it is: nobody new can ask.
    pub(super) fn end(&self, end: LinkEnd) {
        self.shared.end.lock().get_or_insert(end);
        self.asks.close();
        self.ender.close();
    }
}

/// Makes both sides of a link over an arena.
pub(super) fn link(
    peer: &str,
    arena: Arc<Slab>,
    shard: Shard,
    counters: Arc<Counters>,
    deadline: Duration,
) -> (PeerLink, Driver) {
    let (asks, asks_in) = async_channel::bounded(arena.slots());
    let (ender, ended) = async_channel::bounded(1);
    let shared = Arc::new(Shared {
        peer: peer.to_owned(),
        arena,
        end: Mutex::new(None),
        ended,
    });
    let inner = Inner {
        shared: Arc::clone(&shared),
        asks,
        _shard: shard,
    };
    let driver = Driver {
        shared,
        asks: asks_in,
        ender,
        counters,
        deadline,
    };
    (
        PeerLink {
            inner: Arc::new(inner),
        },
        driver,
    )
}
