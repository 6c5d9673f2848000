//! Threads that finish reads which had to wait.
//!
//! The thread that takes a read from the kernel also starts it, which for cached data is all but
//! the wait for the disk. When the bytes arrive, one of these threads checks them and answers; so
//! any number of reads can wait at a time, and a slow one never keeps `ls` waiting.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::thread;

use async_task::Runnable;
use crossbeam_channel::Sender;
use futures::FutureExt;

/// A handle to the threads, which end when the last handle and the last read are gone.
#[derive(Clone, Debug)]
pub(crate) struct Readers {
    woken: Sender<Runnable>,
}

impl Readers {
    /// Starts this many threads.
    pub(crate) fn start(threads: usize) -> io::Result<Readers> {
        // Bounded by the kernel: it has a limited number of requests under way for a mount.
        let (woken, wakes) = crossbeam_channel::unbounded::<Runnable>();
        for number in 0..threads {
            let wakes = wakes.clone();
            thread::Builder::new()
                .name(format!("trackbed-read-{number}"))
                .spawn(move || {
                    for read in wakes {
                        read.run();
                    }
                })?;
        }
        Ok(Readers { woken })
    }

    /// Runs `read` on the calling thread up to its first wait, and from then on on one of these
    /// threads. A panic in it ends only this read.
    pub(crate) fn run(&self, read: impl Future<Output = ()> + Send + 'static) {
        let woken = self.woken.clone();
        let guarded = async move {
            if AssertUnwindSafe(read).catch_unwind().await.is_err() {
                tracing::error!("a read panicked and was answered with an I/O error");
            }
        };
        let (runnable, task) = async_task::spawn(guarded, move |runnable| {
            // Fails only when every thread is gone; the read is then dropped, which answers it
            // with an error.
            drop(woken.send(runnable));
        });
        task.detach();
        runnable.run();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::oneshot;

    #[test]
    fn a_read_that_waits_is_finished_and_one_that_panics_hurts_no_other() {
        let readers = Readers::start(1).expect("threads");
        let (go, wait) = oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        readers.run(async { panic!("on purpose") });
        readers.run(async move {
            wait.await.expect("still there");
            tell.send(thread::current().name().map(str::to_owned))
                .expect("listening");
        });
        go.send(()).expect("waiting");
        assert_eq!(
            told.recv().expect("answered").as_deref(),
            Some("trackbed-read-0")
        );
    }
}
