//! Puts entries together one by one, in path order, refusing whatever no dataset may hold.
//!
//! Building from a listing and decoding both go through here, so what one refuses, so does the
//! other.

use crate::digest::Digest;
use crate::origin::{MAX_LISTED_ENTRIES, Timestamp};

use super::layout::Layout;
use super::{
    EntryIndex, MAX_NAME_BYTES, MAX_PATH_BYTES, Manifest, ManifestError, Totals, encode, shown,
};

/// One entry as it is kept: 48 bytes, its texts elsewhere.
#[derive(Clone, Debug)]
pub(super) struct Record {
    seconds: i64,
    nanos: u32,
    pub(super) parent: u32,
    pub(super) name_at: u32,
    pub(super) name_len: u8,
    pub(super) mode: u16,
    pub(super) body: Body,
}

/// What differs by kind.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// Which part of the manifest's children are this directory's.
    Directory { children_at: u32, children: u32 },
    /// `identity` is a place in the text; `chunk` and `chunk_offset` are the layout's.
    File {
        size: u64,
        identity: u32,
        chunk: u32,
        chunk_offset: u32,
    },
    /// The target's place in the text.
    Symlink { at: u32, len: u16 },
}

impl Record {
    pub(super) fn mtime(&self) -> Timestamp {
        Timestamp {
            seconds: self.seconds,
            nanos: self.nanos,
        }
    }
}

/// An entry's kind as it comes in.
pub(super) enum NewBody<'a> {
    Directory,
    /// `identity` in its encoded form.
    File {
        size: u64,
        identity: &'a [u8],
    },
    Symlink {
        target: &'a [u8],
    },
}

/// A directory that may still get children.
struct Open {
    index: u32,
    /// Length of its path in bytes.
    path_len: usize,
    last_child: Option<u32>,
}

pub(super) struct Assembler {
    records: Vec<Record>,
    text: Vec<u8>,
    open: Vec<Open>,
    totals: Totals,
}

impl Assembler {
    /// For about this many entries, and about this many bytes of names, targets and identities.
    pub(super) fn with_capacity(entries: usize, text: usize) -> Assembler {
        let mut records = Vec::with_capacity(entries + 1);
        records.push(Record {
            seconds: 0,
            nanos: 0,
            parent: 0,
            name_at: 0,
            name_len: 0,
            mode: 0o755,
            body: Body::Directory {
                children_at: 0,
                children: 0,
            },
        });
        Assembler {
            records,
            text: Vec::with_capacity(text),
            open: vec![Open {
                index: 0,
                path_len: 0,
                last_child: None,
            }],
            totals: Totals::default(),
        }
    }

    /// Adds the next entry in path order and gives its index.
    pub(super) fn push(
        &mut self,
        parent: u32,
        name: &[u8],
        mode: u16,
        mtime: Timestamp,
        body: NewBody<'_>,
    ) -> Result<u32, ManifestError> {
        let refuse = |why| ManifestError::Path {
            path: shown(name).into_owned(),
            why,
        };
        check_name(name).map_err(refuse)?;
        while self
            .open
            .last()
            .is_some_and(|directory| directory.index != parent)
        {
            self.open.pop();
        }
        let directory = self.open.last().ok_or_else(|| refuse(OUT_OF_ORDER))?;
        let slash = usize::from(directory.index != 0);
        let path_len = directory.path_len + slash + name.len();
        if path_len > MAX_PATH_BYTES {
            return Err(refuse("its path is longer than 4095 bytes"));
        }
        if let Some(sibling) = directory.last_child {
            let sibling = &self.records[sibling as usize];
            let before = &self.text[sibling.name_at as usize..][..usize::from(sibling.name_len)];
            match before.cmp(name) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => {
                    return Err(refuse("the same path occurs more than once"));
                }
                std::cmp::Ordering::Greater => return Err(refuse(OUT_OF_ORDER)),
            }
        }
        if mode > 0o7777 || mtime.nanos >= 1_000_000_000 {
            return Err(refuse("its mode or modification time is out of range"));
        }
        if self.records.len() as u64 > MAX_LISTED_ENTRIES {
            return Err(ManifestError::TooLarge {
                limit: MAX_LISTED_ENTRIES,
                what: "entries",
            });
        }
        let index = self.records.len() as u32;
        let name_at = self.keep(name)?;
        let body = match body {
            NewBody::Directory => {
                self.totals.directories += 1;
                Body::Directory {
                    children_at: 0,
                    children: 0,
                }
            }
            NewBody::File { size, identity } => {
                self.totals.files += 1;
                self.totals.bytes = self
                    .totals
                    .bytes
                    .checked_add(size)
                    .ok_or_else(|| refuse("with its size the dataset has more than 16 EiB"))?;
                Body::File {
                    size,
                    identity: self.keep(identity)?,
                    chunk: 0,
                    chunk_offset: 0,
                }
            }
            NewBody::Symlink { target } => {
                let len = u16::try_from(target.len())
                    .ok()
                    .filter(|&len| len > 0 && usize::from(len) <= MAX_PATH_BYTES)
                    .ok_or_else(|| refuse("a symlink's target has 1 to 4095 bytes"))?;
                if target.contains(&0) {
                    return Err(refuse("its symlink target has a zero byte"));
                }
                self.totals.symlinks += 1;
                Body::Symlink {
                    at: self.keep(target)?,
                    len,
                }
            }
        };
        let is_directory = matches!(body, Body::Directory { .. });
        let parent_record = &mut self.records[parent as usize];
        match &mut parent_record.body {
            Body::Directory { children, .. } => *children += 1,
            // Only directories are ever pushed to `open`.
            _ => return Err(refuse(OUT_OF_ORDER)),
        }
        self.records.push(Record {
            seconds: mtime.seconds,
            nanos: mtime.nanos,
            parent,
            name_at,
            // At most 255, checked above.
            name_len: name.len() as u8,
            mode,
            body,
        });
        if let Some(directory) = self.open.last_mut() {
            directory.last_child = Some(index);
        }
        if is_directory {
            self.open.push(Open {
                index,
                path_len,
                last_child: None,
            });
        }
        Ok(index)
    }

    /// The manifest of all that was pushed.
    pub(super) fn finish(self, place: Digest) -> Result<Manifest, ManifestError> {
        if self.totals.files == 0 {
            return Err(ManifestError::Empty);
        }
        self.finish_even_empty(place)
    }

    /// As [`Assembler::finish`], for a version that is known to have no files.
    pub(super) fn finish_even_empty(mut self, place: Digest) -> Result<Manifest, ManifestError> {
        self.text.shrink_to_fit();
        self.records.shrink_to_fit();
        let children = self.children();
        let layout = Layout::of(&mut self.records, &self.text)?;
        let mut manifest = Manifest {
            records: self.records,
            text: self.text,
            children,
            layout,
            place,
            digest: Digest::from([0; 32]),
            totals: self.totals,
        };
        manifest.digest = encode::digest(&manifest);
        Ok(manifest)
    }

    /// Entries come in path order, so walking them once meets each directory's children by name.
    fn children(&mut self) -> Vec<EntryIndex> {
        let mut next = 0;
        for record in &mut self.records {
            if let Body::Directory {
                children_at,
                children,
            } = &mut record.body
            {
                *children_at = next;
                next += std::mem::take(children);
            }
        }
        let mut all = vec![EntryIndex::ROOT; self.records.len() - 1];
        for index in 1..self.records.len() {
            let parent = self.records[index].parent as usize;
            if let Body::Directory {
                children_at,
                children,
            } = &mut self.records[parent].body
            {
                all[(*children_at + *children) as usize] = EntryIndex(index as u32);
                *children += 1;
            }
        }
        all
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<u32, ManifestError> {
        let limit = u64::from(u32::MAX);
        let at = u32::try_from(self.text.len()).ok();
        let at = at.filter(|&at| u64::from(at) + (bytes.len() as u64) < limit);
        let at = at.ok_or(ManifestError::TooLarge {
            limit,
            what: "bytes of names",
        })?;
        self.text.extend_from_slice(bytes);
        Ok(at)
    }
}

const OUT_OF_ORDER: &str = "it is not where path order puts it";

/// Whether `name` may be the name of an entry.
fn check_name(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => Err("its path is empty, absolute, or has two slashes in a row"),
        b"." | b".." => Err("'.' and '..' are no names"),
        _ if name.len() > MAX_NAME_BYTES => Err("its name is longer than 255 bytes"),
        _ if name.iter().any(|&byte| byte == 0 || byte == b'/') => {
            Err("its name has a slash or a zero byte")
        }
        _ => Ok(()),
    }
}
