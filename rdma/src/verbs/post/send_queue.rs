//! The send side of a queue pair of either kind: its outstanding work requests and what gathering more of
//! them needs.

use super::{Rejection, WorkRequests};
use crate::sys;
use crate::verbs::attached::Attached;
use crate::verbs::memory::LocalRange;
use crate::verbs::ring::Ring;

/// Where a work request goes: each datagram has a destination of its own, a connection one for all.
pub(in crate::verbs) trait Destination: Copy {
    /// Tells it to the provider, for the work request just added.
    ///
    /// # Safety
    /// One must have been added, whose segments are set next, on a queue pair of the kind that has such
    /// destinations; what it names must live until the work request has completed.
    unsafe fn set(self, work: &WorkRequests);
}

/// The peer of the connection.
#[derive(Clone, Copy)]
pub(in crate::verbs) struct Connected;

impl Destination for Connected {
    #[inline(always)]
    unsafe fn set(self, _: &WorkRequests) {}
}

/// What posting touches stands first.
pub(in crate::verbs) struct SendQueue<S> {
    pub(in crate::verbs) ring: Ring<S>,
    /// The attached region that the last payload lay in.
    pub(super) last_range: LocalRange,
    /// The number after the last signalled work request.
    pub(super) signaled_until: u64,
    /// So many in a row go unsignalled at most.
    pub(super) unsignaled_limit: u64,
    /// Shorter messages are copied.
    pub(super) inline_below: u32,
    pub(super) batch_open: bool,
    pub(super) work: WorkRequests,
    pub(super) max_segments: u32,
    /// Room to write the segments of one work request down.
    pub(super) segment_list: Box<[sys::ibv_sge]>,
    pub(super) inline_list: Box<[sys::ibv_data_buf]>,
    /// Reads and atomics on their way at a time; the adapter holds more of them back.
    pub(in crate::verbs) reads_issued: u8,
    shut: bool,
    pub(super) qp_number: u32,
    pub(in crate::verbs) attached: Attached,
}

/// How large a send queue is.
pub(in crate::verbs) struct Size {
    /// Work requests; the adapter's queue has room for one more, the marker of [`SendQueue::shut`].
    pub(in crate::verbs) depth: u32,
    pub(in crate::verbs) segments: u32,
    /// Bytes copied at most; 0 copies none.
    pub(in crate::verbs) inline_bytes: u32,
}

impl<S> SendQueue<S> {
    /// Around the operations of a queue pair, its work requests numbered from `first` on.
    pub(in crate::verbs) fn new(
        work: WorkRequests,
        qp_number: u32,
        first: u64,
        size: &Size,
        attached: Attached,
    ) -> SendQueue<S> {
        let width = size.segments as usize;
        SendQueue {
            ring: Ring::new(size.depth, first),
            last_range: LocalRange::NONE,
            signaled_until: first,
            unsignaled_limit: u64::from((size.depth / 2).saturating_sub(1)),
            inline_below: match size.inline_bytes {
                0 => 0,
                bytes => bytes.saturating_add(1),
            },
            batch_open: false,
            work,
            max_segments: size.segments,
            segment_list: vec![sys::ibv_sge::default(); width].into_boxed_slice(),
            inline_list: vec![sys::ibv_data_buf::default(); width].into_boxed_slice(),
            reads_issued: 0,
            shut: false,
            qp_number,
            attached,
        }
    }

    /// Takes no more work requests. What succeeded unsignalled has no completion of its own: a marker,
    /// which comes back flushed, stands for it. The queue pair must be in the error state. Once; then
    /// it does nothing. Fails with what the provider returned.
    ///
    /// # Safety
    /// What the destination names must live until the queue is drained.
    pub(in crate::verbs) unsafe fn shut<D: Destination>(&mut self, to: D) -> Result<(), i32> {
        if std::mem::replace(&mut self.shut, true) {
            return Ok(());
        }
        self.close_forgotten_batch();
        if self.ring.len() == 0 {
            self.ring.shut();
            return Ok(());
        }
        let marker = self.ring.push(None);
        self.ring.shut();
        // SAFETY: no batch is open, one entry of the adapter's queue is kept for this, and the caller
        // vouches for the destination.
        let code = unsafe { self.work.post_empty_send(marker, to) };
        if code != 0 {
            self.ring.pop_back(marker);
            return Err(code);
        }
        Ok(())
    }

    /// Has `post` post a work request that moves no data, signalled, under the number it is given; it
    /// returns 0 or an errno. The work request has its place among the sends, without a payload.
    pub(in crate::verbs) fn post_control(
        &mut self,
        post: impl FnOnce(u64) -> i32,
    ) -> Result<u64, Rejection> {
        if !self.ring.has_room() {
            return Err(Rejection::QueueFull { room: 0, wanted: 1 });
        }
        self.close_forgotten_batch();
        let number = self.ring.push(None);
        let code = post(number);
        if code == 0 {
            self.signaled_until = number.wrapping_add(1);
            return Ok(number);
        }
        self.ring.pop_back(number);
        let errno = errno_of(code);
        Err(Rejection::SendRefused { errno })
    }

    /// Has the next work request signalled, whatever went before it.
    pub(super) fn signal_next(&mut self) {
        self.signaled_until = self.ring.next().wrapping_sub(self.unsignaled_limit);
    }

    /// Takes back what a batch told the provider that was never dropped ([`std::mem::forget`]). Its
    /// payloads were not posted; they stay in the ring and come back with a later completion.
    #[cold]
    pub(in crate::verbs) fn close_forgotten_batch(&mut self) {
        if std::mem::take(&mut self.batch_open) {
            // SAFETY: the batch is open and nobody uses it any more.
            unsafe { self.work.abort() };
            self.signal_next();
        }
    }

    /// Forgets all payloads and keeps their regions registered, for an adapter that may still use them.
    pub(in crate::verbs) fn leak(&mut self) {
        self.ring.leak();
        self.attached.leak();
    }
}

/// The errno of a post that was refused: some providers return it, in one sign or the other, some set it.
pub(in crate::verbs) fn errno_of(code: i32) -> i32 {
    match code {
        -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
        code => code.saturating_abs(),
    }
}
