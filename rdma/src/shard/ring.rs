//! The ring as tasks on the shard's thread see it: operations under way, what they own, who waits.

mod exchange;
mod owner;
mod pending;
mod queues;
mod state;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use io_uring::{IoUring, opcode, squeue, types};

use super::buffers::Buffers;
use super::files::Files;
use super::ops::Held;
use super::reads::{FileTarget, Stream};
use super::table::{Key, Table};
use super::transfer::{Span, Transfer};
use crate::slab::Slab;
pub(super) use exchange::Exchange;
use owner::Owner;
pub(super) use pending::Pending;
use queues::Queues;
use state::State;

/// One io_uring, used by the thread that made it.
pub(crate) struct Ring {
    queues: Queues,
    state: RefCell<State>,
    /// What is left to do about completions; kept for its allocation.
    reaped: RefCell<Vec<Event>>,
    /// Written by other threads to end a sleep.
    doorbell: Arc<OwnedFd>,
    ending: Cell<bool>,
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
            queues: Queues::new(uring),
            state: RefCell::new(State {
                operations: Table::with_capacity(256),
                streams: Table::with_capacity(8),
                announced: Vec::with_capacity(8),
                backlog: VecDeque::new(),
                buffers,
                files: Files::new(),
            }),
            reaped: RefCell::new(Vec::with_capacity(256)),
            doorbell,
            ending: Cell::new(false),
        };
        ring.listen_to_doorbell();
        ring
    }

    /// Makes the slab's leases fixed buffers of this ring. Failing only costs speed and is logged.
    pub(crate) fn register(&self, slab: &Arc<Slab>) {
        let state = &mut *self.state.borrow_mut();
        state.buffers.register(self.queues.uring(), slab);
    }

    /// Ends what [`Ring::register`] began. Leases of the slab still work, as plain buffers.
    pub(crate) fn unregister(&self, slab: &Slab) {
        let state = &mut *self.state.borrow_mut();
        // An entry that is queued names its buffer by place: the kernel must have taken it before the
        // place is emptied, or it would fail with EFAULT.
        loop {
            let Some(in_queue) = self.queues.submission().map(|queue| queue.len()) else {
                tracing::warn!(
                    slab = slab.name(),
                    "a slab stays pinned until its shard ends, as it goes away while reads are looked at"
                );
                return;
            };
            if in_queue == 0 && state.backlog.is_empty() {
                break;
            }
            state.flush_backlog(&self.queues);
            if let Err(error) = self.queues.uring().submit() {
                tracing::warn!(%error, slab = slab.name(), "a slab stays pinned, as its operations could not begin");
                return;
            }
        }
        state.buffers.unregister(self.queues.uring(), slab);
    }

    /// Begins a disk operation.
    pub(super) fn begin(&self, mut transfer: Transfer) {
        let state = &mut *self.state.borrow_mut();
        let entry = transfer.entry(&state.buffers);
        // SAFETY: the entry refers to the transfer's lease and file, which the table now owns until
        // the completion.
        unsafe { state.push(&self.queues, entry, Operation::Disk(transfer)) };
    }

    /// Begins an operation whose result the returned future brings.
    ///
    /// # Safety
    /// All memory and descriptors that `entry` refers to must be owned by `held`, at addresses
    /// that don't change when `held` moves.
    pub(super) unsafe fn start(self: &Rc<Self>, entry: squeue::Entry, held: Held) -> Pending {
        let operation = Operation::Waiting { held, waker: None };
        // SAFETY: the caller's promise; the table keeps `held` until the completion.
        let key = unsafe { self.state.borrow_mut().push(&self.queues, entry, operation) };
        Pending {
            ring: Rc::clone(self),
            key: Some(key),
        }
    }

    /// Registers a file for a stream of reads.
    pub(super) fn register_file(&self, file: &File) -> FileTarget {
        let state = &mut *self.state.borrow_mut();
        match state.files.register(self.queues.uring(), file) {
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
        let ended = self.state.borrow_mut().close(&self.queues, stream);
        // Its file may be closed by that: not under the borrow.
        drop(ended);
    }

    /// What the user data of a stream's reads have in common.
    pub(super) fn bits_of(&self, stream: Key) -> u64 {
        Owner::stream_bits(stream)
    }

    /// Hands entries to the kernel, without waiting. Returns the place and the result of a read of the
    /// stream with these bits if that comes first in the completion queue; else all that is there is
    /// brought to its owners.
    pub(super) fn turn(&self, bits: u64) -> Option<(u16, i32)> {
        // In somebody's hand: nothing comes of it now.
        drop(self.queues.completion()?);
        // What the kernel refuses now, the shard's loop tries again, and reports.
        self.enter(false).ok()?;
        let first = self.exchange(bits)?.next_completed();
        if first.is_none() {
            self.reap();
        }
        first
    }

    /// Hands entries to the kernel and, if `sleep`, waits there until something completes.
    pub(super) fn enter(&self, sleep: bool) -> io::Result<()> {
        let state = &mut *self.state.borrow_mut();
        state.hand_over_reads(&self.queues);
        state.flush_backlog(&self.queues);
        let idle = self
            .queues
            .submission()
            .is_none_or(|queue| queue.is_empty() && !queue.taskrun() && !queue.cq_overflow());
        if idle && !sleep {
            return Ok(());
        }
        // With a backlog there is more to submit as soon as the kernel took what is queued.
        let nothing_to_do = state.backlog.is_empty() && !self.queues.has_set_aside();
        let want = usize::from(sleep && nothing_to_do);
        self.queues.uring().submit_and_wait(want).map(|_| ())
    }

    /// Brings completions to their owners.
    pub(super) fn reap(&self) {
        let mut reaped = self.reaped.take();
        self.state.borrow_mut().take_in(&self.queues, &mut reaped);
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
                .push(&self.queues, entry, Operation::Doorbell(counter))
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
            unsafe { state.push(&self.queues, entry, Operation::Cancel) };
        } else if let Some(Operation::Finished { held, result }) = state.operations.remove(key) {
            drop(state);
            held.discard(result);
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
            let (write, answer) = Transfer::write(file, 0, Arc::new(lease), 0, PAGE_BYTES);
            ring.begin(write);
            ring.unregister(&arena);
            answer.await.expect("an answer")
        }));
        written.expect("it is written");
        assert_eq!(
            std::fs::read(path.path()).expect("readable"),
            [7; PAGE_BYTES]
        );
    }
}
