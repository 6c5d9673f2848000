//! A version's tree made whole: every file, directory and link of the manifest at its place, with
//! its mode and time, so that it can be shown to pods as it is.
//!
//! Large files are in the tree from the beginning; small ones are copied out of their packs. A
//! marker beside the tree is written last, when all of it is on the disk: without the marker
//! nothing in the tree but the marked chunks of large files is believed. Everything is opened
//! relative to the tree, through no symlink.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, syncfs, unlinkat};
use serde::{Deserialize, Serialize};

use super::layout::beneath;
use crate::digest::Digest;
use crate::manifest::layout::SMALL_FILE_BYTES;
use crate::manifest::{Entry, EntryIndex, EntryKind, Extent, Manifest, shown};
use crate::origin::Timestamp;
use crate::replace::replace;

mod stamps;

pub(super) use stamps::Stamps;

const MARKER: &str = "tree.whole";

/// Bits of a mode that the tree's files get. Not set-uid and set-gid: no mount of ours honours them,
/// and on the disk they would give a dataset's author a program that runs as root.
const MODE_BITS: u16 = 0o1777;

/// What the marker says.
#[derive(Serialize, Deserialize)]
struct Marker {
    version: Digest,
    /// Bytes of the files that are in packs too.
    copied_bytes: u64,
}

fn read_marker(version: &Path) -> Option<Marker> {
    serde_json::from_slice(&std::fs::read(version.join(MARKER)).ok()?).ok()
}

/// Whether the tree in a version's directory was made whole.
pub(super) fn is_whole(version: &Path, digest: &Digest) -> bool {
    read_marker(version).is_some_and(|marker| marker.version == *digest)
}

/// Bytes that making the tree whole has added to a version.
pub(super) fn copied_bytes(version: &Path) -> u64 {
    read_marker(version).map_or(0, |marker| marker.copied_bytes)
}

/// Bytes that making the tree whole adds.
pub(super) fn bytes_to_copy(manifest: &Manifest) -> u64 {
    (0..manifest.packs())
        .map(|chunk| u64::from(manifest.chunk_len(chunk)))
        .sum()
}

/// Says that the tree is whole. All of it must be on the disk.
pub(super) fn mark_whole(version: &Path, manifest: &Manifest) -> io::Result<()> {
    let marker = Marker {
        version: manifest.digest(),
        copied_bytes: bytes_to_copy(manifest),
    };
    replace(&version.join(MARKER), &serde_json::to_vec(&marker)?)
}

/// The directory that the last entry was in, for the next one.
struct Parents<'a> {
    tree: BorrowedFd<'a>,
    last: Option<(EntryIndex, OwnedFd)>,
}

impl<'a> Parents<'a> {
    fn new(tree: BorrowedFd<'a>) -> Parents<'a> {
        Parents { tree, last: None }
    }

    fn of(&mut self, manifest: &Manifest, entry: &Entry<'_>) -> io::Result<BorrowedFd<'_>> {
        if self.last.as_ref().is_none_or(|(at, _)| *at != entry.parent) {
            let opened = open_directory(self.tree, manifest, entry.parent)?;
            self.last = Some((entry.parent, opened));
        }
        let (_, directory) = self.last.as_ref().expect("just opened");
        Ok(directory.as_fd())
    }
}

fn open_directory(
    tree: BorrowedFd<'_>,
    manifest: &Manifest,
    directory: EntryIndex,
) -> io::Result<OwnedFd> {
    let path = match directory {
        EntryIndex::ROOT => b".".to_vec(),
        below => manifest.path(below),
    };
    Ok(beneath(tree, &path, OFlag::O_DIRECTORY)?)
}

/// Makes directories, links and empty files, and gives the large files, which are there, their
/// modes and times. Files that have a stamp are left alone.
pub(super) fn make_skeleton(
    tree: BorrowedFd<'_>,
    manifest: &Manifest,
    stamps: &Stamps,
) -> io::Result<()> {
    let mut parents = Parents::new(tree);
    let entries = manifest.entries().skip(1);
    let mut entries = entries.filter(|entry| !stamps.has(entry.index));
    entries.try_for_each(|entry| {
        let made = parents
            .of(manifest, &entry)
            .and_then(|parent| make_entry(parent, &entry));
        made.map_err(|error| about(manifest, entry.index, error))
    })
}

fn make_entry(parent: BorrowedFd<'_>, entry: &Entry<'_>) -> io::Result<()> {
    let name = OsStr::from_bytes(entry.name);
    match entry.kind {
        EntryKind::Directory => match mkdirat(parent, name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        },
        EntryKind::Symlink { target } => make_link(parent, name, target, entry.mtime),
        EntryKind::File { size: 0 } => {
            let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC;
            finish(&beneath(parent, entry.name, flags)?.into(), entry)
        }
        EntryKind::File { size } if size >= SMALL_FILE_BYTES => {
            let file = beneath(parent, entry.name, OFlag::O_RDONLY)?;
            finish(&file.into(), entry)
        }
        EntryKind::File { .. } => Ok(()),
    }
}

fn about(manifest: &Manifest, entry: EntryIndex, error: io::Error) -> io::Error {
    let path = manifest.path(entry);
    io::Error::new(error.kind(), format!("{}: {error}", shown(&path)))
}

fn make_link(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    target: &[u8],
    mtime: Timestamp,
) -> io::Result<()> {
    let target = OsStr::from_bytes(target);
    match symlinkat(target, parent, name) {
        Ok(()) => {}
        // What a crash has left.
        Err(Errno::EEXIST) if readlinkat(parent, name).is_ok_and(|found| found == target) => {}
        Err(Errno::EEXIST) => {
            unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
            symlinkat(target, parent, name)?;
        }
        Err(errno) => return Err(errno.into()),
    }
    let time = time(mtime);
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

/// Writes the files of a pack to their places; `bytes` are the pack's. What is there is
/// overwritten without ever being shorter or gone, as pods may be reading it.
pub(super) fn write_pack(
    tree: BorrowedFd<'_>,
    manifest: &Manifest,
    chunk: u32,
    bytes: &[u8],
    sync: bool,
) -> io::Result<()> {
    let mut parents = Parents::new(tree);
    manifest.extents(chunk).into_iter().try_for_each(|extent| {
        write_copy(&mut parents, manifest, extent, bytes, sync)
            .map_err(|error| about(manifest, extent.entry, error))
    })
}

fn write_copy(
    parents: &mut Parents<'_>,
    manifest: &Manifest,
    extent: Extent,
    pack: &[u8],
    sync: bool,
) -> io::Result<()> {
    let missing = || io::Error::from(io::ErrorKind::InvalidInput);
    let entry = manifest.entry(extent.entry).ok_or_else(missing)?;
    let begin = extent.chunk_offset as usize;
    let content = pack.get(begin..begin + extent.len as usize);
    let content = content.ok_or_else(missing)?;
    let parent = parents.of(manifest, &entry)?;
    let opened = beneath(parent, entry.name, OFlag::O_RDWR | OFlag::O_CREAT)?;
    let file = File::from(opened);
    file.write_all_at(content, 0)?;
    if file.metadata()?.len() != content.len() as u64 {
        file.set_len(content.len() as u64)?;
    }
    finish(&file, &entry)?;
    if sync {
        file.sync_all()?;
        drop_cached(&file, 0, u64::from(extent.len));
    }
    Ok(())
}

/// Gives directories their modes and times, after all that is in them, and brings everything to
/// the disk. `before` was opened before the first write: it tells of every error since.
pub(super) fn complete(
    tree: BorrowedFd<'_>,
    manifest: &Manifest,
    before: &OwnedFd,
) -> io::Result<()> {
    for index in (0..manifest.len()).rev().map(EntryIndex) {
        if let Some(entry) = manifest.entry(index)
            && entry.kind == EntryKind::Directory
        {
            finish(&open_directory(tree, manifest, index)?.into(), &entry)?;
        }
    }
    Ok(syncfs(before)?)
}

/// A descriptor for [`complete`].
pub(super) fn watch(tree: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(beneath(tree, b".", OFlag::O_DIRECTORY)?)
}

/// Removes the copies of small files that a failed attempt has made.
pub(super) fn remove_copies(tree: BorrowedFd<'_>, manifest: &Manifest) {
    let mut parents = Parents::new(tree);
    for chunk in 0..manifest.packs() {
        for extent in manifest.extents(chunk) {
            if let Some(entry) = manifest.entry(extent.entry)
                && let Ok(parent) = parents.of(manifest, &entry)
            {
                // What is not there, or can't be removed, is overwritten the next time.
                let _ = unlinkat(
                    parent,
                    OsStr::from_bytes(entry.name),
                    UnlinkatFlags::NoRemoveDir,
                );
            }
        }
    }
}

/// Gives a file or directory the mode and time of its entry.
pub(super) fn finish(file: &File, entry: &Entry<'_>) -> io::Result<()> {
    let mode = Mode::from_bits_truncate((entry.mode & MODE_BITS).into());
    fchmod(file, mode)?;
    let time = time(entry.mtime);
    Ok(futimens(file, &time, &time)?)
}

fn time(mtime: Timestamp) -> TimeSpec {
    TimeSpec::new(mtime.seconds, mtime.nanos.into())
}

/// Files that somebody has written to since the tree was made whole, or that are gone: who writes to a file
/// changes its length or its time. `version` is the version's
/// directory. Asks for each file, and blocks.
pub(super) fn changed(
    tree: BorrowedFd<'_>,
    manifest: &Manifest,
    version: &Path,
) -> io::Result<Vec<EntryIndex>> {
    let whole_since = std::fs::metadata(version.join(MARKER))?;
    let whole_since = (whole_since.mtime(), whole_since.mtime_nsec());
    let mut parents = Parents::new(tree);
    let mut changed = Vec::new();
    for entry in manifest.entries() {
        let EntryKind::File { size } = entry.kind else {
            continue;
        };
        let looked = parents.of(manifest, &entry).and_then(|parent| {
            let name = OsStr::from_bytes(entry.name);
            Ok(fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
        });
        let untouched = looked.is_ok_and(|found| {
            let time = (found.st_mtime, found.st_mtime_nsec);
            let as_laid_out = time == (entry.mtime.seconds, entry.mtime.nanos.into());
            // Not every file system keeps every time; one that was given is not a recent one.
            SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
                && u64::try_from(found.st_size) == Ok(size)
                && (as_laid_out || time < whole_since)
        });
        if !untouched {
            changed.push(entry.index);
        }
    }
    Ok(changed)
}

/// Gives the files of a chunk, whose bytes were found right, their modes and times again.
pub(super) fn restore(tree: BorrowedFd<'_>, manifest: &Manifest, chunk: u32) -> io::Result<()> {
    let mut parents = Parents::new(tree);
    manifest.extents(chunk).into_iter().try_for_each(|extent| {
        let missing = || io::Error::from(io::ErrorKind::InvalidInput);
        let entry = manifest.entry(extent.entry).ok_or_else(missing)?;
        let parent = parents.of(manifest, &entry)?;
        finish(
            &beneath(parent, entry.name, OFlag::O_RDONLY)?.into(),
            &entry,
        )
    })
}

/// Lets the kernel forget what it has in memory of a part of a file, so that it is read from the
/// disk the next time.
pub(super) fn drop_cached(file: &File, offset: u64, len: u64) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else {
        return;
    };
    if let Err(errno) = posix_fadvise(file, offset, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
        tracing::debug!(%errno, "the page cache keeps a part of a cache file");
    }
}

/// Opens a small file of the tree to compare it, past the page cache if `direct`.
pub(super) fn open_copy(
    tree: BorrowedFd<'_>,
    manifest: &Manifest,
    entry: EntryIndex,
    direct: bool,
) -> io::Result<File> {
    let mut flags = OFlag::O_RDONLY;
    flags.set(OFlag::O_DIRECT, direct);
    Ok(beneath(tree, &manifest.path(entry), flags)?.into())
}
