//! The disk under a store, as the store reads and writes it.
//!
//! A trait, so that a test can put one in between that fails as disks do. In a node it is the
//! shard's ring, which every chunk's bytes go through.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use trackbed_rdma::shard::Shard;
use trackbed_rdma::slab::Lease;

/// Reads, writes and syncs files of the cache. What the calls mean is said by [`Shard`]'s of like
/// names.
pub trait Device: Send + Sync + 'static {
    /// Reads `len` bytes from `offset` into the lease from byte `at`; fewer mean the end of the file.
    fn read_at(
        &self,
        file: Arc<File>,
        offset: u64,
        lease: Lease,
        at: usize,
        len: usize,
    ) -> BoxFuture<'_, (Lease, io::Result<usize>)>;

    /// Writes bytes `at..at + len` of the lease at `offset`: all of them, or an error.
    fn write_at(
        &self,
        file: Arc<File>,
        offset: u64,
        lease: Arc<Lease>,
        at: usize,
        len: usize,
    ) -> BoxFuture<'_, io::Result<()>>;

    /// Makes what was written durable.
    fn fdatasync(&self, file: Arc<File>) -> BoxFuture<'_, io::Result<()>>;

    /// Writes a few bytes that stand for others, such as a seal or presence bits. Blocks, for the page
    /// cache only.
    fn write_small(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }
}

impl Device for Shard {
    fn read_at(
        &self,
        file: Arc<File>,
        offset: u64,
        lease: Lease,
        at: usize,
        len: usize,
    ) -> BoxFuture<'_, (Lease, io::Result<usize>)> {
        Shard::read_at(self, file, offset, lease, at, len).boxed()
    }

    fn write_at(
        &self,
        file: Arc<File>,
        offset: u64,
        lease: Arc<Lease>,
        at: usize,
        len: usize,
    ) -> BoxFuture<'_, io::Result<()>> {
        Shard::write_shared(self, file, offset, lease, at, len).boxed()
    }

    fn fdatasync(&self, file: Arc<File>) -> BoxFuture<'_, io::Result<()>> {
        Shard::fdatasync(self, file).boxed()
    }
}
