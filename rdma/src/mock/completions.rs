//! Completion queues of the mock provider, and the channels that tell of them.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;

use super::calls::{eventfd, fail, take_signal};
use super::devices::COMPLETION_QUEUE_ENTRIES;
use super::events;
use super::fabric::{self, Queue};
use crate::sys;

pub(super) unsafe extern "C" fn create_comp_channel(
    context: *mut sys::ibv_context,
) -> *mut sys::ibv_comp_channel {
    Box::into_raw(Box::new(sys::ibv_comp_channel {
        context,
        fd: eventfd(),
        refcnt: 0,
    }))
}

pub(super) unsafe extern "C" fn destroy_comp_channel(channel: *mut sys::ibv_comp_channel) -> c_int {
    // SAFETY: a box of create_comp_channel's.
    let channel = unsafe { Box::from_raw(channel) };
    fabric::lock().due.remove(&channel.fd);
    // SAFETY: the descriptor is the channel's own.
    unsafe { libc::close(channel.fd) }
}

pub(super) unsafe extern "C" fn create_cq(
    context: *mut sys::ibv_context,
    entries: c_int,
    tag: *mut c_void,
    channel: *mut sys::ibv_comp_channel,
    _vector: c_int,
) -> *mut sys::ibv_cq {
    if entries > COMPLETION_QUEUE_ENTRIES {
        fail(libc::EINVAL);
        return null_mut();
    }
    let mut queue = Box::new(sys::ibv_cq::default());
    queue.context = context;
    queue.cqe = entries;
    queue.cq_context = tag;
    queue.channel = channel;
    let raw = Box::into_raw(queue);
    // SAFETY: a channel of create_comp_channel's, or null.
    let channel = unsafe { channel.as_ref() }.map(|channel| channel.fd);
    let capacity = usize::try_from(entries).unwrap_or(0);
    let queue = Queue {
        capacity,
        channel,
        tag: tag.addr() as u64,
        ..Queue::default()
    };
    // SAFETY: the context is open.
    let async_fd = unsafe { (*context).async_fd };
    let mut fabric = fabric::lock();
    fabric.queues.insert(raw as usize, queue);
    fabric.reporters.insert(raw as usize, async_fd);
    raw
}

pub(super) unsafe extern "C" fn destroy_cq(queue: *mut sys::ibv_cq) -> c_int {
    let fabric = fabric::lock();
    let used = fabric
        .queue_pairs
        .values()
        .any(|pair| pair.send_queue == queue as usize || pair.receive_queue == queue as usize);
    if used {
        return libc::EBUSY;
    }
    let mut fabric = events::settle(fabric, queue as usize);
    fabric.queues.remove(&(queue as usize));
    // SAFETY: a box of create_cq's.
    drop(unsafe { Box::from_raw(queue) });
    0
}

pub(super) unsafe extern "C" fn get_cq_event(
    channel: *mut sys::ibv_comp_channel,
    queue: *mut *mut sys::ibv_cq,
    tag: *mut *mut c_void,
) -> c_int {
    // SAFETY: the channel is alive.
    let fd = unsafe { (*channel).fd };
    if !take_signal(fd) {
        return -1;
    }
    let mut fabric = fabric::lock();
    let due = fabric
        .due
        .get_mut(&fd)
        .and_then(std::collections::VecDeque::pop_front);
    let Some(due) = due else {
        return fail(libc::EIO);
    };
    events::count_taken(&mut fabric, due);
    // SAFETY: the caller's out pointers.
    unsafe {
        *queue = due as *mut sys::ibv_cq;
        *tag = null_mut();
    }
    0
}

pub(super) unsafe extern "C" fn ack_cq_events(queue: *mut sys::ibv_cq, count: c_uint) {
    events::acknowledge(&mut fabric::lock(), queue as usize, count);
}

pub(super) unsafe extern "C" fn poll_cq(
    queue: *mut sys::ibv_cq,
    entries: c_int,
    out: *mut sys::ibv_wc,
) -> c_int {
    let mut fabric = fabric::lock();
    let Some(queue) = fabric.queues.get_mut(&(queue as usize)) else {
        return -libc::EINVAL;
    };
    if queue.overrun {
        return -libc::EIO;
    }
    let mut taken = 0;
    while taken < entries {
        let Some(done) = queue.entries.pop_front() else {
            break;
        };
        // SAFETY: the caller's array has `entries` entries.
        unsafe { out.add(taken as usize).write(done) };
        taken += 1;
    }
    taken
}

pub(super) unsafe extern "C" fn req_notify_cq(queue: *mut sys::ibv_cq, _solicited: c_int) -> c_int {
    match fabric::lock().queues.get_mut(&(queue as usize)) {
        Some(queue) => {
            queue.armed = true;
            0
        }
        None => libc::EINVAL,
    }
}
