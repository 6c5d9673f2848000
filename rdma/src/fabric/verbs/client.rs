//! The requester's end of a link over verbs.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use futures::future::{Either, select};

use super::completions::{Connection, Settle};
use super::{Immediate, SPARE_RECEIVES, connect_options, pieces};
use crate::fabric::frame::{Header, MAX_FRAME_BYTES, Outcome, TRAILER_BYTES, decode_header};
use crate::fabric::link::{Driver, LinkEnd};
use crate::fabric::session::Session;
use crate::fabric::{FabricError, Refusal, chunk_capacity, trailer_at};
use crate::shard::Ring;
use crate::slab::{Lease, PAGE_BYTES, Slab};
use crate::verbs::{
    Access, Completion, CompletionError, CompletionQueue, Context, Endpoint, LocalPort,
    MemoryRegion, Operation, ProtectionDomain, QueuePair, QueuePairConfig, RemoteAddress, Segment,
    Sent, Source, UnconnectedQueuePair, VerbsError, Work,
};

/// Request frames that may be on their way at a time; each has 32 entries at most.
const FRAMES: usize = 8;

/// For how many deadlines a peer may be silent. One that is gone is found out by the probes sooner, as its
/// adapter doesn't acknowledge them; one that is there and doesn't run for long, on a busy machine, would
/// not be faster on a new link.
const BUSY_DEADLINES: u32 = 3;

/// A page holds any frame.
const _: () = assert!(MAX_FRAME_BYTES <= PAGE_BYTES);

/// What the requester sends from: a request frame, or nothing to find out whether the peer is there.
pub(in crate::fabric) enum Sending {
    Requests(Lease),
    Probe,
}

// SAFETY: as for the lease, which is never taken out while posted; a probe has no bytes.
unsafe impl Source for Sending {
    fn as_ptr(&self) -> *const u8 {
        match self {
            Sending::Requests(lease) => Source::as_ptr(lease),
            Sending::Probe => std::ptr::NonNull::dangling().as_ptr(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Sending::Requests(lease) => Source::len(lease),
            Sending::Probe => 0,
        }
    }
}

/// Our half of a link whose peer is not known yet.
pub(in crate::fabric) struct Half {
    // Fields drop in this order: the queue pair before the memory its peer may write.
    queue_pair: UnconnectedQueuePair<Sending, ()>,
    queue: CompletionQueue,
    arena: Arc<Slab>,
    rkey: u32,
    frames: Arc<Slab>,
}

/// Our end of a connected link.
pub(super) struct Connected {
    connection: Connection<Sending, ()>,
    rkey: u32,
    frames: Arc<Slab>,
}

impl Half {
    /// Makes arena and queue pair in a protection domain of their own, with all receives posted.
    pub(super) fn new(
        context: &Arc<Context>,
        port: LocalPort,
        peer: &str,
        slot_bytes: usize,
        slots: usize,
    ) -> Result<Half, FabricError> {
        let pd = ProtectionDomain::new(context)?;
        let arena = Slab::new(&format!("arena of {peer}"), slot_bytes, slots)?;
        let frames = Slab::new(&format!("requests to {peer}"), PAGE_BYTES, FRAMES)?;
        // SAFETY: the protocol gives the peer leave for a slot with the request that names it and
        // takes it back with the reply. In between the slot's lease is owned by the link's session,
        // which makes no reference to its bytes; it is given out after the reply only, and if the
        // link ends first, not before the queue pair is destroyed. A peer that writes to a slot it
        // has no leave for breaks the protocol: peers are nodes that the control plane has
        // authenticated, and whoever is given the lease verifies the bytes it takes from it.
        let region =
            unsafe { MemoryRegion::register_remote_writable(&pd, Arc::clone(&arena) as _) }?;
        let rkey = region.remote().map_or(0, |memory| memory.rkey);
        let requests = MemoryRegion::register(&pd, Arc::clone(&frames) as _, Access::LocalRead)?;
        let receives = slots * pieces(chunk_capacity(&arena)) + SPARE_RECEIVES;
        // All frames, and a probe.
        let sends = FRAMES + 1;
        let queue = CompletionQueue::with_events(context, (sends + 1 + receives) as u32)?;
        let config = QueuePairConfig {
            send_depth: sends as u32,
            receive_depth: receives as u32,
            segments: 1,
            inline_bytes: 0,
            remote_writes: true,
            ..QueuePairConfig::default()
        };
        let mut queue_pair = UnconnectedQueuePair::new(&pd, &queue, port, &config)?;
        queue_pair.attach(&region)?;
        queue_pair.attach(&requests)?;
        for _ in 0..receives {
            queue_pair
                .post_receive((), &[])
                .map_err(|rejected| FabricError::Post {
                    reason: rejected.reason.to_string(),
                })?;
        }
        Ok(Half {
            queue_pair,
            queue,
            arena,
            rkey,
            frames,
        })
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        self.queue_pair.endpoint()
    }

    pub(super) fn arena(&self) -> &Arc<Slab> {
        &self.arena
    }

    /// Connects with the peer, which has done its part.
    pub(super) fn connect(self, peer: &Endpoint) -> Result<Connected, FabricError> {
        let Half {
            queue_pair,
            queue,
            rkey,
            frames,
            ..
        } = self;
        let queue_pair = queue_pair
            .connect(peer, &connect_options())
            .map_err(|failed| failed.error)?;
        let connection = Connection::new(queue_pair, queue).map_err(|error| FabricError::Post {
            reason: error.to_string(),
        })?;
        Ok(Connected {
            connection,
            rkey,
            frames,
        })
    }
}

/// Drives the link until it ends.
pub(super) async fn drive(ring: Rc<Ring>, connected: Connected, driver: Driver) {
    let Connected {
        connection,
        rkey,
        frames,
    } = connected;
    let patience = driver.deadline * BUSY_DEADLINES;
    let session = Session::begin(driver, Rc::clone(&ring), patience);
    let requester = Requester {
        session,
        probing: Cell::new(false),
    };
    // Declared last and so dropped first, also if this task is dropped half-way: the queue pair is
    // destroyed, and the peer can no longer write, before the session lets go of the slots it may
    // be writing.
    let connection = connection;
    let end = {
        let ask = std::pin::pin!(ask(&connection, &requester.session, &frames, rkey));
        let settle = std::pin::pin!(connection.settle_all(&ring, &requester));
        let watch = std::pin::pin!(requester.session.watch());
        let probe = std::pin::pin!(probe(&ring, &connection, &requester));
        match select(select(ask, settle), select(watch, probe)).await {
            Either::Left((either, _)) => either.factor_first().0,
            Either::Right((either, _)) => either.factor_first().0,
        }
    };
    requester.session.announce(end);
}

/// Sends requests as they come.
async fn ask(
    connection: &Connection<Sending, ()>,
    session: &Session,
    frames: &Arc<Slab>,
    rkey: u32,
) -> LinkEnd {
    loop {
        // A free frame first, so that requests made while none is travel together. There is room on
        // the send queue for as many as there are.
        let mut buffer = frames.lease().await;
        let place = |lease: &Lease| (lease.start() as u64, rkey);
        let Some(frame) = session.next_frame(place).await else {
            return LinkEnd::Unused;
        };
        buffer[..frame.len()].copy_from_slice(&frame);
        let segments = [Segment::new(0, frame.len() as u32)];
        let work = Work::send(&segments).signaled();
        if let Err(end) = post(connection, Sending::Requests(buffer), work) {
            return end;
        }
    }
}

fn post(
    connection: &Connection<Sending, ()>,
    sending: Sending,
    work: Work<'_>,
) -> Result<(), LinkEnd> {
    let mut queue_pair = connection.queue_pair.borrow_mut();
    let mut batch = queue_pair.batch();
    batch
        .push(sending, &[work])
        .map_err(|rejected| LinkEnd::Gone(format!("posting a request failed: {rejected}")))?;
    batch
        .commit()
        .map_err(|error| LinkEnd::Gone(format!("posting a request failed: {error}")))?;
    Ok(())
}

/// Finds out whether a peer that is not heard is still there. A reliable connection notices that its
/// other end is gone only when it sends; a write of no bytes needs no key and disturbs nobody.
async fn probe(
    ring: &Rc<Ring>,
    connection: &Connection<Sending, ()>,
    requester: &Requester,
) -> LinkEnd {
    let pause = requester.session.deadline() / 4;
    loop {
        ring.sleep(pause).await;
        if requester.session.waits_since(pause) && !requester.probing.replace(true) {
            let nowhere = RemoteAddress {
                address: 0,
                rkey: 0,
            };
            let work = Work::write(nowhere, &[]).signaled();
            if let Err(end) = post(connection, Sending::Probe, work) {
                return end;
            }
        }
    }
}

/// What the requester does with its completions.
struct Requester {
    session: Session,
    /// Whether a probe is under way.
    probing: Cell<bool>,
}

impl From<VerbsError> for LinkEnd {
    fn from(error: VerbsError) -> LinkEnd {
        LinkEnd::Gone(error.to_string())
    }
}

impl From<CompletionError> for LinkEnd {
    fn from(error: CompletionError) -> LinkEnd {
        LinkEnd::Gone(error.to_string())
    }
}

impl Settle<Sending, ()> for Requester {
    type End = LinkEnd;

    fn sent(&self, sent: Sent<'_, Sending>) {
        let counters = self.session.counters();
        if sent.outcome().is_err() {
            counters.verbs_work_failed.increment();
            return;
        }
        for sending in sent {
            match sending {
                Sending::Requests(_) => counters.verbs_sends_completed.increment(),
                Sending::Probe => self.probing.set(false),
            }
        }
    }

    fn received(&self, (): (), completion: Completion) -> Result<(), LinkEnd> {
        self.session.sign_of_life();
        let (Operation::ReceiveWrite, Some(bits)) = (completion.operation, completion.immediate)
        else {
            return Err(LinkEnd::Malformed(
                "it sent a message in place of a write".to_owned(),
            ));
        };
        self.session
            .counters()
            .verbs_immediates_received
            .increment();
        self.take_reply(Immediate::decode(bits))
    }

    fn post_again(&self, queue_pair: &mut QueuePair<Sending, ()>, (): ()) -> Result<(), LinkEnd> {
        queue_pair
            .post_receive((), &[])
            .map_err(|rejected| LinkEnd::Gone(format!("posting a receive failed: {rejected}")))
    }
}

impl Requester {
    fn take_reply(&self, immediate: Immediate) -> Result<(), LinkEnd> {
        if immediate.status == Immediate::WORKING {
            return Ok(());
        }
        let slot = immediate.slot;
        let tag = self.session.full_tag(slot, immediate.tag).ok_or_else(|| {
            LinkEnd::Malformed(format!("it answered for slot {slot}, which was not asked"))
        })?;
        let request = self.session.answered(slot, tag)?;
        match self.outcome(&immediate, tag, &request.lease) {
            Ok(outcome) => {
                self.session.finish(request, outcome);
                Ok(())
            }
            Err(end) => Err(self.session.keep(request, end)),
        }
    }

    /// What a reply says, from its immediate and the slot it was written to.
    fn outcome(&self, immediate: &Immediate, tag: u32, slot: &Lease) -> Result<Outcome, LinkEnd> {
        if immediate.status != Immediate::PAYLOAD
            && let Some(refusal) = Refusal::plain(u16::from(immediate.status))
        {
            return Ok(Outcome::Refused(refusal));
        }
        // The reply's frame came with the same write as the immediate, behind the trailer.
        let frame = &slot[trailer_at(self.session.arena()) + TRAILER_BYTES..];
        match decode_header(frame).map_err(LinkEnd::frame)? {
            Header::Reply(reply)
                if reply.slot == immediate.slot
                    && reply.tag == tag
                    && Immediate::status(&reply.outcome) == immediate.status =>
            {
                self.session.check_len(&reply)?;
                Ok(reply.outcome)
            }
            _ => Err(LinkEnd::Malformed(format!(
                "the frame in slot {} is not the reply it announced",
                immediate.slot
            ))),
        }
    }
}
