//! Work requests that bring something from the peer's memory into a payload.

use super::{Verb, Work};
use crate::verbs::memory::{RemoteAddress, Segment};

/// A read or an atomic, which brings something from the peer's memory into its payload.
///
/// Without [`Fetch::signaled`] it has no completion of its own when it succeeds. The next completion on
/// its send queue then says so: a work request of a reliable connection is done when a later one is, and
/// has succeeded unless its own completion said otherwise (InfiniBand Architecture Specification, volume
/// 1, section 10.8.6, "Unsignaled completions"). Until then the payload stays with the queue pair, so
/// nobody looks at bytes that have not arrived.
#[derive(Debug, Clone, Copy)]
pub struct Fetch<'s> {
    work: Work<'s>,
    /// Where the result of an atomic goes.
    result: Segment,
}

impl<'s> Fetch<'s> {
    /// Reads from the peer's memory into these parts of the payload.
    pub const fn read(remote: RemoteAddress, segments: &'s [Segment]) -> Fetch<'s> {
        Fetch {
            work: Work::new(Verb::Read, segments).at(remote),
            result: Segment::new(0, 0),
        }
    }

    /// Adds `add` to the 8 bytes at `remote`, which must be a multiple of 8, in one step. What was there
    /// before comes into the payload at `result_at`, as a number in this machine's byte order.
    pub const fn fetch_add(remote: RemoteAddress, result_at: u32, add: u64) -> Fetch<'s> {
        Fetch::atomic(Verb::FetchAdd, remote, result_at, (add, 0))
    }

    /// Sets the 8 bytes at `remote`, which must be a multiple of 8, to `new` if they are `expected`, in
    /// one step. What was there before comes into the payload at `result_at`, as a number in this
    /// machine's byte order: `expected` when the exchange took place.
    pub const fn compare_swap(
        remote: RemoteAddress,
        result_at: u32,
        expected: u64,
        new: u64,
    ) -> Fetch<'s> {
        Fetch::atomic(Verb::CompareSwap, remote, result_at, (expected, new))
    }

    const fn atomic(
        verb: Verb,
        remote: RemoteAddress,
        result_at: u32,
        operands: (u64, u64),
    ) -> Fetch<'s> {
        Fetch {
            work: Work::new(verb, &[]).at(remote).with(operands),
            result: Segment::new(result_at, 8),
        }
    }

    /// Asks for a completion, as [`Work::signaled`].
    #[must_use]
    pub const fn signaled(self) -> Fetch<'s> {
        Fetch {
            work: self.work.signaled(),
            ..self
        }
    }

    /// Waits for the reads and atomics posted before it.
    #[must_use]
    pub const fn fenced(self) -> Fetch<'s> {
        Fetch {
            work: self.work.fenced(),
            ..self
        }
    }

    pub(super) fn work(&self) -> Work<'_> {
        let segments = if self.work.verb.is_atomic() {
            std::slice::from_ref(&self.result)
        } else {
            self.work.segments
        };
        Work {
            segments,
            ..self.work
        }
    }
}
