//! A version shown as what it is on the disk: a read-only bind mount of its tree of plain files.
//!
//! The kernel alone serves it, at its own speed, and goes on doing so whatever becomes of this
//! process. In exchange nobody checks each read any more, so only a version of which every chunk
//! was verified is shown like this (see [`Showable`](trackbed_cache::Showable)); damage that comes
//! later is looked for in the background, and mended in place.
//!
//! The mount table shows such a mount with the disk's own type and source. What tells that it is
//! ours, and which version it shows, is what part of the disk is mounted: a path that ends in
//! `versions/<digest>/tree`. A version of many small files is an EROFS image instead of a tree, with the
//! same promises; its mounts are [`erofs`]'s.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trackbed_cache::{Digest, Showable};

use super::erofs::{self, Way};
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
    /// As plain files, or as an image of them, or not at all.
    Native,
    /// As [`Choice::Auto`], with an image for each version that can be one.
    Erofs,
    /// As [`Choice::Auto`], without images.
    Files,
}

/// From how many small files on a version is shown as an image rather than as that many files on the
/// disk.
const MANY_SMALL_FILES: u32 = 10_000;

impl Choice {
    /// From how many small files on a version is to be an image; never without.
    pub fn image_from(self) -> Option<u32> {
        match self {
            Choice::Auto | Choice::Native => Some(MANY_SMALL_FILES),
            Choice::Erofs => Some(1),
            Choice::Fuse | Choice::Files => None,
        }
    }
}

/// How versions are shown, in the volumes' conditions.
const BY_FILES: &str = "shown natively";
const BY_IMAGE: &str = "shown natively, from an EROFS image";

/// What the kernel adds to the root of a mount whose directory was removed.
const REMOVED: &[u8] = b"//deleted";

/// A version shown as plain files. Dropping it unmounts, lazily.
#[derive(Debug)]
pub struct NativeMount {
    mount_point: PathBuf,
    version: Digest,
    /// The disk's, or the image's.
    device: (u32, u32),
    by: &'static str,
    /// Whether it is still ours to unmount.
    held: bool,
}

/// What the kernel alone can show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory.
    Tree(PathBuf),
    /// An EROFS image.
    Image(PathBuf, Way),
}

impl Source {
    /// Shows it at `target`, read-only, and makes sure that this is what is seen there.
    /// `target` must have no symbolic link in it. Gives the file system's device number.
    pub fn show(
        &self,
        version: Digest,
        target: &Path,
        no_exec: bool,
    ) -> Result<(u32, u32), ExposeError> {
        match self {
            Source::Tree(tree) => bind::bind_read_only(tree, target, no_exec)?,
            Source::Image(image, way) => erofs::mount(image, version, *way, target, no_exec)?,
        }
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
}

/// Shows versions as plain files where that is right, and else as another way does.
pub struct NativeFirst {
    otherwise: Arc<dyn Expose>,
    choice: Choice,
    /// How images are mounted, if they can be.
    images: Option<Way>,
}

impl NativeFirst {
    /// As `choice` says; `otherwise` shows what is not shown natively.
    pub fn new(otherwise: Arc<dyn Expose>, choice: Choice) -> NativeFirst {
        NativeFirst {
            otherwise,
            choice,
            images: None,
        }
    }

    /// Mounts images in this way; without one, versions that are an image are shown otherwise.
    pub fn with_images(self, images: Option<Way>) -> NativeFirst {
        NativeFirst { images, ..self }
    }

    /// What the kernel alone can show of the version now, and if nothing, why. Looks at its files.
    fn source(&self, view: &Arc<dyn VersionView>) -> Result<Source, String> {
        match (view.showable_now(), self.images) {
            (Showable::Native(tree), _) => Ok(Source::Tree(tree)),
            (Showable::Image(image), Some(way)) => Ok(Source::Image(image, way)),
            (Showable::Image(_), None) => Err("this node can't mount its EROFS image".to_owned()),
            (Showable::Checked(why), _) => Err(why),
        }
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
        if self.choice == Choice::Fuse {
            tracing::info!(dataset, "shown by FUSE, as this node is told to");
            return self.otherwise.show(view, dataset, mount_point);
        }
        match self.source(view) {
            Ok(source) => match NativeMount::new(&source, view.manifest().digest(), mount_point) {
                Ok(mount) => {
                    tracing::info!(dataset, way = mount.way(), "mounted");
                    return Ok(Box::new(mount));
                }
                Err(error) if self.choice == Choice::Native => return Err(error),
                Err(error) => tracing::warn!(dataset, %error,
                        "the version can't be shown natively here: it is shown by FUSE"),
            },
            Err(why) if self.choice == Choice::Native => {
                return Err(ExposeError::NotNativeYet {
                    dataset: dataset.to_owned(),
                    why,
                });
            }
            Err(why) => tracing::info!(dataset, why, "shown by FUSE"),
        }
        self.otherwise.show(view, dataset, mount_point)
    }

    fn native(&self, view: &Arc<dyn VersionView>) -> Option<Source> {
        match self.choice {
            Choice::Fuse => None,
            _ => self.source(view).ok(),
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
    /// Shows what there is of `version` at `mount_point`, an existing directory.
    pub fn new(
        source: &Source,
        version: Digest,
        mount_point: &Path,
    ) -> Result<NativeMount, ExposeError> {
        let failed = |source| ExposeError::Mount {
            action: "find the mount point",
            target: mount_point.to_owned(),
            source,
        };
        let mount_point = mount_point.canonicalize().map_err(failed)?;
        let device = source.show(version, &mount_point, false)?;
        let by = match source {
            Source::Tree(_) => BY_FILES,
            Source::Image(..) => BY_IMAGE,
        };
        Ok(NativeMount {
            mount_point,
            version,
            device,
            by,
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
            by: way_of(top).unwrap_or(BY_FILES),
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
        self.by.to_owned()
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

/// How a native mount shows the version, if it is one, for the volume's condition.
pub fn way_of(mount: &Mount) -> Option<&'static str> {
    version_of(mount)?;
    match erofs::version_of(mount) {
        Some(_) => Some(BY_IMAGE),
        None => Some(BY_FILES),
    }
}

/// The version whose tree this is a bind mount of, or whose image it is a mount of, if it is one.
pub fn version_of(mount: &Mount) -> Option<Digest> {
    tree_of(mount).or_else(|| erofs::version_of(mount))
}

fn tree_of(mount: &Mount) -> Option<Digest> {
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
