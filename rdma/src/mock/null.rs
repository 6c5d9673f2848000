//! A provider that does next to nothing, to count what posting and polling cost above it.
//!
//! Posting writes a work request down, as a real provider does, and completing a batch makes all of it
//! done; polling turns each signalled one into a completion. Each operation is a handful of
//! instructions, and nothing is transferred. It has the extended interface and writes only. What
//! instructions are counted with, ours and a loop in C, both call the same functions here.

use std::ffi::{c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use super::calls;
use super::devices;
use crate::sys::{self, Library};
use crate::verbs::{Context, VerbsError};

static LIBRARY: Library = Library {
    open_device,
    create_cq,
    destroy_cq,
    destroy_qp,
    modify_qp,
    qp_to_qp_ex: Some(qp_to_qp_ex),
    ..calls::TABLE
};

/// Opens a device of this provider.
pub fn open() -> Result<Arc<Context>, VerbsError> {
    Context::open_in(&LIBRARY, "mock0")
}

/// A queue pair and its completion queue for code in C, which uses libibverbs' header on them.
#[derive(Debug)]
pub struct ForeignQueuePair {
    queue_pair: NonNull<QueuePair>,
    queue: NonNull<Queue>,
    context: NonNull<sys::ibv_context>,
}

impl ForeignQueuePair {
    /// Makes one of so many work requests.
    pub fn new(depth: u32) -> ForeignQueuePair {
        let mut context = Box::new(sys::ibv_context::default());
        context.ops.poll_cq = Some(poll_cq);
        let context = NonNull::from(Box::leak(context));
        let queue = Box::leak(Queue::new(context.as_ptr(), depth as c_int));
        let queue = NonNull::from(queue);
        let queue_pair = Box::leak(QueuePair::new(sys::ibv_qp::default(), queue, depth));
        ForeignQueuePair {
            queue_pair: NonNull::from(queue_pair),
            queue,
            context,
        }
    }

    /// Its `struct ibv_qp_ex *`, valid as long as the value.
    pub fn queue_pair(&self) -> *mut c_void {
        self.queue_pair.as_ptr().cast()
    }

    /// Its `struct ibv_cq *`, valid as long as the value.
    pub fn queue(&self) -> *mut c_void {
        self.queue.as_ptr().cast()
    }
}

impl Drop for ForeignQueuePair {
    fn drop(&mut self) {
        // SAFETY: three leaked boxes of `new`'s.
        unsafe {
            drop(Box::from_raw(self.queue_pair.as_ptr()));
            drop(Box::from_raw(self.queue.as_ptr()));
            drop(Box::from_raw(self.context.as_ptr()));
        }
    }
}

/// A work request, written down.
#[derive(Clone, Copy, Default)]
struct Entry {
    id: u64,
    flags: u32,
    rkey: u32,
    remote: u64,
    address: u64,
    len: u32,
    lkey: u32,
}

#[repr(C)]
struct QueuePair {
    table: sys::ibv_qp_ex,
    entries: Box<[Entry]>,
    mask: u32,
    /// The next work request of the open batch.
    next: u32,
    /// The next work request to be posted: where a doorbell would be rung.
    posted: u32,
    /// The next work request to complete.
    done: u32,
}

impl QueuePair {
    fn new(base: sys::ibv_qp, mut queue: NonNull<Queue>, depth: u32) -> Box<QueuePair> {
        let entries = depth.max(1).next_power_of_two();
        let mut made = Box::new(QueuePair {
            table: sys::ibv_qp_ex {
                qp_base: base,
                wr_start: Some(start),
                wr_complete: Some(complete),
                wr_abort: Some(start),
                wr_send: Some(send),
                wr_send_imm: Some(send_imm),
                wr_rdma_write: Some(rdma_write),
                wr_rdma_write_imm: Some(rdma_write_imm),
                wr_rdma_read: Some(rdma_write),
                wr_set_sge: Some(set_sge),
                wr_set_sge_list: Some(set_sge_list),
                wr_set_inline_data: Some(set_inline_data),
                wr_set_inline_data_list: Some(set_inline_data_list),
                ..Default::default()
            },
            entries: vec![Entry::default(); entries as usize].into_boxed_slice(),
            mask: entries - 1,
            next: 0,
            posted: 0,
            done: 0,
        });
        // SAFETY: the queue is a leaked box that its owner frees after this queue pair.
        unsafe { queue.as_mut() }.queue_pair = &raw mut *made;
        made
    }

    #[inline]
    fn entry(&mut self, number: u32) -> &mut Entry {
        // SAFETY: the mask is one less than the number of entries.
        unsafe {
            self.entries
                .get_unchecked_mut((number & self.mask) as usize)
        }
    }

    #[inline]
    fn add(&mut self, rkey: u32, remote: u64) {
        let (id, flags) = (self.table.wr_id, self.table.wr_flags);
        let entry = self.entry(self.next);
        entry.id = id;
        entry.flags = flags;
        entry.rkey = rkey;
        entry.remote = remote;
        self.next = self.next.wrapping_add(1);
    }

    #[inline]
    fn set(&mut self, lkey: u32, address: u64, len: u32) {
        let entry = self.entry(self.next.wrapping_sub(1));
        entry.address = address;
        entry.len = len;
        entry.lkey = lkey;
    }
}

#[repr(C)]
struct Queue {
    base: sys::ibv_cq,
    queue_pair: *mut QueuePair,
}

impl Queue {
    fn new(context: *mut sys::ibv_context, entries: c_int) -> Box<Queue> {
        Box::new(Queue {
            base: sys::ibv_cq {
                context,
                cqe: entries,
                ..Default::default()
            },
            queue_pair: null_mut(),
        })
    }
}

/// # Safety
/// The table must be of a queue pair of this provider, used by one thread at a time.
#[inline]
unsafe fn of<'a>(table: *mut sys::ibv_qp_ex) -> &'a mut QueuePair {
    // SAFETY: the table is the first field of a box whose address its user was given.
    unsafe { &mut *table.cast::<QueuePair>() }
}

unsafe extern "C" fn open_device(device: *mut sys::ibv_device) -> *mut sys::ibv_context {
    // SAFETY: the caller's device.
    let context = unsafe { devices::open_device(device) };
    let head = std::mem::offset_of!(sys::verbs_context, context);
    // SAFETY: the context is the last field of a verbs_context, which nobody else uses yet.
    unsafe {
        (*context).ops.poll_cq = Some(poll_cq);
        let extended = context.byte_sub(head).cast::<sys::verbs_context>();
        (*extended).create_qp_ex = Some(create_qp_ex);
    }
    context
}

unsafe extern "C" fn create_cq(
    context: *mut sys::ibv_context,
    entries: c_int,
    _tag: *mut c_void,
    _channel: *mut sys::ibv_comp_channel,
    _vector: c_int,
) -> *mut sys::ibv_cq {
    Box::into_raw(Queue::new(context, entries)).cast()
}

unsafe extern "C" fn destroy_cq(queue: *mut sys::ibv_cq) -> c_int {
    // SAFETY: a leaked box of `create_cq`'s.
    drop(unsafe { Box::from_raw(queue.cast::<Queue>()) });
    0
}

unsafe extern "C" fn create_qp_ex(
    context: *mut sys::ibv_context,
    attributes: *mut sys::ibv_qp_init_attr_ex,
) -> *mut sys::ibv_qp {
    // SAFETY: the caller's.
    let attributes = unsafe { &*attributes };
    let queue = NonNull::new(attributes.send_cq.cast::<Queue>());
    let atomics = sys::IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | sys::IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD;
    let (Some(queue), 0) = (queue, attributes.send_ops_flags & u64::from(atomics)) else {
        return null_mut();
    };
    let base = sys::ibv_qp {
        context,
        qp_num: 1,
        ..Default::default()
    };
    Box::into_raw(QueuePair::new(base, queue, attributes.cap.max_send_wr)).cast()
}

unsafe extern "C" fn qp_to_qp_ex(raw: *mut sys::ibv_qp) -> *mut sys::ibv_qp_ex {
    raw.cast()
}

unsafe extern "C" fn modify_qp(
    _raw: *mut sys::ibv_qp,
    _attributes: *mut sys::ibv_qp_attr,
    _mask: c_int,
) -> c_int {
    0
}

unsafe extern "C" fn destroy_qp(raw: *mut sys::ibv_qp) -> c_int {
    // SAFETY: a leaked box of `create_qp_ex`'s.
    drop(unsafe { Box::from_raw(raw.cast::<QueuePair>()) });
    0
}

unsafe extern "C" fn start(table: *mut sys::ibv_qp_ex) {
    // SAFETY: the caller's queue pair.
    let queue_pair = unsafe { of(table) };
    queue_pair.next = queue_pair.posted;
}

unsafe extern "C" fn complete(table: *mut sys::ibv_qp_ex) -> c_int {
    // SAFETY: the caller's queue pair.
    let queue_pair = unsafe { of(table) };
    queue_pair.posted = queue_pair.next;
    0
}

unsafe extern "C" fn send(table: *mut sys::ibv_qp_ex) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.add(0, 0);
}

unsafe extern "C" fn send_imm(table: *mut sys::ibv_qp_ex, _immediate: u32) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.add(0, 0);
}

unsafe extern "C" fn rdma_write(table: *mut sys::ibv_qp_ex, rkey: u32, address: u64) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.add(rkey, address);
}

unsafe extern "C" fn rdma_write_imm(
    table: *mut sys::ibv_qp_ex,
    rkey: u32,
    address: u64,
    _immediate: u32,
) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.add(rkey, address);
}

unsafe extern "C" fn set_sge(table: *mut sys::ibv_qp_ex, lkey: u32, address: u64, len: u32) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.set(lkey, address, len);
}

unsafe extern "C" fn set_sge_list(
    table: *mut sys::ibv_qp_ex,
    count: usize,
    list: *const sys::ibv_sge,
) {
    for index in 0..count {
        // SAFETY: the caller's list has so many entries.
        let segment = unsafe { *list.add(index) };
        // SAFETY: the caller's queue pair.
        unsafe { of(table) }.set(segment.lkey, segment.addr, segment.length);
    }
}

unsafe extern "C" fn set_inline_data(table: *mut sys::ibv_qp_ex, start: *mut c_void, len: usize) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.set(0, start as u64, len as u32);
}

unsafe extern "C" fn set_inline_data_list(
    table: *mut sys::ibv_qp_ex,
    count: usize,
    list: *const sys::ibv_data_buf,
) {
    for index in 0..count {
        // SAFETY: the caller's list has so many entries.
        let bytes = unsafe { *list.add(index) };
        // SAFETY: the caller's queue pair.
        unsafe { of(table) }.set(0, bytes.addr as u64, bytes.length as u32);
    }
}

unsafe extern "C" fn poll_cq(
    queue: *mut sys::ibv_cq,
    entries: c_int,
    out: *mut sys::ibv_wc,
) -> c_int {
    // SAFETY: a queue of this provider, with its queue pair if it has one.
    let Some(queue_pair) = (unsafe { (*queue.cast::<Queue>()).queue_pair.as_mut() }) else {
        return 0;
    };
    let mut taken = 0;
    while taken < entries && queue_pair.done != queue_pair.posted {
        let number = queue_pair.table.qp_base.qp_num;
        let entry = *queue_pair.entry(queue_pair.done);
        queue_pair.done = queue_pair.done.wrapping_add(1);
        if entry.flags & sys::IBV_SEND_SIGNALED != 0 {
            // SAFETY: the caller's array has `entries` entries, of which `taken` are written.
            let completion = unsafe { &mut *out.add(taken as usize) };
            completion.wr_id = entry.id;
            completion.status = sys::IBV_WC_SUCCESS;
            completion.opcode = sys::IBV_WC_RDMA_WRITE;
            completion.qp_num = number;
            completion.wc_flags = 0;
            taken += 1;
        }
    }
    taken
}
