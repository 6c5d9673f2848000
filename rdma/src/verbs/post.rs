//! Posting: payloads go in, work requests of one batch reach the adapter with one doorbell.

use std::fmt;
use std::io;
use std::ptr::null_mut;

use thiserror::Error;

use super::completion::Queue;
use super::memory::{LocalRange, RemoteAddress, Segment, Sink, Source};
use super::queue_pair::Core;
use super::settle::work_request_id;
use crate::sys;

/// One work request of a batch, over parts of its payload.
#[derive(Debug, Clone, Copy)]
pub struct Work<'s> {
    opcode: sys::ibv_wr_opcode,
    remote: Option<RemoteAddress>,
    immediate: u32,
    segments: &'s [Segment],
    flags: u32,
}

impl<'s> Work<'s> {
    fn new(opcode: sys::ibv_wr_opcode, segments: &'s [Segment]) -> Work<'s> {
        Work {
            opcode,
            remote: None,
            immediate: 0,
            segments,
            flags: 0,
        }
    }

    /// Sends a message into a receive of the peer.
    pub fn send(segments: &'s [Segment]) -> Work<'s> {
        Work::new(sys::IBV_WR_SEND, segments)
    }

    /// Sends a message with 32 bits that the peer's completion carries.
    pub fn send_with_immediate(immediate: u32, segments: &'s [Segment]) -> Work<'s> {
        Work {
            immediate,
            ..Work::new(sys::IBV_WR_SEND_WITH_IMM, segments)
        }
    }

    /// Writes into the peer's memory; the peer learns nothing of it.
    pub fn write(remote: RemoteAddress, segments: &'s [Segment]) -> Work<'s> {
        Work {
            remote: Some(remote),
            ..Work::new(sys::IBV_WR_RDMA_WRITE, segments)
        }
    }

    /// Writes into the peer's memory, then completes a receive of the peer with 32 bits. When that
    /// completion is seen, this write and all before it are in place.
    pub fn write_with_immediate(
        remote: RemoteAddress,
        immediate: u32,
        segments: &'s [Segment],
    ) -> Work<'s> {
        let work = Work::new(sys::IBV_WR_RDMA_WRITE_WITH_IMM, segments);
        Work {
            remote: Some(remote),
            immediate,
            ..work
        }
    }

    /// Asks for a completion. Without one, a payload comes back with a later completion; at least one
    /// in half a queue is signalled in any case, so that a queue never fills up for good.
    #[must_use]
    pub fn signaled(self) -> Work<'s> {
        Work {
            flags: self.flags | sys::IBV_SEND_SIGNALED,
            ..self
        }
    }

    /// Waits for the reads posted before it.
    #[must_use]
    pub fn fenced(self) -> Work<'s> {
        Work {
            flags: self.flags | sys::IBV_SEND_FENCE,
            ..self
        }
    }
}

/// Why a payload was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Rejection {
    /// No room until completions are settled.
    #[error(
        "the queue has room for {room} more work requests, not {wanted}: settle completions first"
    )]
    QueueFull {
        /// Room there is.
        room: u32,
        /// Room needed.
        wanted: u32,
    },
    /// A payload without work.
    #[error("a payload needs at least one work request")]
    NoWork,
    /// More segments than the queue pair was made for.
    #[error("a work request of this queue pair has at most {limit} segments, not {wanted}")]
    TooManySegments {
        /// What it was made for.
        limit: u32,
        /// What was given.
        wanted: usize,
    },
    /// A segment that leaves its payload.
    #[error("segment {}+{} leaves its payload of {len} bytes", .segment.offset, .segment.len)]
    OutsidePayload {
        /// The segment.
        segment: Segment,
        /// The payload's length.
        len: usize,
    },
    /// A payload that isn't in attached memory.
    #[error("the payload lies in no region attached to this queue pair: attach its region first")]
    NotAttached,
    /// A payload in memory that was registered for sending only.
    #[error(
        "the payload's region is registered for sending only: register it with Access::LocalWrite"
    )]
    ReadOnly,
    /// The provider refused the receive.
    #[error("ibv_post_recv: {}", io::Error::from_raw_os_error(*.errno))]
    Refused {
        /// Its errno.
        errno: i32,
    },
}

/// A payload that was not taken, and why.
#[derive(Error)]
#[error("{reason}")]
pub struct Rejected<B> {
    /// The payload, back.
    pub payload: B,
    /// Why.
    #[source]
    pub reason: Rejection,
}

/// A batch that the adapter refused, in part or as a whole.
#[derive(Error)]
#[error(
    "ibv_post_send on queue pair {qp_number} took {posted} of {wanted} work requests: {source}"
)]
pub struct PostError<S> {
    /// The queue pair.
    pub qp_number: u32,
    /// Work requests posted. Payloads with a posted work request stay with the queue pair.
    pub posted: usize,
    /// Work requests in the batch.
    pub wanted: usize,
    /// The errno.
    pub source: io::Error,
    /// The payloads of which nothing was posted.
    pub payloads: Vec<S>,
}

impl<B> fmt::Debug for Rejected<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected")
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for PostError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostError")
            .field("qp_number", &self.qp_number)
            .field("posted", &self.posted)
            .field("wanted", &self.wanted)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Work requests being gathered. Dropping it posts nothing and drops its payloads.
pub struct SendBatch<'q, S: Source, R: Sink> {
    core: &'q mut Core<S, R>,
    start: u32,
    count: usize,
    unsignaled_before: u32,
}

impl<'q, S: Source, R: Sink> SendBatch<'q, S, R> {
    pub(super) fn new(core: &'q mut Core<S, R>) -> SendBatch<'q, S, R> {
        let start = core.sends.next();
        let unsignaled_before = core.unsignaled;
        SendBatch {
            core,
            start,
            count: 0,
            unsignaled_before,
        }
    }

    /// Adds the work requests of one payload, which moves in and comes back when the last is done.
    #[inline]
    pub fn push(&mut self, payload: S, work: &[Work<'_>]) -> Result<(), Rejected<S>> {
        match self.check(&payload, work) {
            Ok(range) => self.add(payload, work, range),
            Err(reason) => return Err(Rejected { payload, reason }),
        }
        Ok(())
    }

    /// Adds a read from the peer's memory into a payload of ours.
    pub fn push_read(
        &mut self,
        payload: S,
        remote: RemoteAddress,
        segments: &[Segment],
    ) -> Result<(), Rejected<S>>
    where
        S: Sink,
    {
        let read = Work::new(sys::IBV_WR_RDMA_READ, segments);
        let work = [Work {
            remote: Some(remote),
            ..read
        }
        .signaled()];
        match self.check(&payload, &work) {
            Ok(Some(range)) if !range.writable => Err(Rejected {
                payload,
                reason: Rejection::ReadOnly,
            }),
            Ok(range) => {
                self.add(payload, &work, range);
                Ok(())
            }
            Err(reason) => Err(Rejected { payload, reason }),
        }
    }

    /// Work requests in the batch.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Posts the batch with one doorbell; how many work requests that were.
    pub fn commit(mut self) -> Result<usize, PostError<S>> {
        let count = std::mem::take(&mut self.count);
        if count == 0 {
            return Ok(0);
        }
        let core = &mut *self.core;
        let first = core.work.as_mut_ptr();
        for index in 0..count - 1 {
            // SAFETY: `count` work requests of the array are filled in.
            unsafe { (*first.add(index)).next = first.add(index + 1) };
        }
        // SAFETY: as above.
        unsafe { (*first.add(count - 1)).next = null_mut() };
        let mut refused = null_mut();
        // SAFETY: the queue pair is ours; the list is terminated; its segments lie in attached regions,
        // which `core` keeps registered, and in payloads that the ring owns until they complete.
        let code = unsafe { (core.operations.post_send)(core.raw.as_ptr(), first, &mut refused) };
        if code == 0 {
            return Ok(count);
        }
        let source = match code {
            -1 => io::Error::last_os_error(),
            code => io::Error::from_raw_os_error(code.saturating_abs()),
        };
        let posted =
            (refused as usize).wrapping_sub(first as usize) / size_of::<sys::ibv_send_wr>();
        // A provider that names none of ours posted nothing.
        let posted = if posted < count { posted } else { 0 };
        let payloads = self.take_back(posted);
        let qp_number = self.core.qp_number;
        Err(PostError {
            qp_number,
            posted,
            wanted: count,
            source,
            payloads,
        })
    }

    /// What a payload's work requests need, or why they can't be.
    #[inline]
    fn check(&self, payload: &S, work: &[Work<'_>]) -> Result<Option<LocalRange>, Rejection> {
        let room = self.core.send_room();
        let wanted = u32::try_from(work.len()).unwrap_or(u32::MAX);
        if wanted > room {
            return Err(Rejection::QueueFull { room, wanted });
        }
        if work.is_empty() {
            return Err(Rejection::NoWork);
        }
        let mut any = false;
        for request in work {
            check_segments(request.segments, payload.len(), self.core.max_segments)?;
            any |= !request.segments.is_empty();
        }
        if !any {
            return Ok(None);
        }
        self.core
            .range_of(payload.as_ptr(), payload.len())
            .map(Some)
    }

    #[inline]
    fn add(&mut self, payload: S, work: &[Work<'_>], range: Option<LocalRange>) {
        let core = &mut *self.core;
        let base = payload.as_ptr() as u64;
        let lkey = range.map_or(0, |range| range.lkey);
        let width = core.max_segments as usize;
        let chain = core.sends.next();
        let mut payload = Some(payload);
        for (position, request) in work.iter().enumerate() {
            let kept = if position + 1 == work.len() {
                payload.take()
            } else {
                None
            };
            let sequence = core.sends.push(kept);
            let segments = &mut core.segments[self.count * width..][..request.segments.len()];
            let mut bytes = 0;
            for (target, segment) in segments.iter_mut().zip(request.segments) {
                let addr = base + u64::from(segment.offset);
                *target = sys::ibv_sge {
                    addr,
                    length: segment.len,
                    lkey,
                };
                bytes += u64::from(segment.len);
            }
            let mut flags = request.flags;
            if bytes <= u64::from(core.max_inline) && request.opcode != sys::IBV_WR_RDMA_READ {
                flags |= sys::IBV_SEND_INLINE;
            }
            core.unsignaled += 1;
            if core.unsignaled >= core.signal_every {
                flags |= sys::IBV_SEND_SIGNALED;
            }
            if flags & sys::IBV_SEND_SIGNALED != 0 {
                core.unsignaled = 0;
            }
            core.chains[self.count] = chain;
            let target = &mut core.work[self.count];
            target.wr_id = work_request_id(core.epoch, Queue::Send, sequence);
            target.sg_list = segments.as_mut_ptr();
            target.num_sge = segments.len() as i32;
            target.opcode = request.opcode;
            target.send_flags = flags;
            target.__bindgen_anon_1.imm_data = request.immediate.to_be();
            if let Some(remote) = request.remote {
                target.wr.rdma = sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 {
                    remote_addr: remote.address,
                    rkey: remote.rkey,
                };
            }
            self.count += 1;
        }
    }

    /// Takes back everything after the first `posted` work requests.
    fn take_back(&mut self, posted: usize) -> Vec<S> {
        let core = &mut *self.core;
        let mut payloads = Vec::new();
        let end = self.start.wrapping_add(posted as u32) & super::ring::SEQUENCE_MASK;
        let split = posted
            .checked_sub(1)
            .zip(core.chains.get(posted))
            .filter(|(last, chain)| core.chains[*last] == **chain)
            .is_some();
        while let Some(payload) = core.sends.pop_back(end) {
            payloads.extend(payload);
        }
        // The adapter still reads the payload whose chain was cut: its posted part keeps it.
        if split && let Some(payload) = payloads.pop() {
            core.sends
                .keep_with(end.wrapping_sub(1) & super::ring::SEQUENCE_MASK, payload);
        }
        payloads.reverse();
        if posted == 0 {
            core.unsignaled = self.unsignaled_before;
        }
        payloads
    }
}

impl<S: Source, R: Sink> Drop for SendBatch<'_, S, R> {
    fn drop(&mut self) {
        if self.count > 0 {
            self.count = 0;
            drop(self.take_back(0));
        }
    }
}

pub(super) fn check_segments(
    segments: &[Segment],
    payload_len: usize,
    limit: u32,
) -> Result<(), Rejection> {
    if segments.len() > limit as usize {
        return Err(Rejection::TooManySegments {
            limit,
            wanted: segments.len(),
        });
    }
    for segment in segments {
        if u64::from(segment.offset) + u64::from(segment.len) > payload_len as u64 {
            return Err(Rejection::OutsidePayload {
                segment: *segment,
                len: payload_len,
            });
        }
    }
    Ok(())
}
