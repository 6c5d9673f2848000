//! The files that hold a version's chunks, opened when first needed, a bounded number at a time.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::fcntl::OFlag;
use parking_lot::Mutex;

use super::StoreError;
use super::layout::{For, beneath, open_beneath, open_directory};
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

/// An open file, the entry it is for, and whether it can be written.
type Slot = Option<(EntryIndex, Arc<File>, bool)>;

pub(super) struct Files {
    version: OwnedFd,
    tree: OwnedFd,
    /// Each entry has one slot it can take; the latest of those that share it has it.
    open: Mutex<Box<[Slot]>>,
    /// Directories in which something was made that is not yet sure to survive a crash.
    made_in: Mutex<BTreeSet<EntryIndex>>,
}

impl Files {
    pub(super) fn open(version: &Path) -> Result<Files, StoreError> {
        Ok(Files {
            version: open_directory(version)?,
            tree: open_directory(&version.join("tree"))?,
            open: Mutex::new(vec![None; OPEN_FILES].into()),
            made_in: Mutex::default(),
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
                let file = self.opened(PACKS, true, || {
                    self.open_file(&self.version, b"small.pack", For::Writing, direct)
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
                let file = self.opened(entry, make, || {
                    let path = manifest.path(entry);
                    let open = |wanted| self.open_file(&self.tree, &path, wanted, direct);
                    if !make {
                        return open(For::Reading);
                    }
                    let file = match open(For::Writing) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {
                            self.note_made(manifest, entry);
                            open(For::Making)?
                        }
                        opened => opened?,
                    };
                    if file.metadata()?.len() != size {
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

    /// The directory of the tree.
    pub(super) fn tree(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }

    fn note_made(&self, manifest: &Manifest, entry: EntryIndex) {
        let mut made_in = self.made_in.lock();
        let mut at = entry;
        while at != EntryIndex::ROOT
            && let Some(entry) = manifest.entry(at)
        {
            at = entry.parent;
            made_in.insert(at);
        }
    }

    /// Makes the names of files made so far survive a crash. Blocks.
    pub(super) fn sync_names(&self, manifest: &Manifest) -> io::Result<()> {
        let directories = std::mem::take(&mut *self.made_in.lock());
        let sync = |&directory: &EntryIndex| {
            let path = match directory {
                EntryIndex::ROOT => b".".to_vec(),
                below => manifest.path(below),
            };
            let opened = beneath(self.tree.as_fd(), &path, OFlag::O_DIRECTORY)?;
            File::from(opened).sync_all()
        };
        let synced = directories.iter().try_for_each(sync);
        if synced.is_err() {
            self.made_in.lock().extend(directories);
        }
        synced
    }

    /// Whether names are yet to be made to survive a crash.
    pub(super) fn has_new_names(&self) -> bool {
        !self.made_in.lock().is_empty()
    }

    fn opened(
        &self,
        entry: EntryIndex,
        write: bool,
        open: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<Arc<File>> {
        let slot = entry.0 as usize % OPEN_FILES;
        if let Some((there, file, writable)) = &self.open.lock()[slot]
            && *there == entry
            && (*writable || !write)
        {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(open()?);
        self.open.lock()[slot] = Some((entry, Arc::clone(&file), write));
        Ok(file)
    }

    fn open_file(
        &self,
        directory: &OwnedFd,
        path: &[u8],
        wanted: For,
        direct: &AtomicBool,
    ) -> io::Result<File> {
        match open_beneath(directory.as_fd(), path, wanted, direct.load(Relaxed)) {
            // What file systems without O_DIRECT answer.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && direct.load(Relaxed) => {
                tracing::info!("the cache's file system has no O_DIRECT: using the page cache");
                direct.store(false, Relaxed);
                open_beneath(directory.as_fd(), path, wanted, false)
            }
            other => other,
        }
    }
}
