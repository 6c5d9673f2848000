//! A dataset version as a read-only FUSE mount whose every byte was checked on its way.
//!
//! The kernel keeps what it was told, for ever: a version never changes. So an answer is asked
//! for once, and later opens, look-ups and reads of cached pages never reach this process; they
//! even go on when it dies. A read that cannot be filled with right bytes is an error (`EIO`),
//! never zeros and never a short read.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use fuser::{BackgroundSession, Config, MountOption, Notifier, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::unistd::{getegid, geteuid};
use parking_lot::Mutex;

use super::choose::{Findings, Way, choose};
use super::mountinfo::MountTable;
use super::{Expose, ExposeError, Exposed, Failure, SOURCE_PREFIX, VersionView, bind};
use crate::readers::Readers;

mod fill;
mod killed;
mod opens;
mod tree;
pub mod trial;

use opens::Passthrough;
use tree::VersionTree;

/// The file system's type in the mount table is `fuse.` with this.
const SUBTYPE: &str = "trackbed";

/// How far the kernel reads ahead of a sequential reader, in KiB: one request of the largest size
/// beyond the one being consumed. More would also widen what a random reader of a memory map
/// fetches around each fault.
const READ_AHEAD_KIB: u32 = 1024;

/// Threads that take requests, and as many that finish reads: for each mount.
const THREADS: std::ops::RangeInclusive<usize> = 2..=4;

/// How a version is to be mounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct FuseOptions {
    /// The kernel may read whole files by itself, where it can and the view has such files.
    pub passthrough: bool,
}

/// Shows versions by FUSE mounts of this process, which end with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Expose for InProcess {
    fn adopt(&self, _view: &Arc<dyn VersionView>, _mount_point: &Path) -> Option<Box<dyn Exposed>> {
        None
    }

    fn show(
        &self,
        view: &Arc<dyn VersionView>,
        dataset: &str,
        mount_point: &Path,
    ) -> Result<Box<dyn Exposed>, ExposeError> {
        Ok(Box::new(FuseMount::new(
            view.clone(),
            dataset,
            mount_point,
        )?))
    }
}

/// A mounted version. Dropping it unmounts, lazily: files that are open stay readable until they
/// are closed, and nothing waits for them.
#[derive(Debug)]
pub struct FuseMount {
    mount_point: PathBuf,
    device: (u32, u32),
    way: Way,
    last_failure: Arc<Mutex<Option<Failure>>>,
    passthrough: Arc<Passthrough>,
    /// `None` once taken apart.
    session: Option<BackgroundSession>,
}

impl FuseMount {
    /// Mounts `view` at `mount_point`, an existing directory, by the best way this process has.
    /// `dataset` is shown as the mount's source. Blocks for the kernel's handshake.
    pub fn new(
        view: Arc<dyn VersionView>,
        dataset: &str,
        mount_point: &Path,
    ) -> Result<FuseMount, ExposeError> {
        FuseMount::with(view, dataset, mount_point, FuseOptions::default())
    }

    /// As [`FuseMount::new`], with options.
    pub fn with(
        view: Arc<dyn VersionView>,
        dataset: &str,
        mount_point: &Path,
        options: FuseOptions,
    ) -> Result<FuseMount, ExposeError> {
        let failed = |action| {
            let target = mount_point.to_owned();
            move |source| ExposeError::Mount {
                action,
                target,
                source,
            }
        };
        let way = choose(Findings::of_this_machine())?;
        let mount_point = mount_point
            .canonicalize()
            .map_err(failed("find the mount point"))?;
        let threads = thread::available_parallelism()
            .map_or(1, usize::from)
            .clamp(*THREADS.start(), *THREADS.end());
        let readers = Readers::start(threads).map_err(failed("start threads to mount"))?;
        let passthrough = Arc::new(match (options.passthrough, way) {
            (true, Way::Direct) => Passthrough::wanted_for(view.manifest()),
            (true, Way::Fusermount) => Passthrough::off("this process lacks CAP_SYS_ADMIN"),
            (false, _) => Passthrough::off("not asked for"),
        });
        let tree = VersionTree::new(view, dataset, readers, passthrough.clone());
        let last_failure = tree.last_failure();
        let session = match way {
            Way::Direct => mount_directly(tree, dataset, &mount_point, threads)?,
            Way::Fusermount => mount_by_helper(tree, dataset, &mount_point, threads)
                .map_err(failed("mount with fusermount3"))?,
        };
        let mut mounted = FuseMount {
            mount_point,
            device: (0, 0),
            way,
            last_failure,
            passthrough,
            session: Some(session),
        };
        mounted.device = MountTable::read()
            .map_err(failed("read the mount table after mounting"))?
            .top(&mounted.mount_point)
            .filter(|mount| mount.is_ours())
            .map(|mount| mount.device)
            .ok_or_else(|| io::Error::other("something else was mounted over it at once"))
            .map_err(failed("find the new mount"))?;
        widen_read_ahead(mounted.device);
        Ok(mounted)
    }

    /// Where it is mounted, without symbolic links.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The device number of the mounted file system, in the mount table also of its bind mounts.
    pub fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Whether requests are still answered: false after somebody aborted the connection or
    /// unmounted it and all files were closed.
    pub fn is_alive(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| !session.guard.is_finished())
    }

    /// The last read that was answered with an I/O error, if any was.
    pub fn last_failure(&self) -> Option<Failure> {
        self.last_failure.lock().clone()
    }

    /// How it is shown, for people.
    pub fn way(&self) -> String {
        format!("FUSE, {}", self.passthrough.state())
    }

    /// What drops pages of this mount.
    pub(crate) fn notifier(&self) -> Option<Notifier> {
        self.session.as_ref().map(BackgroundSession::notifier)
    }

    /// Unmounts, as dropping does, and says what went wrong.
    pub fn unmount(mut self) -> Result<(), ExposeError> {
        self.take_apart()
    }

    /// Leaves the mount as it is, for as long as this process lives.
    pub fn leave(mut self) {
        if let Some(session) = self.session.take() {
            // The helper's session would unmount when dropped.
            std::mem::forget(session);
        }
    }

    fn take_apart(&mut self) -> Result<(), ExposeError> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        match self.way {
            // Without privilege only fusermount3 can unmount; the session's drop calls it.
            Way::Fusermount => drop(session),
            Way::Direct => {
                let table = MountTable::read().map_err(|source| ExposeError::Mount {
                    action: "unmount",
                    target: self.mount_point.clone(),
                    source,
                })?;
                // Never what somebody else has mounted there since.
                if table
                    .top(&self.mount_point)
                    .is_some_and(|mount| mount.device == self.device)
                {
                    bind::detach_top(&self.mount_point)?;
                }
            }
        }
        Ok(())
    }
}

impl Exposed for FuseMount {
    fn mount_point(&self) -> &Path {
        FuseMount::mount_point(self)
    }

    fn device(&self) -> (u32, u32) {
        FuseMount::device(self)
    }

    fn is_alive(&self) -> bool {
        FuseMount::is_alive(self)
    }

    fn last_failure(&self) -> Option<Failure> {
        FuseMount::last_failure(self)
    }

    fn way(&self) -> String {
        FuseMount::way(self)
    }

    fn unmount(self: Box<Self>) -> Result<(), ExposeError> {
        FuseMount::unmount(*self)
    }

    fn leave(self: Box<Self>) {
        FuseMount::leave(*self);
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if let Err(error) = self.take_apart() {
            tracing::warn!(%error, "a dataset stays mounted");
        }
    }
}

/// mount(2) on an open `/dev/fuse`. The session that is made from it does not unmount by itself,
/// so that it can never hit a newer mount at the same path.
fn mount_directly(
    tree: VersionTree,
    dataset: &str,
    mount_point: &Path,
    threads: usize,
) -> Result<BackgroundSession, ExposeError> {
    let failed = |action| {
        move |source| ExposeError::Mount {
            action,
            target: mount_point.to_owned(),
            source,
        }
    };
    let device: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(ExposeError::FuseDeviceRefused)?
        .into();
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
        device.as_raw_fd(),
        geteuid(),
        getegid()
    );
    nix::mount::mount(
        Some(source_of(dataset).as_str()),
        mount_point,
        Some(format!("fuse.{SUBTYPE}").as_str()),
        MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME,
        Some(options.as_str()),
    )
    .map_err(|errno| match errno {
        Errno::EPERM => ExposeError::NotPermitted {
            target: mount_point.to_owned(),
        },
        Errno::ENODEV => ExposeError::NoFuseDevice,
        _ => failed("mount a dataset")(errno.into()),
    })?;
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    Session::from_fd(tree, device, SessionACL::All, config)
        .and_then(Session::spawn)
        .map_err(|source| {
            if let Err(error) = bind::detach_top(mount_point) {
                tracing::warn!(%error, "a failed mount stays");
            }
            failed("shake hands with the kernel about the mount")(source)
        })
}

/// The setuid helper mounts; only the calling user may read, as `/etc/fuse.conf` seldom allows
/// more.
fn mount_by_helper(
    tree: VersionTree,
    dataset: &str,
    mount_point: &Path,
    threads: usize,
) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.acl = SessionACL::Owner;
    config.n_threads = Some(threads);
    config.mount_options = vec![
        MountOption::FSName(source_of(dataset)),
        MountOption::Subtype(SUBTYPE.to_owned()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
    ];
    Session::new(tree, mount_point, &config)?.spawn()
}

/// The mount's source. The helper takes options as one comma-separated text, so nothing but the
/// plainest characters may pass.
fn source_of(dataset: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._-@".contains(c) {
            c
        } else {
            '_'
        }
    };
    format!(
        "{SOURCE_PREFIX}{}",
        dataset.chars().map(plain).collect::<String>()
    )
}

/// The kernel starts with 128 KiB and does not let the handshake raise it. Needs privilege; a
/// mount without it is only slower.
fn widen_read_ahead((major, minor): (u32, u32)) {
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&knob, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%knob, %error, "read-ahead stays as the kernel set it");
    }
}

#[cfg(test)]
mod tests {
    use super::source_of;

    #[test]
    fn a_dataset_s_name_cannot_smuggle_mount_options() {
        assert_eq!(source_of("cats-1.0_b@12"), "trackbed:cats-1.0_b@12");
        assert_eq!(source_of("a,allow_root\\ b"), "trackbed:a_allow_root__b");
    }
}
