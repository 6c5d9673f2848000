//! The same work through other crates: messages beside `ibverbs`, reads beside `tokio-uring`.
//!
//! Those crates need more to be built than Trackbed does, so they are in a workspace of their own,
//! `benches/peers`, which `hack/bench` builds when these cases are asked for. Its program has both sides
//! ready and runs one or the other when told, in one process: what differs is the crate.

use std::path::PathBuf;

use super::{Settings, io_uring::fill};
use crate::{
    BenchError, command::Asked, paired::Better, row::Case, session::Session, soft_roce::End,
};

/// Bytes of the file that is read.
const FILE_BYTES: u64 = 64 << 20;
/// Messages under way, for bandwidth.
const DEPTH: u32 = 128;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peers {
    /// Sends from one queue pair to another of the same device, many at a time. Gb/s.
    Bandwidth { size: u32 },
    /// The same, one at a time: until both ends know, in microseconds.
    Latency { size: u32 },
    /// Random 4 KiB from the page cache, 128 at a time. IOPS.
    Read,
}

/// All of them.
pub(super) const ALL: [Peers; 5] = [
    Peers::Bandwidth { size: 64 },
    Peers::Bandwidth { size: 4096 },
    Peers::Bandwidth { size: 65_536 },
    Peers::Latency { size: 64 },
    Peers::Read,
];

impl Peers {
    pub(super) fn name(self) -> String {
        match self {
            Self::Bandwidth { size } => format!("peers/ibverbs/send/bandwidth/{size}"),
            Self::Latency { size } => format!("peers/ibverbs/send/latency/{size}"),
            Self::Read => "peers/tokio-uring/read".to_owned(),
        }
    }

    pub(super) fn needs_device(self) -> bool {
        self != Self::Read
    }

    /// As for the other cases on a device: few pairs are allowed some noise.
    fn goal(self, long: bool) -> f64 {
        match (self, long) {
            (Self::Read, _) => 1.0,
            (Self::Bandwidth { .. }, false) => 0.90,
            (Self::Bandwidth { .. }, true) => 0.98,
            (Self::Latency { .. }, false) => 1.0 / 1.10,
            (Self::Latency { .. }, true) => 1.0 / 1.02,
        }
    }

    fn case(self, long: bool) -> Case {
        let (peer_name, unit, better) = match self {
            Self::Bandwidth { .. } => ("ibverbs", "Gb/s", Better::Higher),
            Self::Latency { .. } => ("ibverbs", "us", Better::Lower),
            Self::Read => ("tokio-uring", "IOPS", Better::Higher),
        };
        Case {
            bench: "rdma",
            name: self.name(),
            peer_name,
            unit,
            better,
            goal: self.goal(long),
        }
    }

    /// The figure, from operations a second.
    fn figure(self, per_second: f64) -> f64 {
        match self {
            Self::Bandwidth { size } => per_second * f64::from(size) * 8.0 / 1e9,
            Self::Latency { .. } => 1e6 / per_second,
            Self::Read => per_second,
        }
    }

    /// Measures it; messages go from the first end back to itself.
    pub(super) fn measure(
        self,
        session: &mut Session<'_>,
        settings: &Settings,
        ends: Option<&[End; 2]>,
    ) {
        let case = self.case(settings.long);
        // The file must be there as long as it is read.
        let (_file, asked) = match self.start(settings, ends) {
            Ok(started) => started,
            Err(error) => {
                session.fail(&case.name, &error);
                return session.row(case.row(&[]));
            }
        };
        let asked = std::cell::RefCell::new(asked);
        let run =
            |side| -> Result<f64, BenchError> { Ok(self.figure(asked.borrow_mut().ask(side)?)) };
        session.measure(&case, settings.pairs, &mut || run("ours"), &mut || {
            run("peer")
        });
    }

    fn start(
        self,
        settings: &Settings,
        ends: Option<&[End; 2]>,
    ) -> Result<(Option<tempfile::NamedTempFile>, Asked), BenchError> {
        let program = program()?.to_string_lossy().into_owned();
        let (size, depth) = match self {
            Self::Bandwidth { size } => (size, DEPTH),
            Self::Latency { size } => (size, 1),
            Self::Read => {
                let file = tempfile::Builder::new()
                    .prefix("trackbed-bench-")
                    .tempfile_in(&settings.folder)
                    .map_err(BenchError::io(format!(
                        "making a file in {}",
                        settings.folder.display()
                    )))?;
                fill(file.as_file(), FILE_BYTES)?;
                let mut command = std::process::Command::new(program);
                command.args(["tokio-uring", "--file"]).arg(file.path());
                return Ok((Some(file), Asked::start(&mut command)?));
            }
        };
        let [end, _] = ends.ok_or_else(|| {
            BenchError::Unavailable("messages need an RDMA device, and there is none".to_owned())
        })?;
        let mut command = end.command(&program);
        command.args(["ibverbs", "--device", &end.device]);
        command.args(["--gid-index", &settings.gid_index.to_string()]);
        command.args(["--size", &size.to_string(), "--depth", &depth.to_string()]);
        Ok((None, Asked::start(&mut command)?))
    }
}

/// The program of `benches/peers`, which `hack/bench` builds next to this one.
fn program() -> Result<PathBuf, BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
    let program = own.with_file_name("trackbed-peers");
    if program.is_file() {
        return Ok(program);
    }
    Err(BenchError::Unavailable(format!(
        "{} is missing: `hack/bench rdma --case peers` builds it",
        program.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_a_second_become_the_figure_of_the_case() {
        let bandwidth = Peers::Bandwidth { size: 4096 };
        assert!((bandwidth.figure(1e6) - 32.768).abs() < 1e-9);
        let latency = Peers::Latency { size: 64 };
        assert!((latency.figure(2000.0) - 500.0).abs() < 1e-9);
        assert_eq!(latency.case(false).better, Better::Lower);
    }
}
