//! Read-only bind mounts, and taking mounts away without ever waiting for them.
//!
//! A bind mount shows in a pod what is mounted once in the staging directory. A mount is taken
//! away lazily (`MNT_DETACH`): the path is free at once, even when a file in it is open or the
//! process that served it is dead, and the kernel cleans up when the last user closes.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::ExposeError;
use super::mountinfo::MountTable;

/// Mounts stacked on one path that [`detach`] takes away. A runaway mounter could otherwise keep
/// it busy for ever.
const MAX_STACKED: usize = 64;

/// Shows `source` at `target`, read-only, without set-uid programs or device files; without
/// executables too if `no_exec`.
pub fn bind_read_only(source: &Path, target: &Path, no_exec: bool) -> Result<(), ExposeError> {
    let failed = |action: &'static str, errno: Errno| match errno {
        Errno::EPERM | Errno::EACCES => ExposeError::NotPermitted {
            target: target.to_owned(),
        },
        _ => ExposeError::Mount {
            action,
            target: target.to_owned(),
            source: errno.into(),
        },
    };
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|errno| failed("bind", errno))?;
    // mount(2) ignores all other flags while binding; a second call sets them. A FUSE mount is a
    // read-only file system already, and so is what is bound from a staging directory; a tree is
    // first bound where no pod sees it yet.
    let mut flags = MsFlags::MS_BIND
        | MsFlags::MS_REMOUNT
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOATIME;
    flags.set(MsFlags::MS_NOEXEC, no_exec);
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(|errno| {
        let refused = failed("make read-only", errno);
        if let Err(error) = detach_top(target) {
            tracing::warn!(target = %target.display(), %error, "a failed bind mount stays");
        }
        refused
    })
}

/// Takes the top mount at `path` away. Returns at once, whatever uses it; nothing mounted there is
/// fine. `path` must have no symbolic link in it.
pub fn detach_top(path: &Path) -> Result<(), ExposeError> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: nothing is mounted there, or no longer. ENOENT: not even a directory.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(Errno::EPERM) => Err(ExposeError::NotPermitted {
            target: path.to_owned(),
        }),
        Err(errno) => Err(ExposeError::Mount {
            action: "unmount",
            target: path.to_owned(),
            source: errno.into(),
        }),
    }
}

/// Takes everything of Trackbed's that is mounted at exactly `path` away, dead or alive, and says
/// whether there was anything. Returns at once, whatever uses it; what is not Trackbed's is left
/// and is an error. `path` must have no symbolic link in it.
pub fn detach_ours(path: &Path) -> Result<bool, ExposeError> {
    let failed = |source: io::Error| ExposeError::Mount {
        action: "unmount",
        target: path.to_owned(),
        source,
    };
    for taken in 0..MAX_STACKED {
        let table = MountTable::read().map_err(failed)?;
        let Some(mount) = table.top(path) else {
            return Ok(taken > 0);
        };
        if !mount.is_ours() {
            return Err(ExposeError::Foreign {
                target: path.to_owned(),
                source_name: mount.source.to_string_lossy().into_owned(),
            });
        }
        detach_top(path)?;
    }
    Err(failed(io::Error::other(format!(
        "{MAX_STACKED} mounts are stacked there and more appear: stop what mounts them"
    ))))
}
