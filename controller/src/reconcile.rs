//! The controller: what the API server says goes into a [`world`], a pure look at that says what each job
//! needs ([`crate::job::step`]) and which gangs start ([`crate::plan::plan`]), and `act` carries it out.
//!
//! One controller of several is the leader, by a Lease. A leader begins with a world of its own, listed
//! anew, and acts only while it is sure of its lease. One that lost it without knowing does no harm either:
//! it writes statuses over nobody (they carry the resource version that it saw), and does nothing but what
//! a written status says, to pods whose names say which attempt they are of.

mod act;
mod clock;
mod config;
mod explain;
mod fetch;
mod lead;
mod lease;
mod metrics;
mod requests;
mod snapshot;
mod watch;
mod world;

pub use clock::SteadyClock;
pub use config::{ConfigError, ControllerConfig, HardwareConfig, TeamConfig, TeamQuota};
pub use explain::{HardwareRoom, RoleRoom, explain, rooms};
pub use fetch::list_all;
pub use lead::run;
pub use lease::LeaseSettings;
pub use metrics::Metrics;
pub use snapshot::{Picture, picture};
pub use world::{World, job_of, kubeflow_job_of};

use std::time::Duration;

use kube::Resource;

/// The field manager of what the controller writes.
const MANAGER: &str = "trackbed-controller";

/// How long the API server may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The label by which the group of nodes is known whose rails meet in the same switches.
pub const RAIL_GROUP_LABEL: &str = "topology.trackbed.io/rail-group";

/// Why a call to the API server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was refused, or there was no way there.
    #[error("{}", reason(.0))]
    Refused(#[from] kube::Error),
    /// There was no answer.
    #[error("the API server did not answer within {ANSWER_WITHIN:?}")]
    Late,
    /// This controller is no longer sure to be the leader.
    #[error("another controller may lead by now")]
    NotLeading,
}

impl CallError {
    /// The HTTP status of a refusal.
    fn code(&self) -> Option<u16> {
        match self {
            CallError::Refused(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

/// An error of the API client in one line.
pub fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        error => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(inner) = cause {
                let said = inner.to_string();
                if !text.contains(&said) {
                    text = format!("{text}: {said}");
                }
                cause = inner.source();
            }
            text
        }
    }
}

/// The resource version as a number: later ones are higher.
fn version(object: &impl Resource) -> u64 {
    let version = object.meta().resource_version.as_deref();
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}
