//! Drawing the tables, and the keys.

use std::time::Duration;

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table};
use tokio::sync::{mpsc, watch};

use super::gather::Latest;
use super::sections::{Section, sections};
use super::view::{View, view};

/// How often keys and news are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Rows that a key for a page moves by.
const PAGE: usize = 10;

/// Where whoever looks has gone.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Position {
    /// The table that keys move in.
    section: usize,
    /// The first row that is shown of each table.
    first: Vec<usize>,
}

/// What a key does.
#[derive(Debug, PartialEq)]
enum Key {
    Quit,
    Next,
    Up(usize),
    Down(usize),
    Nothing,
}

fn key(event: KeyEvent) -> Key {
    if event.kind == KeyEventKind::Release {
        return Key::Nothing;
    }
    let control = event.modifiers.contains(KeyModifiers::CONTROL);
    match event.code {
        KeyCode::Char('c') if control => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Tab => Key::Next,
        KeyCode::Up | KeyCode::Char('k') => Key::Up(1),
        KeyCode::Down | KeyCode::Char('j') => Key::Down(1),
        KeyCode::PageUp => Key::Up(PAGE),
        KeyCode::PageDown => Key::Down(PAGE),
        KeyCode::Home => Key::Up(usize::MAX),
        _ => Key::Nothing,
    }
}

impl Position {
    fn go(&mut self, key: &Key, sections: &[Section]) {
        self.first.resize(sections.len(), 0);
        self.section = self.section.min(sections.len().saturating_sub(1));
        let Some(first) = self.first.get_mut(self.section) else {
            return;
        };
        let last = sections[self.section].rows.len().saturating_sub(1);
        match key {
            Key::Next => self.section = (self.section + 1) % sections.len(),
            Key::Up(rows) => *first = first.saturating_sub(*rows),
            Key::Down(rows) => *first = first.saturating_add(*rows).min(last),
            Key::Quit | Key::Nothing => {}
        }
    }
}

/// Shows what comes until a key or a signal ends it.
pub(crate) fn show(
    mut news: watch::Receiver<Option<Latest>>,
    mut ending: mpsc::Receiver<()>,
) -> std::io::Result<()> {
    let mut terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
    let shown = (|| {
        let (mut position, mut current) = (Position::default(), None);
        loop {
            if news.has_changed().unwrap_or(false) || current.is_none() {
                let latest = news.borrow_and_update().clone();
                current = latest.map(|latest| view(&latest.0, &latest.1));
            }
            let tables = current.as_ref().map(sections).unwrap_or_default();
            terminal.draw(|frame| draw(frame, current.as_ref(), &tables, &mut position))?;
            if ending.try_recv().is_ok() {
                return Ok(());
            }
            if event::poll(LOOK_EVERY)?
                && let Event::Key(pressed) = event::read()?
            {
                match key(pressed) {
                    Key::Quit => return Ok(()),
                    key => position.go(&key, &tables),
                }
            }
        }
    })();
    ratatui::restore();
    shown
}

/// Draws all tables, one below the other, each with as much of the height as it has rows for.
fn draw(frame: &mut Frame, view: Option<&View>, sections: &[Section], position: &mut Position) {
    position.go(&Key::Nothing, sections);
    let troubles = view.map_or(&[][..], |view| &view.troubles);
    let mut heights = vec![Constraint::Length(1)];
    heights.extend(troubles.iter().map(|_| Constraint::Length(1)));
    let room = usize::from(frame.area().height).saturating_sub(heights.len());
    // Title and header, the rows, and an empty line.
    let wanted: Vec<_> = sections.iter().map(|it| it.rows.len() + 3).collect();
    heights.extend(shares(&wanted, room).into_iter().map(|rows| {
        // No more than the terminal has.
        Constraint::Length(u16::try_from(rows).unwrap_or(u16::MAX))
    }));
    let areas = Layout::vertical(heights).split(frame.area());
    let mut areas = areas.iter().copied();
    let mut next = || areas.next().unwrap_or_default();

    let bold = Style::new().add_modifier(Modifier::BOLD);
    let waits = if view.is_none() { "   asking …" } else { "" };
    let head = Line::from(vec![
        Span::styled("trackbed top", bold),
        Span::raw("   Tab: next table   ↑ ↓: move in it   q: end"),
        Span::raw(waits),
    ]);
    frame.render_widget(Paragraph::new(head), next());
    for trouble in troubles {
        let line = Span::styled(trouble.as_str(), Style::new().fg(Color::Red));
        frame.render_widget(Paragraph::new(line), next());
    }
    for (at, section) in sections.iter().enumerate() {
        let chosen = at == position.section;
        let first = position.first.get(at).copied().unwrap_or(0);
        table(frame, next(), section, first, chosen);
    }
}

/// What each gets of the room: what it wants, or as much as any other that wants more than there is.
fn shares(wanted: &[usize], mut room: usize) -> Vec<usize> {
    let mut shares = vec![0; wanted.len()];
    let mut order: Vec<_> = (0..wanted.len()).collect();
    order.sort_by_key(|at| wanted[*at]);
    for (done, at) in order.iter().enumerate() {
        let fair = room / (wanted.len() - done);
        shares[*at] = wanted[*at].min(fair);
        room -= shares[*at];
    }
    shares
}

fn table(frame: &mut Frame, area: Rect, section: &Section, first: usize, chosen: bool) {
    let parts = [
        Constraint::Length(1),
        Constraint::Min(0),
        // Nothing, between this table and the next.
        Constraint::Length(1),
    ];
    let [title, below, _] = Layout::vertical(parts).areas(area);
    let mut style = Style::new().add_modifier(Modifier::BOLD);
    if chosen {
        style = style.add_modifier(Modifier::REVERSED);
    }
    let line = Line::from(vec![
        Span::styled(section.title, style),
        Span::raw(format!("  {}", section.summary)),
    ]);
    frame.render_widget(Paragraph::new(line), title);
    // As wide as what is in it; the last takes the rest.
    let last = section.header.len() - 1;
    let widths = section.header.iter().enumerate().map(|(at, header)| {
        if at == last {
            return Constraint::Fill(1);
        }
        let cells = section.rows.iter().map(|row| row.cells[at].chars().count());
        let wide = cells.chain([header.len()]).max().unwrap_or(0);
        Constraint::Length(u16::try_from(wide).unwrap_or(u16::MAX))
    });
    let rows = section.rows.iter().skip(first).map(|row| {
        let style = if row.bad {
            Style::new().fg(Color::Red)
        } else {
            Style::new()
        };
        TableRow::new(row.cells.iter().map(|cell| Cell::from(cell.as_str()))).style(style)
    });
    let header = TableRow::new(section.header.iter().copied());
    let header = header.style(Style::new().add_modifier(Modifier::DIM));
    let table = Table::new(rows, widths).header(header).column_spacing(2);
    frame.render_widget(table, below);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::view::{Dataset, Node};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn some(nodes: usize) -> View {
        View {
            nodes: (0..nodes)
                .map(|at| Node {
                    name: format!("node-{at}"),
                    used_bytes: Some(3 << 30),
                    trouble: (at == 1).then(|| "nobody listens there".to_owned()),
                    ..Node::default()
                })
                .collect(),
            datasets: vec![Dataset {
                name: "cats".into(),
                cached_percent: 42,
                ..Dataset::default()
            }],
            troubles: vec!["listing jobs: no".into()],
            ..View::default()
        }
    }

    fn drawn(
        view: Option<&View>,
        position: &mut Position,
        height: u16,
    ) -> (Vec<String>, Vec<Color>) {
        let mut terminal = Terminal::new(TestBackend::new(120, height)).expect("a terminal");
        let tables = view.map(sections).unwrap_or_default();
        let drawn = terminal.draw(|frame| draw(frame, view, &tables, position));
        let buffer = drawn.expect("draws").buffer.clone();
        let lines = (0..height).map(|y| {
            let cells = (0..120).map(|x| buffer[(x, y)].symbol());
            cells.collect::<String>().trim_end().to_owned()
        });
        let colors = (0..height).map(|y| buffer[(0, y)].fg);
        (lines.collect(), colors.collect())
    }

    #[test]
    fn all_tables_are_there_and_what_is_wrong_is_red() {
        let (lines, colors) = drawn(Some(&some(3)), &mut Position::default(), 24);
        let line = |part: &str| {
            let found = lines.iter().position(|line| line.contains(part));
            found.unwrap_or_else(|| panic!("no {part} in {lines:#?}"))
        };
        assert!(lines[line("NODES")].contains("2 of 3 answer"));
        assert!(lines[line("node-0")].contains("3.0 GiB"));
        assert!(lines[line("node-1")].contains("nobody listens there"));
        assert!(lines[line("cats")].contains("42%"));
        assert_eq!(colors[line("node-1")], Color::Red);
        assert_eq!(colors[line("listing jobs")], Color::Red);
        assert_eq!(colors[line("node-2")], Color::Reset);
    }

    #[test]
    fn keys_move_in_the_chosen_table_and_stay_within_it() {
        let (view, mut position) = (some(50), Position::default());
        let tables = sections(&view);
        position.go(&Key::Down(PAGE), &tables);
        let (lines, _) = drawn(Some(&view), &mut position, 24);
        let shown = |part: &str| lines.iter().any(|line| line.starts_with(part));
        assert!(shown("node-10") && !shown("node-9"), "{lines:#?}");
        assert!(shown("DATASETS"), "one table leaves room for the others");
        position.go(&Key::Down(usize::MAX), &tables);
        assert_eq!(position.first[0], 49);
        position.go(&Key::Up(usize::MAX), &tables);
        assert_eq!(position.first[0], 0);
        position.go(&Key::Next, &tables);
        position.go(&Key::Down(5), &tables);
        assert_eq!((position.section, position.first[1]), (1, 0));
        // Tables go and come: the position stays one that there is.
        position.go(&Key::Next, &tables[..1]);
        assert_eq!(position.section, 0);
        position.go(&Key::Next, &[]);
    }

    #[test]
    fn the_smallest_terminal_and_no_answer_yet_are_drawn() {
        for height in 1..8 {
            drawn(Some(&some(3)), &mut Position::default(), height);
            let (lines, _) = drawn(None, &mut Position::default(), height);
            assert!(lines[0].contains("asking"), "{lines:?}");
        }
    }

    #[test]
    fn small_tables_are_whole_and_large_ones_share_the_rest() {
        assert_eq!(shares(&[50, 4, 50], 24), [10, 4, 10]);
        assert_eq!(shares(&[5, 4], 24), [5, 4]);
        assert_eq!(shares(&[5, 4], 0), [0, 0]);
        assert!(shares(&[], 9).is_empty());
    }

    #[test]
    fn keys_are_known() {
        let pressed = |code, modifiers| key(KeyEvent::new(code, modifiers));
        let plain = KeyModifiers::NONE;
        assert_eq!(pressed(KeyCode::Char('q'), plain), Key::Quit);
        assert_eq!(
            pressed(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Key::Quit
        );
        assert_eq!(pressed(KeyCode::Char('c'), plain), Key::Nothing);
        assert_eq!(pressed(KeyCode::Tab, plain), Key::Next);
        assert_eq!(pressed(KeyCode::Down, plain), Key::Down(1));
    }
}
