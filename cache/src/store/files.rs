//! The files that hold a version's chunks, opened when first needed, a bounded number at a time.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;

use super::StoreError;
use super::layout::{open_beneath, open_directory};
use crate::manifest::{CHUNK_BYTES, ChunkKind, EntryIndex, EntryKind, Manifest};

/// Large files kept open for each version.
const OPEN_FILES: usize = 128;
/// How the packs' file is known among the entries.
const PACKS: EntryIndex = EntryIndex::ROOT;

/// Where a chunk lies.
pub(super) struct Place {
    pub(super) file: Arc<File>,
    /// Where the chunk begins in the file.
    pub(super) offset: u64,
    /// Length of the whole file, if something after the chunk's end would be wrong.
    pub(super) file_len: Option<u64>,
}

/// An open file, and the entry it is for.
type Slot = Option<(EntryIndex, Arc<File>)>;

pub(super) struct Files {
    version: OwnedFd,
    tree: OwnedFd,
    /// Each entry has one slot it can take; the latest of those that share it has it.
    open: Mutex<Box<[Slot]>>,
}

impl Files {
    pub(super) fn open(version: &Path) -> Result<Files, StoreError> {
        Ok(Files {
            version: open_directory(version)?,
            tree: open_directory(&version.join("tree"))?,
            open: Mutex::new(vec![None; OPEN_FILES].into()),
        })
    }

    /// The file and place of a chunk. With `make`, files and directories that are not there yet
    /// are made, sparse and in full length.
    pub(super) fn place(
        &self,
        manifest: &Manifest,
        chunk: u32,
        make: bool,
        direct: &AtomicBool,
    ) -> io::Result<Place> {
        let kind = manifest.chunk_kind(chunk);
        let kind = kind.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        match kind {
            ChunkKind::Pack => {
                let offset = u64::from(chunk) * CHUNK_BYTES as u64;
                let file = self.opened(PACKS, || {
                    self.open_file(&self.version, b"small.pack", false, direct)
                })?;
                Ok(Place {
                    file,
                    offset,
                    file_len: None,
                })
            }
            ChunkKind::Part { entry, file_offset } => {
                let size = match manifest.entry(entry).map(|entry| entry.kind) {
                    Some(EntryKind::File { size }) => size,
                    _ => return Err(io::ErrorKind::InvalidInput.into()),
                };
                let file = self.opened(entry, || {
                    let file = self.open_file(&self.tree, &manifest.path(entry), make, direct)?;
                    if make && file.metadata()?.len() != size {
                        file.set_len(size)?;
                    }
                    Ok(file)
                })?;
                Ok(Place {
                    file,
                    offset: file_offset,
                    file_len: Some(size),
                })
            }
        }
    }

    /// Closes all files once nobody uses them, so that they are opened anew.
    pub(super) fn close(&self) {
        self.open.lock().fill(None);
    }

    fn opened(
        &self,
        entry: EntryIndex,
        open: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<Arc<File>> {
        let slot = entry.0 as usize % OPEN_FILES;
        if let Some((there, file)) = &self.open.lock()[slot]
            && *there == entry
        {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(open()?);
        self.open.lock()[slot] = Some((entry, Arc::clone(&file)));
        Ok(file)
    }

    fn open_file(
        &self,
        directory: &OwnedFd,
        path: &[u8],
        make: bool,
        direct: &AtomicBool,
    ) -> io::Result<File> {
        match open_beneath(directory.as_fd(), path, make, direct.load(Relaxed)) {
            // What file systems without O_DIRECT answer.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && direct.load(Relaxed) => {
                tracing::info!("the cache's file system has no O_DIRECT: using the page cache");
                direct.store(false, Relaxed);
                open_beneath(directory.as_fd(), path, make, false)
            }
            other => other,
        }
    }
}
