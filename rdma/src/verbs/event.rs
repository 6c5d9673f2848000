//! Asynchronous events of a device: what happened to it outside of any work request.

use std::io;
use std::os::fd::RawFd;

use super::context::Context;
use super::error::VerbsError;
use crate::sys;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A port became usable.
    PortActive,
    /// A port went down.
    PortError,
    /// A port's address (LID, P_Key or GID table, subnet manager) changed.
    PortChanged,
    /// A completion queue overran: completions were lost.
    CompletionQueueError,
    /// A queue pair failed or was refused by its peer.
    QueuePairError,
    /// The device failed: nothing on it works any more.
    DeviceFatal,
    /// Any other event, by its number in `enum ibv_event_type`.
    Other(u32),
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsyncEvent {
    /// What happened.
    pub kind: EventKind,
    /// The port concerned, for port events.
    pub port: Option<u8>,
    /// The queue pair concerned, for queue pair events.
    pub qp_number: Option<u32>,
}

impl Context {
    /// Takes the next event, if there is one; it is acknowledged at once. Call it until it returns
    /// `None` whenever [`Context::async_fd`] is readable.
    pub fn next_event(&self) -> Result<Option<AsyncEvent>, VerbsError> {
        let mut raw = sys::ibv_async_event::default();
        // SAFETY: the context is open and the event is ours; the descriptor doesn't block.
        if unsafe { (self.library().get_async_event)(self.as_ptr(), &mut raw) } != 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::WouldBlock {
                return Ok(None);
            }
            return Err(VerbsError::Call {
                verb: "ibv_get_async_event",
                object: self.name().to_owned(),
                source: error,
            });
        }
        let event = decode(&raw);
        // SAFETY: the event was just taken from this context. Objects named in it can't be destroyed
        // before this acknowledgement, and no pointer into them is kept.
        unsafe { (self.library().ack_async_event)(&mut raw) };
        Ok(Some(event))
    }
}

fn decode(raw: &sys::ibv_async_event) -> AsyncEvent {
    let kind = match raw.event_type {
        sys::IBV_EVENT_PORT_ACTIVE => EventKind::PortActive,
        sys::IBV_EVENT_PORT_ERR => EventKind::PortError,
        sys::IBV_EVENT_LID_CHANGE
        | sys::IBV_EVENT_PKEY_CHANGE
        | sys::IBV_EVENT_SM_CHANGE
        | sys::IBV_EVENT_GID_CHANGE
        | sys::IBV_EVENT_CLIENT_REREGISTER => EventKind::PortChanged,
        sys::IBV_EVENT_CQ_ERR => EventKind::CompletionQueueError,
        sys::IBV_EVENT_QP_FATAL | sys::IBV_EVENT_QP_REQ_ERR | sys::IBV_EVENT_QP_ACCESS_ERR => {
            EventKind::QueuePairError
        }
        sys::IBV_EVENT_DEVICE_FATAL => EventKind::DeviceFatal,
        other => EventKind::Other(other),
    };
    let port = match kind {
        EventKind::PortActive | EventKind::PortError | EventKind::PortChanged => {
            // SAFETY: port events carry a port number.
            u8::try_from(unsafe { raw.element.port_num }).ok()
        }
        _ => None,
    };
    let qp_number = match kind {
        // SAFETY: these events carry a queue pair, which lives until the event is acknowledged.
        EventKind::QueuePairError => unsafe { raw.element.qp.as_ref() }.map(|qp| qp.qp_num),
        _ => None,
    };
    AsyncEvent {
        kind,
        port,
        qp_number,
    }
}

pub(super) fn make_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl on a descriptor that the caller holds open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
