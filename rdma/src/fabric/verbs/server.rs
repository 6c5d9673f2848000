//! The end of a link over verbs that is asked, and writes.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{Either, select};

use super::completions::{Connection, Settle};
use super::{Immediate, MAX_PIECES, connect_options, piece_bytes, pieces};
use crate::fabric::frame::{
    HEADER_BYTES, Header, Outcome, Reply, TRAILER_BYTES, decode_entries, decode_header,
    encode_reply,
};
use crate::fabric::serve::{Desk, Leaving, Served};
use crate::fabric::silence::Silence;
use crate::fabric::{FabricError, Payload, Refusal, chunk_capacity, trailer_at};
use crate::shard::Ring;
use crate::slab::{Lease, PAGE_BYTES, Slab};
use crate::verbs::{
    Access, Completion, CompletionError, CompletionQueue, Context, Endpoint, LocalPort,
    MemoryRegion, Operation, QueuePair, QueuePairConfig, RemoteAddress, Segment, Sent, Source,
    UnconnectedQueuePair, VerbsError, Work,
};

/// Work requests of the largest answer: its data, then trailer with immediate.
fn work_per_answer(pieces: usize) -> u32 {
    pieces as u32 + 1
}

/// What an answer is sent from, or nothing for a refusal or a sign of life. Comes back when the
/// adapter is done with it, and is counted then.
pub(super) struct Outgoing {
    lease: Option<Lease>,
    what: What,
    writes: u64,
    bytes: u64,
}

enum What {
    Answer(Result<u32, Refusal>, Leaving),
    SignOfLife,
}

// SAFETY: as for the lease, which is never taken out while posted; without one there are no bytes.
unsafe impl Source for Outgoing {
    fn as_ptr(&self) -> *const u8 {
        self.lease
            .as_ref()
            .map_or(std::ptr::NonNull::dangling().as_ptr(), Source::as_ptr)
    }

    fn len(&self) -> usize {
        self.lease.as_ref().map_or(0, Source::len)
    }
}

/// How long the server waits for what.
pub(super) struct Patience {
    /// How often the requester wants a sign of life while it waits.
    pub(super) heartbeat: Duration,
    /// How long work may take to be acknowledged, and half of which an idle peer is left alone.
    pub(super) deadline: Duration,
    /// How long the peer may take to finish the meeting.
    pub(super) first_frame: Duration,
}

/// Our end of a connected link.
pub(super) struct Connected {
    connection: Connection<Outgoing, Lease>,
    /// Pages for frames: one for each receive, and for each answer that is nothing else.
    frames: Arc<Slab>,
}

/// Makes a queue pair for a peer, with a receive posted for each of its slots and room for `answers`
/// of so many pieces, and connects it.
pub(super) fn connect(
    context: &Arc<Context>,
    port: LocalPort,
    serving: &Arc<MemoryRegion>,
    slots: usize,
    answers: usize,
    pieces: usize,
    peer: &Endpoint,
) -> Result<Connected, FabricError> {
    let pd = serving.protection_domain();
    // One frame a slot is the most a peer can have under way; one more is being looked at.
    let receives = slots + 1;
    let frames = Slab::new("frames of a peer", PAGE_BYTES, receives + answers)?;
    let region = MemoryRegion::register(pd, Arc::clone(&frames) as _, Access::LocalWrite)?;
    // Answers that may be under way, and a sign of life.
    let sends = work_per_answer(pieces) * answers as u32 + 1;
    let queue = CompletionQueue::with_events(context, sends + 1 + receives as u32)?;
    let config = QueuePairConfig {
        send_depth: sends,
        receive_depth: receives as u32,
        segments: 1,
        inline_bytes: 0,
        // For the probes of the requester, which write no bytes: this domain has no region that a peer
        // could write to.
        remote_writes: true,
        ..QueuePairConfig::default()
    };
    let mut queue_pair = UnconnectedQueuePair::new(pd, &queue, port, &config)?;
    queue_pair.attach(serving)?;
    queue_pair.attach(&region)?;
    for lease in (0..receives).map_while(|_| frames.try_lease()) {
        queue_pair
            .post_receive(lease, &[Segment::new(0, PAGE_BYTES as u32)])
            .map_err(|rejected| FabricError::Post {
                reason: rejected.reason.to_string(),
            })?;
    }
    let queue_pair = queue_pair
        .connect(peer, &connect_options())
        .map_err(|failed| failed.error)?;
    let connection = Connection::new(queue_pair, queue).map_err(|error| FabricError::Post {
        reason: error.to_string(),
    })?;
    Ok(Connected { connection, frames })
}

impl Connected {
    /// What the peer needs to know to connect.
    pub(super) fn endpoint(&self) -> Endpoint {
        self.connection.queue_pair.borrow().endpoint()
    }
}

/// Serves the peer until it goes, breaks the protocol or the fabric closes.
pub(super) async fn drive(
    ring: Rc<Ring>,
    connected: Connected,
    desk: Desk,
    slab: Arc<Slab>,
    patience: Patience,
    closed: async_channel::Receiver<Infallible>,
) {
    desk.counters().peers_accepted.increment();
    let Connected { connection, frames } = connected;
    let server = PeerServer {
        desk,
        piece_bytes: piece_bytes(chunk_capacity(&slab)),
        work_per_answer: work_per_answer(pieces(chunk_capacity(&slab))),
        slab,
        frames,
        connection,
        silence: Silence::new(),
        last_heard: Cell::new(Instant::now()),
        met: Cell::new(false),
        sign_under_way: Cell::new(false),
    };
    let reason = {
        let settle = std::pin::pin!(server.connection.settle_all(&ring, &server));
        let answer = std::pin::pin!(server.answer());
        let watch = std::pin::pin!(server.watch(&ring, &patience));
        let work = std::pin::pin!(server.desk.work());
        let closed = std::pin::pin!(closed.recv());
        match select(select(select(settle, answer), watch), select(work, closed)).await {
            Either::Left((Either::Left((either, _)), _)) => either.factor_first().0,
            Either::Left((Either::Right((end, _)), _)) => end,
            Either::Right(_) => End("this fabric is closing".to_owned()),
        }
    };
    tracing::debug!(
        peer = server.desk.peer(),
        reason = reason.0,
        "a peer's queue pair ended"
    );
    server.desk.counters().peers_ended.increment();
}

/// The immediate of whatever is no reply.
const WORKING: u32 = Immediate {
    slot: 0,
    status: Immediate::WORKING,
    tag: 0,
}
.encode();

fn immediate(reply: &Reply) -> u32 {
    Immediate {
        slot: reply.slot,
        status: Immediate::status(&reply.outcome),
        tag: reply.tag as u8,
    }
    .encode()
}

/// Puts the reply's frame at the beginning; the requester looks for it behind the trailer.
fn put_frame(bytes: &mut [u8], reply: &Reply) {
    bytes[..HEADER_BYTES].copy_from_slice(&encode_reply(reply));
}

/// Why the link ended.
struct End(String);

impl From<VerbsError> for End {
    fn from(error: VerbsError) -> End {
        End(error.to_string())
    }
}

impl From<CompletionError> for End {
    fn from(error: CompletionError) -> End {
        End(error.to_string())
    }
}

struct PeerServer {
    connection: Connection<Outgoing, Lease>,
    desk: Desk,
    slab: Arc<Slab>,
    frames: Arc<Slab>,
    piece_bytes: usize,
    work_per_answer: u32,
    /// For how long nothing of what is outstanding was acknowledged, and nothing asked for.
    silence: Silence,
    /// When the peer last acknowledged or asked for something, or work was begun on an idle queue.
    last_heard: Cell<Instant>,
    /// Whether the peer has been heard, and so has finished its part of the meeting.
    met: Cell<bool>,
    sign_under_way: Cell<bool>,
}

impl PeerServer {
    /// Posts answers as they come.
    async fn answer(&self) -> End {
        while let Some(served) = self.desk.next_answer().await {
            let Served {
                entry,
                result,
                leaving,
            } = served;
            let remote = RemoteAddress {
                address: entry.address,
                rkey: entry.rkey,
            };
            let reply = Reply {
                slot: entry.slot,
                tag: entry.tag,
                outcome: match &result {
                    Ok(payload) => Outcome::Payload(payload.len),
                    Err(refusal) => Outcome::Refused(*refusal),
                },
            };
            let posted = match result {
                Ok(payload) => self.post_payload(&reply, remote, payload, leaving).await,
                Err(refusal) => self.post_refusal(&reply, remote, refusal, leaving).await,
            };
            if let Err(end) = posted {
                return end;
            }
        }
        End("it is no longer served".to_owned())
    }

    async fn post_payload(
        &self,
        reply: &Reply,
        remote: RemoteAddress,
        payload: Payload,
        leaving: Leaving,
    ) -> Result<(), End> {
        let Payload { mut lease, len } = self.in_registered_memory(payload).await;
        let trailer = trailer_at(&self.slab);
        put_frame(&mut lease[trailer + TRAILER_BYTES..], reply);
        let tail_bytes = TRAILER_BYTES + HEADER_BYTES;
        let tail = [Segment::new(trailer as u32, tail_bytes as u32)];
        let last =
            Work::write_with_immediate(remote.offset(trailer as u64), immediate(reply), &tail)
                .signaled();
        let mut segments = [[Segment::new(0, 0)]; MAX_PIECES];
        let pieces = self.cut(len, &mut segments);
        let mut work = [last; MAX_PIECES + 1];
        for (index, (work, piece)) in work.iter_mut().zip(pieces).enumerate() {
            let at = remote.offset(u64::from(piece[0].offset));
            *work = if index + 1 < pieces.len() {
                Work::write_with_immediate(at, WORKING, piece).signaled()
            } else {
                Work::write(at, piece)
            };
        }
        let outgoing = Outgoing {
            lease: Some(lease),
            what: What::Answer(Ok(len), leaving),
            writes: pieces.len() as u64 + 1,
            bytes: u64::from(len) + tail_bytes as u64,
        };
        self.post_answer(reply, outgoing, &work[..=pieces.len()])
            .await
    }

    async fn post_refusal(
        &self,
        reply: &Reply,
        remote: RemoteAddress,
        refusal: Refusal,
        leaving: Leaving,
    ) -> Result<(), End> {
        let frame = [Segment::new(0, HEADER_BYTES as u32)];
        let mut outgoing = Outgoing {
            lease: None,
            what: What::Answer(Err(refusal), leaving),
            writes: 1,
            bytes: 0,
        };
        let work = if let Refusal::AskInstead(_) = refusal {
            // None of the slots, which the payloads behind it may hold: there is a page for each answer.
            let mut lease = self.frames.lease().await;
            put_frame(&mut lease, reply);
            outgoing.lease = Some(lease);
            outgoing.bytes = HEADER_BYTES as u64;
            let at = remote.offset((trailer_at(&self.slab) + TRAILER_BYTES) as u64);
            Work::write_with_immediate(at, immediate(reply), &frame)
        } else {
            Work::write_with_immediate(remote, immediate(reply), &[])
        };
        self.post_answer(reply, outgoing, &[work.signaled()]).await
    }

    async fn post_answer(
        &self,
        reply: &Reply,
        outgoing: Outgoing,
        work: &[Work<'_>],
    ) -> Result<(), End> {
        self.connection.room_for(self.work_per_answer).await;
        self.desk.answers(reply.slot);
        self.post(outgoing, work)
    }

    /// Cuts that many bytes of data into pieces.
    fn cut<'s>(
        &self,
        len: u32,
        segments: &'s mut [[Segment; 1]; MAX_PIECES],
    ) -> &'s [[Segment; 1]] {
        let step = self.piece_bytes;
        let starts = (0..len as usize).step_by(step);
        let mut count = 0;
        for (segment, start) in segments.iter_mut().zip(starts) {
            let end = (start + step).min(len as usize);
            segment[0] = Segment::new(start as u32, (end - start) as u32);
            count += 1;
        }
        &segments[..count]
    }

    /// A payload in another slab (the arena of a link on which we asked for it) is copied, as only
    /// the shard's own slab is registered here.
    async fn in_registered_memory(&self, payload: Payload) -> Payload {
        if Arc::ptr_eq(payload.lease.slab(), &self.slab) {
            return payload;
        }
        let mut lease = self.slab.lease().await;
        lease[..payload.len as usize].copy_from_slice(payload.data());
        let trailer = trailer_at(&self.slab);
        lease[trailer..trailer + TRAILER_BYTES].copy_from_slice(payload.trailer());
        Payload {
            lease,
            len: payload.len,
        }
    }

    fn post(&self, outgoing: Outgoing, work: &[Work<'_>]) -> Result<(), End> {
        let writes = outgoing.writes;
        let mut queue_pair = self.connection.queue_pair.borrow_mut();
        if queue_pair.outstanding().0 == 0 {
            self.heard();
        }
        let mut batch = queue_pair.batch();
        batch
            .push(outgoing, work)
            .map_err(|rejected| End(format!("posting a write failed: {rejected}")))?;
        batch
            .commit()
            .map_err(|error| End(format!("posting a write failed: {error}")))?;
        self.desk.counters().verbs_writes_posted.add(writes);
        Ok(())
    }

    fn heard(&self) {
        self.silence.end();
        self.last_heard.set(Instant::now());
    }

    /// Says that we are alive to a peer that waits, finds out whether an idle one is, and gives up on
    /// one that acknowledges nothing.
    async fn watch(&self, ring: &Rc<Ring>, patience: &Patience) -> End {
        let pause = patience.heartbeat.min(patience.deadline / 8);
        loop {
            ring.sleep(pause).await;
            let silent = self.silence.look(pause);
            // What is outstanding is a sign of life for the peer, as its acknowledgement is for us.
            if self.connection.queue_pair.borrow().outstanding().0 > 0 {
                if silent >= patience.deadline {
                    return End(format!("it acknowledged nothing for {silent:?}"));
                }
                continue;
            }
            let idle = self.last_heard.get().elapsed();
            let patience_with_idle = if self.met.get() {
                patience.deadline / 2
            } else {
                patience.first_frame
            };
            // A write of no bytes needs no key. Only the one with immediate takes a receive.
            let nowhere = RemoteAddress {
                address: 0,
                rkey: 0,
            };
            let work = if self.desk.owes() {
                Work::write_with_immediate(nowhere, WORKING, &[])
            } else if idle >= patience_with_idle {
                Work::write(nowhere, &[])
            } else {
                continue;
            };
            if self.sign_under_way.replace(true) {
                continue;
            }
            let outgoing = Outgoing {
                lease: None,
                what: What::SignOfLife,
                writes: 1,
                bytes: 0,
            };
            if let Err(end) = self.post(outgoing, &[work.signaled()]) {
                return end;
            }
        }
    }
}

impl Settle<Outgoing, Lease> for PeerServer {
    type End = End;

    fn sent(&self, sent: Sent<'_, Outgoing>) {
        self.heard();
        let counters = self.desk.counters();
        if sent.outcome().is_err() {
            counters.verbs_work_failed.increment();
            return;
        }
        // A piece that is not the last of its answer brings no payload back.
        for outgoing in sent {
            counters.verbs_writes_completed.add(outgoing.writes);
            counters.verbs_write_bytes_completed.add(outgoing.bytes);
            match outgoing.what {
                What::Answer(result, leaving) => self.desk.count_sent(result, leaving),
                What::SignOfLife => self.sign_under_way.set(false),
            }
        }
    }

    fn received(&self, lease: Lease, completion: Completion) -> Result<Lease, End> {
        self.met.set(true);
        self.heard();
        if completion.operation != Operation::Receive {
            return Err(self.breach("it wrote in place of sending"));
        }
        let frame = lease.get(..completion.bytes as usize).unwrap_or_default();
        match decode_header(frame) {
            Ok(Header::Requests(check)) => {
                let body = check
                    .check(&frame[HEADER_BYTES..])
                    .map_err(|error| self.breach(&error.to_string()))?;
                self.desk
                    .take_in(decode_entries(body))
                    .map_err(|reason| self.breach(&reason))?;
            }
            Ok(_) => return Err(self.breach("it sent something else than requests")),
            Err(error) => return Err(self.breach(&error.to_string())),
        }
        Ok(lease)
    }

    fn post_again(
        &self,
        queue_pair: &mut QueuePair<Outgoing, Lease>,
        lease: Lease,
    ) -> Result<(), End> {
        queue_pair
            .post_receive(lease, &[Segment::new(0, PAGE_BYTES as u32)])
            .map_err(|rejected| End(format!("posting a receive failed: {rejected}")))
    }
}

impl PeerServer {
    fn breach(&self, reason: &str) -> End {
        tracing::warn!(
            peer = self.desk.peer(),
            reason,
            "a peer broke the protocol: its link is closed"
        );
        self.desk.counters().intrusions.increment();
        End(reason.to_owned())
    }
}
