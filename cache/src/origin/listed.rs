//! What an origin listed, packed: a listing of millions of entries is in memory with the manifest that
//! is made of it, and must not take more than that does.

use std::cmp::Ordering;

use super::{ListedEntry, ListedKind, ObjectIdentity, Timestamp};

/// All entries of a listing, 40 bytes each beside their paths, targets and entity tags.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    entries: Vec<Packed>,
    /// Of each entry the path and then what its kind has of text. In a path a slash stands as a zero byte,
    /// which sorts before all else: then plain byte order is path order.
    text: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Packed {
    at: u64,
    size: u64,
    seconds: i64,
    nanos: u32,
    path_len: u32,
    tail_len: u32,
    mode: u16,
    kind: Kind,
}

const _: () = assert!(size_of::<Packed>() == 40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    /// The tail is the target.
    Symlink,
    /// The tail is the entity tag.
    Tagged,
    /// Known by its time of modification.
    Modified,
    /// Known by another time, which is the tail.
    ModifiedAt,
    /// Of a path with a zero byte, which nothing can have; the tail is that path.
    Unusable,
}

/// An entry of a listing, borrowed.
#[derive(Clone, Debug)]
pub(crate) struct Listed<'a> {
    /// A zero byte between names.
    pub(crate) path: &'a [u8],
    pub(crate) kind: ListedAs<'a>,
    pub(crate) mode: u16,
    pub(crate) mtime: Timestamp,
}

/// What a borrowed entry is.
#[derive(Clone, Debug)]
pub(crate) enum ListedAs<'a> {
    Directory,
    File { size: u64, identity: ObjectIdentity },
    Symlink { target: &'a [u8] },
    Unusable { path: &'a [u8] },
}

impl Listing {
    /// An empty one.
    pub fn new() -> Listing {
        Listing::default()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was listed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an entry, in whatever order.
    pub fn push(&mut self, entry: &ListedEntry) {
        let at = self.text.len() as u64;
        let usable = !entry.path.contains(&0);
        let path: &[u8] = if usable { &entry.path } else { b"" };
        let separated = path.iter().map(|&byte| if byte == b'/' { 0 } else { byte });
        self.text.extend(separated);
        let time;
        let (kind, size, tail) = match &entry.kind {
            _ if !usable => (Kind::Unusable, 0, &*entry.path),
            ListedKind::Directory => (Kind::Directory, 0, &b""[..]),
            ListedKind::Symlink { target } => (Kind::Symlink, 0, &**target),
            ListedKind::File { size, identity } => match identity {
                ObjectIdentity::Etag(tag) => (Kind::Tagged, *size, tag.as_bytes()),
                ObjectIdentity::Modified(at) if *at == entry.mtime => {
                    (Kind::Modified, *size, &b""[..])
                }
                ObjectIdentity::Modified(at) => {
                    time = packed_time(*at);
                    (Kind::ModifiedAt, *size, &time[..])
                }
            },
        };
        self.text.extend_from_slice(tail);
        self.entries.push(Packed {
            at,
            size,
            seconds: entry.mtime.seconds,
            nanos: entry.mtime.nanos,
            path_len: length(path),
            tail_len: length(tail),
            mode: entry.mode,
            kind,
        });
    }

    /// Puts the entries in path order.
    pub(crate) fn sort(&mut self) {
        let text = &self.text;
        self.entries
            .sort_unstable_by(|a, b| a.path(text).cmp(b.path(text)));
    }

    /// Two entries that follow each other and have the same path, if there are any: in path order, any two
    /// that have one.
    pub(crate) fn same_path(&self) -> Option<Listed<'_>> {
        let same = |pair: &&[Packed]| {
            pair[0].path(&self.text).cmp(pair[1].path(&self.text)) == Ordering::Equal
        };
        let pair = self.entries.windows(2).find(same)?;
        Some(pair[0].listed(&self.text))
    }

    /// The entries as they are kept.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Listed<'_>> {
        self.entries.iter().map(|entry| entry.listed(&self.text))
    }

    /// The entries one by one, as they were pushed.
    pub fn entries(&self) -> impl Iterator<Item = ListedEntry> {
        self.iter().map(|listed| ListedEntry {
            path: match listed.kind {
                ListedAs::Unusable { path } => path.to_vec(),
                _ => with_slashes(listed.path),
            },
            kind: match listed.kind {
                ListedAs::Directory | ListedAs::Unusable { .. } => ListedKind::Directory,
                ListedAs::Symlink { target } => ListedKind::Symlink {
                    target: target.to_vec(),
                },
                ListedAs::File { size, identity } => ListedKind::File { size, identity },
            },
            mode: listed.mode,
            mtime: listed.mtime,
        })
    }
}

impl Packed {
    fn path<'t>(&self, text: &'t [u8]) -> &'t [u8] {
        &text[self.at as usize..][..self.path_len as usize]
    }

    fn listed<'t>(&self, text: &'t [u8]) -> Listed<'t> {
        let (path, after) = text[self.at as usize..].split_at(self.path_len as usize);
        let tail = &after[..self.tail_len as usize];
        let mtime = Timestamp {
            seconds: self.seconds,
            nanos: self.nanos,
        };
        let file = |identity| ListedAs::File {
            size: self.size,
            identity,
        };
        Listed {
            path,
            kind: match self.kind {
                Kind::Directory => ListedAs::Directory,
                Kind::Symlink => ListedAs::Symlink { target: tail },
                Kind::Modified => file(ObjectIdentity::Modified(mtime)),
                Kind::ModifiedAt => file(ObjectIdentity::Modified(time_of(tail))),
                // It was a `str` when it was pushed.
                Kind::Tagged => file(ObjectIdentity::Etag(
                    std::str::from_utf8(tail).unwrap_or_default().into(),
                )),
                Kind::Unusable => ListedAs::Unusable { path: tail },
            },
            mode: self.mode,
            mtime,
        }
    }
}

/// A time in 12 bytes.
fn packed_time(at: Timestamp) -> [u8; 12] {
    let mut packed = [0; 12];
    packed[..8].copy_from_slice(&at.seconds.to_ne_bytes());
    packed[8..].copy_from_slice(&at.nanos.to_ne_bytes());
    packed
}

/// The time that [`packed_time`] packed.
fn time_of(packed: &[u8]) -> Timestamp {
    let (seconds, nanos) = packed.split_at(8);
    Timestamp {
        seconds: i64::from_ne_bytes(seconds.try_into().expect("8 of 12 bytes")),
        nanos: u32::from_ne_bytes(nanos.try_into().expect("4 of 12 bytes")),
    }
}

/// As an origin gave it: slashes between names.
pub(crate) fn with_slashes(path: &[u8]) -> Vec<u8> {
    path.iter()
        .map(|&byte| if byte == 0 { b'/' } else { byte })
        .collect()
}

/// Longer texts than this counts are cut off nowhere: no origin's library has them in memory.
fn length(text: &[u8]) -> u32 {
    u32::try_from(text.len()).expect("a path, a target or a tag of an origin is below 4 GiB")
}

impl FromIterator<ListedEntry> for Listing {
    fn from_iter<I: IntoIterator<Item = ListedEntry>>(entries: I) -> Listing {
        let mut listing = Listing::new();
        entries.into_iter().for_each(|entry| listing.push(&entry));
        listing
    }
}

impl From<Vec<ListedEntry>> for Listing {
    fn from(entries: Vec<ListedEntry>) -> Listing {
        entries.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_listed_comes_back_as_it_was() {
        let at = |seconds| Timestamp { seconds, nanos: 7 };
        let entry = |path: &[u8], kind| ListedEntry {
            path: path.to_vec(),
            kind,
            mode: 0o640,
            mtime: at(-3),
        };
        let file = |identity| ListedKind::File { size: 9, identity };
        let entries = vec![
            entry(b"a/b", ListedKind::Directory),
            entry(b"a/b/c", file(ObjectIdentity::Etag("\"x\"".into()))),
            entry(b"a/\xff", file(ObjectIdentity::Modified(at(-3)))),
            entry(b"a/later", file(ObjectIdentity::Modified(at(4)))),
            entry(
                b"l",
                ListedKind::Symlink {
                    target: b"../a".to_vec(),
                },
            ),
        ];
        let listing = Listing::from(entries.clone());
        assert_eq!(listing.entries().collect::<Vec<_>>(), entries);
    }

    #[test]
    fn path_order_puts_a_directory_before_its_siblings_with_longer_names() {
        let entries = ["a-b", "a/z", "a", "a.txt"].map(|path| ListedEntry {
            path: path.into(),
            kind: ListedKind::Directory,
            mode: 0o755,
            mtime: Timestamp::default(),
        });
        let mut listing: Listing = entries.into_iter().collect();
        listing.sort();
        let paths: Vec<Vec<u8>> = listing.entries().map(|entry| entry.path).collect();
        assert_eq!(paths, [&b"a"[..], b"a/z", b"a-b", b"a.txt"]);
        assert!(listing.same_path().is_none());
    }
}
