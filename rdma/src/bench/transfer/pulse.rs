//! When a transfer ends, how often its clock is read, and how fast it may go.

use std::time::{Duration, Instant};

use crate::bench::message::Until;
use crate::bench::plan::{Length, Rate};
use crate::bench::series::Series;

/// When a transfer ends, and what was seen until then.
pub(super) struct Watch {
    pub(super) until: Until,
    pub(super) series: Series,
    pub(super) settled: bool,
    pub(super) closed: bool,
    pub(super) heard: Duration,
    pub(super) told: Duration,
    pub(super) judged: Duration,
    pub(super) quiet_since: Option<Duration>,
}

impl Watch {
    pub(super) fn new(until: Until) -> Watch {
        Watch {
            until,
            series: Series::new(),
            settled: false,
            closed: false,
            heard: Duration::ZERO,
            told: Duration::ZERO,
            judged: Duration::ZERO,
            quiet_since: None,
        }
    }

    pub(super) fn look(&mut self, now: Duration, count: u64, peer_done: bool) {
        self.series.note(now, count);
        if self.closed {
            return;
        }
        self.closed = match self.until {
            Until::Length(Length::Iterations(_)) => false,
            Until::Length(Length::Milliseconds(time)) => now >= Duration::from_millis(time),
            Until::Peer => peer_done,
            Until::Settled {
                messages,
                milliseconds,
            } => {
                let longest = Duration::from_millis(milliseconds);
                let interval = longest / 20;
                if now >= self.judged + interval {
                    self.judged = now;
                    self.settled = self.series.is_settled(interval);
                }
                count >= messages && (self.settled || now >= longest)
            }
        };
    }
}

/// A clock that is read seldom.
pub(super) struct Clock {
    pub(super) start: Instant,
    pub(super) last: Duration,
    pub(super) stride: u64,
    pub(super) next: u64,
}

impl Clock {
    const OFTEN: Duration = Duration::from_micros(500);
    const SELDOM: Duration = Duration::from_millis(2);

    pub(super) fn new() -> Clock {
        Clock {
            start: Instant::now(),
            last: Duration::ZERO,
            stride: 1,
            next: 1,
        }
    }

    #[inline]
    pub(super) fn is_due(&self, count: u64) -> bool {
        count >= self.next
    }

    /// The time, and a guess at how many messages later it shall be read again.
    pub(super) fn read(&mut self, count: u64) -> Duration {
        let now = self.start.elapsed();
        let passed = now.saturating_sub(self.last);
        if passed < Clock::OFTEN {
            self.stride = (self.stride * 2).min(1 << 20);
        } else if passed > Clock::SELDOM {
            self.stride = (self.stride / 2).max(1);
        }
        self.last = now;
        self.next = count + self.stride;
        now
    }
}

/// Keeps to a rate: what may have been posted by now, less what was.
pub(super) struct Pace {
    pub(super) messages_per_second: f64,
    pub(super) posted: u64,
}

impl Pace {
    pub(super) fn new(rate: Option<Rate>, bytes: u64) -> Option<Pace> {
        let messages_per_second = match rate? {
            Rate::BitsPerSecond(bits) => bits as f64 / (8.0 * bytes as f64),
            Rate::MessagesPerSecond(messages) => messages as f64,
        };
        Some(Pace {
            messages_per_second,
            posted: 0,
        })
    }

    pub(super) fn allowed(&self, clock: &Clock) -> u64 {
        let by_now = clock.start.elapsed().as_secs_f64() * self.messages_per_second;
        // The first message goes at once.
        (by_now as u64 + 1).saturating_sub(self.posted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_read_more_seldom_the_faster_messages_move() {
        let mut clock = Clock::new();
        for count in 0..100 {
            clock.read(count);
        }
        assert!(clock.stride > 100, "{}", clock.stride);
        assert!(!clock.is_due(clock.next - 1) && clock.is_due(clock.next));
    }

    #[test]
    fn a_pace_counts_bits_or_messages() {
        assert!(Pace::new(None, 1).is_none());
        let by_bits = Pace::new(Some(Rate::BitsPerSecond(8_000_000)), 1000).expect("a rate");
        assert_eq!(by_bits.messages_per_second, 1000.0);
        let by_messages = Pace::new(Some(Rate::MessagesPerSecond(7)), 1000).expect("a rate");
        assert_eq!(by_messages.messages_per_second, 7.0);
        assert_eq!(by_messages.allowed(&Clock::new()), 1);
    }

    #[test]
    fn a_transfer_ends_by_time_by_its_peer_or_when_settled() {
        let ms = Duration::from_millis;
        let mut watch = Watch::new(Until::Length(Length::Milliseconds(10)));
        watch.look(ms(9), 1, true);
        assert!(!watch.closed);
        watch.look(ms(10), 2, false);
        assert!(watch.closed);
        let mut watch = Watch::new(Until::Peer);
        watch.look(ms(1), 1, false);
        assert!(!watch.closed);
        watch.look(ms(2), 1, true);
        assert!(watch.closed);
        let mut watch = Watch::new(Until::Settled {
            messages: 100,
            milliseconds: 1000,
        });
        for step in 1..=400 {
            watch.look(ms(step), step * 10, false);
        }
        assert!(watch.closed && watch.settled);
    }
}
