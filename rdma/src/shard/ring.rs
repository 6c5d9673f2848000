//! The ring as tasks on the shard's thread see it: operations under way, what they own, who waits.

mod owner;
mod pending;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::buffers::Buffers;
use super::files::Files;
use super::ops::Held;
use super::reads::{FileTarget, Places, Queue, STREAM_BITS, Stream};
use super::table::{Key, Table};
use super::transfer::{Span, Transfer};
use crate::slab::Slab;
use owner::Owner;
pub(super) use pending::Pending;

/// One io_uring, used by the thread that made it.
pub(crate) struct Ring {
    state: RefCell<State>,
    /// What is left to do about completions; kept for its allocation.
    reaped: RefCell<Vec<Event>>,
    /// Written by other threads to end a sleep.
    doorbell: Arc<OwnedFd>,
    ending: Cell<bool>,
    /// Somebody looks through the results of a stream.
    still: Cell<bool>,
}

struct State {
    uring: IoUring,
    operations: Table<Operation>,
    streams: Table<Rc<Stream>>,
    /// Streams that have reads for the kernel.
    announced: Vec<Key>,
    /// Entries that found the submission queue full, in order.
    backlog: VecDeque<squeue::Entry>,
    /// A completion taken from the queue by a stream that it does not belong to. Before all others.
    set_aside: Option<cqueue::Entry>,
    buffers: Buffers,
    files: Files,
}

enum Operation {
    /// A future on this thread waits.
    Waiting { held: Held, waker: Option<Waker> },
    /// Its result waits for the future to look.
    Finished { held: Held, result: i32 },
    /// The future is gone. What the operation owns stays until the kernel is through with it.
    Orphan { held: Held },
    /// A disk operation; it knows whom to answer.
    Disk(Transfer),
    /// The read on the doorbell, and its buffer.
    Doorbell(#[expect(dead_code, reason = "written by the kernel")] Box<[u8; 8]>),
    /// A request to cancel another operation.
    Cancel,
}

/// What to do when the completion queue is no longer looked at.
enum Event {
    Completed(Key, i32),
    Wake(Waker),
    /// A read of a closed stream, and what it read into.
    Dropped(Key, Span),
}

impl Ring {
    /// Wraps a ring made by the calling thread, which becomes the only one to use it.
    pub(super) fn new(uring: IoUring, doorbell: Arc<OwnedFd>) -> Ring {
        let buffers = Buffers::new(&uring);
        let ring = Ring {
            state: RefCell::new(State {
                uring,
                operations: Table::with_capacity(256),
                streams: Table::with_capacity(8),
                announced: Vec::with_capacity(8),
                backlog: VecDeque::new(),
                set_aside: None,
                buffers,
                files: Files::new(),
            }),
            reaped: RefCell::new(Vec::with_capacity(256)),
            doorbell,
            ending: Cell::new(false),
            still: Cell::new(false),
        };
        ring.listen_to_doorbell();
        ring
    }

    /// Makes the slab's leases fixed buffers of this ring. Failing only costs speed and is logged.
    pub(crate) fn register(&self, slab: &Arc<Slab>) {
        let state = &mut *self.state.borrow_mut();
        state.buffers.register(&state.uring, slab);
    }

    /// Ends what [`Ring::register`] began. Leases of the slab still work, as plain buffers.
    pub(crate) fn unregister(&self, slab: &Slab) {
        let state = &mut *self.state.borrow_mut();
        // An entry that is queued names its buffer by place: the kernel must have taken it before the
        // place is emptied, or it would fail with EFAULT.
        while !(state.backlog.is_empty() && state.uring.submission().is_empty()) {
            state.flush_backlog();
            if let Err(error) = state.uring.submit() {
                tracing::warn!(%error, slab = slab.name(), "a slab stays pinned, as its operations could not begin");
                return;
            }
        }
        state.buffers.unregister(&state.uring, slab);
    }

    /// Begins a disk operation.
    pub(super) fn begin(&self, mut transfer: Transfer) {
        let state = &mut *self.state.borrow_mut();
        let entry = transfer.entry(&state.buffers);
        // SAFETY: the entry refers to the transfer's lease and file, which the table now owns until
        // the completion.
        unsafe { state.push(entry, Operation::Disk(transfer)) };
    }

    /// Begins an operation whose result the returned future brings.
    ///
    /// # Safety
    /// All memory and descriptors that `entry` refers to must be owned by `held`, at addresses
    /// that don't change when `held` moves.
    pub(super) unsafe fn start(self: &Rc<Self>, entry: squeue::Entry, held: Held) -> Pending {
        let operation = Operation::Waiting { held, waker: None };
        // SAFETY: the caller's promise; the table keeps `held` until the completion.
        let key = unsafe { self.state.borrow_mut().push(entry, operation) };
        Pending {
            ring: Rc::clone(self),
            key: Some(key),
        }
    }

    /// Registers a file for a stream of reads.
    pub(super) fn register_file(&self, file: &File) -> FileTarget {
        let state = &mut *self.state.borrow_mut();
        match state.files.register(&state.uring, file) {
            Some(place) => FileTarget::Registered(place),
            None => FileTarget::Descriptor,
        }
    }

    /// Takes in a stream of reads.
    pub(super) fn open(&self, stream: &Rc<Stream>) -> Key {
        self.state.borrow_mut().streams.insert(Rc::clone(stream))
    }

    /// Hears that a stream has reads for the kernel.
    pub(super) fn announce(&self, stream: Key) {
        self.state.borrow_mut().announced.push(stream);
    }

    /// Forgets a stream that is over; another one goes with its last read.
    pub(super) fn close(&self, stream: Key) {
        let ended = self.state.borrow_mut().close(stream);
        // Its file may be closed by that: not under the borrow.
        drop(ended);
    }

    /// Until the returned value is dropped, [`Ring::turn`] does nothing.
    pub(super) fn stand_still(&self) -> StandStill<'_> {
        StandStill {
            before: self.still.replace(true),
            ring: self,
        }
    }

    /// What the user data of a stream's reads have in common.
    pub(super) fn bits_of(&self, stream: Key) -> u64 {
        Owner::stream_bits(stream)
    }

    /// Hands entries to the kernel, without waiting. Returns the place and the result of a read of the
    /// stream with these bits if that comes first in the completion queue; else all that is there is
    /// brought to its owners.
    pub(super) fn turn(&self, bits: u64) -> Option<(u16, i32)> {
        if self.still.get() {
            return None;
        }
        // What the kernel refuses now, the shard's loop tries again, and reports.
        self.enter(false).ok()?;
        let mut first = [(0, 0)];
        if self.next_completed(bits, &mut first) > 0 {
            return Some(first[0]);
        }
        self.reap();
        None
    }

    /// Takes from the completion queue the places and results of reads of the stream with these bits, as
    /// long as they come next and there is room for them; how many it took.
    #[inline]
    pub(super) fn next_completed(&self, bits: u64, ended: &mut [(u16, i32)]) -> usize {
        let state = &mut *self.state.borrow_mut();
        if state.set_aside.is_some() {
            return 0;
        }
        let mut completion = state.uring.completion();
        let mut count = 0;
        for next in ended {
            let Some(entry) = completion.next() else {
                break;
            };
            if entry.user_data() & STREAM_BITS != bits {
                state.set_aside = Some(entry);
                break;
            }
            *next = (entry.user_data() as u16, entry.result());
            count += 1;
        }
        count
    }

    /// Queues the reads that were pushed to a stream.
    pub(super) fn hand_over(&self, bits: u64, stream: &Stream, places: &mut Places) {
        let state = &mut *self.state.borrow_mut();
        let mut queue = ReadQueue {
            submission: state.uring.submission(),
            backlog: &mut state.backlog,
            bits,
        };
        stream.hand_over(places, &state.buffers, &mut queue);
    }

    /// Hands entries to the kernel and, if `sleep`, waits there until something completes.
    pub(super) fn enter(&self, sleep: bool) -> io::Result<()> {
        let state = &mut *self.state.borrow_mut();
        state.hand_over_reads();
        state.flush_backlog();
        let idle = {
            let queue = state.uring.submission();
            queue.is_empty() && !queue.taskrun() && !queue.cq_overflow()
        };
        if idle && !sleep {
            return Ok(());
        }
        // With a backlog there is more to submit as soon as the kernel took what is queued.
        let nothing_to_do = state.backlog.is_empty() && state.set_aside.is_none();
        let want = usize::from(sleep && nothing_to_do);
        state.uring.submit_and_wait(want).map(|_| ())
    }

    /// Brings completions to their owners.
    pub(super) fn reap(&self) {
        let mut reaped = self.reaped.take();
        self.state.borrow_mut().take_in(&mut reaped);
        // Owners may use the ring: not under the borrow.
        for event in reaped.drain(..) {
            match event {
                Event::Completed(key, result) => self.complete(key, result),
                Event::Wake(waker) => waker.wake(),
                Event::Dropped(stream, span) => {
                    drop(span);
                    self.close(stream);
                }
            }
        }
        self.reaped.replace(reaped);
    }

    /// Cancels what only waits for other threads, so that what is left ends by itself.
    pub(super) fn end(&self) {
        self.ending.set(true);
        let doorbell: u64 = 1;
        // Answering the pending read is simpler than cancelling it. The counter is far from full.
        let _ = nix::unistd::write(&*self.doorbell, &doorbell.to_ne_bytes());
    }

    /// Operations the kernel still has.
    pub(super) fn in_flight(&self) -> usize {
        self.state.borrow().in_flight()
    }

    fn complete(&self, key: Key, result: i32) {
        let mut state = self.state.borrow_mut();
        let Some(operation) = state.operations.get_mut(key) else {
            tracing::error!(?key, result, "a completion belongs to no operation");
            return;
        };
        if let Operation::Waiting { held, waker } = operation {
            let waker = waker.take();
            let held = std::mem::replace(held, Held::Nothing);
            *operation = Operation::Finished { held, result };
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
            return;
        }
        let operation = state.operations.remove(key);
        // Owners may give slots to waiters or close files as they are dropped: not under the borrow.
        drop(state);
        match operation {
            Some(Operation::Disk(transfer)) => {
                if let Some(transfer) = transfer.advance(result) {
                    self.begin(transfer);
                }
            }
            Some(Operation::Orphan { held }) => held.discard(result),
            Some(Operation::Doorbell(_)) if !self.ending.get() => self.listen_to_doorbell(),
            _ => {}
        }
    }

    fn listen_to_doorbell(&self) {
        let mut counter = Box::new([0u8; 8]);
        let fd = types::Fd(self.doorbell.as_raw_fd());
        let entry = opcode::Read::new(fd, counter.as_mut_ptr(), 8).build();
        // SAFETY: the table owns the buffer until the completion, and the ring the descriptor.
        unsafe {
            self.state
                .borrow_mut()
                .push(entry, Operation::Doorbell(counter))
        };
    }

    /// The future of an operation is gone.
    fn abandon(&self, key: Key) {
        let mut state = self.state.borrow_mut();
        let Some(operation) = state.operations.get_mut(key) else {
            return;
        };
        if let Operation::Waiting { held, .. } = operation {
            let held = std::mem::replace(held, Held::Nothing);
            *operation = Operation::Orphan { held };
            let entry = opcode::AsyncCancel::new(key.to_bits()).build();
            // SAFETY: a cancel request refers to no memory.
            unsafe { state.push(entry, Operation::Cancel) };
        } else if let Some(Operation::Finished { held, result }) = state.operations.remove(key) {
            drop(state);
            held.discard(result);
        }
    }
}

/// See [`Ring::stand_still`].
pub(super) struct StandStill<'r> {
    ring: &'r Ring,
    before: bool,
}

impl Drop for StandStill<'_> {
    fn drop(&mut self) {
        self.ring.still.set(self.before);
    }
}

/// Where the reads of a stream go.
struct ReadQueue<'r> {
    submission: io_uring::SubmissionQueue<'r>,
    backlog: &'r mut VecDeque<squeue::Entry>,
    /// What their user data has in common.
    bits: u64,
}

impl Queue for ReadQueue<'_> {
    #[inline(always)]
    fn push(&mut self, entry: squeue::Entry, place: u16) {
        let entry = entry.user_data(self.bits | u64::from(place));
        // SAFETY: the stream keeps what the entry refers to, the lease in its place and the file,
        // until `Stream::take_in` brings its result; and the ring's table keeps the stream until all its
        // places have ended.
        if unsafe { self.submission.push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }
}

impl State {
    /// Queues an entry for the kernel and keeps what it refers to.
    ///
    /// # Safety
    /// `operation` must own all that `entry` refers to, at addresses that don't change as it moves.
    unsafe fn push(&mut self, entry: squeue::Entry, operation: Operation) -> Key {
        let key = self.operations.insert(operation);
        // SAFETY: the caller's promise; the operation stays in the table until the completion.
        unsafe { self.queue(entry.user_data(key.to_bits())) };
        key
    }

    /// Queues an entry whose operation is in the table.
    ///
    /// # Safety
    /// The operation must own all that `entry` refers to, until the completion.
    #[inline]
    unsafe fn queue(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller's promise.
        if self.backlog.is_empty() && unsafe { self.uring.submission().push(&entry) }.is_ok() {
            return;
        }
        self.backlog.push_back(entry);
        self.flush_backlog();
    }

    /// Queues the reads that were pushed to streams since the last time.
    fn hand_over_reads(&mut self) {
        for key in self.announced.drain(..) {
            // A stream that was closed meanwhile has taken its reads back.
            let Some(stream) = self.streams.get_mut(key) else {
                continue;
            };
            let mut queue = ReadQueue {
                submission: self.uring.submission(),
                backlog: &mut self.backlog,
                bits: Owner::stream_bits(key),
            };
            stream.hand_over_all(&self.buffers, &mut queue);
        }
    }

    /// Looks through the completion queue. Reads of streams are done with at once, being many.
    fn take_in(&mut self, events: &mut Vec<Event>) {
        let mut completion = self.uring.completion();
        let mut next = self.set_aside.take().or_else(|| completion.next());
        while let Some(entry) = next {
            let (bits, result) = (entry.user_data(), entry.result());
            let key = match Owner::from_bits(bits) {
                Owner::Stream(key) => key,
                Owner::Operation(key) => {
                    events.push(Event::Completed(key, result));
                    next = completion.next();
                    continue;
                }
            };
            let Some(stream) = self.streams.get(key) else {
                tracing::error!(?key, result, "a completion belongs to no stream");
                next = completion.next();
                continue;
            };
            let dropped = |span| events.push(Event::Dropped(key, span));
            let (other, waker) = stream.take_in(&entry, &mut completion, dropped);
            events.extend(waker.map(Event::Wake));
            next = other;
        }
    }

    /// Takes a stream out if it is over, and its file with it: not before, as an entry that waits for
    /// room would find another file in that place.
    fn close(&mut self, stream: Key) -> Option<Rc<Stream>> {
        if !self.streams.get_mut(stream)?.is_over() {
            return None;
        }
        let stream = self.streams.remove(stream)?;
        if let Some(place) = stream.registered() {
            self.files.unregister(&self.uring, place);
        }
        Some(stream)
    }

    /// Operations that the kernel has, or will be told of.
    fn in_flight(&self) -> usize {
        let reads: usize = self.streams.iter().map(|stream| stream.under_way()).sum();
        self.operations.len() + reads
    }

    /// Moves entries to the submission queue, making room once by handing it to the kernel.
    fn flush_backlog(&mut self) {
        let mut submitted = false;
        while let Some(entry) = self.backlog.front() {
            // SAFETY: what the entry refers to is owned by its operation in the table, which stays
            // there until the completion.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                self.backlog.pop_front();
            } else if submitted || self.uring.submit().is_err() {
                // The loop tries again after it has made room by reaping completions.
                return;
            } else {
                submitted = true;
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let operations = self.in_flight();
        if operations > 0 {
            tracing::error!(
                operations,
                "a ring ended with operations under way: their memory is leaked, as the kernel may still use it"
            );
            self.operations.leak();
            self.streams.leak();
        }
    }
}

/// Keeps a socket alive beside operations that use its number.
pub(crate) type Socket = Arc<OwnedFd>;

/// The number of a descriptor for an entry.
pub(super) fn fd_of(socket: &Socket) -> types::Fd {
    let fd: RawFd = socket.as_raw_fd();
    types::Fd(fd)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use futures::executor::block_on;

    use super::*;
    use crate::shard::{Shard, ShardConfig};
    use crate::slab::PAGE_BYTES;

    #[test]
    fn a_write_that_is_queued_when_its_slab_is_unregistered_still_writes() {
        let own = Slab::new("own", PAGE_BYTES, 1).expect("a slab");
        let shard = Shard::start(ShardConfig::new("test", own)).expect("a shard");
        let path = tempfile::NamedTempFile::new().expect("a file");
        let file = Arc::new(File::create(path.path()).expect("it opens"));
        let written = block_on(shard.on_shard(move || async move {
            let ring = Ring::current().expect("this runs on a shard");
            let arena = Slab::new("arena", PAGE_BYTES, 1).expect("a slab");
            ring.register(&arena);
            let mut lease = arena.try_lease().expect("a free slot");
            lease.fill(7);
            let (write, answer) = Transfer::write(file, 0, lease, 0, PAGE_BYTES);
            ring.begin(write);
            ring.unregister(&arena);
            let (_lease, written) = answer.await.expect("an answer");
            written
        }));
        written.expect("it is written");
        assert_eq!(
            std::fs::read(path.path()).expect("readable"),
            [7; PAGE_BYTES]
        );
    }
}
