//! The canonical binary form: little-endian, entries in path order, the root left out.
//!
//! ```text
//! "trackbed manifest"  format u8  place [u8; 32]  entries u32
//! entry: kind u8  parent u32  mode u16  seconds i64  nanos u32  name_len u8  name
//!   kind 0, directory: nothing more
//!   kind 1, file:      size u64  identity
//!   kind 2, symlink:   target_len u16  target
//! identity: 0 (modified at the entry's time) | 1 len u8 etag | 2 seconds i64 nanos u32
//! ```
//! Bytes that decode encode to the same bytes again, so a version has exactly one name.

use crate::digest::Digest;
use crate::origin::{ObjectIdentity, Timestamp};

use super::assemble::{Assembler, Body, NewBody};
use super::{MAX_ENCODED_BYTES, Manifest, ManifestError};

const MAGIC: &[u8] = b"trackbed manifest";
/// Changes with the encoding, and with [`super::layout`]: both are part of what a digest means.
const FORMAT: u8 = 2;
/// The shortest encoded entry: a directory with a name of one byte.
const MIN_ENTRY_BYTES: usize = 21;

const DIRECTORY: u8 = 0;
const FILE: u8 = 1;
const SYMLINK: u8 = 2;

const IDENTITY_MTIME: u8 = 0;
const IDENTITY_ETAG: u8 = 1;
const IDENTITY_MODIFIED: u8 = 2;

impl Manifest {
    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        encode_pieces(self, |piece| out.extend_from_slice(piece));
        out
    }

    /// The manifest these bytes encode. They may come from anyone.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let mut input = Input { bytes, at: 0 };
        if bytes.len() > MAX_ENCODED_BYTES {
            return Err(input.malformed("larger than 2 GiB"));
        }
        if input.take(MAGIC.len())? != MAGIC {
            return Err(ManifestError::Malformed {
                why: "no manifest begins so",
                at: 0,
            });
        }
        if input.u8()? != FORMAT {
            return Err(input.malformed("a format this version does not know"));
        }
        let place = Digest::from_bytes(input.array()?);
        let entries = input.u32()? as usize;
        if entries > (bytes.len() - input.at) / MIN_ENTRY_BYTES {
            return Err(input.malformed("it says it has more entries than fit"));
        }
        let mut assembler =
            Assembler::with_capacity(entries, bytes.len() - input.at - entries * MIN_ENTRY_BYTES);
        for _ in 0..entries {
            decode_entry(&mut input, &mut assembler)?;
        }
        if input.at != bytes.len() {
            return Err(input.malformed("bytes after the last entry"));
        }
        assembler.finish(place)
    }

    /// As [`Manifest::decode`], for bytes that must be the version `expected`.
    pub fn decode_as(bytes: &[u8], expected: Digest) -> Result<Manifest, ManifestError> {
        let found = Digest::of(bytes);
        if found != expected {
            return Err(ManifestError::OtherDigest { expected, found });
        }
        Manifest::decode(bytes)
    }
}

fn decode_entry(input: &mut Input<'_>, assembler: &mut Assembler) -> Result<(), ManifestError> {
    let kind = input.u8()?;
    let parent = input.u32()?;
    let mode = input.u16()?;
    let mtime = input.timestamp()?;
    let name_len = usize::from(input.u8()?);
    let name = input.take(name_len)?;
    let body = match kind {
        DIRECTORY => NewBody::Directory,
        FILE => {
            let size = input.u64()?;
            let begin = input.at;
            input.identity(mtime)?;
            NewBody::File {
                size,
                identity: &input.bytes[begin..input.at],
            }
        }
        SYMLINK => {
            let len = usize::from(input.u16()?);
            NewBody::Symlink {
                target: input.take(len)?,
            }
        }
        _ => return Err(input.malformed("an entry is no directory, file or symlink")),
    };
    assembler.push(parent, name, mode, mtime, body).map(|_| ())
}

/// The digest of the encoding, without keeping the encoding.
pub(super) fn digest(manifest: &Manifest) -> Digest {
    let mut hasher = blake3::Hasher::new();
    encode_pieces(manifest, |piece| {
        hasher.update(piece);
    });
    Digest::from(*hasher.finalize().as_bytes())
}

fn encode_pieces(manifest: &Manifest, mut sink: impl FnMut(&[u8])) {
    let mut piece = Vec::with_capacity(80 << 10);
    piece.extend_from_slice(MAGIC);
    piece.push(FORMAT);
    piece.extend_from_slice(manifest.place.as_bytes());
    piece.extend_from_slice(&(manifest.len() - 1).to_le_bytes());
    for record in manifest.records.iter().skip(1) {
        piece.push(match record.body {
            Body::Directory { .. } => DIRECTORY,
            Body::File { .. } => FILE,
            Body::Symlink { .. } => SYMLINK,
        });
        piece.extend_from_slice(&record.parent.to_le_bytes());
        piece.extend_from_slice(&record.mode.to_le_bytes());
        write_timestamp(record.mtime(), &mut piece);
        piece.push(record.name_len);
        piece.extend_from_slice(manifest.name(record));
        match record.body {
            Body::Directory { .. } => {}
            Body::File { size, identity, .. } => {
                piece.extend_from_slice(&size.to_le_bytes());
                let text = &manifest.text[identity as usize..];
                piece.extend_from_slice(&text[..identity_len(text)]);
            }
            Body::Symlink { at, len } => {
                piece.extend_from_slice(&len.to_le_bytes());
                piece.extend_from_slice(manifest.text(at, usize::from(len)));
            }
        }
        if piece.len() >= 64 << 10 {
            sink(&piece);
            piece.clear();
        }
    }
    sink(&piece);
}

/// Appends the encoded identity, or says why it cannot be kept.
pub(super) fn write_identity(
    identity: &ObjectIdentity,
    mtime: Timestamp,
    out: &mut Vec<u8>,
) -> Result<(), &'static str> {
    match identity {
        ObjectIdentity::Modified(at) if *at == mtime => out.push(IDENTITY_MTIME),
        ObjectIdentity::Modified(at) if at.nanos >= 1_000_000_000 => {
            return Err("its identity's time is out of range");
        }
        ObjectIdentity::Modified(at) => {
            out.push(IDENTITY_MODIFIED);
            write_timestamp(*at, out);
        }
        ObjectIdentity::Etag(etag) => {
            let len = u8::try_from(etag.len()).map_err(|_| "its ETag is longer than 255 bytes")?;
            out.extend_from_slice(&[IDENTITY_ETAG, len]);
            out.extend_from_slice(etag.as_bytes());
        }
    }
    Ok(())
}

/// The identity at the beginning of `text`, which [`write_identity`] wrote or the decoder checked.
pub(super) fn read_identity(text: &[u8], mtime: Timestamp) -> ObjectIdentity {
    let mut input = Input { bytes: text, at: 0 };
    // What was checked on its way in decodes; a shortened text would name no existing object.
    input
        .identity(mtime)
        .unwrap_or(ObjectIdentity::Etag("".into()))
}

/// An identity's encoding that says all by itself, made of one that may lean on the entry's time.
pub(super) fn whole_identity(text: &[u8], mtime: Timestamp) -> Vec<u8> {
    let mut whole = text[..identity_len(text)].to_vec();
    if whole == [IDENTITY_MTIME] {
        whole = vec![IDENTITY_MODIFIED];
        write_timestamp(mtime, &mut whole);
    }
    whole
}

fn identity_len(text: &[u8]) -> usize {
    match text.first() {
        Some(&IDENTITY_ETAG) => 2 + usize::from(text.get(1).copied().unwrap_or(0)),
        Some(&IDENTITY_MODIFIED) => 13,
        _ => 1,
    }
}

fn write_timestamp(at: Timestamp, out: &mut Vec<u8>) {
    out.extend_from_slice(&at.seconds.to_le_bytes());
    out.extend_from_slice(&at.nanos.to_le_bytes());
}

/// Reads from front to back and never beyond the end.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn malformed(&self, why: &'static str) -> ManifestError {
        ManifestError::Malformed { why, at: self.at }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ManifestError> {
        let end = self
            .at
            .checked_add(len)
            .filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed("it ends too early"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ManifestError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, ManifestError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, ManifestError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, ManifestError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ManifestError> {
        self.array().map(u64::from_le_bytes)
    }

    fn timestamp(&mut self) -> Result<Timestamp, ManifestError> {
        let seconds = self.array().map(i64::from_le_bytes)?;
        let nanos = self.u32()?;
        if nanos >= 1_000_000_000 {
            return Err(self.malformed("a time has more than 999,999,999 nanoseconds"));
        }
        Ok(Timestamp { seconds, nanos })
    }

    fn identity(&mut self, mtime: Timestamp) -> Result<ObjectIdentity, ManifestError> {
        match self.u8()? {
            IDENTITY_MTIME => Ok(ObjectIdentity::Modified(mtime)),
            IDENTITY_ETAG => {
                let len = usize::from(self.u8()?);
                let etag = std::str::from_utf8(self.take(len)?)
                    .map_err(|_| self.malformed("an ETag is not UTF-8"))?;
                Ok(ObjectIdentity::Etag(etag.into()))
            }
            IDENTITY_MODIFIED => {
                let at = self.timestamp()?;
                if at == mtime {
                    return Err(self.malformed("an identity is not in its shortest form"));
                }
                Ok(ObjectIdentity::Modified(at))
            }
            _ => Err(self.malformed("an identity of an unknown kind")),
        }
    }
}
