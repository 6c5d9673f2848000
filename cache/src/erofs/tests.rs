//! Images of all kinds of trees, read back by a reader of the tests' own and by erofs-utils.

mod reader;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::format::BLOCK;
use super::*;
use crate::manifest::{EntryKind, Manifest, Place};
use crate::origin::{ListedEntry, ListedKind, ObjectIdentity, Timestamp};
use reader::Found;

/// What a test's tree has at a path.
#[derive(Clone, Debug)]
enum Node {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Item {
    node: Node,
    mode: u16,
    mtime: Timestamp,
}

type Tree = BTreeMap<Vec<u8>, Item>;

fn item(node: Node) -> Item {
    Item {
        node,
        mode: 0o644,
        mtime: Timestamp {
            seconds: 1_700_000_000,
            nanos: 9,
        },
    }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 31 + seed * 17 + at / 255) as u8 | 1)
        .collect()
}

fn manifest(tree: &Tree) -> Manifest {
    let listed = tree.iter().map(|(path, item)| ListedEntry {
        path: path.clone(),
        kind: match &item.node {
            Node::Directory => ListedKind::Directory,
            Node::File(content) => ListedKind::File {
                size: content.len() as u64,
                identity: ObjectIdentity::Modified(item.mtime),
            },
            Node::Symlink(target) => ListedKind::Symlink {
                target: target.clone(),
            },
        },
        mode: item.mode,
        mtime: item.mtime,
    });
    Manifest::build(Place::ANY, listed.collect::<Vec<_>>()).expect("valid")
}

fn chunk_bytes(manifest: &Manifest, chunk: u32, tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    for extent in manifest.extents(chunk) {
        let Node::File(content) = &tree[&manifest.path(extent.entry)].node else {
            panic!("a chunk of what is no file");
        };
        bytes.extend_from_slice(&content[extent.file_offset as usize..][..extent.len as usize]);
    }
    bytes
}

/// The image, put together from its parts in whatever order.
fn image(manifest: &Manifest, tree: &Tree) -> Vec<u8> {
    let plan = Plan::of(manifest).expect("small enough");
    let mut image = vec![0xAA; plan.image_bytes() as usize];
    let mut at = 0;
    for chunk in (0..manifest.chunks()).rev() {
        let content = chunk_bytes(manifest, chunk, tree);
        let region = plan.region(manifest, chunk, &content);
        assert_eq!(region.bytes.len() % BLOCK, 0);
        image[region.at as usize..][..region.bytes.len()].copy_from_slice(&region.bytes);
        at += region.bytes.len();
    }
    let mut begin = 0;
    for piece in plan.metadata(manifest) {
        image[begin..begin + piece.len()].copy_from_slice(&piece);
        begin += piece.len();
    }
    assert_eq!(begin as u64, plan.metadata_bytes());
    assert_eq!(begin + at, image.len(), "all of it was written, once");
    image
}

fn expected(manifest: &Manifest, tree: &Tree) -> BTreeMap<Vec<u8>, Found> {
    let entries = manifest.entries().map(|entry| {
        let path = manifest.path(entry.index);
        let item = tree.get(&path);
        let content = match item.map(|item| &item.node) {
            Some(Node::File(content)) | Some(Node::Symlink(content)) => Some(content.clone()),
            Some(Node::Directory) | None => None,
        };
        let links = match entry.kind {
            EntryKind::Directory => {
                let children = manifest.children(entry.index).iter();
                let kinds = children.filter_map(|&child| manifest.entry(child));
                2 + kinds
                    .filter(|child| child.kind == EntryKind::Directory)
                    .count()
            }
            _ => 1,
        };
        let found = Found {
            mode: match entry.kind {
                EntryKind::Symlink { .. } => 0o777,
                _ => entry.mode & 0o1777,
            },
            mtime: (entry.mtime.seconds, entry.mtime.nanos),
            links: links as u32,
            size: content.as_ref().map_or(0, |content| content.len() as u64),
            content,
        };
        (path, found)
    });
    entries.collect()
}

fn check(tree: &Tree) -> Vec<u8> {
    let manifest = manifest(tree);
    let image = image(&manifest, tree);
    let (found, wanted) = (reader::read(&image, u64::MAX), expected(&manifest, tree));
    for (path, wanted) in &wanted {
        assert_eq!(found.get(path), Some(wanted), "{path:?}");
    }
    assert_eq!(found.len(), wanted.len());
    image
}

/// What erofs-utils makes of an image, if they are installed.
fn check_by_others(tree: &Tree, image: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, out) = (folder.path().join("image"), folder.path().join("out"));
    fs::write(&file, image).expect("writes");
    let fsck = Command::new("fsck.erofs")
        .arg(format!("--extract={}", out.display()))
        .args(["--preserve-perms", "--no-preserve-owner"])
        .arg(&file)
        .output();
    let Ok(fsck) = fsck else {
        println!("skipped: fsck.erofs is not installed (Debian's package erofs-utils)");
        return;
    };
    let said = String::from_utf8_lossy(&fsck.stderr).into_owned();
    assert!(fsck.status.success(), "{said}");
    for (path, item) in tree {
        let path = out.join(Path::new(std::ffi::OsStr::from_bytes(path)));
        let found = fs::symlink_metadata(&path).expect("extracted");
        match &item.node {
            Node::Directory => assert!(found.is_dir()),
            Node::File(content) => assert!(fs::read(&path).expect("reads") == *content, "{path:?}"),
            Node::Symlink(target) => {
                let read = fs::read_link(&path).expect("a link");
                assert_eq!(read.as_os_str().as_bytes(), target);
                continue;
            }
        }
        assert_eq!(
            found.permissions().mode() & 0o7777,
            u32::from(item.mode & 0o1777)
        );
        assert_eq!(found.mtime(), item.mtime.seconds, "{path:?}");
    }
}

fn file(len: usize, seed: usize) -> Item {
    item(Node::File(pattern(len, seed)))
}

#[test]
fn files_of_all_sizes_links_and_directories_are_in_the_image_as_they_were_listed() {
    let mut tree = Tree::new();
    let block = BLOCK;
    let sizes = [
        0,
        1,
        31,
        4031,
        4032,
        4033,
        block - 1,
        block,
        block + 1,
        3 * block,
        3 * block + 2000,
    ];
    for (seed, size) in sizes.into_iter().enumerate() {
        tree.insert(format!("sizes/{size}").into(), file(size, seed));
    }
    tree.insert(b"large".to_vec(), file((9 << 20) + 17, 3));
    tree.insert(b"just-small".to_vec(), file((1 << 20) - 1, 4));
    tree.insert(b"just-large".to_vec(), file(1 << 20, 5));
    tree.insert(b"empty-directory".to_vec(), item(Node::Directory));
    tree.insert(vec![b'x'; 255], file(100, 6));
    tree.insert(b"not \xff utf-8 \n".to_vec(), file(100, 7));
    for (name, len) in [
        ("short", 1),
        ("long", 4031),
        ("longer", 4032),
        ("longest", 4095),
    ] {
        tree.insert(name.into(), item(Node::Symlink(vec![b't'; len])));
    }
    // What sorts before, between and behind "." and "..".
    for name in [
        "dots/!", "dots/-", "dots/.-", "dots/.a", "dots/...", "dots/a",
    ] {
        tree.insert(name.into(), file(10, 8));
    }
    let mut odd = file(5000, 9);
    odd.mode = 0o6755;
    odd.mtime = Timestamp {
        seconds: -5,
        nanos: 999_999_999,
    };
    tree.insert(b"set-uid".to_vec(), odd);
    let image = check(&tree);
    // fsck.erofs gives up on times before 1970.
    tree.remove(&b"set-uid"[..]);
    let image_for_others = check(&tree);
    assert_ne!(image, image_for_others);
    check_by_others(&tree, &image_for_others);
}

#[test]
fn directories_of_many_blocks_and_deep_ones_are_searched_by_name() {
    let mut tree = Tree::new();
    for number in 0..3000 {
        let name = format!("many/{number:05}{}", "n".repeat(number % 240));
        tree.insert(name.into(), file(number % 50, number));
    }
    for number in 0..700 {
        tree.insert(
            format!("directories/{number}").into(),
            item(Node::Directory),
        );
    }
    tree.insert(vec!["deep"; 300].join("/").into(), file(77, 1));
    let image = check(&tree);
    check_by_others(&tree, &image);
}

#[test]
fn files_beyond_4_gib_and_directories_with_more_than_65535_others_have_long_inodes() {
    let time = Timestamp {
        seconds: 1,
        nanos: 0,
    };
    let entry = |path: String, kind| ListedEntry {
        path: path.into(),
        kind,
        mode: 0o755,
        mtime: time,
    };
    let mut listed = vec![
        entry(
            "huge".into(),
            ListedKind::File {
                size: (5 << 30) + 5,
                identity: ObjectIdentity::Modified(time),
            },
        ),
        entry(
            "small".into(),
            ListedKind::File {
                size: 3,
                identity: ObjectIdentity::Modified(time),
            },
        ),
    ];
    listed.extend((0..70_000).map(|number| entry(format!("d/{number}"), ListedKind::Directory)));
    let manifest = Manifest::build(Place::ANY, listed).expect("valid");
    let plan = Plan::of(&manifest).expect("small enough");
    assert!(plan.image_bytes() > 5 << 30);
    let mut image: Vec<u8> = plan.metadata(&manifest).flatten().collect();
    image.extend_from_slice(&plan.region(&manifest, 0, b"abc").bytes);
    let found = reader::read(&image, 100);
    assert_eq!(found[&b"huge"[..]].size, (5 << 30) + 5);
    assert_eq!(found[&b"d"[..]].links, 70_002);
    assert_eq!(found[&b"small"[..]].content.as_deref(), Some(&b"abc"[..]));
    // The large file's chunks lie one behind the other.
    let at = |chunk| plan.region(&manifest, chunk, &[]).at;
    let chunks: Vec<u64> = (1..manifest.chunks()).map(at).collect();
    assert!(chunks.windows(2).all(|pair| pair[1] - pair[0] == 4 << 20));
}

#[test]
fn small_files_take_little_more_than_their_bytes() {
    let tree: Tree = (0..5000)
        .map(|number| {
            (
                format!("{number}").into_bytes(),
                file(600 + number % 400, number),
            )
        })
        .collect();
    let bytes: usize = (0..5000).map(|number| 600 + number % 400).sum();
    let image = check(&tree);
    assert!(image.len() < bytes * 13 / 10, "{} of {bytes}", image.len());
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![b'a'..=b'd', 1u8..=255].prop_filter("no slash", |&b| b != b'/');
    let name = prop_oneof![9 => vec(byte.clone(), 1..4), 1 => vec(byte, 200..=255)];
    name.prop_filter("a name", |name| name != b"." && name != b"..")
}

fn items() -> impl Strategy<Value = Item> {
    let size = prop_oneof![
        4 => 0usize..300,
        4 => 0usize..9_000,
        2 => prop::sample::select(vec![4032, 4064, 4095, 4096, 4097, 8192, 1 << 20]),
        1 => 0usize..200_000,
    ];
    let node = prop_oneof![
        1 => Just(Node::Directory),
        6 => (size, 0usize..9).prop_map(|(size, seed)| Node::File(pattern(size, seed))),
        1 => vec(1u8..=255, 1..5000usize).prop_filter_map("a target", |target| {
            (target.len() <= 4095).then_some(Node::Symlink(target))
        }),
    ];
    let mtime = prop_oneof![
        Just((1_600_000_000, 5)),
        (any::<i32>().prop_map(i64::from), 0u32..1_000_000_000),
    ];
    (node, 0u16..0o10_000, mtime).prop_map(|(node, mode, (seconds, nanos))| Item {
        node,
        mode,
        mtime: Timestamp { seconds, nanos },
    })
}

/// A tree in which nothing lies below what is no directory, and with a file in it.
fn trees() -> impl Strategy<Value = Tree> {
    btree_map(vec(names(), 1..5), items(), 0..40).prop_map(|paths| {
        let mut tree = Tree::from([(b"a-file".to_vec(), file(5, 5))]);
        for (path, item) in paths {
            let mut above = (1..path.len()).map(|len| path[..len].join(&b'/'));
            let taken = |path: Vec<u8>| {
                tree.get(&path)
                    .is_some_and(|item| !matches!(item.node, Node::Directory))
            };
            let path_name = path.join(&b'/');
            let mut below = path_name.clone();
            below.push(b'/');
            let has_children = tree.keys().any(|key| key.starts_with(&below));
            let blocked = has_children && !matches!(item.node, Node::Directory);
            if !blocked && path_name.len() < 4000 && !above.any(taken) {
                tree.insert(path_name, item);
            }
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_is_read_back_as_it_was(tree in trees()) {
        check(&tree);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn erofs_utils_find_any_tree_right_and_extract_it(mut tree in trees()) {
        for item in tree.values_mut() {
            // It gives up on times before 1970.
            item.mtime.seconds = item.mtime.seconds.abs();
        }
        let image = check(&tree);
        check_by_others(&tree, &image);
    }
}
