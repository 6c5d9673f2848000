//! Making the ring: the features wanted, those done without, and what to do when it is forbidden.

use std::fs;
use std::io;

use io_uring::IoUring;

use super::memlock::raise_memlock;

/// Why a shard could not start.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The administrator switched io_uring off.
    #[error(
        "shard {shard}: io_uring is switched off here (kernel.io_uring_disabled = {value}): set it \
         to 0 with `sysctl -w kernel.io_uring_disabled=0`, or to 1 and put this process into the \
         group of kernel.io_uring_group"
    )]
    SwitchedOff {
        /// The shard's name.
        shard: String,
        /// The sysctl's value.
        value: String,
    },
    /// Something else forbids the system call; in containers that is the seccomp profile.
    #[error(
        "shard {shard}: io_uring_setup is forbidden here ({source}): the default seccomp profiles \
         of containerd and Docker block it, so allow io_uring_setup, io_uring_enter and \
         io_uring_register in the pod's profile (securityContext.seccompProfile, or Unconfined)"
    )]
    Forbidden {
        /// The shard's name.
        shard: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has no io_uring.
    #[error("shard {shard}: this kernel has no io_uring ({source}): Linux 5.19 or later is needed")]
    Missing {
        /// The shard's name.
        shard: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The ring could not be made for want of memory or of locked memory.
    #[error(
        "shard {shard}: no memory for a ring of {entries} entries ({source}): raise RLIMIT_MEMLOCK \
         or the container's memory limit, or ask for fewer entries"
    )]
    Memory {
        /// The shard's name.
        shard: String,
        /// Entries asked for.
        entries: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else that went wrong at the start.
    #[error("shard {shard}: {attempt} failed: {source}")]
    Start {
        /// The shard's name.
        shard: String,
        /// What was attempted.
        attempt: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Entries of a ring where locked memory is scarce.
const FEW_ENTRIES: u32 = 32;

/// Makes a ring, to be used by the calling thread alone.
///
/// Wanted: one issuer with deferred task work (6.1), so that completions are processed in the
/// shard's own enter and nothing interrupts it. Without it, interrupts are at least not forced
/// (5.19), else a plain ring does.
pub(super) fn make_ring(shard: &str, entries: u32) -> Result<IoUring, ShardError> {
    let refused = match build(entries) {
        Ok(ring) => return Ok(ring),
        Err(error) => error,
    };
    let refused = match refused.raw_os_error() {
        // The ring itself is locked memory, 10 KiB at the least.
        Some(libc::ENOMEM) => {
            let fewer = if raise_memlock() {
                entries
            } else {
                entries.min(FEW_ENTRIES)
            };
            match build(fewer) {
                Ok(ring) => {
                    tracing::warn!(
                        shard,
                        entries = fewer,
                        "RLIMIT_MEMLOCK is tight for io_uring here"
                    );
                    return Ok(ring);
                }
                Err(error) => error,
            }
        }
        _ => refused,
    };
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    Err(explain(
        shard,
        entries,
        refused,
        disabled.as_deref().map(str::trim),
    ))
}

/// A ring with the best features that this kernel knows.
fn build(entries: u32) -> io::Result<IoUring> {
    let completions = entries.saturating_mul(4);
    let mut deferred = IoUring::builder();
    deferred
        .setup_clamp()
        .setup_cqsize(completions)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag();
    let mut cooperative = IoUring::builder();
    cooperative
        .setup_clamp()
        .setup_cqsize(completions)
        .setup_coop_taskrun()
        .setup_taskrun_flag();
    let mut plain = IoUring::builder();
    plain.setup_clamp().setup_cqsize(completions);

    // EINVAL is an unknown flag; anything else is the same for a plainer ring.
    let unknown = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    match deferred.build(entries) {
        Err(error) if unknown(&error) => {}
        result => return result,
    }
    match cooperative.build(entries) {
        Err(error) if unknown(&error) => {}
        result => return result,
    }
    plain.build(entries)
}

/// Which error a refusal is, given what the sysctl says.
fn explain(shard: &str, entries: u32, source: io::Error, disabled: Option<&str>) -> ShardError {
    let shard = shard.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => match disabled {
            Some(value) if value != "0" => ShardError::SwitchedOff {
                shard,
                value: value.to_owned(),
            },
            _ => ShardError::Forbidden { shard, source },
        },
        // A seccomp profile may answer ENOSYS too; a kernel that has the sysctl has io_uring.
        Some(libc::ENOSYS) if disabled.is_some() => ShardError::Forbidden { shard, source },
        Some(libc::ENOSYS) => ShardError::Missing { shard, source },
        Some(libc::ENOMEM) => ShardError::Memory {
            shard,
            entries,
            source,
        },
        _ => ShardError::Start {
            shard,
            attempt: "io_uring_setup",
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_ring_names_its_remedy() {
        let says = |errno, disabled: Option<&str>| {
            explain("s0", 8, io::Error::from_raw_os_error(errno), disabled).to_string()
        };
        assert!(says(libc::EPERM, Some("0")).contains("seccomp"));
        assert!(says(libc::EPERM, None).contains("seccomp"));
        assert!(says(libc::EPERM, Some("2")).contains("sysctl -w kernel.io_uring_disabled=0"));
        assert!(says(libc::ENOSYS, Some("0")).contains("seccomp"));
        assert!(says(libc::ENOSYS, None).contains("5.19"));
        assert!(says(libc::ENOMEM, Some("0")).contains("RLIMIT_MEMLOCK"));
        assert!(says(libc::EMFILE, Some("0")).contains("io_uring_setup"));
    }
}
