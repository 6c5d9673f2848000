//! Why a call on a volume failed, and the gRPC code that CSI has for it.

use std::path::PathBuf;

use tonic::{Code, Status};

use crate::expose::ExposeError;

/// Why a call on a volume failed. Each text says what was asked, why it was refused, and where it
/// helps, what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeError {
    /// The request itself is wrong: asking again is no use.
    #[error("{0}")]
    Invalid(String),
    /// What it names is not there.
    #[error("{0}")]
    NotFound(String),
    /// The volume is in use in another way already.
    #[error("{0}")]
    Conflict(String),
    /// Something else has to be done before.
    #[error("{0}")]
    Premature(String),
    /// The caller may not have it.
    #[error("{0}")]
    Denied(String),
    /// A capacity that cannot be had.
    #[error("{0}")]
    OutOfRange(String),
    /// A page of a list that this driver never told of.
    #[error(
        "starting_token {0:?} is none that an earlier answer had as next_token: start again without one"
    )]
    Token(String),
    /// Another call on the same volume or path is under way.
    #[error(
        "another operation on volume {volume:?} or on {} is under way: try again when it has ended",
        path.display()
    )]
    Busy {
        /// The volume's id.
        volume: String,
        /// The staging or target path.
        path: PathBuf,
    },
    /// A part of the system does not answer at the moment.
    #[error("{0}")]
    Unavailable(String),
    /// The node is not able to mount.
    #[error("{action}: {source}")]
    Expose {
        /// What was attempted.
        action: String,
        /// Why it failed.
        source: ExposeError,
    },
    /// The file system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was attempted.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A defect in the driver.
    #[error("an operation on the volume panicked; the driver's log has the reason")]
    Panicked,
}

impl VolumeError {
    /// For `map_err`: the file system refused `action`.
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> VolumeError {
        let action = action.into();
        move |source| VolumeError::Io { action, source }
    }

    /// For `map_err`: mounting or unmounting failed while `action` was attempted.
    pub(super) fn expose(action: impl Into<String>) -> impl FnOnce(ExposeError) -> VolumeError {
        let action = action.into();
        move |source| VolumeError::Expose { action, source }
    }

    fn code(&self) -> Code {
        match self {
            VolumeError::Invalid(_) => Code::InvalidArgument,
            VolumeError::NotFound(_) => Code::NotFound,
            VolumeError::Conflict(_) => Code::AlreadyExists,
            VolumeError::Premature(_)
            | VolumeError::Expose {
                source: ExposeError::Foreign { .. },
                ..
            } => Code::FailedPrecondition,
            VolumeError::Denied(_) => Code::PermissionDenied,
            VolumeError::OutOfRange(_) => Code::OutOfRange,
            VolumeError::Busy { .. } | VolumeError::Token(_) => Code::Aborted,
            VolumeError::Unavailable(_)
            | VolumeError::Expose {
                source: ExposeError::NotNativeYet { .. },
                ..
            } => Code::Unavailable,
            VolumeError::Expose { .. } | VolumeError::Io { .. } | VolumeError::Panicked => {
                Code::Internal
            }
        }
    }
}

impl From<VolumeError> for Status {
    fn from(error: VolumeError) -> Status {
        Status::new(error.code(), error.to_string())
    }
}
