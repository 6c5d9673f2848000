//! Many reads of one file by a task on the shard's thread, at the cost of the system calls alone.
//!
//! [`Shard::read_at`](super::Shard::read_at) serves any thread, for an allocation and two hops
//! between threads a read. A [`Reads`] lives on the shard's own thread, has its file registered with
//! the ring and its places for operations made beforehand: pushing a read and taking it back
//! allocates nothing, and all that was pushed goes to the kernel in one call when the task waits.

mod places;
mod stream;

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::iter;
use std::rc::Rc;
use std::slice;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::ring::{Exchange, Ring};
use super::table::Key;
use super::transfer::{Span, io_result};
use crate::slab::Lease;
pub(super) use places::Places;
use places::{Ask, Untaken};
pub(super) use stream::{FileTarget, Queue, STREAM_BITS, Stream};

/// Reads of one file under way at a time. Made by [`Shard::with_reads`](super::Shard::with_reads).
///
/// Dropping it drops the results not yet taken; a read that the kernel still works on keeps its slot
/// until the kernel is done with it.
pub struct Reads {
    ring: Rc<Ring>,
    stream: Rc<Stream>,
    /// Names the stream in the ring.
    key: Key,
    /// What the user data of its operations have in common.
    bits: u64,
    depth: usize,
    /// How often the task may still enter the ring by itself before others have their turn.
    turns: u32,
}

/// Turns of the ring between two of the executor's, at most.
const TURNS: u32 = 16;

/// A read that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The slot that was read into.
    pub lease: Lease,
    /// Where in the file the read began, as it was pushed.
    pub offset: u64,
    /// Bytes read. Short reads are continued: fewer than asked for means the end of the file.
    pub result: io::Result<usize>,
}

/// A read that was not begun.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// As many reads as the depth are under way, or ended and were not taken.
    #[error("{depth} reads are under way already: take one that has ended first")]
    Full {
        /// How many may be under way.
        depth: usize,
        /// The slot, back.
        lease: Lease,
    },
    /// The bytes lie outside the slot.
    #[error("{len} bytes at {at} lie outside a slot of {} bytes", lease.len())]
    Range {
        /// First byte in the slot.
        at: usize,
        /// How many bytes.
        len: usize,
        /// The slot, back.
        lease: Lease,
    },
}

impl Reads {
    /// Begins to read `len` bytes from `offset` of the file into the lease from byte `at`. The
    /// kernel hears of it when the task waits, with all that was pushed by then. With O_DIRECT,
    /// alignment of offset, `at` and `len` is the caller's.
    #[inline]
    pub fn push(
        &mut self,
        offset: u64,
        lease: Lease,
        at: usize,
        len: usize,
    ) -> Result<(), Refused> {
        if at.checked_add(len).is_none_or(|end| end > lease.len()) {
            return Err(Refused::Range { at, len, lease });
        }
        let places = &mut *self.stream.places.borrow_mut();
        let Some(place) = places.free.pop() else {
            let depth = self.depth;
            return Err(Refused::Full { depth, lease });
        };
        let span = Span {
            lease,
            at,
            len,
            offset,
            done: 0,
        };
        places.asks[place as usize] = Ask::rest_of(&span);
        places.spans[place as usize] = Some(span);
        places.pushed.push(place);
        self.announce(places);
        Ok(())
    }

    /// Has the ring hand what was pushed to the kernel when it enters next.
    #[inline]
    fn announce(&self, places: &mut Places) {
        if !places.announced && !places.pushed.is_empty() {
            places.announced = true;
            self.ring.announce(self.key);
        }
    }

    /// A read that has ended, in the order in which they did, if there is one now.
    #[inline]
    pub fn finished(&mut self) -> Option<Finished> {
        let places = &mut *self.stream.places.borrow_mut();
        if places.taken == places.ended.len() {
            places.ended.clear();
            places.taken = 0;
            if let Some(mut exchange) = self.ring.exchange(self.bits) {
                places
                    .ended
                    .extend(iter::from_fn(|| exchange.next_completed()));
            }
        }
        let ended = places.look(&self.stream.file);
        self.announce(places);
        let (place, result) = ended?;
        places.taken += 1;
        places.free.push(place);
        let whole = places.asks[place as usize];
        let span = places.spans[place as usize].take()?;
        Some(Finished {
            offset: whole.offset_of(&span),
            result: io_result(result).map(|count| span.done + count),
            lease: span.lease,
        })
    }

    /// Hands each read that has ended to `next`: its offset and what it brought, or why not. Where
    /// that returns an offset, as many bytes are read from there into the same place of the same
    /// slot; else the slot goes back to its slab. Returns how many there were.
    ///
    /// This is the cheapest way to look at all of a file, as no slot changes hands.
    #[inline]
    pub fn read_on(
        &mut self,
        mut next: impl FnMut(u64, io::Result<&mut [u8]>) -> Option<u64>,
    ) -> usize {
        // Slots may go to waiters as they are dropped: after the borrow.
        let mut given_back = Vec::new();
        let edition = self.ring.edition();
        let places = &mut *self.stream.places.borrow_mut();
        places.forget_indices_before(edition);
        let mut count = 0;
        // What is called may use the ring, but not make it look at this stream: the queues are in our
        // hand until the end.
        let mut exchange = self.ring.exchange(self.bits);
        // From completion to submission queue in one go: a few dozen instructions a read. `next` is
        // called from one place only, so that the compiler puts it there.
        loop {
            let direct = exchange.as_mut().and_then(Exchange::next_completed);
            let (place, result) = match direct {
                Some(ended) => ended,
                None => match places.look(&self.stream.file) {
                    Some(ended) => {
                        places.taken += 1;
                        ended
                    }
                    None => break,
                },
            };
            let ask = &mut places.asks[place as usize];
            let is_all = ask.is_all(result);
            if !is_all && direct.is_some() {
                places.ended.push((place, result));
                continue;
            }
            let untaken = Untaken {
                ended: &mut places.ended,
                place,
                result,
            };
            let (offset, brought) = if is_all {
                // SAFETY: the span of this place owns the slot and the kernel is through with it; the
                // bytes lie inside, as `push` checked. Nobody else has the slot, and the slice ends
                // with the call.
                let brought = unsafe { slice::from_raw_parts_mut(ask.start, ask.len as usize) };
                (ask.offset, Ok(brought))
            } else if let Some(span) = &mut places.spans[place as usize] {
                brought_in_part(ask, span, result)
            } else {
                break;
            };
            let following = next(offset, brought);
            untaken.taken();
            count += 1;
            if !is_all && let Some(span) = &mut places.spans[place as usize] {
                span.done = 0;
                span.offset = following.unwrap_or_default();
                *ask = Ask::rest_of(span);
            }
            let Some(offset) = following else {
                places.free.push(place);
                given_back.extend(places.spans[place as usize].take());
                continue;
            };
            ask.offset = offset;
            let queued = self.stream.fixed_entry(ask).is_some_and(|entry| {
                exchange.as_mut().is_some_and(|exchange| {
                    // SAFETY: the stream keeps the lease in its place, and the file, until the result
                    // of this operation was taken; the bytes lie inside the lease.
                    unsafe { exchange.push(entry, place) }
                })
            });
            if !queued {
                places.pushed.push(place);
            }
        }
        self.announce(places);
        count
    }

    /// The next read that ends, waiting for it; none if nothing is under way.
    pub async fn next(&mut self) -> Option<Finished> {
        self.ended().await;
        self.finished()
    }

    /// Waits until a read has ended, or returns at once if none is under way.
    pub async fn ended(&mut self) {
        poll_fn(|context| self.poll_ended(context)).await;
    }

    /// As [`Reads::ended`], for a future that waits for other things too.
    pub fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.any_to_take() {
            return Poll::Ready(());
        }
        // What the page cache has ends at once: no need to go through the executor for it.
        if self.turns > 0 {
            self.turns -= 1;
            if let Some(ended) = self.ring.turn(self.bits) {
                self.stream.places.borrow_mut().ended.push(ended);
            }
            if self.any_to_take() {
                return Poll::Ready(());
            }
        }
        self.turns = TURNS;
        let places = &mut *self.stream.places.borrow_mut();
        match &mut places.waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => places.waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    fn any_to_take(&self) -> bool {
        let places = &mut *self.stream.places.borrow_mut();
        let any = places.look(&self.stream.file).is_some();
        self.announce(places);
        any || places.free.len() == self.depth
    }

    /// Reads pushed and not yet taken back.
    pub fn under_way(&self) -> usize {
        self.depth - self.stream.places.borrow().free.len()
    }

    /// How many more reads can be pushed now.
    pub fn room(&self) -> usize {
        self.stream.places.borrow().free.len()
    }

    pub(super) fn new(ring: Rc<Ring>, file: Arc<File>, depth: u16) -> Reads {
        let depth = depth.max(1);
        let stream = Rc::new(Stream {
            target: ring.register_file(&file),
            file,
            places: RefCell::new(Places::new(depth)),
        });
        let key = ring.open(&stream);
        Reads {
            key,
            bits: ring.bits_of(key),
            ring,
            stream,
            depth: depth.into(),
            turns: TURNS,
        }
    }
}

/// Where a read began that did not bring everything at once, and all that it brought in the end.
#[cold]
fn brought_in_part<'s>(
    ask: &Ask,
    span: &'s mut Span,
    result: i32,
) -> (u64, io::Result<&'s mut [u8]>) {
    let (at, done) = (span.at, span.done);
    let offset = ask.offset_of(span);
    let brought = io_result(result).map(|count| &mut span.lease[at..at + done + count]);
    (offset, brought)
}

impl Drop for Reads {
    fn drop(&mut self) {
        // Slots may go to waiters as they are dropped: not under the borrow.
        let mut ended = Vec::new();
        {
            let places = &mut *self.stream.places.borrow_mut();
            places.closed = true;
            places.waker = None;
            // What the kernel does not have gives its slot back; what it has keeps its own.
            let untaken = places.ended.drain(..).skip(places.taken);
            let untaken = untaken.map(|(place, _)| place);
            for place in untaken.chain(places.pushed.drain(..)) {
                places.free.push(place);
                ended.extend(places.spans[place as usize].take());
            }
            places.taken = 0;
        }
        self.ring.close(self.key);
    }
}

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads")
            .field("depth", &self.depth)
            .field("under_way", &self.under_way())
            .finish_non_exhaustive()
    }
}
