//! An attempt to connect, under way: its identifier, its deadline, and what went wrong with it.

use std::io;
use std::time::Instant;

use super::error::{ConnectError, Phase, Refusal};
use super::id::{CmEvent, Id};
use crate::sys;

/// What all steps of making a connection have in common.
pub(super) struct Attempt {
    pub(super) id: Id,
    pub(super) phase: Phase,
    pub(super) deadline: Instant,
    started: Instant,
}

impl Attempt {
    pub(super) fn new(id: Id, phase: Phase, deadline: Instant) -> Attempt {
        Attempt {
            id,
            phase,
            deadline,
            started: Instant::now(),
        }
    }

    /// Takes the next event. What ends the attempt, the deadline included, is an error.
    pub(super) fn next_event(&mut self) -> Result<Option<CmEvent>, ConnectError> {
        match self.id.next_event()? {
            Some(event) => match self.failure(&event) {
                Some(error) => Err(error),
                None => Ok(Some(event)),
            },
            None if Instant::now() >= self.deadline => Err(self.timed_out()),
            None => Ok(None),
        }
    }

    /// Milliseconds until the deadline, for librdmacm.
    pub(super) fn millis_left(&self) -> i32 {
        let left = self.deadline.saturating_duration_since(Instant::now());
        i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1)
    }

    fn timed_out(&self) -> ConnectError {
        ConnectError::TimedOut {
            address: self.id.address(),
            phase: self.phase,
            waited: self.started.elapsed(),
        }
    }

    /// How that event ends the attempt, if it does.
    fn failure(&self, event: &CmEvent) -> Option<ConnectError> {
        let address = self.id.address();
        let source = event.error();
        let late = source.raw_os_error() == Some(libc::ETIMEDOUT);
        Some(match event.kind {
            sys::RDMA_CM_EVENT_ADDR_ERROR
            | sys::RDMA_CM_EVENT_ROUTE_ERROR
            | sys::RDMA_CM_EVENT_UNREACHABLE
                if late =>
            {
                self.timed_out()
            }
            sys::RDMA_CM_EVENT_ADDR_ERROR => ConnectError::Address { address, source },
            sys::RDMA_CM_EVENT_ROUTE_ERROR => ConnectError::Route {
                address,
                device: self
                    .id
                    .device()
                    .map_or_else(String::new, |found| found.name),
                source,
            },
            sys::RDMA_CM_EVENT_REJECTED => ConnectError::Rejected {
                address,
                reason: Refusal::from_status(event.status),
                private_data: event.private_data.clone(),
            },
            sys::RDMA_CM_EVENT_UNREACHABLE | sys::RDMA_CM_EVENT_CONNECT_ERROR => {
                // A positive status is of the connection manager's own protocol, no errno.
                let source = match event.status {
                    status if status > 0 => io::Error::other(format!("status {status}")),
                    _ => source,
                };
                ConnectError::Unreachable { address, source }
            }
            sys::RDMA_CM_EVENT_DISCONNECTED => ConnectError::Gone { address },
            sys::RDMA_CM_EVENT_DEVICE_REMOVAL => ConnectError::DeviceRemoved { address },
            _ => return None,
        })
    }
}
