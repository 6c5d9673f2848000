//! Threads for what would hold up a shard: hashing whole chunks, and file-system calls that have
//! no asynchronous form.

use std::io;
use std::thread;

use futures::channel::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads that run closures in order of arrival. Ends when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Workers {
    jobs: crossbeam_channel::Sender<Job>,
}

impl Workers {
    /// Starts `threads` threads called `name`.
    pub(crate) fn start(name: &str, threads: usize) -> io::Result<Workers> {
        let (jobs, queue) = crossbeam_channel::unbounded::<Job>();
        for _ in 0..threads.max(1) {
            let queue = queue.clone();
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || {
                    while let Ok(job) = queue.recv() {
                        job();
                    }
                })?;
        }
        Ok(Workers { jobs })
    }

    /// Runs `work` on one of the threads. It runs even if the future is dropped; a panic inside
    /// continues in the caller.
    pub(crate) async fn run<T, F>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // Whoever asked may have left.
            let _ = done.send(outcome);
        });
        self.jobs
            .send(job)
            .expect("the threads live as long as a handle does");
        match result.await.expect("every job sends its outcome") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;

    #[test]
    fn a_panic_reaches_whoever_asked_and_the_thread_goes_on() {
        let workers = Workers::start("test", 1).expect("a thread");
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            block_on(workers.run(|| panic!("on purpose")))
        }));
        assert!(panicked.is_err());
        assert_eq!(block_on(workers.run(|| 6 * 7)), 42);
    }
}
