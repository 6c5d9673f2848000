//! Ending a connection from another thread than the one that uses its queue pair.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

use super::core::modify;
use crate::sys;
use crate::verbs::context::Context;
use crate::verbs::error::VerbsError;

/// Takes a queue pair to the error state from any thread: all that is outstanding on it comes back flushed,
/// which wakes whoever sleeps in [`CompletionQueue::sleep_until_notified`](crate::verbs::CompletionQueue::sleep_until_notified).
/// Does nothing once the queue pair is dropped, and does not keep it.
#[derive(Clone)]
pub struct Breaker {
    breakable: Arc<Breakable>,
}

/// The queue pair as its breakers know it.
struct Breakable {
    /// `None` once the queue pair is to be destroyed, which waits for a breaker at work.
    raw: Mutex<Option<RawQueuePair>>,
    context: Arc<Context>,
    object: String,
}

struct RawQueuePair(NonNull<sys::ibv_qp>);

// SAFETY: libibverbs lets any thread modify a queue pair, whatever others do with it (ibv_modify_qp is thread
// safe as all of the interface is); nothing else is done with this pointer.
unsafe impl Send for RawQueuePair {}

impl Breaker {
    /// The queue pair must be told by [`Breaker::forget`] before it is destroyed.
    pub(super) fn new(
        raw: NonNull<sys::ibv_qp>,
        context: &Arc<Context>,
        object: String,
    ) -> Breaker {
        Breaker {
            breakable: Arc::new(Breakable {
                raw: Mutex::new(Some(RawQueuePair(raw))),
                context: Arc::clone(context),
                object,
            }),
        }
    }

    /// Takes the queue pair to the error state; whether there still is one. Receives that are posted later
    /// come back flushed too, on soft-RoCE some only when this is called again.
    pub fn break_off(&self) -> Result<bool, VerbsError> {
        let Breakable {
            raw,
            context,
            object,
        } = &*self.breakable;
        let raw = raw.lock();
        let Some(RawQueuePair(queue_pair)) = &*raw else {
            return Ok(false);
        };
        let attributes = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_ERR,
            ..Default::default()
        };
        // SAFETY: the queue pair is not destroyed before it is taken out of the lock that is held here.
        unsafe { modify(*queue_pair, context, attributes, 0, (object, "ERR")) }?;
        Ok(true)
    }

    /// The queue pair is about to be destroyed.
    pub(super) fn forget(&self) {
        *self.breakable.raw.lock() = None;
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("queue_pair", &self.breakable.object)
            .finish_non_exhaustive()
    }
}
