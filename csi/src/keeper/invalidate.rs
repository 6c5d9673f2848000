//! Drops the kernel's pages of chunks that were taken back.
//!
//! On a thread of its own: the kernel waits for reads of these pages that are under way, and those
//! may wait for the agent, whose word is what brought us here.

use std::io;
use std::thread;

use crossbeam_channel::Sender;
use fuser::{INodeNo, Notifier};
use trackbed_cache::manifest::Manifest;

/// A file's pages to be dropped, in one mount.
struct Pages {
    notifier: Notifier,
    inode: INodeNo,
    offset: i64,
    len: i64,
}

/// A handle to the thread, which ends with the last handle.
#[derive(Clone)]
pub(super) struct Invalidator(Sender<Pages>);

impl Invalidator {
    pub(super) fn start() -> io::Result<Invalidator> {
        let (sender, pages) = crossbeam_channel::unbounded::<Pages>();
        thread::Builder::new()
            .name("trackbed-drop".to_owned())
            .spawn(move || {
                for Pages {
                    notifier,
                    inode,
                    offset,
                    len,
                } in pages
                {
                    if let Err(error) = notifier.inval_inode(inode, offset, len) {
                        tracing::debug!(%error, "dropping pages: the mount is gone");
                    }
                }
            })?;
        Ok(Invalidator(sender))
    }

    /// Has the pages of these chunks dropped in a mount.
    pub(super) fn drop_pages(&self, notifier: &Notifier, manifest: &Manifest, chunks: &[u32]) {
        for extent in chunks.iter().flat_map(|&chunk| manifest.extents(chunk)) {
            let pages = Pages {
                notifier: notifier.clone(),
                inode: INodeNo(u64::from(extent.entry.0) + 1),
                // A file's size fits: manifests do not allow more.
                offset: i64::try_from(extent.file_offset).unwrap_or(i64::MAX),
                len: extent.len.into(),
            };
            // Without the thread the keeper is ending.
            let _ = self.0.send(pages);
        }
    }
}
