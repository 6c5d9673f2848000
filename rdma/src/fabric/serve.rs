//! The side of a link that is asked, whatever carries it: bounds what a peer may have under way and
//! turns its requests into payloads and refusals.

use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::future::{Either, join, join_all, select};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use super::counters::Counters;
use super::frame::{Entry, TRAILER_BYTES};
use super::{ChunkRequest, ChunkSource, Payload, Refusal, Wait, chunk_capacity};

/// The most slots a peer's arena may have; bounds what one peer can have queued here.
pub(super) const MAX_PEER_SLOTS: usize = 1024;

/// What all peers are served from.
pub(super) struct Server {
    pub(super) source: Arc<dyn ChunkSource>,
    pub(super) counters: Arc<Counters>,
    /// Requests of one peer that are worked on or whose answer is on its way; the others wait their
    /// turn. So many slots are the most that one peer holds, however slowly it takes its answers.
    pub(super) serves_per_peer: usize,
    /// Bytes of data in a slot here, and so the most a peer can be sent.
    pub(super) chunk_capacity: usize,
}

/// An answer to be sent.
pub(super) struct Served {
    pub(super) entry: Entry,
    pub(super) result: Result<Payload, Refusal>,
    pub(super) leaving: Leaving,
}

/// An answer on its way. To be kept until it has left: dropping it begins the next request, and
/// tells the source how it went.
pub(super) struct Leaving {
    _turn: Turn,
    /// For answers that are payloads.
    delivery: Option<Delivery>,
}

/// Tells the source, when dropped, whether what it gave was delivered.
struct Delivery {
    server: Arc<Server>,
    peer: Arc<str>,
    request: ChunkRequest,
    delivered: bool,
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let source = &self.server.source;
        source.ended(&self.peer, self.request, self.delivered);
    }
}

/// One of the requests of a peer that may be worked on at a time; dropping it begins the next.
struct Turn {
    turns: async_channel::Sender<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // There is room: it was taken from there. Closed, nobody waits for turns.
        let _ = self.turns.try_send(());
    }
}

/// A request, and what it waits for.
type Early = (Entry, Wait);

/// One peer's requests: from its frames to answers. Lives on the shard's thread, driven by
/// [`Desk::work`]; dropping that ends the serves under way.
pub(super) struct Desk {
    server: Arc<Server>,
    peer: Arc<str>,
    /// Slots of the peer that an answer is owed for. Twice the same is a breach, and so the queue of
    /// requests can't overflow.
    owed: RefCell<Vec<bool>>,
    owing: Cell<usize>,
    queue: (async_channel::Sender<Entry>, async_channel::Receiver<Entry>),
    /// Requests that are not yet worth a turn.
    early: (async_channel::Sender<Early>, async_channel::Receiver<Early>),
    answers: (
        async_channel::Sender<Served>,
        async_channel::Receiver<Served>,
    ),
    turns: (async_channel::Sender<()>, async_channel::Receiver<()>),
}

impl Desk {
    /// A desk for a peer whose arena has that many slots.
    pub(super) fn new(server: Arc<Server>, peer: &str, slots: usize) -> Desk {
        let slots = slots.clamp(1, MAX_PEER_SLOTS);
        let turns = async_channel::bounded(server.serves_per_peer.max(1));
        while turns.0.try_send(()).is_ok() {}
        Desk {
            server,
            peer: peer.into(),
            owed: RefCell::new(vec![false; slots]),
            owing: Cell::new(0),
            queue: async_channel::bounded(slots),
            early: async_channel::bounded(slots),
            // As many as there are turns at most.
            answers: async_channel::unbounded(),
            turns,
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.server.counters
    }

    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    /// Takes in what a frame asks for, or says how it breaks the protocol.
    pub(super) fn take_in(&self, entries: impl Iterator<Item = Entry>) -> Result<(), String> {
        let mut owed = self.owed.borrow_mut();
        for entry in entries {
            self.counters().requests_received.increment();
            let slots = owed.len();
            match owed.get_mut(usize::from(entry.slot)) {
                None => {
                    return Err(format!(
                        "slot {} was asked for, of an arena of {slots}",
                        entry.slot
                    ));
                }
                Some(true) => {
                    return Err(format!(
                        "slot {} was asked for again before its answer",
                        entry.slot
                    ));
                }
                Some(place) => *place = true,
            }
            self.owing.set(self.owing.get() + 1);
            // One place a slot, and one entry a slot at most: there is room.
            let taken = match self.server.source.before(&self.peer, entry.request) {
                Some(wait) => self.early.0.try_send((entry, wait)).is_ok(),
                None => self.queue.0.try_send(entry).is_ok(),
            };
            if !taken {
                return Err("more was asked for than there are slots".to_owned());
            }
        }
        Ok(())
    }

    /// Serves what was taken in, some at a time, until dropped.
    pub(super) async fn work(&self) {
        let turns = (0..self.server.serves_per_peer.max(1)).map(|_| self.serve_in_turn());
        join(join_all(turns), self.wait_for_others()).await;
    }

    /// Queues requests when what they wait for has come.
    async fn wait_for_others(&self) {
        let mut waiting = FuturesUnordered::new();
        // One that panics is over, too.
        let wait = |(entry, wait): Early| AssertUnwindSafe(wait).catch_unwind().map(move |_| entry);
        loop {
            if waiting.is_empty() {
                let Ok(early) = self.early.1.recv().await else {
                    return;
                };
                waiting.push(wait(early));
            }
            let came = std::pin::pin!(self.early.1.recv());
            match select(came, waiting.next()).await {
                Either::Left((Ok(early), _)) => waiting.push(wait(early)),
                Either::Left((Err(_), _)) => return,
                Either::Right((over, _)) => {
                    // There is room, as for those that need not wait.
                    over.map(|entry| self.queue.0.try_send(entry));
                }
            }
        }
    }

    async fn serve_in_turn(&self) {
        while let Ok(()) = self.turns.1.recv().await {
            let turn = Turn {
                turns: self.turns.0.clone(),
            };
            let Ok(entry) = self.queue.1.recv().await else {
                return;
            };
            let serve = async { self.server.source.serve(&self.peer, entry.request).await };
            let mut delivery = None;
            let result = match AssertUnwindSafe(serve).catch_unwind().await {
                Ok(Ok(payload)) => {
                    delivery = Some(Delivery {
                        server: Arc::clone(&self.server),
                        peer: Arc::clone(&self.peer),
                        request: entry.request,
                        delivered: false,
                    });
                    self.check(payload)
                }
                Ok(Err(refusal)) => Err(refusal),
                Err(_) => {
                    tracing::error!(
                        peer = &*self.peer,
                        chunk = entry.request.chunk,
                        "serving a chunk panicked"
                    );
                    Err(Refusal::Failed)
                }
            };
            let leaving = Leaving {
                _turn: turn,
                delivery,
            };
            let served = Served {
                entry,
                result,
                leaving,
            };
            if self.answers.0.send(served).await.is_err() {
                return;
            }
        }
    }

    /// Whether a payload can be sent as it is; if not, that is a defect above, told to the log.
    fn check(&self, payload: Payload) -> Result<Payload, Refusal> {
        let capacity = chunk_capacity(payload.lease.slab());
        if payload.len as usize > self.server.chunk_capacity
            || capacity != self.server.chunk_capacity
        {
            tracing::error!(
                len = payload.len,
                slab = payload.lease.slab().name(),
                "a payload does not fit the slots peers have"
            );
            return Err(Refusal::Failed);
        }
        Ok(payload)
    }

    /// The next answer.
    pub(super) async fn next_answer(&self) -> Option<Served> {
        self.answers.1.recv().await.ok()
    }

    /// The answer for that slot is about to leave, and the peer may use the slot again.
    pub(super) fn answers(&self, slot: u16) {
        if let Some(owed) = self.owed.borrow_mut().get_mut(usize::from(slot))
            && std::mem::take(owed)
        {
            self.owing.set(self.owing.get() - 1);
        }
    }

    /// Whether the peer waits for anything.
    pub(super) fn owes(&self) -> bool {
        self.owing.get() > 0
    }

    /// Counts an answer that went out.
    pub(super) fn count_sent(&self, result: Result<u32, Refusal>, mut leaving: Leaving) {
        match result {
            Ok(len) => {
                if let Some(delivery) = &mut leaving.delivery {
                    delivery.delivered = true;
                }
                self.counters().payloads_sent.increment();
                self.counters()
                    .payload_bytes_sent
                    .add(u64::from(len) + TRAILER_BYTES as u64);
            }
            Err(_) => self.counters().refusals_sent.increment(),
        }
    }
}
