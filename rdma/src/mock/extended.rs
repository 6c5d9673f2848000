//! The mock provider's extended work-request operations (`ibv_wr_*`).
//!
//! As with real providers, nothing is posted before the batch is complete, which takes all of it or
//! nothing; and starting a batch while one is open is an error that shows when it is completed (a real
//! provider may deadlock on its lock there).

use std::ffi::c_void;

use super::fabric;
use super::transfer::gather;
use super::work::{Part, Send, Window, parts};
use crate::sys;

/// A queue pair as its user holds it: libibverbs' structure, then the open batch.
#[repr(C)]
pub(super) struct QueuePair {
    pub(super) table: sys::ibv_qp_ex,
    extended: bool,
    batch: Vec<Send>,
    open: bool,
    error: i32,
}

impl QueuePair {
    /// With the operations that queue pairs of this kind have, when it is to be an extended one.
    pub(super) fn new(base: sys::ibv_qp, kind: sys::ibv_qp_type, extended: bool) -> Box<QueuePair> {
        let mut table = sys::ibv_qp_ex {
            qp_base: base,
            ..Default::default()
        };
        if extended {
            table.wr_start = Some(start);
            table.wr_complete = Some(complete);
            table.wr_abort = Some(abort);
            table.wr_send = Some(send);
            table.wr_send_imm = Some(send_imm);
            table.wr_set_sge = Some(set_sge);
            table.wr_set_sge_list = Some(set_sge_list);
            table.wr_set_inline_data = Some(set_inline_data);
            table.wr_set_inline_data_list = Some(set_inline_data_list);
            if kind == sys::IBV_QPT_UD {
                table.wr_set_ud_addr = Some(set_ud_addr);
            } else {
                table.wr_rdma_write = Some(rdma_write);
                table.wr_rdma_write_imm = Some(rdma_write_imm);
                table.wr_rdma_read = Some(rdma_read);
                table.wr_atomic_fetch_add = Some(fetch_add);
                table.wr_atomic_cmp_swp = Some(compare_swap);
            }
        }
        Box::new(QueuePair {
            table,
            extended,
            batch: Vec::new(),
            open: false,
            error: 0,
        })
    }

    fn add(&mut self, opcode: sys::ibv_wr_opcode, remote: (u64, u32)) -> &mut Send {
        if !self.open {
            self.error = libc::EINVAL;
        }
        self.batch.push(Send {
            id: self.table.wr_id,
            opcode,
            signaled: self.table.wr_flags & sys::IBV_SEND_SIGNALED != 0,
            immediate: 0,
            remote,
            window: Window::default(),
            datagram: (0, 0),
            operands: (0, 0),
            inline: None,
            parts: Vec::new(),
        });
        self.batch.last_mut().expect("pushed a moment ago")
    }

    fn set(&mut self, parts: Vec<Part>, inline: bool) {
        let Some(last) = self.batch.last_mut() else {
            self.error = libc::EINVAL;
            return;
        };
        // As with rxe, the flag must tell the same as the operation.
        if inline != (self.table.wr_flags & sys::IBV_SEND_INLINE != 0) {
            self.error = libc::EINVAL;
        }
        last.inline = inline.then(|| gather(&parts));
        last.parts = parts;
    }

    fn complete(&mut self) -> i32 {
        let batch = std::mem::take(&mut self.batch);
        if !std::mem::take(&mut self.open) {
            return libc::EINVAL;
        }
        match std::mem::take(&mut self.error) {
            0 => {}
            errno => return errno,
        }
        let number = self.table.qp_base.qp_num;
        let mut fabric = fabric::lock();
        let (taken, errno) = fabric.admit(number, batch.len());
        if taken < batch.len() {
            return errno;
        }
        for send in batch {
            fabric.take_send(number, send);
        }
        fabric.work_off(number);
        0
    }
}

/// # Safety
/// The table must be of a queue pair of this provider, used by one thread at a time.
unsafe fn of<'a>(table: *mut sys::ibv_qp_ex) -> &'a mut QueuePair {
    // SAFETY: the table is the first field of a box whose address its user was given.
    unsafe { &mut *table.cast::<QueuePair>() }
}

/// The extended form of a queue pair, if it was made with it.
pub(super) unsafe extern "C" fn qp_to_qp_ex(raw: *mut sys::ibv_qp) -> *mut sys::ibv_qp_ex {
    // SAFETY: a queue pair of this provider; libibverbs' structure stands first in it.
    let queue_pair = unsafe { of(raw.cast()) };
    if queue_pair.extended {
        raw.cast()
    } else {
        std::ptr::null_mut()
    }
}

unsafe extern "C" fn start(table: *mut sys::ibv_qp_ex) {
    // SAFETY: the caller's queue pair.
    let queue_pair = unsafe { of(table) };
    queue_pair.error = if queue_pair.open { libc::EDEADLK } else { 0 };
    queue_pair.open = true;
}

unsafe extern "C" fn complete(table: *mut sys::ibv_qp_ex) -> i32 {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.complete()
}

unsafe extern "C" fn abort(table: *mut sys::ibv_qp_ex) {
    // SAFETY: the caller's queue pair.
    let queue_pair = unsafe { of(table) };
    queue_pair.batch.clear();
    queue_pair.open = false;
    queue_pair.error = 0;
}

unsafe extern "C" fn send(table: *mut sys::ibv_qp_ex) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.add(sys::IBV_WR_SEND, (0, 0));
}

unsafe extern "C" fn send_imm(table: *mut sys::ibv_qp_ex, immediate: u32) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }
        .add(sys::IBV_WR_SEND_WITH_IMM, (0, 0))
        .immediate = immediate;
}

unsafe extern "C" fn rdma_write(table: *mut sys::ibv_qp_ex, rkey: u32, address: u64) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.add(sys::IBV_WR_RDMA_WRITE, (address, rkey));
}

unsafe extern "C" fn rdma_write_imm(
    table: *mut sys::ibv_qp_ex,
    rkey: u32,
    address: u64,
    immediate: u32,
) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }
        .add(sys::IBV_WR_RDMA_WRITE_WITH_IMM, (address, rkey))
        .immediate = immediate;
}

unsafe extern "C" fn rdma_read(table: *mut sys::ibv_qp_ex, rkey: u32, address: u64) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.add(sys::IBV_WR_RDMA_READ, (address, rkey));
}

unsafe extern "C" fn fetch_add(table: *mut sys::ibv_qp_ex, rkey: u32, address: u64, add: u64) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }
        .add(sys::IBV_WR_ATOMIC_FETCH_AND_ADD, (address, rkey))
        .operands = (add, 0);
}

unsafe extern "C" fn compare_swap(
    table: *mut sys::ibv_qp_ex,
    rkey: u32,
    address: u64,
    expected: u64,
    new: u64,
) {
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }
        .add(sys::IBV_WR_ATOMIC_CMP_AND_SWP, (address, rkey))
        .operands = (expected, new);
}

unsafe extern "C" fn set_ud_addr(
    table: *mut sys::ibv_qp_ex,
    _handle: *mut sys::ibv_ah,
    qp_number: u32,
    queue_key: u32,
) {
    // SAFETY: the caller's queue pair.
    let queue_pair = unsafe { of(table) };
    match queue_pair.batch.last_mut() {
        Some(last) => last.datagram = (qp_number, queue_key),
        None => queue_pair.error = libc::EINVAL,
    }
}

unsafe extern "C" fn set_sge(table: *mut sys::ibv_qp_ex, lkey: u32, address: u64, len: u32) {
    let part = Part { address, len, lkey };
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.set(vec![part], false);
}

unsafe extern "C" fn set_sge_list(
    table: *mut sys::ibv_qp_ex,
    count: usize,
    list: *const sys::ibv_sge,
) {
    // SAFETY: the caller's list.
    let parts = unsafe { parts(list, count as i32) };
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.set(parts, false);
}

unsafe extern "C" fn set_inline_data(table: *mut sys::ibv_qp_ex, start: *mut c_void, len: usize) {
    let bytes = sys::ibv_data_buf {
        addr: start,
        length: len,
    };
    // SAFETY: the caller's bytes, and one entry of ours.
    unsafe { set_inline_data_list(table, 1, &bytes) };
}

unsafe extern "C" fn set_inline_data_list(
    table: *mut sys::ibv_qp_ex,
    count: usize,
    list: *const sys::ibv_data_buf,
) {
    let parts = (0..count)
        .map(|index| {
            // SAFETY: the caller's list has so many entries.
            let bytes = unsafe { *list.add(index) };
            Part {
                address: bytes.addr as u64,
                len: bytes.length as u32,
                lkey: 0,
            }
        })
        .collect();
    // SAFETY: the caller's queue pair.
    unsafe { of(table) }.set(parts, true);
}
