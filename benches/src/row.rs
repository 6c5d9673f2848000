//! A row of results, for people as a table and for machines as one JSON object a line.

use std::borrow::Cow;

use comfy_table::{ContentArrangement, Table};
use serde::{Deserialize, Serialize};

use crate::paired::{Better, Estimate, Pair, Verdict};

/// One measured case. The names of the fields are the interface of `hack/bench … --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The part: `cache`, `rdma`.
    pub bench: Cow<'static, str>,
    /// The case within the part, such as `write/bandwidth/65536`.
    pub case: String,
    /// Our figure, the median over the pairs.
    pub ours: Option<f64>,
    /// The peer's figure, the median over the pairs.
    pub peer: Option<f64>,
    /// Who the peer is.
    pub peer_name: Cow<'static, str>,
    /// Unit of both figures.
    pub unit: Cow<'static, str>,
    /// Ours to the peer's, above 1 where we are better.
    pub ratio: Option<f64>,
    /// 95% confidence interval of the ratio.
    pub interval: Option<(f64, f64)>,
    /// Pairs behind the figures.
    pub pairs: usize,
    /// The ratio we want.
    pub goal: f64,
    /// Whether the goal is met.
    pub verdict: Verdict,
}

/// A case that is about to be measured.
#[derive(Debug, Clone)]
pub struct Case {
    /// The part it belongs to.
    pub bench: &'static str,
    /// Its name within the part.
    pub name: String,
    /// Who the peer is.
    pub peer_name: &'static str,
    /// Unit of both figures.
    pub unit: &'static str,
    /// Which way the figures are better.
    pub better: Better,
    /// The ratio we want.
    pub goal: f64,
}

impl Case {
    /// The row that the measured pairs make.
    pub fn row(&self, pairs: &[Pair]) -> Row {
        let estimate = Estimate::of(pairs, self.better);
        Row {
            bench: self.bench.into(),
            case: self.name.clone(),
            ours: estimate.map(|estimate| estimate.ours),
            peer: estimate.map(|estimate| estimate.peer),
            peer_name: self.peer_name.into(),
            unit: self.unit.into(),
            ratio: estimate.map(|estimate| estimate.ratio),
            interval: estimate.map(|estimate| estimate.interval),
            pairs: pairs.len(),
            goal: self.goal,
            verdict: estimate.map_or(Verdict::Inconclusive, |estimate| {
                estimate.verdict(self.goal)
            }),
        }
    }
}

/// The rows as a table for a terminal.
pub fn table(rows: &[Row]) -> Table {
    let figure =
        |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.2}"));
    let mut table = Table::new();
    table
        .set_content_arrangement(ContentArrangement::Dynamic)
        .load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY)
        .set_header([
            "case",
            "ours",
            "peer",
            "unit",
            "beside",
            "ratio (95%)",
            "goal",
            "verdict",
        ]);
    for row in rows {
        let ratio = match (row.ratio, row.interval) {
            (Some(ratio), Some((low, high))) => format!("{ratio:.3} ({low:.3}-{high:.3})"),
            _ => "-".to_owned(),
        };
        table.add_row([
            format!("{}/{}", row.bench, row.case),
            figure(row.ours),
            figure(row.peer),
            row.unit.to_string(),
            row.peer_name.to_string(),
            ratio,
            format!("{:.2}", row.goal),
            format!("{:?}", row.verdict).to_lowercase(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_reads_the_names_the_interface_promises() {
        let case = Case {
            bench: "rdma",
            name: "write/bandwidth/65536".to_owned(),
            peer_name: "perftest",
            unit: "MB/s",
            better: Better::Higher,
            goal: 0.9,
        };
        let pair = Pair {
            ours: 42.0,
            peer: 42.0,
        };
        let value = serde_json::to_value(case.row(&[pair, pair])).expect("a row is plain data");
        for name in [
            "bench",
            "case",
            "ours",
            "peer",
            "peer_name",
            "unit",
            "ratio",
            "goal",
            "verdict",
        ] {
            assert!(value.get(name).is_some(), "{name} is missing");
        }
        assert_eq!(value["verdict"], "pass");
        assert_eq!(value["ratio"], 1.0);
        let back: Row = serde_json::from_value(value).expect("what was written can be read");
        assert_eq!(back, case.row(&[pair, pair]));
    }
}
