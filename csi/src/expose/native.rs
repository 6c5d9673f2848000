//! A version shown as what it is on the disk: a read-only bind mount of its tree of plain files.
//!
//! The kernel alone serves it, at its own speed, and goes on doing so whatever becomes of this
//! process. In exchange nobody checks each read any more, so only a version of which every chunk
//! was verified is shown like this (see [`Showable`](trackbed_cache::Showable)); damage that comes
//! later is looked for in the background, and mended in place.
//!
//! The mount table shows such a mount with the disk's own type and source. What tells that it is
//! ours, and which version it shows, is what part of the disk is mounted: a path that ends in
//! `versions/<digest>/tree`.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use trackbed_cache::Digest;

use super::mountinfo::{Mount, MountTable};
use super::{ExposeError, bind};

/// How versions are to be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// As plain files where that is right, else by FUSE.
    #[default]
    Auto,
    /// Always by FUSE: each read is checked.
    Fuse,
    /// As plain files or not at all.
    Native,
}

/// What the kernel adds to the root of a mount whose directory was removed.
const REMOVED: &[u8] = b"//deleted";

/// A version shown as plain files. Dropping it unmounts, lazily.
#[derive(Debug)]
pub struct NativeMount {
    mount_point: PathBuf,
    version: Digest,
    /// Whether it is still ours to unmount.
    held: bool,
}

impl NativeMount {
    /// Shows the tree of `version` at `mount_point`, an existing directory.
    pub fn new(
        tree: &Path,
        version: Digest,
        mount_point: &Path,
    ) -> Result<NativeMount, ExposeError> {
        let failed = |source| ExposeError::Mount {
            action: "find the mount point",
            target: mount_point.to_owned(),
            source,
        };
        let mount_point = mount_point.canonicalize().map_err(failed)?;
        bind_tree(tree, version, &mount_point, false)?;
        Ok(NativeMount {
            mount_point,
            version,
            held: true,
        })
    }

    /// Takes over what an earlier process shows at `mount_point`, which has no symbolic link in it,
    /// if that is this version as plain files.
    pub fn adopt(version: Digest, mount_point: &Path) -> io::Result<Option<NativeMount>> {
        let table = MountTable::read()?;
        let shown = table
            .top(mount_point)
            .is_some_and(|top| shows(top, version));
        Ok(shown.then(|| NativeMount {
            mount_point: mount_point.to_owned(),
            version,
            held: true,
        }))
    }

    /// Where it is mounted, without symbolic links.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Unmounts, as dropping does, and says what went wrong.
    pub fn unmount(mut self) -> Result<(), ExposeError> {
        self.take_apart()
    }

    /// Leaves the mount as it is, also when this process ends.
    pub fn leave(mut self) {
        self.held = false;
    }

    fn take_apart(&mut self) -> Result<(), ExposeError> {
        if !std::mem::take(&mut self.held) {
            return Ok(());
        }
        let table = MountTable::read().map_err(|source| ExposeError::Mount {
            action: "unmount",
            target: self.mount_point.clone(),
            source,
        })?;
        // Never what somebody else has mounted there since.
        match table.top(&self.mount_point) {
            Some(top) if shows(top, self.version) => bind::detach_top(&self.mount_point),
            _ => Ok(()),
        }
    }
}

impl Drop for NativeMount {
    fn drop(&mut self) {
        if let Err(error) = self.take_apart() {
            tracing::warn!(%error, "a dataset stays mounted");
        }
    }
}

/// Binds a version's tree to `target`, read-only, and makes sure that this is what is seen there.
/// `target` must have no symbolic link in it.
pub fn bind_tree(
    tree: &Path,
    version: Digest,
    target: &Path,
    no_exec: bool,
) -> Result<(), ExposeError> {
    bind::bind_read_only(tree, target, no_exec)?;
    let failed = |source| ExposeError::Mount {
        action: "show a dataset's files",
        target: target.to_owned(),
        source,
    };
    let table = MountTable::read().map_err(failed)?;
    match table.top(target) {
        Some(top) if shows(top, version) => Ok(()),
        _ => {
            bind::detach_top(target)?;
            Err(failed(io::Error::other(
                "the tree was removed, or something else was mounted there at once",
            )))
        }
    }
}

/// The version whose tree this is a bind mount of, if it is one.
pub fn version_of(mount: &Mount) -> Option<Digest> {
    let root = mount.root.as_os_str().as_bytes();
    let root = root.strip_suffix(REMOVED).unwrap_or(root);
    let mut names = root.rsplit(|&byte| byte == b'/');
    let tree = names.next()?;
    let digest = std::str::from_utf8(names.next()?).ok()?;
    let versions = names.next()?;
    let plain = !mount.fs_type.as_bytes().starts_with(b"fuse");
    if !plain || tree != b"tree" || versions != b"versions" {
        return None;
    }
    digest.parse().ok()
}

/// Whether this mount shows `version` as plain files.
pub fn shows(mount: &Mount, version: Digest) -> bool {
    let removed = mount.root.as_os_str().as_bytes().ends_with(REMOVED);
    !removed && mount.is_read_only() && version_of(mount) == Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_s_mount_is_told_by_its_place_on_the_disk() {
        let digest = Digest::of(b"v");
        let tree = format!("/cache/versions/{digest}/tree");
        let line = |root: &str, options: &str, kind: &str| {
            format!("30 22 8:1 {root} /mnt {options} shared:1 - {kind} /dev/sda1 rw\n")
        };
        let table = [
            line(&tree, "ro,nosuid", "ext4"),
            line(&tree, "rw", "ext4"),
            line(&format!("{tree}//deleted"), "ro", "ext4"),
            line(&format!("{tree}/sub"), "ro", "ext4"),
            line(&tree, "ro", "fuse.other"),
            line("/cache/versions/short/tree", "ro", "ext4"),
            line("/", "ro", "ext4"),
        ]
        .concat();
        let table = MountTable::parse(table.as_bytes());
        let told: Vec<_> = table
            .mounts()
            .iter()
            .map(|mount| (version_of(mount).is_some(), shows(mount, digest)))
            .collect();
        let (ours, seen) = (true, true);
        assert_eq!(
            told,
            [
                (ours, seen),
                (ours, false),
                (ours, false),
                (false, false),
                (false, false),
                (false, false),
                (false, false),
            ]
        );
        assert!(!shows(&table.mounts()[0], Digest::of(b"other")));
    }
}
