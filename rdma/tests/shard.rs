//! What a user of slab and shard gets: bytes from and to files, on any thread, in any circumstance.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::executor::block_on;
use futures::future::join_all;
use trackbed_rdma::shard::{Refused, Shard, ShardConfig};
use trackbed_rdma::slab::{PAGE_BYTES, Slab};

const SLOT_BYTES: usize = 64 * PAGE_BYTES;

fn shard(slots: usize) -> Shard {
    let slab = Slab::new("test", SLOT_BYTES, slots).expect("slab");
    Shard::start(ShardConfig::new("shard-test", slab)).expect("io_uring works here")
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + seed * 7) >> 3) as u8).collect()
}

fn file_with(directory: &Path, bytes: &[u8]) -> Arc<File> {
    let path = directory.join("file");
    File::create(&path)
        .expect("create")
        .write_all(bytes)
        .expect("write");
    Arc::new(
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("open"),
    )
}

#[test]
fn what_was_written_is_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_with(directory.path(), b"");
    let shard = shard(2);
    block_on(async {
        let bytes = pattern(1, 10_000);
        let mut lease = shard.slab().lease().await;
        lease[100..10_100].copy_from_slice(&bytes);
        let (lease, result) = shard
            .write_at(file.clone(), 5, lease, 100, bytes.len())
            .await;
        result.unwrap();
        shard.fdatasync(file.clone()).await.unwrap();
        drop(lease);
        let lease = shard.slab().lease().await;
        let (lease, result) = shard
            .read_at(file.clone(), 5, lease, 4096, bytes.len())
            .await;
        assert_eq!(result.unwrap(), bytes.len());
        assert_eq!(lease[4096..4096 + bytes.len()], bytes);
    });
}

#[test]
fn a_read_past_the_end_returns_what_there_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_with(directory.path(), &pattern(2, 10_000));
    let shard = shard(1);
    block_on(async {
        let lease = shard.slab().lease().await;
        let (lease, result) = shard.read_at(file.clone(), 4000, lease, 0, 20_000).await;
        assert_eq!(result.unwrap(), 6000);
        assert_eq!(lease[..6000], pattern(2, 10_000)[4000..]);
        let (_, result) = shard.read_at(file, 10_000, lease, 0, 1).await;
        assert_eq!(result.unwrap(), 0);
    });
}

#[test]
fn a_file_opened_for_direct_io_is_read_to_its_unaligned_end() {
    // In the build folder, as a temporary folder in memory may not know O_DIRECT.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bytes = pattern(3, 5 * PAGE_BYTES + 1234);
    file_with(directory.path(), &bytes);
    let path = directory.path().join("file");
    let direct = match OpenOptions::new()
        .read(true)
        .custom_flags(libc_o_direct())
        .open(&path)
    {
        Ok(file) => Arc::new(file),
        Err(error) => return eprintln!("skipped: this file system has no O_DIRECT: {error}"),
    };
    let shard = shard(1);
    block_on(async {
        let lease = shard.slab().lease().await;
        let (lease, result) = shard.read_at(direct, 0, lease, 0, 8 * PAGE_BYTES).await;
        assert_eq!(result.unwrap(), bytes.len());
        assert_eq!(lease[..bytes.len()], bytes);
    });
}

fn libc_o_direct() -> i32 {
    nix::fcntl::OFlag::O_DIRECT.bits()
}

#[test]
fn leases_of_a_slab_the_ring_does_not_know_work_too() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_with(directory.path(), &pattern(4, 5000));
    let shard = shard(1);
    let stranger = Slab::new("stranger", 2 * PAGE_BYTES, 1).unwrap();
    block_on(async {
        let lease = stranger.lease().await;
        let (lease, result) = shard.read_at(file, 0, lease, 0, 5000).await;
        assert_eq!(result.unwrap(), 5000);
        assert_eq!(lease[..5000], pattern(4, 5000));
    });
}

#[test]
fn a_range_outside_the_slot_is_an_error_and_the_lease_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_with(directory.path(), b"x");
    let shard = shard(1);
    block_on(async {
        let lease = shard.slab().lease().await;
        let (lease, result) = shard.read_at(file.clone(), 0, lease, SLOT_BYTES, 1).await;
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
        let (_, result) = shard.write_at(file, 0, lease, usize::MAX, 2).await;
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    });
    assert_eq!(shard.slab().free_slots(), 1);
}

#[test]
fn an_error_of_the_file_names_itself_and_the_lease_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    file_with(directory.path(), b"read only");
    let file = Arc::new(File::open(directory.path().join("file")).unwrap());
    let shard = shard(1);
    block_on(async {
        let lease = shard.slab().lease().await;
        let (lease, result) = shard.write_at(file.clone(), 0, lease, 0, 10).await;
        assert_eq!(result.unwrap_err().raw_os_error(), Some(9), "EBADF");
        let (_, result) = shard.read_at(file, 0, lease, 0, 9).await;
        assert_eq!(result.unwrap(), 9);
    });
}

#[test]
fn a_full_disk_is_an_error() {
    let shard = shard(1);
    let Ok(full) = OpenOptions::new().write(true).open("/dev/full") else {
        return;
    };
    block_on(async {
        let lease = shard.slab().lease().await;
        let (_, result) = shard.write_at(Arc::new(full), 0, lease, 0, 4096).await;
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    });
}

#[test]
fn more_operations_than_the_ring_has_entries_all_finish() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(5, 300 * 1000);
    let file = file_with(directory.path(), &bytes);
    let slab = Slab::new("test", PAGE_BYTES, 300).unwrap();
    let config = ShardConfig {
        entries: 8,
        queue: 4,
        ..ShardConfig::new("shard-small", slab)
    };
    let shard = Shard::start(config).unwrap();
    let read_all = |shard: Shard, file: Arc<File>, bytes: Vec<u8>| async move {
        let reads = (0..300).map(|i| {
            let (shard, file, bytes) = (shard.clone(), file.clone(), &bytes);
            async move {
                let lease = shard.slab().lease().await;
                let (lease, result) = shard.read_at(file, i as u64 * 1000, lease, 0, 1000).await;
                assert_eq!(result.unwrap(), 1000);
                assert_eq!(lease[..1000], bytes[i * 1000..][..1000]);
            }
        });
        join_all(reads).await;
    };
    // From another thread, and from the shard's own.
    block_on(read_all(shard.clone(), file.clone(), bytes.clone()));
    let own = shard.clone();
    block_on(shard.on_shard(move || read_all(own, file, bytes)));
}

#[test]
fn a_dropped_read_gives_its_slot_back_only_when_the_kernel_is_through_with_it() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let reader = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
    let shard = shard(2);
    block_on(async {
        let lease = shard.slab().lease().await;
        let mut read = Box::pin(shard.read_at(reader, 0, lease, 0, 8));
        assert!(read.as_mut().now_or_never().is_none());
        // The operation is at the ring once another one has been answered after it.
        shard.on_shard(|| async {}).await;
        drop(read);
    });
    assert_eq!(
        shard.slab().free_slots(),
        1,
        "the kernel may still write into the other"
    );
    writer.write_all(b"12345678").unwrap();
    wait_until(|| shard.slab().free_slots() == 2);
}

#[test]
fn tasks_run_on_the_shard_and_bring_results() {
    let shard = shard(1);
    let name = block_on(shard.on_shard(|| async {
        // Not `Send`: it never leaves the thread that made it.
        let here = std::rc::Rc::new(std::thread::current().name().map(str::to_owned));
        (*here).clone()
    }));
    assert_eq!(name.as_deref(), Some("shard-test"));
}

#[test]
fn a_task_that_panics_takes_nothing_else_with_it() {
    let shard = shard(1);
    shard.spawn(|| async { panic!("on purpose") });
    let panicking = shard.clone();
    let result = std::thread::spawn(move || {
        block_on(panicking.on_shard(|| async { panic!("on purpose, too") }))
    })
    .join();
    assert!(result.is_err(), "the panic continues in the caller");
    assert_eq!(block_on(shard.on_shard(|| async { 7 })), 7);
}

#[test]
fn the_thread_ends_with_the_last_handle_and_lets_the_slab_go() {
    let shard = shard(1);
    let slab = Arc::clone(shard.slab());
    shard.spawn(futures::future::pending);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let held = writer.try_clone().unwrap();
    shard.spawn(move || async move {
        let _held = held;
        futures::future::pending::<()>().await;
    });
    drop(writer);
    drop(shard);
    // The end of the pipe shows that the tasks are gone as well.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    wait_until(|| Arc::strong_count(&slab) == 1);
}

#[test]
fn many_threads_use_one_shard() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_with(directory.path(), &pattern(6, 64_000));
    let shard = shard(3);
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let (shard, file) = (shard.clone(), file.clone());
            scope.spawn(move || {
                for round in 0..50usize {
                    let offset = (thread * 997 + round * 131) % 60_000;
                    block_on(async {
                        let lease = shard.slab().lease().await;
                        let (lease, result) = shard
                            .read_at(file.clone(), offset as u64, lease, 0, 4000)
                            .await;
                        assert_eq!(result.unwrap(), 4000);
                        assert_eq!(lease[..4000], pattern(6, 64_000)[offset..][..4000]);
                    });
                }
            });
        }
    });
}

/// Waits for what another thread is about to do.
fn wait_until(condition: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < patience, "it never came about");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_stream_of_reads_brings_every_byte_of_a_file_whatever_its_depth() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(3, 1_000_003);
    let file = file_with(directory.path(), &bytes);
    let shard = shard(8);
    for depth in [1, 3, 8] {
        let slab = shard.slab().clone();
        let read = block_on(
            shard.with_reads(file.clone(), depth, move |mut reads| async move {
                let mut found = vec![0; 1_000_003];
                let mut next = 0;
                loop {
                    while reads.room() > 0 && next < found.len() {
                        let lease = slab.lease().await;
                        reads.push(next as u64, lease, 512, 10_000).expect("room");
                        next += 10_000;
                    }
                    let Some(done) = reads.next().await else {
                        return found;
                    };
                    let count = done.result.expect("a sound file");
                    let at = done.offset as usize;
                    found[at..at + count].copy_from_slice(&done.lease[512..512 + count]);
                }
            }),
        );
        assert!(read == bytes, "depth {depth}");
        assert_eq!(shard.slab().free_slots(), 8);
    }
}

#[test]
fn a_read_that_is_refused_gives_its_slot_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_with(directory.path(), &pattern(4, 100));
    let shard = shard(2);
    let slab = shard.slab().clone();
    let said = block_on(shard.with_reads(file, 1, move |mut reads| async move {
        let lease = slab.lease().await;
        let Err(Refused::Range { lease, .. }) = reads.push(0, lease, SLOT_BYTES - 10, 11) else {
            panic!("a byte past the slot");
        };
        let Err(Refused::Range { lease, .. }) = reads.push(0, lease, usize::MAX, 2) else {
            panic!("no number at all");
        };
        reads.push(0, lease, 0, 100).expect("room for one");
        let refused = reads.push(0, slab.lease().await, 0, 100);
        assert!(matches!(refused, Err(Refused::Full { depth: 1, .. })));
        assert_eq!(reads.under_way(), 1);
        let said = refused.unwrap_err().to_string();
        assert_eq!(slab.free_slots(), 1, "the refused slot is back");
        said
    }));
    assert!(said.contains("take one"), "{said}");
}

#[test]
fn reads_that_fail_say_why_and_the_stream_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    // A directory can be opened, not read.
    let folder = Arc::new(File::open(directory.path()).expect("open"));
    let shard = shard(1);
    let slab = shard.slab().clone();
    block_on(shard.with_reads(folder, 1, move |mut reads| async move {
        for _ in 0..3 {
            reads.push(0, slab.lease().await, 0, 512).expect("room");
            let done = reads.next().await.expect("under way");
            assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EISDIR));
        }
        assert!(reads.next().await.is_none(), "nothing is under way");
    }));
}

#[test]
fn a_stream_dropped_in_mid_flight_returns_its_slots_when_the_kernel_is_done() {
    let shard = shard(4);
    let slab = shard.slab().clone();
    // Reads on a pipe wait for as long as nobody writes.
    let (from, mut to) = std::io::pipe().expect("a pipe");
    let pipe = Arc::new(File::from(std::os::fd::OwnedFd::from(from)));
    block_on(shard.with_reads(pipe, 4, move |mut reads| async move {
        for _ in 0..4 {
            reads.push(0, slab.lease().await, 0, 8).expect("room");
        }
        assert!(futures::poll!(std::pin::pin!(reads.next())).is_pending());
    }));
    // The kernel has them by now, or has yet to be told.
    assert_eq!(shard.slab().free_slots(), 0);
    to.write_all(&[7; 32]).expect("the pipe has a reader");
    let lease = block_on(shard.slab().lease());
    drop(lease);
    drop(to);
    for _ in 0..4 {
        std::mem::forget(block_on(shard.slab().lease()));
    }
}

#[test]
fn a_shard_has_more_streams_over_its_life_than_places_for_files() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_with(directory.path(), &pattern(5, 64));
    let shard = shard(1);
    for _ in 0..200 {
        let slab = shard.slab().clone();
        block_on(
            shard.with_reads(file.clone(), 2, move |mut reads| async move {
                reads.push(0, slab.lease().await, 0, 64).expect("room");
                let done = reads.next().await.expect("under way");
                assert_eq!(done.lease[..64], pattern(5, 64));
            }),
        );
    }
}

#[test]
fn reading_on_into_the_same_slots_sees_every_block_once() {
    const BLOCK: usize = 4096;
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(6, 100 * BLOCK);
    let file = file_with(directory.path(), &bytes);
    let shard = shard(4);
    let slab = shard.slab().clone();
    let seen = block_on(shard.with_reads(file, 4, move |mut reads| async move {
        let mut seen = vec![0; 100];
        for block in 0..4 {
            let lease = slab.lease().await;
            let offset = (block * BLOCK) as u64;
            reads.push(offset, lease, BLOCK, BLOCK).expect("room");
        }
        let mut next = 4;
        loop {
            reads.ended().await;
            let ended = reads.read_on(|offset, brought| {
                let at = offset as usize;
                assert!(*brought.expect("a sound file") == bytes[at..at + BLOCK]);
                seen[at / BLOCK] += 1;
                next += 1;
                (next <= 100).then(|| ((next - 1) * BLOCK) as u64)
            });
            if ended == 0 {
                break seen;
            }
        }
    }));
    assert_eq!(seen, [1; 100]);
    assert_eq!(
        shard.slab().free_slots(),
        4,
        "slots not read into again are back"
    );
}

#[test]
fn streams_and_single_reads_on_one_shard_each_get_their_own_results() {
    const BLOCK: usize = 4096;
    const BLOCKS: usize = 60;
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let contents = [pattern(8, BLOCKS * BLOCK), pattern(9, BLOCKS * BLOCK)];
    let files = [0, 1].map(|which| file_with(directories[which].path(), &contents[which]));
    let shard = shard(20);
    let stream = |which: usize| {
        let (slab, bytes) = (shard.slab().clone(), contents[which].clone());
        shard.with_reads(files[which].clone(), 8, move |mut reads| async move {
            let mut seen = vec![0; BLOCKS];
            for block in 0..8 {
                let lease = slab.lease().await;
                reads.push((block * BLOCK) as u64, lease, 0, BLOCK).unwrap();
            }
            let mut begun = 8;
            let mut look = |offset: u64, brought: std::io::Result<&mut [u8]>| {
                let at = offset as usize;
                assert!(*brought.expect("a sound file") == bytes[at..at + BLOCK]);
                seen[at / BLOCK] += 1;
            };
            loop {
                reads.ended().await;
                // The one stream goes on in its slots, the other takes them and gives them anew.
                let ended = if which == 0 {
                    reads.read_on(|offset, brought| {
                        look(offset, brought);
                        begun += 1;
                        (begun <= BLOCKS).then(|| ((begun - 1) * BLOCK) as u64)
                    })
                } else {
                    let mut ended = 0;
                    while let Some(mut read) = reads.finished() {
                        ended += 1;
                        let brought = read.result.map(|count| &mut read.lease[..count]);
                        look(read.offset, brought);
                        if begun < BLOCKS {
                            let offset = (begun * BLOCK) as u64;
                            reads.push(offset, read.lease, 0, BLOCK).unwrap();
                            begun += 1;
                        }
                    }
                    ended
                };
                if ended == 0 {
                    break seen;
                }
            }
        })
    };
    let single = async {
        for block in 0..BLOCKS {
            let at = block * BLOCK;
            let lease = shard.slab().lease().await;
            let read = shard.read_at(files[0].clone(), at as u64, lease, 0, BLOCK);
            let (lease, result) = read.await;
            assert_eq!(result.expect("a sound file"), BLOCK);
            assert!(lease[..BLOCK] == contents[0][at..at + BLOCK]);
        }
    };
    let (first, second, ()) = block_on(async { futures::join!(stream(0), stream(1), single) });
    assert_eq!((first, second), (vec![1; BLOCKS], vec![1; BLOCKS]));
}

#[test]
fn a_panic_while_looking_at_a_read_loses_no_slot_and_no_shard() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_with(directory.path(), &pattern(7, 64));
    let shard = shard(1);
    let slab = shard.slab().clone();
    let task = shard.with_reads(file.clone(), 1, move |mut reads| async move {
        reads.push(0, slab.lease().await, 0, 64).expect("room");
        reads.ended().await;
        reads.read_on(|_, _| panic!("on purpose"));
    });
    let task = std::panic::AssertUnwindSafe(task);
    assert!(block_on(task.catch_unwind()).is_err());
    let lease = block_on(shard.slab().lease());
    let (_, result) = block_on(shard.read_at(file, 0, lease, 0, 64));
    assert_eq!(result.expect("the shard works on"), 64);
}

#[test]
fn what_looks_at_reads_may_begin_others_on_the_same_shard() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(11, 64 << 10);
    let file = file_with(directory.path(), &bytes);
    let other = file_with(directory.path(), &bytes);
    let shard = shard(8);
    let inner = shard.clone();
    let task = shard.with_reads(file, 4, move |mut reads| async move {
        for block in 0..4 {
            let lease = inner.slab().lease().await;
            reads.push(block << 10, lease, 0, 1 << 10).expect("room");
        }
        let (mut begun, mut looked_at) = (Vec::new(), 0);
        loop {
            reads.ended().await;
            let ended = reads.read_on(|offset, brought| {
                brought.expect("it is read");
                looked_at += 1;
                // Both queues are in use while this runs: the operation has to wait, and be begun.
                let lease = inner.slab().try_lease()?;
                begun.push((
                    offset,
                    Box::pin(inner.read_at(other.clone(), offset, lease, 0, 1 << 10)),
                ));
                let begun = begun.last_mut().map(|(_, read)| read);
                assert!(begun.is_some_and(|read| read.now_or_never().is_none()));
                (looked_at < 64).then_some((looked_at as u64 % 64) << 10)
            });
            if ended == 0 {
                break;
            }
        }
        let mut checked = 0;
        for (offset, read) in begun {
            let (lease, count) = read.await;
            assert_eq!(count.expect("it is read"), 1 << 10);
            let offset = offset as usize;
            assert_eq!(lease[..1 << 10], bytes[offset..][..1 << 10]);
            checked += 1;
        }
        (looked_at, checked)
    });
    let (looked_at, checked) = block_on(task);
    assert!(looked_at >= 4, "{looked_at}");
    assert_eq!(checked, 4, "each free slot was read into");
}
