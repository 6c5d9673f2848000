//! What is mounted where, from `/proc/self/mountinfo`: the truth after a crash or a reboot.
//!
//! Asking the table never touches the mounts themselves, so a dead one cannot block the question
//! the way `stat` does. The format is described in proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{SOURCE_PREFIX, native};

/// Where the kernel shows this process's mounts.
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's id.
    pub id: u64,
    /// The id of the mount it stands on.
    pub parent: u64,
    /// The device number (major, minor) of the file system: equal for all bind mounts of one.
    pub device: (u32, u32),
    /// What part of the file system is mounted.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The mount's own options, such as `ro,nosuid`.
    pub options: String,
    /// The file system's type, such as `fuse.trackbed`.
    pub fs_type: OsString,
    /// What was mounted, such as `trackbed:imagenet`.
    pub source: OsString,
}

/// A snapshot of all mounts this process sees.
#[derive(Clone, Debug, Default)]
pub struct MountTable(Vec<Mount>);

impl MountTable {
    /// Reads the table of this process's mount namespace.
    pub fn read() -> io::Result<MountTable> {
        let text = fs::read(MOUNTINFO).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot read {MOUNTINFO}: {error}: mount /proc"),
            )
        })?;
        Ok(MountTable::parse(&text))
    }

    /// Parses the table's text. A line this reader does not understand is left out: a future
    /// kernel's new field must not make every mount unknown.
    pub fn parse(text: &[u8]) -> MountTable {
        MountTable(
            text.split(|&byte| byte == b'\n')
                .filter_map(parse_line)
                .collect(),
        )
    }

    /// The mount that is seen at exactly this path: the top one, if they are stacked.
    pub fn top(&self, path: &Path) -> Option<&Mount> {
        let here = || self.0.iter().filter(|mount| mount.mount_point == path);
        here().rfind(|mount| !here().any(|other| other.parent == mount.id && other.id != mount.id))
    }

    /// All mounts, in the kernel's order.
    pub fn mounts(&self) -> &[Mount] {
        &self.0
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let root = unescape(fields.next()?).into();
    let mount_point = unescape(fields.next()?).into();
    let options = std::str::from_utf8(fields.next()?).ok()?.to_owned();
    // Any number of optional fields (shared:, master:, …) ends with a lone hyphen.
    fields.find(|field| field == b"-")?;
    Some(Mount {
        id,
        parent,
        device,
        root,
        mount_point,
        options,
        fs_type: unescape(fields.next()?),
        source: unescape(fields.next()?),
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the kernel's octal escapes of space, tab, newline, backslash and hash.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail) {
            (
                b'\\',
                [
                    a @ b'0'..=b'3',
                    b @ b'0'..=b'7',
                    c @ b'0'..=b'7',
                    after @ ..,
                ],
            ) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

impl Mount {
    /// Whether writing through this mount is refused.
    pub fn is_read_only(&self) -> bool {
        self.options.split(',').any(|option| option == "ro")
    }

    /// Whether this is a mount of Trackbed's, of this process or an earlier one: a FUSE mount of a
    /// dataset, the tree of one, or a bind mount of either.
    pub fn is_ours(&self) -> bool {
        self.is_our_fuse() || native::version_of(self).is_some()
    }

    /// Whether this is a FUSE mount of Trackbed's, or a bind mount of one.
    pub fn is_our_fuse(&self) -> bool {
        self.fs_type.as_bytes().starts_with(b"fuse")
            && self.source.as_bytes().starts_with(SOURCE_PREFIX.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &[u8] = b"\
22 1 0:20 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/x\n\
30 22 0:44 / /a\\040b\\134c rw,nosuid - tmpfs tmpfs rw\n\
31 30 0:45 / /a\\040b\\134c ro,nosuid,nodev shared:7 master:3 - fuse.trackbed trackbed:cats rw\n\
nonsense\n\
32 22 0:46 /sub\\012dir /b rw - ext4 /dev/sda1 rw\n";

    #[test]
    fn a_path_with_spaces_and_backslashes_is_found_and_its_top_mount_wins() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.mounts().len(), 4);
        let top = table.top(Path::new("/a b\\c")).expect("mounted");
        assert_eq!((top.id, top.device), (31, (0, 45)));
        assert_eq!(top.fs_type, "fuse.trackbed");
        assert!(top.is_ours());
        assert!(top.is_read_only());
        let other = table.top(Path::new("/b")).expect("mounted");
        assert_eq!(other.root, Path::new("/sub\ndir"));
        assert!(!other.is_read_only() && !other.is_ours());
        assert!(table.top(Path::new("/a")).is_none());
    }

    #[test]
    fn this_machine_s_own_table_has_a_root() {
        let table = MountTable::read().expect("/proc is mounted");
        assert!(table.top(Path::new("/")).is_some());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let table = MountTable::parse(&bytes);
            prop_assert!(table.mounts().len() <= bytes.len());
        }

        #[test]
        fn what_the_kernel_escapes_is_read_back(name in proptest::collection::vec(1u8.., 1..40)) {
            let mut escaped = Vec::new();
            for &byte in &name {
                if b" \t\n\\#".contains(&byte) {
                    escaped.extend_from_slice(format!("\\{byte:03o}").as_bytes());
                } else {
                    escaped.push(byte);
                }
            }
            prop_assert_eq!(unescape(&escaped), OsString::from_vec(name));
        }
    }
}
