//! Takes a chunk from another version of the same dataset on this node's disks, if that has the same.
//!
//! A dataset that grows by a file is listed anew as another version. What it has in common with the one
//! before has the same owners, and they find it here: the origin gives what is new.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use super::from_peer::check;
use super::{Filled, Filler};
use crate::digest::Digest;
use crate::open::Version;

/// How long it is believed which versions a version has beside it.
const BELIEVED: Duration = Duration::from_secs(10);

/// Knows the versions of a node.
pub(crate) trait Siblings: Send + Sync {
    /// The other versions of the datasets that this is a version of, as far as something of them is on this
    /// node's disks. Those that are not used otherwise may be given up at any time.
    fn of(&self, version: Digest) -> BoxFuture<'_, Vec<Weak<Version>>>;
}

/// The versions beside one, as they were last found.
#[derive(Default)]
pub(crate) struct Known(futures::lock::Mutex<Option<(Instant, Vec<Weak<Version>>)>>);

impl Known {
    async fn now(&self, version: Digest, siblings: &dyn Siblings) -> Vec<Arc<Version>> {
        let mut known = self.0.lock().await;
        let found = match known.take() {
            Some((at, found)) if at.elapsed() < BELIEVED => (at, found),
            _ => (Instant::now(), siblings.of(version).await),
        };
        let (_, found) = known.insert(found);
        found.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Filler {
    /// From now on chunks are also taken from these. A second call is ignored.
    pub(crate) fn set_siblings(&self, siblings: Box<dyn Siblings>) {
        let _ = self.siblings.set(siblings);
    }

    /// The chunk, checked and with its seal, if another version on this node has it.
    pub(super) async fn take_from_sibling(
        &self,
        version: &Arc<Version>,
        chunk: u32,
    ) -> Option<Filled> {
        let siblings = self.siblings.get()?;
        let known = version.siblings().now(version.digest(), &**siblings);
        for sibling in known.await {
            let Some(there) = version.manifest().same_chunk(chunk, sibling.manifest()) else {
                continue;
            };
            if sibling.store().has(there)
                && let Some(filled) = self.copied(&sibling, there).await
            {
                self.counters.sibling_bytes.add(filled.len() as u64);
                return Some(filled);
            }
        }
        None
    }

    /// A chunk as a version has it on the disk, if it is what its seal says: it becomes another version's.
    async fn copied(&self, version: &Arc<Version>, chunk: u32) -> Option<Filled> {
        let len = version.manifest().chunk_len(chunk);
        let lease = self.slab.lease().await;
        let (lease, read) = version.store().read_whole(chunk, lease).await;
        read.ok()?;
        let checked = self.workers.run(move || {
            let seal = check(&lease, len, len);
            (lease, seal)
        });
        let (lease, seal) = checked.await;
        Some(Filled::new(lease, Arc::new(seal.ok()?)))
    }
}
