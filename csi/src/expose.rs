//! Ways to show a dataset version as files, and which one to take on this machine.
//!
//! A version that is not complete, or not verified since the machine started, is shown by FUSE
//! ([`fuse`]): each time the kernel fills its page cache, the cache engine checks every block it
//! hands over. A version that is both is shown as the plain files it is on the disk ([`native`]),
//! or as an image of them ([`erofs`]), with no process in the way of opens and reads; what the disk damages after that is found by
//! scrubbing, not by the reader. Either is mounted once and shown in many places by [`bind`].

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use trackbed_cache::Showable;
use trackbed_cache::manifest::{EntryIndex, Manifest};

use crate::keeper::KeeperError;
use mountinfo::Mount;

pub mod bind;
pub mod choose;
pub mod erofs;
pub mod fuse;
pub mod mountinfo;
pub mod native;

/// The source that the mounts of Trackbed carry in the mount table, in front of the dataset.
pub const SOURCE_PREFIX: &str = "trackbed:";

/// Verified bytes of a file, in whatever buffer they lie.
pub type VerifiedPiece = Box<dyn AsRef<[u8]> + Send>;

/// A dataset version as seen by what shows it as files. Implemented by the cache's open version;
/// tests have one in memory.
pub trait VersionView: Send + Sync + 'static {
    /// The version's files, directories and links.
    fn manifest(&self) -> &Arc<Manifest>;

    /// Up to `len` verified bytes of a file, from `offset` on: at least one before the end of the
    /// file, none behind it. Fewer than `len` do not mean the end. Never blocks the thread that
    /// polls it for longer than the disk takes.
    fn read(
        self: Arc<Self>,
        entry: EntryIndex,
        offset: u64,
        len: usize,
    ) -> BoxFuture<'static, Result<VerifiedPiece, ReadFailure>>;

    /// How much of the version this node holds.
    fn cached(&self) -> Cached;

    /// What is wrong with where the version lies, in a sentence with the remedy.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Whether the version can be shown as plain files, and if not, why.
    fn showable(&self) -> Showable {
        Showable::Checked("it is on no disk".to_owned())
    }

    /// The same, having looked at the files once more, for one who is about to show it. Blocks.
    fn showable_now(&self) -> Showable {
        self.showable()
    }

    /// The version as a keeper can serve it; `None` if it does not lie on a disk.
    fn kept(self: Arc<Self>) -> Option<Arc<dyn KeptView>> {
        None
    }

    /// A plain file that has exactly the bytes of this one, every one of them checked: the kernel
    /// may read it without asking anybody. `None` if there is none, or none yet.
    fn backing(self: Arc<Self>, _entry: EntryIndex) -> Option<File> {
        None
    }
}

/// A version that lies on this node's disk, where another process can read it, as that process is
/// helped by the cache.
pub trait KeptView: VersionView {
    /// Where it lies, as [`VersionReader::open`](trackbed_cache::VersionReader::open) takes it.
    fn directory(&self) -> PathBuf;

    /// Which chunks are there: a bit each, the first in the lowest bit of the first word.
    fn held(&self) -> Vec<u64>;

    /// Brings bytes of a file onto the disk, or gives them. `suspect` says that they are there and
    /// were found damaged. Never blocks the thread that polls it.
    fn bring(
        self: Arc<Self>,
        entry: EntryIndex,
        offset: u64,
        len: usize,
        suspect: bool,
    ) -> BoxFuture<'static, Result<Brought, ReadFailure>>;
}

/// Shows versions as mounts: in this process, or in a keeper.
pub trait Expose: Send + Sync + 'static {
    /// Takes over what an earlier agent has left at `mount_point`, if that is this version and
    /// is alive. `mount_point` has no symbolic link in it. Blocks for moments.
    fn adopt(&self, view: &Arc<dyn VersionView>, mount_point: &Path) -> Option<Box<dyn Exposed>>;

    /// Mounts a version at `mount_point`, an existing directory. `dataset` is shown as the mount's
    /// source. Blocks for the kernel's handshake.
    fn show(
        &self,
        view: &Arc<dyn VersionView>,
        dataset: &str,
        mount_point: &Path,
    ) -> Result<Box<dyn Exposed>, ExposeError>;

    /// What the kernel alone can show of the version, if it is to be shown as that from now on,
    /// wherever it is published.
    fn native(&self, _view: &Arc<dyn VersionView>) -> Option<native::Source> {
        None
    }

    /// Makes sure of what [`Exposed::is_alive`] says of all mounts: one whose server is just about to
    /// be gone is dead. Blocks for moments.
    fn check(&self) {}

    /// What is wrong with all mounts, in a sentence with the remedy.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// A mounted version. Dropping it unmounts, lazily: files that are open stay readable until they
/// are closed, and nothing waits for them.
pub trait Exposed: Send + Sync {
    /// Where it is mounted, without symbolic links.
    fn mount_point(&self) -> &Path;

    /// The device number of the mounted file system, in the mount table also of its bind mounts.
    fn device(&self) -> (u32, u32);

    /// Whether a mount is this one, or a bind mount of it.
    fn shows(&self, mount: &Mount) -> bool {
        mount.is_our_fuse() && mount.device == self.device()
    }

    /// Whether requests are still answered.
    fn is_alive(&self) -> bool;

    /// The last read that was answered with an I/O error, if any was.
    fn last_failure(&self) -> Option<Failure>;

    /// How it is shown, for the volume's condition.
    fn way(&self) -> String;

    /// Unmounts, as dropping does, and says what went wrong.
    fn unmount(self: Box<Self>) -> Result<(), ExposeError>;

    /// Leaves the mount as it is.
    fn leave(self: Box<Self>);
}

/// A read that was answered with an I/O error.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When.
    pub at: Instant,
    /// Which file and why, in the cache's words.
    pub what: String,
}

/// Where bytes are that were brought for a keeper.
pub struct Brought {
    /// They are on the disk now, and match their seal there.
    pub on_disk: bool,
    /// The bytes, if they are in memory; always there if they are not on the disk.
    pub bytes: Option<VerifiedPiece>,
}

/// How much of a version a node holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cached {
    /// Bytes of file data on this node.
    pub bytes_present: u64,
    /// Bytes of file data in the version.
    pub bytes: u64,
}

impl Cached {
    /// The share that is here, in tenths of a percent, rounded down: 1000 means all of it.
    pub fn permille(&self) -> u64 {
        let (present, all) = (u128::from(self.bytes_present), u128::from(self.bytes));
        match all {
            0 => 1000,
            _ => u64::try_from((present * 1000 / all).min(1000)).expect("at most 1000"),
        }
    }
}

/// Why bytes could not be had, naming the file: the cache's own words. A reader gets `EIO`, the log
/// and the volume's condition get this.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReadFailure(pub String);

/// Why a version cannot be shown, or no longer be hidden.
#[derive(Debug, thiserror::Error)]
pub enum ExposeError {
    /// The kernel has no FUSE, or the container does not see the device.
    #[error(
        "cannot mount a dataset: /dev/fuse is not there: run `modprobe fuse`, or give the container the device"
    )]
    NoFuseDevice,
    /// The device is there, but this process may not open it.
    #[error(
        "cannot mount a dataset: opening /dev/fuse is not permitted ({0}): run as root, or give the container the device (privileged, or a device mount)"
    )]
    FuseDeviceRefused(io::Error),
    /// No right to mount, and no helper that has it.
    #[error(
        "cannot mount a dataset: this process lacks CAP_SYS_ADMIN and fusermount3 is not installed: run as root or privileged, or install the package fuse3"
    )]
    NoFusermount,
    /// The kernel refused for lack of privilege.
    #[error(
        "mounting or unmounting at {} is not permitted: run as root, or make the container privileged",
        target.display()
    )]
    NotPermitted {
        /// The mount point.
        target: PathBuf,
    },
    /// What is mounted there is not Trackbed's to take away or to cover.
    #[error(
        "{source_name:?}, which is not a mount of Trackbed's, is mounted at {}: unmount it first",
        target.display()
    )]
    Foreign {
        /// The mount point.
        target: PathBuf,
        /// What the mount table calls it.
        source_name: String,
    },
    /// It is to be shown natively or not at all, and can't be yet.
    #[error(
        "{dataset} can't be shown natively yet, and this node shows datasets in no other way (--expose native): {why}: warm it, or run the node with --expose auto"
    )]
    NotNativeYet {
        /// The dataset.
        dataset: String,
        /// What is missing.
        why: String,
    },
    /// No keeper to serve the mount, or it refuses.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The kernel refused for another reason.
    #[error("cannot {action} at {}: {source}", target.display())]
    Mount {
        /// What was attempted.
        action: &'static str,
        /// The mount point.
        target: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}
