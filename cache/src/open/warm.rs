//! Bringing a version, or a part of it, to this node's disk before anyone reads it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};

use super::OpenVersion;
use crate::digest::Digest;
use crate::fill::{FillError, For};
use crate::manifest::{EntryIndex, EntryKind, Manifest, shown};

/// Chunks brought at a time: some of them on their way here, the others to the disk.
const AT_A_TIME: usize = 12;

/// Which part of a version to bring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    #[default]
    All,
    /// A share of its chunks in thousandths, from the beginning of the path order.
    Permille(u32),
    /// The files at these paths, and all files below them.
    Paths(Vec<Vec<u8>>),
}

/// Why a version, or the part of it that was asked for, could not be brought here in full.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// Chunks that nobody could deliver.
    #[error("{failed} of {chunks} chunks could not be brought here; the first: {source}")]
    Fills {
        /// How many failed.
        failed: u32,
        /// How many were missing at the beginning.
        chunks: u32,
        /// Why the first one failed.
        source: Arc<FillError>,
    },
    /// They came, and the disk did not take them.
    #[error(
        "{chunks} chunks were brought here and could not be kept: the cache is full or its disk \
         fails (the node's log says which): evict another dataset, or give the cache more space"
    )]
    NotKept {
        /// How many.
        chunks: u32,
    },
    /// No such path.
    #[error(
        "the dataset has no {path:?}: paths are relative to its root, without a slash in front"
    )]
    NoSuchPath {
        /// The path.
        path: String,
    },
}

/// How far warming is; may be looked at from anywhere meanwhile.
#[derive(Debug, Default)]
pub struct WarmProgress {
    bytes: AtomicU64,
    wanted: AtomicU64,
}

impl WarmProgress {
    /// Bytes brought so far, and bytes that were missing at the beginning.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes.load(Relaxed), self.wanted.load(Relaxed))
    }
}

/// What warming did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warmed {
    /// Chunks brought here.
    pub chunks: u32,
    /// Their bytes.
    pub bytes: u64,
}

impl OpenVersion {
    /// Brings all chunks that are not here yet to this node's disk.
    pub async fn warm(&self) -> Result<Warmed, WarmError> {
        self.warm_part(&Part::All, &WarmProgress::default()).await
    }

    /// Brings the chunks of a part that are not here yet to this node's disk.
    #[tracing::instrument(
        target = "trackbed_traces",
        name = "dataset.warm",
        skip_all,
        fields(version = %self.manifest().digest()),
        err
    )]
    pub async fn warm_part(
        &self,
        part: &Part,
        progress: &WarmProgress,
    ) -> Result<Warmed, WarmError> {
        let (store, manifest) = (self.version.store(), self.manifest());
        let mut missing: Vec<u32> = chunks_of(manifest, part)?
            .into_iter()
            .filter(|&chunk| !store.has(chunk))
            .collect();
        if self.inner.filler.membership.now().len() > 1 {
            let from = beginning(&self.inner.filler.node, missing.len());
            missing.rotate_left(from);
        }
        let len = |&chunk: &u32| u64::from(manifest.chunk_len(chunk));
        progress
            .wanted
            .store(missing.iter().map(len).sum(), Relaxed);
        let chunks = missing.len() as u32;
        let slots = self.inner.filler.slab.slots();
        let mut fills = stream::iter(missing)
            .map(|chunk| async move {
                let filled = self
                    .inner
                    .filler
                    .fill(&self.version, chunk, For::Store)
                    .await;
                (chunk, filled)
            })
            .buffer_unordered(AT_A_TIME.min(slots / 2).max(1));
        let (mut warmed, mut failed, mut not_kept, mut first) = (Warmed::default(), 0, 0, None);
        while let Some((chunk, result)) = fills.next().await {
            match result {
                Ok(filled) => {
                    warmed.chunks += 1;
                    warmed.bytes += filled.len() as u64;
                    progress.bytes.store(warmed.bytes, Relaxed);
                    not_kept += u32::from(!store.has(chunk));
                }
                Err(error) => {
                    failed += 1;
                    first.get_or_insert(error);
                }
            }
        }
        match first {
            Some(source) => Err(WarmError::Fills {
                failed,
                chunks,
                source,
            }),
            None if not_kept > 0 => Err(WarmError::NotKept { chunks: not_kept }),
            None => Ok(warmed),
        }
    }
}

/// Where a node begins among so many chunks. Nodes that warm a version together begin in different
/// places: they ask different owners at a time, and each owner is asked all the time.
fn beginning(node: &str, chunks: usize) -> usize {
    let mut drawn = [0; 8];
    drawn.copy_from_slice(&Digest::of(node.as_bytes()).as_bytes()[..8]);
    // Below `chunks`, so it fits.
    (u64::from_le_bytes(drawn) % chunks.max(1) as u64) as usize
}

/// The chunks of a part, in order.
fn chunks_of(manifest: &Manifest, part: &Part) -> Result<BTreeSet<u32>, WarmError> {
    match part {
        Part::All => Ok((0..manifest.chunks()).collect()),
        Part::Permille(share) => {
            let share = u64::from((*share).min(1000));
            let chunks = (u64::from(manifest.chunks()) * share).div_ceil(1000);
            // At most all of them, whose number is a u32.
            Ok((0..chunks as u32).collect())
        }
        Part::Paths(paths) => {
            let mut chunks = BTreeSet::new();
            for path in paths {
                let entry = manifest.find(path).ok_or_else(|| WarmError::NoSuchPath {
                    path: shown(path).into_owned(),
                })?;
                add_below(manifest, entry, &mut chunks);
            }
            Ok(chunks)
        }
    }
}

fn add_below(manifest: &Manifest, entry: EntryIndex, chunks: &mut BTreeSet<u32>) {
    let mut left = vec![entry];
    while let Some(at) = left.pop() {
        let Some(entry) = manifest.entry(at) else {
            continue;
        };
        match entry.kind {
            EntryKind::Directory => left.extend(manifest.children(at)),
            EntryKind::File { size } => {
                let first = manifest.locate(at, 0).map(|place| place.chunk);
                let last = manifest.locate(at, size.saturating_sub(1));
                if let (Some(first), Some(last)) = (first, last) {
                    chunks.extend(first..=last.chunk);
                }
            }
            EntryKind::Symlink { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Place;
    use crate::origin::{ListedEntry, ListedKind, ObjectIdentity, Timestamp};

    fn manifest() -> Manifest {
        let sizes = [
            ("a/1", 100),
            ("a/2", 200),
            ("big/x", 9 << 20),
            ("big/y", 4 << 20),
            ("e", 0),
        ];
        let listed = sizes.map(|(path, size)| ListedEntry {
            path: path.into(),
            kind: ListedKind::File {
                size,
                identity: ObjectIdentity::Modified(Timestamp::default()),
            },
            mode: 0o644,
            mtime: Timestamp::default(),
        });
        Manifest::build(Place::ANY, Vec::from(listed)).expect("a manifest")
    }

    fn of(part: Part) -> Vec<u32> {
        let chunks = chunks_of(&manifest(), &part).expect("known paths");
        chunks.into_iter().collect()
    }

    #[test]
    fn nodes_begin_all_over_the_version() {
        let begin = |node: usize| beginning(&format!("node-{node}"), 100);
        let places: BTreeSet<usize> = (0..100).map(begin).collect();
        assert!(places.len() > 40 && places.iter().all(|&place| place < 100));
        assert_eq!(beginning("node", 0), 0);
    }

    #[test]
    fn a_part_is_the_chunks_that_hold_it() {
        assert_eq!(of(Part::All), [0, 1, 2, 3, 4]);
        assert_eq!(of(Part::Permille(1)), [0]);
        assert_eq!(of(Part::Permille(400)), [0, 1]);
        assert_eq!(of(Part::Permille(5000)), [0, 1, 2, 3, 4]);
        let paths = |paths: &[&str]| Part::Paths(paths.iter().map(|&p| p.into()).collect());
        assert_eq!(of(paths(&["a/2", "big/y"])), [0, 4]);
        assert_eq!(of(paths(&["big"])), [1, 2, 3, 4]);
        assert_eq!(of(paths(&["e"])), [0; 0]);
        assert_eq!(of(paths(&[""])), [0, 1, 2, 3, 4]);
        let error = chunks_of(&manifest(), &paths(&["/a"])).expect_err("no such path");
        assert!(error.to_string().contains("/a"), "{error}");
    }
}
