//! Connections made by librdmacm: peers that are found by IP address and port.
//!
//! [`Connector`] and [`Listener`] are the two ends. The connection manager resolves the address to one
//! of our devices, carries a few bytes of private data each way and tells of the end; queue pairs, and
//! what is posted on them, stay ours. librdmacm opens the device a second time for itself, so a
//! connection is brought up by [`Route`] or [`Incoming`] on an [`UnconnectedQueuePair`] of *our*
//! [`Context`], with the attributes that the connection manager has negotiated; only its number is told
//! to librdmacm. The other end may be any program that uses librdmacm.
//!
//! Nothing here blocks. Each step is a value that is asked to [`advance`](Step::advance) when its
//! descriptor is readable or its deadline has passed, and that becomes the next step; [`Step::wait`]
//! does both with poll(2). librdmacm is opened at run time, and everything else works without it.
//!
//! # From an address to a connected queue pair
//! ```no_run
//! use std::net::SocketAddr;
//! use std::time::{Duration, Instant};
//! use trackbed_rdma::verbs::cm::{Connector, Event, Options, PrivateData, Step};
//! use trackbed_rdma::verbs::{
//!     CompletionQueue, Piece, ProtectionDomain, QueuePairConfig, UnconnectedQueuePair,
//! };
//! # fn example(address: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
//! let deadline = Instant::now() + Duration::from_secs(5);
//! let route = Connector::new(address, &Options::default(), deadline)?.wait()?;
//! let context = route.open()?;                       // or one that is open already: route.device_name()
//! let pd = ProtectionDomain::new(&context)?;
//! let queue = CompletionQueue::with_events(&context, 512)?;
//! let port = route.local_port(&context)?;
//! let unconnected: UnconnectedQueuePair<Piece, Piece> =
//!     UnconnectedQueuePair::new(&pd, &queue, port, &QueuePairConfig::default())?;
//! let greeting = PrivateData::message(b"hello")?;
//! let (mut queue_pair, mut connection) = route.connect(unconnected, &greeting)?.wait()?;
//! println!("the peer said {:?}", connection.private_data());
//! // ... later, when connection's descriptor is readable:
//! if let Some(Event::Disconnected) = connection.next_event()? {
//!     queue_pair.fail()?;                            // what is posted comes back
//! }
//! # Ok(()) }
//! ```
//!
//! # What doesn't compile
//! A step can't be used again once it has become the next one:
//! ```compile_fail,E0382
//! # use trackbed_rdma::verbs::cm::*;
//! fn twice(connector: Connector) -> Result<(), ConnectError> {
//!     connector.advance()?;
//!     connector.advance()?;
//!     Ok(())
//! }
//! ```
//! And a queue pair that a peer is being connected with is out of reach until it is connected:
//! ```compile_fail,E0382
//! # use trackbed_rdma::verbs::{*, cm::*};
//! fn too_early(route: Route, queue_pair: UnconnectedQueuePair<Piece, Piece>) {
//!     route.connect(queue_pair, &PrivateData::default()).ok();
//!     queue_pair.endpoint();
//! }
//! ```

mod attempt;
mod bring_up;
mod connection;
mod connector;
mod error;
mod id;
mod listener;
mod private_data;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ConnectOptions;
#[cfg(doc)]
use super::{Context, UnconnectedQueuePair};

pub use connection::{Connection, Event};
pub use connector::{Connecting, Connector, Route};
pub use error::{ConnectError, Phase, Refusal};
pub use listener::{Accepting, Incoming, Listener};
pub use private_data::{PrivateData, PrivateDataError};

/// How to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The address to connect from; without one, that of the route.
    pub source: Option<IpAddr>,
    /// How the connection treats losses. MTU, hops and service level are those of the route.
    pub path: ConnectOptions,
}

/// Where a step has got.
#[derive(Debug)]
pub enum Progress<S, T> {
    /// Wait for its descriptor or deadline and ask again.
    Pending(S),
    /// Done.
    Ready(T),
}

/// A step of making a connection.
pub trait Step: AsFd + Sized {
    /// What it becomes.
    type Output;

    /// When it will fail for want of an answer.
    fn deadline(&self) -> Instant;

    /// Takes in what has come in, without waiting.
    fn advance(self) -> Result<Progress<Self, Self::Output>, ConnectError>;

    /// Waits until it is done, at most until its deadline.
    fn wait(self) -> Result<Self::Output, ConnectError> {
        let mut step = self;
        loop {
            step = match step.advance()? {
                Progress::Ready(output) => return Ok(output),
                Progress::Pending(step) => step,
            };
            wait_readable(step.as_fd(), step.deadline());
        }
    }
}

/// Waits until a descriptor is readable or the deadline has come; who waits looks which.
fn wait_readable(descriptor: BorrowedFd<'_>, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up, so as not to spin in the last millisecond.
    let millis = left.as_millis().saturating_add(1);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    // Interrupted or not: the caller looks again.
    let _ = poll(&mut [PollFd::new(descriptor, PollFlags::POLLIN)], timeout);
}
