//! The two queues that this process shares with the kernel, each in one hand at a time.
//!
//! They lie outside of what the ring otherwise keeps, so that who looks through many results can
//! hold both meanwhile, and yet let others begin operations: theirs wait in the backlog.

use std::cell::{Cell, RefCell, RefMut};
use std::ops::{Deref, DerefMut};

use io_uring::{CompletionQueue, IoUring, SubmissionQueue, cqueue};

/// A ring of the kernel's and who has its queues.
pub(super) struct Queues {
    uring: IoUring,
    submission: RefCell<()>,
    completion: RefCell<()>,
    /// A completion taken from the queue by a stream that it does not belong to. Before all others.
    pub(super) set_aside: Cell<Option<cqueue::Entry>>,
}

/// A queue while it is in the caller's hand. What was done to it is for the kernel to see once it is
/// dropped.
pub(in crate::shard) struct InHand<'r, Q> {
    // Goes first: its drop writes to the ring, and must be over when others may take the queue.
    queue: Q,
    _only: RefMut<'r, ()>,
}

impl<Q> Deref for InHand<'_, Q> {
    type Target = Q;

    #[inline]
    fn deref(&self) -> &Q {
        &self.queue
    }
}

impl<Q> DerefMut for InHand<'_, Q> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Q {
        &mut self.queue
    }
}

impl Queues {
    pub(super) fn new(uring: IoUring) -> Queues {
        Queues {
            uring,
            submission: RefCell::new(()),
            completion: RefCell::new(()),
            set_aside: Cell::new(None),
        }
    }

    /// The ring, for what does not touch its queues: registering, and entering the kernel.
    pub(super) fn uring(&self) -> &IoUring {
        &self.uring
    }

    /// The submission queue, unless it is in somebody's hand.
    #[inline]
    pub(super) fn submission(&self) -> Option<InHand<'_, SubmissionQueue<'_>>> {
        let only = self.submission.try_borrow_mut().ok()?;
        // SAFETY: there is no other one: this is the only place that makes them, the borrow that each
        // is kept with excludes a second, and the ring is used by one thread (it is not Sync).
        let queue = unsafe { self.uring.submission_shared() };
        Some(InHand { queue, _only: only })
    }

    /// The completion queue, unless it is in somebody's hand.
    #[inline]
    pub(super) fn completion(&self) -> Option<InHand<'_, CompletionQueue<'_>>> {
        let only = self.completion.try_borrow_mut().ok()?;
        // SAFETY: as above.
        let queue = unsafe { self.uring.completion_shared() };
        Some(InHand { queue, _only: only })
    }

    /// Whether a completion waits that was set aside.
    #[inline]
    pub(super) fn has_set_aside(&self) -> bool {
        let entry = self.set_aside.take();
        let any = entry.is_some();
        self.set_aside.set(entry);
        any
    }
}
