//! Asynchronous events of a device: what happened to it outside of any work request.
//!
//! libibverbs lets nobody destroy an object while an event that names it was taken but not acknowledged:
//! the destroying call waits. [`Context::next_event`] takes, copies and acknowledges in one go, so no
//! event is ever held, and dropping an object never waits for another part of the program.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::context::Context;
use super::error::VerbsError;
use crate::sys;

/// What happened, as in `enum ibv_event_type` (ibv_get_async_event(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A port became usable.
    PortActive,
    /// A port went down.
    PortError,
    /// The subnet manager gave a port another LID.
    LidChanged,
    /// The subnet manager changed a port's table of partition keys.
    PartitionKeyChanged,
    /// A port has another subnet manager.
    SubnetManagerChanged,
    /// The subnet manager asks to register multicast groups and services anew.
    ClientReregister,
    /// A port's GID table changed: an address of its net device came or went.
    GidChanged,
    /// The device failed: nothing on it works any more. Drop all of it and open it again.
    DeviceFatal,
    /// A completion queue overran: completions were lost.
    CompletionQueueError,
    /// A queue pair failed for a reason that no completion tells.
    QueuePairFatal,
    /// A queue pair refused an invalid request of its peer.
    QueuePairRequestError,
    /// A queue pair refused its peer access to memory.
    QueuePairAccessError,
    /// A queue pair received its first packet before it was told that its peer is ready.
    CommunicationEstablished,
    /// A queue pair's send queue is empty, as was asked for.
    SendQueueDrained,
    /// A queue pair moved to its alternate path.
    PathMigrated,
    /// A queue pair could not move to its alternate path.
    PathMigrationError,
    /// A failed queue pair takes no more receives from its shared receive queue.
    LastReceiveTaken,
    /// A shared receive queue has fewer receives left than its limit.
    SharedReceiveLimit,
    /// A shared receive queue failed.
    SharedReceiveError,
    /// A work queue failed.
    WorkQueueFatal,
    /// Another one, by its number.
    Other(u32),
}

/// What it happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The device as a whole.
    Device,
    /// A port, by its number, from 1.
    Port(u8),
    /// A queue pair, by its number.
    QueuePair(u32),
    /// A completion queue, by [`super::CompletionQueue::id`].
    CompletionQueue(u64),
    /// A shared receive queue, by its `id`.
    SharedReceiveQueue(u64),
    /// Something this layer never makes.
    Unknown,
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AsyncEvent {
    /// What happened.
    pub kind: EventKind,
    /// To which object.
    pub subject: Subject,
}

impl AsyncEvent {
    /// The port concerned, for port events.
    pub fn port(&self) -> Option<u8> {
        match self.subject {
            Subject::Port(port) => Some(port),
            _ => None,
        }
    }

    /// The queue pair concerned, for queue pair events.
    pub fn qp_number(&self) -> Option<u32> {
        match self.subject {
            Subject::QueuePair(number) => Some(number),
            _ => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Device => f.write_str("the device"),
            Subject::Port(port) => write!(f, "port {port}"),
            Subject::QueuePair(number) => write!(f, "queue pair {number}"),
            Subject::CompletionQueue(id) => write!(f, "completion queue {id}"),
            Subject::SharedReceiveQueue(id) => write!(f, "shared receive queue {id}"),
            Subject::Unknown => f.write_str("an unknown object"),
        }
    }
}

impl fmt::Display for AsyncEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = self.subject;
        match self.kind {
            EventKind::PortActive => write!(f, "{subject} is active"),
            EventKind::PortError => write!(f, "{subject} went down"),
            EventKind::LidChanged => write!(f, "{subject} has another LID"),
            EventKind::PartitionKeyChanged => write!(f, "{subject} has other partition keys"),
            EventKind::SubnetManagerChanged => write!(f, "{subject} has another subnet manager"),
            EventKind::ClientReregister => {
                write!(f, "{subject}: the subnet manager asks to register anew")
            }
            EventKind::GidChanged => write!(f, "{subject} has other GIDs"),
            EventKind::DeviceFatal => write!(f, "{subject} failed and must be opened again"),
            EventKind::CompletionQueueError => write!(f, "{subject} overran and lost completions"),
            EventKind::QueuePairFatal => write!(f, "{subject} failed"),
            EventKind::QueuePairRequestError => {
                write!(f, "{subject} refused an invalid request of its peer")
            }
            EventKind::QueuePairAccessError => {
                write!(f, "{subject} refused its peer access to memory")
            }
            EventKind::CommunicationEstablished => write!(f, "{subject} heard from its peer"),
            EventKind::SendQueueDrained => write!(f, "{subject} has sent everything"),
            EventKind::PathMigrated => write!(f, "{subject} moved to its alternate path"),
            EventKind::PathMigrationError => {
                write!(f, "{subject} could not move to its alternate path")
            }
            EventKind::LastReceiveTaken => write!(f, "{subject} takes no more shared receives"),
            EventKind::SharedReceiveLimit => write!(f, "{subject} runs out of receives"),
            EventKind::SharedReceiveError => write!(f, "{subject} failed"),
            EventKind::WorkQueueFatal => write!(f, "a work queue of {subject} failed"),
            EventKind::Other(number) => write!(f, "event {number} of {subject}"),
        }
    }
}

/// What events said of a queue pair, kept for whoever asks later. The adapter's queue pair points to it
/// with its `qp_context`.
#[derive(Debug, Default)]
pub(super) struct Notes {
    last_receive_taken: AtomicBool,
}

impl Notes {
    pub(super) fn last_receive_taken(&self) -> bool {
        self.last_receive_taken.load(Ordering::Acquire)
    }
}

impl Context {
    /// Takes the next event, if there is one; it is acknowledged at once. Call it until it returns
    /// `None` whenever [`Context::async_fd`] is readable. Any thread may.
    pub fn next_event(&self) -> Result<Option<AsyncEvent>, VerbsError> {
        let mut raw = sys::ibv_async_event::default();
        loop {
            // SAFETY: the context is open and the event is ours; the descriptor doesn't block.
            if unsafe { (self.library().get_async_event)(self.as_ptr(), &mut raw) } == 0 {
                break;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(None),
                io::ErrorKind::Interrupted => {}
                _ => {
                    return Err(VerbsError::Call {
                        verb: "ibv_get_async_event",
                        object: self.name().to_owned(),
                        source: error,
                    });
                }
            }
        }
        // SAFETY: the event was just taken from this context and is not acknowledged, so the object it
        // names can't be destroyed yet.
        let event = unsafe { decode(&raw) };
        // SAFETY: as above; no pointer into the object is kept.
        unsafe { (self.library().ack_async_event)(&mut raw) };
        Ok(Some(event))
    }
}

/// # Safety
/// The event must have been taken and not yet acknowledged, of a context whose objects were all made by
/// this layer: then the object it names exists, and its tag is what we gave it.
unsafe fn decode(raw: &sys::ibv_async_event) -> AsyncEvent {
    let kind = kind(raw.event_type);
    let subject = match kind {
        EventKind::PortActive
        | EventKind::PortError
        | EventKind::LidChanged
        | EventKind::PartitionKeyChanged
        | EventKind::SubnetManagerChanged
        | EventKind::ClientReregister
        | EventKind::GidChanged => {
            // SAFETY: port events carry a port number.
            let port = u8::try_from(unsafe { raw.element.port_num });
            port.map_or(Subject::Unknown, Subject::Port)
        }
        EventKind::CompletionQueueError => {
            // SAFETY: this event carries a completion queue, which exists, as the caller says.
            let queue = unsafe { raw.element.cq.as_ref() };
            queue.map_or(Subject::Unknown, |queue| {
                Subject::CompletionQueue(queue.cq_context.addr() as u64)
            })
        }
        EventKind::SharedReceiveLimit | EventKind::SharedReceiveError => {
            // SAFETY: these events carry a shared receive queue, which exists, as the caller says.
            let queue = unsafe { raw.element.srq.as_ref() };
            queue.map_or(Subject::Unknown, |queue| {
                Subject::SharedReceiveQueue(queue.srq_context.addr() as u64)
            })
        }
        EventKind::QueuePairFatal
        | EventKind::QueuePairRequestError
        | EventKind::QueuePairAccessError
        | EventKind::CommunicationEstablished
        | EventKind::SendQueueDrained
        | EventKind::PathMigrated
        | EventKind::PathMigrationError
        | EventKind::LastReceiveTaken => {
            // SAFETY: these events carry a queue pair, which exists, as the caller says.
            match unsafe { raw.element.qp.as_ref() } {
                Some(pair) => {
                    if kind == EventKind::LastReceiveTaken {
                        // SAFETY: a queue pair's tag is null or points to notes that its owner keeps
                        // until the queue pair is destroyed.
                        let notes = unsafe { pair.qp_context.cast::<Notes>().as_ref() };
                        if let Some(notes) = notes {
                            notes.last_receive_taken.store(true, Ordering::Release);
                        }
                    }
                    Subject::QueuePair(pair.qp_num)
                }
                None => Subject::Unknown,
            }
        }
        EventKind::DeviceFatal => Subject::Device,
        EventKind::WorkQueueFatal | EventKind::Other(_) => Subject::Unknown,
    };
    AsyncEvent { kind, subject }
}

fn kind(raw: sys::ibv_event_type) -> EventKind {
    match raw {
        sys::IBV_EVENT_PORT_ACTIVE => EventKind::PortActive,
        sys::IBV_EVENT_PORT_ERR => EventKind::PortError,
        sys::IBV_EVENT_LID_CHANGE => EventKind::LidChanged,
        sys::IBV_EVENT_PKEY_CHANGE => EventKind::PartitionKeyChanged,
        sys::IBV_EVENT_SM_CHANGE => EventKind::SubnetManagerChanged,
        sys::IBV_EVENT_CLIENT_REREGISTER => EventKind::ClientReregister,
        sys::IBV_EVENT_GID_CHANGE => EventKind::GidChanged,
        sys::IBV_EVENT_DEVICE_FATAL => EventKind::DeviceFatal,
        sys::IBV_EVENT_CQ_ERR => EventKind::CompletionQueueError,
        sys::IBV_EVENT_QP_FATAL => EventKind::QueuePairFatal,
        sys::IBV_EVENT_QP_REQ_ERR => EventKind::QueuePairRequestError,
        sys::IBV_EVENT_QP_ACCESS_ERR => EventKind::QueuePairAccessError,
        sys::IBV_EVENT_COMM_EST => EventKind::CommunicationEstablished,
        sys::IBV_EVENT_SQ_DRAINED => EventKind::SendQueueDrained,
        sys::IBV_EVENT_PATH_MIG => EventKind::PathMigrated,
        sys::IBV_EVENT_PATH_MIG_ERR => EventKind::PathMigrationError,
        sys::IBV_EVENT_QP_LAST_WQE_REACHED => EventKind::LastReceiveTaken,
        sys::IBV_EVENT_SRQ_LIMIT_REACHED => EventKind::SharedReceiveLimit,
        sys::IBV_EVENT_SRQ_ERR => EventKind::SharedReceiveError,
        sys::IBV_EVENT_WQ_FATAL => EventKind::WorkQueueFatal,
        other => EventKind::Other(other),
    }
}

/// Whether reads of a descriptor wait until there is something.
pub(super) fn set_blocking(fd: RawFd, blocking: bool) -> io::Result<()> {
    // SAFETY: fcntl on a descriptor that the caller holds open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    let wanted = if blocking {
        flags & !libc::O_NONBLOCK
    } else {
        flags | libc::O_NONBLOCK
    };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, wanted) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
