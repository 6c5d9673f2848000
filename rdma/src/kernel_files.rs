//! Small files of sysfs and procfs, which may vanish, be empty or hold anything.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;

use libc::O_NONBLOCK;

/// What the kernel prints into one file of sysfs is at most a page; procfs has a little more.
const LONGEST: u64 = 64 << 10;
/// What nearly all have.
const PAGE: usize = 4096;
/// More entries than this are not looked at.
const MOST_ENTRIES: usize = 65536;

/// The bytes of a file, up to a bound; `None` when it can't be read.
pub fn bytes(path: &Path) -> Option<Vec<u8>> {
    // A FIFO in a hostile tree would block; what is no regular file gives an error, nothing, or bytes
    // that are bounded all the same, so that the kind of each file need not be asked.
    let mut open = OpenOptions::new();
    let mut file = open.read(true).custom_flags(O_NONBLOCK).open(path).ok()?;
    let mut page = [0; PAGE];
    // What is shorter than a page has ended: one read tells it all.
    let first = file.read(&mut page).ok()?;
    let mut bytes = page[..first].to_vec();
    if first == PAGE {
        file.take(LONGEST).read_to_end(&mut bytes).ok()?;
    }
    Some(bytes)
}

/// The trimmed text of a file; `None` when it is empty, no text, or can't be read.
pub fn text(path: &Path) -> Option<String> {
    let text = String::from_utf8(bytes(path)?).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A file's first word as a number or the like.
pub fn value<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.split_whitespace().next()?.parse().ok()
}

/// The names in a folder, sorted; none when it can't be read.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .take(MOST_ENTRIES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// A list such as `0-3,8`, as the kernel prints sets of CPUs.
pub fn cpus(text: &str) -> Option<Vec<u32>> {
    const MOST_CPUS: u32 = 65536;
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_cpus_are_read_as_the_kernel_prints_them() {
        assert_eq!(cpus("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(cpus(""), Some(Vec::new()));
        assert_eq!(cpus("3-1"), None);
        assert_eq!(cpus("0-4294967295"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_lists_never_panic(text in "[0-9,-]{0,20}") {
            cpus(&text);
        }
    }
}
