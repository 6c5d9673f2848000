//! Reading a whole tree: its names, modes, sizes and symlink targets, and the BLAKE3 of every
//! file. The origin and the mounts are read by the same code, and not by any of Trackbed's.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How much of a file is read at once. More than a chunk brings nothing: reads end at its border.
const READ_BYTES: usize = 1 << 20;

/// Why a tree could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    /// A call on an entry failed.
    #[error("cannot {action} {path}: {error}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// [`Watch::cancel`] was set.
    #[error("interrupted")]
    Cancelled,
}

/// What an entry of a tree is. Two trees are the same when all their entries are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A folder and its permission bits.
    Directory { mode: u32 },
    /// A file, its permission bits and what its bytes hash to.
    File {
        mode: u32,
        size: u64,
        digest: blake3::Hash,
    },
    /// A symbolic link.
    Symlink { target: PathBuf },
    /// A socket, pipe or device: not part of a dataset.
    Special,
}

/// A tree as read: entries by path relative to its root.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) entries: BTreeMap<PathBuf, Entry>,
    pub(crate) files: u64,
    /// The sum of the files' sizes, in bytes.
    pub(crate) bytes: u64,
}

/// Told what happens during the reading, from any thread, and asked whether to go on.
pub(crate) trait Watch: Sync {
    /// The tree has been listed: this many bytes are to be read.
    fn listed(&self, bytes: u64);
    /// This many further bytes have been read.
    fn read(&self, bytes: u64);
    /// True when the reading shall end.
    fn cancelled(&self) -> bool;
}

/// A file still to be hashed.
struct Unread {
    path: PathBuf,
    mode: u32,
}

/// Reads every byte below `root` with `threads` threads.
pub(crate) fn read(root: &Path, threads: usize, watch: &dyn Watch) -> Result<Tree, TreeError> {
    let mut tree = Tree::default();
    let mut unread = Vec::new();
    let mut listed = 0;
    list(root, &mut tree, &mut unread, &mut listed, watch)?;
    watch.listed(listed);

    let next = AtomicUsize::new(0);
    let hashed = Mutex::new(Vec::with_capacity(unread.len()));
    let hash_some = || -> Result<(), TreeError> {
        let mut buffer = vec![0; READ_BYTES];
        while let Some(file) = unread.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (size, digest) = hash(&root.join(&file.path), &mut buffer, watch)?;
            let entry = Entry::File {
                mode: file.mode,
                size,
                digest,
            };
            hashed.lock().push((file.path.clone(), size, entry));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(hash_some)).collect();
        let joined = workers.into_iter().map(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        // All are joined, the first error is kept.
        joined.fold(Ok(()), Result::and)
    })?;
    for (path, size, entry) in hashed.into_inner() {
        tree.files += 1;
        tree.bytes += size;
        tree.entries.insert(path, entry);
    }
    Ok(tree)
}

/// The size of what is below `root` and how many files, without reading them.
pub(crate) fn measure(root: &Path, watch: &dyn Watch) -> Result<(u64, u64), TreeError> {
    let (mut tree, mut unread, mut bytes) = (Tree::default(), Vec::new(), 0);
    list(root, &mut tree, &mut unread, &mut bytes, watch)?;
    Ok((unread.len() as u64, bytes))
}

/// Lists in path order, so that files packed together are read together.
fn list(
    root: &Path,
    tree: &mut Tree,
    unread: &mut Vec<Unread>,
    bytes: &mut u64,
    watch: &dyn Watch,
) -> Result<(), TreeError> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        if watch.cancelled() {
            return Err(TreeError::Cancelled);
        }
        let at = root.join(&folder);
        let entries = fs::read_dir(&at).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|error| failed("list", &at, error))? {
            let path = folder.join(entry.file_name());
            let meta = entry
                .metadata()
                .map_err(|error| failed("look at", &entry.path(), error))?;
            let mode = meta.permissions().mode() & 0o7777;
            if meta.is_dir() {
                tree.entries.insert(path.clone(), Entry::Directory { mode });
                folders.push(path);
            } else if meta.is_file() {
                *bytes += meta.len();
                unread.push(Unread { path, mode });
            } else if meta.is_symlink() {
                let target = fs::read_link(entry.path())
                    .map_err(|error| failed("read the symlink", &entry.path(), error))?;
                tree.entries.insert(path, Entry::Symlink { target });
            } else {
                tree.entries.insert(path, Entry::Special);
            }
        }
    }
    unread.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(())
}

fn hash(
    path: &Path,
    buffer: &mut [u8],
    watch: &dyn Watch,
) -> Result<(u64, blake3::Hash), TreeError> {
    let mut file = File::open(path).map_err(|error| failed("open", path, error))?;
    let mut hasher = blake3::Hasher::new();
    let mut size = 0;
    loop {
        if watch.cancelled() {
            return Err(TreeError::Cancelled);
        }
        match file.read(buffer) {
            Ok(0) => return Ok((size, hasher.finalize())),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
                watch.read(read as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("read", path, error)),
        }
    }
}

fn failed(action: &'static str, path: &Path, error: io::Error) -> TreeError {
    TreeError::Io {
        action,
        path: path.to_owned(),
        error,
    }
}

/// Where two trees differ, a sentence each, at most `limit`.
pub(crate) fn differences(origin: &Tree, mounted: &Tree, limit: usize) -> Vec<String> {
    let missing = origin.entries.iter().filter_map(|(path, expected)| {
        let path_shown = path.display();
        match mounted.entries.get(path) {
            Some(found) if found == expected => None,
            Some(found) => Some(format!(
                "{path_shown}: {found:?}, in the origin {expected:?}"
            )),
            None => Some(format!("{path_shown}: missing from the mount")),
        }
    });
    let extra = mounted
        .entries
        .keys()
        .filter(|path| !origin.entries.contains_key(*path))
        .map(|path| format!("{}: not in the origin", path.display()));
    missing.chain(extra).take(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::AtomicBool;

    /// A [`Watch`] that shows nothing.
    struct Silent<'a>(&'a AtomicBool);

    impl Watch for Silent<'_> {
        fn listed(&self, _: u64) {}
        fn read(&self, _: u64) {}
        fn cancelled(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn sample() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/one"), b"one").unwrap();
        fs::write(root.path().join("a/b/two"), vec![7; 3 << 20]).unwrap();
        fs::write(root.path().join("empty"), b"").unwrap();
        symlink("../nowhere", root.path().join("a/link")).unwrap();
        root
    }

    fn read_all(root: &Path) -> Tree {
        read(root, 3, &Silent(&AtomicBool::new(false))).unwrap()
    }

    #[test]
    fn the_same_tree_read_twice_does_not_differ() {
        let root = sample();
        let (first, second) = (read_all(root.path()), read_all(root.path()));
        assert_eq!((first.files, first.bytes), (3, 3 + (3 << 20)));
        assert!(differences(&first, &second, 10).is_empty());
    }

    #[test]
    fn every_kind_of_difference_is_named() {
        let root = sample();
        let before = read_all(root.path());
        let at = |path: &str| root.path().join(path);
        let mut bytes = fs::read(at("a/b/two")).unwrap();
        bytes[2 << 20] ^= 1;
        fs::write(at("a/b/two"), bytes).unwrap();
        fs::set_permissions(at("a/one"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(at("a/link")).unwrap();
        symlink("elsewhere", at("a/link")).unwrap();
        fs::remove_file(at("empty")).unwrap();
        fs::write(at("new"), b"").unwrap();
        let differences = differences(&before, &read_all(root.path()), 10);
        let named: Vec<_> = differences
            .iter()
            .filter_map(|line| line.split(':').next())
            .collect();
        assert_eq!(named, ["a/b/two", "a/link", "a/one", "empty", "new"]);
    }

    #[test]
    fn a_cancelled_reading_ends() {
        let root = sample();
        let outcome = read(root.path(), 2, &Silent(&AtomicBool::new(true)));
        assert!(matches!(outcome, Err(TreeError::Cancelled)));
    }

    #[test]
    fn measuring_agrees_with_reading() {
        let root = sample();
        let tree = read_all(root.path());
        let measured = measure(root.path(), &Silent(&AtomicBool::new(false))).unwrap();
        assert_eq!(measured, (tree.files, tree.bytes));
    }
}
