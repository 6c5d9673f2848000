//! A disk that fails as a test plans it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::BoxFuture;
use trackbed_cache::Device;
use trackbed_rdma::shard::Shard;
use trackbed_rdma::slab::{Lease, Slab};

use super::{Random, lock};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Reads fail with this error number.
    Read(i32),
    /// Reads give a byte another value.
    FlipRead,
    /// Reads end early, as at the end of a file.
    ShortRead,
    /// Writes fail with this error number, nothing written.
    Write(i32),
    /// Half of a write is on the disk, and it says so.
    TornWrite,
    /// Half of a write is on the disk, and it says that all is.
    LostWrite,
    /// A byte of what is written gets another value.
    FlipWrite,
    /// Syncing fails with this error number.
    Sync(i32),
}

/// When it goes wrong.
struct Plan {
    fault: Option<Fault>,
    /// Of a hundred operations that could fail.
    percent: u64,
    /// Only with files whose path has this in it.
    path: String,
    random: Random,
    struck: u64,
}

/// A shard's disk with faults.
pub(crate) struct Faulty {
    shard: Shard,
    /// Where wrong bytes are made before they are written.
    wrong: Arc<Slab>,
    plan: Mutex<Plan>,
}

impl Faulty {
    pub(crate) fn new(shard: Shard) -> Arc<Faulty> {
        let plan = Plan {
            fault: None,
            percent: 100,
            path: String::new(),
            random: Random(17),
            struck: 0,
        };
        let wrong = Slab::new("wrong", shard.slab().slot_bytes(), 2).expect("a slab");
        Arc::new(Faulty {
            shard,
            wrong,
            plan: Mutex::new(plan),
        })
    }

    pub(crate) fn plan(&self, fault: Option<Fault>, percent: u64, path: &str) {
        let mut plan = lock(&self.plan);
        (plan.fault, plan.percent, plan.path) = (fault, percent, path.to_owned());
    }

    pub(crate) fn struck(&self) -> u64 {
        lock(&self.plan).struck
    }

    /// The fault that strikes now, if it is one of those that `concerns` this operation.
    fn strikes(&self, file: &File, concerns: impl Fn(Fault) -> bool) -> Option<Fault> {
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let path = path.expect("an open file");
        let mut plan = lock(&self.plan);
        let fault = plan.fault.filter(|&fault| concerns(fault))?;
        let strikes =
            path.to_string_lossy().contains(&plan.path) && plan.random.below(100) < plan.percent;
        plan.struck += u64::from(strikes);
        strikes.then_some(fault)
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn is_read(fault: Fault) -> bool {
    matches!(fault, Fault::Read(_) | Fault::FlipRead | Fault::ShortRead)
}

fn is_write(fault: Fault) -> bool {
    !is_read(fault) && !matches!(fault, Fault::Sync(_))
}

impl Device for Faulty {
    fn read_at(
        &self,
        file: Arc<File>,
        offset: u64,
        lease: Lease,
        at: usize,
        len: usize,
    ) -> BoxFuture<'_, (Lease, io::Result<usize>)> {
        let fault = self.strikes(&file, is_read);
        async move {
            if let Some(Fault::Read(number)) = fault {
                return (lease, Err(errno(number)));
            }
            let read = self.shard.read_at(file, offset, lease, at, len).await;
            match (fault, read) {
                (Some(Fault::FlipRead), (mut lease, Ok(count))) if count > 0 => {
                    lease[at + count / 2] ^= 4;
                    (lease, Ok(count))
                }
                (Some(Fault::ShortRead), (mut lease, Ok(count))) => {
                    lease[at + count / 2..at + count].fill(0);
                    (lease, Ok(count / 2))
                }
                (_, read) => read,
            }
        }
        .boxed()
    }

    fn write_at(
        &self,
        file: Arc<File>,
        offset: u64,
        lease: Arc<Lease>,
        at: usize,
        len: usize,
    ) -> BoxFuture<'_, io::Result<()>> {
        let fault = self.strikes(&file, is_write);
        async move {
            let half = (len / 2).next_multiple_of(4096).min(len);
            match fault {
                Some(Fault::Write(number)) => Err(errno(number)),
                Some(Fault::TornWrite | Fault::LostWrite) => {
                    let written = self.shard.write_shared(file, offset, lease, at, half).await;
                    match fault {
                        Some(Fault::TornWrite) => Err(errno(libc::EIO)),
                        _ => written,
                    }
                }
                Some(Fault::FlipWrite) => {
                    // The caller's bytes stay right: the disk alone has others.
                    let mut flipped = self.wrong.lease().await;
                    flipped[..len].copy_from_slice(&lease[at..at + len]);
                    flipped[len / 3] ^= 4;
                    self.shard.write_at(file, offset, flipped, 0, len).await.1
                }
                _ => self.shard.write_shared(file, offset, lease, at, len).await,
            }
        }
        .boxed()
    }

    fn fdatasync(&self, file: Arc<File>) -> BoxFuture<'_, io::Result<()>> {
        let fault = self.strikes(&file, |fault| matches!(fault, Fault::Sync(_)));
        async move {
            match fault {
                Some(Fault::Sync(number)) => Err(errno(number)),
                _ => self.shard.fdatasync(file).await,
            }
        }
        .boxed()
    }

    fn write_small(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.strikes(file, is_write) {
            Some(Fault::Write(number)) => Err(errno(number)),
            Some(Fault::TornWrite) => {
                file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
                Err(errno(libc::EIO))
            }
            Some(Fault::LostWrite) => file.write_all_at(&bytes[..bytes.len() / 2], offset),
            Some(Fault::FlipWrite) => {
                let mut bytes = bytes.to_vec();
                let place = bytes.len() / 3;
                bytes[place] ^= 4;
                file.write_all_at(&bytes, offset)
            }
            _ => file.write_all_at(bytes, offset),
        }
    }
}
