//! Unreliable datagrams: one queue pair that talks to any number of others, a packet at a time.
//!
//! The adapter writes a header of 40 bytes before each datagram. It goes into memory of the queue pair's
//! own, so a payload holds what was sent and nothing else, and [`Datagram::sender`] says what the header
//! said. Datagrams get lost, and are dropped when no receive is posted; each sent one is done all the
//! same.
//!
//! Datagrams are posted as everything else is: gathered in a [`DatagramBatch`] that rings one doorbell,
//! short ones copied when posted ([`DatagramConfig::inline_bytes`]), with a completion each or for the
//! last of many ([`DatagramWork::signaled`]).
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use trackbed_rdma::verbs::*;
//! # fn example(
//! #     pd: &Arc<ProtectionDomain>, cq: &mut CompletionQueue, port: LocalPort, region: &Arc<MemoryRegion>,
//! #     mut pieces: Vec<Piece>, peer: DatagramAddress,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let mut qp: DatagramQueuePair<Piece, Piece> = DatagramQueuePair::new(pd, cq, port, &DatagramConfig::default())?;
//! qp.attach(region)?;
//! let whole = [Segment::new(0, 1024)];
//! qp.post_receive(pieces.pop().expect("a piece"), &whole)?;
//! let peer = qp.add_peer(AddressHandle::new(pd, &port, &peer, &PathOptions::default())?)?;
//! qp.send(pieces.pop().expect("a piece"), peer, &whole, Some(7))?;
//! let mut batch = qp.batch();                           // many at once: one doorbell, one completion
//! for last in [false, true] {
//!     let datagram = DatagramWork::new(&whole);
//!     let datagram = if last { datagram.signaled() } else { datagram };
//!     batch.push(pieces.pop().expect("a piece"), peer, datagram)?;
//! }
//! batch.commit()?;
//! while let Some(done) = cq.poll()? {
//!     match qp.settle(done) {
//!         SettledDatagram::Sent(sent) => {
//!             let outcome = *sent.outcome();
//!             pieces.extend(sent);                      // this one, and those unsignalled before it
//!             outcome?;
//!         }
//!         SettledDatagram::Received(got) => {
//!             let datagram = got.outcome?;
//!             let text = &got.payload[..datagram.bytes as usize];
//!             println!("{text:?} from {:?}", datagram.sender);
//!         }
//!         SettledDatagram::Other(_) | SettledDatagram::Stale => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//! A datagram's payload is gone until its completion brings it back:
//! ```compile_fail,E0382
//! # use trackbed_rdma::verbs::*;
//! fn reuse(qp: &mut DatagramQueuePair<Piece, Piece>, to: DatagramPeer, mut buffer: Piece) {
//!     qp.send(buffer, to, &[Segment::new(0, 64)], None).ok();
//!     buffer[0] = 1; // the adapter may be reading here
//! }
//! ```

mod batch;
mod headers;
mod pair;
mod peers;

use super::address::Sender;
use super::completion::WorkCompletion;
use super::memory::Segment;
use super::post::{PostingInterface, Work};
use super::settle::Sent;
use super::status::CompletionError;

pub use batch::DatagramBatch;
pub use pair::DatagramQueuePair;

/// How large a datagram queue pair is, and which datagrams it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramConfig {
    /// Datagrams on their way out at most.
    pub send_depth: u32,
    /// Receives outstanding at most.
    pub receive_depth: u32,
    /// Segments a datagram has at most.
    pub segments: u32,
    /// Datagrams up to this size are copied into the work request when posted; 0 turns that off. As
    /// [`super::QueuePairConfig::inline_bytes`].
    pub inline_bytes: u32,
    /// How to post; `None` takes the extended interface where the provider has it.
    pub interface: Option<PostingInterface>,
    /// The key that datagrams to it must carry. With the highest bit set it needs privilege.
    pub queue_key: u32,
}

impl Default for DatagramConfig {
    fn default() -> DatagramConfig {
        DatagramConfig {
            send_depth: 128,
            receive_depth: 128,
            segments: 1,
            inline_bytes: 0,
            interface: None,
            queue_key: 0x1111_1111,
        }
    }
}

/// A destination of one datagram queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatagramPeer {
    pair: u64,
    index: u32,
    uses: u32,
}

/// A datagram that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// Its bytes, which lie in the payload's segments.
    pub bytes: u32,
    /// Its immediate, if the sender gave one.
    pub immediate: Option<u32>,
    /// Where it says that it came from.
    pub sender: Sender,
}

/// A datagram to send: parts of its payload, with an immediate or without.
#[derive(Debug, Clone, Copy)]
pub struct DatagramWork<'s> {
    work: Work<'s>,
    segments: &'s [Segment],
}

impl<'s> DatagramWork<'s> {
    /// These parts of its payload.
    pub const fn new(segments: &'s [Segment]) -> DatagramWork<'s> {
        DatagramWork {
            work: Work::send(segments),
            segments,
        }
    }

    /// With 32 bits that the receiver's completion carries.
    pub const fn with_immediate(immediate: u32, segments: &'s [Segment]) -> DatagramWork<'s> {
        DatagramWork {
            work: Work::send_with_immediate(immediate, segments),
            segments,
        }
    }

    /// Asks for a completion, as [`Work::signaled`].
    #[must_use]
    pub const fn signaled(self) -> DatagramWork<'s> {
        DatagramWork {
            work: self.work.signaled(),
            ..self
        }
    }

    fn bytes(&self) -> u64 {
        let lengths = self.segments.iter().map(|segment| u64::from(segment.len));
        lengths.sum()
    }
}

/// A completed receive.
#[derive(Debug)]
pub struct ReceivedDatagram<R> {
    /// The payload it was posted with.
    pub payload: R,
    /// What arrived. After an error the payload's bytes are of no use.
    pub outcome: Result<Datagram, CompletionError>,
}

/// What a completion was about, seen from a datagram queue pair.
#[must_use = "it hands a buffer back, or the completion for someone else to settle"]
pub enum SettledDatagram<'q, S, R> {
    /// A datagram of ours, and those before it. They went out; that they arrived is not said.
    Sent(Sent<'q, S>),
    /// A receive.
    Received(ReceivedDatagram<R>),
    /// Nothing of this queue pair: to be settled by the one it names.
    Other(WorkCompletion),
    /// Settled before.
    Stale,
}
