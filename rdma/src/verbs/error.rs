//! What a failed verb says: the verb, its object, the errno and what that usually means.

use std::io;

use thiserror::Error;

use super::gid::GidChoice;
use super::memlock::MemoryLock;
use super::pages::MappingError;
use crate::sys::LoadError;

/// Why a verbs object could not be made, changed or used.
#[derive(Debug, Error)]
pub enum VerbsError {
    /// libibverbs can't be opened here.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// No device has the name.
    #[error("no RDMA device is called {name:?}; {}", known_devices(.known))]
    NoDevice {
        /// The name looked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// No port of the device is in a state to be used.
    #[error(
        "{device} port {port} is {state}: bring up its link (`ip link set … up`) or wait for the subnet manager"
    )]
    PortNotActive {
        /// The device.
        device: String,
        /// Port number, from 1.
        port: u8,
        /// Its state.
        state: super::PortState,
    },
    /// The device has no such port.
    #[error("{device} has ports 1 to {ports}, not {port}")]
    NoPort {
        /// The device.
        device: String,
        /// The number asked for.
        port: u8,
        /// How many there are.
        ports: u8,
    },
    /// No GID fits what was asked for.
    #[error("{device} port {port} has no GID {choice}; it has {}", known_gids(.known))]
    NoGid {
        /// The device.
        device: String,
        /// Port number, from 1.
        port: u8,
        /// What was asked for.
        choice: GidChoice,
        /// What there is, printed.
        known: Vec<String>,
    },
    /// A verb failed.
    #[error("{verb} on {object}: {source}{}", hint(verb, source))]
    Call {
        /// The verb, by its C name.
        verb: &'static str,
        /// What it was called on.
        object: String,
        /// The errno.
        source: io::Error,
    },
    /// The completion queue can't take all completions of one more queue pair.
    #[error(
        "a completion queue of {capacity} entries with {reserved} spoken for has no room for {wanted} more: \
         create it larger, or fewer or shallower queue pairs on it"
    )]
    CompletionQueueTooSmall {
        /// Entries granted.
        capacity: u32,
        /// Entries other queue pairs need.
        reserved: u32,
        /// Entries this one needs.
        wanted: u32,
    },
    /// Memory for a region, or for a window, could not be mapped.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// The kernel refused to pin memory for a region.
    #[error("ibv_reg_mr on {device}: {bytes} bytes can't be pinned: {source}; {lock}")]
    CannotPin {
        /// The device.
        device: String,
        /// Bytes to register.
        bytes: usize,
        /// The limit on pinned memory at that moment.
        lock: MemoryLock,
        /// The errno.
        source: io::Error,
    },
    /// More than the device can do.
    #[error(
        "{device} can do {limit} {what}, not {wanted}: `trackbed rdma devices --output json` has its limits"
    )]
    OverLimit {
        /// The device.
        device: String,
        /// What there is too much of.
        what: &'static str,
        /// What was asked for.
        wanted: u64,
        /// What the device can do.
        limit: u64,
    },
    /// Something that the device can't do at all.
    #[error("{device} has no {what}: use another device, or do without")]
    Lacking {
        /// The device.
        device: String,
        /// What it lacks.
        what: &'static str,
    },
    /// Waiting on a completion queue that has no descriptor to wait on.
    #[error(
        "a completion queue of {device} was made to be polled only: make it with CompletionQueue::with_events to wait on it"
    )]
    WithoutEvents {
        /// The device.
        device: String,
    },
    /// An object that this process inherited through a fork.
    #[error(
        "{device} was opened by process {owner}, before this process was forked off it: open it here anew"
    )]
    Forked {
        /// The device.
        device: String,
        /// The process that opened it.
        owner: u32,
    },
    /// Two objects that must belong together don't.
    #[error("{what} belongs to another {owner}: make both from the same one")]
    Foreign {
        /// The thing given.
        what: &'static str,
        /// What both should share.
        owner: &'static str,
    },
    /// The two ends can't talk to each other.
    #[error("cannot connect {local} with {remote}: {reason}")]
    Incompatible {
        /// Our end.
        local: String,
        /// The other end.
        remote: String,
        /// What doesn't fit.
        reason: &'static str,
    },
    /// An operation table lacks an operation that every provider has.
    #[error("the provider of {device} has no {operation}: update ibverbs-providers")]
    NoOperation {
        /// The device.
        device: String,
        /// The operation.
        operation: &'static str,
    },
    /// Completions were lost, or the device failed.
    #[error(
        "{verb} on {object} failed ({code}): the queue overran or the device was reset; tear its queue pairs down and connect anew"
    )]
    Broken {
        /// The verb.
        verb: &'static str,
        /// What it was called on.
        object: String,
        /// What the provider returned.
        code: i32,
    },
}

impl VerbsError {
    /// For verbs that return null or -1 and set errno.
    pub(super) fn last(verb: &'static str, object: impl Into<String>) -> VerbsError {
        VerbsError::Call {
            verb,
            object: object.into(),
            source: io::Error::last_os_error(),
        }
    }

    /// For verbs that return an errno; a few providers return -1 and set it instead.
    pub(super) fn code(verb: &'static str, object: impl Into<String>, code: i32) -> VerbsError {
        let source = match code {
            -1 => io::Error::last_os_error(),
            code => io::Error::from_raw_os_error(code.saturating_abs()),
        };
        VerbsError::Call {
            verb,
            object: object.into(),
            source,
        }
    }
}

fn known_devices(known: &[String]) -> String {
    match known {
        [] => "there is none: `trackbed rdma devices` says what is missing".to_owned(),
        known => format!("there is {}", known.join(", ")),
    }
}

fn known_gids(known: &[String]) -> String {
    match known {
        [] => "none: give its net device an address, or bring its link up".to_owned(),
        known => known.join(", "),
    }
}

/// What a failure of this verb usually means, as a clause to append.
fn hint(verb: &str, source: &io::Error) -> &'static str {
    match (verb, source.raw_os_error()) {
        ("ibv_reg_mr", Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
            "; memory mapped from a file system with DAX, or access rights that the device lacks"
        }
        ("ibv_open_device", Some(libc::EACCES | libc::EPERM | libc::ENOENT)) => {
            "; /dev/infiniband/uverbs* is missing or not ours: load ib_uverbs, or give the container the device"
        }
        ("ibv_create_qp", Some(libc::EINVAL)) => {
            "; deeper than the device allows (`trackbed rdma devices --output json` has its limits), or more bytes inline, whose limit no device tells: ask for less"
        }
        ("ibv_create_cq", Some(libc::EINVAL)) => {
            "; deeper than the device allows: `trackbed rdma devices --output json` has its limits"
        }
        ("ibv_create_qp" | "ibv_create_cq" | "ibv_alloc_pd", Some(libc::ENOMEM)) => {
            "; the device has no more of them, or RLIMIT_MEMLOCK is used up"
        }
        ("ibv_modify_qp", Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ETIMEDOUT)) => {
            "; the peer's address can't be resolved: check `ip neigh` and that both GIDs are in one network"
        }
        ("ibv_modify_qp", Some(libc::EINVAL)) => {
            "; the peer's address, MTU or GID doesn't fit this port: compare `trackbed rdma devices` on both nodes"
        }
        ("ibv_fork_init", Some(libc::EINVAL)) => {
            "; memory was registered already: call it before anything else of RDMA"
        }
        ("ibv_get_device_list", Some(libc::ENOSYS)) => {
            "; the kernel has no RDMA core: load ib_uverbs (`modprobe ib_uverbs`)"
        }
        (_, Some(libc::EIO | libc::ENODEV)) => "; the device was reset or removed",
        _ => "",
    }
}
