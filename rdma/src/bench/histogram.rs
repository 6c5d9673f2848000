//! Times of round trips, kept as a high dynamic range histogram.

use hdrhistogram::Histogram;

use super::statistics::CONFIDENCE;
use super::{Interval, Latency, Percentile};

/// Decimal digits that are kept of a time.
const DIGITS: u8 = 3;
/// Longer times count as this: an hour.
const LONGEST_NS: u64 = 3_600_000_000_000;
/// Times are gathered here and sorted in when it is full, so that sorting in is no part of a round trip.
const GATHERED: usize = 16 << 10;
/// Round trips in each of the means that tell whether latency was steady.
const IN_A_MEAN: usize = 64;
/// Points of the distribution for each halving of the distance to 100%.
const POINTS: u32 = 5;
/// Two-sided normal quantile of [`CONFIDENCE`].
const NORMAL: f64 = 1.96;

/// Round trip times in nanoseconds.
pub(super) struct Times {
    gathered: Vec<u64>,
    histogram: Histogram<u64>,
    sum_ns: f64,
    means: Vec<f64>,
}

impl Times {
    pub(super) fn new() -> Times {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS);
        Times {
            gathered: Vec::with_capacity(GATHERED),
            histogram: histogram.expect("the bounds are an hour and three digits"),
            sum_ns: 0.0,
            means: Vec::new(),
        }
    }

    /// Keeps a time; whether it is time to call [`Times::sort_in`].
    #[inline]
    pub(super) fn keep(&mut self, ns: u64) -> bool {
        self.gathered.push(ns);
        self.gathered.len() == GATHERED
    }

    /// Sorts in what was gathered.
    pub(super) fn sort_in(&mut self) {
        for ns in &self.gathered {
            self.histogram.saturating_record(*ns);
        }
        for part in self.gathered.chunks(IN_A_MEAN) {
            let sum: f64 = part.iter().map(|ns| *ns as f64).sum();
            self.sum_ns += sum;
            if part.len() == IN_A_MEAN {
                self.means.push(sum / IN_A_MEAN as f64);
            }
        }
        self.gathered.clear();
        // A series of bounded length: pairs become one.
        if self.means.len() > 4096 {
            self.means = self
                .means
                .chunks(2)
                .map(|pair| pair.iter().sum::<f64>() / pair.len() as f64)
                .collect();
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.histogram.len() + self.gathered.len() as u64
    }

    /// Means over consecutive round trips.
    pub(super) fn means(&self) -> &[f64] {
        &self.means
    }

    /// Takes in another run's times; they don't follow ours, so their series is left out.
    pub(super) fn add(&mut self, other: &Times) {
        self.histogram
            .add(&other.histogram)
            .expect("both have the same bounds");
        self.sum_ns += other.sum_ns;
    }

    /// `share` is what part of a round trip counts as latency.
    pub(super) fn latency(&self, share: f64) -> Option<Latency> {
        if self.histogram.is_empty() {
            return None;
        }
        let us = |ns: u64| ns as f64 * share / 1000.0;
        let at = |quantile| us(self.histogram.value_at_quantile(quantile));
        Some(Latency {
            min_us: us(self.histogram.min()),
            p50_us: at(0.5),
            mean_us: self.sum_ns * share / 1000.0 / self.histogram.len() as f64,
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p9999_us: at(0.9999),
            max_us: us(self.histogram.max()),
        })
    }

    /// The distribution, finer the nearer to its end.
    pub(super) fn percentiles(&self, share: f64) -> Vec<Percentile> {
        let mut points: Vec<Percentile> = Vec::new();
        for value in self.histogram.iter_quantiles(POINTS) {
            let point = Percentile {
                percent: value.quantile_iterated_to() * 100.0,
                us: value.value_iterated_to() as f64 * share / 1000.0,
            };
            // The end is reached more than once.
            if points.last() != Some(&point) {
                points.push(point);
            }
        }
        points
    }

    /// Where the median is, by the ranks that binomial chance leaves it between; it takes round trips as
    /// independent of each other.
    pub(super) fn median_interval(&self, share: f64) -> Option<Interval> {
        let count = self.histogram.len();
        if count < 10 {
            return None;
        }
        let half = NORMAL * 0.5 / (count as f64).sqrt();
        let at = |quantile| self.histogram.value_at_quantile(quantile) as f64 * share / 1000.0;
        Some(Interval {
            low: at((0.5 - half).max(0.0)),
            high: at((0.5 + half).min(1.0)),
            confidence: CONFIDENCE,
            over: "round trips".to_owned(),
            samples: u32::try_from(count).unwrap_or(u32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thousand() -> Times {
        let mut times = Times::new();
        for count in 1..=1000u64 {
            times.keep(2000 * count);
        }
        times.sort_in();
        times
    }

    fn close(found: f64, due: f64) -> bool {
        (found - due).abs() <= due * 0.002
    }

    #[test]
    fn percentiles_are_of_the_share_of_a_round_trip() {
        let latency = thousand().latency(0.5).expect("a thousand");
        for (found, due) in [
            (latency.min_us, 1.0),
            (latency.p50_us, 500.0),
            (latency.mean_us, 500.5),
            (latency.p90_us, 900.0),
            (latency.p99_us, 990.0),
            (latency.p999_us, 999.0),
            (latency.max_us, 1000.0),
        ] {
            assert!(close(found, due), "{found} where {due} is due");
        }
        let whole = thousand().latency(1.0).expect("a thousand");
        assert!(close(whole.p50_us, 1000.0));
        assert_eq!(Times::new().latency(1.0), None);
    }

    #[test]
    fn the_distribution_rises_to_its_end() {
        let points = thousand().percentiles(0.5);
        assert!(points.len() > 10 && points.len() < 200, "{}", points.len());
        let rises =
            |pair: &[Percentile]| pair[0].percent <= pair[1].percent && pair[0].us <= pair[1].us;
        assert!(points.windows(2).all(rises));
        let last = points.last().expect("points");
        assert!(last.percent == 100.0 && close(last.us, 1000.0), "{last:?}");
    }

    #[test]
    fn the_median_lies_in_its_interval() {
        let interval = thousand().median_interval(0.5).expect("a thousand");
        assert!(interval.low < 500.0 && 500.0 < interval.high);
        assert!(
            (interval.high - interval.low - 62.0).abs() < 2.0,
            "{interval:?}"
        );
        assert_eq!(Times::new().median_interval(1.0), None);
    }

    #[test]
    fn runs_are_added_up() {
        let (mut one, other) = (thousand(), thousand());
        one.add(&other);
        assert_eq!(one.count(), 2000);
        assert!(close(one.latency(0.5).expect("times").mean_us, 500.5));
    }
}
