//! What a registration that the kernel refused to pin says.

use std::fmt;
use std::io;

use super::error::VerbsError;

/// How much memory a process may pin, and how much it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLock {
    /// `RLIMIT_MEMLOCK` in bytes; `None` when there is no limit.
    pub limit: Option<u64>,
    /// Bytes pinned by now (`VmPin` in proc(5)), when the kernel tells.
    pub pinned: Option<u64>,
}

impl MemoryLock {
    /// Of this process, now.
    pub fn now() -> MemoryLock {
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK)
            .map_or(None, |(soft, _)| {
                (soft != libc::RLIM_INFINITY).then_some(soft)
            });
        let pinned = std::fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|status| pinned_in(&status));
        MemoryLock { limit, pinned }
    }
}

/// The pinned bytes in the text of `/proc/PID/status`.
fn pinned_in(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmPin:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

impl fmt::Display for MemoryLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(limit) = self.limit else {
            return f.write_str(
                "RLIMIT_MEMLOCK is unlimited, so the machine is out of memory, or the device of regions \
                 or of room in its translation table: register less, or memory on huge pages",
            );
        };
        write!(f, "RLIMIT_MEMLOCK is {limit} bytes")?;
        if let Some(pinned) = self.pinned {
            write!(f, " and {pinned} are pinned already")?;
        }
        f.write_str(
            ": raise it (`ulimit -l unlimited` in the shell, LimitMEMLOCK=infinity in the systemd unit, \
             default ulimits of the container runtime for a pod) or give the process CAP_IPC_LOCK; \
             io_uring's fixed buffers count against it too",
        )
    }
}

/// The error of a failed `ibv_reg_mr`, from errno.
pub(super) fn registration_failed(device: &str, bytes: usize) -> VerbsError {
    let source = io::Error::last_os_error();
    match source.raw_os_error() {
        Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM) => VerbsError::CannotPin {
            device: device.to_owned(),
            bytes,
            lock: MemoryLock::now(),
            source,
        },
        _ => VerbsError::Call {
            verb: "ibv_reg_mr",
            object: format!("{device} ({bytes} bytes)"),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_what_is_pinned_and_the_remedy_are_named() {
        let lock = MemoryLock {
            limit: Some(8 << 20),
            pinned: Some(4096),
        };
        let text = lock.to_string();
        for part in ["8388608 bytes", "4096 are pinned", "LimitMEMLOCK=infinity"] {
            assert!(text.contains(part), "{text}");
        }
        let unlimited = MemoryLock {
            limit: None,
            ..lock
        };
        assert!(unlimited.to_string().contains("unlimited, so"));
    }

    #[test]
    fn pinned_bytes_are_found_in_the_status_of_a_process() {
        let status = "VmLck:\t       0 kB\nVmPin:\t    1028 kB\nVmHWM:\t 100 kB\n";
        assert_eq!(pinned_in(status), Some(1028 * 1024));
        assert_eq!(pinned_in("VmPin: many kB"), None);
        assert_eq!(pinned_in(""), None);
    }
}
