//! Why a work request failed, and what that usually means.

use std::fmt;

use thiserror::Error;

use super::completion::Queue;
use crate::sys;

/// A work request that failed. Its queue pair is in the error state: all others on it come back flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("ibv_poll_cq on queue pair {qp_number}: {queue} failed: {status} (vendor code {vendor_code:#x}): {}", .status.meaning())]
pub struct CompletionError {
    /// Why.
    pub status: Status,
    /// The adapter's own code for it.
    pub vendor_code: u32,
    /// The queue pair's number.
    pub qp_number: u32,
    /// The queue it was on.
    pub queue: Queue,
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Queue::Send => "a send",
            Queue::Receive => "a receive",
        })
    }
}

/// The status of a failed work request, as in `enum ibv_wc_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Status {
    LocalLength,
    LocalQueuePair,
    LocalProtection,
    Flushed,
    BadResponse,
    LocalAccess,
    RemoteInvalidRequest,
    RemoteAccess,
    RemoteOperation,
    RetryExceeded,
    ReceiverNotReady,
    RemoteAborted,
    Fatal,
    ResponseTimeout,
    RemoteInvalidRead,
    WindowBind,
    General,
    Other(u32),
}

impl Status {
    pub(super) fn from_raw(raw: sys::ibv_wc_status) -> Status {
        match raw {
            sys::IBV_WC_LOC_LEN_ERR => Status::LocalLength,
            sys::IBV_WC_LOC_QP_OP_ERR => Status::LocalQueuePair,
            sys::IBV_WC_LOC_PROT_ERR => Status::LocalProtection,
            sys::IBV_WC_WR_FLUSH_ERR => Status::Flushed,
            sys::IBV_WC_BAD_RESP_ERR => Status::BadResponse,
            sys::IBV_WC_LOC_ACCESS_ERR => Status::LocalAccess,
            sys::IBV_WC_REM_INV_REQ_ERR => Status::RemoteInvalidRequest,
            sys::IBV_WC_REM_ACCESS_ERR => Status::RemoteAccess,
            sys::IBV_WC_REM_OP_ERR => Status::RemoteOperation,
            sys::IBV_WC_RETRY_EXC_ERR => Status::RetryExceeded,
            sys::IBV_WC_RNR_RETRY_EXC_ERR => Status::ReceiverNotReady,
            sys::IBV_WC_REM_ABORT_ERR => Status::RemoteAborted,
            sys::IBV_WC_FATAL_ERR => Status::Fatal,
            sys::IBV_WC_RESP_TIMEOUT_ERR => Status::ResponseTimeout,
            sys::IBV_WC_REM_INV_RD_REQ_ERR => Status::RemoteInvalidRead,
            sys::IBV_WC_MW_BIND_ERR => Status::WindowBind,
            sys::IBV_WC_GENERAL_ERR => Status::General,
            other => Status::Other(other),
        }
    }

    /// What it usually means.
    pub fn meaning(&self) -> &'static str {
        match self {
            Status::LocalLength => "the message is longer than the buffers posted for it",
            Status::LocalQueuePair => "the work request doesn't fit this queue pair",
            Status::LocalProtection => {
                "a buffer isn't in a registered region, or the region lacks the right"
            }
            Status::Flushed => {
                "the queue pair had failed or was shut down before it; an earlier completion says why"
            }
            Status::BadResponse => {
                "the peer's answer makes no sense; suspect its adapter or software"
            }
            Status::LocalAccess => "the region doesn't allow what the work request does",
            Status::RemoteInvalidRequest => {
                "the peer refused it: longer than its receive, or of a kind its queue pair doesn't allow"
            }
            Status::RemoteAccess => {
                "the peer refused the address: the rkey is wrong or withdrawn, or the range leaves its region"
            }
            Status::RemoteOperation => "the peer could not carry it out, though it was in order",
            Status::RetryExceeded => {
                "the peer doesn't answer: it is gone or in the error state, its link is down, packets are \
                 lost, or the MTU or GID doesn't fit the path"
            }
            Status::ReceiverNotReady => "the peer has no receive posted for it",
            Status::RemoteAborted => "the peer gave it up",
            Status::Fatal => "the adapter failed",
            Status::ResponseTimeout => "the peer's answer is overdue",
            Status::RemoteInvalidRead => {
                "the peer's adapter refused a read: it serves none, or fewer at a time than were sent"
            }
            Status::WindowBind => {
                "a memory window could not be bound: the region lacks the right, or belongs to another domain"
            }
            Status::General => {
                "the adapter or its driver failed in a way it has no status for: see the vendor code and the kernel log"
            }
            Status::Other(_) => "see enum ibv_wc_status in rdma-core",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::LocalLength => "local length error",
            Status::LocalQueuePair => "local queue pair operation error",
            Status::LocalProtection => "local protection error",
            Status::Flushed => "flushed",
            Status::BadResponse => "bad response",
            Status::LocalAccess => "local access error",
            Status::RemoteInvalidRequest => "remote invalid request",
            Status::RemoteAccess => "remote access error",
            Status::RemoteOperation => "remote operation error",
            Status::RetryExceeded => "transport retries exceeded",
            Status::ReceiverNotReady => "receiver-not-ready retries exceeded",
            Status::RemoteAborted => "aborted by the peer",
            Status::Fatal => "fatal error",
            Status::ResponseTimeout => "response timeout",
            Status::RemoteInvalidRead => "remote invalid read request",
            Status::WindowBind => "memory window bind error",
            Status::General => "general error",
            Status::Other(raw) => return write!(f, "status {raw}"),
        })
    }
}
