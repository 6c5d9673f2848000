//! One mount of the keeper's, as the agent holds it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::Shared;
use super::message::{Ask, MountState};
use crate::expose::{ExposeError, Exposed, Failure};

/// A mount of the keeper's.
pub(super) struct KeptMount {
    pub(super) shared: Arc<Shared>,
    pub(super) version: String,
    pub(super) number: u64,
    pub(super) mount_point: PathBuf,
    pub(super) device: (u32, u32),
    pub(super) way: String,
    /// Unmounted or left already.
    pub(super) over: bool,
}

impl KeptMount {
    fn state<T>(&self, look: impl FnOnce(&MountState, Instant) -> T) -> Option<T> {
        let states = self.shared.states.lock();
        let (state, at) = states.get(&self.number)?;
        Some(look(state, *at))
    }

    fn take_away(&mut self) -> Result<(), ExposeError> {
        self.over = true;
        self.shared.unlend(&self.version);
        let known = self.shared.states.lock().remove(&self.number);
        if let (Some(link), Some(_)) = (self.shared.connected(), known) {
            let mount = self.number;
            link.call(&Ask::Unmount { mount }, &[])?;
        }
        Ok(())
    }
}

impl Exposed for KeptMount {
    fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    fn device(&self) -> (u32, u32) {
        self.device
    }

    fn is_alive(&self) -> bool {
        self.shared.connected().is_some() && self.state(|state, _| state.alive).unwrap_or(false)
    }

    fn last_failure(&self) -> Option<Failure> {
        self.state(|state, told| {
            let failure = state.failure.as_ref()?;
            let at = told.checked_sub(Duration::from_millis(failure.age_ms));
            Some(Failure {
                at: at.unwrap_or(told),
                what: failure.what.clone(),
            })
        })?
    }

    fn way(&self) -> String {
        self.way.clone()
    }

    fn unmount(mut self: Box<Self>) -> Result<(), ExposeError> {
        self.take_away()
    }

    fn leave(mut self: Box<Self>) {
        self.over = true;
    }
}

impl Drop for KeptMount {
    fn drop(&mut self) {
        if !self.over
            && let Err(error) = self.take_away()
        {
            tracing::warn!(%error, "a dataset stays mounted");
        }
    }
}
