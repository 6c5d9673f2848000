//! Reads a version from this node's disk without an agent: what a process can serve that must go on
//! when the agent is killed.
//!
//! Nothing is written, locked or fetched here, and nothing is taken on trust: each read is checked
//! against the chunk's seal, as the agent's own are. Which chunks are worth trying is for others to
//! know; one that is not there, or is being written, does not match and is a [`DiskFault`].

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::digest::Digest;
use crate::manifest::{CHUNK_BYTES, ChunkKind, EntryIndex, Manifest};
use crate::seal::{BLOCK_BYTES, SEAL_BYTES, Seal, SealError};
use crate::store::{StoreError, failed, open_directory, read_beneath, read_manifest_in};
use crate::verified::VerifiedBytes;

/// Files kept open for a version.
const OPEN_FILES: usize = 64;
/// Seals kept in memory for a version: about 300 bytes each.
const SEALS: usize = 1024;
/// What O_DIRECT wants memory, offsets and lengths to be a multiple of.
const DIRECT_BYTES: usize = 4096;

/// Why a chunk's bytes could not be had from the disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskFault {
    /// There is no such chunk in the version.
    #[error("the version has no chunk {0}")]
    NoSuchChunk(u32),
    /// It is not there, or not what it must be.
    #[error(transparent)]
    Damaged(#[from] SealError),
    /// The disk failed, or the file is not there.
    #[error("reading chunk {chunk} from the cache's disk: {source}")]
    Disk {
        /// The chunk's index.
        chunk: u32,
        /// Why.
        source: io::Error,
    },
}

/// Places that one of several chunks, or entries, can take each: the latest has it.
type Places<K, V> = Mutex<Box<[Option<(K, Arc<V>)>]>>;

/// A version on this node's disk, for reading.
pub struct VersionReader {
    manifest: Arc<Manifest>,
    seals: File,
    pack: File,
    tree: OwnedFd,
    recent_seals: Places<u32, Seal>,
    files: Places<EntryIndex, Opened>,
}

/// A large file, and whether it is read past the page cache.
struct Opened {
    file: File,
    direct: bool,
}

impl VersionReader {
    /// Opens the version in `directory`, as [`OpenVersion::directory`] names it. Blocks; reads the
    /// whole manifest and checks that it is `version`'s.
    ///
    /// [`OpenVersion::directory`]: crate::OpenVersion::directory
    pub fn open(directory: &Path, version: Digest) -> Result<VersionReader, StoreError> {
        let path = directory.join("manifest");
        let encoded = read_manifest_in(directory)?
            .ok_or_else(|| failed("opening", &path)(io::ErrorKind::NotFound.into()))?;
        let manifest = Manifest::decode_as(&encoded, version)
            .map_err(|source| StoreError::Manifest { path, source })?;
        drop(encoded);
        let seals = directory.join("seals");
        let pack = directory.join("small.pack");
        let places = (manifest.chunks() as usize).clamp(1, SEALS);
        Ok(VersionReader {
            seals: open_plain(&seals)?,
            pack: open_plain(&pack)?,
            tree: open_directory(&directory.join("tree"))?,
            recent_seals: Mutex::new(vec![None; places].into()),
            files: Mutex::new((0..OPEN_FILES).map(|_| None).collect()),
            manifest: Arc::new(manifest),
        })
    }

    /// What the version holds.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The chunk's bytes `range`, each block of them checked. Blocks for the disk.
    pub fn read(&self, chunk: u32, range: Range<usize>) -> Result<VerifiedBytes, DiskFault> {
        let seal = self.seal(chunk)?;
        let blocks = Seal::blocks(range.clone());
        let (begin, end) = (
            blocks.start * BLOCK_BYTES,
            (blocks.end * BLOCK_BYTES).min(seal.len()),
        );
        if range.is_empty() || range.end > seal.len() {
            return Err(SealError::Length {
                sealed: seal.len() as u32,
                found: range.end,
            }
            .into());
        }
        let bytes = self.bytes(chunk, begin, end - begin)?;
        seal.verify_blocks(blocks.start, &bytes)?;
        Ok(VerifiedBytes::checked(
            bytes.slice(range.start - begin..range.end - begin),
        ))
    }

    /// Reads a whole chunk and checks it by its hash too. Blocks for the disk.
    pub fn verify(&self, chunk: u32) -> Result<(), DiskFault> {
        // Not from memory: the seal on the disk is what counts from here on.
        self.forget(chunk);
        let seal = self.seal(chunk)?;
        let bytes = self.bytes(chunk, 0, seal.len())?;
        Ok(seal.verify(&bytes)?)
    }

    /// Forgets what is remembered of a chunk that may be written anew.
    pub fn forget(&self, chunk: u32) {
        let mut recent = self.recent_seals.lock();
        let place = chunk as usize % recent.len();
        recent[place].take_if(|(there, _)| *there == chunk);
    }

    /// The plain file that a large file's chunks lie in, opened for reading through the page cache.
    pub fn open_file(&self, entry: EntryIndex) -> io::Result<File> {
        read_beneath(self.tree.as_fd(), &self.manifest.path(entry), false)
    }

    fn seal(&self, chunk: u32) -> Result<Arc<Seal>, DiskFault> {
        {
            let recent = self.recent_seals.lock();
            if let Some((there, seal)) = &recent[chunk as usize % recent.len()]
                && *there == chunk
            {
                return Ok(Arc::clone(seal));
            }
        }
        let mut encoded = [0; SEAL_BYTES];
        self.seals
            .read_exact_at(&mut encoded, u64::from(chunk) * SEAL_BYTES as u64)
            .map_err(|source| DiskFault::Disk { chunk, source })?;
        let seal = Arc::new(Seal::decode(&encoded)?);
        let expected = self.manifest.chunk_len(chunk);
        if seal.len() != expected as usize {
            return Err(SealError::Length {
                sealed: expected,
                found: seal.len(),
            }
            .into());
        }
        let mut recent = self.recent_seals.lock();
        let place = chunk as usize % recent.len();
        recent[place] = Some((chunk, Arc::clone(&seal)));
        Ok(seal)
    }

    /// `len` bytes of the chunk from `begin` on, a block's beginning, unchecked.
    fn bytes(&self, chunk: u32, begin: usize, len: usize) -> Result<Bytes, DiskFault> {
        let failed = |source| DiskFault::Disk { chunk, source };
        match self.manifest.chunk_kind(chunk) {
            None => Err(DiskFault::NoSuchChunk(chunk)),
            // Through the page cache: the files that follow in the pack are likely to be next.
            Some(ChunkKind::Pack) => {
                let mut bytes = vec![0; len];
                let offset = u64::from(chunk) * CHUNK_BYTES as u64 + begin as u64;
                self.pack
                    .read_exact_at(&mut bytes, offset)
                    .map_err(failed)?;
                Ok(bytes.into())
            }
            Some(ChunkKind::Part { entry, file_offset }) => {
                let opened = self.opened(entry).map_err(failed)?;
                opened.read(file_offset + begin as u64, len).map_err(failed)
            }
        }
    }

    fn opened(&self, entry: EntryIndex) -> io::Result<Arc<Opened>> {
        let place = entry.0 as usize % OPEN_FILES;
        if let Some((there, opened)) = &self.files.lock()[place]
            && *there == entry
        {
            return Ok(Arc::clone(opened));
        }
        let path = self.manifest.path(entry);
        let opened = match read_beneath(self.tree.as_fd(), &path, true) {
            Ok(file) => Opened { file, direct: true },
            // What file systems without O_DIRECT answer.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Opened {
                file: read_beneath(self.tree.as_fd(), &path, false)?,
                direct: false,
            },
            Err(error) => return Err(error),
        };
        let opened = Arc::new(opened);
        self.files.lock()[place] = Some((entry, Arc::clone(&opened)));
        Ok(opened)
    }
}

impl Opened {
    /// Exactly `len` bytes. Past the page cache where the file system can, since what is read here
    /// is kept by the page cache of whoever reads it from us.
    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        if !self.direct {
            let mut bytes = vec![0; len];
            self.file.read_exact_at(&mut bytes, offset)?;
            return Ok(bytes.into());
        }
        let padded = len.next_multiple_of(DIRECT_BYTES);
        let mut bytes = vec![0; padded + DIRECT_BYTES];
        let from = bytes.as_ptr().align_offset(DIRECT_BYTES);
        let mut done = 0;
        while done < len {
            let at = from + done;
            match self
                .file
                .read_at(&mut bytes[at..from + padded], offset + done as u64)
            {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Bytes::from(bytes).slice(from..from + len))
    }
}

fn open_plain(path: &Path) -> Result<File, StoreError> {
    File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed("opening", path))
}
