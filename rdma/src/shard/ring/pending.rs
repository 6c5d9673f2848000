//! The future of an operation.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::{Operation, Ring};
use crate::shard::ops::Held;
use crate::shard::table::Key;

/// An operation under way. Dropped early, it is cancelled, and what it owns is kept until the
/// kernel says that it is done.
pub(in crate::shard) struct Pending {
    pub(super) ring: Rc<Ring>,
    pub(super) key: Option<Key>,
}

impl Future for Pending {
    type Output = (Held, i32);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<(Held, i32)> {
        let key = self.key.expect("a finished operation is not polled again");
        let mut state = self.ring.state.borrow_mut();
        match state
            .operations
            .get_mut(key)
            .expect("a waiting operation is in the table")
        {
            Operation::Waiting { waker, .. } => {
                if !waker
                    .as_ref()
                    .is_some_and(|waker| waker.will_wake(context.waker()))
                {
                    *waker = Some(context.waker().clone());
                }
                return Poll::Pending;
            }
            Operation::Finished { .. } => {}
            _ => unreachable!("only its own drop makes a pending operation anything else"),
        }
        let operation = state.operations.remove(key);
        drop(state);
        self.key = None;
        match operation {
            Some(Operation::Finished { held, result }) => Poll::Ready((held, result)),
            _ => unreachable!("matched above"),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.ring.abandon(key);
        }
    }
}
