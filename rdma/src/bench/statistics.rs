//! Small statistics: how well a mean is known, and whether a series has settled.

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::report::Interval;

/// How sure intervals are.
pub(super) const CONFIDENCE: f64 = 0.95;
/// A single run is cut into this many batches for its interval.
pub(super) const BATCHES: usize = 10;
/// Values in each batch mean of MSER-5.
const MSER_BATCH: usize = 5;

pub(super) fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.iter().sum::<f64>() / values.len() as f64
}

fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// Coefficient of variation: the standard deviation as a share of the mean.
pub(super) fn variation(values: &[f64]) -> f64 {
    let mean = mean(values);
    if mean > 0.0 {
        deviation(values) / mean
    } else {
        0.0
    }
}

/// The interval that holds the mean that `values` are samples of, by Student's t; `None` for fewer than
/// two of them.
pub(super) fn interval(values: &[f64], over: &str) -> Option<Interval> {
    if values.len() < 2 {
        return None;
    }
    let freedom = (values.len() - 1) as f64;
    let t = StudentsT::new(0.0, 1.0, freedom)
        .ok()?
        .inverse_cdf(0.5 + CONFIDENCE / 2.0);
    let half = t * deviation(values) / (values.len() as f64).sqrt();
    let mean = mean(values);
    Some(Interval {
        // No rate and no time is negative, however widely the samples scatter.
        low: (mean - half).max(0.0),
        high: mean + half,
        confidence: CONFIDENCE,
        over: over.to_owned(),
        samples: u32::try_from(values.len()).unwrap_or(u32::MAX),
    })
}

/// Means of `count` equal batches of consecutive values, which are less correlated than the values;
/// none when there are too few. A rest that doesn't fill a batch is left out, from the start.
pub(super) fn batches(values: &[f64], count: usize) -> Vec<f64> {
    let size = values.len() / count.max(1);
    if size == 0 {
        return Vec::new();
    }
    let skip = values.len() - size * count;
    values[skip..].chunks_exact(size).map(mean).collect()
}

/// How many of the first values belong to a transient, by MSER-5 (White, Cobb and Spratt 2000): the cut
/// that minimises the squared standard error of the mean of what is left, over means of 5 values each,
/// among the cuts up to half of them. Noise alone moves that minimum about, so a cut counts only when it
/// at least halves the error.
pub(super) fn transient(values: &[f64]) -> usize {
    let means: Vec<f64> = values.chunks_exact(MSER_BATCH).map(mean).collect();
    let error = |cut: usize| {
        let rest = &means[cut..];
        let mean = mean(rest);
        let squares: f64 = rest.iter().map(|value| (value - mean).powi(2)).sum();
        squares / (rest.len() as f64).powi(2)
    };
    let cuts = 0..=means.len() / 2;
    if means.len() < 2 {
        return 0;
    }
    let best = cuts
        .map(|cut| (cut, error(cut)))
        .fold((0, f64::INFINITY), |best, next| {
            if next.1 < best.1 { next } else { best }
        });
    if best.1 > error(0) / 2.0 {
        return 0;
    }
    best.0 * MSER_BATCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_students() {
        // t for 4 degrees of freedom at 97.5% is 2.776445.
        let values = [9.0, 10.0, 11.0, 10.0, 10.0];
        let interval = interval(&values, "runs").expect("five runs");
        let half = 2.776_445 * deviation(&values) / 5f64.sqrt();
        assert!((interval.high - 10.0 - half).abs() < 1e-4, "{interval:?}");
        assert!((10.0 - interval.low - half).abs() < 1e-4, "{interval:?}");
        assert_eq!(interval.samples, 5);
    }

    #[test]
    fn one_value_has_no_interval_and_no_interval_is_negative() {
        assert_eq!(interval(&[1.0], "runs"), None);
        let wide = interval(&[0.1, 100.0], "runs").expect("two runs");
        assert_eq!(wide.low, 0.0);
    }

    #[test]
    fn variation_is_relative_and_nothing_does_not_vary() {
        assert_eq!(variation(&[]), 0.0);
        assert_eq!(variation(&[0.0, 0.0]), 0.0);
        assert!((variation(&[90.0, 110.0]) - 0.1414).abs() < 1e-3);
        assert_eq!(variation(&[9.0, 11.0]), variation(&[90.0, 110.0]));
    }

    #[test]
    fn batches_cover_the_end_of_the_series() {
        let values: Vec<f64> = (0..11).map(f64::from).collect();
        assert_eq!(batches(&values, 5), [1.5, 3.5, 5.5, 7.5, 9.5]);
        assert!(batches(&values[..3], 5).is_empty());
    }

    #[test]
    fn a_slow_start_is_found_and_a_constant_rate_has_none() {
        let noise = |index: usize| [0.2, -0.1, 0.15, -0.2, -0.05][index % 5];
        let settled: Vec<f64> = (0..100).map(|index| 50.0 + noise(index)).collect();
        assert_eq!(transient(&settled), 0);
        let slow: Vec<f64> = (0..100)
            .map(|index| noise(index) + if index < 20 { 2.5 * index as f64 } else { 50.0 })
            .collect();
        assert_eq!(transient(&slow), 20);
        assert_eq!(transient(&[]), 0);
    }
}
