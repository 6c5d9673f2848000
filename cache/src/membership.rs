//! The members as this node knows them, asked of the registry at most once a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::registry::{Member, Registry};

/// How old the answer may be: joining and leaving are noticed within this time.
const REFRESH: Duration = Duration::from_secs(1);

/// A snapshot of the members, refreshed when asked for.
pub(crate) struct Membership {
    registry: Arc<dyn Registry>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    members: Arc<[Member]>,
    asked: Option<Instant>,
}

impl Membership {
    pub(crate) fn new(registry: Arc<dyn Registry>) -> Membership {
        Membership {
            registry,
            known: Mutex::default(),
        }
    }

    /// The members; the last known ones while the registry can't be asked.
    pub(crate) fn now(&self) -> Arc<[Member]> {
        let mut known = self.known.lock();
        if known.asked.is_none_or(|asked| asked.elapsed() >= REFRESH) {
            known.asked = Some(Instant::now());
            match self.registry.members() {
                Ok(members) => known.members = members.into(),
                Err(error) => {
                    tracing::warn!(%error, "going on with the members known before");
                }
            }
        }
        Arc::clone(&known.members)
    }
}
