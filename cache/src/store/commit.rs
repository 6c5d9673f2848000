//! Makes what was written survive a restart, many chunks at a time.
//!
//! The order is what the whole store rests on: sync the data, the names of new files and the seals,
//! then write and sync one copy of the presence bits, then the other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::AcqRel;
use std::time::Duration;

use futures::stream::{self, StreamExt};

use super::presence::write_pages;
use super::version::VersionStore;

/// How long changes gather before they are committed: what a crash may make us fetch again.
const GATHER: Duration = Duration::from_millis(200);
/// Files synced at a time.
const SYNCS: usize = 16;

/// Something to be made durable.
#[derive(Debug)]
pub(super) enum Change {
    /// A chunk was written to a file. The very file, as another descriptor might not be told of
    /// an error in writing it back.
    Held { chunk: u32, file: Arc<File> },
    /// A chunk turned out damaged.
    Forgotten { chunk: u32 },
}

impl VersionStore {
    /// Notes a change and sees to it that it is committed soon.
    pub(super) fn note(self: &Arc<Self>, change: Change) {
        self.changes.lock().push(change);
        if !self.committing.swap(true, AcqRel) {
            let version = Arc::clone(self);
            self.parts.shard.spawn(move || async move {
                futures_timer::Delay::new(GATHER).await;
                // First, so that a change noted from now on starts the next commit.
                version
                    .committing
                    .store(false, std::sync::atomic::Ordering::Release);
                version.commit().await;
            });
        }
    }

    /// Commits all that was noted so far. What can't be made durable is forgotten.
    pub(crate) async fn commit(self: &Arc<Self>) {
        let mut durable = self.durable.lock().await;
        let changes = std::mem::take(&mut *self.changes.lock());
        if changes.is_empty() {
            return;
        }
        let failed = self.sync_data(&changes).await;
        let names = self.sync_names().await;
        let seals = match self
            .parts
            .device
            .fdatasync(Arc::clone(self.seals.file()))
            .await
        {
            Ok(()) => true,
            Err(error) => {
                self.log("syncing the seals", &error);
                false
            }
        };
        for change in changes {
            match change {
                Change::Held { chunk, .. } if seals && names && !failed.contains(&chunk) => {
                    durable.mark(chunk, self.manifest().chunk_len(chunk), true);
                }
                Change::Held { chunk, .. } => {
                    durable.mark(chunk, self.manifest().chunk_len(chunk), false);
                    self.forget(chunk);
                }
                Change::Forgotten { chunk } => {
                    durable.mark(chunk, self.manifest().chunk_len(chunk), false);
                }
            }
        }
        let pages = durable.changed();
        for copy in &self.copies {
            let device = &self.parts.device;
            let written = match write_pages(&**device, copy, &pages) {
                Ok(()) => device.fdatasync(Arc::clone(copy)).await,
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                // The other copy keeps what it says; the pages are written again with the next
                // change.
                self.log("writing the presence bits", &error);
                durable.not_written(&pages);
                return;
            }
        }
    }

    /// Syncs the files of the written chunks; the chunks for which that failed.
    async fn sync_data(&self, changes: &[Change]) -> Vec<u32> {
        let mut files = BTreeMap::new();
        for change in changes {
            if let Change::Held { chunk, file } = change {
                let new = || (Arc::clone(file), Vec::new());
                files
                    .entry(file.as_raw_fd())
                    .or_insert_with(new)
                    .1
                    .push(*chunk);
            }
        }
        let mut failed = Vec::new();
        let mut syncs = stream::iter(files.into_values())
            .map(|(file, chunks): (Arc<File>, Vec<u32>)| async move {
                (self.parts.device.fdatasync(file).await, chunks)
            })
            .buffer_unordered(SYNCS);
        while let Some((synced, chunks)) = syncs.next().await {
            if let Err(error) = synced {
                self.log("syncing a cache file", &error);
                failed.extend(chunks);
            }
        }
        failed
    }

    /// Syncs the directories in which files were made; false if that failed.
    async fn sync_names(self: &Arc<Self>) -> bool {
        if !self.files.has_new_names() {
            return true;
        }
        let version = Arc::clone(self);
        let synced = self
            .parts
            .workers
            .run(move || version.files.sync_names(version.manifest()));
        match synced.await {
            Ok(()) => true,
            Err(error) => {
                self.log("syncing a directory of the cache", &error);
                false
            }
        }
    }

    fn log(&self, action: &'static str, error: &io::Error) {
        self.parts.health.failed(action, error);
        self.parts.counters.disk_errors.add(1);
        tracing::warn!(version = %self.manifest().digest().short(), action, %error,
            "the cache disk failed: the chunks concerned are fetched again after a restart");
    }
}
