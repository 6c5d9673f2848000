//! Axes as engineers read them: message sizes by powers of two, figures by 1, 2, 5, percentiles by nines.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use std::ops::Range;

/// An axis whose ticks are chosen by us.
#[derive(Clone)]
pub(crate) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Log,
    /// Equal steps for 0, 90, 99, 99.9, … percent.
    Nines,
}

/// A percentile that is not quite 100, so that it has a place.
const MOST_PERCENT: f64 = 99.9999;

impl Axis {
    /// Message sizes, by powers of two.
    pub(crate) fn sizes(bytes: impl Iterator<Item = u64>) -> Axis {
        let (mut low, mut high) = (u64::MAX, 1);
        for bytes in bytes {
            low = low.min(bytes.max(1));
            high = high.max(bytes);
        }
        let first = low.min(high).ilog2();
        let last = high.ilog2() + u32::from(!high.is_power_of_two());
        // A single size needs room as well.
        let (first, last) = if first == last {
            (first.saturating_sub(1), last + 1)
        } else {
            (first, last)
        };
        let step = (last - first).div_ceil(12).max(1);
        let ticks = (first..=last)
            .step_by(step as usize)
            .map(|power| (2f64.powi(power as i32), size(1 << power.min(62))))
            .collect();
        Axis {
            scale: Scale::Log,
            low: 2f64.powi(first as i32),
            high: 2f64.powi(last as i32),
            ticks,
        }
    }

    /// From zero to a little above the largest value.
    pub(crate) fn from_zero(values: impl Iterator<Item = f64>) -> Axis {
        let most = values.fold(0.0, f64::max);
        let most = if most > 0.0 { most } else { 1.0 };
        let step = nice(most / 5.0);
        let count = (most * 1.04 / step).ceil() as u32;
        Axis {
            scale: Scale::Linear,
            low: 0.0,
            high: f64::from(count) * step,
            ticks: (0..=count)
                .map(|tick| (f64::from(tick) * step, number(f64::from(tick) * step)))
                .collect(),
        }
    }

    /// Decades, with 1, 2 and 5 in each while there are few.
    pub(crate) fn decades(values: impl Iterator<Item = f64>) -> Axis {
        let (mut low, mut high) = (f64::INFINITY, 0.0f64);
        for value in values.filter(|value| *value > 0.0) {
            low = low.min(value);
            high = high.max(value);
        }
        if !low.is_finite() {
            (low, high) = (1.0, 10.0);
        }
        let ladder = |power: i32| [1.0, 2.0, 5.0].map(|times| times * 10f64.powi(power));
        let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let steps: Vec<f64> = powers.flat_map(ladder).collect();
        let from = steps.iter().rposition(|step| *step <= low).unwrap_or(0);
        let to = steps
            .iter()
            .position(|step| *step >= high)
            .unwrap_or(steps.len() - 1)
            .max(from + 1)
            .min(steps.len() - 1);
        let chosen = &steps[from.min(to - 1)..=to];
        let is_decade = |step: f64| (step.log10() - step.log10().round()).abs() < 1e-9;
        let ticks = chosen
            .iter()
            .filter(|step| chosen.len() <= 10 || is_decade(**step))
            .map(|step| (*step, number(*step)))
            .collect();
        Axis {
            scale: Scale::Log,
            low: chosen[0],
            high: chosen[chosen.len() - 1],
            ticks,
        }
    }

    /// Percentiles, with equal room for each further nine.
    pub(crate) fn percentiles() -> Axis {
        let ticks = [
            (0.0, "0"),
            (50.0, "50"),
            (90.0, "90"),
            (99.0, "99"),
            (99.9, "99.9"),
            (99.99, "99.99"),
            (MOST_PERCENT, "100"),
        ];
        Axis {
            scale: Scale::Nines,
            low: 0.0,
            high: MOST_PERCENT,
            ticks: ticks.map(|(tick, text)| (tick, text.to_owned())).to_vec(),
        }
    }

    /// Counts, evenly.
    pub(crate) fn between(low: f64, high: f64) -> Axis {
        let (low, high) = if high > low {
            (low, high)
        } else {
            (low - 0.5, low + 0.5)
        };
        let step = nice((high - low) / 6.0);
        let first = (low / step).floor() as i64;
        let last = (high / step).ceil() as i64;
        Axis {
            scale: Scale::Linear,
            low: first as f64 * step,
            high: last as f64 * step,
            ticks: (first..=last)
                .map(|tick| (tick as f64 * step, number(tick as f64 * step)))
                .collect(),
        }
    }

    pub(crate) fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// The place of a value between 0 and 1.
    fn share(&self, value: f64) -> f64 {
        let place = |value: f64| match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).ln(),
            Scale::Nines => -(1.0 - value.min(MOST_PERCENT) / 100.0).log10(),
        };
        let (low, high) = (place(self.low), place(self.high));
        ((place(value) - low) / (high - low)).clamp(0.0, 1.0)
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let (from, to) = (f64::from(limit.0), f64::from(limit.1));
        (from + (to - from) * self.share(*value)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.iter().map(|(tick, _)| *tick).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.ticks
            .iter()
            .find(|(tick, _)| tick == value)
            .map_or_else(|| number(*value), |(_, text)| text.clone())
    }
}

/// The next of 1, 2, 5, 10, … above.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0];
    let share = value / power;
    power
        * times
            .into_iter()
            .find(|times| share <= *times + 1e-9)
            .unwrap_or(10.0)
}

/// A size as people write it.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 if bytes.is_multiple_of(1024) => format!("{} KiB", bytes >> 10),
        _ if bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ => format!("{bytes} B"),
    }
}

/// A number with as many digits as tell something.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        _ if size >= 1e9 => return format!("{:.3}G", value / 1e9),
        _ if size >= 1e6 => return format!("{:.3}M", value / 1e6),
        _ if size >= 1000.0 || size == 0.0 => return format!("{value:.0}"),
        _ if size >= 100.0 => format!("{value:.1}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn axes_have_the_ticks_that_engineers_expect() {
        assert_eq!(
            ticks(&Axis::sizes([64, 1024].into_iter())),
            ["64 B", "128 B", "256 B", "512 B", "1 KiB"]
        );
        assert_eq!(
            ticks(&Axis::from_zero([93.0].into_iter())),
            ["0", "20", "40", "60", "80", "100"]
        );
        assert_eq!(
            ticks(&Axis::decades([1.8, 40.0].into_iter())),
            ["1", "2", "5", "10", "20", "50"]
        );
        assert_eq!(Axis::percentiles().ticks.len(), 7);
    }

    #[test]
    fn every_value_has_a_place_inside() {
        let axes = [
            Axis::sizes([1, 1 << 40].into_iter()),
            Axis::sizes([7].into_iter()),
            Axis::sizes(std::iter::empty()),
            Axis::from_zero([0.0].into_iter()),
            Axis::decades([3.0].into_iter()),
            Axis::decades(std::iter::empty()),
            Axis::decades([1e-9, 1e17].into_iter()),
            Axis::percentiles(),
            Axis::between(5.0, 5.0),
        ];
        for axis in &axes {
            assert!(axis.low < axis.high && !axis.ticks.is_empty());
            assert!(axis.ticks.len() < 60, "{:?}", ticks(axis));
            for value in [-1.0, 0.0, 1.0, 100.0, 1e12] {
                assert!((0..=500).contains(&axis.map(&value, (0, 500))));
            }
        }
        let nines = Axis::percentiles();
        let at = |percent: f64| nines.map(&percent, (0, 6000));
        assert_eq!(at(99.0) - at(90.0), at(99.9) - at(99.0));
    }
}
