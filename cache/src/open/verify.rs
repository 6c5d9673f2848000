//! Looking through all of a version that is on this node's disk, at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures::stream::{self, StreamExt};

use super::OpenVersion;
use crate::agent::upkeep::{Looked, look};
use crate::fill::FillError;

/// Chunks looked at side by side.
const AT_A_TIME: usize = 2;

/// How far verifying a version is; may be looked at from anywhere meanwhile.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    bytes: AtomicU64,
}

impl VerifyProgress {
    /// Bytes looked at so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

/// What verifying a version has found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Chunks that were on the disk.
    pub chunks: u32,
    /// Those that were damaged and are right again.
    pub mended: u32,
    /// Those that are still damaged or missing.
    pub lost: u32,
    /// Why the first of these could not be brought.
    pub why: Option<Arc<FillError>>,
}

impl OpenVersion {
    /// Reads everything that is on this node's disk and checks it, mending what is damaged from
    /// peers or the origin: what upkeep does slowly, now. What is not here is left so.
    pub async fn verify(&self, progress: &VerifyProgress) -> VerifyReport {
        let version = &self.version;
        let held: Vec<u32> = (0..version.manifest().chunks())
            .filter(|&chunk| version.store().has(chunk))
            .collect();
        let mut report = VerifyReport::default();
        let mut looks = stream::iter(held)
            .map(|chunk| async move {
                let looked = look(&self.inner.filler, version, chunk).await;
                let len = version.manifest().chunk_len(chunk);
                progress.bytes.fetch_add(len.into(), Relaxed);
                looked
            })
            .buffer_unordered(AT_A_TIME);
        while let Some(looked) = looks.next().await {
            report.chunks += 1;
            match looked {
                Looked::Right => {}
                // Given up since we asked, as a reader met the damage first.
                Looked::Absent | Looked::Unstored => report.lost += 1,
                Looked::Mended => report.mended += 1,
                Looked::Lost(why) => {
                    report.lost += 1;
                    report.why.get_or_insert(why);
                }
            }
        }
        drop(looks);
        version.store().commit().await;
        report
    }
}
