//! The readers of bytes that others write, as targets of a fuzzer. See
//! [`trackbed_rdma::fuzzing`].

pub use trackbed_rdma::fuzzing::Target;

use crate::manifest::{CHUNK_BYTES, EntryIndex, EntryKind, MAX_NAME_BYTES, MAX_PATH_BYTES, Place};
use crate::origin::{ListedEntry, ListedKind, ObjectIdentity, OriginUrl, Timestamp};
use crate::registry::{DatasetName, DatasetRecord};
use crate::seal::{MAX_BLOCKS, SEAL_BYTES, Seal};
use crate::{Digest, Manifest, origin, registry, store};

/// Those of this crate.
pub const TARGETS: &[Target] = &[
    MANIFEST,
    LISTING,
    SEAL,
    store::fuzzing::PRESENCE,
    store::fuzzing::VERIFIED,
    ORIGIN_URL,
    origin::fuzzing::KEY,
    origin::fuzzing::CREDENTIALS,
    origin::fuzzing::INDEX,
    registry::fuzzing::MEMBERS,
    DATASET,
];

/// An encoded manifest, as a peer sends it or a disk holds it.
const MANIFEST: Target = Target {
    name: "manifest",
    seeds: manifest_seeds,
    check: manifest,
};

/// Entries and chunks looked at of each manifest.
const LOOKED_AT: u32 = 64;

fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else {
        return;
    };
    assert!(manifest.encode() == bytes, "a version has one encoding");
    assert_eq!(manifest.digest(), Digest::of(bytes));
    for entry in manifest.entries().take(LOOKED_AT as usize) {
        let path = manifest.path(entry.index);
        assert!(path.len() <= MAX_PATH_BYTES && entry.name.len() <= MAX_NAME_BYTES);
        assert!(entry.mode <= 0o7777 && entry.mtime.nanos < 1_000_000_000);
        if entry.index != EntryIndex::ROOT {
            assert_eq!(manifest.find(&path), Some(entry.index));
            assert!(entry.parent < entry.index);
        }
        match entry.kind {
            EntryKind::File { size } => file(&manifest, entry.index, size),
            EntryKind::Directory => {
                let children = manifest.children(entry.index);
                assert!(children.iter().all(|child| *child > entry.index));
                assert_eq!(manifest.identity(entry.index), None);
            }
            EntryKind::Symlink { target } => assert!(!target.is_empty() && !target.contains(&0)),
        }
    }
    let chunks = manifest.chunks();
    for chunk in (0..chunks.min(LOOKED_AT)).chain(chunks.saturating_sub(LOOKED_AT)..chunks) {
        let mut at = 0;
        for extent in manifest.extents(chunk) {
            assert_eq!(extent.chunk_offset, at);
            let end = extent.file_offset + u64::from(extent.len);
            assert!(extent.len > 0 && end <= manifest.file_size(extent.entry));
            at += extent.len;
        }
        assert_eq!(at, manifest.chunk_len(chunk));
        assert!(at > 0 && at as usize <= CHUNK_BYTES);
    }
}

fn file(manifest: &Manifest, index: EntryIndex, size: u64) {
    assert!(manifest.identity(index).is_some());
    let chunks = manifest.chunks_of(index);
    assert!(chunks.end <= manifest.chunks() && chunks.is_empty() == (size == 0));
    assert_eq!(manifest.locate(index, size), None);
    for offset in [0, size / 2, size.saturating_sub(1)] {
        if let Some(found) = manifest.locate(index, offset) {
            assert!(chunks.contains(&found.chunk));
            let end = found.chunk_offset + found.available;
            assert!(found.available > 0 && end <= manifest.chunk_len(found.chunk));
        }
    }
}

fn listed(path: &str, kind: ListedKind) -> ListedEntry {
    ListedEntry {
        path: path.into(),
        kind,
        mode: 0o644,
        mtime: Timestamp {
            seconds: 1,
            nanos: 7,
        },
    }
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let file = |path: &str, size, identity| listed(path, ListedKind::File { size, identity });
    let etag = || ObjectIdentity::Etag("\"9b2c-12\"".into());
    let small = vec![file("a", 1, etag())];
    let all = vec![
        file("empty", 0, etag()),
        file("train/huge", 5 << 40, etag()),
        file("train/large", 9 << 20, etag()),
        file(
            "train/0001.jpg",
            100_000,
            ObjectIdentity::Modified(Timestamp {
                seconds: 1,
                nanos: 7,
            }),
        ),
        file(
            "train/0002.jpg",
            3,
            ObjectIdentity::Modified(Timestamp::default()),
        ),
        listed("train/none", ListedKind::Directory),
        listed(
            "link",
            ListedKind::Symlink {
                target: b"train/../\xff".to_vec(),
            },
        ),
    ];
    let encoded = |entries: Vec<ListedEntry>| {
        Manifest::build(Place::ANY, entries)
            .expect("valid")
            .encode()
    };
    vec![encoded(small), encoded(all)]
}

/// What an origin lists: a line for each entry, whose first byte says what it is and how large.
const LISTING: Target = Target {
    name: "listing",
    seeds: || {
        vec![
            b"3train/a\n1train\n2link\n9b".to_vec(),
            b"4a/b\n4a/c".to_vec(),
        ]
    },
    check: listing,
};

fn listing(bytes: &[u8]) {
    let entries: Vec<ListedEntry> = bytes
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let (&kind, path) = line.split_first()?;
            let kind = match kind {
                b'1' => ListedKind::Directory,
                b'2' => ListedKind::Symlink {
                    target: path.to_vec(),
                },
                // Some powers of two are more than any file has.
                other => ListedKind::File {
                    size: 1_u64.checked_shl(other.into()).unwrap_or(0),
                    identity: ObjectIdentity::Modified(Timestamp::default()),
                },
            };
            Some(ListedEntry {
                path: path.to_vec(),
                ..listed("", kind)
            })
        })
        .collect();
    let Ok(built) = Manifest::build(Place::ANY, entries.clone()) else {
        return;
    };
    let encoded = built.encode();
    manifest(&encoded);
    let decoded = Manifest::decode_as(&encoded, built.digest()).expect("its own encoding");
    assert_eq!(decoded.totals(), built.totals());
    for entry in &entries {
        assert!(decoded.find(&entry.path).is_some(), "no entry gets lost");
    }
}

/// A chunk's seal, as it lies behind the chunk on the wire and on the disk.
const SEAL: Target = Target {
    name: "seal",
    seeds: || {
        let seals = [&[7][..], &[9; 200_000]]
            .map(Seal::of)
            .into_iter()
            .flatten();
        seals.map(|seal| seal.encode().to_vec()).collect()
    },
    check: seal,
};

fn seal(bytes: &[u8]) {
    read_seal(bytes);
    let mut sealed = bytes.to_vec();
    sealed.resize(SEAL_BYTES, 0);
    let crc = crc32c::crc32c(&sealed[..SEAL_BYTES - 4]);
    sealed[SEAL_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    read_seal(&sealed);
}

fn read_seal(bytes: &[u8]) {
    let Ok(seal) = Seal::decode(bytes) else {
        return;
    };
    assert_eq!(&seal.encode()[..], bytes);
    assert!((1..=CHUNK_BYTES).contains(&seal.len()));
    let guess = vec![0; seal.len().min(2 * CHUNK_BYTES / MAX_BLOCKS)];
    for first in [0, MAX_BLOCKS - 1, MAX_BLOCKS, usize::MAX] {
        // Right or wrong, it is an answer.
        let _ = seal.verify_blocks(first, &guess);
    }
}

/// An origin's address, as a person writes it.
const ORIGIN_URL: Target = Target {
    name: "origin-url",
    seeds: || {
        let urls = [
            "/data/a b",
            "file:///data/a%20b",
            "s3://sets/train/v%201/?endpoint=http://10.0.0.1:9000&region=eu-west-1&credentials=/etc/s3",
            "s3://sets?credentials=none",
        ];
        urls.map(|url| url.as_bytes().to_vec()).into()
    },
    check: origin_url,
};

fn origin_url(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match text.parse::<OriginUrl>() {
        Ok(url) => {
            let shown = url.to_string();
            let again = shown.parse::<OriginUrl>();
            assert_eq!(again.ok().as_ref(), Some(&url), "shown as {shown}");
        }
        Err(error) => assert!(error.to_string().len() < 1000 + 4 * text.len()),
    }
}

/// What the registry knows of a dataset, a file or an answer of an API server.
const DATASET: Target = Target {
    name: "registry-dataset",
    seeds: || {
        let digest = Digest::of(b"v");
        let text = format!(
            "{{\"name\":\"cats\",\"origin\":\"file:///data/cats\",\"version\":\"{digest}\",\
             \"earlier\":[\"{digest}\"],\"namespaces\":[\"team-a\"]}}"
        );
        vec![text.into_bytes()]
    },
    check: dataset,
};

fn dataset(bytes: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<DatasetRecord>(bytes) {
        let again = serde_json::to_vec(&record).expect("it was JSON");
        let again: DatasetRecord = serde_json::from_slice(&again).expect("its own text");
        assert_eq!(again, record);
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(name) = text.parse::<DatasetName>()
    {
        assert_eq!(name.as_str(), text);
        assert!(!text.is_empty() && !text.contains(['/', '\0', '@', ':']));
    }
}
