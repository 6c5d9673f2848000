//! The end that is connected to: requests that are accepted or rejected.

use std::ffi::c_void;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use super::attempt::Attempt;
use super::bring_up::{Depths, bring_up};
use super::connection::Connection;
use super::error::{ConnectError, Phase};
use super::id::{Device, Id, encode_address};
use super::private_data::PrivateData;
use super::{Progress, Step, wait_readable};
use crate::sys::{self, ConnectionManager};
use crate::verbs::{
    ConnectOptions, Context, LocalPort, QueuePair, Sink, Source, UnconnectedQueuePair,
};

/// An address and port on which peers may ask for connections.
pub struct Listener {
    id: Id,
    address: SocketAddr,
}

impl Listener {
    /// Listens on an address of ours: of one device, or with the unspecified address of all. Port 0
    /// takes a free one. `backlog` requests may wait to be taken; the kernel rejects more.
    pub fn bind(address: SocketAddr, backlog: u16) -> Result<Listener, ConnectError> {
        Listener::bind_in(ConnectionManager::system()?, address, backlog)
    }

    /// The same with other functions than the system's: the mock's.
    pub(crate) fn bind_in(
        library: &'static ConnectionManager,
        address: SocketAddr,
        backlog: u16,
    ) -> Result<Listener, ConnectError> {
        let mut id = Id::new(library, address)?;
        let encoded = encode_address(address);
        id.call("rdma_bind_addr", |library, id| {
            // SAFETY: the identifier is alive; the address is complete, and only read.
            unsafe { (library.bind_addr)(id, encoded.as_ptr().cast_mut().cast()) }
        })?;
        id.call("rdma_listen", |library, id| {
            // SAFETY: the identifier is alive and bound.
            unsafe { (library.listen)(id, i32::from(backlog.max(1))) }
        })?;
        let address = id.local_address().unwrap_or(address);
        Ok(Listener { id, address })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Takes the next request, if there is one. Ask whenever the descriptor is readable. After an error
    /// other requests can still be taken, unless the device was removed.
    pub fn next_request(&mut self) -> Result<Option<Incoming>, ConnectError> {
        while let Some(mut event) = self.id.next_event()? {
            if event.kind == sys::RDMA_CM_EVENT_DEVICE_REMOVAL {
                let address = self.address;
                return Err(ConnectError::DeviceRemoved { address });
            }
            let Some(id) = self.id.of_request(&mut event)? else {
                continue;
            };
            // Without a device the request is already over.
            let Some(device) = id.device() else { continue };
            return Ok(Some(Incoming {
                id,
                device,
                wanted: Depths {
                    served: event.responder_resources,
                    asked: event.initiator_depth,
                },
                private_data: event.private_data,
            }));
        }
        Ok(None)
    }

    /// Waits for the next request until the deadline.
    pub fn wait(&mut self, deadline: Instant) -> Result<Option<Incoming>, ConnectError> {
        loop {
            if let Some(incoming) = self.next_request()? {
                return Ok(Some(incoming));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            wait_readable(self.as_fd(), deadline);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.id.descriptor()
    }
}

/// A peer's request. Dropping it rejects it without private data.
pub struct Incoming {
    id: Id,
    device: Device,
    wanted: Depths,
    private_data: PrivateData,
}

impl Incoming {
    /// Who asks: its address is only as true as the network between.
    pub fn peer_address(&self) -> SocketAddr {
        self.id.address()
    }

    /// What came with the request: of a peer that nobody has authenticated.
    pub fn private_data(&self) -> &PrivateData {
        &self.private_data
    }

    /// The device on which the request came.
    pub fn device_name(&self) -> &str {
        &self.device.name
    }

    /// Opens that device.
    pub fn open(&self) -> Result<Arc<Context>, ConnectError> {
        Ok(Context::open(&self.device.name)?)
    }

    /// The port on which the request came, for queue pairs.
    pub fn local_port(&self, context: &Context) -> Result<LocalPort, ConnectError> {
        self.device.local_port(self.id.address(), context)
    }

    /// Accepts with that queue pair, which must be on the request's device and port. Receives should be
    /// posted before: the peer may send as soon as it has the answer.
    pub fn accept<S: Source, R: Sink>(
        self,
        queue_pair: UnconnectedQueuePair<S, R>,
        path: &ConnectOptions,
        private_data: &PrivateData,
        deadline: Instant,
    ) -> Result<Accepting<S, R>, ConnectError> {
        let Incoming {
            mut id,
            device,
            wanted,
            private_data: greeting,
        } = self;
        device.check(id.address(), &queue_pair)?;
        let len = private_data.fit("an acceptance", PrivateData::ACCEPTANCE_BYTES)?;
        let endpoint = queue_pair.endpoint();
        let depths = Depths {
            served: wanted.served.min(endpoint.reads_in_flight),
            asked: wanted.asked.min(endpoint.reads_in_flight),
        };
        let queue_pair = bring_up(&mut id, queue_pair, path, Some(depths))?;
        let mut parameters = sys::rdma_conn_param {
            private_data: private_data.as_bytes().as_ptr().cast::<c_void>(),
            private_data_len: len,
            responder_resources: depths.served,
            initiator_depth: depths.asked,
            rnr_retry_count: path.not_ready_retries & 7,
            qp_num: endpoint.qp_number,
            ..Default::default()
        };
        id.call("rdma_accept", |library, id| {
            // SAFETY: the identifier is of a request; parameters and private data are only read.
            unsafe { (library.accept)(id, &mut parameters) }
        })?;
        Ok(Accepting {
            queue_pair,
            greeting,
            attempt: Attempt::new(id, Phase::Confirmation, deadline),
        })
    }

    /// Rejects the request; the private data tells the peer why.
    pub fn reject(mut self, private_data: &PrivateData) -> Result<(), ConnectError> {
        let len = private_data.fit("a rejection", PrivateData::REJECTION_BYTES)?;
        self.id.call("rdma_reject", |library, id| {
            let bytes = private_data.as_bytes().as_ptr().cast::<c_void>();
            // SAFETY: the identifier is of a request; the private data is only read.
            unsafe { (library.reject)(id, bytes, len) }
        })
    }
}

/// An acceptance that the peer has not confirmed yet.
pub struct Accepting<S: Source, R: Sink> {
    // Dropped in this order: what the peer may reach goes before the connection's name.
    queue_pair: QueuePair<S, R>,
    greeting: PrivateData,
    attempt: Attempt,
}

impl<S: Source, R: Sink> AsFd for Accepting<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.attempt.id.descriptor()
    }
}

impl<S: Source, R: Sink> Step for Accepting<S, R> {
    type Output = (QueuePair<S, R>, Connection);

    fn deadline(&self) -> Instant {
        self.attempt.deadline
    }

    fn advance(mut self) -> Result<Progress<Self, Self::Output>, ConnectError> {
        while let Some(event) = self.attempt.next_event()? {
            if event.kind == sys::RDMA_CM_EVENT_ESTABLISHED {
                let connection = Connection::new(self.attempt.id, self.greeting);
                return Ok(Progress::Ready((self.queue_pair, connection)));
            }
        }
        Ok(Progress::Pending(self))
    }
}
