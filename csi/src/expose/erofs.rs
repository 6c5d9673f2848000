//! Mounting a version's EROFS image: by the file itself where the kernel can (Linux 6.12), else by a
//! loop device.
//!
//! All mounts of one image are one file system: the first is made here, the others are bind mounts
//! of it, so that what one pod has read is in memory for the next. The mount table shows an image's
//! mount with a source that ends in `versions/<digest>/image.<inode>`: the version, and which file it is,
//! as an image that had to be made anew is another.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use parking_lot::Mutex;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use trackbed_cache::erofs::Plan;
use trackbed_cache::manifest::Extent;
use trackbed_cache::{Digest, Manifest};

use super::mountinfo::{Mount, MountTable};
use super::{ExposeError, bind};

/// The file system's name.
pub(super) const FS_TYPE: &str = "erofs";

/// What precedes the inode in an image's source.
const SOURCE: &[u8] = b"image.";

static MOUNTING: Mutex<()> = Mutex::new(());

/// How often, for all files of a chunk, the kernel is told again to forget what stays in memory (a pod may
/// have it mapped, and who mends waits here), and after what pause.
const FORGET_ATTEMPTS: u32 = 20;
const FORGET_AGAIN: Duration = Duration::from_millis(50);

/// The tool that makes loop devices, of util-linux.
const LOSETUP: &str = "losetup";

/// How this machine mounts an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the file.
    File,
    /// By a loop device, which goes with the last mount.
    Loop,
}

/// Finds out how images in `directory` can be mounted; the directory is made if it is not there. The
/// error says what is missing. Takes moments and blocks.
pub fn find_way(directory: &Path) -> Result<Way, String> {
    decide(|way| try_way(directory, way))
}

/// Makes the file system of an empty image in `directory`, which is made if it is not there, and shows it
/// nowhere. Takes moments and blocks.
pub fn try_way(directory: &Path, way: Way) -> io::Result<()> {
    let trial = directory.join("trial.erofs");
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made?;
    let manifest = Manifest::empty().map_err(io::Error::other)?;
    let plan = Plan::of(&manifest).map_err(io::Error::other)?;
    let image: Vec<u8> = plan.metadata(&manifest).flatten().collect();
    fs::write(&trial, image)?;
    let found = create(&trial, way);
    if let Err(error) = fs::remove_file(&trial) {
        tracing::debug!(%error, "an image that was tried stays");
    }
    found.map(drop)
}

fn decide(works: impl Fn(Way) -> io::Result<()>) -> Result<Way, String> {
    let Err(by_file) = works(Way::File) else {
        return Ok(Way::File);
    };
    let Err(by_loop) = works(Way::Loop) else {
        return Ok(Way::Loop);
    };
    Err(format!(
        "the kernel mounts no EROFS image (by its file: {by_file}; by a loop device: {by_loop}): it takes CONFIG_EROFS_FS, and CONFIG_EROFS_FS_BACKED_BY_FILE or /dev/loop-control and losetup"
    ))
}

/// Mounts the image of `version` at `target`, which has no symbolic link in it, or shows there what is
/// mounted of it elsewhere.
pub(super) fn mount(
    image: &Path,
    version: Digest,
    way: Way,
    target: &Path,
    no_exec: bool,
) -> Result<(), ExposeError> {
    let failed = |source| ExposeError::Mount {
        action: "mount an EROFS image",
        target: target.to_owned(),
        source,
    };
    // One at a time, so that the second finds the first's, and the name is only one's.
    let _mounting = MOUNTING.lock();
    let inode = fs::symlink_metadata(image).map_err(failed)?.ino();
    let name = name(image, inode);
    let is_same = |mount: &Mount| of(mount) == Some((version, inode)) && *mount.source == *name;
    let table = MountTable::read().map_err(failed)?;
    let elsewhere = table
        .mounts()
        .iter()
        .rev()
        .find(|mount| is_same(mount) && table.top(&mount.mount_point) == Some(*mount));
    if let Some(elsewhere) = elsewhere {
        bind::bind_read_only(&elsewhere.mount_point, target, no_exec)?;
        // Unless it was taken away just before.
        let now = MountTable::read().map_err(failed)?;
        if now.top(target).is_some_and(is_same) {
            return Ok(());
        }
        bind::detach_top(target)?;
    }
    let file_system = create(image, way).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => ExposeError::NotPermitted {
            target: target.to_owned(),
        },
        _ => failed(error),
    })?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, no_exec);
    let mounted = fsmount(
        &file_system.context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    );
    let mounted = mounted.map_err(|errno| failed(errno.into()))?;
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mounted, "", CWD, target, how).map_err(|errno| failed(errno.into()))
}

/// The version and the inode of the image that is mounted, if this is a mount of one.
fn of(mount: &Mount) -> Option<(Digest, u64)> {
    if mount.fs_type != FS_TYPE || mount.root != Path::new("/") {
        return None;
    }
    let mut names = mount.source.as_bytes().rsplit(|&byte| byte == b'/');
    let inode = names.next()?.strip_prefix(SOURCE)?;
    let digest = std::str::from_utf8(names.next()?).ok()?;
    if names.next()? != b"versions" {
        return None;
    }
    let inode = std::str::from_utf8(inode).ok()?.parse().ok()?;
    Some((digest.parse().ok()?, inode))
}

/// The version whose image this is a mount of, if it is one.
pub(super) fn version_of(mount: &Mount) -> Option<Digest> {
    of(mount).map(|(version, _)| version)
}

/// Has the kernel forget what it has in memory of a chunk's files in mounts of its version's image, and makes
/// sure that what is read there now are the chunk's bytes. Blocks.
pub fn forget_pages(manifest: &Manifest, chunk: u32, content: &[u8]) {
    let table = match MountTable::read() {
        Ok(table) => table,
        Err(error) => {
            tracing::warn!(%error, "pods may go on seeing what was damaged of an image and is in memory");
            return;
        }
    };
    let mut file_systems = HashSet::new();
    let mut attempts = FORGET_ATTEMPTS;
    for mount in table.mounts() {
        let seen = table.top(&mount.mount_point) == Some(mount);
        if !seen || version_of(mount) != Some(manifest.digest()) {
            continue;
        }
        // Mounts of one file system share its memory.
        if !file_systems.insert(mount.device) {
            continue;
        }
        for extent in manifest.extents(chunk) {
            let path = manifest.path(extent.entry);
            let path = mount.mount_point.join(OsStr::from_bytes(&path));
            let begin = extent.chunk_offset as usize;
            let wanted = content.get(begin..begin + extent.len as usize);
            if let Err(error) = forget(&path, extent, wanted.unwrap_or_default(), &mut attempts) {
                tracing::warn!(path = %path.display(), %error,
                    "pods may go on seeing what was damaged of a file and is in memory");
            }
        }
    }
}

/// `attempts` are left beside the first.
fn forget(path: &Path, extent: Extent, wanted: &[u8], attempts: &mut u32) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let offset = extent.file_offset.try_into().map_err(io::Error::other)?;
    let mut found = vec![0; wanted.len()];
    loop {
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        posix_fadvise(&file, offset, extent.len.into(), advice)?;
        file.read_exact_at(&mut found, extent.file_offset)?;
        if found == wanted {
            return Ok(());
        }
        if *attempts == 0 {
            return Err(io::Error::other("the kernel does not forget it"));
        }
        // Pages that something uses for a moment stay, and the kernel does not say so.
        *attempts -= 1;
        std::thread::sleep(FORGET_AGAIN);
    }
}

/// An image's file system, mounted nowhere yet. It goes with this unless it is mounted.
struct FileSystem {
    context: std::os::fd::OwnedFd,
    /// Until it is in use, or not wanted.
    _device: Option<LoopDevice>,
}

fn create(image: &Path, way: Way) -> io::Result<FileSystem> {
    let context = fsopen(FS_TYPE, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let device = match way {
        Way::File => None,
        Way::Loop => Some(LoopDevice::attach(image)?),
    };
    let behind = device.as_ref().map_or(image, |device| &device.0);
    let named = Named::new(image, behind)?;
    fsconfig_set_string(&context, "source", &named.0)?;
    // Else a device is opened for writing too, which a loop device of ours refuses.
    fsconfig_set_flag(&context, "ro")?;
    if way == Way::File {
        // Else data is in memory twice, as the image's and as the files'. Not before Linux 6.15.
        let _ = fsconfig_set_flag(&context, "directio");
    }
    fsconfig_create(&context)?;
    Ok(FileSystem {
        context,
        _device: device,
    })
}

/// The name by which the mount table tells of an image that is this inode.
fn name(image: &Path, inode: u64) -> PathBuf {
    image.with_file_name(format!("image.{inode}"))
}

/// That name, for as long as it takes to mount it.
struct Named(PathBuf);

impl Named {
    fn new(image: &Path, behind: &Path) -> io::Result<Named> {
        let inode = fs::symlink_metadata(image)?.ino();
        let name = name(image, inode);
        match symlink(behind, &name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // What a kill has left.
                fs::remove_file(&name)?;
                symlink(behind, &name)?;
            }
            made => made?,
        }
        Ok(Named(name))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // Left, it does no harm, and is taken away with the version.
        let _ = fs::remove_file(&self.0);
    }
}

/// A loop device that goes with its last user; that is a mount, once this is dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn attach(file: &Path) -> io::Result<LoopDevice> {
        let arguments = ["--find", "--show", "--read-only", "--direct-io=on"];
        let output = Command::new(LOSETUP).args(arguments).arg(file).output();
        let output = output.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("running {LOSETUP} (of util-linux): {error}"),
            )
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(said.trim().to_owned()));
        }
        let path = output.stdout.trim_ascii();
        Ok(LoopDevice(Path::new(OsStr::from_bytes(path)).to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // In use, it goes with its last user.
        let detached = Command::new(LOSETUP).arg("--detach").arg(&self.0).output();
        if !detached.is_ok_and(|output| output.status.success()) {
            tracing::warn!(device = %self.0.display(), "a loop device stays: losetup --detach it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_s_mount_is_told_by_its_source() {
        let digest = Digest::of(b"v");
        let line = |root: &str, kind: &str, source: &str| {
            format!("30 22 0:50 {root} /mnt ro,nosuid shared:1 - {kind} {source} ro\n")
        };
        let source = format!("/cache/versions/{digest}/image.17");
        let table = [
            line("/", "erofs", &source),
            line("/sub", "erofs", &source),
            line("/", "ext4", &source),
            line(
                "/",
                "erofs",
                &format!("/cache/versions/{digest}/image.erofs"),
            ),
            line("/", "erofs", "/cache/versions/short/image.17"),
            line("/", "erofs", &format!("/cache/{digest}/image.17")),
            line("/", "erofs", "/dev/loop1"),
        ]
        .concat();
        let table = MountTable::parse(table.as_bytes());
        let told: Vec<_> = table.mounts().iter().map(of).collect();
        let mut expected = vec![None; 7];
        expected[0] = Some((digest, 17));
        assert_eq!(told, expected);
    }

    #[test]
    fn the_file_itself_comes_first_and_what_is_missing_is_named() {
        let only = |working: &'static [Way]| {
            decide(move |way| match working.contains(&way) {
                true => Ok(()),
                false => Err(io::Error::from_raw_os_error(libc::ENODEV)),
            })
        };
        assert_eq!(only(&[Way::File, Way::Loop]), Ok(Way::File));
        assert_eq!(only(&[Way::Loop]), Ok(Way::Loop));
        let why = only(&[]).expect_err("neither");
        assert!(
            why.contains("CONFIG_EROFS_FS") && why.contains("losetup"),
            "{why}"
        );
    }
}
