//! A reader of EROFS images that knows nothing of the writer: what the kernel does, in short, and
//! with every check that comes to mind.

use std::collections::BTreeMap;

/// What is at a path of an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) mode: u16,
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
    pub(super) size: u64,
    /// Of files and links.
    pub(super) content: Option<Vec<u8>>,
}

pub(super) struct Reader<'a> {
    image: &'a [u8],
    time: (i64, u32),
    /// Which bytes something uses, to find what overlaps.
    used: BTreeMap<usize, usize>,
    /// Content of larger files is not read.
    largest: u64,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(wide)
}

fn crc32c_bit_by_bit(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    })
}

/// All paths of an image. The content of files above `largest` bytes is not looked at.
pub(super) fn read(image: &[u8], largest: u64) -> BTreeMap<Vec<u8>, Found> {
    let sb = &image[1024..4096];
    assert_eq!(number::<4>(sb, 0), 0xE0F5_E1E2);
    let mut zeroed = sb.to_vec();
    zeroed[4..8].fill(0);
    assert_eq!(number::<4>(sb, 4) as u32, crc32c_bit_by_bit(&zeroed));
    assert_eq!(sb[12], 12, "blocks of 4 KiB");
    assert_eq!(number::<4>(sb, 80), 0, "no incompatible feature");
    assert_eq!(image.len() % 4096, 0);
    let mut reader = Reader {
        image,
        time: (number::<8>(sb, 24) as i64, number::<4>(sb, 32) as u32),
        used: BTreeMap::from([(0, 1152)]),
        largest,
    };
    let root = number::<2>(sb, 14);
    let mut all = BTreeMap::new();
    let mut inodes = 1;
    reader.directory(Vec::new(), root, root, &mut all, &mut inodes);
    assert_eq!(number::<8>(sb, 16), inodes);
    let overlap =
        |((a, end), (b, _)): ((&usize, &usize), (&usize, &usize))| (end > b).then_some((*a, *b));
    let pairs = reader.used.iter().zip(reader.used.iter().skip(1));
    assert_eq!(pairs.filter_map(overlap).next(), None, "two things overlap");
    all
}

struct Raw {
    found: Found,
    kind: u16,
}

impl Reader<'_> {
    fn take(&mut self, at: usize, len: usize) {
        if len > 0 {
            assert_eq!(self.used.insert(at, at + len), None, "used twice: {at}");
        }
    }

    fn inode(&mut self, nid: u64) -> Raw {
        let at = nid as usize * 32;
        let bytes = &self.image[at..];
        let format = number::<2>(bytes, 0);
        assert_eq!(format & !0b111, 0);
        let extended = format & 1 == 1;
        let mode = number::<2>(bytes, 4) as u16;
        let (len, size, links, mtime, owner) = match extended {
            true => (
                64,
                number::<8>(bytes, 8),
                number::<4>(bytes, 44) as u32,
                (number::<8>(bytes, 32) as i64, number::<4>(bytes, 40) as u32),
                number::<8>(bytes, 24),
            ),
            false => (
                32,
                number::<4>(bytes, 8),
                number::<2>(bytes, 6) as u32,
                self.time,
                number::<4>(bytes, 24),
            ),
        };
        let address = number::<4>(bytes, 16) as usize * 4096;
        assert_eq!(owner, 0, "of root");
        assert!(at % 4096 + len <= 4096);
        let tail = match format >> 1 {
            0 => 0,
            2 => (size % 4096) as usize,
            other => panic!("layout {other}"),
        };
        assert!(at % 4096 + len + tail <= 4096, "crosses a block");
        self.take(at, len + tail);
        let whole = size as usize - tail;
        let is_directory = mode & 0o170_000 == 0o040_000;
        let content = (size <= self.largest || is_directory).then(|| {
            self.take(address, whole.next_multiple_of(4096));
            let mut content = match whole {
                0 => Vec::new(),
                _ => self.image[address..address + whole].to_vec(),
            };
            content.extend_from_slice(&self.image[at + len..][..tail]);
            content
        });
        Raw {
            found: Found {
                mode: mode & 0o7777,
                mtime,
                links,
                size,
                content,
            },
            kind: mode & 0o170_000,
        }
    }

    fn directory(
        &mut self,
        path: Vec<u8>,
        nid: u64,
        parent: u64,
        all: &mut BTreeMap<Vec<u8>, Found>,
        inodes: &mut u64,
    ) {
        let raw = self.inode(nid);
        assert_eq!(raw.kind, 0o040_000);
        let mut names: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        let content = raw.found.content.as_ref().expect("read");
        for block in content.chunks(4096) {
            let count = number::<2>(block, 8) as usize / 12;
            assert!(count > 0 && number::<2>(block, 8).is_multiple_of(12));
            for index in 0..count {
                let at = index * 12;
                let begin = number::<2>(block, at + 8) as usize;
                let end = match index + 1 < count {
                    true => number::<2>(block, at + 20) as usize,
                    false => block.len(),
                };
                let name = &block[begin..end];
                let name = name.split(|&byte| byte == 0).next().expect("one");
                assert!((1..=255).contains(&name.len()));
                names.push((name.to_vec(), number::<8>(block, at), block[at + 10]));
            }
        }
        assert!(names.is_sorted_by(|a, b| a.0 < b.0), "{names:?}");
        let mut links = 0;
        for (name, at, kind) in names {
            match &name[..] {
                b"." => assert_eq!((at, kind), (nid, 2)),
                b".." => assert_eq!((at, kind), (parent, 2)),
                _ => {
                    *inodes += 1;
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(&name);
                    if kind == 2 {
                        self.directory(below, at, nid, all, inodes);
                        links += 1;
                        continue;
                    }
                    let raw = self.inode(at);
                    assert_eq!(
                        (raw.kind, kind),
                        if kind == 1 {
                            (0o100_000, 1)
                        } else {
                            (0o120_000, 7)
                        }
                    );
                    assert_eq!(raw.found.links, 1);
                    all.insert(below, raw.found);
                    continue;
                }
            }
            links += 1;
        }
        assert_eq!(raw.found.links, links, "links of {path:?}");
        let found = Found {
            content: None,
            size: 0,
            ..raw.found
        };
        all.insert(path, found);
    }
}
