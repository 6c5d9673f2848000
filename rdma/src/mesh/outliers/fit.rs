//! One figure of the whole mesh, taken apart by median polish, rail by rail.

use crate::bench::Figure;
use crate::mesh::Mesh;
use crate::mesh::robust::{Polished, polish, sigma};

/// With fewer nodes on a rail, nobody can say who of them is slow.
const FEWEST: usize = 4;

/// One figure of the whole mesh, taken apart.
pub(super) struct Fit<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) figure: Figure,
    /// The least effect worth naming, as a logarithm: negative, for values are turned so that less is worse.
    pub(super) tolerance: f64,
    /// Rails with enough nodes, and what they are made of.
    pub(super) rails: Vec<(usize, Polished)>,
    /// The spread of single values, in logarithms.
    pub(super) sigma: f64,
    /// Independent values behind it.
    pub(super) freedom: f64,
}

impl<'a> Fit<'a> {
    pub(super) fn of(mesh: &'a Mesh, figure: Figure, tolerance: f64) -> Fit<'a> {
        let size = mesh.nodes.len();
        let mut tables = vec![Vec::new(); mesh.rails()];
        let mut count = vec![0usize; mesh.rails()];
        for pair in &mesh.pairs {
            let values = match figure {
                Figure::Bandwidth => [pair.there_gbps, pair.back_gbps],
                // There and back is one figure, of both directions.
                Figure::Latency => [pair.latency_us; 2],
            };
            let table: &mut Vec<f64> = &mut tables[pair.rail];
            if table.is_empty() {
                table.resize(size * size, f64::NAN);
            }
            for (value, (from, to)) in values.into_iter().zip([(pair.a, pair.b), (pair.b, pair.a)])
            {
                if let Some(value) = value.filter(|value| *value > 0.0) {
                    table[from * size + to] = match figure {
                        Figure::Bandwidth => value.ln(),
                        Figure::Latency => -value.ln(),
                    };
                    count[pair.rail] += 1;
                }
            }
        }
        let mut rails = Vec::new();
        let (mut values, mut parameters) = (0usize, 0usize);
        for (rail, table) in tables.iter().enumerate() {
            let nodes = (0..size)
                .filter(|row| {
                    table
                        .get(row * size..(row + 1) * size)
                        .is_some_and(|line| line.iter().any(|value| !value.is_nan()))
                })
                .count();
            if nodes < FEWEST {
                continue;
            }
            let (known, unknown) = match figure {
                Figure::Bandwidth => (count[rail], 2 * nodes - 1),
                Figure::Latency => (count[rail] / 2, nodes),
            };
            values += known;
            parameters += unknown;
            rails.push((rail, polish(table, size)));
        }
        let freedom = values.saturating_sub(parameters).max(1) as f64;
        let rest = rails
            .iter()
            .flat_map(|(_, polished)| polished.rest.iter().copied());
        // The latency of a pair is in its table twice.
        let fitted = match figure {
            Figure::Bandwidth => parameters,
            Figure::Latency => 2 * parameters,
        };
        let sigma = sigma(rest, fitted);
        Fit {
            mesh,
            figure,
            tolerance: match figure {
                Figure::Bandwidth => (1.0 - tolerance.clamp(0.0, 0.99)).ln(),
                Figure::Latency => -(1.0 + tolerance.max(0.0)).ln(),
            },
            rails,
            sigma,
            freedom,
        }
    }

    /// The noise of single figures, as a share.
    pub(super) fn noise(&self) -> Option<f64> {
        (!self.rails.is_empty()).then(|| self.sigma.exp_m1())
    }
}
