//! A directory as an origin, through its public interface.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkfifo, setfsuid};
use trackbed_cache::origin::{
    DirectoryOrigin, ListProgress, ListedEntry, ListedKind, ObjectRef, Origin, OriginError,
};

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(future)
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("sets");
    folder
}

fn listed(path: &Path) -> (DirectoryOrigin, Vec<ListedEntry>) {
    let origin = DirectoryOrigin::open(path).expect("opens");
    let listing = wait(origin.list(&ListProgress::default())).expect("lists");
    let mut entries: Vec<ListedEntry> = listing.entries().collect();
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    (origin, entries)
}

fn read(
    origin: &DirectoryOrigin,
    entry: &ListedEntry,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>, OriginError> {
    let ListedKind::File { size, identity } = &entry.kind else {
        panic!("{entry:?} is no file")
    };
    let object = ObjectRef {
        path: &entry.path,
        size: *size,
        identity,
    };
    let mut bytes = vec![0; length];
    wait(origin.read(object, offset, &mut bytes)).map(|()| bytes)
}

#[test]
fn a_tree_is_listed_as_it_is_and_its_bytes_are_read() {
    let folder = folder();
    let root = folder.path();
    fs::create_dir_all(root.join("a/empty")).expect("makes");
    fs::write(root.join("a/zero"), b"").expect("writes");
    let name = OsStr::from_bytes(b"caf\xe9 \n");
    let content: Vec<u8> = (0..9_000_000u32).map(|n| (n / 7) as u8).collect();
    fs::write(root.join(name), &content).expect("writes");
    fs::set_permissions(root.join(name), Permissions::from_mode(0o640)).expect("sets");
    symlink("../outside", root.join("a/link")).expect("links");

    let (origin, entries) = listed(root);
    let paths: Vec<_> = entries.iter().map(|entry| entry.path.as_slice()).collect();
    assert_eq!(
        paths,
        [&b"a"[..], b"a/empty", b"a/link", b"a/zero", b"caf\xe9 \n"]
    );
    assert_eq!(entries[1].kind, ListedKind::Directory);
    assert_eq!(
        entries[2].kind,
        ListedKind::Symlink {
            target: b"../outside".to_vec()
        }
    );
    assert_eq!(entries[4].mode, 0o640);
    assert_eq!(read(&origin, &entries[3], 0, 0).expect("reads"), b"");
    assert_eq!(
        read(&origin, &entries[4], 0, content.len()).expect("reads"),
        content
    );
    assert_eq!(
        read(&origin, &entries[4], 4_194_299, 10).expect("reads"),
        content[4_194_299..4_194_309]
    );
    let error = read(&origin, &entries[4], 8_999_999, 2).expect_err("past the end");
    assert!(matches!(error, OriginError::Read { .. }), "{error}");
}

#[test]
fn a_directory_larger_than_a_batch_is_listed_completely_and_counted() {
    let folder = folder();
    for n in 0..3000 {
        fs::write(folder.path().join(format!("{n}")), b"abc").expect("writes");
    }
    for n in 0..200 {
        fs::create_dir_all(folder.path().join(format!("d{n}/e/f"))).expect("makes");
    }
    let origin = DirectoryOrigin::open(folder.path()).expect("opens");
    let progress = ListProgress::default();
    let entries = wait(origin.list(&progress)).expect("lists");
    assert_eq!(entries.len(), 3600);
    assert_eq!((progress.entries(), progress.bytes()), (3600, 9000));
}

#[test]
fn a_cancelled_listing_ends_with_an_error() {
    let folder = folder();
    fs::write(folder.path().join("a"), b"abc").expect("writes");
    let origin = DirectoryOrigin::open(folder.path()).expect("opens");
    let progress = ListProgress::default();
    progress.cancel();
    let error = wait(origin.list(&progress)).expect_err("cancelled");
    assert!(matches!(error, OriginError::Cancelled), "{error}");
}

#[test]
fn sockets_and_pipes_are_left_out_and_do_not_hold_the_listing() {
    let folder = folder();
    let _socket = UnixListener::bind(folder.path().join("socket")).expect("binds");
    mkfifo(&folder.path().join("pipe"), Mode::S_IRWXU).expect("makes");
    fs::write(folder.path().join("file"), b"abc").expect("writes");
    let (_, entries) = listed(folder.path());
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].path, b"file");
}

/// What happens to a listed file of three bytes, and what the read of it must say.
fn after(change: impl FnOnce(&Path)) -> OriginError {
    let folder = folder();
    let path = folder.path().join("dir/file");
    fs::create_dir(folder.path().join("dir")).expect("makes");
    fs::write(&path, b"abc").expect("writes");
    let past = SystemTime::now() - Duration::from_secs(100);
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_modified(past))
        .expect("sets");
    let (origin, entries) = listed(folder.path());
    assert_eq!(read(&origin, &entries[1], 0, 3).expect("reads"), b"abc");
    change(&path);
    let error = read(&origin, &entries[1], 0, 3).expect_err("must not be read");
    assert!(error.to_string().contains("dir/file"), "{error}");
    error
}

#[test]
fn a_file_that_changed_since_the_listing_is_an_error_that_names_it() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("rewritten", |path| fs::write(path, b"xyz").expect("writes")),
        ("truncated", |path| fs::write(path, b"").expect("writes")),
        ("longer", |path| fs::write(path, b"abcd").expect("writes")),
        ("replaced by a link", |path| {
            fs::rename(path, path.with_extension("old")).expect("renames");
            symlink("file.old", path).expect("links");
        }),
        ("replaced by a pipe", |path| {
            fs::remove_file(path).expect("removes");
            mkfifo(path, Mode::S_IRWXU).expect("makes");
        }),
    ];
    for (name, change) in changes {
        let error = after(change);
        assert!(
            matches!(error, OriginError::Changed { .. }),
            "{name}: {error}"
        );
    }
}

#[test]
fn a_file_that_is_gone_is_said_to_be_missing() {
    let error = after(|path| fs::remove_file(path).expect("removes"));
    assert!(matches!(error, OriginError::Missing { .. }), "{error}");
}

#[test]
fn nothing_outside_the_root_is_listed_or_read_through_links() {
    let outside = folder();
    fs::write(outside.path().join("file"), b"abc").expect("writes");
    let inside = folder();
    symlink(outside.path(), inside.path().join("dir")).expect("links");
    let (_, entries) = listed(inside.path());
    assert_eq!(entries.len(), 1, "{entries:?}");

    // Neither when the directory was a real one as it was listed: same size, same time.
    let error = after(|path| {
        let dir = path.parent().expect("a parent");
        let moved = dir.with_extension("moved");
        fs::rename(dir, &moved).expect("renames");
        symlink("dir.moved", dir).expect("links");
    });
    assert!(matches!(error, OriginError::Changed { .. }), "{error}");
}

/// Runs as a user without privileges, whoever runs the tests: threads inherit it.
fn unprivileged<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setfsuid(Uid::from_raw(65534));
            run()
        });
        thread.join().expect("no panic")
    })
}

#[test]
fn an_unreadable_part_of_the_origin_is_named_with_the_remedy() {
    for (name, is_directory) in [("closed", true), ("secret", false)] {
        let folder = folder();
        let path = folder.path().join(name);
        if is_directory {
            fs::create_dir(&path).expect("makes");
        } else {
            fs::write(&path, b"abc").expect("writes");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o000)).expect("sets");
        let error = unprivileged(|| {
            let origin = DirectoryOrigin::open(folder.path()).expect("opens");
            wait(origin.list(&ListProgress::default())).expect_err("unreadable")
        });
        let text = error.to_string();
        assert!(matches!(error, OriginError::Denied { .. }), "{text}");
        assert!(
            text.contains(name) && text.contains("make it readable"),
            "{text}"
        );
    }
}

#[test]
fn a_file_closed_after_the_listing_is_named_with_the_remedy() {
    let folder = folder();
    fs::write(folder.path().join("file"), b"abc").expect("writes");
    let (_, entries) = listed(folder.path());
    fs::set_permissions(folder.path().join("file"), Permissions::from_mode(0o000)).expect("sets");
    let error = unprivileged(|| {
        let origin = DirectoryOrigin::open(folder.path()).expect("opens");
        read(&origin, &entries[0], 0, 3).expect_err("unreadable")
    });
    assert!(matches!(error, OriginError::Denied { .. }), "{error}");
}

#[test]
fn an_origin_that_is_no_directory_says_so() {
    let folder = folder();
    fs::write(folder.path().join("file"), b"").expect("writes");
    for name in ["file", "missing"] {
        let error = DirectoryOrigin::open(&folder.path().join(name))
            .err()
            .expect("refused");
        assert!(matches!(error, OriginError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}
