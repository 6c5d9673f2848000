//! The end that connects: address, route, request, answer.

use std::ffi::c_void;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Instant;

use super::attempt::Attempt;
use super::bring_up::bring_up;
use super::connection::Connection;
use super::error::{ConnectError, Phase};
use super::id::{Device, Id, encode_address};
use super::private_data::PrivateData;
use super::{Options, Progress, Step};
use crate::sys::{self, ConnectionManager};
use crate::verbs::{
    ConnectOptions, Context, GidChoice, LocalPort, QueuePair, Sink, Source, UnconnectedQueuePair,
    VerbsError,
};

/// How long the kernel waits for a neighbour's answer before it is made to ask again.
const RESOLVE_MILLIS: i32 = 2000;

/// A peer's address on its way to being a device and a path of ours.
pub struct Connector {
    attempt: Attempt,
    options: Options,
}

impl Connector {
    /// Begins to look for the way to `address`. Until `deadline` the whole connection must be made.
    pub fn new(
        address: SocketAddr,
        options: &Options,
        deadline: Instant,
    ) -> Result<Connector, ConnectError> {
        Connector::new_in(ConnectionManager::system()?, address, options, deadline)
    }

    /// The same with other functions than the system's: the mock's.
    pub(crate) fn new_in(
        library: &'static ConnectionManager,
        address: SocketAddr,
        options: &Options,
        deadline: Instant,
    ) -> Result<Connector, ConnectError> {
        let id = Id::new(library, address)?;
        let mut attempt = Attempt::new(id, Phase::Address, deadline);
        if options.path.traffic_class != 0 {
            attempt.id.set_traffic_class(options.path.traffic_class)?;
        }
        let mut connector = Connector {
            attempt,
            options: *options,
        };
        connector.resolve_address()?;
        Ok(connector)
    }

    /// Has the kernel look for the neighbour, for some seconds. It asks the network only at the start of
    /// that; where its question was lost, as while a link comes up, it must be made to ask again.
    fn resolve_address(&mut self) -> Result<(), ConnectError> {
        let source = self.options.source;
        let source = source.map(|ip| encode_address(SocketAddr::new(ip, 0)));
        let target = encode_address(self.attempt.id.address());
        let patience = self.attempt.millis_left().min(RESOLVE_MILLIS);
        self.attempt.id.call("rdma_resolve_addr", |library, id| {
            let source = source
                .as_ref()
                .map_or(null_mut(), |source| source.as_ptr().cast_mut());
            let target = target.as_ptr().cast_mut();
            // SAFETY: the identifier is alive; the addresses are complete, and only read.
            unsafe { (library.resolve_addr)(id, source.cast(), target.cast(), patience) }
        })
    }

    /// Whether the neighbour has not answered yet, though there is time to ask it again.
    fn may_ask_again(&self, error: &ConnectError) -> bool {
        matches!(
            error,
            ConnectError::TimedOut {
                phase: Phase::Address,
                ..
            }
        ) && Instant::now() < self.attempt.deadline
    }
}

impl Step for Connector {
    type Output = Route;

    fn deadline(&self) -> Instant {
        self.attempt.deadline
    }

    fn advance(mut self) -> Result<Progress<Connector, Route>, ConnectError> {
        loop {
            let event = match self.attempt.next_event() {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(Progress::Pending(self)),
                Err(error) if self.may_ask_again(&error) => {
                    self.resolve_address()?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            match event.kind {
                sys::RDMA_CM_EVENT_ADDR_RESOLVED => {
                    self.attempt.phase = Phase::Route;
                    let patience = self.attempt.millis_left();
                    self.attempt.id.call("rdma_resolve_route", |library, id| {
                        // SAFETY: the identifier is alive and its address resolved.
                        unsafe { (library.resolve_route)(id, patience) }
                    })?;
                }
                sys::RDMA_CM_EVENT_ROUTE_RESOLVED => {
                    let address = self.attempt.id.address();
                    let device = self.attempt.id.device();
                    let device = device.ok_or(ConnectError::DeviceRemoved { address })?;
                    return Ok(Progress::Ready(Route {
                        attempt: self.attempt,
                        device,
                        path: self.options.path,
                    }));
                }
                _ => {}
            }
        }
    }
}

/// The way to a peer: our device and port. Make a queue pair there, then [`Route::connect`] it.
pub struct Route {
    attempt: Attempt,
    device: Device,
    path: ConnectOptions,
}

impl Route {
    /// The device that leads to the peer.
    pub fn device_name(&self) -> &str {
        &self.device.name
    }

    /// Opens that device.
    pub fn open(&self) -> Result<Arc<Context>, ConnectError> {
        Ok(Context::open(&self.device.name)?)
    }

    /// The port of the route on the device, for queue pairs.
    pub fn local_port(&self, context: &Context) -> Result<LocalPort, ConnectError> {
        self.device.local_port(self.attempt.id.address(), context)
    }

    /// Our own address on the way.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.attempt.id.local_address()
    }

    /// Asks the peer to connect with that queue pair, which must be on the route's device and port.
    pub fn connect<S: Source, R: Sink>(
        self,
        queue_pair: UnconnectedQueuePair<S, R>,
        private_data: &PrivateData,
    ) -> Result<Connecting<S, R>, ConnectError> {
        let Route {
            mut attempt,
            device,
            path,
        } = self;
        device.check(attempt.id.address(), &queue_pair)?;
        let len = private_data.fit("a request", PrivateData::REQUEST_BYTES)?;
        let endpoint = queue_pair.endpoint();
        let mut parameters = sys::rdma_conn_param {
            private_data: private_data.as_bytes().as_ptr().cast::<c_void>(),
            private_data_len: len,
            responder_resources: endpoint.reads_in_flight,
            initiator_depth: endpoint.reads_in_flight,
            retry_count: path.retries & 7,
            rnr_retry_count: path.not_ready_retries & 7,
            qp_num: endpoint.qp_number,
            ..Default::default()
        };
        attempt.phase = Phase::Answer;
        attempt.id.call("rdma_connect", |library, id| {
            // SAFETY: the identifier has a route; the parameters and private data are only read.
            unsafe { (library.connect)(id, &mut parameters) }
        })?;
        Ok(Connecting {
            queue_pair,
            attempt,
            path,
        })
    }
}

impl Device {
    /// The port for queue pairs, with the address that the connection has.
    pub(super) fn local_port(
        &self,
        peer: SocketAddr,
        context: &Context,
    ) -> Result<LocalPort, ConnectError> {
        if !self.is_of(context) {
            return Err(ConnectError::OtherDevice {
                address: peer,
                route: self.to_string(),
                given: context.name().to_owned(),
            });
        }
        let chosen = GidChoice::Address(self.gid.ip());
        match context.local_port(Some(self.port), &chosen) {
            Err(VerbsError::NoGid { .. }) => {
                Ok(context.local_port(Some(self.port), &GidChoice::Automatic)?)
            }
            port => Ok(port?),
        }
    }

    /// Refuses a queue pair that is elsewhere: librdmacm takes its number for one on this device.
    pub(super) fn check<S: Source, R: Sink>(
        &self,
        peer: SocketAddr,
        queue_pair: &UnconnectedQueuePair<S, R>,
    ) -> Result<(), ConnectError> {
        let (context, port) = (queue_pair.context(), queue_pair.local_port().port);
        if self.is_of(context) && port == self.port {
            return Ok(());
        }
        Err(ConnectError::OtherDevice {
            address: peer,
            route: self.to_string(),
            given: format!("{} port {port}", context.name()),
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.name, self.port)
    }
}

/// A request that the peer has not answered yet.
pub struct Connecting<S: Source, R: Sink> {
    // Dropped in this order: what the peer may reach goes before the connection's name.
    queue_pair: UnconnectedQueuePair<S, R>,
    attempt: Attempt,
    path: ConnectOptions,
}

impl<S: Source, R: Sink> Step for Connecting<S, R> {
    type Output = (QueuePair<S, R>, Connection);

    fn deadline(&self) -> Instant {
        self.attempt.deadline
    }

    fn advance(mut self) -> Result<Progress<Self, Self::Output>, ConnectError> {
        while let Some(event) = self.attempt.next_event()? {
            if event.kind != sys::RDMA_CM_EVENT_CONNECT_RESPONSE {
                continue;
            }
            let Connecting {
                queue_pair,
                mut attempt,
                path,
            } = self;
            let name = "rdma_establish";
            let establish = attempt.id.library().establish;
            let establish = establish.ok_or(ConnectError::TooOld(name))?;
            let queue_pair = bring_up(&mut attempt.id, queue_pair, &path, None)?;
            attempt.id.call(name, |_, id| {
                // SAFETY: the identifier has an answer, and its queue pair is ready.
                unsafe { establish(id) }
            })?;
            let connection = Connection::new(attempt.id, event.private_data);
            return Ok(Progress::Ready((queue_pair, connection)));
        }
        Ok(Progress::Pending(self))
    }
}

impl AsFd for Connector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.attempt.id.descriptor()
    }
}

impl<S: Source, R: Sink> AsFd for Connecting<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.attempt.id.descriptor()
    }
}
