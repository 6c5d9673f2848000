//! How many messages were done by when: read now and then, so that a rate can be looked at afterwards.

use std::time::Duration;

use super::statistics::variation;

/// Samples kept; when there are more, every other one goes and the next ones are taken half as often.
const MOST_SAMPLES: usize = 2048;
const FIRST_SPACING: Duration = Duration::from_millis(1);
/// Intervals that rates are given for.
const INTERVALS: usize = 100;
/// Rates that must be alike before a transfer counts as settled.
const WINDOW: usize = 5;
/// By how much they may differ: their coefficient of variation.
pub(super) const SETTLED_VARIATION: f64 = 0.05;

/// Time and count, from the start of a transfer on.
#[derive(Debug, Clone)]
pub(super) struct Series {
    spacing: Duration,
    samples: Vec<(Duration, u64)>,
}

impl Series {
    pub(super) fn new() -> Series {
        Series {
            spacing: FIRST_SPACING,
            samples: Vec::with_capacity(MOST_SAMPLES),
        }
    }

    /// Takes note, unless it is too early for another sample.
    pub(super) fn note(&mut self, at: Duration, count: u64) {
        let (last_at, last_count) = self.samples.last().copied().unwrap_or_default();
        if at < last_at + self.spacing || count == last_count {
            return;
        }
        if self.samples.len() == MOST_SAMPLES {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                !keep
            });
            self.spacing *= 2;
        }
        self.samples.push((at, count));
    }

    /// Messages a second in consecutive intervals of about the same length, at most [`INTERVALS`].
    pub(super) fn rates(&self) -> Vec<f64> {
        let end = self.samples.last().map_or(Duration::ZERO, |last| last.0);
        self.rates_by(end / INTERVALS as u32)
    }

    /// Whether the last [`WINDOW`] intervals of this length had about the same rate.
    pub(super) fn is_settled(&self, interval: Duration) -> bool {
        let rates = self.rates_by(interval);
        rates.len() >= WINDOW && variation(&rates[rates.len() - WINDOW..]) <= SETTLED_VARIATION
    }

    fn rates_by(&self, interval: Duration) -> Vec<f64> {
        let mut rates = Vec::new();
        let (mut from_at, mut from_count) = (Duration::ZERO, 0);
        for (at, count) in &self.samples {
            let passed = at.saturating_sub(from_at);
            if passed >= interval && !passed.is_zero() {
                rates.push((count - from_count) as f64 / passed.as_secs_f64());
                (from_at, from_count) = (*at, *count);
            }
        }
        rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_constant_rate_is_that_rate_in_every_interval() {
        let mut series = Series::new();
        for step in 1..=10_000 {
            series.note(ms(step), step * 50);
        }
        let rates = series.rates();
        assert!((20..=INTERVALS).contains(&rates.len()), "{}", rates.len());
        assert!(rates.iter().all(|rate| (rate - 50_000.0).abs() < 1.0));
        assert!(series.samples.len() <= MOST_SAMPLES);
        assert!(series.is_settled(ms(50)));
    }

    #[test]
    fn a_rate_that_still_rises_has_not_settled() {
        let mut series = Series::new();
        for step in 1..=1000u64 {
            series.note(ms(step), step * step);
        }
        assert!(!series.is_settled(ms(100)));
        for step in 1..=1000u64 {
            series.note(ms(1000 + step), 1_000_000 + step * 1999);
        }
        assert!(series.is_settled(ms(100)));
    }

    #[test]
    fn a_few_samples_say_nothing() {
        let mut series = Series::new();
        assert!(series.rates().is_empty() && !series.is_settled(ms(1)));
        series.note(ms(5), 10);
        assert_eq!(series.rates(), [2000.0]);
        assert!(!series.is_settled(ms(1)));
    }
}
