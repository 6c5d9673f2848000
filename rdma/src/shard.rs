//! The thread that owns one io_uring and sleeps in one system call for disk and network.
//!
//! A [`Shard`] is a handle: any thread, under any executor, asks it to read or write a leased slot
//! or to run a task beside its ring. Buffers move into an operation and come back with its result;
//! dropping the future leaves the operation to finish and the slot to return to its slab then.
//! When the last handle is gone the thread ends its tasks, drains its operations and exits, so
//! tasks that should not keep it alive must not own a handle.

mod buffers;
mod current;
mod files;
mod memlock;
mod ops;
mod reactor;
mod reads;
mod ring;
mod setup;
mod table;
mod transfer;

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::channel::oneshot;

use crate::slab::{Lease, Slab};
use transfer::Transfer;

pub(crate) use current::spawn_local;
pub(crate) use ops::Message;
pub use reads::{Finished, Reads, Refused};
pub(crate) use ring::{Ring, Socket};
pub use setup::ShardError;

/// How to start a shard.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// Name of the thread and of the shard in logs; Linux shows its first 15 bytes.
    pub name: String,
    /// The slab registered with the ring at start. Leases of any other slab work as well, with a
    /// page look-up in the kernel for each operation.
    pub slab: Arc<Slab>,
    /// Submission queue entries, rounded up to a power of two by the kernel; the completion queue
    /// has four times as many. More operations than that can be in flight.
    pub entries: u32,
    /// Operations from other threads that may wait for the shard to take them; past that, callers
    /// wait.
    pub queue: usize,
}

impl ShardConfig {
    /// A configuration with the usual depths: 256 entries, 256 queued operations.
    pub fn new(name: impl Into<String>, slab: Arc<Slab>) -> ShardConfig {
        ShardConfig {
            name: name.into(),
            slab,
            entries: 256,
            queue: 256,
        }
    }
}

/// What runs on the shard's thread: made there, so it need not be `Send` itself.
type Job = Box<dyn FnOnce() + Send>;

/// A handle to a shard. Cheap to clone; the shard lives as long as any handle does.
#[derive(Clone)]
pub struct Shard {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    slab: Arc<Slab>,
    /// Names the ring, so that a handle used on its own shard's thread finds it.
    ring: u64,
    transfers: async_channel::Sender<Transfer>,
    jobs: async_channel::Sender<Job>,
}

impl Shard {
    /// Starts the thread and its ring. Returns once the ring works, or with the reason why it
    /// can't and what to do about it.
    pub fn start(config: ShardConfig) -> Result<Shard, ShardError> {
        let (transfers, transfers_in) = async_channel::bounded(config.queue.max(1));
        let (jobs, jobs_in) = async_channel::unbounded();
        let ring = reactor::start(&config, transfers_in, jobs_in)?;
        Ok(Shard {
            inner: Arc::new(Inner {
                name: config.name,
                slab: config.slab,
                ring,
                transfers,
                jobs,
            }),
        })
    }

    /// The name given at start.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The slab given at start.
    pub fn slab(&self) -> &Arc<Slab> {
        &self.inner.slab
    }

    /// Reads `len` bytes of `file` from `offset` into the lease from byte `at`. Short reads are
    /// continued; a count below `len` means the end of the file. With O_DIRECT, alignment of
    /// offset, `at` and `len` is the caller's: what is asked is passed on.
    pub async fn read_at(
        &self,
        file: Arc<File>,
        offset: u64,
        lease: Lease,
        at: usize,
        len: usize,
    ) -> (Lease, io::Result<usize>) {
        if let Err(error) = transfer::check_range(&lease, at, len) {
            return (lease, Err(error));
        }
        let (transfer, answer) = Transfer::read(file, offset, lease, at, len);
        self.begin(transfer).await;
        answer.await.expect(ANSWERS)
    }

    /// Writes bytes `at..at + len` of the lease to `file` at `offset`: all of them, or an error.
    pub async fn write_at(
        &self,
        file: Arc<File>,
        offset: u64,
        lease: Lease,
        at: usize,
        len: usize,
    ) -> (Lease, io::Result<()>) {
        let lease = Arc::new(lease);
        let share = Arc::clone(&lease);
        let written = self.write_shared(file, offset, share, at, len).await;
        let lease = Arc::into_inner(lease).expect("a write gives its share back first");
        (lease, written)
    }

    /// As [`Shard::write_at`], of a lease that others read meanwhile.
    pub async fn write_shared(
        &self,
        file: Arc<File>,
        offset: u64,
        lease: Arc<Lease>,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        transfer::check_range(&lease, at, len)?;
        let (transfer, answer) = Transfer::write(file, offset, lease, at, len);
        self.begin(transfer).await;
        answer.await.expect(ANSWERS)
    }

    /// Makes what was written to `file` durable, and as much of its metadata as reading it back
    /// needs.
    pub async fn fdatasync(&self, file: Arc<File>) -> io::Result<()> {
        let (transfer, answer) = Transfer::fdatasync(file);
        self.begin(transfer).await;
        answer.await.expect(ANSWERS)
    }

    /// Makes a task by `make` on the shard's thread and runs it there. It ends early if the last
    /// handle is dropped. A panic inside ends that task alone and is logged.
    pub fn spawn<F, Fut>(&self, make: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        self.run(Box::new(move || spawn_local(async move { make().await })));
    }

    /// As [`Shard::spawn`], with the task's result. A panic inside continues in the caller.
    ///
    /// The task runs on even if the returned future is dropped.
    pub async fn on_shard<F, Fut, T>(&self, make: F) -> T
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (sender, result) = oneshot::channel();
        self.run(Box::new(move || {
            spawn_local(async move {
                let task = AssertUnwindSafe(async move { make().await });
                // Nobody listens any more: the result is dropped like the caller's future was.
                let _ = sender.send(task.catch_unwind().await);
            });
        }));
        match result.await.expect(ANSWERS) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Makes a task by `make` on the shard's thread, where it reads `file` with up to `depth` reads
    /// under way, and returns what it comes to. Otherwise as [`Shard::on_shard`].
    pub async fn with_reads<F, Fut, T>(&self, file: Arc<File>, depth: u16, make: F) -> T
    where
        F: FnOnce(Reads) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        self.on_shard(move || {
            let ring = Ring::current().expect("a shard's task runs on its thread");
            make(Reads::new(ring, file, depth))
        })
        .await
    }

    fn run(&self, job: Job) {
        if current::is_current(self.inner.ring) {
            return job();
        }
        // The queue has no bound of its own: jobs are control work, a few a connection.
        self.inner.jobs.try_send(job).expect(RECEIVES);
    }

    async fn begin(&self, transfer: Transfer) {
        let Some(transfer) = current::begin_here(self.inner.ring, transfer) else {
            return;
        };
        if self.inner.transfers.send(transfer).await.is_err() {
            unreachable!("{RECEIVES}");
        }
    }
}

/// Waits until a descriptor can be read, in a task on a shard's thread (see [`Shard::spawn`]): asleep in
/// that shard's one system call with everything else it waits for. Elsewhere it is an error.
pub async fn readable(descriptor: Arc<OwnedFd>) -> io::Result<()> {
    let ring = Ring::current().ok_or_else(|| {
        io::Error::other("this thread is no shard: wait for descriptors in a task of Shard::spawn")
    })?;
    ring.readable(&descriptor).await
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("name", &self.inner.name)
            .finish_non_exhaustive()
    }
}

/// Why waiting for a shard's answer can't fail: the thread ends only when the last handle is gone,
/// the caller has one, and operations under way are drained before.
const ANSWERS: &str = "a shard answers every operation before its thread ends";

/// Why handing work to a shard can't fail.
const RECEIVES: &str = "a shard takes work for as long as a handle lives";
