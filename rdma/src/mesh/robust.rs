//! Statistics that a few wild values don't move.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// Makes a median absolute deviation comparable to a standard deviation, for normal noise.
const TO_SIGMA: f64 = 1.4826;
/// The median absolute deviation tells as much as a standard deviation of this share of the values.
const EFFICIENCY: f64 = 0.37;

/// The median, ignoring what is not a number; 0 of nothing.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.filter(|value| !value.is_nan()).collect();
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    let (below, upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let lower = below.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let upper = *upper;
    if values.len().is_multiple_of(2) {
        f64::midpoint(lower, upper)
    } else {
        upper
    }
}

/// The spread of residuals around 0, as a standard deviation of normal noise. A fit by medians goes
/// through as many values as it has parameters; their zeros tell nothing and are left out.
pub(super) fn sigma(residuals: impl Iterator<Item = f64>, parameters: usize) -> f64 {
    let mut sizes: Vec<f64> = residuals
        .filter(|value| !value.is_nan())
        .map(f64::abs)
        .collect();
    if sizes.len() <= parameters {
        return 0.0;
    }
    // The smallest ones come first.
    sizes.select_nth_unstable_by(parameters, f64::total_cmp);
    TO_SIGMA * median(sizes[parameters..].iter().copied())
}

/// How many sigmas are too many for one of `comparisons` healthy values, when sigma was estimated from
/// `freedom` independent ones: the chance that any of them is named by mistake is `chance`.
pub(super) fn limit(chance: f64, comparisons: usize, freedom: f64) -> f64 {
    /// With more, Student's distribution is the normal one.
    const MANY: f64 = 1000.0;
    let freedom = (EFFICIENCY * freedom).max(1.0);
    let below = chance / comparisons.max(1) as f64;
    let quantile = if freedom > MANY {
        let normal = Normal::new(0.0, 1.0).ok();
        normal.map(|distribution| distribution.inverse_cdf(below))
    } else {
        let student = StudentsT::new(0.0, 1.0, freedom).ok();
        student.map(|distribution| distribution.inverse_cdf(below))
    };
    // Parameters are in range, so there is a quantile; without one nothing may stand out.
    quantile.map_or(f64::INFINITY, |quantile| -quantile)
}

/// A table (rows send, columns receive) taken apart into what is common, what belongs to a row, what
/// belongs to a column, and the rest.
pub(super) struct Polished {
    pub(super) common: f64,
    /// NaN for a row of which nothing was measured.
    pub(super) rows: Vec<f64>,
    pub(super) columns: Vec<f64>,
    /// Row after row, NaN where nothing was measured.
    pub(super) rest: Vec<f64>,
}

/// Tukey's median polish.
pub(super) fn polish(table: &[f64], size: usize) -> Polished {
    const SWEEPS: usize = 8;
    /// A hundredth of a percent is far below what is worth naming, and below any noise.
    const SETTLED: f64 = 1e-4;
    let mut rest = table.to_vec();
    let mut common = 0.0;
    let (mut rows, mut columns) = (vec![0.0; size], vec![0.0; size]);
    for _ in 0..SWEEPS {
        let mut moved: f64 = 0.0;
        for (row, effect) in rows.iter_mut().enumerate() {
            let line = &mut rest[row * size..(row + 1) * size];
            if line.iter().all(|value| value.is_nan()) {
                *effect = f64::NAN;
                continue;
            }
            let middle = median(line.iter().copied());
            line.iter_mut().for_each(|value| *value -= middle);
            *effect += middle;
            moved = moved.max(middle.abs());
        }
        let middle = median(rows.iter().copied());
        rows.iter_mut().for_each(|effect| *effect -= middle);
        common += middle;
        for (column, effect) in columns.iter_mut().enumerate() {
            let line = || rest.iter().skip(column).step_by(size).copied();
            if line().all(f64::is_nan) {
                *effect = f64::NAN;
                continue;
            }
            let middle = median(line());
            rest.iter_mut()
                .skip(column)
                .step_by(size)
                .for_each(|value| *value -= middle);
            *effect += middle;
            moved = moved.max(middle.abs());
        }
        let middle = median(columns.iter().copied());
        columns.iter_mut().for_each(|effect| *effect -= middle);
        common += middle;
        if moved < SETTLED {
            break;
        }
    }
    Polished {
        common,
        rows,
        columns,
        rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_the_middle_of_what_is_there() {
        assert_eq!(median([3.0, f64::NAN, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), 2.5);
        assert_eq!(median([7.0].into_iter()), 7.0);
        assert_eq!(median([7.0, 8.0].into_iter()), 7.5);
        assert_eq!(median(std::iter::empty()), 0.0);
    }

    #[test]
    fn a_table_is_taken_apart_into_what_it_was_made_of() {
        let (rows, columns) = ([0.0, -0.5, 0.0, 0.1], [0.0, 0.0, 0.2, -0.1]);
        let mut table = vec![f64::NAN; 16];
        for row in 0..4 {
            for column in (0..4).filter(|column| *column != row) {
                table[row * 4 + column] = 3.0 + rows[row] + columns[column];
            }
        }
        let polished = polish(&table, 4);
        for (at, rest) in polished.rest.iter().enumerate() {
            assert!(rest.is_nan() || rest.abs() < 1e-6, "{at}: {rest}");
        }
        let slowest = polished.rows.iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!(polished.rows[1], slowest);
    }

    #[test]
    fn the_limit_grows_with_what_is_compared_and_shrinks_with_what_is_known() {
        assert!(limit(0.01, 1000, 1e6) > limit(0.01, 10, 1e6));
        assert!(limit(0.01, 10, 10.0) > limit(0.01, 10, 1e6));
        assert!((limit(0.025, 1, 1e9) - 1.96).abs() < 0.01);
        for comparisons in [1, 56, 4000, 8_000_000] {
            for freedom in [0.0, 1.0, 5.0, 300.0, 2700.0, 1e7] {
                let limit = limit(0.005, comparisons, freedom);
                assert!(
                    limit.is_finite() && limit > 2.0,
                    "{comparisons}, {freedom}: {limit}"
                );
            }
        }
    }
}
