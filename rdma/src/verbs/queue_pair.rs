//! Reliable connected queue pairs: brought up step by step, owners of what is posted on them.

mod breaker;
mod bring_up;
mod core;
mod create;
mod managed;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::completion::{CompletionQueue, WorkCompletion};
use super::endpoint::{ConnectOptions, Endpoint};
use super::error::VerbsError;
use super::event::AsyncEvent;
use super::memory::{MemoryRegion, ProtectionDomain, Segment, Sink, Source};
use super::port::LocalPort;
use super::post::{PostingInterface, Rejected, SendBatch};
use super::settle::{Settled, settle};
use super::shared_receive::{SharedReceiveQueue, SharedReceives};
pub use breaker::Breaker;
use core::Core;
pub(super) use core::next_epoch;
pub(super) use create::{Wanted, create};

/// How large a queue pair is and what its peer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePairConfig {
    /// Sends, writes, reads and atomics outstanding at most.
    pub send_depth: u32,
    /// Receives outstanding at most.
    pub receive_depth: u32,
    /// Segments a work request has at most.
    pub segments: u32,
    /// Messages up to this size are copied into the work request when posted. 0 turns that off, which
    /// soft-RoCE needs with an rdma-core before 64: it loses completions.
    pub inline_bytes: u32,
    /// Whether the peer may write into remotely writable regions of this protection domain.
    pub remote_writes: bool,
    /// Whether the peer may read remotely readable regions of this protection domain.
    pub remote_reads: bool,
    /// Whether the peer may use atomics on regions of this protection domain that allow them.
    pub remote_atomics: bool,
    /// How to post; `None` takes the extended interface where the provider has it.
    pub interface: Option<PostingInterface>,
}

impl Default for QueuePairConfig {
    fn default() -> QueuePairConfig {
        QueuePairConfig {
            send_depth: 128,
            receive_depth: 128,
            segments: 2,
            inline_bytes: 0,
            remote_writes: false,
            remote_reads: false,
            remote_atomics: false,
            interface: None,
        }
    }
}

/// What the device granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// As [`QueuePairConfig::send_depth`].
    pub send_depth: u32,
    /// As [`QueuePairConfig::receive_depth`].
    pub receive_depth: u32,
    /// As [`QueuePairConfig::segments`].
    pub segments: u32,
    /// As [`QueuePairConfig::inline_bytes`].
    pub inline_bytes: u32,
    /// How work requests are posted.
    pub interface: PostingInterface,
}

/// The state the adapter has a queue pair in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum QueuePairState {
    Reset,
    Init,
    ReadyToReceive,
    ReadyToSend,
    Error,
    Other(u32),
}

/// A queue pair that can post receives and waits for its peer's address.
pub struct UnconnectedQueuePair<S: Source, R: Sink> {
    core: Core<S, R>,
}

/// A connected queue pair. `S` are the payloads it sends from, `R` those it receives into.
///
/// Dropping it takes it to the error state and destroys it, after which the adapter touches none of
/// its payloads, and then drops them; should the device refuse, they are leaked. To have payloads back,
/// use [`QueuePair::fail`] and settle until [`QueuePair::is_drained`], or [`QueuePair::close`].
pub struct QueuePair<S: Source, R: Sink> {
    pub(super) core: Core<S, R>,
}

/// A connection attempt that failed; the queue pair can be dropped, or tried with another peer.
#[derive(Error)]
#[error("{error}")]
pub struct ConnectFailed<S: Source, R: Sink> {
    /// Why.
    #[source]
    pub error: VerbsError,
    /// The queue pair with the receives posted on it.
    pub queue_pair: Box<UnconnectedQueuePair<S, R>>,
}

impl<S: Source, R: Sink> UnconnectedQueuePair<S, R> {
    /// Makes a queue pair on `port`, with all its completions on `queue`, and readies it for receives.
    pub fn new(
        pd: &Arc<ProtectionDomain>,
        queue: &CompletionQueue,
        port: LocalPort,
        config: &QueuePairConfig,
    ) -> Result<UnconnectedQueuePair<S, R>, VerbsError> {
        let core = Core::new(pd, queue.shared(), port, config, None)?;
        core.initialise(config)?;
        Ok(UnconnectedQueuePair { core })
    }

    /// What the peer must know to connect.
    pub fn endpoint(&self) -> Endpoint {
        self.core.endpoint()
    }

    /// What the device granted.
    pub fn granted(&self) -> Granted {
        self.core.granted
    }

    /// Makes the payloads in a region postable, and keeps the region registered.
    pub fn attach(&mut self, region: &Arc<MemoryRegion>) -> Result<(), VerbsError> {
        self.core.attach(region)
    }

    /// Posts a receive into the given parts of a payload; none, for writes with immediate only.
    pub fn post_receive(&mut self, payload: R, segments: &[Segment]) -> Result<(), Rejected<R>> {
        self.core.post_receive(payload, segments)
    }

    /// Connects with the peer of this address. The peer does the same with ours, in any order; until it
    /// has, what we send is retried as [`ConnectOptions`] says.
    pub fn connect(
        mut self,
        peer: &Endpoint,
        options: &ConnectOptions,
    ) -> Result<QueuePair<S, R>, ConnectFailed<S, R>> {
        match self.core.connect(peer, options) {
            Ok(()) => Ok(QueuePair { core: self.core }),
            Err(error) => Err(ConnectFailed {
                error,
                queue_pair: Box::new(self),
            }),
        }
    }
}

impl<S: Source> UnconnectedQueuePair<S, SharedReceives> {
    /// As [`UnconnectedQueuePair::new`], with its receives from a shared receive queue of the same
    /// protection domain. Their completions come on `queue` as well, to be settled by
    /// [`SharedReceiveQueue::settle`].
    pub fn with_shared_receives<R: Sink>(
        pd: &Arc<ProtectionDomain>,
        queue: &CompletionQueue,
        port: LocalPort,
        config: &QueuePairConfig,
        receives: &SharedReceiveQueue<R>,
    ) -> Result<UnconnectedQueuePair<S, SharedReceives>, VerbsError> {
        let core = Core::new(pd, queue.shared(), port, config, Some(receives.shared()))?;
        core.initialise(config)?;
        Ok(UnconnectedQueuePair { core })
    }
}

impl<S: Source> QueuePair<S, SharedReceives> {
    /// Whether an event has said that it takes no more receives from its shared receive queue, which it
    /// does some time after it failed. Somebody must take the device's events for that.
    pub fn last_receive_taken(&self) -> bool {
        self.core.last_receive_taken()
    }

    /// Fails it and waits until it is drained and has taken its last shared receive, so that none is lost
    /// when it is destroyed; or until `patience` ends. Completions that are not its sends go to `others`,
    /// those of shared receives it had taken among them; events of other objects go to `events`. Whether
    /// it ended in time; where not, what it had taken comes back only when the shared receive queue is
    /// dropped.
    pub fn close_shared(
        mut self,
        queue: &mut CompletionQueue,
        patience: Duration,
        mut others: impl FnMut(WorkCompletion),
        mut events: impl FnMut(AsyncEvent),
    ) -> Result<bool, VerbsError> {
        self.fail()?;
        let deadline = Instant::now() + patience;
        loop {
            // Looked at before the queue: what it took last is there by then.
            let ended = self.last_receive_taken() && self.is_drained();
            while let Some(done) = queue.poll()? {
                if done.qp_number() == self.qp_number() && done.of_connected_pair() {
                    let _: Settled<'_, S, SharedReceives> = self.settle(done);
                } else {
                    others(done);
                }
            }
            if ended {
                return Ok(true);
            }
            while let Some(event) = self.core.context().next_event()? {
                if event.qp_number() != Some(self.qp_number()) {
                    events(event);
                }
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::yield_now();
        }
    }
}

impl<S: Source, R: Sink> QueuePair<S, R> {
    /// Its number, by which completions name it.
    pub fn qp_number(&self) -> u32 {
        self.core.qp_number
    }

    /// Our address, as the peer knows it.
    pub fn endpoint(&self) -> Endpoint {
        self.core.endpoint()
    }

    /// What the device granted.
    pub fn granted(&self) -> Granted {
        self.core.granted
    }

    /// Makes the payloads in a region postable, and keeps the region registered.
    pub fn attach(&mut self, region: &Arc<MemoryRegion>) -> Result<(), VerbsError> {
        self.core.attach(region)
    }

    /// Posts a receive into the given parts of a payload; none, for writes with immediate only.
    #[inline]
    pub fn post_receive(&mut self, payload: R, segments: &[Segment]) -> Result<(), Rejected<R>> {
        self.core.post_receive(payload, segments)
    }

    /// Starts a batch of sends, writes, reads and atomics.
    #[inline(always)]
    pub fn batch(&mut self) -> SendBatch<'_, S> {
        SendBatch::new(&mut self.core.send)
    }

    /// Hands back the payloads that a completion is about.
    #[inline(always)]
    pub fn settle(&mut self, done: WorkCompletion) -> Settled<'_, S, R> {
        let core = &mut self.core;
        settle(&done, &mut core.send.ring, &mut core.receives)
    }

    /// Work requests that can be posted on the send queue now.
    pub fn send_room(&self) -> u32 {
        self.core.send.ring.free()
    }

    /// Receives that can be posted now.
    pub fn receive_room(&self) -> u32 {
        self.core.receives.free()
    }

    /// Work requests whose completion is not settled: on the send and on the receive queue.
    pub fn outstanding(&self) -> (u32, u32) {
        (self.core.send.ring.len(), self.core.receives.len())
    }

    /// Whether every payload has come back.
    pub fn is_drained(&self) -> bool {
        self.outstanding() == (0, 0)
    }

    /// The state the adapter has it in.
    pub fn state(&self) -> Result<QueuePairState, VerbsError> {
        self.core.state()
    }

    /// What another thread ends it by, for one that sleeps without a time limit.
    pub fn breaker(&mut self) -> Breaker {
        self.core.breaker()
    }

    /// Takes it to the error state: all that is outstanding comes back flushed. Ask for completions
    /// until [`QueuePair::is_drained`]. Receives posted afterwards come back flushed too; on soft-RoCE
    /// some only when this is called again.
    pub fn fail(&mut self) -> Result<(), VerbsError> {
        self.core.fail()
    }

    /// Fails it and settles on its completion queue until it is drained or `patience` ends; completions
    /// of other queue pairs go to `others`. Whether it drained.
    pub fn close(
        mut self,
        queue: &mut CompletionQueue,
        patience: Duration,
        mut others: impl FnMut(WorkCompletion),
    ) -> Result<bool, VerbsError> {
        self.fail()?;
        let deadline = Instant::now() + patience;
        while !self.is_drained() {
            match queue.poll()? {
                Some(done) if done.qp_number() == self.qp_number() => {
                    let _: Settled<'_, S, R> = self.settle(done);
                }
                Some(done) => others(done),
                None if Instant::now() > deadline => return Ok(false),
                None => std::thread::yield_now(),
            }
        }
        Ok(true)
    }
}

impl<S: Source, R: Sink> fmt::Debug for ConnectFailed<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectFailed")
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl<S: Source, R: Sink> fmt::Debug for QueuePair<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair")
            .field("qp_number", &self.core.qp_number)
            .field("outstanding", &self.outstanding())
            .finish_non_exhaustive()
    }
}
