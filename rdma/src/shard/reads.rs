//! Many reads of one file by a task on the shard's thread, at the cost of the system calls alone.
//!
//! [`Shard::read_at`](super::Shard::read_at) serves any thread, for an allocation and two hops
//! between threads a read. A [`Reads`] lives on the shard's own thread, has its file registered with
//! the ring and its places for operations made beforehand: pushing a read and taking it back
//! allocates nothing, and all that was pushed goes to the kernel in one call when the task waits.

use std::cell::RefCell;
use std::collections::VecDeque;
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
        let span = places.all[place as usize].0.insert(Span {
            lease,
            at,
            len,
            offset,
            done: 0,
        });
        // SAFETY: the stream keeps the span, and with it the lease, in its place until the kernel
        // has answered; the ring keeps the stream for as long, and the stream the file.
        unsafe {
            self.ring
                .read(self.key, place, |buffers| self.stream.entry(span, buffers));
        }
        Ok(())
    }

    /// A read that has ended, in the order in which they did, if there is one now.
    #[inline]
    pub fn finished(&mut self) -> Option<Finished> {
        let places = &mut *self.stream.places.borrow_mut();
        loop {
            let (number, result) = places.ended.pop_front()?;
            let place = &mut places.all[number as usize].0;
            let span = place.as_mut()?;
            let result = match io_result(result) {
                Ok(count) if span.took(count, &self.stream.file) => Ok(span.done),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
                // Short, or interrupted: the rest.
                _ => {
                    // SAFETY: as in `push`; the span has not left its place.
                    unsafe {
                        self.ring
                            .read(self.key, number, |buffers| self.stream.entry(span, buffers));
                    }
                    continue;
                }
            };
            places.free.push(number);
            let span = place.take()?;
            return Some(Finished {
                lease: span.lease,
                offset: span.offset,
                result,
            });
        }
    }

    /// The next read that ends, waiting for it; none if nothing is under way.
    pub async fn next(&mut self) -> Option<Finished> {
        poll_fn(|context| self.poll_ended(context)).await;
        self.finished()
    }

    /// Ready as soon as a read has ended, which [`Reads::finished`] then takes, or if none is under
    /// way; for a future that waits for other things too.
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
        let places = self.stream.places.borrow();
        !places.ended.is_empty() || places.free.len() == self.depth
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
                ended: VecDeque::with_capacity(depth.into()),
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
            // What ended gives its slot back; what is under way keeps its own.
            while let Some((place, _)) = places.ended.pop_front() {
                places.free.push(place);
                ended.extend(places.all[place as usize].0.take());
            }
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
    /// Places whose operation ended, and its result.
    ended: VecDeque<(u16, i32)>,
    waker: Option<Waker>,
    /// Nobody takes results any more.
    closed: bool,
}

/// What is being read; owns the slot. A cache line of its own: the kernel's copying has thrown most
/// of them out of the cache when the result comes.
#[repr(align(64))]
struct Place(Option<Span>);

/// What a completion means for a stream.
pub(super) enum Ended {
    /// Its result waits to be taken, by whoever the waker stands for.
    Kept(Option<Waker>),
    /// Nobody takes it any more; what it read into.
    Dropped(Option<Span>),
}

impl Stream {
    /// Notes the result of a place's operation.
    #[inline]
    pub(super) fn ended(&self, place: u16, result: i32) -> Ended {
        let places = &mut *self.places.borrow_mut();
        if places.closed {
            places.free.push(place);
            let span = places.all.get_mut(place as usize);
            return Ended::Dropped(span.and_then(|place| place.0.take()));
        }
        places.ended.push_back((place, result));
        Ended::Kept(places.waker.take())
    }

    /// Operations that the kernel has, or will be told of.
    pub(super) fn under_way(&self) -> usize {
        let places = self.places.borrow();
        places.all.len() - places.free.len() - places.ended.len()
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

    /// The operation that brings a span further.
    #[inline]
    pub(super) fn entry(&self, span: &Span, buffers: &Buffers) -> squeue::Entry {
        let (at, len, offset) = span.rest();
        // The pointer stays inside the slot: `push` checked the range.
        let start = span.lease.start().wrapping_add(at);
        let fd = types::Fd(self.file.as_raw_fd());
        match (buffers.index_of(&span.lease, at), self.target) {
            (Some(index), FileTarget::Registered(file)) => {
                opcode::ReadFixed::new(types::Fixed(file), start, len, index)
                    .offset(offset)
                    .build()
            }
            (Some(index), FileTarget::Descriptor) => opcode::ReadFixed::new(fd, start, len, index)
                .offset(offset)
                .build(),
            (None, FileTarget::Registered(file)) => {
                opcode::Read::new(types::Fixed(file), start, len)
                    .offset(offset)
                    .build()
            }
            (None, FileTarget::Descriptor) => {
                opcode::Read::new(fd, start, len).offset(offset).build()
            }
        }
    }
}
