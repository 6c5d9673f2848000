//! From a disk into an adapter, as a node serves its peers: read into a slot, written from it.
//!
//! The slots are at once fixed buffers of the ring and a memory region of the adapter, so the CPU
//! touches no byte. Beside it stand fio, which only reads the same file, and `ib_write_bw`, which
//! only writes; neither stage can be faster than its tool, hence the slower one is the peer.

mod pump;

use std::{
    fs::OpenOptions,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
};

use super::{
    Settings,
    io_uring::{fill, read_report},
    perftest,
    transfer::{Figure, Run, Transfer, Verb},
};
use crate::{
    BenchError, command::output, paired::Better, row::Case, session::Session, soft_roce::End,
};

pub use pump::{PumpOptions, pump};

/// The name of the row.
pub(super) const NAME: &str = "disk-to-nic";
/// Ours to the slower of the two tools.
const GOAL: f64 = 0.95;
/// Bytes of a read, and of the write that sends it on.
const BLOCK: usize = 256 << 10;
/// Bytes of the file; longer runs read it again.
const FILE_BYTES: u64 = 128 << 20;
/// Reads under way, and as many slots again for the writes.
const DEPTH: u16 = 16;
/// Where perftest's ends meet first; see [`super::transfer`] for the others'.
const FIRST_PORT: u16 = 41_000;

/// Measures the row.
pub(super) fn measure(session: &mut Session<'_>, settings: &Settings, ends: &[End; 2]) {
    let case = Case {
        bench: "rdma",
        name: NAME.to_owned(),
        peer_name: "fio, perftest",
        unit: "MB/s",
        better: Better::Higher,
        goal: GOAL,
    };
    let path = settings
        .folder
        .join(format!("trackbed-bench-{}", std::process::id()));
    let ready = ready(&path, ends, settings);
    match ready {
        Ok(bytes) => session.measure(
            &case,
            settings.pairs,
            &mut || ours(&path, bytes, ends, settings),
            &mut || slower(&path, bytes, ends, settings),
        ),
        Err(error) => {
            session.fail(NAME, &error);
            session.row(case.row(&[]));
        }
    }
    // It may never have been made; there is nothing else to do about a failure.
    let _ = std::fs::remove_file(&path);
}

/// Writes the file, lets one run of ours say how fast this is here, and returns how many bytes make
/// a run.
fn ready(path: &Path, ends: &[End; 2], settings: &Settings) -> Result<u64, BenchError> {
    const WANTED_SECONDS: f64 = 1.2;
    const FIRST_BYTES: u64 = 8 << 20;
    const BYTES: (u64, u64) = (16 << 20, 64 << 30);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(BenchError::io(format!("making {}", path.display())))?;
    fill(&file, FILE_BYTES)?;
    let rate = ours(path, FIRST_BYTES, ends, settings)?;
    let bytes = (rate * 1e6 * WANTED_SECONDS) as u64;
    Ok(bytes.clamp(BYTES.0, BYTES.1) / BLOCK as u64 * BLOCK as u64)
}

/// One run of ours, in a process of its own on the client's end of the link.
fn ours(
    path: &Path,
    bytes: u64,
    [client, server]: &[End; 2],
    settings: &Settings,
) -> Result<f64, BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
    let mut command = client.command(&own.to_string_lossy());
    command
        .args(["disk-to-nic", "--device", &client.device])
        .args(["--peer-device", &server.device])
        .args(["--gid-index", &settings.gid_index.to_string()])
        .args(["--bytes", &bytes.to_string()])
        .arg("--file")
        .arg(path);
    let printed = output(&mut command)?;
    printed.trim().parse().map_err(|_| BenchError::Output {
        program: "trackbed-bench disk-to-nic".to_owned(),
        output: printed,
    })
}

/// The slower of fio's reads and perftest's writes, in MB/s.
fn slower(
    path: &Path,
    bytes: u64,
    ends: &[End; 2],
    settings: &Settings,
) -> Result<f64, BenchError> {
    static NEXT_PORT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    let writes = Transfer {
        verb: Verb::Write,
        figure: Figure::Bandwidth,
        size: BLOCK as u64,
    };
    let run = Run {
        count: bytes / BLOCK as u64,
        gid: settings.gid_index,
        port: NEXT_PORT.fetch_add(1, Ordering::Relaxed),
    };
    let disk = fio(path, bytes)?;
    let nic = perftest::measure(&writes, ends, run)? * 1e9 / 8.0 / 1e6;
    Ok(disk.min(nic))
}

fn fio(path: &Path, bytes: u64) -> Result<f64, BenchError> {
    let mut command = Command::new("fio");
    command
        .args(["--name=read", "--ioengine=io_uring", "--rw=read"])
        .args(["--direct=1", "--fixedbufs=1", "--registerfiles=1"])
        .args(["--thread", "--output-format=json"])
        .arg(format!("--bs={BLOCK}"))
        .arg(format!("--size={FILE_BYTES}"))
        .arg(format!("--io_size={bytes}"))
        .arg(format!("--iodepth={DEPTH}"))
        .arg(format!("--filename={}", path.display()));
    Ok(read_report(&output(&mut command)?)?.bw_bytes / 1e6)
}
