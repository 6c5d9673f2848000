//! How it goes, on stderr: a bar at a terminal, lines where they were asked for.

use super::print::{sentence, stage};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use trackbed_rdma::bench::{Measure, Plan, Progress};

const BAR: &str = "{bar:28} {pos}/{len} {msg}";

pub(super) struct Live {
    bar: ProgressBar,
    unit: &'static str,
    runs: u64,
    interval: Option<Duration>,
    last: Instant,
    sizes_done: u64,
}

impl Live {
    /// `interval` is how often lines are told; without it a terminal gets a bar.
    pub(super) fn new(plan: &Plan, interval: Option<Duration>, quiet: bool) -> Live {
        let runs = u64::from(plan.runs);
        let drawn = interval.is_none() && !quiet && std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(plan.sizes.len() as u64 * runs),
            if drawn {
                ProgressDrawTarget::stderr_with_hz(5)
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        // The template is a constant; should it be wrong, the plain style still shows progress.
        bar.set_style(
            ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Live {
            bar,
            unit: match plan.measure {
                Measure::Bandwidth => "Gb/s",
                Measure::Latency => "us",
            },
            runs,
            interval,
            last: Instant::now(),
            sizes_done: 0,
        }
    }

    pub(super) fn tell(&mut self, progress: &Progress<'_>) {
        match progress {
            Progress::Listening(address) => {
                eprintln!("waiting for a client on TCP port {}", address.port());
            }
            Progress::Met(peer) => tracing::info!(%peer, "met the other end"),
            Progress::Measuring(at) => {
                let line = stage(at, self.unit);
                let run = u64::from(at.run).saturating_sub(1);
                self.bar.set_position(self.sizes_done * self.runs + run);
                self.bar.set_message(line.clone());
                if self
                    .interval
                    .is_some_and(|interval| self.last.elapsed() >= interval)
                {
                    self.last = Instant::now();
                    eprintln!("{line}");
                }
            }
            Progress::Measured(row) => {
                self.sizes_done += 1;
                self.bar.set_position(self.sizes_done * self.runs);
                self.bar.suspend(|| eprintln!("{}", sentence(row)));
            }
            _ => {}
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
