//! What a mesh came to, for people and programs.

use crate::Output;
use crate::exit::Failure;
use crate::rdma::{print, print_json, table};
use serde::Serialize;
use trackbed_rdma::bench::Figure;
use trackbed_rdma::mesh::{Judgement, Mesh, Outlier, Tolerance, outliers};

/// A matrix of more nodes than this is for the report, not for a terminal.
const WIDEST: usize = 16;

#[derive(Serialize)]
struct Shown<'a> {
    verdict: &'static str,
    judgement: &'a Judgement,
    mesh: &'a Mesh,
}

/// Prints a mesh and ends with its verdict.
pub(super) fn show(mesh: &Mesh, tolerance: &Tolerance, output: Output) -> Result<(), Failure> {
    let judgement = outliers(mesh, tolerance);
    let (verdict, code) = verdict(&judgement);
    match output {
        Output::Json => print_json(&Shown {
            verdict,
            judgement: &judgement,
            mesh,
        })?,
        Output::Table => print(&text(mesh, &judgement))?,
    }
    match code {
        0 => Ok(()),
        code => Err(Failure::silent(code)),
    }
}

fn verdict(judgement: &Judgement) -> (&'static str, u8) {
    if !judgement.outliers.is_empty() {
        ("fail", 1)
    } else if judgement.is_whole() {
        ("pass", 0)
    } else {
        ("inconclusive", 2)
    }
}

fn text(mesh: &Mesh, judgement: &Judgement) -> String {
    let mut parts = Vec::new();
    if mesh.nodes.len() <= WIDEST {
        for rail in 0..mesh.rails() {
            parts.push(matrix(mesh, rail, Figure::Bandwidth));
            parts.push(matrix(mesh, rail, Figure::Latency));
        }
    }
    parts.push(summary(mesh));
    if !judgement.outliers.is_empty() {
        parts.push(found(&judgement.outliers));
    }
    parts.push(conclusion(judgement));
    parts.join("\n\n")
}

/// From the node of the row to the node of the column.
fn matrix(mesh: &Mesh, rail: usize, figure: Figure) -> String {
    let size = mesh.nodes.len();
    let mut cells = vec![vec!["-".to_owned(); size]; size];
    for pair in mesh.pairs.iter().filter(|pair| pair.rail == rail) {
        let (there, back) = match figure {
            Figure::Bandwidth => (pair.there_gbps, pair.back_gbps),
            Figure::Latency => (pair.latency_us, pair.latency_us),
        };
        let cell = |value: Option<f64>| match value {
            Some(value) => format!("{value:.2}"),
            None => "failed".to_owned(),
        };
        cells[pair.a][pair.b] = cell(there);
        cells[pair.b][pair.a] = cell(back);
    }
    let title = match figure {
        Figure::Bandwidth => format!("Rail {rail}, Gb/s from the row's node to the column's"),
        Figure::Latency => format!("Rail {rail}, us (half of a round trip, median)"),
    };
    let mut header = vec![""];
    header.extend(mesh.nodes.iter().map(|node| node.name.as_str()));
    let mut table = table(&header);
    for (node, line) in mesh.nodes.iter().zip(cells) {
        let mut cells = vec![node.name.clone()];
        cells.extend(line);
        table.add_row(cells);
    }
    format!("{title}\n{table}")
}

fn summary(mesh: &Mesh) -> String {
    let mut table = table(&["RAIL", "FIGURE", "PAIRS", "MIN", "MEDIAN", "MAX"]);
    for rail in 0..mesh.rails() {
        let pairs = || mesh.pairs.iter().filter(|pair| pair.rail == rail);
        let bandwidth: Vec<f64> = pairs()
            .flat_map(|pair| [pair.there_gbps, pair.back_gbps])
            .flatten()
            .collect();
        let latency: Vec<f64> = pairs().filter_map(|pair| pair.latency_us).collect();
        for (figure, mut values) in [("Gb/s", bandwidth), ("us", latency)] {
            values.sort_unstable_by(f64::total_cmp);
            let at = |place: usize| {
                let value = values.get(place);
                value.map_or("-".to_owned(), |value| format!("{value:.2}"))
            };
            table.add_row([
                rail.to_string(),
                figure.to_owned(),
                values.len().to_string(),
                at(0),
                at(values.len() / 2),
                at(values.len().saturating_sub(1)),
            ]);
        }
    }
    table.to_string()
}

fn found(outliers: &[Outlier]) -> String {
    let mut lines = vec!["What stands out:".to_owned()];
    for outlier in outliers {
        lines.push(format!("  {}: {}", outlier.kind, outlier.sentence));
        lines.push(format!("    {}", outlier.kind.remedy()));
    }
    lines.join("\n")
}

fn conclusion(judgement: &Judgement) -> String {
    let measured = format!(
        "{} of {} pairs measured",
        judgement.measured, judgement.expected
    );
    let noise = judgement.noise[0].map_or(String::new(), |noise| {
        format!(", noise {:.1}% of bandwidth", noise * 100.0)
    });
    let verdict = match verdict(judgement).1 {
        0 => "nothing stands out".to_owned(),
        1 if judgement.outliers.len() == 1 => "1 outlier".to_owned(),
        1 => format!("{} outliers", judgement.outliers.len()),
        _ if judgement.judged_rails == 0 => {
            "inconclusive: with fewer than 4 nodes nobody can say which of them is slow".to_owned()
        }
        _ => "inconclusive: not all pairs were measured".to_owned(),
    };
    format!("{verdict} ({measured}{noise})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use trackbed_rdma::mesh::{MeshPlan, Node, NodePort, Pair};

    fn mesh(nodes: usize, slow: Option<usize>) -> Mesh {
        let port = NodePort {
            device: "mlx5_0".to_owned(),
            port: 1,
        };
        let mut pairs = Vec::new();
        for a in 0..nodes {
            for b in a + 1..nodes {
                let is_slow = [a, b].iter().any(|node| Some(*node) == slow);
                // Some healthy difference between pairs.
                let speed =
                    if is_slow { 50.0 } else { 100.0 } + ((a * 7 + b * 3) % 5) as f64 / 10.0;
                pairs.push(Pair {
                    a,
                    b,
                    rail: 0,
                    there_gbps: Some(speed),
                    back_gbps: Some(speed + 0.1),
                    latency_us: Some(2.0),
                    failure: None,
                });
            }
        }
        Mesh {
            plan: MeshPlan::default(),
            nodes: (0..nodes)
                .map(|node| Node {
                    name: format!("node-{node}"),
                    ports: vec![port.clone()],
                })
                .collect(),
            pairs,
            left: Vec::new(),
        }
    }

    fn judged(mesh: &Mesh) -> (String, u8) {
        let judgement = outliers(mesh, &Tolerance::default());
        (text(mesh, &judgement), verdict(&judgement).1)
    }

    #[test]
    fn a_person_sees_matrix_outlier_remedy_and_verdict() {
        let (text, code) = judged(&mesh(8, Some(3)));
        for part in [
            "node-7",
            "NIC: node-3 mlx5_0/1 has",
            "change the cable",
            "28 of 28 pairs",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        assert_eq!(code, 1);
        let (text, code) = judged(&mesh(8, None));
        assert!(text.contains("nothing stands out"), "{text}");
        assert_eq!(code, 0);
    }

    #[test]
    fn two_nodes_are_measured_but_not_judged() {
        let (text, code) = judged(&mesh(2, Some(0)));
        assert!(text.contains("fewer than 4 nodes"), "{text}");
        assert_eq!(code, 2);
    }

    #[test]
    fn a_large_mesh_has_no_matrix_in_a_terminal() {
        let (text, _) = judged(&mesh(17, None));
        assert!(
            !text.contains("node-16") && text.contains("MEDIAN"),
            "{text}"
        );
    }
}
