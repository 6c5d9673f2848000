use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::origin::{ListedEntry, ListedKind};

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 7 }
}

fn file(path: &str, size: u64) -> ListedEntry {
    let identity = ObjectIdentity::Modified(at(1));
    ListedEntry {
        path: path.into(),
        kind: ListedKind::File { size, identity },
        mode: 0o644,
        mtime: at(1),
    }
}

fn with(path: &[u8], kind: ListedKind) -> ListedEntry {
    ListedEntry {
        path: path.to_vec(),
        kind,
        mode: 0o644,
        mtime: at(1),
    }
}

fn refused(listed: Vec<ListedEntry>) -> String {
    Manifest::build(Place::ANY, listed)
        .expect_err("must be refused")
        .to_string()
}

#[test]
fn a_listing_in_any_order_gives_the_same_version() {
    let listed = vec![
        file("b/x", 1),
        file("a.txt", 2),
        file("a/z/y", 3),
        file("a/b", 4),
    ];
    let mut reversed = listed.clone();
    reversed.reverse();
    let manifest = Manifest::build(Place::ANY, listed).expect("valid");
    assert_eq!(
        manifest.digest(),
        Manifest::build(Place::ANY, reversed)
            .expect("valid")
            .digest()
    );
    let paths: Vec<_> = manifest
        .entries()
        .map(|entry| manifest.path(entry.index))
        .collect();
    let expected: [&[u8]; 8] = [b"", b"a", b"a/b", b"a/z", b"a/z/y", b"a.txt", b"b", b"b/x"];
    assert_eq!(paths, expected);
}

#[test]
fn directories_are_listed_and_looked_up_by_name() {
    let manifest = Manifest::build(
        Place::ANY,
        vec![
            file("d/2", 1),
            file("d/10", 1),
            file("d/1/x", 1),
            with(
                b"d/\xff\xfe",
                ListedKind::Symlink {
                    target: b"../any\xffwhere".to_vec(),
                },
            ),
            with(b"empty", ListedKind::Directory),
        ],
    )
    .expect("valid");
    let directory = manifest.lookup(EntryIndex::ROOT, b"d").expect("there");
    let names: Vec<_> = manifest
        .children(directory)
        .iter()
        .map(|&child| manifest.entry(child).expect("there").name)
        .collect();
    assert_eq!(names, [&b"1"[..], b"10", b"2", b"\xff\xfe"]);
    let link = manifest
        .find(b"d/\xff\xfe")
        .and_then(|index| manifest.entry(index));
    assert_eq!(
        link.expect("there").kind,
        EntryKind::Symlink {
            target: b"../any\xffwhere"
        }
    );
    let empty = manifest.find(b"empty").expect("there");
    assert!(manifest.children(empty).is_empty());
    assert_eq!(manifest.find(b"d/3"), None);
    assert_eq!(manifest.find(b"d//2"), None);
    assert_eq!(manifest.find(b"d/2/x"), None);
}

#[test]
fn an_etag_and_a_time_are_kept_as_identity() {
    for identity in [
        ObjectIdentity::Etag("\"9b2cf535f27731c974343645a3985328-12\"".into()),
        ObjectIdentity::Modified(at(-5)),
        ObjectIdentity::Modified(at(1)),
    ] {
        let kind = ListedKind::File {
            size: 3,
            identity: identity.clone(),
        };
        let manifest = Manifest::build(Place::ANY, vec![with(b"x", kind)]).expect("valid");
        let decoded = Manifest::decode(&manifest.encode()).expect("valid");
        assert_eq!(decoded.identity(EntryIndex(1)), Some(identity));
        assert_eq!(decoded.identity(EntryIndex::ROOT), None);
    }
}

#[test]
fn paths_that_lead_elsewhere_are_refused_by_name() {
    for path in [
        "/etc/passwd",
        "",
        "a//b",
        "a/",
        "../x",
        "a/../x",
        "./x",
        "a/.",
        "a\0b",
        &"x".repeat(256),
        &format!("{}y", "x/".repeat(2048)),
    ] {
        let error = refused(vec![file(path, 1)]);
        assert!(error.starts_with("entry"), "{path:?}: {error}");
    }
    assert!(Manifest::build(Place::ANY, vec![file(&"x".repeat(255), 1)]).is_ok());
}

#[test]
fn a_path_listed_twice_or_as_file_and_directory_is_refused() {
    assert!(refused(vec![file("a", 1), file("a", 1)]).contains("more than once"));
    assert!(refused(vec![file("a", 1), file("a/b", 1)]).contains("also listed as a file"));
    assert!(
        Manifest::build(
            Place::ANY,
            vec![with(b"a", ListedKind::Directory), file("a/b", 1)]
        )
        .is_ok()
    );
}

#[test]
fn a_dataset_without_a_file_is_refused() {
    assert_eq!(
        Manifest::build(Place::ANY, Vec::new()).err(),
        Some(ManifestError::Empty)
    );
    let listed = vec![with(b"d", ListedKind::Directory)];
    assert_eq!(
        Manifest::build(Place::ANY, listed).err(),
        Some(ManifestError::Empty)
    );
}

#[test]
fn bad_symlinks_and_etags_are_refused() {
    for target in [Vec::new(), vec![b'x'; 4096], b"a\0b".to_vec()] {
        let link = with(b"l", ListedKind::Symlink { target });
        assert!(refused(vec![link, file("x", 1)]).contains("target"));
    }
    let identity = ObjectIdentity::Etag("e".repeat(256).into());
    assert!(refused(vec![with(b"x", ListedKind::File { size: 1, identity })]).contains("ETag"));
}

#[test]
fn empty_files_have_no_chunk_and_files_of_5_tib_have_many() {
    let huge = 5 << 40;
    let manifest = Manifest::build(
        Place::ANY,
        vec![file("empty", 0), file("huge", huge), file("small", 9)],
    )
    .expect("valid");
    assert_eq!(manifest.chunks(), 1 + (huge / CHUNK_BYTES as u64) as u32);
    let find = |path: &[u8]| manifest.find(path).expect("there");
    assert_eq!(manifest.locate(find(b"empty"), 0), None);
    assert_eq!(manifest.locate(find(b"huge"), huge), None);
    let last = manifest.locate(find(b"huge"), huge - 1).expect("there");
    assert_eq!((last.chunk, last.available), (manifest.chunks() - 1, 1));
    assert_eq!(manifest.extents(manifest.chunks()), []);
    assert!(refused(vec![file("x", u64::MAX)]).contains("chunks"));
    assert!(refused(vec![file("x", u64::MAX), file("y", 1)]).contains("16 EiB"));
}

#[test]
fn an_inserted_file_shifts_few_packs() {
    let listing = |extra: Option<&str>| {
        let names = (0..3000).map(|n| format!("train/{n:05}.jpg"));
        let listed = names.chain(extra.map(str::to_owned));
        let listed: Vec<ListedEntry> = listed
            .map(|name| file(&name, 40_000 + name.len() as u64))
            .collect();
        let manifest = Manifest::build(Place::ANY, listed).expect("valid");
        (0..manifest.chunks())
            .map(|chunk| {
                let extents = manifest.extents(chunk).into_iter();
                extents
                    .map(|extent| manifest.path(extent.entry))
                    .collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    };
    let (before, after) = (listing(None), listing(Some("train/00100-new.jpg")));
    let changed = after.iter().filter(|pack| !before.contains(pack)).count();
    assert!(
        after.len() > 25 && changed <= after.len() / 2,
        "{changed} of {} packs",
        after.len()
    );
}

#[test]
fn a_large_manifest_takes_little_memory() {
    let listed: Vec<ListedEntry> = (0..100_000)
        .map(|n| {
            let identity = ObjectIdentity::Etag(format!("\"{n:032x}\"").into());
            let path = format!("train/class-{:04}/image-{n:08}.jpg", n % 1000).into_bytes();
            with(
                &path,
                ListedKind::File {
                    size: 100_000 + n % 9000,
                    identity,
                },
            )
        })
        .collect();
    let manifest = Manifest::build(Place::ANY, listed).expect("valid");
    assert!(
        manifest.memory_bytes() < 130 * 100_000,
        "{} bytes",
        manifest.memory_bytes()
    );
}

fn some_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-c]{1,2}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

fn some_kind() -> impl Strategy<Value = ListedKind> {
    let size = prop_oneof![
        0..2000u64,
        900_000..1_200_000u64,
        Just(CHUNK_BYTES as u64 * 3),
        0..1u64 << 28
    ];
    let identity = prop_oneof![
        "[\"a-f0-9]{0,40}".prop_map(|etag| ObjectIdentity::Etag(etag.into())),
        (-3..3i64).prop_map(|seconds| ObjectIdentity::Modified(at(seconds))),
    ];
    prop_oneof![
        1 => Just(ListedKind::Directory),
        5 => (size, identity).prop_map(|(size, identity)| ListedKind::File { size, identity }),
        1 => prop::collection::vec(any::<u8>(), 0..9).prop_map(|target| ListedKind::Symlink { target }),
    ]
}

fn some_listing() -> impl Strategy<Value = Vec<ListedEntry>> {
    let path = prop::collection::vec(some_name(), 1..4).prop_map(|names| names.join(&b'/'));
    let entry = (path, some_kind(), any::<u16>(), -3..3i64).prop_map(|(path, kind, mode, time)| {
        ListedEntry {
            path,
            kind,
            mode,
            mtime: at(time),
        }
    });
    prop::collection::vec(entry, 0..40)
}

proptest! {
    #[test]
    fn what_a_manifest_holds_is_what_was_listed(listed in some_listing()) {
        let Ok(manifest) = Manifest::build(Place::ANY, listed.clone()) else { return Ok(()) };
        let encoded = manifest.encode();
        prop_assert_eq!(Digest::of(&encoded), manifest.digest());
        let decoded = Manifest::decode_as(&encoded, manifest.digest()).expect("its own encoding");
        prop_assert_eq!(decoded.totals(), manifest.totals());

        let expected: BTreeMap<_, _> = listed.iter().map(|entry| (entry.path.clone(), entry)).collect();
        prop_assert_eq!(expected.len(), listed.len(), "duplicates are refused");
        for (path, listed) in &expected {
            let entry = decoded.find(path).and_then(|index| decoded.entry(index)).expect("listed");
            prop_assert_eq!(&decoded.path(entry.index), path);
            prop_assert_eq!((entry.mode, entry.mtime), (listed.mode & 0o7777, listed.mtime));
            match &listed.kind {
                ListedKind::Directory => prop_assert_eq!(entry.kind, EntryKind::Directory),
                ListedKind::File { size, identity } => {
                    prop_assert_eq!(entry.kind, EntryKind::File { size: *size });
                    prop_assert_eq!(decoded.identity(entry.index), Some(identity.clone()));
                }
                ListedKind::Symlink { target } => prop_assert_eq!(entry.kind, EntryKind::Symlink { target }),
            }
        }
        let listed_or_implied = decoded.entries().skip(1).all(|entry| {
            expected.contains_key(&decoded.path(entry.index)) || entry.kind == EntryKind::Directory
        });
        prop_assert!(listed_or_implied);
    }

    #[test]
    fn every_byte_of_every_file_is_in_exactly_one_chunk(listed in some_listing()) {
        let Ok(manifest) = Manifest::build(Place::ANY, listed) else { return Ok(()) };
        let mut covered: BTreeMap<EntryIndex, u64> = BTreeMap::new();
        for chunk in 0..manifest.chunks() {
            let mut at = 0;
            for extent in manifest.extents(chunk) {
                prop_assert_eq!(extent.chunk_offset, at, "no gap in the chunk");
                let next = covered.entry(extent.entry).or_default();
                prop_assert_eq!(extent.file_offset, *next, "no gap in the file");
                for offset in [extent.file_offset, extent.file_offset + u64::from(extent.len) - 1] {
                    let location = manifest.locate(extent.entry, offset).expect("inside");
                    let within = (offset - extent.file_offset) as u32;
                    prop_assert_eq!(location, layout::Location {
                        chunk, chunk_offset: extent.chunk_offset + within, available: extent.len - within,
                    });
                }
                *next += u64::from(extent.len);
                at += extent.len;
            }
            prop_assert_eq!(at, manifest.chunk_len(chunk));
            prop_assert!(at as usize <= CHUNK_BYTES && at > 0);
        }
        for entry in manifest.entries() {
            if let EntryKind::File { size } = entry.kind {
                prop_assert_eq!(covered.get(&entry.index).copied().unwrap_or(0), size);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Manifest::decode(&bytes);
        let _ = Manifest::decode(&[b"trackbed manifest\x01", &bytes[..]].concat());
    }

    #[test]
    fn a_damaged_manifest_is_refused_or_is_another_version(
        listed in some_listing(), at: prop::sample::Index, value: u8, cut: bool,
    ) {
        let Ok(manifest) = Manifest::build(Place::ANY, listed) else { return Ok(()) };
        let mut bytes = manifest.encode();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = value }
        if let Ok(other) = Manifest::decode(&bytes) {
            prop_assert_eq!(&other.encode(), &bytes, "one version has one encoding");
        }
        if Digest::of(&bytes) != manifest.digest() {
            prop_assert!(Manifest::decode_as(&bytes, manifest.digest()).is_err());
        }
    }
}
