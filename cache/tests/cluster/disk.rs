//! A disk that fails in every way that disks do: right bytes from elsewhere or an error, never zeros.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures::FutureExt;
use futures::executor::block_on;
use futures::future::BoxFuture;
use trackbed_cache::Device;
use trackbed_cache::registry::Readers;
use trackbed_rdma::shard::Shard;
use trackbed_rdma::slab::{Lease, Slab};

use crate::support::*;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
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

const FAULTS: [Fault; 10] = [
    Fault::Read(libc::EIO),
    Fault::FlipRead,
    Fault::ShortRead,
    Fault::Write(libc::EIO),
    Fault::Write(libc::ENOSPC),
    Fault::Write(libc::EROFS),
    Fault::TornWrite,
    Fault::LostWrite,
    Fault::FlipWrite,
    Fault::Sync(libc::EIO),
];

/// When it goes wrong.
struct Plan {
    fault: Option<Fault>,
    /// Of a hundred operations that could fail.
    percent: u64,
    /// Only with files whose path has this in it.
    path: &'static str,
    random: Random,
    struck: u64,
}

/// A shard's disk with faults.
struct Faulty {
    shard: Shard,
    /// Where wrong bytes are made before they are written.
    wrong: Arc<Slab>,
    plan: Mutex<Plan>,
}

impl Faulty {
    fn new(shard: Shard) -> Arc<Faulty> {
        let plan = Plan {
            fault: None,
            percent: 100,
            path: "",
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

    fn plan(&self, fault: Option<Fault>, percent: u64, path: &'static str) {
        let mut plan = lock(&self.plan);
        (plan.fault, plan.percent, plan.path) = (fault, percent, path);
    }

    fn struck(&self) -> u64 {
        lock(&self.plan).struck
    }

    /// The fault that strikes now, if it is one of those that `concerns` this operation.
    fn strikes(&self, file: &File, concerns: impl Fn(Fault) -> bool) -> Option<Fault> {
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let path = path.expect("an open file");
        let mut plan = lock(&self.plan);
        let fault = plan.fault.filter(|&fault| concerns(fault))?;
        let strikes =
            path.to_string_lossy().contains(plan.path) && plan.random.below(100) < plan.percent;
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

/// Starts node "n" on a faulty disk.
fn start(cluster: &Cluster) -> (Node, Arc<Faulty>) {
    let mut config = cluster.config("n");
    config.disk_trial_every = Duration::from_millis(20);
    let mut disk = None;
    let node = cluster.try_start_on(config, |shard| {
        let faulty = Faulty::new(shard);
        disk = Some(Arc::clone(&faulty));
        faulty
    });
    (node.expect("starts"), disk.expect("made"))
}

#[test]
fn whatever_the_disk_does_readers_get_right_bytes_and_so_they_do_after_a_restart() {
    let mut files = Files::new();
    for n in 0..12 {
        files.insert(format!("small/{n}").into_bytes(), bytes(n, 70_000));
    }
    files.insert(b"large/0".to_vec(), bytes(100, (5 << 20) + 1));
    files.insert(b"large/1".to_vec(), bytes(101, 1 << 20));
    for fault in FAULTS {
        for percent in [20, 100] {
            eprintln!("{fault:?} in {percent} of 100");
            let cluster = Cluster::new(files.clone());
            let (node, disk) = start(&cluster);
            cluster.register(&node);
            let version = node.open();
            // Some of it is on the disk already.
            read_file(&version, b"small/1").expect("right");
            read_file(&version, b"large/1").expect("right");
            disk.plan(Some(fault), percent, "/versions/");
            for _ in 0..2 {
                assert_all_right(&version, cluster.origin.files());
            }
            // Not all of it can be kept.
            let _ = block_on(version.warm());
            block_on(node.agent.flush());
            assert_all_right(&version, cluster.origin.files());
            assert!(disk.struck() > 0);
            drop(version);
            node.stop();
            drop(disk);

            let node = cluster.start("n");
            let version = node.open();
            assert_all_right(&version, cluster.origin.files());
            block_on(version.warm()).expect("the disk is well again");
            assert!(version.progress().is_complete());
        }
    }
}

#[test]
fn what_nobody_else_has_is_an_error_and_other_versions_go_on() {
    let mut files = Files::new();
    for folder in ["a", "b"] {
        files.insert(format!("{folder}/large").into_bytes(), bytes(1, 5 << 20));
    }
    let cluster = Cluster::new(files);
    let (node, disk) = start(&cluster);
    cluster.register(&node);
    node.register_folder("b", Readers::AsBefore);
    let (all, b) = (node.open(), node.open_named("b"));
    for version in [&all, &b] {
        block_on(version.warm()).expect("all of it");
    }
    block_on(node.agent.flush());
    lock(&cluster.origin.changed).insert(b"a/large".to_vec());
    let digest: &'static str = all.manifest().digest().to_string().leak();
    for fault in [Fault::Read(libc::EIO), Fault::FlipRead, Fault::ShortRead] {
        disk.plan(Some(fault), 100, digest);
        let error = read_file(&all, b"a/large").expect_err("nobody has it");
        assert_eq!(error.errno(), libc::EIO, "{fault:?}");
        assert!(error.to_string().contains("large"), "{error}");
        assert_all_right(&b, &cluster.origin.below("b/"));
    }
}

#[test]
fn a_disk_that_keeps_failing_is_served_around_says_so_and_is_used_again_when_it_works() {
    let cluster = Cluster::new(some_files());
    let (node, disk) = start(&cluster);
    cluster.register(&node);
    let version = node.open();
    block_on(version.warm()).expect("all of it");
    block_on(node.agent.flush());
    assert_eq!(version.trouble(), None);
    disk.plan(Some(Fault::Read(libc::EIO)), 100, "");
    while version.trouble().is_none() {
        assert_all_right(&version, cluster.origin.files());
    }
    let trouble = version.trouble().expect("out of service");
    for part in [
        "out of service",
        "reading",
        "peers and the origin",
        "replace",
    ] {
        assert!(trouble.contains(part), "{trouble}");
    }
    assert_eq!(node.agent.counters().disks_out, 1);
    assert_eq!(
        version.held().iter().sum::<u64>(),
        0,
        "nobody is told to read it"
    );
    let struck = disk.struck();
    let errors = node.agent.counters().disk_errors;
    assert_all_right(&version, cluster.origin.files());
    assert_eq!(
        node.agent.counters().disk_errors,
        errors,
        "it is not even asked"
    );
    // But for the trials.
    while disk.struck() < struck + 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(node.agent.counters().disks_out, 1);

    disk.plan(None, 100, "");
    while version.trouble().is_some() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(node.agent.counters().disks_out, 0);
    block_on(version.warm()).expect("it is kept again");
    assert!(version.progress().is_complete());
    let read = node.agent.counters().origin_bytes;
    assert_all_right(&version, cluster.origin.files());
    assert_eq!(node.agent.counters().origin_bytes, read);
}
