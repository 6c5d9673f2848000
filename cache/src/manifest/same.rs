//! Chunks that versions have in common.

use crate::digest::Digest;

use super::assemble::Body;
use super::{Extent, Manifest, encode};

impl Manifest {
    /// What tells a chunk's bytes from all others: the files that it holds, as they were listed, and which
    /// parts of them. Equal in each version that has the same bytes there, if the chunk is cut alike;
    /// nothing is known about what it means beyond the last chunk.
    pub fn chunk_id(&self, chunk: u32) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.place.as_bytes());
        for extent in self.extents(chunk) {
            self.describe(&extent, &mut hasher);
        }
        Digest::from(*hasher.finalize().as_bytes())
    }

    /// Which chunk of `other` has the same bytes as chunk `chunk` of this version, if one has.
    pub fn same_chunk(&self, chunk: u32, other: &Manifest) -> Option<u32> {
        let first = *self.extents(chunk).first()?;
        let there = other.find(&self.path(first.entry))?;
        let there = other.locate(there, first.file_offset)?.chunk;
        (self.chunk_id(chunk) == other.chunk_id(there)).then_some(there)
    }

    fn describe(&self, extent: &Extent, hasher: &mut blake3::Hasher) {
        let path = self.path(extent.entry);
        hasher.update(&(path.len() as u32).to_le_bytes());
        hasher.update(&path);
        hasher.update(&extent.file_offset.to_le_bytes());
        hasher.update(&extent.len.to_le_bytes());
        let record = &self.records[extent.entry.0 as usize];
        if let Body::File { size, identity, .. } = record.body {
            hasher.update(&size.to_le_bytes());
            let text = &self.text[identity as usize..];
            hasher.update(&encode::whole_identity(text, record.mtime()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{CHUNK_BYTES, Place};
    use crate::origin::{ListedEntry, ListedKind, ObjectIdentity, Timestamp};

    fn version(files: &[(&str, u64, i64)]) -> Manifest {
        let entry = |&(path, size, seconds): &(&str, u64, i64)| {
            let mtime = Timestamp { seconds, nanos: 0 };
            let identity = ObjectIdentity::Modified(mtime);
            ListedEntry {
                path: path.into(),
                kind: ListedKind::File { size, identity },
                mode: 0o644,
                mtime,
            }
        };
        Manifest::build(Place::ANY, files.iter().map(entry).collect::<Vec<_>>()).expect("valid")
    }

    #[test]
    fn chunks_are_the_same_where_path_size_time_and_cut_are() {
        let big = 2 * CHUNK_BYTES as u64 + 5;
        let before = version(&[
            ("a", 10, 1),
            ("b", 10, 1),
            ("big", big, 1),
            ("huge", big, 1),
        ]);
        let same = |files: &[(&str, u64, i64)]| {
            let now = version(files);
            let same = (0..now.chunks()).map(|chunk| now.same_chunk(chunk, &before));
            same.collect::<Vec<_>>()
        };
        let all = |from: u32, to: u32| (from..to).map(Some);
        // A file before it moves a large one's chunks, and a small one beside makes another pack.
        assert_eq!(
            same(&[("a", 10, 1), ("b", 10, 1), ("ber", big, 1), ("big", big, 1)]),
            [Some(0), None, None, None]
                .into_iter()
                .chain(all(1, 4))
                .collect::<Vec<_>>()
        );
        assert_eq!(
            same(&[("a", 10, 1), ("big", big, 2), ("huge", big, 1)]),
            [None; 4].into_iter().chain(all(4, 7)).collect::<Vec<_>>()
        );
        // One that grew has nothing in common: nobody knows what was written where.
        assert_eq!(same(&[("big", big + 1, 1)]), [None; 3]);
        assert_eq!(same(&[("a", 10, 1), ("b", 10, 2)]), [None]);
        assert_eq!(before.same_chunk(before.chunks(), &before), None);
    }
}
