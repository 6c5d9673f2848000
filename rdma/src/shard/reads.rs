//! Many reads of one file by a task on the shard's thread, at the cost of the system calls alone.
//!
//! [`Shard::read_at`](super::Shard::read_at) serves any thread, for an allocation and two hops
//! between threads a read. A [`Reads`] lives on the shard's own thread, has its file registered with
//! the ring and its places for operations made beforehand: pushing a read and taking it back
//! allocates nothing, and all that was pushed goes to the kernel in one call when the task waits.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::slice;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use io_uring::{CompletionQueue, cqueue, opcode, squeue, types};

use super::buffers::Buffers;
use super::ring::Ring;
use super::table::Key;
use super::transfer::{Span, io_result};
use crate::slab::Lease;

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
            while let Some(ended) = self.ring.next_completed(self.bits) {
                places.ended.push(ended);
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
        // What is called may use the ring, but not make it look at this stream.
        let _still = self.ring.stand_still();
        // Slots may go to waiters as they are dropped: after the borrow.
        let mut given_back = Vec::new();
        let places = &mut *self.stream.places.borrow_mut();
        let mut count = 0;
        // From completion to submission queue in one go, as long as nothing unusual comes.
        while let Some((place, result)) = self.ring.next_completed(self.bits) {
            if !places.asks[place as usize].is_all(result) {
                places.ended.push((place, result));
                continue;
            }
            let untaken = Untaken {
                places,
                ended: (place, result),
            };
            let ask = &mut untaken.places.asks[place as usize];
            // SAFETY: the span of this place owns the slot and the kernel is through with it; the bytes
            // lie inside, as `push` checked. Nobody else has the slot, and the slice ends with the call.
            let brought = unsafe { slice::from_raw_parts_mut(ask.start, ask.len as usize) };
            let following = next(ask.offset, Ok(brought));
            mem::forget(untaken);
            count += 1;
            let Some(offset) = following else {
                places.free.push(place);
                given_back.extend(places.spans[place as usize].take());
                continue;
            };
            let ask = &mut places.asks[place as usize];
            ask.offset = offset;
            let target = self.stream.target;
            let edition = places.edition;
            let (Index::Fixed(index), FileTarget::Registered(file)) = (ask.index, target) else {
                places.pushed.push(place);
                continue;
            };
            let read = opcode::ReadFixed::new(types::Fixed(file), ask.start, ask.len, index);
            let entry = read.offset(offset).build();
            // SAFETY: the place keeps what the entry refers to until `next_completed` or
            // `Stream::take_in` brings its result.
            if !unsafe { self.ring.queue_read(entry, self.bits, place, edition) } {
                places.pushed.push(place);
            }
        }
        while let Some((place, result)) = places.look(&self.stream.file) {
            let Some(span) = &mut places.spans[place as usize] else {
                break;
            };
            let ask = &mut places.asks[place as usize];
            let (offset, at) = (ask.offset_of(span), span.at);
            let brought = io_result(result).map(|count| at..at + span.done + count);
            let following = next(offset, brought.map(|range| &mut span.lease[range]));
            span.done = 0;
            span.offset = following.unwrap_or_default();
            *ask = Ask::rest_of(span);
            // Only now: should what is called panic, this read is one that ended and was not taken.
            places.taken += 1;
            count += 1;
            if following.is_some() {
                places.pushed.push(place);
            } else {
                places.free.push(place);
                given_back.extend(places.spans[place as usize].take());
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
            places: RefCell::new(Places {
                asks: vec![Ask::NOTHING; depth.into()],
                spans: (0..depth).map(|_| None).collect(),
                edition: 0,
                free: (0..depth).rev().collect(),
                pushed: Vec::with_capacity(depth.into()),
                announced: false,
                ended: Vec::with_capacity(depth.into()),
                taken: 0,
                waker: None,
                closed: false,
            }),
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

/// How an entry names the file.
#[derive(Debug, Clone, Copy)]
pub(super) enum FileTarget {
    /// By its place in the ring's table of files.
    Registered(u32),
    /// By its descriptor.
    Descriptor,
}

/// What the task and the ring share: the file, and a place for each operation under way.
pub(super) struct Stream {
    file: Arc<File>,
    target: FileTarget,
    places: RefCell<Places>,
}

struct Places {
    /// What the kernel is asked for. Beside the spans and small, as these are what each read touches:
    /// the bytes that the kernel copies meanwhile throw most of them out of the cache.
    asks: Vec<Ask>,
    /// What is being read; owns the slots.
    spans: Vec<Option<Span>>,
    /// That of the buffers for which the asks' indices hold.
    edition: u64,
    /// Numbers of those with nothing to do.
    free: Vec<u16>,
    /// Those that the kernel shall hear of when the ring is entered next.
    pushed: Vec<u16>,
    /// The ring knows of them.
    announced: bool,
    /// Those whose operation ended, and its result.
    ended: Vec<(u16, i32)>,
    /// How many of these were taken.
    taken: usize,
    waker: Option<Waker>,
    /// Nobody takes results any more.
    closed: bool,
}

/// A read that ended and is being looked at: dropped in a panic, it is one that was not taken.
struct Untaken<'p> {
    places: &'p mut Places,
    ended: (u16, i32),
}

impl Drop for Untaken<'_> {
    fn drop(&mut self) {
        self.places.ended.push(self.ended);
    }
}

/// One operation of a read.
#[derive(Clone, Copy)]
struct Ask {
    /// Where the bytes go. Inside the slot of the place's span.
    start: *mut u8,
    /// Where in the file they are.
    offset: u64,
    len: u32,
    /// The result that says that all of the read is there: `len` if this is its only operation, else
    /// what no operation answers.
    all: i32,
    index: Index,
}

/// Which of the ring's fixed buffers the bytes go to.
#[derive(Clone, Copy)]
enum Index {
    /// Not looked up yet.
    Unknown,
    /// None.
    Plain,
    Fixed(u16),
}

impl Ask {
    const NOTHING: Ask = Ask {
        start: std::ptr::null_mut(),
        offset: 0,
        len: 0,
        all: Ask::NEVER,
        index: Index::Unknown,
    };
    /// Errors are much smaller numbers.
    const NEVER: i32 = i32::MIN;

    /// Asks for what a read has not brought yet.
    fn rest_of(span: &Span) -> Ask {
        let (at, len, offset) = span.rest();
        let is_all = span.done == 0 && span.len == len as usize;
        Ask {
            start: span.lease.start().wrapping_add(at),
            offset,
            len,
            all: if is_all { len as i32 } else { Ask::NEVER },
            index: Index::Unknown,
        }
    }

    /// Whether this result says that the whole read is done, with this operation alone.
    #[inline]
    fn is_all(&self, result: i32) -> bool {
        result == self.all
    }

    /// Where in the file the read of this operation begins: a read that goes on in the same place
    /// leaves its span as it was.
    fn offset_of(&self, span: &Span) -> u64 {
        self.offset - span.done as u64
    }
}

impl Places {
    /// The next read that has ended, and its last result. Those that were short or interrupted until
    /// then go on.
    #[inline]
    fn look(&mut self, file: &File) -> Option<(u16, i32)> {
        while let Some(&(place, result)) = self.ended.get(self.taken) {
            if self.asks[place as usize].is_all(result) || !self.goes_on(place, result, file) {
                return Some((place, result));
            }
            self.taken += 1;
            self.pushed.push(place);
        }
        self.ended.clear();
        self.taken = 0;
        None
    }

    /// Whether a read that did not bring everything at once has to go on; prepares what is asked next.
    #[cold]
    fn goes_on(&mut self, place: u16, result: i32, file: &File) -> bool {
        let ask = &mut self.asks[place as usize];
        let Some(span) = &mut self.spans[place as usize] else {
            return false;
        };
        span.offset = ask.offset_of(span);
        match io_result(result) {
            Ok(count) if span.is_short(count, file) => {
                span.done += count;
                *ask = Ask::rest_of(span);
                true
            }
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
            Ok(_) => false,
        }
    }

    /// Looks up the fixed buffer of a place anew.
    #[cold]
    fn find_index(&mut self, place: u16, buffers: &Buffers) -> Index {
        let Some(span) = &self.spans[place as usize] else {
            return Index::Plain;
        };
        let found = buffers.index_of(&span.lease, span.at + span.done);
        let index = found.map_or(Index::Plain, Index::Fixed);
        self.asks[place as usize].index = index;
        index
    }
}

/// What the user data of a stream's operations have in common; the rest is the place.
pub(super) const STREAM_BITS: u64 = !0xffff;

/// Where the operations of a stream go.
pub(super) trait Queue {
    /// Takes the operation of a place.
    fn push(&mut self, entry: squeue::Entry, place: u16);
}

impl Stream {
    /// Notes the results of `first` and of those after it in the completion queue that are this
    /// stream's too, as they usually are. Returns the first that is not, and who waits for results.
    /// Where nobody takes them any more, what was read into goes to `dropped`.
    pub(super) fn take_in(
        &self,
        first: &cqueue::Entry,
        queue: &mut CompletionQueue<'_>,
        mut dropped: impl FnMut(Span),
    ) -> (Option<cqueue::Entry>, Option<Waker>) {
        let places = &mut *self.places.borrow_mut();
        let (mut bits, mut result) = (first.user_data(), first.result());
        let stream = bits & STREAM_BITS;
        let other = loop {
            let place = bits as u16;
            if places.closed {
                places.free.push(place);
                let span = places.spans.get_mut(place as usize);
                span.and_then(Option::take).map(&mut dropped);
            } else {
                places.ended.push((place, result));
            }
            let Some(next) = queue.next() else { break None };
            (bits, result) = (next.user_data(), next.result());
            if bits & STREAM_BITS != stream {
                break Some(next);
            }
        };
        (other, places.waker.take())
    }

    /// Hands the operations of what was pushed to `queue`.
    #[inline]
    pub(super) fn hand_over(&self, buffers: &Buffers, queue: &mut impl Queue) {
        let places = &mut *self.places.borrow_mut();
        places.announced = false;
        if places.edition != buffers.edition() {
            places.edition = buffers.edition();
            for ask in &mut places.asks {
                ask.index = Index::Unknown;
            }
        }
        let target = self.target;
        let mut pushed = mem::take(&mut places.pushed);
        for place in pushed.drain(..) {
            let ask = places.asks[place as usize];
            let index = match ask.index {
                Index::Unknown => places.find_index(place, buffers),
                known => known,
            };
            // The usual way first and by itself: the entry is then made where it is to be.
            match (index, target) {
                (Index::Fixed(index), FileTarget::Registered(file)) => {
                    let file = types::Fixed(file);
                    let read = opcode::ReadFixed::new(file, ask.start, ask.len, index);
                    queue.push(read.offset(ask.offset).build(), place);
                }
                _ => queue.push(self.entry(&ask, index), place),
            }
        }
        places.pushed = pushed;
    }

    /// Operations that the kernel has, or will be told of.
    pub(super) fn under_way(&self) -> usize {
        let places = self.places.borrow();
        let ended = places.ended.len() - places.taken;
        places.spans.len() - places.free.len() - ended
    }

    /// Nobody takes results any more, and none is to come.
    pub(super) fn is_over(&self) -> bool {
        let places = self.places.borrow();
        places.closed && places.free.len() == places.spans.len()
    }

    /// Where the file stands in the ring's table, if it does.
    pub(super) fn registered(&self) -> Option<u32> {
        match self.target {
            FileTarget::Registered(place) => Some(place),
            FileTarget::Descriptor => None,
        }
    }

    /// The operation of a read where not everything is registered.
    #[cold]
    fn entry(&self, ask: &Ask, index: Index) -> squeue::Entry {
        let &Ask {
            start, len, offset, ..
        } = ask;
        let descriptor = types::Fd(self.file.as_raw_fd());
        match (index, self.target) {
            (Index::Fixed(index), _) => opcode::ReadFixed::new(descriptor, start, len, index)
                .offset(offset)
                .build(),
            (_, FileTarget::Registered(file)) => opcode::Read::new(types::Fixed(file), start, len)
                .offset(offset)
                .build(),
            (_, FileTarget::Descriptor) => opcode::Read::new(descriptor, start, len)
                .offset(offset)
                .build(),
        }
    }
}
