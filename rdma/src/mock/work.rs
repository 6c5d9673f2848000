//! Work requests of the mock provider, as they were posted.

use super::transfer::gather;
use crate::sys;

/// What a window is to be opened on.
#[derive(Clone, Copy, Default)]
pub(super) struct Window {
    pub(super) rkey: u32,
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) access: u32,
    /// Of type 1, the key that it had before.
    pub(super) before: Option<u32>,
}

#[derive(Clone)]
pub(super) struct Part {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) lkey: u32,
}

pub(super) struct Send {
    pub(super) id: u64,
    pub(super) opcode: sys::ibv_wr_opcode,
    pub(super) signaled: bool,
    pub(super) immediate: u32,
    pub(super) remote: (u64, u32),
    /// What is added or compared with, and what is swapped in.
    pub(super) operands: (u64, u64),
    /// Of no meaning where no window is to be opened.
    pub(super) window: Window,
    /// The queue pair and key that a datagram goes to; of no meaning on a connection.
    pub(super) datagram: (u32, u32),
    pub(super) inline: Option<Vec<u8>>,
    pub(super) parts: Vec<Part>,
}

pub(super) struct Receive {
    pub(super) id: u64,
    pub(super) parts: Vec<Part>,
}

impl Send {
    /// What a classic work request says.
    ///
    /// # Safety
    /// The work request must be a valid one.
    pub(super) unsafe fn of(request: &sys::ibv_send_wr) -> Send {
        // SAFETY: the caller vouches for the request.
        let parts = unsafe { parts(request.sg_list, request.num_sge) };
        let inline = request.send_flags & sys::IBV_SEND_INLINE != 0;
        let is_atomic = matches!(
            request.opcode,
            sys::IBV_WR_ATOMIC_FETCH_AND_ADD | sys::IBV_WR_ATOMIC_CMP_AND_SWP
        );
        // SAFETY: all variants of the unions are plain integers.
        let (immediate, rdma, atomic, ud, bind) = unsafe {
            (
                request.__bindgen_anon_1.imm_data,
                request.wr.rdma,
                request.wr.atomic,
                request.wr.ud,
                request.__bindgen_anon_2.bind_mw,
            )
        };
        Send {
            id: request.wr_id,
            opcode: request.opcode,
            signaled: request.send_flags & sys::IBV_SEND_SIGNALED != 0,
            immediate,
            remote: if is_atomic {
                (atomic.remote_addr, atomic.rkey)
            } else {
                (rdma.remote_addr, rdma.rkey)
            },
            operands: if is_atomic {
                (atomic.compare_add, atomic.swap)
            } else {
                (0, 0)
            },
            window: Window {
                rkey: bind.rkey,
                start: bind.bind_info.addr,
                len: bind.bind_info.length,
                access: bind.bind_info.mw_access_flags,
                before: None,
            },
            datagram: (ud.remote_qpn, ud.remote_qkey),
            inline: inline.then(|| gather(&parts)),
            parts,
        }
    }

    pub(super) fn completion_opcode(&self) -> sys::ibv_wc_opcode {
        match self.opcode {
            sys::IBV_WR_RDMA_WRITE | sys::IBV_WR_RDMA_WRITE_WITH_IMM => sys::IBV_WC_RDMA_WRITE,
            sys::IBV_WR_RDMA_READ => sys::IBV_WC_RDMA_READ,
            sys::IBV_WR_BIND_MW => sys::IBV_WC_BIND_MW,
            sys::IBV_WR_LOCAL_INV => sys::IBV_WC_LOCAL_INV,
            sys::IBV_WR_ATOMIC_FETCH_AND_ADD => sys::IBV_WC_FETCH_ADD,
            sys::IBV_WR_ATOMIC_CMP_AND_SWP => sys::IBV_WC_COMP_SWAP,
            _ => sys::IBV_WC_SEND,
        }
    }
}

/// # Safety
/// The list must be a valid one of `count` segments.
pub(super) unsafe fn parts(list: *const sys::ibv_sge, count: i32) -> Vec<Part> {
    (0..usize::try_from(count).unwrap_or(0))
        .map(|index| {
            // SAFETY: the caller vouches for the list.
            let segment = unsafe { *list.add(index) };
            Part {
                address: segment.addr,
                len: segment.length,
                lkey: segment.lkey,
            }
        })
        .collect()
}
