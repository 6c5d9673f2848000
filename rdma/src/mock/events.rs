//! Asynchronous events of the mock provider, with libibverbs' rule: nobody destroys an object of which
//! an event was taken and not acknowledged; the destroying call waits.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::os::fd::RawFd;
use std::sync::{Condvar, MutexGuard};

use super::calls::{fail, take_signal};
use super::fabric::{self, Fabric, signal};
use crate::sys;

/// An event that waits to be taken: of an object, by the address of its structure, or of a port.
#[derive(Clone, Copy)]
pub(super) struct Event {
    pub(super) kind: sys::ibv_event_type,
    pub(super) element: Element,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    Port(u8),
    Object(usize),
}

/// Signalled when an event or a notification was acknowledged.
static ACKNOWLEDGED: Condvar = Condvar::new();

impl Fabric {
    /// Lets a context, by its descriptor, report an event.
    pub(super) fn report(&mut self, async_fd: RawFd, event: Event) {
        self.events.entry(async_fd).or_default().push_back(event);
        signal(async_fd);
    }

    /// Lets the context of an object report an event of it.
    pub(super) fn report_object(&mut self, object: usize, kind: sys::ibv_event_type) {
        if let Some(async_fd) = self.reporters.get(&object).copied() {
            let element = Element::Object(object);
            self.report(async_fd, Event { kind, element });
        }
    }

    /// Lets the completion queue of a queue pair's sends overrun.
    pub(super) fn overrun(&mut self, qp_number: u32) {
        if let Some(queue_pair) = self.queue_pairs.get(&qp_number) {
            self.overrun_at(queue_pair.send_queue);
        }
    }

    /// Lets the completion queue with this tag overrun.
    pub(super) fn overrun_tagged(&mut self, tag: u64) {
        let found = self.queues.iter().find(|(_, queue)| queue.tag == tag);
        if let Some(structure) = found.map(|(structure, _)| *structure) {
            self.overrun_at(structure);
        }
    }

    fn overrun_at(&mut self, structure: usize) {
        if let Some(queue) = self.queues.get_mut(&structure) {
            queue.overrun = true;
            self.report_object(structure, sys::IBV_EVENT_CQ_ERR);
        }
    }

    fn forget(&mut self, object: usize) {
        self.reporters.remove(&object);
        for waiting in self.events.values_mut() {
            waiting.retain(|event| event.element != Element::Object(object));
        }
        self.taken.remove(&object);
    }
}

/// Takes back the events of an object that is being destroyed, and waits for those that were taken.
pub(super) fn settle(
    mut fabric: MutexGuard<'static, Fabric>,
    object: usize,
) -> MutexGuard<'static, Fabric> {
    while fabric.taken.get(&object).is_some_and(|taken| *taken > 0) {
        fabric = ACKNOWLEDGED
            .wait(fabric)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
    }
    fabric.forget(object);
    fabric
}

/// Counts an event or notification of an object as taken.
pub(super) fn count_taken(fabric: &mut Fabric, object: usize) {
    *fabric.taken.entry(object).or_default() += 1;
}

/// Counts events or notifications of an object as acknowledged.
pub(super) fn acknowledge(fabric: &mut Fabric, object: usize, count: u32) {
    if let Some(taken) = fabric.taken.get_mut(&object) {
        *taken = taken.saturating_sub(count);
    }
    ACKNOWLEDGED.notify_all();
}

pub(super) unsafe extern "C" fn get_async_event(
    context: *mut sys::ibv_context,
    event: *mut sys::ibv_async_event,
) -> c_int {
    // SAFETY: the context is open.
    let fd = unsafe { (*context).async_fd };
    if !take_signal(fd) {
        return -1;
    }
    let mut fabric = fabric::lock();
    let due = fabric.events.get_mut(&fd).and_then(VecDeque::pop_front);
    let Some(due) = due else {
        // Its object was destroyed meanwhile.
        return fail(libc::EAGAIN);
    };
    // SAFETY: the caller's out pointer.
    unsafe { (*event).event_type = due.kind };
    match due.element {
        // SAFETY: as above.
        Element::Port(port) => unsafe { (*event).element.port_num = port.into() },
        Element::Object(object) => {
            count_taken(&mut fabric, object);
            // All objects are pointers, at the same place.
            // SAFETY: as above.
            unsafe { (*event).element.qp = object as *mut sys::ibv_qp };
        }
    }
    0
}

pub(super) unsafe extern "C" fn ack_async_event(event: *mut sys::ibv_async_event) {
    // SAFETY: an event of get_async_event's.
    let event = unsafe { &*event };
    let is_port = matches!(
        event.event_type,
        sys::IBV_EVENT_PORT_ACTIVE
            | sys::IBV_EVENT_PORT_ERR
            | sys::IBV_EVENT_LID_CHANGE
            | sys::IBV_EVENT_PKEY_CHANGE
            | sys::IBV_EVENT_SM_CHANGE
            | sys::IBV_EVENT_GID_CHANGE
            | sys::IBV_EVENT_CLIENT_REREGISTER
            | sys::IBV_EVENT_DEVICE_FATAL
    );
    if !is_port {
        // SAFETY: other events name an object, and all objects are pointers, at the same place.
        let object = unsafe { event.element.qp } as usize;
        acknowledge(&mut fabric::lock(), object, 1);
    }
}
