//! Many reads of one file by a task on the shard's thread, at the cost of the system calls alone.
//!
//! [`Shard::read_at`](super::Shard::read_at) serves any thread, for an allocation and two hops
//! between threads a read. A [`Reads`] lives on the shard's own thread, has its file registered with
//! the ring and its places for operations made beforehand: pushing a read and taking it back
//! allocates nothing, and all that was pushed goes to the kernel in one call when the task waits.

use std::cell::{RefCell, RefMut};
use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use io_uring::{opcode, squeue, types};

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
        places.all[place as usize].0 = Some(Span {
            lease,
            at,
            len,
            offset,
            done: 0,
        });
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
        let ended = places.next_ended(&self.stream.file);
        self.announce(places);
        let (place, outcome) = ended?;
        let span = places.all[place as usize].0.take()?;
        places.free.push(place);
        Some(Finished {
            lease: span.lease,
            offset: span.offset,
            result: outcome.map(|()| span.done),
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
        while let Some((place, outcome)) = places.next_ended(&self.stream.file) {
            count += 1;
            let there = &mut places.all[place as usize].0;
            let Some(span) = there else { continue };
            // Free, should what is called panic.
            places.free.push(place);
            let (from, to) = (span.at, span.at + span.done);
            let brought = outcome.map(|()| &mut span.lease[from..to]);
            match next(span.offset, brought) {
                Some(offset) => {
                    places.free.pop();
                    span.offset = offset;
                    span.done = 0;
                    places.pushed.push(place);
                }
                None => given_back.extend(there.take()),
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
            self.ring.turn();
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
        let any = places.look(&self.stream.file);
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
                all: (0..depth).map(|_| Place(None)).collect(),
                free: (0..depth).rev().collect(),
                pushed: Vec::with_capacity(depth.into()),
                announced: false,
                ended: Vec::with_capacity(depth.into()),
                taken: 0,
                waker: None,
                closed: false,
            }),
        });
        Reads {
            key: ring.open(&stream),
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
                ended.extend(places.all[place as usize].0.take());
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
    all: Vec<Place>,
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

/// What is being read; owns the slot. A cache line of its own: the kernel's copying has thrown most
/// of them out of the cache when the result comes.
#[repr(align(64))]
struct Place(Option<Span>);

impl Places {
    /// Has the kernel read on where a read was short or interrupted, up to the first that has ended.
    /// True if there is one.
    #[inline]
    fn look(&mut self, file: &File) -> bool {
        while let Some(&(place, result)) = self.ended.get(self.taken) {
            let Some(span) = self.all[place as usize].0.as_mut() else {
                return true;
            };
            match io_result(result) {
                Ok(count) if span.is_short(count, file) => span.done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return true,
            }
            self.taken += 1;
            self.pushed.push(place);
        }
        self.ended.clear();
        self.taken = 0;
        false
    }

    /// Goes on to the next read that has ended.
    #[inline]
    fn next_ended(&mut self, file: &File) -> Option<(u16, io::Result<()>)> {
        if !self.look(file) {
            return None;
        }
        let (place, result) = *self.ended.get(self.taken)?;
        self.taken += 1;
        let span = self.all[place as usize].0.as_mut()?;
        Some((place, io_result(result).map(|count| span.done += count)))
    }
}

/// Where the operations of a stream go.
pub(super) trait Queue {
    /// Takes the operation of a place.
    fn push(&mut self, entry: squeue::Entry, place: u16);
}

/// A stream while the ring brings its results.
pub(super) struct Results<'s>(RefMut<'s, Places>);

impl Results<'_> {
    /// Notes the result of a place's operation. If nobody takes it any more, what it read into.
    #[inline]
    pub(super) fn ended(&mut self, place: u16, result: i32) -> Option<Span> {
        if self.0.closed {
            self.0.free.push(place);
            let place = self.0.all.get_mut(place as usize);
            return place.and_then(|place| place.0.take());
        }
        self.0.ended.push((place, result));
        None
    }

    /// Who waits for them.
    pub(super) fn waker(mut self) -> Option<Waker> {
        self.0.waker.take()
    }
}

impl Stream {
    /// To note results.
    pub(super) fn results(&self) -> Results<'_> {
        Results(self.places.borrow_mut())
    }

    /// Hands the operations of what was pushed to `queue`.
    #[inline]
    pub(super) fn hand_over(&self, buffers: &Buffers, queue: &mut impl Queue) {
        let places = &mut *self.places.borrow_mut();
        places.announced = false;
        for place in places.pushed.drain(..) {
            let Some(span) = &places.all[place as usize].0 else {
                continue;
            };
            let (at, len, offset) = span.rest();
            // The pointer stays inside the slot: `push` checked the range.
            let start = span.lease.start().wrapping_add(at);
            // The usual way first and by itself: the entry is then made where it is to be.
            match (buffers.index_of(&span.lease, at), self.target) {
                (Some(index), FileTarget::Registered(file)) => {
                    let file = types::Fixed(file);
                    let read = opcode::ReadFixed::new(file, start, len, index);
                    queue.push(read.offset(offset).build(), place);
                }
                (index, _) => queue.push(self.entry(start, len, offset, index), place),
            }
        }
    }

    /// Operations that the kernel has, or will be told of.
    pub(super) fn under_way(&self) -> usize {
        let places = self.places.borrow();
        let ended = places.ended.len() - places.taken;
        places.all.len() - places.free.len() - ended
    }

    /// Nobody takes results any more, and none is to come.
    pub(super) fn is_over(&self) -> bool {
        let places = self.places.borrow();
        places.closed && places.free.len() == places.all.len()
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
    fn entry(&self, start: *mut u8, len: u32, offset: u64, index: Option<u16>) -> squeue::Entry {
        let descriptor = types::Fd(self.file.as_raw_fd());
        match (index, self.target) {
            (Some(index), _) => opcode::ReadFixed::new(descriptor, start, len, index)
                .offset(offset)
                .build(),
            (None, FileTarget::Registered(file)) => {
                opcode::Read::new(types::Fixed(file), start, len)
                    .offset(offset)
                    .build()
            }
            (None, FileTarget::Descriptor) => opcode::Read::new(descriptor, start, len)
                .offset(offset)
                .build(),
        }
    }
}
