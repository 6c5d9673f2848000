//! Writes a file so that a crash or a full disk leaves the old one or the new one, whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Puts `bytes` at `path`, in the place of what is there; on disk when it returns.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = Temporary::write(path, bytes)?;
    fs::rename(&temporary.0, path)?;
    sync_directory(path)
}

/// Puts `bytes` at `path` unless something is there, which is `AlreadyExists`; on disk when it
/// returns. Of several that try at a time, on this node or on others, one succeeds.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = Temporary::write(path, bytes)?;
    fs::hard_link(&temporary.0, path)?;
    drop(temporary);
    sync_directory(path)
}

/// Removes the file at `path`; off the disk when it returns.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    sync_directory(path)
}

/// The name is on disk, or off it, only when its directory is.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path)?)?.sync_all()
}

fn directory(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file's path"))
}

/// A file beside the one that is meant, gone when dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn write(path: &Path, bytes: &[u8]) -> io::Result<Temporary> {
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Not ending in `.json`, and different for writers in this and in other processes.
        let temporary = Temporary(directory(path)?.join(format!(
            ".{name}.{}-{}",
            std::process::id(),
            WRITES.fetch_add(1, Relaxed)
        )));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary.0)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(temporary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already when it was renamed; what cannot be removed is only litter.
        let _ = fs::remove_file(&self.0);
    }
}
