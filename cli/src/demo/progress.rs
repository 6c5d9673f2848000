//! Progress bars on stderr, for a person at a terminal; nothing otherwise.

use super::tree::Watch;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BAR: &str = "{prefix:<26} {bar:28} {bytes:>10} of {total_bytes:<10} {bytes_per_sec}";
const SPINNER: &str = "{prefix:<26} {spinner} {msg}";

/// All bars of one run, and the wish to end it.
#[derive(Clone)]
pub(crate) struct Progress {
    bars: MultiProgress,
    cancelled: Arc<AtomicBool>,
}

/// One bar: a spinner until its total is known.
pub(crate) struct Bar {
    bar: ProgressBar,
    cancelled: Arc<AtomicBool>,
}

impl Progress {
    /// Bars when `wanted` and stderr is a terminal.
    pub(crate) fn new(wanted: bool) -> Progress {
        let target = if wanted && std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        Progress {
            bars: MultiProgress::with_draw_target(target),
            cancelled: Arc::default(),
        }
    }

    /// Starts a bar named `what`.
    pub(crate) fn start(&self, what: &str) -> Bar {
        let bar = self.bars.add(ProgressBar::no_length());
        bar.set_style(style(SPINNER, ProgressStyle::default_spinner()));
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Bar {
            bar,
            cancelled: self.cancelled.clone(),
        }
    }

    /// Takes all bars from the screen.
    pub(crate) fn clear(&self) {
        // A terminal that is gone has no bars either.
        let _ = self.bars.clear();
    }

    /// Asks whoever watches to end.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Bar {
    /// Shows a word beside the spinner.
    pub(crate) fn say(&self, message: String) {
        self.bar.set_message(message);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish();
    }
}

impl Watch for Bar {
    fn listed(&self, bytes: u64) {
        self.bar.set_length(bytes);
        self.bar.set_style(style(BAR, ProgressStyle::default_bar()));
    }

    fn read(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// The templates are constants; should one be wrong, the plain style still shows progress.
fn style(template: &str, plain: ProgressStyle) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or(plain)
}
