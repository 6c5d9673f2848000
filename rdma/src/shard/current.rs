//! What the calling thread is: a shard's, or not.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use async_executor::LocalExecutor;
use futures::FutureExt;

use super::ring::Ring;
use super::transfer::Transfer;

/// What a shard's thread knows of itself.
pub(super) struct Current {
    pub(super) id: u64,
    pub(super) ring: Rc<Ring>,
    pub(super) executor: Rc<LocalExecutor<'static>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

impl Ring {
    /// The ring of the calling thread, if that is a shard's.
    pub(crate) fn current() -> Option<Rc<Ring>> {
        CURRENT.with_borrow(|current| current.as_ref().map(|current| Rc::clone(&current.ring)))
    }
}

/// Says what the calling thread is, or that it no longer is.
pub(super) fn set_current(current: Option<Current>) {
    CURRENT.set(current);
}

/// Whether the calling thread runs the ring of that number.
pub(super) fn is_current(id: u64) -> bool {
    CURRENT.with_borrow(|current| current.as_ref().is_some_and(|current| current.id == id))
}

/// Begins the transfer if the calling thread runs that ring, else gives it back.
pub(super) fn begin_here(id: u64, transfer: Transfer) -> Option<Transfer> {
    let ring = CURRENT.with_borrow(|current| {
        current
            .as_ref()
            .filter(|current| current.id == id)
            .map(|current| Rc::clone(&current.ring))
    });
    match ring {
        Some(ring) => {
            ring.begin(transfer);
            None
        }
        None => Some(transfer),
    }
}

/// Runs a task on the calling thread's shard. A panic inside ends that task alone and is logged.
/// On a thread that is no shard (any more) the task is dropped, as those running are when a shard
/// ends.
pub(crate) fn spawn_local(task: impl Future<Output = ()> + 'static) {
    let executor =
        CURRENT.with_borrow(|current| current.as_ref().map(|current| Rc::clone(&current.executor)));
    if let Some(executor) = executor {
        let task = AssertUnwindSafe(task).catch_unwind().map(|ended| {
            if let Err(panic) = ended {
                tracing::error!(panic = panic_text(&*panic), "a task on a shard panicked");
            }
        });
        executor.spawn(task).detach();
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "(not a text)"
    }
}
