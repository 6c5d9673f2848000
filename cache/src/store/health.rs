//! Whether a disk of the cache is fit to be used.
//!
//! A disk that keeps failing is taken out of service: nothing is read from it or written to it, and
//! chunks come from peers and the origin, through memory. It is tried from time to time, and used
//! again once it has worked several times in a row.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use parking_lot::Mutex;

use crate::metrics::Counters;

/// What a failure counts; each success takes one off.
const FAILURE: u32 = 10;
/// The disk goes out of service at this count: after eight failures in a row, or where more than
/// about one in ten reads and writes fail for long.
const TOO_MANY: u32 = 8 * FAILURE;
/// Trials in a row that have to succeed before it is used again.
const TRIALS: u32 = 3;

/// The health of one disk.
pub(crate) struct Health {
    /// The cache directory on it.
    directory: PathBuf,
    out: AtomicBool,
    state: Mutex<State>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct State {
    count: u32,
    /// Trials that succeeded, while it is out of service.
    trials: u32,
    /// The last failure.
    why: String,
}

/// Whether this is the disk's failure, and not the file's or its fullness.
pub(super) fn is_the_disk_s(error: &io::Error) -> bool {
    let disk_s = [
        libc::EIO,
        libc::EROFS,
        libc::ENXIO,
        libc::ENODEV,
        libc::EREMOTEIO,
        libc::ETIMEDOUT,
        libc::EUCLEAN,
        libc::EBADMSG,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| disk_s.contains(&errno))
}

impl Health {
    pub(crate) fn new(directory: &Path, counters: Arc<Counters>) -> Health {
        Health {
            directory: directory.to_owned(),
            out: AtomicBool::new(false),
            state: Mutex::default(),
            counters,
        }
    }

    /// Whether it is out of service.
    pub(crate) fn is_out(&self) -> bool {
        self.out.load(Acquire)
    }

    /// What is wrong with it, with the remedy, while it is out of service.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.is_out().then(|| {
            format!(
                "this node's cache disk keeps failing and is out of service ({} in {}): data comes \
                 from peers and the origin: look at the disk, and replace it if the kernel's log says so",
                self.state.lock().why,
                self.directory.display()
            )
        })
    }

    /// Takes note of how a read or write ended.
    pub(crate) fn note<T>(&self, action: &'static str, done: &io::Result<T>) {
        match done {
            Ok(_) if self.is_out() => {}
            Ok(_) => {
                let mut state = self.state.lock();
                state.count = state.count.saturating_sub(1);
            }
            Err(error) => self.failed(action, error),
        }
    }

    /// Takes note of a failure.
    pub(crate) fn failed(&self, action: &'static str, error: &io::Error) {
        if !is_the_disk_s(error) {
            return;
        }
        let mut state = self.state.lock();
        state.count = (state.count + FAILURE).min(TOO_MANY);
        state.trials = 0;
        state.why = format!("{action}: {error}");
        if state.count == TOO_MANY && !self.out.swap(true, Release) {
            self.counters.disks_out.add(1);
            tracing::error!(action, directory = %self.directory.display(), %error,
                "the cache's disk keeps failing and is out of service: data comes from peers and the origin");
        }
    }

    /// Takes note of a trial while it is out of service; whether it is used again.
    pub(crate) fn tried(&self, worked: &io::Result<()>) -> bool {
        let mut state = self.state.lock();
        match worked {
            Ok(()) => state.trials += 1,
            Err(_) => state.trials = 0,
        }
        if state.trials < TRIALS || !self.out.swap(false, Release) {
            return false;
        }
        state.count = 0;
        state.trials = 0;
        self.counters.disks_out.sub(1);
        tracing::info!(directory = %self.directory.display(),
            "the cache's disk works again and is used again");
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(errno: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn a_disk_that_keeps_failing_goes_out_of_service_and_comes_back_when_it_works_for_a_while() {
        let health = Health::new(Path::new("/cache"), Arc::default());
        for _ in 0..7 {
            health.note("reading", &failure(libc::EIO));
        }
        assert!(!health.is_out());
        health.note("reading", &failure(libc::EIO));
        let trouble = health.trouble().expect("out of service");
        assert!(
            trouble.contains("in /cache") && trouble.contains("replace"),
            "{trouble}"
        );
        for worked in [Ok(()), Ok(()), failure(libc::EIO), Ok(()), Ok(())] {
            assert!(!health.tried(&worked));
        }
        assert!(health.tried(&Ok(())) && !health.is_out());
        assert_eq!(health.counters.disks_out.get(), 0);
    }

    #[test]
    fn a_failure_now_and_then_and_a_full_disk_are_no_reason() {
        let health = Health::new(Path::new("/cache"), Arc::default());
        for _ in 0..1000 {
            health.note("reading", &failure(libc::EIO));
            (0..12).for_each(|_| health.note("reading", &Ok(())));
            health.note("writing", &failure(libc::ENOSPC));
        }
        assert!(!health.is_out());
    }
}
