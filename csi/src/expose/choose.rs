//! Which way this process can mount: a pure decision over what was found on the machine.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use super::ExposeError;

const FUSE_DEVICE: &str = "/dev/fuse";

/// The helper that mounts for users without privilege, in the package fuse3.
const FUSERMOUNT: &str = "fusermount3";

/// CAP_SYS_ADMIN's bit in a capability set (capabilities(7)).
const CAP_SYS_ADMIN: u32 = 21;

/// How a FUSE mount is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// mount(2), with CAP_SYS_ADMIN.
    Direct,
    /// The setuid helper `fusermount3`: only the user who mounts can read.
    Fusermount,
}

/// What was found on this machine.
#[derive(Debug)]
pub struct Findings {
    /// What opening `/dev/fuse` gave.
    pub fuse_device: io::Result<()>,
    /// Whether this process has CAP_SYS_ADMIN.
    pub may_mount: bool,
    /// Whether `fusermount3` is in the `PATH`.
    pub fusermount: bool,
}

impl Findings {
    /// Looks. Takes microseconds and changes nothing.
    pub fn of_this_machine() -> Findings {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Findings {
            fuse_device: OpenOptions::new()
                .read(true)
                .write(true)
                .open(FUSE_DEVICE)
                .map(drop),
            may_mount: fs::read_to_string("/proc/self/status")
                .is_ok_and(|status| has_capability(&status, CAP_SYS_ADMIN)),
            fusermount: std::env::split_paths(&path)
                .any(|folder| Path::new(&folder).join(FUSERMOUNT).is_file()),
        }
    }
}

/// The way to mount, or the one thing to put right first.
pub fn choose(findings: Findings) -> Result<Way, ExposeError> {
    match findings.fuse_device {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(ExposeError::FuseDeviceRefused(error))
        }
        // ENOENT: no device node; ENODEV, ENXIO: a node without the kernel module.
        Err(_) => Err(ExposeError::NoFuseDevice),
        Ok(()) if findings.may_mount => Ok(Way::Direct),
        Ok(()) if findings.fusermount => Ok(Way::Fusermount),
        Ok(()) => Err(ExposeError::NoFusermount),
    }
}

/// Whether `/proc/PID/status` shows the capability as effective.
fn has_capability(status: &str, bit: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> bit & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(device: io::Result<()>, may_mount: bool, fusermount: bool) -> Findings {
        Findings {
            fuse_device: device,
            may_mount,
            fusermount,
        }
    }

    #[test]
    fn root_mounts_directly_and_a_user_by_the_helper() {
        assert_eq!(choose(found(Ok(()), true, true)).expect("ok"), Way::Direct);
        assert_eq!(choose(found(Ok(()), true, false)).expect("ok"), Way::Direct);
        assert_eq!(
            choose(found(Ok(()), false, true)).expect("ok"),
            Way::Fusermount
        );
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let absent = || Err(io::Error::from(io::ErrorKind::NotFound));
        let refused = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
        let said = |findings| choose(findings).expect_err("refused").to_string();
        assert!(said(found(absent(), true, true)).contains("modprobe fuse"));
        assert!(said(found(refused(), true, true)).contains("privileged"));
        assert!(said(found(Ok(()), false, false)).contains("fuse3"));
    }

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000200000\n";
        assert!(has_capability(status, CAP_SYS_ADMIN));
        assert!(!has_capability(status, 12));
        assert!(!has_capability("", CAP_SYS_ADMIN));
    }
}
