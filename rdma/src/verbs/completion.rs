//! Completion queues and what their entries say.

mod waiting;

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut, without_provenance_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::context::{Context, Operations};
use super::error::VerbsError;
use super::event;
use super::status::{CompletionError, Status};
use super::table::is_of_table;
use crate::sys;

/// Entries taken from the adapter at a time.
const BATCH: usize = 32;

/// A completion queue, polled from one place.
pub struct CompletionQueue {
    /// The next entry to hand out, and the end of those taken from the adapter.
    next: *const sys::ibv_wc,
    end: *const sys::ibv_wc,
    /// Where entries are taken to: `BATCH` of them, a leaked box.
    batch: NonNull<sys::ibv_wc>,
    operations: Operations,
    /// Whether a notification was asked for and has not come.
    armed: bool,
    /// Notifications that may be on the channel, or come to it unasked, at most: each request brings
    /// one, or joins one that was made before.
    due: u32,
    /// Notifications taken and not yet acknowledged.
    unacknowledged: u32,
    /// Whether taking a notification waits for one.
    blocks: bool,
    shared: Arc<SharedQueue>,
    // `poll` is for one thread at a time; moving the queue to another one is fine.
    _not_sync: PhantomData<std::cell::Cell<()>>,
}

// SAFETY: the pointers are into memory of its own, which moves with it; the rest is `Send`.
unsafe impl Send for CompletionQueue {}

/// What queue pairs hold of their completion queue.
pub(super) struct SharedQueue {
    raw: NonNull<sys::ibv_cq>,
    channel: Option<NonNull<sys::ibv_comp_channel>>,
    context: Arc<Context>,
    id: u64,
    capacity: u32,
    reserved: AtomicU32,
}

// SAFETY: libibverbs' functions on a queue are thread safe; polling is left to the one CompletionQueue.
unsafe impl Send for SharedQueue {}
// SAFETY: as above.
unsafe impl Sync for SharedQueue {}

impl CompletionQueue {
    /// Makes a queue that is only polled. `entries` is the least capacity, for all work requests of its
    /// queue pairs, signalled or not: after an error every one of them completes.
    pub fn new(context: &Arc<Context>, entries: u32) -> Result<CompletionQueue, VerbsError> {
        Self::create(context, entries, None)
    }

    /// Makes a queue with a descriptor that becomes readable when a requested notification is due.
    pub fn with_events(
        context: &Arc<Context>,
        entries: u32,
    ) -> Result<CompletionQueue, VerbsError> {
        // SAFETY: the context is open.
        let channel = unsafe { (context.library().create_comp_channel)(context.as_ptr()) };
        let channel = NonNull::new(channel)
            .ok_or_else(|| VerbsError::last("ibv_create_comp_channel", context.name()))?;
        // SAFETY: the channel was just made.
        let fd = unsafe { (*channel.as_ptr()).fd };
        let made = event::set_blocking(fd, false)
            .map_err(|source| VerbsError::Call {
                verb: "fcntl",
                object: context.name().to_owned(),
                source,
            })
            .and_then(|()| Self::create(context, entries, Some(channel)));
        if made.is_err() {
            // SAFETY: the channel is ours and no queue uses it.
            unsafe { (context.library().destroy_comp_channel)(channel.as_ptr()) };
        }
        made
    }

    fn create(
        context: &Arc<Context>,
        entries: u32,
        channel: Option<NonNull<sys::ibv_comp_channel>>,
    ) -> Result<CompletionQueue, VerbsError> {
        context.check_process()?;
        let wanted = i32::try_from(entries.max(1)).unwrap_or(i32::MAX);
        let limits = context.limits();
        limits.check(
            context.name(),
            "entries in a completion queue",
            entries.into(),
            limits.completion_queue_entries.into(),
        )?;
        let channel_pointer = channel.map_or(null_mut(), NonNull::as_ptr);
        static IDS: AtomicU64 = AtomicU64::new(1);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        // By this tag events name the queue; nobody takes it for an address.
        let tag = without_provenance_mut(id as usize);
        // SAFETY: the context is open, and the channel is of it.
        let raw = unsafe {
            (context.library().create_cq)(context.as_ptr(), wanted, tag, channel_pointer, 0)
        };
        let raw = NonNull::new(raw).ok_or_else(|| {
            VerbsError::last(
                "ibv_create_cq",
                format!("{} ({entries} entries)", context.name()),
            )
        })?;
        // SAFETY: the queue was just made; the field holds the granted capacity and never changes.
        let capacity = u32::try_from(unsafe { (*raw.as_ptr()).cqe }).unwrap_or(0);
        let batch = Box::leak(Box::new([sys::ibv_wc::default(); BATCH]));
        let batch = NonNull::from(batch).cast::<sys::ibv_wc>();
        Ok(CompletionQueue {
            next: batch.as_ptr(),
            end: batch.as_ptr(),
            batch,
            shared: Arc::new(SharedQueue {
                raw,
                channel,
                context: Arc::clone(context),
                id,
                capacity,
                reserved: AtomicU32::new(0),
            }),
            operations: context.operations(),
            armed: false,
            due: 0,
            unacknowledged: 0,
            blocks: false,
            _not_sync: PhantomData,
        })
    }

    /// The device it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.shared.context
    }

    /// Its number, unique in this process, by which asynchronous events name it.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Entries granted.
    pub fn capacity(&self) -> u32 {
        self.shared.capacity
    }

    /// Takes the next completion, if there is one. Nothing is lost by stopping in between.
    #[inline(always)]
    pub fn poll(&mut self) -> Result<Option<WorkCompletion>, VerbsError> {
        if self.next == self.end && !self.refill()? {
            return Ok(None);
        }
        // SAFETY: the entries from `next` to `end` were filled in and not handed out yet.
        let done = unsafe { WorkCompletion::of(&*self.next) };
        // SAFETY: as above, so this is at most the end.
        self.next = unsafe { self.next.add(1) };
        Ok(Some(done))
    }

    /// Takes entries from the adapter, when all are handed out; whether there was any.
    #[inline]
    fn refill(&mut self) -> Result<bool, VerbsError> {
        let batch = self.batch.as_ptr();
        (self.next, self.end) = (batch, batch);
        // SAFETY: the queue lives as long as `shared`, there is room for BATCH entries, and `&mut self`
        // keeps anyone else from polling.
        let polled =
            unsafe { (self.operations.poll_cq)(self.shared.raw.as_ptr(), BATCH as i32, batch) };
        let Ok(filled) = usize::try_from(polled) else {
            return Err(self.broken(polled));
        };
        // SAFETY: no more than there is room for.
        self.end = unsafe { batch.add(filled.min(BATCH)) };
        Ok(filled > 0)
    }

    #[cold]
    fn broken(&self, code: i32) -> VerbsError {
        VerbsError::Broken {
            verb: "ibv_poll_cq",
            object: self.shared.context.name().to_owned(),
            code,
        }
    }

    pub(super) fn shared(&self) -> &Arc<SharedQueue> {
        &self.shared
    }
}

impl SharedQueue {
    pub(super) fn as_ptr(&self) -> *mut sys::ibv_cq {
        self.raw.as_ptr()
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Sets entries aside for a queue pair, so that the queue can't overrun.
    pub(super) fn reserve(&self, wanted: u32) -> Result<(), VerbsError> {
        self.reserved
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |reserved| {
                reserved
                    .checked_add(wanted)
                    .filter(|sum| *sum <= self.capacity)
            })
            .map(drop)
            .map_err(|reserved| VerbsError::CompletionQueueTooSmall {
                capacity: self.capacity,
                reserved,
                wanted,
            })
    }

    pub(super) fn release(&self, entries: u32) {
        self.reserved.fetch_sub(entries, Ordering::Relaxed);
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // Destroying the queue, later when its queue pairs are gone, waits for this.
        if self.unacknowledged > 0 && !self.shared.context.is_inherited() {
            self.acknowledge();
        }
        let batch = self.batch.cast::<[sys::ibv_wc; BATCH]>();
        // SAFETY: the leaked box; entries in it own nothing, and nobody polls any more.
        drop(unsafe { Box::from_raw(batch.as_ptr()) });
    }
}

impl Drop for SharedQueue {
    fn drop(&mut self) {
        if self.context.is_inherited() {
            return;
        }
        let library = self.context.library();
        // SAFETY: queue pairs on it held it alive; all events taken were acknowledged.
        unsafe {
            (library.destroy_cq)(self.raw.as_ptr());
            if let Some(channel) = self.channel {
                (library.destroy_comp_channel)(channel.as_ptr());
            }
        }
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue")
            .field("device", &self.shared.context.name())
            .field("capacity", &self.shared.capacity)
            .finish()
    }
}

/// One entry of a completion queue, to be given to `settle` of its queue pair, once.
#[must_use = "its queue pair's `settle` hands the buffers back"]
pub struct WorkCompletion {
    // The fields of an ibv_wc one by one, so that only those which are looked at are read.
    id: u64,
    status: sys::ibv_wc_status,
    opcode: sys::ibv_wc_opcode,
    vendor_code: u32,
    bytes: u32,
    immediate: u32,
    qp_number: u32,
    flags: sys::ibv_wc_flags,
    source_qp: u32,
    source_lid: u16,
}

impl fmt::Debug for WorkCompletion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkCompletion")
            .field("qp_number", &self.qp_number)
            .field("wr_id", &self.id)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl WorkCompletion {
    #[inline(always)]
    fn of(raw: &sys::ibv_wc) -> WorkCompletion {
        WorkCompletion {
            id: raw.wr_id,
            status: raw.status,
            opcode: raw.opcode,
            vendor_code: raw.vendor_err,
            bytes: raw.byte_len,
            // SAFETY: both variants of the union are plain 32-bit integers.
            immediate: unsafe { raw.__bindgen_anon_1.imm_data },
            qp_number: raw.qp_num,
            flags: raw.wc_flags,
            source_qp: raw.src_qp,
            source_lid: raw.slid,
        }
    }

    /// The number of the queue pair it is of.
    #[inline]
    pub fn qp_number(&self) -> u32 {
        self.qp_number
    }

    /// Whether a header was written before the bytes of a datagram.
    pub(super) fn has_header(&self) -> bool {
        self.flags & sys::IBV_WC_GRH != 0
    }

    /// The queue pair that a datagram came from.
    pub(super) fn source_qp_number(&self) -> u32 {
        self.source_qp
    }

    /// The local identifier that a datagram came from.
    pub(super) fn source_lid(&self) -> u16 {
        self.source_lid
    }

    /// The same once more, as a faulty device might give it.
    #[cfg(test)]
    pub(super) fn duplicate(&self) -> WorkCompletion {
        WorkCompletion { ..*self }
    }

    /// Whether it is of a connected queue pair's own queues, and not of a table.
    pub(super) fn of_connected_pair(&self) -> bool {
        !is_of_table(self.id)
    }

    #[inline]
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// What it says, for the given queue (which a failed entry doesn't tell itself).
    #[inline(always)]
    pub(super) fn outcome(&self, queue: Queue) -> Result<Completion, CompletionError> {
        if self.status != sys::IBV_WC_SUCCESS {
            return Err(failure(
                self.status,
                self.vendor_code,
                self.qp_number,
                queue,
            ));
        }
        let immediate =
            (self.flags & sys::IBV_WC_WITH_IMM != 0).then(|| u32::from_be(self.immediate));
        let operation = match self.opcode {
            sys::IBV_WC_SEND => Operation::Send,
            sys::IBV_WC_RDMA_WRITE => Operation::Write,
            sys::IBV_WC_RDMA_READ => Operation::Read,
            sys::IBV_WC_FETCH_ADD => Operation::FetchAdd,
            sys::IBV_WC_COMP_SWAP => Operation::CompareSwap,
            sys::IBV_WC_RECV => Operation::Receive,
            sys::IBV_WC_RECV_RDMA_WITH_IMM => Operation::ReceiveWrite,
            other => Operation::Other(other),
        };
        Ok(Completion {
            operation,
            bytes: self.bytes,
            immediate,
        })
    }
}

/// Told the fields and not the completion, so that one which is only looked at needs no memory.
#[cold]
#[inline(never)]
fn failure(
    status: sys::ibv_wc_status,
    vendor_code: u32,
    qp_number: u32,
    queue: Queue,
) -> CompletionError {
    CompletionError {
        status: Status::from_raw(status),
        vendor_code,
        qp_number,
        queue,
    }
}

/// Which queue of a queue pair a work request was on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// The send queue.
    Send,
    /// The receive queue.
    Receive,
}

/// What a work request did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Sent a message.
    Send,
    /// Wrote into the peer's memory.
    Write,
    /// Read from the peer's memory.
    Read,
    /// Added to a word of the peer's memory and read it.
    FetchAdd,
    /// Compared a word of the peer's memory, exchanged it if it was as expected, and read it.
    CompareSwap,
    /// Received a message.
    Receive,
    /// Took the immediate of a peer's write.
    ReceiveWrite,
    /// Another one, by its number in `enum ibv_wc_opcode`.
    Other(u32),
}

/// A work request that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// What it did.
    pub operation: Operation,
    /// Bytes received or read, or written by the peer with this immediate. Not set for sends and writes.
    pub bytes: u32,
    /// The peer's immediate, if it gave one.
    pub immediate: Option<u32>,
}
