//! A connection that was made: news of its end.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::error::ConnectError;
use super::id::Id;
use super::private_data::PrivateData;
use crate::sys;

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The peer has disconnected or died, or this end has: take the queue pair to the error state with
    /// [`QueuePair::fail`](crate::verbs::QueuePair::fail), and all that is posted comes back.
    Disconnected,
    /// Packets of the old connection can no longer arrive.
    TimeWaitOver,
    /// The device was removed: drop everything that is made from it.
    DeviceRemoved,
    /// The net device's address or its port changed: the path may no longer work.
    AddressChanged,
}

/// What librdmacm knows of a connection, beside its queue pair: dropping it tells the peer that the
/// connection is over. The queue pair is not touched by that, and fails only when the peer's does.
pub struct Connection {
    id: Id,
    private_data: PrivateData,
    over: bool,
}

impl Connection {
    pub(super) fn new(id: Id, private_data: PrivateData) -> Connection {
        Connection {
            id,
            private_data,
            over: false,
        }
    }

    /// What the peer sent with its request or its acceptance.
    pub fn private_data(&self) -> &PrivateData {
        &self.private_data
    }

    /// The peer's address.
    pub fn peer_address(&self) -> SocketAddr {
        self.id.address()
    }

    /// Our own address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.id.local_address()
    }

    /// Takes the next event, if there is one. Ask whenever the descriptor is readable.
    pub fn next_event(&mut self) -> Result<Option<Event>, ConnectError> {
        while let Some(event) = self.id.next_event()? {
            return Ok(Some(match event.kind {
                sys::RDMA_CM_EVENT_DISCONNECTED => {
                    // The answer to the peer's goodbye; without it the peer asks again for a while.
                    // It fails when the goodbye was ours.
                    let _ = self.say_goodbye();
                    Event::Disconnected
                }
                sys::RDMA_CM_EVENT_TIMEWAIT_EXIT => Event::TimeWaitOver,
                sys::RDMA_CM_EVENT_DEVICE_REMOVAL => Event::DeviceRemoved,
                sys::RDMA_CM_EVENT_ADDR_CHANGE => Event::AddressChanged,
                _ => continue,
            }));
        }
        Ok(None)
    }

    /// Tells the peer that the connection is over; both ends get [`Event::Disconnected`]. What is posted
    /// on our queue pair is not waited for: settle it before, or fail the queue pair.
    pub fn disconnect(&mut self) -> Result<(), ConnectError> {
        if self.over {
            return Ok(());
        }
        self.say_goodbye()
    }

    fn say_goodbye(&mut self) -> Result<(), ConnectError> {
        self.over = true;
        self.id.call("rdma_disconnect", |library, id| {
            // SAFETY: the identifier is alive, and has no queue pair that this could change.
            unsafe { (library.disconnect)(id) }
        })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.id.descriptor()
    }
}
