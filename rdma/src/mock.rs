//! A provider for tests: queue pairs in memory, deterministic and without any device.
//!
//! It stands behind the same functions and operation tables as a real provider, so everything in
//! [`crate::verbs`] runs on it unchanged. Work requests are carried out inside `ibv_post_send`, in order;
//! [`hold`] stops a queue pair from doing so, and other functions here make calls fail that a healthy
//! device would not. Devices are called `mock0` (with the extended operation table, extended queue pairs
//! among it), `mock1` (with the classic one only) and `mock2` (with neither reads nor atomics); queue
//! pairs of the whole process reach each other. [`null`] is another provider, which does next to nothing;
//! [`cm`] stands for librdmacm.

mod calls;
pub mod cm;
mod completions;
mod datagram;
mod devices;
mod events;
mod extended;
mod fabric;
mod memory;
pub mod null;
mod queue_pairs;
mod queues;
mod shared_receive;
mod transfer;
mod windows;
mod work;

use std::sync::Arc;

use crate::sys;
use crate::verbs::{CompletionQueue, Context, VerbsError};
use events::{Element, Event};

/// Opens a mock device.
pub fn open(name: &str) -> Result<Arc<Context>, VerbsError> {
    Context::open_in(&calls::LIBRARY, name)
}

/// Lets a queue pair's work requests wait instead of carrying them out when posted.
pub fn hold(qp_number: u32) {
    fabric::lock().hold(qp_number, true);
}

/// Carries out what waits on a held queue pair, and from now on what is posted.
pub fn release(qp_number: u32) {
    fabric::lock().hold(qp_number, false);
}

/// Carries out that many of the work requests that wait, or will, on a held queue pair.
pub fn step(qp_number: u32, count: u32) {
    fabric::lock().step(qp_number, count);
}

/// Takes a queue pair to the error state, as if its device had: its peer finds nobody there.
pub fn kill(qp_number: u32) {
    fabric::lock().fail(qp_number);
}

/// Makes the next work request that a queue pair carries out end with this status (of
/// `enum ibv_wc_status`) instead of being carried out.
pub fn fail_next(qp_number: u32, status: u32) {
    fabric::lock().fail_next(qp_number, status);
}

/// Makes the next completion of a queue pair's sends come twice.
pub fn complete_twice(qp_number: u32) {
    fabric::lock().complete_twice(qp_number);
}

/// Lets the completion queue of a queue pair's sends overrun, as [`overrun_queue`] does.
pub fn overrun(qp_number: u32) {
    fabric::lock().overrun(qp_number);
}

/// Makes a queue pair take this many more sends and refuse the one after them with an errno. A batch of
/// the extended interface that holds that one is refused as a whole.
pub fn refuse_sends_after(qp_number: u32, taken: u32, errno: i32) {
    fabric::lock().refuse_sends_after(qp_number, taken, errno);
}

/// Makes a queue pair fail to be destroyed with an errno, once.
pub fn refuse_destruction(qp_number: u32, errno: i32) {
    fabric::lock().refuse_destruction(qp_number, errno);
}

/// Lets a context report that a port went down or came up.
pub fn report_port(context: &Context, port: u8, active: bool) {
    let kind = if active {
        sys::IBV_EVENT_PORT_ACTIVE
    } else {
        sys::IBV_EVENT_PORT_ERR
    };
    report(context, port, kind);
}

/// Lets a context report an event of a port (or of the device, whatever the port), by its number in
/// `enum ibv_event_type`.
pub fn report(context: &Context, port: u8, kind: u32) {
    let element = Element::Port(port);
    fabric::lock().report(context.raw_async_fd(), Event { kind, element });
}

/// Lets a queue pair's context report an event of it, by its number in `enum ibv_event_type`.
pub fn report_queue_pair(qp_number: u32, kind: u32) {
    let mut fabric = fabric::lock();
    if let Some(structure) = fabric.structures.get(&qp_number).copied() {
        fabric.report_object(structure, kind);
    }
}

/// Lets a completion queue overrun: polling it fails from now on, and its context reports it.
pub fn overrun_queue(queue: &CompletionQueue) {
    fabric::lock().overrun_tagged(queue.id());
}

/// Makes a device refuse the next registration of memory with an errno, once.
pub fn refuse_registration(context: &Context, errno: i32) {
    let async_fd = context.raw_async_fd();
    fabric::lock().refuse_registration.insert(async_fd, errno);
}

/// Makes a device refuse to destroy a memory window with an errno, once.
pub fn refuse_window_end(context: &Context, errno: i32) {
    let async_fd = context.raw_async_fd();
    fabric::lock().refuse_window_end.insert(async_fd, errno);
}
