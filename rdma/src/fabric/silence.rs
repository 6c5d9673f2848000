//! For how long a peer has been silent, counting only the time in which it could have been heard.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Time without a sign of life. Whoever waits looks at it every so often; a look that comes much too
/// late shows that this thread did not run, and what it did not run for was not the peer's silence:
/// a node that was stopped for a minute must not give all its peers up when it goes on.
pub(super) struct Silence {
    lasted: Cell<Duration>,
    looked: Cell<Instant>,
}

impl Silence {
    /// Begins now.
    pub(super) fn new() -> Silence {
        Silence {
            lasted: Cell::new(Duration::ZERO),
            looked: Cell::new(Instant::now()),
        }
    }

    /// The peer was heard, or silence begins to matter only now.
    pub(super) fn end(&self) {
        self.lasted.set(Duration::ZERO);
        self.looked.set(Instant::now());
    }

    /// How long it has lasted, by somebody who meant to look `pause` after the last time.
    pub(super) fn look(&self, pause: Duration) -> Duration {
        self.look_at(Instant::now(), pause)
    }

    fn look_at(&self, now: Instant, pause: Duration) -> Duration {
        let passed = now.saturating_duration_since(self.looked.replace(now));
        let lasted = self.lasted.get() + passed.min(pause * 2);
        self.lasted.set(lasted);
        lasted
    }

    /// How long it had lasted when it was last looked at.
    pub(super) fn lasted(&self) -> Duration {
        self.lasted.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(1);

    #[test]
    fn silence_adds_up_until_the_peer_is_heard() {
        let silence = Silence::new();
        let start = silence.looked.get();
        for second in 1..=5 {
            let lasted = silence.look_at(start + PAUSE * second, PAUSE);
            assert_eq!(lasted, PAUSE * second);
        }
        silence.end();
        assert_eq!(silence.lasted(), Duration::ZERO);
    }

    #[test]
    fn a_thread_that_did_not_run_for_a_minute_blames_nobody_for_it() {
        let silence = Silence::new();
        let start = silence.looked.get();
        silence.look_at(start + PAUSE, PAUSE);
        let lasted = silence.look_at(start + PAUSE + Duration::from_secs(60), PAUSE);
        assert_eq!(lasted, PAUSE * 3);
    }
}
