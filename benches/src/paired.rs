//! Statistics of paired runs: how much faster we are than the peer, and how sure that is.
//!
//! The ratio of each pair is taken in logarithms, where "twice" and "half" are equally far from
//! "the same", and a Student t interval over them gives the bounds. With few noisy pairs the
//! interval is wide and the verdict is honest about it: inconclusive.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// One run of ours and the peer's run next to it, in the same unit.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// Our figure.
    pub ours: f64,
    /// The peer's figure.
    pub peer: f64,
}

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Bandwidth, operations a second.
    Higher,
    /// Seconds, instructions, bytes of memory.
    Lower,
}

/// Whether the goal is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The whole interval is at or above the goal.
    Pass,
    /// The whole interval is below the goal.
    Fail,
    /// The goal lies inside the interval, or a figure is not a number.
    Inconclusive,
}

/// What the pairs say together.
#[derive(Debug, Clone, Copy)]
pub struct Estimate {
    /// Median of our figures.
    pub ours: f64,
    /// Median of the peer's figures.
    pub peer: f64,
    /// Geometric mean of the pairs' ratios, above 1 where we are better.
    pub ratio: f64,
    /// 95% confidence interval of the ratio.
    pub interval: (f64, f64),
}

impl Estimate {
    /// Estimates the ratio from pairs; `None` without two pairs of positive, finite figures.
    pub fn of(pairs: &[Pair], better: Better) -> Option<Self> {
        let sound = |figure: f64| figure.is_finite() && figure > 0.0;
        if pairs.len() < 2
            || !pairs
                .iter()
                .all(|pair| sound(pair.ours) && sound(pair.peer))
        {
            return None;
        }
        let logs: Vec<f64> = pairs
            .iter()
            .map(|pair| match better {
                Better::Higher => (pair.ours / pair.peer).ln(),
                Better::Lower => (pair.peer / pair.ours).ln(),
            })
            .collect();
        let count = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / count;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let student = StudentsT::new(0.0, 1.0, count - 1.0).ok()?;
        let margin = student.inverse_cdf(0.975) * (variance / count).sqrt();
        Some(Self {
            ours: median(pairs.iter().map(|pair| pair.ours)),
            peer: median(pairs.iter().map(|pair| pair.peer)),
            ratio: mean.exp(),
            interval: ((mean - margin).exp(), (mean + margin).exp()),
        })
    }

    /// Holds the interval against a goal for the ratio.
    pub fn verdict(&self, goal: f64) -> Verdict {
        if self.interval.0 >= goal {
            Verdict::Pass
        } else if self.interval.1 < goal {
            Verdict::Fail
        } else {
            Verdict::Inconclusive
        }
    }
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    } else {
        sorted[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(figures: &[(f64, f64)]) -> Vec<Pair> {
        figures
            .iter()
            .map(|&(ours, peer)| Pair { ours, peer })
            .collect()
    }

    #[test]
    fn a_machine_that_slows_down_halfway_does_not_change_the_ratio() {
        let drifting = pairs(&[(90.0, 100.0), (45.0, 50.0), (9.0, 10.0), (90.0, 100.0)]);
        let estimate = Estimate::of(&drifting, Better::Higher).expect("four sound pairs");
        assert!((estimate.ratio - 0.9).abs() < 1e-9);
        assert_eq!(estimate.verdict(0.89), Verdict::Pass);
        assert_eq!(estimate.verdict(0.91), Verdict::Fail);
    }

    #[test]
    fn noise_around_the_goal_is_called_inconclusive() {
        let noisy = pairs(&[(80.0, 100.0), (120.0, 100.0), (95.0, 100.0), (105.0, 100.0)]);
        let estimate = Estimate::of(&noisy, Better::Higher).expect("four sound pairs");
        assert_eq!(estimate.verdict(0.95), Verdict::Inconclusive);
    }

    #[test]
    fn fewer_seconds_than_the_peer_is_a_ratio_above_one() {
        let faster = pairs(&[(1.0, 2.0), (1.0, 2.0)]);
        let estimate = Estimate::of(&faster, Better::Lower).expect("two sound pairs");
        assert!((estimate.ratio - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_run_that_measured_nothing_gives_no_estimate() {
        assert!(Estimate::of(&pairs(&[(0.0, 1.0), (1.0, 1.0)]), Better::Higher).is_none());
        assert!(Estimate::of(&pairs(&[(1.0, 1.0)]), Better::Higher).is_none());
        assert!(Estimate::of(&pairs(&[(f64::NAN, 1.0), (1.0, 1.0)]), Better::Higher).is_none());
    }
}
