//! Shared receive queues of the mock provider.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::ptr::null_mut;

use super::calls::fail;
use super::events;
use super::fabric::{self, Fabric};
use super::work::{Receive, parts};
use crate::sys;

#[derive(Default)]
pub(super) struct SharedReceives {
    receives: VecDeque<Receive>,
    depth: u32,
    segments: u32,
    limit: u32,
}

impl Fabric {
    /// Takes the receive that a message for this queue pair goes into.
    pub(super) fn next_receive(&mut self, qp_number: u32) -> Option<Receive> {
        let queue_pair = self.queue_pairs.get_mut(&qp_number)?;
        let Some(queue) = queue_pair.shared_receives else {
            return queue_pair.receives.pop_front();
        };
        let shared = self.shared_receives.get_mut(&queue)?;
        let receive = shared.receives.pop_front();
        if shared.receives.len() < shared.limit as usize {
            shared.limit = 0;
            self.report_object(queue, sys::IBV_EVENT_SRQ_LIMIT_REACHED);
        }
        receive
    }
}

pub(super) unsafe extern "C" fn create_srq(
    pd: *mut sys::ibv_pd,
    attributes: *mut sys::ibv_srq_init_attr,
) -> *mut sys::ibv_srq {
    // SAFETY: both are the caller's.
    let (context, attributes) = unsafe { ((*pd).context, &*attributes) };
    if attributes.attr.max_wr == 0 {
        fail(libc::EINVAL);
        return null_mut();
    }
    let mut raw = Box::new(sys::ibv_srq::default());
    raw.context = context;
    raw.pd = pd;
    raw.srq_context = attributes.srq_context;
    let raw = Box::into_raw(raw);
    // SAFETY: the context is open.
    let async_fd = unsafe { (*context).async_fd };
    let mut fabric = fabric::lock();
    fabric.reporters.insert(raw as usize, async_fd);
    fabric.shared_receives.insert(
        raw as usize,
        SharedReceives {
            depth: attributes.attr.max_wr,
            segments: attributes.attr.max_sge,
            ..SharedReceives::default()
        },
    );
    raw
}

pub(super) unsafe extern "C" fn modify_srq(
    queue: *mut sys::ibv_srq,
    attributes: *mut sys::ibv_srq_attr,
    mask: c_int,
) -> c_int {
    let mut fabric = fabric::lock();
    let Some(shared) = fabric.shared_receives.get_mut(&(queue as usize)) else {
        return libc::EINVAL;
    };
    // SAFETY: the caller's attributes.
    let limit = unsafe { (*attributes).srq_limit };
    if mask.cast_unsigned() != sys::IBV_SRQ_LIMIT || limit > shared.depth {
        return libc::EINVAL;
    }
    shared.limit = limit;
    0
}

pub(super) unsafe extern "C" fn query_srq(
    queue: *mut sys::ibv_srq,
    attributes: *mut sys::ibv_srq_attr,
) -> c_int {
    let fabric = fabric::lock();
    let Some(shared) = fabric.shared_receives.get(&(queue as usize)) else {
        return libc::EINVAL;
    };
    // SAFETY: the caller's out pointer.
    unsafe {
        *attributes = sys::ibv_srq_attr {
            max_wr: shared.depth,
            max_sge: shared.segments,
            srq_limit: shared.limit,
        };
    }
    0
}

pub(super) unsafe extern "C" fn destroy_srq(queue: *mut sys::ibv_srq) -> c_int {
    let fabric = fabric::lock();
    let used = fabric
        .queue_pairs
        .values()
        .any(|pair| pair.shared_receives == Some(queue as usize));
    if used {
        return libc::EBUSY;
    }
    let mut fabric = events::settle(fabric, queue as usize);
    fabric.shared_receives.remove(&(queue as usize));
    // SAFETY: a box of create_srq's.
    drop(unsafe { Box::from_raw(queue) });
    0
}

pub(super) unsafe extern "C" fn post_srq_recv(
    queue: *mut sys::ibv_srq,
    first: *mut sys::ibv_recv_wr,
    refused: *mut *mut sys::ibv_recv_wr,
) -> c_int {
    let mut fabric = fabric::lock();
    let Some(shared) = fabric.shared_receives.get_mut(&(queue as usize)) else {
        return libc::EINVAL;
    };
    let mut next = first;
    // SAFETY: the caller's list ends with null.
    while let Some(request) = unsafe { next.as_ref() } {
        if shared.receives.len() >= shared.depth as usize {
            // SAFETY: the caller's out pointer.
            unsafe { *refused = next };
            return libc::ENOMEM;
        }
        shared.receives.push_back(Receive {
            id: request.wr_id,
            // SAFETY: the caller's work request.
            parts: unsafe { parts(request.sg_list, request.num_sge) },
        });
        next = request.next;
    }
    0
}
