//! Posting: payloads go in, work requests of one batch reach the adapter with one doorbell.
//!
//! There is one way down, the extended work-request operations (`ibv_wr_start`, `ibv_wr_*`,
//! `ibv_wr_complete`): those of the provider where it has them, else ours over its `ibv_post_send`
//! ([`classic`]). Which one a queue pair got is in [`super::Granted::interface`].

mod batch;
mod classic;
mod fetch;
mod push;
mod send_queue;
mod work_requests;

use std::fmt;
use std::io;

use thiserror::Error;

pub use self::batch::SendBatch;
pub use self::fetch::Fetch;
pub(super) use self::send_queue::{Connected, Destination, SendQueue, Size, errno_of};
pub(super) use self::work_requests::{Kind, WorkRequests};
use super::memory::{RemoteAddress, Segment};
use crate::sys;

/// How work requests reach the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostingInterface {
    /// `ibv_wr_*`, since rdma-core 24: cheaper, and a batch is taken as a whole or not at all.
    Extended,
    /// `ibv_post_send`, which every provider has: a batch may be taken in part.
    Classic,
}

/// One work request of a batch, over parts of its payload.
#[derive(Debug, Clone, Copy)]
pub struct Work<'s> {
    verb: Verb,
    signaled: bool,
    fenced: bool,
    immediate: u32,
    remote: RemoteAddress,
    /// What is added; or what is expected, and what is put in its place.
    operands: (u64, u64),
    segments: &'s [Segment],
}

/// What a work request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Send,
    SendWithImmediate,
    Write,
    WriteWithImmediate,
    Read,
    FetchAdd,
    CompareSwap,
}

impl Verb {
    /// Whether the payload is where the result goes.
    #[inline(always)]
    fn writes_payload(self) -> bool {
        matches!(self, Verb::Read) || self.is_atomic()
    }

    #[inline(always)]
    fn is_atomic(self) -> bool {
        matches!(self, Verb::FetchAdd | Verb::CompareSwap)
    }
}

impl<'s> Work<'s> {
    #[inline(always)]
    const fn new(verb: Verb, segments: &'s [Segment]) -> Work<'s> {
        Work {
            verb,
            signaled: false,
            fenced: false,
            immediate: 0,
            remote: RemoteAddress {
                address: 0,
                rkey: 0,
            },
            operands: (0, 0),
            segments,
        }
    }

    #[inline(always)]
    const fn at(self, remote: RemoteAddress) -> Work<'s> {
        Work { remote, ..self }
    }

    #[inline(always)]
    const fn with(self, operands: (u64, u64)) -> Work<'s> {
        Work { operands, ..self }
    }

    /// Sends a message into a receive of the peer.
    #[inline(always)]
    pub const fn send(segments: &'s [Segment]) -> Work<'s> {
        Work::new(Verb::Send, segments)
    }

    /// Sends a message with 32 bits that the peer's completion carries.
    #[inline(always)]
    pub const fn send_with_immediate(immediate: u32, segments: &'s [Segment]) -> Work<'s> {
        Work {
            immediate,
            ..Work::new(Verb::SendWithImmediate, segments)
        }
    }

    /// Writes into the peer's memory; the peer learns nothing of it.
    #[inline(always)]
    pub const fn write(remote: RemoteAddress, segments: &'s [Segment]) -> Work<'s> {
        Work::new(Verb::Write, segments).at(remote)
    }

    /// Writes into the peer's memory, then completes a receive of the peer with 32 bits. When that
    /// completion is seen, this write and all before it are in place.
    #[inline(always)]
    pub const fn write_with_immediate(
        remote: RemoteAddress,
        immediate: u32,
        segments: &'s [Segment],
    ) -> Work<'s> {
        let work = Work::new(Verb::WriteWithImmediate, segments).at(remote);
        Work { immediate, ..work }
    }

    /// Asks for a completion. Without one, a payload comes back with a later completion; at least one
    /// in half a queue is signalled in any case, so that a queue never fills up for good.
    #[must_use]
    #[inline(always)]
    pub const fn signaled(self) -> Work<'s> {
        Work {
            signaled: true,
            ..self
        }
    }

    /// Waits for the reads and atomics posted before it.
    #[must_use]
    #[inline(always)]
    pub const fn fenced(self) -> Work<'s> {
        Work {
            fenced: true,
            ..self
        }
    }

    #[inline(always)]
    fn flags(&self) -> u32 {
        let flag = |set, flag| if set { flag } else { 0 };
        flag(self.signaled, sys::IBV_SEND_SIGNALED) | flag(self.fenced, sys::IBV_SEND_FENCE)
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
    /// An atomic on a word that isn't aligned.
    #[error("an atomic works on 8 bytes at a multiple of 8, not at {address:#x}")]
    Unaligned {
        /// The peer's address.
        address: u64,
    },
    /// Atomics, of a device or provider that has none.
    #[error("this device has no atomics: `trackbed rdma devices --output json` has its limits")]
    NoAtomics,
    /// A read or an atomic on a connection that carries none.
    #[error("this device or its peer's serves no reads and no atomics on a connection")]
    NoReads,
    /// A datagram that doesn't fit one packet.
    #[error(
        "a datagram of this queue pair has at most {limit} bytes (the port's MTU), not {bytes}"
    )]
    TooLong {
        /// Bytes it has at most.
        limit: u32,
        /// Its bytes.
        bytes: u64,
    },
    /// A datagram to a destination that this queue pair doesn't have.
    #[error("the destination was removed, or is of another queue pair: add it first")]
    UnknownPeer,
    /// A window on memory, or a queue pair, that it doesn't fit.
    #[error(
        "the window, the memory and the queue pair don't go together: register the memory with \
         register_for_windows, all in one protection domain, and close a window on the queue pair that opened it"
    )]
    NoWindows,
    /// The provider refused the work request.
    #[error("ibv_post_send: {}", io::Error::from_raw_os_error(*.errno))]
    SendRefused {
        /// Its errno.
        errno: i32,
    },
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

/// A batch that the provider refused, in part or as a whole.
#[derive(Error)]
#[error("{verb} on queue pair {qp_number} took {posted} of {wanted} work requests: {source}")]
pub struct PostError<S> {
    /// The verb, by its C name.
    pub verb: &'static str,
    /// The queue pair.
    pub qp_number: u32,
    /// Work requests posted; with the extended interface none. Payloads with a posted work request stay
    /// with the queue pair.
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
            .field("verb", &self.verb)
            .field("qp_number", &self.qp_number)
            .field("posted", &self.posted)
            .field("wanted", &self.wanted)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Whether the segments fit the queue pair and lie in a payload of this length.
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
    match segments
        .iter()
        .find(|segment| !segment.lies_within(payload_len))
    {
        Some(&segment) => Err(Rejection::OutsidePayload {
            segment,
            len: payload_len,
        }),
        None => Ok(()),
    }
}

impl Segment {
    #[inline(always)]
    fn lies_within(&self, payload_len: usize) -> bool {
        u64::from(self.offset) + u64::from(self.len) <= payload_len as u64
    }

    /// As the adapter knows it, in a payload that starts at `base`.
    #[inline]
    pub(super) fn within(&self, base: u64, lkey: u32) -> sys::ibv_sge {
        sys::ibv_sge {
            addr: base + u64::from(self.offset),
            length: self.len,
            lkey,
        }
    }
}
