//! A reader of a mount, as training is one: epoch after epoch, each read compared with what it has to give.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::iter::Sum;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::tree;

/// What files hold, by their paths.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// The files below a folder.
pub fn files(folder: &Path) -> io::Result<Files> {
    let entries = tree::read(folder)?.into_iter();
    let files = entries.filter_map(|(path, entry)| match entry {
        tree::Entry::File(_, bytes) => Some((path, bytes)),
        _ => None,
    });
    Ok(files.collect())
}

/// What readers have met.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Reads in all.
    pub reads: u64,
    /// Those that ended with an error.
    pub failed: u64,
    /// Those that gave other bytes.
    pub wrong: u64,
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Tally>>(tallies: I) -> Tally {
        tallies.fold(Tally::default(), |a, b| Tally {
            reads: a.reads + b.reads,
            failed: a.failed + b.failed,
            wrong: a.wrong + b.wrong,
        })
    }
}

#[derive(Default)]
struct Counts {
    reads: AtomicU64,
    failed: AtomicU64,
    wrong: AtomicU64,
    ended: AtomicBool,
}

impl Counts {
    fn count(&self, path: &Path, found: io::Result<bool>) {
        self.reads.fetch_add(1, Relaxed);
        let (what, before) = match found {
            Ok(true) => return,
            Ok(false) => ("wrong bytes".to_owned(), self.wrong.fetch_add(1, Relaxed)),
            Err(error) => (error.to_string(), self.failed.fetch_add(1, Relaxed)),
        };
        // One of each says what is wrong; there may be thousands.
        if before == 0 {
            eprintln!("{}: {what}", path.display());
        }
    }
}

/// A thread that reads on and on; dropping it does not wait for it.
pub struct Reader {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Reads all files in another order each time, and beside that the largest, which stays open. The kernel
    /// keeps nothing of it in memory.
    pub fn start(mount: PathBuf, files: Arc<Files>, seed: u64) -> Reader {
        let counts = Arc::new(Counts::default());
        let counting = counts.clone();
        let thread = thread::spawn(move || read_on(&mount, &files, seed, &counting));
        Reader {
            counts,
            thread: Some(thread),
        }
    }

    /// Reads so far.
    pub fn reads(&self) -> u64 {
        self.counts.reads.load(Relaxed)
    }

    /// Ends it, and gives what it has met.
    ///
    /// # Panics
    ///
    /// If it could not begin.
    pub fn end(mut self) -> Tally {
        self.counts.ended.store(true, Relaxed);
        let thread = self.thread.take().expect("it is ended once");
        thread.join().expect("it has begun");
        Tally {
            reads: self.reads(),
            failed: self.counts.failed.load(Relaxed),
            wrong: self.counts.wrong.load(Relaxed),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.counts.ended.store(true, Relaxed);
    }
}

fn read_on(mount: &Path, files: &Files, mut dice: u64, counts: &Counts) {
    let largest = files.iter().max_by_key(|(_, bytes)| bytes.len());
    let (open, whole) = largest.expect("there are files");
    let kept = File::open(mount.join(open)).expect("opens");
    let mut order: Vec<_> = files.iter().collect();
    loop {
        for at in (1..order.len()).rev() {
            order.swap(at, random(&mut dice, at + 1));
        }
        for &(path, bytes) in &order {
            if counts.ended.load(Relaxed) {
                return;
            }
            counts.count(path, reads_as(&mount.join(path), bytes));
            let from = random(&mut dice, whole.len());
            let some = &whole[from..whole.len().min(from + (64 << 10))];
            counts.count(open, holds(&kept, from as u64, some));
        }
    }
}

/// Numbers that look random, below a bound; the dice begin with anything but 0.
fn random(dice: &mut u64, bound: usize) -> usize {
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    *dice ^= *dice << 17;
    (*dice % bound as u64) as usize
}

fn forget(file: &File) -> io::Result<()> {
    Ok(posix_fadvise(
        file,
        0,
        0,
        PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )?)
}

fn reads_as(path: &Path, wanted: &[u8]) -> io::Result<bool> {
    let mut file = File::open(path)?;
    forget(&file)?;
    let mut found = Vec::new();
    file.read_to_end(&mut found)?;
    Ok(found == wanted)
}

fn holds(file: &File, from: u64, wanted: &[u8]) -> io::Result<bool> {
    forget(file)?;
    let mut found = vec![0; wanted.len()];
    file.read_exact_at(&mut found, from)?;
    Ok(found == wanted)
}
