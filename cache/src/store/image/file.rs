//! The image's file and its marker.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::erofs::Plan;
use crate::manifest::Manifest;
use crate::replace::{remove, replace};
use crate::store::layout::sync_directory;

/// In a version's directory, its image.
pub(in crate::store) const FILE: &str = "image.erofs";
const MARKER: &str = "image.whole";
/// Says how images are laid out; an image of another kind is made anew. To be raised with every change
/// of what [`crate::erofs`] makes of the same version.
const FORMAT: u32 = 1;

/// What the marker says.
#[derive(Serialize, Deserialize)]
struct Marker {
    version: Digest,
    format: u32,
    /// Length of the image.
    bytes: u64,
}

fn read_marker(version: &Path) -> Option<Marker> {
    serde_json::from_slice(&fs::read(version.join(MARKER)).ok()?).ok()
}

/// Whether the image in a version's directory was made whole.
pub(in crate::store) fn is_whole(version: &Path, digest: &Digest) -> bool {
    read_marker(version).is_some_and(|marker| marker.version == *digest && marker.format == FORMAT)
}

/// Bytes that the image has added to a version.
pub(in crate::store) fn bytes(version: &Path) -> u64 {
    read_marker(version).map_or(0, |marker| marker.bytes)
}

/// Says that the image is whole. All of it must be on the disk.
pub(in crate::store) fn mark_whole(
    version: &Path,
    manifest: &Manifest,
    plan: &Plan,
) -> io::Result<()> {
    let marker = Marker {
        version: manifest.digest(),
        format: FORMAT,
        bytes: plan.image_bytes(),
    };
    replace(&version.join(MARKER), &serde_json::to_vec(&marker)?)
}

fn gone_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Takes back that the image is whole.
pub(in crate::store) fn unmark(version: &Path) -> io::Result<()> {
    gone_is_fine(remove(&version.join(MARKER)))
}

/// Removes the image, and what says that it is whole before that. Whoever has it mounted keeps it.
pub(in crate::store) fn discard(version: &Path) -> io::Result<()> {
    unmark(version)?;
    gone_is_fine(remove(&version.join(FILE)))
}

/// What tells that nobody else has written to the image: its inode, its length and the time of its last
/// change, which no call sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Stamp {
    inode: u64,
    pub(super) len: i64,
    changed: (i64, i64),
}

pub(super) fn open(version: &Path, write: bool, direct: bool) -> io::Result<File> {
    let direct = if direct { libc::O_DIRECT } else { 0 };
    fs::OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NOFOLLOW | direct)
        .open(version.join(FILE))
}

/// The image's stamp.
pub(in crate::store) fn stamp(version: &Path) -> io::Result<Stamp> {
    let found = fstat(open(version, false, false)?.as_fd())?;
    Ok(Stamp {
        inode: found.st_ino,
        len: found.st_size,
        changed: (found.st_ctime, found.st_ctime_nsec),
    })
}

/// Whether somebody has written to the image since it was made, or it is gone: who writes to it changes
/// its length or its time.
pub(in crate::store) fn is_changed(version: &Path, plan: &Plan) -> bool {
    let found = fs::symlink_metadata(version.join(FILE));
    !found.is_ok_and(|found| {
        found.is_file()
            && found.len() == plan.image_bytes()
            && (found.mtime(), found.mtime_nsec()) == (0, 0)
    })
}

/// Gives the image the time by which it is told that nobody has written to it.
pub(super) fn set_time(image: &File) -> io::Result<()> {
    image.set_modified(SystemTime::UNIX_EPOCH)
}

/// A new, empty file in the place of whatever is there.
pub(super) fn create(version: &Path, plan: &Plan) -> io::Result<File> {
    discard(version)?;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(version.join(FILE))?;
    file.set_len(plan.image_bytes())?;
    sync_directory(version)?;
    Ok(file)
}
