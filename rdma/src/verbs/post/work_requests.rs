//! The extended work-request operations of one queue pair, found once, so that posting tests none.

use std::ptr::NonNull;

use super::classic::Classic;
use super::send_queue::Destination;
use super::{PostingInterface, Verb};
use crate::sys;
use crate::verbs::context::PostSend;
use crate::verbs::memory::RemoteAddress;

type Start = unsafe extern "C" fn(*mut sys::ibv_qp_ex);
type Complete = unsafe extern "C" fn(*mut sys::ibv_qp_ex) -> i32;
type Send = unsafe extern "C" fn(*mut sys::ibv_qp_ex);
type SendImmediate = unsafe extern "C" fn(*mut sys::ibv_qp_ex, u32);
type Remote = unsafe extern "C" fn(*mut sys::ibv_qp_ex, u32, u64);
type WriteImmediate = unsafe extern "C" fn(*mut sys::ibv_qp_ex, u32, u64, u32);
type FetchAdd = unsafe extern "C" fn(*mut sys::ibv_qp_ex, u32, u64, u64);
type CompareSwap = unsafe extern "C" fn(*mut sys::ibv_qp_ex, u32, u64, u64, u64);
type SetAddress = unsafe extern "C" fn(*mut sys::ibv_qp_ex, *mut sys::ibv_ah, u32, u32);
type SetSegment = unsafe extern "C" fn(*mut sys::ibv_qp_ex, u32, u64, u32);
type SetSegments = unsafe extern "C" fn(*mut sys::ibv_qp_ex, usize, *const sys::ibv_sge);
type SetInline = unsafe extern "C" fn(*mut sys::ibv_qp_ex, *mut std::ffi::c_void, usize);
type SetInlineList = unsafe extern "C" fn(*mut sys::ibv_qp_ex, usize, *const sys::ibv_data_buf);

/// What a queue pair's work requests can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::verbs) enum Kind {
    /// All that a reliable connection carries, with atomics or without.
    Connected {
        /// Whether there are atomics.
        atomics: bool,
    },
    /// Sends, each with a destination of its own.
    Datagrams,
}

impl Kind {
    /// What is asked of the provider (`send_ops_flags`).
    pub(in crate::verbs) fn operations(self) -> u32 {
        let sends = sys::IBV_QP_EX_WITH_SEND | sys::IBV_QP_EX_WITH_SEND_WITH_IMM;
        let connected = sends
            | sys::IBV_QP_EX_WITH_RDMA_WRITE
            | sys::IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM
            | sys::IBV_QP_EX_WITH_RDMA_READ;
        match self {
            Kind::Datagrams => sends,
            Kind::Connected { atomics: false } => connected,
            Kind::Connected { atomics: true } => {
                connected
                    | sys::IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP
                    | sys::IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD
            }
        }
    }

    /// The type of such queue pairs.
    pub(in crate::verbs) fn queue_pair_type(self) -> sys::ibv_qp_type {
        match self {
            Kind::Connected { .. } => sys::IBV_QPT_RC,
            Kind::Datagrams => sys::IBV_QPT_UD,
        }
    }
}

const NOWHERE: RemoteAddress = RemoteAddress {
    address: 0,
    rkey: 0,
};

/// A queue pair's operations. Each is called between `start` and `complete` or `abort`.
pub(in crate::verbs) struct WorkRequests {
    queue_pair: NonNull<sys::ibv_qp_ex>,
    start: Start,
    complete: Complete,
    abort: Start,
    send: Send,
    send_immediate: SendImmediate,
    write: Remote,
    write_immediate: WriteImmediate,
    read: Remote,
    atomics: Option<(FetchAdd, CompareSwap)>,
    /// Of a queue pair for datagrams.
    set_address: Option<SetAddress>,
    set_segment: SetSegment,
    set_segments: SetSegments,
    set_inline: SetInline,
    set_inline_list: SetInlineList,
    /// Ours, when the provider has no such operations.
    classic: Option<NonNull<Classic>>,
}

impl WorkRequests {
    /// The provider's, if all that a queue pair of this kind needs are there.
    ///
    /// # Safety
    /// The queue pair must live as long as the value is used, with its operations as they are now.
    pub(in crate::verbs) unsafe fn extended(
        queue_pair: NonNull<sys::ibv_qp_ex>,
        kind: Kind,
    ) -> Option<WorkRequests> {
        // SAFETY: the caller vouches for the queue pair.
        let table = unsafe { queue_pair.as_ref() };
        let (write, write_immediate, read, set_address) = match kind {
            Kind::Connected { .. } => (
                table.wr_rdma_write?,
                table.wr_rdma_write_imm?,
                table.wr_rdma_read?,
                None,
            ),
            Kind::Datagrams => (
                no_remote as Remote,
                no_write_immediate as WriteImmediate,
                no_remote as Remote,
                Some(table.wr_set_ud_addr?),
            ),
        };
        Some(WorkRequests {
            queue_pair,
            start: table.wr_start?,
            complete: table.wr_complete?,
            abort: table.wr_abort?,
            send: table.wr_send?,
            send_immediate: table.wr_send_imm?,
            write,
            write_immediate,
            read,
            atomics: table
                .wr_atomic_fetch_add
                .zip(table.wr_atomic_cmp_swp)
                .filter(|_| kind == Kind::Connected { atomics: true }),
            set_address,
            set_segment: table.wr_set_sge?,
            set_segments: table.wr_set_sge_list?,
            set_inline: table.wr_set_inline_data?,
            set_inline_list: table.wr_set_inline_data_list?,
            classic: None,
        })
    }

    /// Ours over `ibv_post_send`, for up to `depth` work requests of `segments` segments a batch.
    ///
    /// # Safety
    /// The queue pair must live as long as the value is used, and `post_send` must be its context's.
    pub(in crate::verbs) unsafe fn classic(
        queue_pair: NonNull<sys::ibv_qp>,
        post_send: PostSend,
        depth: u32,
        segments: u32,
        kind: Kind,
    ) -> WorkRequests {
        let classic = Classic::new(queue_pair, post_send, depth as usize, segments as usize);
        let made = NonNull::from(Box::leak(classic));
        // SAFETY: the table was just made, stays where it is until the value is dropped, and begins with
        // the structure that its operations are called with.
        let found = unsafe { WorkRequests::extended(made.cast(), kind) };
        WorkRequests {
            classic: Some(made),
            ..found.expect("our own table has all operations")
        }
    }

    /// Which interface of the provider is behind it.
    pub(in crate::verbs) fn interface(&self) -> PostingInterface {
        match self.classic {
            None => PostingInterface::Extended,
            Some(_) => PostingInterface::Classic,
        }
    }

    pub(in crate::verbs) fn has_atomics(&self) -> bool {
        self.atomics.is_some()
    }

    /// Opens a batch.
    ///
    /// # Safety
    /// None may be open.
    #[inline]
    pub(in crate::verbs) unsafe fn start(&self) {
        // SAFETY: the queue pair lives, by the contract of the constructors.
        unsafe { (self.start)(self.queue_pair.as_ptr()) };
    }

    /// Hands the batch to the adapter; 0 or an errno.
    ///
    /// # Safety
    /// One must be open, each of its work requests with its segments set.
    #[inline]
    pub(in crate::verbs) unsafe fn complete(&self) -> i32 {
        // SAFETY: as for `start`.
        unsafe { (self.complete)(self.queue_pair.as_ptr()) }
    }

    /// Takes the batch back.
    ///
    /// # Safety
    /// One must be open.
    #[inline]
    pub(in crate::verbs) unsafe fn abort(&self) {
        // SAFETY: as for `start`.
        unsafe { (self.abort)(self.queue_pair.as_ptr()) };
    }

    /// How many work requests the last batch got posted before it was refused.
    pub(super) fn posted(&self) -> usize {
        // SAFETY: ours, alive as long as `self`; no operation of it is running.
        self.classic
            .map_or(0, |classic| unsafe { classic.as_ref() }.posted())
    }

    /// Adds a work request, whose segments must be set next.
    ///
    /// # Safety
    /// A batch must be open and the queue pair have room for it; for atomics there must be some.
    #[inline(always)]
    pub(super) unsafe fn add(
        &self,
        (id, flags): (u64, u32),
        verb: Verb,
        remote: RemoteAddress,
        immediate: u32,
        operands: (u64, u64),
    ) {
        let queue_pair = self.queue_pair.as_ptr();
        let RemoteAddress { address, rkey } = remote;
        // SAFETY: the queue pair lives, by the contract of the constructors; these two fields are for
        // its user to set before each work request.
        unsafe {
            (*queue_pair).wr_id = id;
            (*queue_pair).wr_flags = flags;
        }
        // SAFETY: the operations are of this queue pair.
        unsafe {
            match verb {
                Verb::Send => (self.send)(queue_pair),
                Verb::SendWithImmediate => (self.send_immediate)(queue_pair, immediate.to_be()),
                Verb::Write => (self.write)(queue_pair, rkey, address),
                Verb::WriteWithImmediate => {
                    (self.write_immediate)(queue_pair, rkey, address, immediate.to_be());
                }
                Verb::Read => (self.read)(queue_pair, rkey, address),
                Verb::FetchAdd | Verb::CompareSwap => {
                    let Some((fetch_add, compare_swap)) = self.atomics else {
                        unreachable!("atomics are refused where there are none");
                    };
                    let (first, second) = operands;
                    match verb {
                        Verb::FetchAdd => fetch_add(queue_pair, rkey, address, first),
                        _ => compare_swap(queue_pair, rkey, address, first, second),
                    }
                }
            }
        }
    }

    /// Sets the destination of the datagram just added.
    ///
    /// # Safety
    /// One was just added, on a queue pair for datagrams; the handle must live until it completes.
    #[inline]
    pub(in crate::verbs) unsafe fn set_address(
        &self,
        handle: *mut sys::ibv_ah,
        qp_number: u32,
        queue_key: u32,
    ) {
        let Some(set_address) = self.set_address else {
            unreachable!("a connection has no destinations");
        };
        // SAFETY: as the caller says.
        unsafe { set_address(self.queue_pair.as_ptr(), handle, qp_number, queue_key) };
    }

    /// Sets the only segment of the work request just added.
    ///
    /// # Safety
    /// One was just added; the adapter may use these bytes until it completes.
    #[inline(always)]
    pub(in crate::verbs) unsafe fn set_segment(&self, segment: sys::ibv_sge) {
        // SAFETY: as the caller says.
        unsafe {
            (self.set_segment)(
                self.queue_pair.as_ptr(),
                segment.lkey,
                segment.addr,
                segment.length,
            );
        }
    }

    /// Sets the segments of the work request just added; there may be none.
    ///
    /// # Safety
    /// As [`WorkRequests::set_segment`], and no more than the queue pair was made for.
    pub(in crate::verbs) unsafe fn set_segments(&self, segments: &[sys::ibv_sge]) {
        // SAFETY: as the caller says; the list is only read during the call.
        unsafe {
            (self.set_segments)(self.queue_pair.as_ptr(), segments.len(), segments.as_ptr());
        }
    }

    /// Copies the bytes of the work request just added, which is a send or a write with the flag
    /// `IBV_SEND_INLINE`: some providers (rxe) go by the flag, others (mlx5) by the operation.
    ///
    /// # Safety
    /// One was just added; the bytes are valid now and no more than the queue pair takes inline.
    #[inline]
    pub(in crate::verbs) unsafe fn set_inline(&self, start: u64, len: u32) {
        // SAFETY: as the caller says; the provider only reads the bytes, during the call.
        unsafe {
            (self.set_inline)(
                self.queue_pair.as_ptr(),
                start as *mut std::ffi::c_void,
                len as usize,
            );
        }
    }

    /// As [`WorkRequests::set_inline`], from several places.
    ///
    /// # Safety
    /// As there, and no more places than the queue pair was made for.
    pub(in crate::verbs) unsafe fn set_inline_list(&self, bytes: &[sys::ibv_data_buf]) {
        // SAFETY: as the caller says.
        unsafe {
            (self.set_inline_list)(self.queue_pair.as_ptr(), bytes.len(), bytes.as_ptr());
        }
    }

    /// Posts a batch of one signalled send without bytes; 0 or an errno.
    ///
    /// # Safety
    /// No batch may be open, the queue pair must have room, and the destination be as
    /// [`Destination::set`] asks.
    pub(super) unsafe fn post_empty_send<D: Destination>(&self, id: u64, to: D) -> i32 {
        // SAFETY: as the caller says; a send without segments names no memory.
        unsafe {
            self.start();
            let request = (id, sys::IBV_SEND_SIGNALED);
            self.add(request, Verb::Send, NOWHERE, 0, (0, 0));
            to.set(self);
            self.set_segments(&[]);
            self.complete()
        }
    }
}

// What stands where a queue pair for datagrams has no operation; its batches have none that would call it.

unsafe extern "C" fn no_remote(_: *mut sys::ibv_qp_ex, _: u32, _: u64) {}

unsafe extern "C" fn no_write_immediate(_: *mut sys::ibv_qp_ex, _: u32, _: u64, _: u32) {}

impl Drop for WorkRequests {
    fn drop(&mut self) {
        if let Some(classic) = self.classic.take() {
            // SAFETY: a leaked box of `classic`'s, used through this value only.
            drop(unsafe { Box::from_raw(classic.as_ptr()) });
        }
    }
}
