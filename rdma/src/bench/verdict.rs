//! Whether what was measured is what was expected: a pure function of figures and their intervals.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::report::{Limit, Row};

/// What a figure is: bandwidth in Gb/s, of which more is better, or latency in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// 10^9 bits a second.
    Bandwidth,
    /// Microseconds, median.
    Latency,
}

impl Figure {
    /// Its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Figure::Bandwidth => "Gb/s",
            Figure::Latency => "us",
        }
    }
}

/// What is expected: at least this bandwidth, or at most this latency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// Of what.
    pub figure: Figure,
    /// In the figure's unit.
    pub value: f64,
}

/// How it turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The whole interval is as good as expected.
    Pass,
    /// The whole interval is worse.
    Fail,
    /// The expectation lies inside the interval.
    Inconclusive,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Pass => "pass",
            Outcome::Fail => "fail",
            Outcome::Inconclusive => "inconclusive",
        })
    }
}

/// An expectation and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// How it turned out.
    pub outcome: Outcome,
    /// What was judged.
    pub figure: Figure,
    /// The message size that was judged.
    pub bytes: u64,
    /// What was measured.
    pub value: f64,
    /// Lower end of its interval; the value itself where there is none.
    pub low: f64,
    /// Upper end of its interval.
    pub high: f64,
    /// What was expected.
    pub expected: f64,
    /// Why, as far as can be told, and what to do.
    pub cause: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bound) = match self.figure {
            Figure::Bandwidth => ("Gb/s", "at least"),
            Figure::Latency => ("us", "at most"),
        };
        write!(
            f,
            "{}: {:.3} {unit} [{:.3}, {:.3}] at {} bytes, expected {bound} {:.3} {unit}: {}",
            self.outcome, self.value, self.low, self.high, self.bytes, self.expected, self.cause
        )
    }
}

/// Judges the row that does best: the highest bandwidth, or the lowest median latency. `None` when no
/// row has the figure.
pub fn judge(expectation: Expectation, rows: &[Row]) -> Option<Verdict> {
    let better = |one: f64, other: f64| match expectation.figure {
        Figure::Bandwidth => one > other,
        Figure::Latency => one < other,
    };
    let best = rows
        .iter()
        .filter(|row| row.figure().1 == expectation.figure)
        .reduce(|best, row| {
            if better(row.figure().0, best.figure().0) {
                row
            } else {
                best
            }
        })?;
    let value = best.figure().0;
    let (low, high) = best
        .interval
        .as_ref()
        .map_or((value, value), |interval| (interval.low, interval.high));
    let expected = expectation.value;
    let (worst, finest) = match expectation.figure {
        Figure::Bandwidth => (low, high),
        Figure::Latency => (high, low),
    };
    let meets = |value: f64| value == expected || better(value, expected);
    let outcome = match (meets(worst), meets(finest)) {
        (true, _) => Outcome::Pass,
        (false, true) => Outcome::Inconclusive,
        (false, false) => Outcome::Fail,
    };
    Some(Verdict {
        outcome,
        figure: expectation.figure,
        bytes: best.bytes,
        value,
        low,
        high,
        expected,
        cause: cause(outcome, best),
    })
}

fn cause(outcome: Outcome, row: &Row) -> String {
    let unsteady = row.steady.filter(|steady| !steady.reached);
    match (outcome, unsteady) {
        (Outcome::Pass, _) => "the whole interval is as good as expected".to_owned(),
        (Outcome::Inconclusive, Some(steady)) => format!(
            "it varied by {:.1}% and did not settle: measure longer, or on a quiet machine",
            steady.variation * 100.0
        ),
        (Outcome::Inconclusive, None) => {
            "the interval includes what is expected: give more --runs or a longer --duration"
                .to_owned()
        }
        (Outcome::Fail, _) => match row.limit {
            Some(Limit::LineRate) => {
                "the port is at its nominal rate: expect less of it, or look at its speed and width"
            }
            Some(Limit::Rate) => "--rate held it back",
            Some(Limit::Processor) => {
                "this CPU could not post faster: use larger messages, a higher --post-list, or the \
                 processors of the adapter's NUMA node (--numa)"
            }
            Some(Limit::Depth) => "too few messages were on their way: raise --depth",
            Some(Limit::MessageRate) => {
                "the device's message rate limits such small messages: expect less, or use larger ones"
            }
            Some(Limit::Path) => {
                "device or path limit it: look at link speed, PCIe width, MTU and the counters of \
                 errors and pauses (`trackbed rdma check`)"
            }
            None => {
                "look at power saving, interrupt moderation (with --events), NUMA placement and the \
                 number of switches between"
            }
        }
        .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Interval;
    use super::super::report::tests::{bandwidth, latency};
    use super::*;

    fn known(row: Row, low: f64, high: f64) -> Row {
        let interval = Interval {
            low,
            high,
            confidence: 0.95,
            over: "runs".to_owned(),
            samples: 5,
        };
        Row {
            interval: Some(interval),
            ..row
        }
    }

    fn at_least(value: f64) -> Expectation {
        Expectation {
            figure: Figure::Bandwidth,
            value,
        }
    }

    #[test]
    fn the_interval_decides_and_not_the_value() {
        let rows = [known(bandwidth(65536, 92.0), 90.5, 93.5)];
        let outcome = |value| judge(at_least(value), &rows).expect("a row").outcome;
        assert_eq!(outcome(90.0), Outcome::Pass);
        assert_eq!(outcome(91.0), Outcome::Inconclusive);
        assert_eq!(outcome(93.6), Outcome::Fail);
    }

    #[test]
    fn less_latency_is_better() {
        let rows = [known(latency(2, 2.0), 1.9, 2.1)];
        let outcome = |value| {
            let figure = Figure::Latency;
            judge(Expectation { figure, value }, &rows)
                .expect("a row")
                .outcome
        };
        assert_eq!(outcome(2.2), Outcome::Pass);
        assert_eq!(outcome(2.0), Outcome::Inconclusive);
        assert_eq!(outcome(1.8), Outcome::Fail);
    }

    #[test]
    fn the_best_size_of_a_sweep_is_judged() {
        let rows = [
            bandwidth(2, 0.1),
            bandwidth(65536, 92.0),
            bandwidth(4096, 80.0),
        ];
        let verdict = judge(at_least(90.0), &rows).expect("rows");
        assert_eq!((verdict.bytes, verdict.outcome), (65536, Outcome::Pass));
        assert_eq!(judge(at_least(90.0), &[]), None);
        assert_eq!(judge(at_least(90.0), &[latency(2, 1.0)]), None);
    }

    #[test]
    fn a_failure_names_its_cause_and_a_remedy() {
        let mut row = bandwidth(65536, 50.0);
        row.limit = Some(Limit::Depth);
        let text = judge(at_least(90.0), &[row]).expect("a row").to_string();
        for part in ["fail", "50.000 Gb/s", "at least 90.000", "--depth"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
