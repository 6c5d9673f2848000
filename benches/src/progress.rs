//! How far a measurement is: a bar for a person at a terminal, a line a case where standard error goes
//! elsewhere, and lines for a program that tells it on.

use std::cell::Cell;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

/// Where the measurement stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The case that is being measured.
    pub case: String,
    /// Pairs of runs done.
    pub done: u64,
    /// Pairs of runs there will be.
    pub of: u64,
}

/// Who is told.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    lines: bool,
    /// Pairs that were done before those that this process counts.
    before: Cell<Option<u64>>,
}

impl Progress {
    /// A bar on the terminal; where there is none, a line on standard error as each case begins.
    pub fn bar() -> Self {
        let style = ProgressStyle::with_template("{msg:32} {bar:30} {pos}/{len} pairs, {eta} left")
            .expect("the template is a constant");
        Self {
            bar: ProgressBar::new(0).with_style(style),
            lines: false,
            before: Cell::new(None),
        }
    }

    /// A JSON object a line on standard output, between the rows: `{"progress": …}`.
    pub fn lines() -> Self {
        Self {
            bar: ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden()),
            lines: true,
            before: Cell::new(None),
        }
    }

    /// That many pairs more will be measured.
    pub fn expect(&self, pairs: u64) {
        self.bar.inc_length(pairs);
        self.tell();
    }

    /// A case begins.
    pub fn case(&self, name: &str) {
        self.begin(name);
        self.tell();
    }

    /// A pair is done.
    pub fn step(&self) {
        self.bar.inc(1);
        self.tell();
    }

    /// Shows what another process, which goes on from here, told of itself.
    pub fn follow(&self, step: &Step) {
        let before = self.before.get().unwrap_or_else(|| self.bar.position());
        self.before.set(Some(before));
        self.bar.set_length(before + step.of);
        self.bar.set_position(before + step.done);
        if self.bar.message() != step.case {
            self.begin(&step.case);
        }
    }

    /// Prints something without tearing the bar.
    pub fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn begin(&self, case: &str) {
        self.bar.set_message(case.to_owned());
        if !self.lines && self.bar.is_hidden() {
            let (done, of) = (self.bar.position(), self.bar.length().unwrap_or(0));
            eprintln!("hack/bench: {case} ({done} of {of} pairs done)");
        }
    }

    fn tell(&self) {
        if self.lines {
            let step = Step {
                case: self.bar.message(),
                done: self.bar.position(),
                of: self.bar.length().unwrap_or(0),
            };
            println!("{}", serde_json::json!({ "progress": step }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_counted_without_a_terminal_too() {
        let progress = Progress::lines();
        progress.expect(8);
        progress.step();
        assert_eq!(progress.bar.length(), Some(8));
        assert_eq!(progress.bar.position(), 1);
    }

    #[test]
    fn what_goes_on_elsewhere_is_added_to_what_was_done_here() {
        let progress = Progress::bar();
        progress.expect(8);
        (0..8).for_each(|_| progress.step());
        for done in [0, 5] {
            let case = "send/latency/64".to_owned();
            progress.follow(&Step { case, done, of: 16 });
            assert_eq!(progress.bar.position(), 8 + done);
            assert_eq!(progress.bar.length(), Some(24));
        }
    }
}
