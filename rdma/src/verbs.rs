//! Verbs made safe: what can go wrong in safe code is an error or doesn't compile, and posting and
//! polling cost no allocation, no lock and no reference count.
//!
//! Resources own their parents: a [`QueuePair`] keeps its completion queue, protection domain and
//! attached regions alive, those keep the [`Context`], so everything is released in the one right order
//! whatever is dropped first. A posted buffer is *moved* into the queue pair and comes back with its
//! completion; nothing can read or free it while the adapter may use it. Queue pairs have types for
//! their bring-up only ([`UnconnectedQueuePair`], then [`QueuePair`]): the error state comes at run time.
//!
//! Two ends meet by each other's [`Endpoint`], carried over a channel of their own, or through librdmacm
//! by IP address and port: see [`cm`].
//!
//! # From a device to bytes on the wire
//! ```no_run
//! use std::sync::Arc;
//! use trackbed_rdma::verbs::{
//!     Access, CompletionQueue, ConnectOptions, Context, Endpoint, GidChoice, Mapping, MemoryRegion, Piece,
//!     ProtectionDomain, QueuePairConfig, RemoteMemory, Segment, Settled, UnconnectedQueuePair, VerbsError, Work,
//! };
//! # fn example(
//! #     exchange: impl FnOnce([u8; Endpoint::ENCODED_BYTES]) -> (Endpoint, RemoteMemory),
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let context = Context::open("mlx5_0")?;
//! let port = context.local_port(None, &GidChoice::Automatic)?;   // first active port, best GID
//! let pd = ProtectionDomain::new(&context)?;                     // one a peer
//! let (mapping, mut pieces) = Mapping::split(1 << 20, 4)?;       // the fabric has its slab instead
//! let region = MemoryRegion::register(&pd, mapping, Access::LocalWrite)?;
//! let mut cq = CompletionQueue::with_events(&context, 512)?;     // shared by many queue pairs
//! let mut unconnected: UnconnectedQueuePair<Piece, Piece> =      // types of posted sends and receives
//!     UnconnectedQueuePair::new(&pd, &cq, port, &QueuePairConfig { remote_writes: true, ..Default::default() })?;
//! unconnected.attach(&region)?;
//! unconnected.post_receive(pieces.pop().expect("four pieces"), &[Segment::new(0, 4096)])?;
//! let (peer, window) = exchange(unconnected.endpoint().encode()); // over an authenticated channel
//! let mut qp = unconnected.connect(&peer, &ConnectOptions::default()).map_err(|failed| failed.error)?;
//!
//! // One payload, two work requests, one doorbell; the payload returns when the last one is done.
//! let target = window.at(0, 8192).expect("inside the window");
//! let mut batch = qp.batch();
//! batch.push(pieces.pop().expect("three pieces"), &[
//!     Work::write(target, &[Segment::new(0, 4096)]),
//!     Work::write_with_immediate(target.offset(4096), 7, &[Segment::new(4096, 4096)]).signaled(),
//! ])?;
//! batch.commit()?;
//!
//! cq.request_notification()?;            // arm, then poll to empty, then wait on cq.event_fd()
//! while let Some(done) = cq.poll()? {
//!     match qp.settle(done) {            // look the queue pair up by done.qp_number() when there are many
//!         Settled::Sent(sent) => {
//!             let outcome = sent.outcome().clone();          // Err names the status and what it means
//!             for payload in sent { pieces.push(payload) }   // all sends up to this one are done
//!             outcome?;
//!         }
//!         Settled::Received(received) => { received.outcome?; pieces.push(received.payload) }
//!         Settled::Stale => {}           // of a queue pair that is gone
//!     }
//! }
//! cq.drain_events()?;                    // when the fd was readable: reads all, acknowledges all
//! # Ok(()) }
//! ```
//!
//! # What doesn't compile
//! A posted buffer is gone until its completion brings it back:
//! ```compile_fail,E0382
//! # use trackbed_rdma::verbs::*;
//! fn reuse(qp: &mut QueuePair<Piece, Piece>, mut buffer: Piece) {
//!     qp.post_receive(buffer, &[Segment::new(0, 64)]).ok();
//!     buffer[0] = 1; // the adapter may be writing here
//! }
//! ```
//! A queue pair can't send before it is connected:
//! ```compile_fail,E0599
//! # use trackbed_rdma::verbs::*;
//! fn too_early(qp: &mut UnconnectedQueuePair<Piece, Piece>) {
//!     qp.batch();
//! }
//! ```
//! Nobody polls one completion queue from two places at once:
//! ```compile_fail,E0596
//! # use trackbed_rdma::verbs::*;
//! fn nested(cq: &CompletionQueue) {
//!     cq.poll().ok();
//! }
//! ```
//! ```compile_fail,E0277
//! # use trackbed_rdma::verbs::*;
//! fn shared<T: Sync>() {}
//! shared::<CompletionQueue>();
//! ```
//! A completion counts once:
//! ```compile_fail,E0382
//! # use trackbed_rdma::verbs::*;
//! fn twice(qp: &mut QueuePair<Piece, Piece>, done: WorkCompletion) {
//!     qp.settle(done);
//!     qp.settle(done);
//! }
//! ```
//! Memory that a peer may write at any time is never handed out as a slice, and exposing a region of
//! other memory takes `unsafe`:
//! ```compile_fail,E0608
//! # use trackbed_rdma::verbs::*;
//! fn peek(window: &RemoteWindow) -> u8 {
//!     window[0]
//! }
//! ```
//! ```compile_fail,E0133
//! # use trackbed_rdma::verbs::*;
//! # use std::sync::Arc;
//! fn expose(pd: &Arc<ProtectionDomain>, memory: Arc<Mapping>) {
//!     MemoryRegion::register_remote_writable(pd, memory).ok();
//! }
//! ```
//! What an atomic or a read brings goes into exclusively owned memory, too:
//! ```compile_fail,E0277
//! # use trackbed_rdma::verbs::*;
//! # use std::sync::Arc;
//! fn count_into_shared(qp: &mut QueuePair<Arc<Piece>, ()>, shared: Arc<Piece>, at: RemoteAddress) {
//!     qp.batch().push_fetch_add(shared, 0, at, 1).ok();
//! }
//! ```
//! Only exclusively owned memory receives; a shared, read-only payload can be sent:
//! ```compile_fail,E0277
//! # use trackbed_rdma::verbs::*;
//! # use std::sync::Arc;
//! fn receive_into_shared(qp: &mut QueuePair<Piece, Arc<Piece>>, shared: Arc<Piece>) {
//!     qp.post_receive(shared, &[]).ok();
//! }
//! ```

mod address;
mod attached;
pub mod cm;
mod completion;
mod context;
mod datagram;
mod endpoint;
mod error;
mod event;
mod file_mapping;
mod fork;
mod gid;
mod limits;
mod mapping;
mod memlock;
mod memory;
mod memory_window;
mod pages;
mod port;
mod post;
mod queue_pair;
mod readiness;
mod ring;
mod scratch;
mod settle;
mod shared_receive;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod unsliced;
mod window;

pub use address::{AddressHandle, DatagramAddress, PathOptions, Sender};
pub use completion::{Completion, CompletionQueue, Operation, Queue, WorkCompletion};
pub use context::{Context, device_names};
pub use datagram::{
    Datagram, DatagramBatch, DatagramConfig, DatagramPeer, DatagramQueuePair, DatagramWork,
    ReceivedDatagram, SettledDatagram,
};
pub use endpoint::{ConnectOptions, Endpoint, EndpointError, Mtu};
pub use error::VerbsError;
pub use event::{AsyncEvent, EventKind, Subject};
pub use file_mapping::FileMapping;
pub use fork::{ForkSupport, fork_support, prepare_fork};
pub use gid::{Gid, GidChoice, GidEntry, GidKind};
pub use limits::{Atomics, DeviceLimits, OnDemandPaging, PagedOperations};
pub use mapping::{Mapping, Piece};
pub use memlock::MemoryLock;
pub use memory::{
    Access, MemoryRegion, Pinned, ProtectionDomain, RemoteAccess, RemoteAddress, RemoteMemory,
    Segment, Sink, Source,
};
pub use memory_window::{
    CloseFailed, ClosedWindow, ClosingWindow, MemoryWindow, OpenFailed, OpenWindow,
};
pub use pages::{Backing, HugePageSize, HugePages, MappingError, MappingOptions, Pages};
pub use port::{LinkLayer, LocalPort, PortAttributes, PortState};
pub use post::{Fetch, PostError, PostingInterface, Rejected, Rejection, SendBatch, Work};
pub use queue_pair::{
    Breaker, ConnectFailed, Granted, QueuePair, QueuePairConfig, QueuePairState,
    UnconnectedQueuePair,
};
pub use readiness::{Completions, Events, Readiness, Watch};
pub use scratch::{Scratch, ScratchPart};
pub use settle::{Received, Sent, Settled};
pub use shared_receive::{
    SettledShared, SharedReceiveQueue, SharedReceiveState, SharedReceived, SharedReceives,
};
pub use status::{CompletionError, Status};
pub use window::RemoteWindow;
