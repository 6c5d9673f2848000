//! The tokio runtime that requests to origins run on.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Threads for the requests of all origins: TLS and copying; waiting costs none.
const THREADS: usize = 2;

/// A runtime for the requests of all origins of a process that are asked by HTTP. May be dropped on any thread,
/// another runtime's included; requests under way then end with an error.
#[derive(Debug)]
pub struct RequestRuntime {
    /// `None` only while being dropped.
    runtime: Option<Runtime>,
}

impl RequestRuntime {
    /// Starts the threads.
    pub fn start() -> io::Result<RequestRuntime> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("origin")
            .enable_all()
            .build()?;
        Ok(RequestRuntime {
            runtime: Some(runtime),
        })
    }

    /// Runs `task`, and ends it when the returned handle is dropped.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<Task<T>> {
        Some(Task(self.runtime.as_ref()?.spawn(task)))
    }
}

impl Drop for RequestRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping it would wait for its threads, which an asynchronous caller must not.
            runtime.shutdown_background();
        }
    }
}

/// A task that ends with its handle.
pub(super) struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Makes ring the process's TLS provider unless another was chosen already.
pub(super) fn install_tls_provider() {
    // An error means that one is installed, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
