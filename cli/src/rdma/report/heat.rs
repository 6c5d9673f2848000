//! A mesh as a heat map: rows send, columns receive.

use crate::plot::Drawn;
use crate::plot::number;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use trackbed_rdma::bench::Figure;
use trackbed_rdma::mesh::Mesh;

/// Larger meshes show the worst of each block of nodes.
const MOST_CELLS: usize = 96;
/// Up to this many nodes, each cell has its number and each line its name.
const MOST_NAMES: usize = 14;
const SIDE: i32 = 640;
const TEXT: RGBColor = RGBColor(40, 40, 40);
const FAILED: RGBColor = RGBColor(213, 94, 0);
const NOTHING: RGBColor = RGBColor(240, 240, 240);

/// What a cell shows.
#[derive(Clone, Copy, PartialEq)]
enum Cell {
    Nothing,
    Failed,
    Figure(f64),
}

/// Draws one rail of a mesh.
pub(super) fn map(mesh: &Mesh, rail: usize, figure: Figure) -> Drawn {
    let nodes = mesh.nodes.len();
    let block = nodes.div_ceil(MOST_CELLS).max(1);
    let size = nodes.div_ceil(block);
    let cells = cells(mesh, rail, figure, block, size);
    let figures = cells.iter().filter_map(|cell| match cell {
        Cell::Figure(value) => Some(*value),
        _ => None,
    });
    let (low, high) = figures.fold((f64::INFINITY, 0.0f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let named = nodes <= MOST_NAMES;
    let longest = mesh
        .nodes
        .iter()
        .map(|node| node.name.chars().count().min(16))
        .max()
        .unwrap_or(0);
    let head = if named { 20 + 8 * longest as i32 } else { 50 };
    let step = (SIDE / size.max(1) as i32).clamp(4, 60);
    let side = step * size as i32;
    let (width, height) = (head + side + 170, head.min(90) + side + 30);
    let top = head.min(90);
    let mut svg = String::new();
    {
        let area =
            SVGBackend::with_string(&mut svg, (width as u32, height as u32)).into_drawing_area();
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let font = |pixels: i32, colour: &RGBColor, across: HPos| {
            ("sans-serif", pixels)
                .into_font()
                .color(colour)
                .pos(Pos::new(across, VPos::Center))
        };
        for row in 0..size {
            for column in 0..size {
                let cell = cells[row * size + column];
                let (x, y) = (head + step * column as i32, top + step * row as i32);
                let fill = match cell {
                    Cell::Nothing => NOTHING,
                    Cell::Failed => FAILED,
                    Cell::Figure(value) => shade(badness(value, low, high, figure)),
                };
                let gap = i32::from(step > 8);
                area.draw(&Rectangle::new(
                    [(x, y), (x + step - gap, y + step - gap)],
                    fill.filled(),
                ))
                .map_err(|error| failed(&error))?;
                let text = match cell {
                    Cell::Figure(value) if named && step >= 30 => number(value),
                    Cell::Failed if step >= 12 => "×".to_owned(),
                    _ => continue,
                };
                let dark = match cell {
                    Cell::Figure(value) => badness(value, low, high, figure) > 0.5,
                    _ => true,
                };
                let ink = if dark { WHITE } else { TEXT };
                let middle = (x + step / 2, y + step / 2);
                area.draw_text(&text, &font(14, &ink, HPos::Center), middle)
                    .map_err(|error| failed(&error))?;
            }
        }
        for line in 0..size {
            let middle = step * line as i32 + step / 2;
            if named {
                let name: String = mesh.nodes[line].name.chars().take(16).collect();
                area.draw_text(
                    &name,
                    &font(14, &TEXT, HPos::Right),
                    (head - 6, top + middle),
                )
                .map_err(|error| failed(&error))?;
                let style = font(14, &TEXT, HPos::Left).transform(FontTransform::Rotate270);
                area.draw_text(&name, &style, (head + middle, top - 6))
                    .map_err(|error| failed(&error))?;
            } else if line % (size / 8).max(1) == 0 {
                let text = (line * block).to_string();
                area.draw_text(
                    &text,
                    &font(13, &TEXT, HPos::Right),
                    (head - 6, top + middle),
                )
                .map_err(|error| failed(&error))?;
                area.draw_text(
                    &text,
                    &font(13, &TEXT, HPos::Center),
                    (head + middle, top - 10),
                )
                .map_err(|error| failed(&error))?;
            }
        }
        legend(
            &area,
            (head + side + 24, top),
            low,
            high,
            figure,
            cells.contains(&Cell::Failed),
        )?;
        area.present().map_err(|error| failed(&error))?;
    }
    Ok(svg)
}

fn legend<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    (x, y): (i32, i32),
    low: f64,
    high: f64,
    figure: Figure,
    any_failed: bool,
) -> Result<(), String> {
    const STEPS: i32 = 24;
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let style = ("sans-serif", 14)
        .into_font()
        .color(&TEXT)
        .pos(Pos::new(HPos::Left, VPos::Center));
    if low <= high {
        for step in 0..STEPS {
            let fill = shade(f64::from(step) / f64::from(STEPS - 1)).filled();
            area.draw(&Rectangle::new(
                [(x, y + step * 6), (x + 16, y + step * 6 + 6)],
                fill,
            ))
            .map_err(|error| failed(&error))?;
        }
        let (best, worst) = scale(low, high, figure);
        let unit = figure.unit().replace("us", "µs");
        for (value, height) in [(best, 6), (worst, STEPS * 6 - 6)] {
            let text = format!("{} {unit}", number(value));
            area.draw_text(&text, &style, (x + 22, y + height))
                .map_err(|error| failed(&error))?;
        }
    }
    if any_failed {
        let height = y + STEPS * 6 + 14;
        area.draw(&Rectangle::new(
            [(x, height), (x + 16, height + 16)],
            FAILED.filled(),
        ))
        .map_err(|error| failed(&error))?;
        area.draw_text("failed", &style, (x + 22, height + 8))
            .map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// The worst of each block of nodes.
fn cells(mesh: &Mesh, rail: usize, figure: Figure, block: usize, size: usize) -> Vec<Cell> {
    let mut cells = vec![Cell::Nothing; size * size];
    for pair in mesh.pairs.iter().filter(|pair| pair.rail == rail) {
        let values = match figure {
            Figure::Bandwidth => [pair.there_gbps, pair.back_gbps],
            Figure::Latency => [pair.latency_us; 2],
        };
        for (value, (from, to)) in values.into_iter().zip([(pair.a, pair.b), (pair.b, pair.a)]) {
            let cell = &mut cells[from / block * size + to / block];
            *cell = match (*cell, value) {
                (Cell::Failed, _) | (_, None) => Cell::Failed,
                (Cell::Nothing, Some(value)) => Cell::Figure(value),
                (Cell::Figure(known), Some(value)) => Cell::Figure(match figure {
                    Figure::Bandwidth => known.min(value),
                    Figure::Latency => known.max(value),
                }),
            };
        }
    }
    cells
}

/// The best and the worst that the picture tells apart. Half of the best is as bad as it gets unless
/// something is worse, so that a healthy mesh looks healthy and not like a map of its noise.
fn scale(low: f64, high: f64, figure: Figure) -> (f64, f64) {
    match figure {
        Figure::Bandwidth => (high, low.min(high / 2.0)),
        Figure::Latency => (low, high.max(low * 2.0)),
    }
}

/// 0 for the best, 1 for the worst.
fn badness(value: f64, low: f64, high: f64, figure: Figure) -> f64 {
    let (best, worst) = scale(low, high, figure);
    if best == worst {
        return 0.0;
    }
    ((value - best) / (worst - best)).clamp(0.0, 1.0)
}

/// From light to dark blue: one hue, so that it also works without colours.
fn shade(badness: f64) -> RGBColor {
    let mix = |light: f64, dark: f64| (light + (dark - light) * badness).round() as u8;
    RGBColor(mix(222.0, 8.0), mix(235.0, 29.0), mix(247.0, 88.0))
}
