//! A clock that does not jump.

use std::time::Instant;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// The time of day when it was made, and since then what has really passed, whatever is done to the
/// machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SteadyClock {
    began: Timestamp,
    since: Instant,
}

impl SteadyClock {
    /// One that starts now.
    pub fn start() -> SteadyClock {
        SteadyClock {
            began: Timestamp::now(),
            since: Instant::now(),
        }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.since.elapsed()).unwrap_or(SignedDuration::MAX);
        self.began.checked_add(passed).unwrap_or(Timestamp::MAX)
    }
}
