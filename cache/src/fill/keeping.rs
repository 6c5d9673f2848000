//! Chunks that have arrived and are on their way to the disk.
//!
//! Whoever waited for one has it already; whoever comes meanwhile finds it here, in memory, so that
//! it is neither waited for nor fetched a second time. It leaves when the disk has it, or has
//! refused it.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
use parking_lot::Mutex;

use super::Filled;
use crate::digest::Digest;

type Key = (Digest, u32);
type Entries = Mutex<HashMap<Key, (Arc<Filled>, Kept)>>;

/// Ends when a chunk is on the disk, or will not be.
#[derive(Clone)]
pub(super) struct Kept(Shared<oneshot::Receiver<()>>);

impl Kept {
    pub(super) async fn wait(self) {
        // Nothing is ever sent: the end of the sender is the message.
        let _ = self.0.await;
    }
}

/// All that are being written.
#[derive(Default)]
pub(super) struct Keeping(Arc<Entries>);

/// Held by whoever writes a chunk; dropped when that is done.
pub(super) struct Writing {
    entries: Arc<Entries>,
    key: Key,
    _done: oneshot::Sender<()>,
}

impl Keeping {
    /// From now on the chunk is found here, until what this gives is dropped. `None` if somebody
    /// writes it already.
    pub(super) fn begin(&self, key: Key, filled: &Arc<Filled>) -> Option<Writing> {
        let mut entries = self.0.lock();
        if entries.contains_key(&key) {
            return None;
        }
        let (done, kept) = oneshot::channel();
        entries.insert(key, (Arc::clone(filled), Kept(kept.shared())));
        Some(Writing {
            entries: Arc::clone(&self.0),
            key,
            _done: done,
        })
    }

    pub(super) fn get(&self, key: &Key) -> Option<(Arc<Filled>, Kept)> {
        self.0.lock().get(key).cloned()
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.0.lock().contains_key(key)
    }

    /// Waits for all that are being written now.
    pub(super) async fn settle(&self) {
        let all: Vec<Kept> = {
            let entries = self.0.lock();
            entries.values().map(|(_, kept)| kept.clone()).collect()
        };
        for kept in all {
            kept.wait().await;
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // The slot goes back to its slab, which wakes who waits for one: not under the lock.
        let written = self.entries.lock().remove(&self.key);
        drop(written);
    }
}

#[cfg(test)]
mod tests {
    use super::super::recent::tests::filled;
    use super::*;
    use trackbed_rdma::slab::Slab;

    #[test]
    fn a_chunk_is_found_until_it_is_written_and_those_who_wait_learn_of_it() {
        let slab = Slab::new("test", 4096, 2).expect("small");
        let (keeping, key) = (Keeping::default(), (Digest::of(b"v"), 3));
        let writing = keeping
            .begin(key, &filled(&slab))
            .expect("the first to write it");
        assert!(keeping.begin(key, &filled(&slab)).is_none());
        let (_, kept) = keeping.get(&key).expect("there");
        let mut waiting = Box::pin(kept.wait());
        let mut all = Box::pin(keeping.settle());
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(all.as_mut().now_or_never().is_none());
        drop(writing);
        assert!(!keeping.has(&key) && slab.free_slots() == 2);
        assert!(waiting.as_mut().now_or_never().is_some());
        assert!(all.as_mut().now_or_never().is_some());
    }
}
