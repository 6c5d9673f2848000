//! What a program sees in a mounted version, beside a plain directory with the same content.

mod support;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::{Fault, Item, MemoryVersion, Node, abort_connection, can_mount, file, pattern};
use tempfile::TempDir;
use trackbed_cache::origin::Timestamp;
use trackbed_csi::expose::VersionView;
use trackbed_csi::expose::fuse::FuseMount;
use trackbed_csi::expose::mountinfo::MountTable;

fn at(seconds: i64, nanos: u32) -> Timestamp {
    Timestamp { seconds, nanos }
}

/// Everything a dataset may have.
fn everything() -> Vec<Item> {
    let item = |path: &[u8], node, mode, mtime| Item {
        path: path.to_vec(),
        node,
        mode,
        mtime,
    };
    let big = pattern(5 << 20, 1);
    let mut items = vec![
        file("readme.txt", b"hello\n"),
        item(b"empty", Node::File(vec![]), 0o400, at(0, 0)),
        item(
            b"run.sh",
            Node::File(b"#!/bin/sh\nexit 7\n".to_vec()),
            0o755,
            at(1, 999_999_999),
        ),
        item(b"old", Node::File(b"x".to_vec()), 0o600, at(-86_400, 500)),
        item(b"empty-dir", Node::Directory, 0o711, at(1_600_000_000, 1)),
        item(
            b"a/b/c/deep",
            Node::File(pattern(70_000, 2)),
            0o644,
            at(1_650_000_000, 7),
        ),
        item(b"a", Node::Directory, 0o750, at(1_500_000_000, 0)),
        item(
            b"link",
            Node::Symlink(b"a/b/c/deep".to_vec()),
            0o777,
            at(1, 1),
        ),
        item(
            b"dangling",
            Node::Symlink(b"../../nowhere \xff".to_vec()),
            0o777,
            at(2, 2),
        ),
        item(
            b"\xff\xfe not utf-8\n\t",
            Node::File(b"odd".to_vec()),
            0o644,
            at(3, 3),
        ),
        item(&[b'n'; 255], Node::File(b"long".to_vec()), 0o644, at(4, 4)),
        item(b"big", Node::File(big), 0o644, at(5, 5)),
        item(b"exact", Node::File(pattern(8192, 3)), 0o644, at(6, 6)),
    ];
    for number in 0..3000 {
        items.push(file(
            &format!("many/file-{number:05}"),
            &pattern(number % 50, 9),
        ));
    }
    items
}

/// The same content as plain files: the model.
fn write_plain(items: &[Item]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for item in items {
        let path = folder.path().join(OsStr::from_bytes(&item.path));
        fs::create_dir_all(path.parent().expect("below the folder")).expect("makes");
        match &item.node {
            Node::Directory => fs::create_dir_all(&path).expect("makes"),
            Node::File(bytes) => fs::write(&path, bytes).expect("writes"),
            Node::Symlink(target) => symlink(OsStr::from_bytes(target), &path).expect("links"),
        }
    }
    // Times and modes last: making files changes their directories' times.
    for item in items.iter().rev() {
        let path = folder.path().join(OsStr::from_bytes(&item.path));
        if !matches!(item.node, Node::Symlink(_)) {
            fs::set_permissions(&path, Permissions::from_mode(item.mode.into())).expect("sets");
        }
        let time = TimeSpec::new(item.mtime.seconds, item.mtime.nanos.into());
        let how = UtimensatFlags::NoFollowSymlink;
        utimensat(nix::fcntl::AT_FDCWD, &path, &time, &time, how).expect("sets times");
    }
    folder
}

/// What there is to see of an entry, and its directory's order left out.
#[derive(Debug, PartialEq)]
struct Seen {
    kind_and_mode: u32,
    size: Option<u64>,
    mtime: Option<(i64, i64)>,
    target: Option<OsString>,
    content: Option<Vec<u8>>,
}

fn walk(folder: &Path, listed: &BTreeMap<OsString, bool>) -> BTreeMap<OsString, Seen> {
    fn visit(
        base: &Path,
        folder: &Path,
        listed: &BTreeMap<OsString, bool>,
        found: &mut BTreeMap<OsString, Seen>,
    ) {
        for item in fs::read_dir(folder).expect("lists") {
            let item = item.expect("lists on");
            let path = item.path();
            let meta = fs::symlink_metadata(&path).expect("stats");
            assert_eq!(item.file_type().expect("known"), meta.file_type());
            assert_eq!(item.metadata().expect("stats").ino(), meta.ino());
            let name = path
                .strip_prefix(base)
                .expect("below")
                .as_os_str()
                .to_owned();
            let seen = Seen {
                kind_and_mode: meta.mode(),
                size: (!meta.is_dir()).then(|| meta.size()),
                mtime: listed.get(&name).map(|_| (meta.mtime(), meta.mtime_nsec())),
                target: fs::read_link(&path).ok().map(Into::into),
                content: meta.is_file().then(|| fs::read(&path).expect("reads")),
            };
            assert!(found.insert(name, seen).is_none(), "{path:?} listed twice");
            if meta.is_dir() {
                visit(base, &path, listed, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    visit(folder, folder, listed, &mut found);
    found
}

struct Mounted {
    version: std::sync::Arc<MemoryVersion>,
    mount: FuseMount,
    folder: TempDir,
}

fn mount(items: &[Item], piece: u64) -> Mounted {
    let version = MemoryVersion::new(items, piece);
    let folder = tempfile::tempdir().expect("a folder");
    let mount = FuseMount::new(version.clone(), "cats", folder.path()).expect("mounts");
    Mounted {
        version,
        mount,
        folder,
    }
}

impl Mounted {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().expect("from the kernel"))
}

#[test]
fn a_mounted_version_looks_like_a_plain_directory() {
    if !can_mount() {
        return;
    }
    let items = everything();
    let plain = write_plain(&items);
    let mounted = mount(&items, 4096);
    let listed = items
        .iter()
        .map(|item| (OsStr::from_bytes(&item.path).to_owned(), true))
        .collect();
    let (expected, seen) = (
        walk(plain.path(), &listed),
        walk(mounted.folder.path(), &listed),
    );
    assert_eq!(expected.len(), seen.len());
    for (name, entry) in &expected {
        assert!(Some(entry) == seen.get(name), "{name:?} differs");
    }
    // And as someone who lists it again sees it, now from the kernel's own memory.
    assert!(walk(mounted.folder.path(), &listed) == expected);

    assert_eq!(
        errno(fs::metadata(mounted.path("absent")).expect_err("not there")),
        Errno::ENOENT
    );
    assert_eq!(
        errno(fs::metadata(mounted.path("readme.txt/x")).expect_err("no directory")),
        Errno::ENOTDIR
    );
    let status = std::process::Command::new(mounted.path("run.sh"))
        .status()
        .expect("runs");
    assert_eq!(status.code(), Some(7));
    let sizes = nix::sys::statvfs::statvfs(mounted.folder.path()).expect("statvfs");
    let bytes = mounted.version.manifest().totals().bytes;
    assert_eq!(sizes.blocks(), bytes.div_ceil(sizes.fragment_size()));
    assert_eq!(sizes.blocks_available(), 0);
}

#[test]
fn any_part_of_any_file_reads_as_in_a_plain_file() {
    if !can_mount() {
        return;
    }
    let content = pattern(3 << 20, 4);
    let mounted = mount(&[file("big", &content)], 100_000);
    let cached = File::open(mounted.path("big")).expect("opens");
    let direct = {
        use std::os::unix::fs::OpenOptionsExt;
        OpenOptions::new()
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_DIRECT.bits())
            .open(mounted.path("big"))
            .expect("opens without the page cache")
    };
    let size = content.len() as u64;
    let spot = (0..size + 5000, 0usize..300_000, any::<bool>());
    TestRunner::new(Config::with_cases(200))
        .run(&spot, |(offset, len, unbuffered)| {
            let mut bytes = vec![0xAA; len];
            let file = if unbuffered { &direct } else { &cached };
            let mut got = 0;
            while got < len {
                match file
                    .read_at(&mut bytes[got..], offset + got as u64)
                    .expect("reads")
                {
                    0 => break,
                    more => got += more,
                }
            }
            let from = (offset as usize).min(content.len());
            let to = (offset as usize + len).min(content.len());
            prop_assert_eq!(&bytes[..got], &content[from..to]);
            Ok(())
        })
        .expect("equal everywhere");
}

#[test]
fn what_was_read_once_is_read_again_without_asking() {
    if !can_mount() {
        return;
    }
    let content = pattern(1 << 20, 5);
    let mounted = mount(&[file("data", &content)], 4 << 20);
    assert!(fs::read(mounted.path("data")).expect("reads") == content);
    let asked = mounted.version.read_count();
    assert!(asked > 0);
    for _ in 0..3 {
        assert!(fs::read(mounted.path("data")).expect("reads") == content);
    }
    assert_eq!(mounted.version.read_count(), asked);
}

#[test]
fn a_read_that_fails_is_an_error_and_never_zeros() {
    if !can_mount() {
        return;
    }
    let content = pattern(300_000, 6);
    for fault in [Fault::Error, Fault::Short, Fault::Panic] {
        let mounted = mount(&[file("bad", &content), file("good", &content)], 100_000);
        mounted.version.break_file("bad", fault);
        let refused = fs::read(mounted.path("bad")).expect_err("fails");
        assert_eq!(errno(refused), Errno::EIO, "{fault:?}");
        assert!(fs::read(mounted.path("good")).expect("reads") == content);
        if fault != Fault::Panic {
            let failure = mounted.mount.last_failure().expect("noted");
            assert!(failure.what.starts_with("bad: "), "{failure:?}");
        }
        assert!(mounted.mount.is_alive());
    }
}

#[test]
fn a_read_that_waits_holds_up_no_other() {
    if !can_mount() {
        return;
    }
    let content = pattern(300_000, 6);
    let mut items = vec![file("good", &content)];
    items.extend((0..20).map(|n| file(&format!("stuck/{n}"), &content)));
    let mounted = mount(&items, 100_000);
    for number in 0..20 {
        mounted
            .version
            .break_file(&format!("stuck/{number}"), Fault::Hang);
    }
    let readers: Vec<_> = (0..20)
        .map(|number| {
            let path = mounted.path(&format!("stuck/{number}"));
            std::thread::spawn(move || {
                let mut byte = [0];
                File::open(path).and_then(|mut file| file.read(&mut byte))
            })
        })
        .collect();
    while mounted.version.read_count() < 20 {
        std::thread::yield_now();
    }
    assert!(fs::read(mounted.path("good")).expect("reads") == content);
    assert_eq!(
        fs::read_dir(mounted.path("stuck")).expect("lists").count(),
        20
    );
    // The mount can go away meanwhile; the connection's end is what ends the readers' wait.
    let (_, minor) = mounted.mount.device();
    mounted.mount.unmount().expect("unmounts at once");
    abort_connection(minor);
    for reader in readers {
        reader.join().expect("no panic").expect_err("aborted");
    }
}

#[test]
fn nothing_can_be_written() {
    if !can_mount() {
        return;
    }
    let mounted = mount(&[file("data", b"data"), file("dir/x", b"x")], 4096);
    let data = mounted.path("data");
    let refusals = [
        ("open", OpenOptions::new().write(true).open(&data).map(drop)),
        (
            "truncate",
            OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(&data)
                .map(drop),
        ),
        ("create", File::create(mounted.path("new")).map(drop)),
        ("mkdir", fs::create_dir(mounted.path("new"))),
        ("unlink", fs::remove_file(&data)),
        ("rmdir", fs::remove_dir(mounted.path("dir"))),
        ("rename", fs::rename(&data, mounted.path("new"))),
        ("link", fs::hard_link(&data, mounted.path("new"))),
        ("symlink", symlink("x", mounted.path("new"))),
        (
            "chmod",
            fs::set_permissions(&data, Permissions::from_mode(0o777)),
        ),
        (
            "utimens",
            File::open(&data).and_then(|file| file.set_modified(SystemTime::now())),
        ),
    ];
    for (what, refused) in refusals {
        assert_eq!(errno(refused.expect_err(what)), Errno::EROFS, "{what}");
    }
    let table = MountTable::read().expect("reads");
    let top = table.top(mounted.mount.mount_point()).expect("mounted");
    assert_eq!(
        (top.fs_type.as_os_str(), top.source.as_os_str()),
        (OsStr::new("fuse.trackbed"), OsStr::new("trackbed:cats"))
    );
    for option in ["ro", "nosuid", "nodev", "noatime"] {
        assert!(
            top.options.split(',').any(|has| has == option),
            "{}",
            top.options
        );
    }
}

#[test]
fn unmounting_waits_for_no_one_and_open_files_stay_readable() {
    if !can_mount() {
        return;
    }
    let content = pattern(2 << 20, 7);
    let mounted = mount(&[file("data", &content)], 4 << 20);
    let open = File::open(mounted.path("data")).expect("opens");
    let mut begin = vec![0; 1000];
    open.read_exact_at(&mut begin, 0).expect("reads");
    mounted.mount.unmount().expect("unmounts");
    assert_eq!(
        fs::read_dir(mounted.folder.path())
            .expect("a plain directory")
            .count(),
        0
    );
    let mut end = vec![0; 1000];
    open.read_exact_at(&mut end, content.len() as u64 - 1000)
        .expect("still reads");
    assert!(end == content[content.len() - 1000..]);
}

#[test]
fn a_newer_mount_at_the_same_place_is_not_taken_away() {
    if !can_mount() {
        return;
    }
    let first = mount(&[file("which", b"first")], 4096);
    let second = MemoryVersion::new(&[file("which", b"second")], 4096);
    let second = FuseMount::new(second, "cats", first.folder.path()).expect("mounts over it");
    drop(first.mount);
    assert_eq!(
        fs::read(first.folder.path().join("which")).expect("reads"),
        b"second"
    );
    drop(second);
    trackbed_csi::expose::bind::detach_ours(&first.folder.path().canonicalize().expect("resolves"))
        .expect("takes the first away");
    assert_eq!(
        fs::read_dir(first.folder.path())
            .expect("plain again")
            .count(),
        0
    );
}

#[test]
fn a_session_that_was_aborted_is_known_to_be_dead() {
    if !can_mount() {
        return;
    }
    let mounted = mount(&[file("data", b"data")], 4096);
    assert!(mounted.mount.is_alive());
    let (_, minor) = mounted.mount.device();
    abort_connection(minor);
    while mounted.mount.is_alive() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(
        errno(fs::read(mounted.path("other")).expect_err("dead")),
        Errno::ENOTCONN
    );
    mounted.mount.unmount().expect("unmounts what is dead");
    assert_eq!(
        fs::read_dir(mounted.folder.path())
            .expect("plain again")
            .count(),
        0
    );
}
