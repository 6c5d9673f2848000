//! Plots, and the page around them: what `trackbed rdma report` and `trackbed simulate` draw.

mod axis;
mod draw;
mod page;

pub(crate) use axis::{Axis, number, size};
pub(crate) use draw::{Drawn, Frame, Line, MOST_LINES, Style, histogram, lines};
pub(crate) use page::{Cell, date, document, figure, table};
