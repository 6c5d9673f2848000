//! Trees of files to make datasets of, and to compare mounts with.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A folder and its permission bits.
    Folder(u32),
    /// A file: its permission bits, and its bytes.
    File(u32, Vec<u8>),
    /// A symbolic link and what it says.
    Link(PathBuf),
}

/// Writes a tree that has a bit of everything below `root`, and returns the bytes of its files.
///
/// Small files that are packed, large files of several chunks, empty ones, odd names, links.
pub fn write(root: &Path) -> io::Result<u64> {
    let mut total = 0;
    let mut noise = Noise(7);
    let mut file = |path: &str, bytes: usize| -> io::Result<()> {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("every file lies below the root"))?;
        total += bytes as u64;
        std::fs::write(path, noise.bytes(bytes))
    };
    for index in 0..300 {
        file(
            &format!("small/{:02}/{index}.txt", index % 17),
            100 + index * 37,
        )?;
    }
    file("large/three-chunks.bin", (9 << 20) + 12_345)?;
    file("large/one-chunk.bin", 2 << 20)?;
    file("large/aligned.bin", 4 << 20)?;
    file("empty", 0)?;
    file("name with spaces\nand a line", 10)?;
    std::fs::create_dir_all(root.join("no/files/here"))?;
    std::fs::set_permissions(
        root.join("small/00/0.txt"),
        PermissionsExt::from_mode(0o755),
    )?;
    symlink("large/one-chunk.bin", root.join("link"))?;
    symlink("/nowhere", root.join("dangling"))?;
    Ok(total)
}

/// Writes `count` files of 1 MiB below `root`, each of which is a chunk of its own.
pub fn write_chunks(root: &Path, count: usize) -> io::Result<()> {
    let folder = root.join("chunks");
    std::fs::create_dir_all(&folder)?;
    let mut noise = Noise(11);
    for index in 0..count {
        std::fs::write(folder.join(format!("{index}.bin")), noise.bytes(1 << 20))?;
    }
    Ok(())
}

/// Bytes that look random and are the same on every run.
struct Noise(u32);

impl Noise {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| {
                self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (self.0 >> 24) as u8
            })
            .collect()
    }
}

/// Everything below `root`, by its path.
pub fn read(root: &Path) -> io::Result<BTreeMap<PathBuf, Entry>> {
    read_where(root, |_| true)
}

/// As [`read`], of paths that are wanted.
pub fn read_where(
    root: &Path,
    wanted: impl Fn(&Path) -> bool,
) -> io::Result<BTreeMap<PathBuf, Entry>> {
    let mut entries = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for found in std::fs::read_dir(root.join(&folder))? {
            let found = found?;
            let path = folder.join(found.file_name());
            if !wanted(&path) {
                continue;
            }
            let metadata = found.metadata()?;
            let mode = metadata.permissions().mode() & 0o7777;
            let entry = if metadata.is_dir() {
                folders.push(path.clone());
                Entry::Folder(mode)
            } else if metadata.is_symlink() {
                Entry::Link(std::fs::read_link(root.join(&path))?)
            } else {
                Entry::File(mode, std::fs::read(root.join(&path))?)
            };
            entries.insert(path, entry);
        }
    }
    Ok(entries)
}

/// Panics with the first path that differs, and not with megabytes of content.
pub fn assert_same(found: &BTreeMap<PathBuf, Entry>, expected: &BTreeMap<PathBuf, Entry>) {
    for (path, entry) in expected {
        match found.get(path) {
            None => panic!("{} is missing", path.display()),
            Some(other) if other != entry => panic!("{} differs", path.display()),
            Some(_) => {}
        }
    }
    for path in found.keys() {
        assert!(
            expected.contains_key(path),
            "{} is too much",
            path.display()
        );
    }
}
