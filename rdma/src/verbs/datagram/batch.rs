//! Gathers datagrams that go out with one doorbell.

use super::peers::Peers;
use super::{DatagramPeer, DatagramWork};
use crate::verbs::memory::Source;
use crate::verbs::post::{PostError, Rejected, Rejection, SendBatch};

/// Datagrams being gathered, each to a destination of its own. As with [`SendBatch`], which it is inside,
/// dropping it sends nothing and drops its payloads.
pub struct DatagramBatch<'q, S: Source> {
    batch: SendBatch<'q, S>,
    peers: &'q mut Peers,
    max_bytes: u32,
}

impl<'q, S: Source> DatagramBatch<'q, S> {
    pub(super) fn new(
        batch: SendBatch<'q, S>,
        peers: &'q mut Peers,
        max_bytes: u32,
    ) -> DatagramBatch<'q, S> {
        DatagramBatch {
            batch,
            peers,
            max_bytes,
        }
    }

    /// Adds a datagram. Its payload moves in and comes back when it is done: with its own completion, or,
    /// when it asks for none, with a later one.
    pub fn push(
        &mut self,
        payload: S,
        to: DatagramPeer,
        datagram: DatagramWork<'_>,
    ) -> Result<(), Rejected<S>> {
        let Some(target) = self.peers.target(to) else {
            let reason = Rejection::UnknownPeer;
            return Err(Rejected { payload, reason });
        };
        let (limit, bytes) = (self.max_bytes, datagram.bytes());
        if bytes > u64::from(limit) {
            let reason = Rejection::TooLong { limit, bytes };
            return Err(Rejected { payload, reason });
        }
        // SAFETY: the queue pair is one for datagrams. The handle stays while this work request is
        // outstanding, or may be: `note` sees to that before anybody can remove the destination.
        unsafe { self.batch.push_to(payload, target, &[datagram.work]) }?;
        self.peers.note(to, self.batch.last_number());
        Ok(())
    }

    /// Datagrams in the batch.
    pub fn len(&self) -> usize {
        self.batch.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Sends the batch with one doorbell; how many datagrams that were.
    pub fn commit(self) -> Result<usize, PostError<S>> {
        self.batch.commit()
    }
}
