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
use std::sync::Arc;

use trackbed_cache::{Digest, Showable};

use super::mountinfo::{Mount, MountTable};
use super::{Expose, ExposeError, Exposed, Failure, VersionView, bind};

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
    /// The disk's.
    device: (u32, u32),
    /// Whether it is still ours to unmount.
    held: bool,
}

/// Shows versions as plain files where that is right, and else as another way does.
pub struct NativeFirst {
    otherwise: Arc<dyn Expose>,
    choice: Choice,
}

impl NativeFirst {
    /// As `choice` says; `otherwise` shows what is not shown natively.
    pub fn new(otherwise: Arc<dyn Expose>, choice: Choice) -> NativeFirst {
        NativeFirst { otherwise, choice }
    }
}

impl Expose for NativeFirst {
    fn adopt(&self, view: &Arc<dyn VersionView>, mount_point: &Path) -> Option<Box<dyn Exposed>> {
        if self.choice != Choice::Fuse {
            match NativeMount::adopt(view.manifest().digest(), mount_point) {
                Ok(Some(mount)) => return Some(Box::new(mount)),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "looking for mounts that go on"),
            }
        }
        self.otherwise.adopt(view, mount_point)
    }

    fn show(
        &self,
        view: &Arc<dyn VersionView>,
        dataset: &str,
        mount_point: &Path,
    ) -> Result<Box<dyn Exposed>, ExposeError> {
        match (self.choice, view.showable_now()) {
            (Choice::Auto | Choice::Native, Showable::Native(tree)) => {
                match NativeMount::new(&tree, view.manifest().digest(), mount_point) {
                    Ok(mount) => {
                        tracing::info!(dataset, "shown natively");
                        return Ok(Box::new(mount));
                    }
                    Err(error) if self.choice == Choice::Native => return Err(error),
                    Err(error) => tracing::warn!(dataset, %error,
                        "the version can't be shown natively here: it is shown by FUSE"),
                }
            }
            (Choice::Native, Showable::Checked(why)) => {
                return Err(ExposeError::NotNativeYet {
                    dataset: dataset.to_owned(),
                    why,
                });
            }
            (Choice::Auto, Showable::Checked(why)) => {
                tracing::info!(dataset, why, "shown by FUSE");
            }
            (Choice::Fuse, _) => {
                tracing::info!(dataset, "shown by FUSE, as this node is told to");
            }
        }
        self.otherwise.show(view, dataset, mount_point)
    }

    fn tree(&self, view: &Arc<dyn VersionView>) -> Option<PathBuf> {
        match (self.choice, view.showable_now()) {
            (Choice::Auto | Choice::Native, Showable::Native(tree)) => Some(tree),
            _ => None,
        }
    }

    fn check(&self) {
        self.otherwise.check();
    }

    fn trouble(&self) -> Option<String> {
        self.otherwise.trouble()
    }
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
        let device = bind_tree(tree, version, &mount_point, false)?;
        Ok(NativeMount {
            mount_point,
            version,
            device,
            held: true,
        })
    }

    /// Takes over what an earlier process shows at `mount_point`, which has no symbolic link in it,
    /// if that is this version as plain files.
    pub fn adopt(version: Digest, mount_point: &Path) -> io::Result<Option<NativeMount>> {
        let table = MountTable::read()?;
        let top = table.top(mount_point).filter(|top| shows(top, version));
        Ok(top.map(|top| NativeMount {
            mount_point: mount_point.to_owned(),
            version,
            device: top.device,
            held: true,
        }))
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

impl Exposed for NativeMount {
    fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    fn device(&self) -> (u32, u32) {
        self.device
    }

    fn shows(&self, mount: &Mount) -> bool {
        shows(mount, self.version)
    }

    /// It is the kernel's own.
    fn is_alive(&self) -> bool {
        true
    }

    /// The kernel tells the reader, and nobody else.
    fn last_failure(&self) -> Option<Failure> {
        None
    }

    fn way(&self) -> String {
        "shown natively".to_owned()
    }

    fn unmount(mut self: Box<Self>) -> Result<(), ExposeError> {
        self.take_apart()
    }

    fn leave(mut self: Box<Self>) {
        self.held = false;
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
/// `target` must have no symbolic link in it. Gives the disk's device number.
pub fn bind_tree(
    tree: &Path,
    version: Digest,
    target: &Path,
    no_exec: bool,
) -> Result<(u32, u32), ExposeError> {
    bind::bind_read_only(tree, target, no_exec)?;
    let failed = |source| ExposeError::Mount {
        action: "show a dataset's files",
        target: target.to_owned(),
        source,
    };
    let table = MountTable::read().map_err(failed)?;
    match table.top(target) {
        Some(top) if shows(top, version) => Ok(top.device),
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
