//! How long peers took lately, and so how long to wait for one before another is asked beside it.

use std::time::Duration;

use parking_lot::Mutex;

/// Fetches that are remembered.
const REMEMBERED: usize = 128;
/// The fewest that say something about the next.
const ENOUGH: usize = 16;
/// What to do before that many.
const UNKNOWN: Waits = Waits {
    hedge: Duration::from_millis(200),
    next: Duration::from_secs(10),
};
/// Bounds of the wait for a hedge: not for what a busy processor explains, nor only when readers
/// have long noticed.
const HEDGE: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// How many times what is usual a peer may take until the next is asked as well.
const NEXT_FACTOR: u32 = 10;
/// Bounds of that wait.
const NEXT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// How long to wait for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waits {
    /// Until another is asked for what it has on its disk: 95 of 100 fetches took no longer.
    pub(super) hedge: Duration,
    /// Until the next source is asked as well, whatever that costs it.
    pub(super) next: Duration,
}

/// The last fetches from peers.
#[derive(Default)]
pub(super) struct Pace(Mutex<Took>);

#[derive(Default)]
struct Took {
    times: Vec<Duration>,
    /// The oldest, once there are as many as are remembered.
    oldest: usize,
}

impl Pace {
    /// Notes how long a fetch took, or how long one was waited for in vain.
    pub(super) fn note(&self, time: Duration) {
        let mut took = self.0.lock();
        if took.times.len() < REMEMBERED {
            took.times.push(time);
        } else {
            let oldest = took.oldest;
            took.times[oldest] = time;
            took.oldest = (oldest + 1) % REMEMBERED;
        }
    }

    pub(super) fn waits(&self) -> Waits {
        let mut times = self.0.lock().times.clone();
        if times.len() < ENOUGH {
            return UNKNOWN;
        }
        let rank = times.len() * 95 / 100;
        let (_, usual, _) = times.select_nth_unstable(rank);
        Waits {
            hedge: (*usual).clamp(HEDGE[0], HEDGE[1]),
            next: (*usual * NEXT_FACTOR).clamp(NEXT[0], NEXT[1]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paced(times: impl IntoIterator<Item = u64>) -> Waits {
        let pace = Pace::default();
        for millis in times {
            pace.note(Duration::from_millis(millis));
        }
        pace.waits()
    }

    #[test]
    fn what_is_usual_is_learnt_and_forgotten_again() {
        assert_eq!(paced(0..15), UNKNOWN);
        assert_eq!(paced(1..=100).hedge, Duration::from_millis(96));
        assert_eq!(paced(1..=100).next, Duration::from_secs(1));
        // One that hangs does not make the others wait.
        assert_eq!(paced([vec![1; 99], vec![40_000]].concat()).hedge, HEDGE[0]);
        assert_eq!(
            paced([vec![900; 200], vec![50; 128]].concat())
                .hedge
                .as_millis(),
            50
        );
        let slow = paced(vec![20_000; 128]);
        assert_eq!((slow.hedge, slow.next), (HEDGE[1], NEXT[1]));
    }
}
