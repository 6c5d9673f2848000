//! Replaces a file so that a crash or a full disk leaves the old one or the new one, whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Puts `bytes` at `path`; on disk when it returns.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not a file's path");
    let directory = path.parent().ok_or_else(invalid)?;
    let name = path.file_name().ok_or_else(invalid)?.to_string_lossy();
    // Not ending in `.json`, and different for writers in this and in other processes.
    let temporary = directory.join(format!(
        ".{name}.{}-{}",
        std::process::id(),
        WRITES.fetch_add(1, Relaxed)
    ));
    let written = write_synced(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // It may be gone, or never have been made; the first error is the one that matters.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    // The name is on disk only when its directory is.
    File::open(directory)?.sync_all()
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
