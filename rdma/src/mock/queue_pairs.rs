//! Queue pairs of the mock provider: made, brought up, posted on, destroyed.

use std::ffi::c_int;
use std::ptr::null_mut;

use super::calls::fail;
use super::events;
use super::extended;
use super::fabric;
use super::queues::QueuePair;
use super::work::Send;
use crate::sys;

pub(super) unsafe extern "C" fn create_qp(
    pd: *mut sys::ibv_pd,
    attributes: *mut sys::ibv_qp_init_attr,
) -> *mut sys::ibv_qp {
    // SAFETY: both are the caller's.
    let (context, attributes) = unsafe { ((*pd).context, &*attributes) };
    make_queue_pair(context, pd, attributes, false)
}

pub(super) unsafe extern "C" fn create_qp_ex(
    context: *mut sys::ibv_context,
    attributes: *mut sys::ibv_qp_init_attr_ex,
) -> *mut sys::ibv_qp {
    // SAFETY: the caller's.
    let attributes = unsafe { &*attributes };
    let known = sys::IBV_QP_INIT_ATTR_PD | sys::IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
    if attributes.comp_mask & !known != 0 || attributes.comp_mask & sys::IBV_QP_INIT_ATTR_PD == 0 {
        fail(libc::EOPNOTSUPP);
        return null_mut();
    }
    let classic = sys::ibv_qp_init_attr {
        qp_context: attributes.qp_context,
        srq: attributes.srq,
        qp_type: attributes.qp_type,
        send_cq: attributes.send_cq,
        recv_cq: attributes.recv_cq,
        cap: attributes.cap,
        ..Default::default()
    };
    let extended = attributes.comp_mask & sys::IBV_QP_INIT_ATTR_SEND_OPS_FLAGS != 0;
    make_queue_pair(context, attributes.pd, &classic, extended)
}

fn make_queue_pair(
    context: *mut sys::ibv_context,
    pd: *mut sys::ibv_pd,
    attributes: &sys::ibv_qp_init_attr,
    extended: bool,
) -> *mut sys::ibv_qp {
    let mut fabric = fabric::lock();
    let number = fabric.number();
    fabric
        .queue_pairs
        .insert(number, QueuePair::new(pd as usize, attributes));
    let base = sys::ibv_qp {
        context,
        qp_context: attributes.qp_context,
        pd,
        send_cq: attributes.send_cq,
        recv_cq: attributes.recv_cq,
        srq: attributes.srq,
        qp_num: number,
        ..Default::default()
    };
    // libibverbs' structure stands first in it.
    let raw: *mut sys::ibv_qp =
        Box::into_raw(extended::QueuePair::new(base, attributes.qp_type, extended)).cast();
    // SAFETY: the context is open.
    let async_fd = unsafe { (*context).async_fd };
    fabric.reporters.insert(raw as usize, async_fd);
    fabric.structures.insert(number, raw as usize);
    raw
}

pub(super) unsafe extern "C" fn modify_qp(
    raw: *mut sys::ibv_qp,
    attributes: *mut sys::ibv_qp_attr,
    mask: c_int,
) -> c_int {
    // SAFETY: both are the caller's.
    let (number, attributes) = unsafe { ((*raw).qp_num, &*attributes) };
    let mask = mask.cast_unsigned();
    let mut fabric = fabric::lock();
    let Some(pair) = fabric.queue_pairs.get_mut(&number) else {
        return libc::EINVAL;
    };
    let allowed = match attributes.qp_state {
        sys::IBV_QPS_INIT => pair.state == sys::IBV_QPS_RESET,
        sys::IBV_QPS_RTR => pair.state == sys::IBV_QPS_INIT,
        sys::IBV_QPS_RTS => pair.state == sys::IBV_QPS_RTR,
        sys::IBV_QPS_ERR => true,
        _ => false,
    };
    if !allowed {
        return libc::EINVAL;
    }
    if mask & sys::IBV_QP_ACCESS_FLAGS != 0 {
        pair.access = attributes.qp_access_flags;
    }
    if mask & sys::IBV_QP_QKEY != 0 {
        pair.queue_key = attributes.qkey;
    }
    if mask & sys::IBV_QP_DEST_QPN != 0 {
        pair.peer = attributes.dest_qp_num;
    }
    if mask & sys::IBV_QP_RNR_RETRY != 0 {
        // 7 is without end; fewer retries count as none.
        pair.waits_for_receives = attributes.rnr_retry == 7;
    }
    if attributes.qp_state == sys::IBV_QPS_ERR {
        fabric.fail(number);
    } else {
        pair.state = attributes.qp_state;
    }
    0
}

pub(super) unsafe extern "C" fn query_qp(
    raw: *mut sys::ibv_qp,
    attributes: *mut sys::ibv_qp_attr,
    _mask: c_int,
    _initial: *mut sys::ibv_qp_init_attr,
) -> c_int {
    // SAFETY: a queue pair of create_qp's.
    let number = unsafe { (*raw).qp_num };
    let fabric = fabric::lock();
    let Some(pair) = fabric.queue_pairs.get(&number) else {
        return libc::EINVAL;
    };
    // SAFETY: the caller's out pointer.
    unsafe { (*attributes).qp_state = pair.state };
    0
}

pub(super) unsafe extern "C" fn destroy_qp(raw: *mut sys::ibv_qp) -> c_int {
    // SAFETY: a queue pair of create_qp's.
    let number = unsafe { (*raw).qp_num };
    let mut fabric = fabric::lock();
    if let Some(pair) = fabric.queue_pairs.get_mut(&number)
        && let Some(errno) = pair.refuse_destruction.take()
    {
        return errno;
    }
    let mut fabric = events::settle(fabric, raw as usize);
    fabric.structures.remove(&number);
    fabric.queue_pairs.remove(&number);
    // SAFETY: as above, so it is a leaked box; nobody uses it any more.
    drop(unsafe { Box::from_raw(raw.cast::<extended::QueuePair>()) });
    0
}

pub(super) unsafe extern "C" fn post_send(
    raw: *mut sys::ibv_qp,
    first: *mut sys::ibv_send_wr,
    refused: *mut *mut sys::ibv_send_wr,
) -> c_int {
    // SAFETY: a queue pair of create_qp's.
    let number = unsafe { (*raw).qp_num };
    let mut fabric = fabric::lock();
    let mut next = first;
    let mut code = 0;
    // SAFETY: the caller's list ends with null.
    while let Some(request) = unsafe { next.as_ref() } {
        let (taken, errno) = fabric.admit(number, 1);
        if taken == 0 {
            // SAFETY: the caller's out pointer.
            unsafe { *refused = next };
            code = errno;
            break;
        }
        // SAFETY: the caller's work request.
        fabric.take_send(number, unsafe { Send::of(request) });
        next = request.next;
    }
    fabric.work_off(number);
    code
}

pub(super) unsafe extern "C" fn post_recv(
    raw: *mut sys::ibv_qp,
    first: *mut sys::ibv_recv_wr,
    refused: *mut *mut sys::ibv_recv_wr,
) -> c_int {
    // SAFETY: a queue pair of create_qp's.
    let number = unsafe { (*raw).qp_num };
    let mut fabric = fabric::lock();
    let mut next = first;
    // SAFETY: the caller's list ends with null.
    while let Some(request) = unsafe { next.as_ref() } {
        // SAFETY: the caller's work request.
        if let Err(errno) = unsafe { fabric.take_receive(number, request) } {
            // SAFETY: the caller's out pointer.
            unsafe { *refused = next };
            return errno;
        }
        next = request.next;
    }
    0
}
