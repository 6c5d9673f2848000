//! Which files a ring knows by number, so that an operation need not look its descriptor up.

use std::fs::File;
use std::os::fd::AsRawFd;

use io_uring::IoUring;

/// Places in the ring's table.
const PLACES: u32 = 64;

/// The ring's table of files, made when the first one is registered.
pub(super) struct Files {
    free: Option<Vec<u32>>,
}

impl Files {
    pub(super) fn new() -> Files {
        Files { free: None }
    }

    /// The file's place, or none if there is no table here (before 5.19) or no place left.
    pub(super) fn register(&mut self, uring: &IoUring, file: &File) -> Option<u32> {
        let free = self.free.get_or_insert_with(|| {
            match uring.submitter().register_files_sparse(PLACES) {
                Ok(()) => (0..PLACES).rev().collect(),
                Err(error) => {
                    tracing::info!(%error, "io_uring has no table of files here: descriptors are used");
                    Vec::new()
                }
            }
        });
        let place = free.pop()?;
        match set(uring, place, file.as_raw_fd()) {
            Ok(()) => Some(place),
            Err(error) => {
                tracing::info!(%error, "registering a file failed: its descriptor is used");
                free.push(place);
                None
            }
        }
    }

    /// Empties a place. Nothing that is still to be handed to the kernel may name it.
    pub(super) fn unregister(&mut self, uring: &IoUring, place: u32) {
        const NOTHING: i32 = -1;
        match set(uring, place, NOTHING) {
            Ok(()) => self.free.get_or_insert_default().push(place),
            // The place stays taken, and the file open until the ring ends.
            Err(error) => tracing::warn!(%error, "emptying a registered file failed"),
        }
    }
}

fn set(uring: &IoUring, place: u32, descriptor: i32) -> std::io::Result<()> {
    uring
        .submitter()
        .register_files_update(place, &[descriptor])
        .map(|_| ())
}
