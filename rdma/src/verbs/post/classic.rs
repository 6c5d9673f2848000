//! The extended work-request operations over `ibv_post_send`, for providers without their own.
//!
//! A batch is a list of `ibv_send_wr` that the operations fill in; completing it posts the list. So the
//! layer above has one way down and pays for the detour only where there is no straight way.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};

use crate::sys;
use crate::verbs::context::PostSend;

/// The operations and the list. It begins with the structure that the operations are called with, of
/// which they use the pointers, `wr_id` and `wr_flags`.
#[repr(C)]
pub(super) struct Classic {
    table: sys::ibv_qp_ex,
    queue_pair: NonNull<sys::ibv_qp>,
    post_send: PostSend,
    work: Box<[sys::ibv_send_wr]>,
    segments: Box<[sys::ibv_sge]>,
    /// Segments of one work request.
    width: usize,
    /// Work requests of the open batch.
    count: usize,
    /// What of the last batch was posted when the rest was refused.
    posted: usize,
    /// A batch with more work requests or segments than there is room for is refused.
    overfull: bool,
}

impl Classic {
    pub(super) fn new(
        queue_pair: NonNull<sys::ibv_qp>,
        post_send: PostSend,
        depth: usize,
        width: usize,
    ) -> Box<Classic> {
        let table = sys::ibv_qp_ex {
            wr_start: Some(start),
            wr_complete: Some(complete),
            wr_abort: Some(start),
            wr_send: Some(send),
            wr_send_imm: Some(send_immediate),
            wr_rdma_write: Some(write),
            wr_rdma_write_imm: Some(write_immediate),
            wr_rdma_read: Some(read),
            wr_atomic_fetch_add: Some(fetch_add),
            wr_atomic_cmp_swp: Some(compare_swap),
            wr_set_ud_addr: Some(set_address),
            wr_set_sge: Some(set_segment),
            wr_set_sge_list: Some(set_segments),
            wr_set_inline_data: Some(set_inline),
            wr_set_inline_data_list: Some(set_inline_list),
            ..Default::default()
        };
        Box::new(Classic {
            table,
            queue_pair,
            post_send,
            work: vec![sys::ibv_send_wr::default(); depth].into_boxed_slice(),
            segments: vec![sys::ibv_sge::default(); depth * width].into_boxed_slice(),
            width,
            count: 0,
            posted: 0,
            overfull: false,
        })
    }

    pub(super) fn posted(&self) -> usize {
        self.posted
    }

    /// # Safety
    /// `table` must be that of a `Classic` which nobody else uses meanwhile.
    unsafe fn of<'a>(table: *mut sys::ibv_qp_ex) -> &'a mut Classic {
        // SAFETY: the table is the first field, and the pointer to it was made from one to the whole.
        unsafe { &mut *table.cast::<Classic>() }
    }

    /// Begins a work request with what the table's fields say.
    fn add(&mut self, opcode: sys::ibv_wr_opcode) -> Option<&mut sys::ibv_send_wr> {
        let Some(work) = self.work.get_mut(self.count) else {
            self.overfull = true;
            return None;
        };
        self.count += 1;
        work.wr_id = self.table.wr_id;
        work.send_flags = self.table.wr_flags;
        work.opcode = opcode;
        work.num_sge = 0;
        Some(work)
    }

    fn add_remote(&mut self, opcode: sys::ibv_wr_opcode, rkey: u32, remote_addr: u64) {
        if let Some(work) = self.add(opcode) {
            work.wr.rdma = sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr, rkey };
        }
    }

    fn add_atomic(
        &mut self,
        opcode: sys::ibv_wr_opcode,
        (rkey, remote_addr): (u32, u64),
        compare_add: u64,
        swap: u64,
    ) {
        if let Some(work) = self.add(opcode) {
            work.wr.atomic = sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_2 {
                remote_addr,
                compare_add,
                swap,
                rkey,
            };
        }
    }

    /// The work request added last.
    fn last(&mut self) -> Option<&mut sys::ibv_send_wr> {
        self.work.get_mut(self.count.wrapping_sub(1))
    }

    fn set_immediate(&mut self, immediate: u32) {
        if let Some(work) = self.last() {
            work.__bindgen_anon_1.imm_data = immediate;
        }
    }

    /// Gives the last work request its segments.
    fn set(&mut self, segments: impl ExactSizeIterator<Item = sys::ibv_sge>, flags: u32) {
        let Some(last) = self.count.checked_sub(1) else {
            return;
        };
        if segments.len() > self.width {
            self.overfull = true;
            return;
        }
        let own = &mut self.segments[last * self.width..][..segments.len()];
        let work = &mut self.work[last];
        work.sg_list = own.as_mut_ptr();
        work.num_sge = own.len() as i32;
        work.send_flags |= flags;
        for (target, segment) in own.iter_mut().zip(segments) {
            *target = segment;
        }
    }

    fn complete(&mut self) -> i32 {
        let count = std::mem::take(&mut self.count);
        self.posted = 0;
        if std::mem::take(&mut self.overfull) {
            return libc::ENOMEM;
        }
        let Some(last) = count.checked_sub(1) else {
            return 0;
        };
        let first = self.work.as_mut_ptr();
        for index in 0..last {
            // SAFETY: `count` work requests of the array are filled in.
            unsafe { (*first.add(index)).next = first.add(index + 1) };
        }
        // SAFETY: as above.
        unsafe { (*first.add(last)).next = null_mut() };
        let mut refused = null_mut();
        // SAFETY: the queue pair lives; the list is terminated, and its caller answers for the memory.
        let code = unsafe { (self.post_send)(self.queue_pair.as_ptr(), first, &mut refused) };
        if code == 0 {
            return 0;
        }
        let posted = (refused as usize).wrapping_sub(first as usize) / size_of_val(&self.work[0]);
        // A provider that names none of ours posted nothing.
        self.posted = if posted < count { posted } else { 0 };
        code
    }
}

// What libibverbs' header calls through the table. The table is a `Classic`'s in each of them, used by
// one queue pair, which is borrowed exclusively for the batch.

unsafe extern "C" fn start(table: *mut sys::ibv_qp_ex) {
    // SAFETY: a table of ours.
    let classic = unsafe { Classic::of(table) };
    classic.count = 0;
    classic.overfull = false;
}

unsafe extern "C" fn complete(table: *mut sys::ibv_qp_ex) -> i32 {
    // SAFETY: a table of ours.
    unsafe { Classic::of(table) }.complete()
}

unsafe extern "C" fn send(table: *mut sys::ibv_qp_ex) {
    // SAFETY: a table of ours.
    unsafe { Classic::of(table) }.add(sys::IBV_WR_SEND);
}

unsafe extern "C" fn send_immediate(table: *mut sys::ibv_qp_ex, immediate: u32) {
    // SAFETY: a table of ours.
    let classic = unsafe { Classic::of(table) };
    classic.add(sys::IBV_WR_SEND_WITH_IMM);
    classic.set_immediate(immediate);
}

unsafe extern "C" fn write(table: *mut sys::ibv_qp_ex, rkey: u32, address: u64) {
    // SAFETY: a table of ours.
    unsafe { Classic::of(table) }.add_remote(sys::IBV_WR_RDMA_WRITE, rkey, address);
}

unsafe extern "C" fn write_immediate(
    table: *mut sys::ibv_qp_ex,
    rkey: u32,
    address: u64,
    immediate: u32,
) {
    // SAFETY: a table of ours.
    let classic = unsafe { Classic::of(table) };
    classic.add_remote(sys::IBV_WR_RDMA_WRITE_WITH_IMM, rkey, address);
    classic.set_immediate(immediate);
}

unsafe extern "C" fn read(table: *mut sys::ibv_qp_ex, rkey: u32, address: u64) {
    // SAFETY: a table of ours.
    unsafe { Classic::of(table) }.add_remote(sys::IBV_WR_RDMA_READ, rkey, address);
}

unsafe extern "C" fn fetch_add(table: *mut sys::ibv_qp_ex, rkey: u32, address: u64, add: u64) {
    // SAFETY: a table of ours.
    let classic = unsafe { Classic::of(table) };
    classic.add_atomic(sys::IBV_WR_ATOMIC_FETCH_AND_ADD, (rkey, address), add, 0);
}

unsafe extern "C" fn compare_swap(
    table: *mut sys::ibv_qp_ex,
    rkey: u32,
    address: u64,
    expected: u64,
    new: u64,
) {
    // SAFETY: a table of ours.
    let classic = unsafe { Classic::of(table) };
    classic.add_atomic(
        sys::IBV_WR_ATOMIC_CMP_AND_SWP,
        (rkey, address),
        expected,
        new,
    );
}

unsafe extern "C" fn set_address(
    table: *mut sys::ibv_qp_ex,
    ah: *mut sys::ibv_ah,
    remote_qpn: u32,
    remote_qkey: u32,
) {
    // SAFETY: a table of ours.
    if let Some(work) = unsafe { Classic::of(table) }.last() {
        work.wr.ud = sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_3 {
            ah,
            remote_qpn,
            remote_qkey,
        };
    }
}

unsafe extern "C" fn set_segment(table: *mut sys::ibv_qp_ex, lkey: u32, addr: u64, length: u32) {
    let segment = sys::ibv_sge { addr, length, lkey };
    // SAFETY: a table of ours.
    unsafe { Classic::of(table) }.set(std::iter::once(segment), 0);
}

unsafe extern "C" fn set_segments(
    table: *mut sys::ibv_qp_ex,
    count: usize,
    list: *const sys::ibv_sge,
) {
    // SAFETY: the caller's list, which is not null even when it is empty.
    let list = unsafe { std::slice::from_raw_parts(list, count) };
    // SAFETY: a table of ours.
    unsafe { Classic::of(table) }.set(list.iter().copied(), 0);
}

unsafe extern "C" fn set_inline(table: *mut sys::ibv_qp_ex, start: *mut c_void, len: usize) {
    let bytes = sys::ibv_data_buf {
        addr: start,
        length: len,
    };
    // SAFETY: a table of ours.
    unsafe { Classic::of(table) }.set(std::iter::once(segment_of(&bytes)), sys::IBV_SEND_INLINE);
}

unsafe extern "C" fn set_inline_list(
    table: *mut sys::ibv_qp_ex,
    count: usize,
    list: *const sys::ibv_data_buf,
) {
    // SAFETY: the caller's list, which is not null even when it is empty.
    let list = unsafe { std::slice::from_raw_parts(list, count) };
    // SAFETY: a table of ours.
    let classic = unsafe { Classic::of(table) };
    classic.set(list.iter().map(segment_of), sys::IBV_SEND_INLINE);
}

/// Bytes to copy, as a segment: it needs no key.
fn segment_of(bytes: &sys::ibv_data_buf) -> sys::ibv_sge {
    sys::ibv_sge {
        addr: bytes.addr as u64,
        length: bytes.length as u32,
        lkey: 0,
    }
}
