//! The rank test and the estimate that goes with it.
//!
//! Mann and Whitney's U (1947), exact also with ties, and Hodges and Lehmann's shift (1963) with the
//! interval that inverts the test. Nothing is assumed about how runs are distributed.

use statrs::distribution::{ContinuousCDF, Normal};

/// Up to this many values together the distribution is enumerated; beyond, it is normal.
const EXACT: usize = 60;

/// What the test says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Test {
    /// The chance that one of the second sample is larger than one of the first, ties counting half.
    pub(super) superiority: f64,
    /// The chance of a rank sum so far from the middle when both samples are alike.
    pub(super) p: f64,
}

/// Compares two samples.
pub(super) fn mann_whitney(x: &[f64], y: &[f64]) -> Test {
    let (n, m) = (x.len(), y.len());
    if n == 0 || m == 0 {
        return Test {
            superiority: 0.5,
            p: 1.0,
        };
    }
    let (ranks, ties) = doubled_ranks(x, y);
    let sum: u64 = ranks[n..].iter().sum();
    // Of the second sample; twice the U, as ranks are.
    let u2 = sum - (m * (m + 1)) as u64;
    let superiority = u2 as f64 / 2.0 / (n * m) as f64;
    let p = if n + m <= EXACT {
        exact(&ranks, m, sum)
    } else {
        normal(u2 as f64 / 2.0, n, m, &ties)
    };
    Test { superiority, p }
}

/// Twice the rank of each value of both samples (so that shared ranks are whole), and the sizes of ties.
fn doubled_ranks(x: &[f64], y: &[f64]) -> (Vec<u64>, Vec<usize>) {
    let values: Vec<f64> = x.iter().chain(y).copied().collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0; values.len()];
    let mut ties = Vec::new();
    let mut first = 0;
    while first < order.len() {
        let alike = order[first..]
            .iter()
            .take_while(|at| values[**at] == values[order[first]])
            .count();
        // Ranks first + 1 to first + alike share their mean.
        let shared = (2 * first + alike + 1) as u64;
        order[first..first + alike]
            .iter()
            .for_each(|at| ranks[*at] = shared);
        ties.push(alike);
        first += alike;
    }
    (ranks, ties)
}

/// Two-sided: the share of all ways to choose `m` of the ranks whose sum is as far from the mean.
fn exact(ranks: &[u64], m: usize, sum: u64) -> f64 {
    let total: u64 = ranks.iter().sum();
    let width = total as usize + 1;
    // ways[k][s]: how many ways to choose k ranks with the sum s.
    let mut ways = vec![vec![0.0f64; width]; m + 1];
    ways[0][0] = 1.0;
    for (seen, rank) in ranks.iter().enumerate() {
        let rank = *rank as usize;
        for chosen in (0..m.min(seen + 1)).rev() {
            let (fewer, more) = ways.split_at_mut(chosen + 1);
            for (from, count) in fewer[chosen].iter().enumerate() {
                if *count > 0.0 {
                    more[0][from + rank] += count;
                }
            }
        }
    }
    let mean = total as f64 * m as f64 / ranks.len() as f64;
    let distance = (sum as f64 - mean).abs();
    let all: f64 = ways[m].iter().sum();
    let far: f64 = ways[m]
        .iter()
        .enumerate()
        .filter(|(at, _)| (*at as f64 - mean).abs() >= distance - 1e-9)
        .map(|(_, count)| count)
        .sum();
    (far / all).min(1.0)
}

/// Two-sided, with corrections for ties and continuity.
fn normal(u: f64, n: usize, m: usize, ties: &[usize]) -> f64 {
    let (n, m) = (n as f64, m as f64);
    let all = n + m;
    let tied: f64 = ties
        .iter()
        .map(|count| {
            let count = *count as f64;
            count.powi(3) - count
        })
        .sum();
    let variance = n * m / 12.0 * (all + 1.0 - tied / (all * (all - 1.0)));
    if variance <= 0.0 {
        return 1.0;
    }
    let distance = ((u - n * m / 2.0).abs() - 0.5).max(0.0);
    (2.0 * upper_tail(distance / variance.sqrt())).min(1.0)
}

/// The chance that a standard normal value is larger.
fn upper_tail(z: f64) -> f64 {
    Normal::standard().sf(z)
}

/// How far the second sample is above the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shift {
    /// The median of all differences.
    pub(super) estimate: f64,
    /// The ends of its interval; infinite when there are too few values for any.
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Hodges and Lehmann's estimate, with the interval of confidence 1 - `alpha`.
pub(super) fn shift(x: &[f64], y: &[f64], alpha: f64) -> Shift {
    /// More differences are not made: values are thinned out evenly.
    const MOST: usize = 2000;
    let thin = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let step = values.len().div_ceil(MOST).max(1);
        values.into_iter().step_by(step).collect::<Vec<_>>()
    };
    let (x, y) = (thin(x), thin(y));
    let mut differences: Vec<f64> = y
        .iter()
        .flat_map(|y| x.iter().map(move |x| y - x))
        .collect();
    differences.sort_by(f64::total_cmp);
    let skipped = skipped(x.len(), y.len(), alpha);
    let (low, high) = match skipped {
        Some(skipped) => (
            differences[skipped],
            differences[differences.len() - 1 - skipped],
        ),
        None => (f64::NEG_INFINITY, f64::INFINITY),
    };
    Shift {
        estimate: median(&differences),
        low,
        high,
    }
}

/// How many differences at each end are outside the interval: the largest c with P(U <= c - 1) at most
/// half of `alpha`. None when even the extreme ones are inside.
fn skipped(n: usize, m: usize, alpha: f64) -> Option<usize> {
    if n == 0 || m == 0 {
        return None;
    }
    let most = n * m;
    if n + m > EXACT {
        let sigma = ((most * (n + m + 1)) as f64 / 12.0).sqrt();
        let quantile = -Normal::standard().inverse_cdf(alpha / 2.0);
        let skipped = (most as f64 / 2.0 - quantile * sigma).floor();
        return (skipped >= 1.0).then(|| skipped as usize - 1);
    }
    // How often each U occurs among all orders: one more x has from 0 to m values of y below it.
    let mut counts = vec![vec![0.0f64; most + 1]; m + 1];
    counts.iter_mut().for_each(|of| of[0] = 1.0);
    for _ in 0..n {
        let mut next = vec![vec![0.0; most + 1]; m + 1];
        for j in 0..=m {
            for u in 0..=most {
                // Either the largest value is an x (above j values of y), or it is a y.
                let as_x = if u >= j { counts[j][u - j] } else { 0.0 };
                let as_y = if j > 0 { next[j - 1][u] } else { 0.0 };
                next[j][u] = as_x + as_y;
            }
        }
        counts = next;
    }
    let all: f64 = counts[m].iter().sum();
    let mut below = 0.0;
    let mut skipped = None;
    for (u, count) in counts[m].iter().enumerate() {
        below += count;
        if below / all > alpha / 2.0 {
            break;
        }
        skipped = Some(u);
    }
    skipped
}

/// The middle value.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len.is_multiple_of(2) => f64::midpoint(values[len / 2 - 1], values[len / 2]),
        len => values[len / 2],
    }
}

/// Holm's step-down correction: with many cases some differ by chance.
pub(super) fn holm<T>(cases: &mut [T], p: impl Fn(&mut T) -> &mut f64) {
    let mut order: Vec<usize> = (0..cases.len()).collect();
    let values: Vec<f64> = cases.iter_mut().map(|case| *p(case)).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut largest = 0.0f64;
    for (at, case) in order.iter().enumerate() {
        let corrected = values[*case] * (cases.len() - at) as f64;
        largest = largest.max(corrected).min(1.0);
        *p(&mut cases[*case]) = largest;
    }
}

#[cfg(test)]
mod tests;
