//! Heat maps, distributions and outliers.

use super::{bounded, text};
use crate::plot::{Cell, figure};
use crate::plot::{Drawn, histogram};
use crate::rdma::report::{JudgedMesh, heat};
use trackbed_rdma::bench::Figure;

/// More rails are drawn on request of nobody: the tables name what is slow.
const MOST_MAPS: usize = 8;

/// Heat maps, the distribution of figures, and what stands out.
pub(in crate::rdma::report) fn mesh(judged: &JudgedMesh) -> Drawn {
    let mesh = &judged.mesh;
    let mut html = format!("<h2>Mesh of {} nodes</h2>\n", mesh.nodes.len());
    let outliers = &judged.judgement.outliers;
    if outliers.is_empty() {
        html.push_str("<p>Nothing stands out.</p>\n");
    } else {
        let rows = outliers
            .iter()
            .map(|outlier| {
                vec![
                    Cell::Marked(outlier.kind.to_string(), "bad"),
                    text(&outlier.subject),
                    text(&outlier.sentence),
                    text(outlier.kind.remedy()),
                ]
            })
            .collect();
        html.push_str("<h3>What stands out</h3>\n");
        html.push_str(&bounded(&["Kind", "Name", "Found", "Where to look"], rows));
    }
    for (figure_of, what) in [
        (Figure::Bandwidth, "bandwidth"),
        (Figure::Latency, "latency"),
    ] {
        let values: Vec<f64> = mesh
            .pairs
            .iter()
            .flat_map(|pair| match figure_of {
                Figure::Bandwidth => [pair.there_gbps, pair.back_gbps],
                Figure::Latency => [pair.latency_us, None],
            })
            .flatten()
            .collect();
        if values.is_empty() {
            continue;
        }
        for rail in 0..mesh.rails().min(MOST_MAPS) {
            let from = match figure_of {
                Figure::Bandwidth => "From the row's node to the column's",
                Figure::Latency => {
                    "Half of a round trip, median, between the row's node and the column's"
                }
            };
            let whole = if mesh.nodes.len() > 96 {
                "; each square is the worst of a block of nodes"
            } else {
                ""
            };
            let caption = format!("Rail {rail}, {what}. {from}{whole}. Darker is worse.");
            html.push_str(&figure(&heat::map(mesh, rail, figure_of)?, &caption));
        }
        let unit = figure_of.unit().replace("us", "µs");
        let plot = histogram(&values, &format!("{what} ({unit})"))?;
        html.push_str(&figure(
            &plot,
            &format!("How {what} is distributed over all pairs."),
        ));
    }
    Ok(html)
}
