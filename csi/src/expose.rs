//! Ways to show a dataset version as files, and which one to take on this machine.
//!
//! A version that is not complete, or not verified since the machine started, is shown by FUSE
//! ([`fuse`]): each time the kernel fills its page cache, the cache engine checks every block it
//! hands over. A version that is both is shown as the plain files it is on the disk ([`native`]),
//! with no process in the way of opens and reads; what the disk damages after that is found by
//! scrubbing, not by the reader. Either is mounted once and shown in many places by [`bind`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use trackbed_cache::Showable;
use trackbed_cache::manifest::{EntryIndex, Manifest};

pub mod bind;
pub mod choose;
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
    /// polls it.
    fn read(
        self: Arc<Self>,
        entry: EntryIndex,
        offset: u64,
        len: usize,
    ) -> BoxFuture<'static, Result<VerifiedPiece, ReadFailure>>;

    /// How much of the version this node holds.
    fn cached(&self) -> Cached;

    /// Whether the version can be shown as plain files, and if not, why.
    fn showable(&self) -> Showable {
        Showable::Checked("it is on no disk".to_owned())
    }
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
