//! Plots as SVG: lines over an axis, and bars.

use super::axis::Axis;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(crate) type Drawn = Result<String, String>;

const WIDTH: u32 = 900;
const HEIGHT: u32 = 400;
/// Room for the names at the lines' ends.
const NAMES: i32 = 170;
const FONT: (&str, i32) = ("sans-serif", 15);
const GRID: RGBColor = RGBColor(225, 225, 225);
const AXIS: RGBColor = RGBColor(110, 110, 110);
const TEXT: RGBColor = RGBColor(40, 40, 40);
/// More lines than this can't be told apart.
pub(crate) const MOST_LINES: usize = 8;

/// Okabe and Ito's colours, which the colour-blind tell apart, the light ones last.
const COLOURS: [RGBColor; MOST_LINES] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(0, 0, 0),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(120, 94, 40),
];
const BEHIND: RGBColor = RGBColor(150, 150, 150);

/// A line with a name.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) style: Style,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Style {
    /// With its own colour and marks, that survive a black and white printer.
    Own(usize),
    /// Grey and dashed, behind.
    Behind,
    /// A level to compare with: dashed, without marks.
    Level,
}

/// What to draw lines in.
pub(crate) struct Frame {
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) x_title: String,
    pub(crate) y_title: String,
}

/// Draws lines, each named at its end.
pub(crate) fn lines(frame: &Frame, lines: &[Line]) -> Drawn {
    let mut svg = String::new();
    draw(&mut svg, frame, lines).map_err(|error| error.to_string())?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    frame: &Frame,
    lines: &[Line],
) -> Result<(), DrawingAreaErrorKind<std::convert::Infallible>> {
    let to_known =
        |error: DrawingAreaErrorKind<_>| -> DrawingAreaErrorKind<std::convert::Infallible> {
            match error {
                DrawingAreaErrorKind::SharingError => DrawingAreaErrorKind::SharingError,
                _ => DrawingAreaErrorKind::LayoutError,
            }
        };
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let (x_ends, y_ends) = (frame.x.ends(), frame.y.ends());
    let mut chart = ChartBuilder::on(&area)
        .margin_top(12)
        .margin_right(NAMES)
        .x_label_area_size(50)
        .y_label_area_size(70)
        .build_cartesian_2d(frame.x.clone(), frame.y.clone())
        .map_err(to_known)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(AXIS)
        .label_style(FONT.into_font().color(&TEXT))
        .axis_desc_style(FONT.into_font().color(&TEXT))
        .x_desc(&frame.x_title)
        .y_desc(&frame.y_title)
        .draw()
        .map_err(to_known)?;
    for line in lines {
        let points = line.points.iter().copied();
        let colour = colour(line.style);
        match line.style {
            Style::Own(_) => {
                chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))
            }
            Style::Behind => chart.draw_series(DashedLineSeries::new(
                points.clone(),
                5,
                4,
                colour.stroke_width(2),
            )),
            Style::Level => chart.draw_series(DashedLineSeries::new(
                points.clone(),
                8,
                4,
                colour.stroke_width(1),
            )),
        }
        .map_err(to_known)?;
        if let Style::Own(number) = line.style {
            for point in points {
                let at = EmptyElement::at(point);
                let filled = colour.filled();
                match number % 4 {
                    0 => chart
                        .draw_series([at + Circle::new((0, 0), 3, filled)])
                        .map(drop),
                    1 => chart
                        .draw_series([at + TriangleMarker::new((0, 0), 4, filled)])
                        .map(drop),
                    2 => chart
                        .draw_series([at + Rectangle::new([(-3, -3), (3, 3)], filled)])
                        .map(drop),
                    _ => chart
                        .draw_series([at + Cross::new((0, 0), 3, colour.stroke_width(2))])
                        .map(drop),
                }
                .map_err(to_known)?;
            }
        }
    }
    // Names at the right, at the heights of the lines' ends, moved apart.
    let inside = |value: f64| value.clamp(y_ends.0, y_ends.1);
    let mut names: Vec<(i32, &Line)> = lines
        .iter()
        .filter_map(|line| {
            let (_, y) = *line.points.last()?;
            Some((chart.backend_coord(&(x_ends.1, inside(y))).1, line))
        })
        .collect();
    names.sort_by_key(|(height, _)| *height);
    let right = chart.backend_coord(&(x_ends.1, y_ends.0)).0 + 8;
    let mut free = 12;
    let below = 18 * i32::try_from(names.len()).unwrap_or(0);
    for (at, (height, line)) in names.iter().enumerate() {
        let left = below - 18 * i32::try_from(at).unwrap_or(0);
        let height = (*height).max(free).min(HEIGHT as i32 - 40 - left + 18);
        free = height + 18;
        let style = FONT
            .into_font()
            .color(&colour(line.style))
            .pos(Pos::new(HPos::Left, VPos::Center));
        area.draw_text(&shortened(&line.name), &style, (right, height))
            .map_err(to_known)?;
    }
    area.present().map_err(to_known)
}

fn colour(style: Style) -> RGBColor {
    match style {
        Style::Own(number) => COLOURS[number % COLOURS.len()],
        Style::Behind => BEHIND,
        Style::Level => TEXT,
    }
}

/// What has room beside a plot; the whole name is in the table.
fn shortened(name: &str) -> String {
    const LONGEST: usize = 23;
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    let head: String = name.chars().take(LONGEST - 1).collect();
    format!("{head}…")
}

/// How many values are where: bars over an axis.
pub(crate) fn histogram(values: &[f64], x_title: &str) -> Drawn {
    const BARS: usize = 30;
    let (low, high) = values
        .iter()
        .fold((f64::INFINITY, 0.0f64), |(low, high), value| {
            (low.min(*value), high.max(*value))
        });
    if !low.is_finite() {
        return Err("nothing to count".to_owned());
    }
    let x = Axis::between(low, high);
    let (from, to) = x.ends();
    let width = (to - from) / BARS as f64;
    let mut counts = [0u32; BARS];
    for value in values {
        counts[(((value - from) / width) as usize).min(BARS - 1)] += 1;
    }
    let y = Axis::from_zero(counts.iter().map(|count| f64::from(*count)));
    let mut svg = String::new();
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT * 2 / 3)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin_top(12)
            .margin_right(24)
            .x_label_area_size(50)
            .y_label_area_size(70)
            .build_cartesian_2d(x, y)
            .map_err(|error| failed(&error))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(AXIS)
            .label_style(FONT.into_font().color(&TEXT))
            .axis_desc_style(FONT.into_font().color(&TEXT))
            .x_desc(x_title)
            .y_desc("number of figures")
            .draw()
            .map_err(|error| failed(&error))?;
        let bars = counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(bar, count)| {
                let left = from + bar as f64 * width;
                Rectangle::new(
                    [(left, 0.0), (left + width * 0.92, f64::from(*count))],
                    COLOURS[0].filled(),
                )
            });
        chart.draw_series(bars).map_err(|error| failed(&error))?;
        area.present().map_err(|error| failed(&error))?;
    }
    Ok(svg)
}
