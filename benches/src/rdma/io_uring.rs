//! A shard's reads beside fio's io_uring engine: random blocks of one file in the page cache.
//!
//! From the page cache, so that the processor is the limit and not a disk: what is compared is what
//! either program adds to the kernel's work. Both have the buffers and the file registered, the same
//! number of reads under way, and hand all they have over in one call.

use std::{
    fs::File,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use serde::Deserialize;
use trackbed_rdma::{
    shard::{Reads, Shard, ShardConfig},
    slab::{Lease, Slab},
};

use super::Settings;
use crate::{
    BenchError,
    command::output,
    dataset::Noise,
    paired::{Better, Pair},
    row::Case,
    session::Session,
};

/// The names of the rows.
pub(super) const NAMES: [&str; 2] = ["io_uring/read", "io_uring/user-time"];
/// IOPS, ours to fio's.
const READ_GOAL: f64 = 1.0;
/// What a read may cost in user mode.
const USER_NANOSECONDS: f64 = 20.0;
/// Bytes of a read.
const BLOCK: usize = 4096;
/// Reads under way.
const DEPTH: u16 = 128;
/// Bytes of the file.
const FILE_BYTES: u64 = 256 << 20;
/// How long one run lasts. The kernel counts user time by ticks, a few dozen a second here.
const RUN: Duration = Duration::from_secs(3);

/// Measures both rows.
pub(super) fn measure(session: &mut Session<'_>, settings: &Settings) {
    let read = Case {
        bench: "rdma",
        name: NAMES[0].to_owned(),
        peer_name: "fio",
        unit: "IOPS",
        better: Better::Higher,
        goal: READ_GOAL,
    };
    let user_time = Case {
        bench: "rdma",
        name: NAMES[1].to_owned(),
        peer_name: "limit",
        unit: "ns/read",
        better: Better::Lower,
        goal: 1.0,
    };
    let ready = tempfile::Builder::new()
        .prefix("trackbed-bench-")
        .tempfile_in(&settings.folder)
        .map_err(BenchError::io(format!(
            "making a file in {}",
            settings.folder.display()
        )))
        .and_then(|named| {
            fill(named.as_file(), FILE_BYTES)?;
            Ok((shard()?, named))
        });
    let (shard, named) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            session.fail(NAMES[0], &error);
            session.row(read.row(&[]));
            return session.row(user_time.row(&[]));
        }
    };
    let mut user = Vec::new();
    session.measure(
        &read,
        settings.pairs,
        &mut || {
            let measured = ours(&shard, named.path())?;
            user.push(Pair {
                ours: measured.user_nanoseconds,
                peer: USER_NANOSECONDS,
            });
            Ok(measured.per_second)
        },
        &mut || fio(named.path()),
    );
    session.row(user_time.row(&user));
}

/// Writes that many bytes which no disk or file system can shorten.
pub(super) fn fill(file: &File, bytes: u64) -> Result<(), BenchError> {
    use std::os::unix::fs::FileExt;
    const PIECE: usize = 1 << 20;
    let mut noise = Noise(3);
    let mut piece = vec![0; PIECE];
    let attempt = || BenchError::io("writing the file to be read");
    for at in (0..bytes).step_by(PIECE) {
        noise.fill(&mut piece);
        file.write_all_at(&piece, at).map_err(attempt())?;
    }
    file.sync_all().map_err(attempt())
}

fn shard() -> Result<Shard, BenchError> {
    let unavailable = |error: &dyn std::error::Error| BenchError::Unavailable(error.to_string());
    let slab = Slab::new("bench", BLOCK, DEPTH.into()).map_err(|error| unavailable(&error))?;
    Shard::start(ShardConfig::new("bench", slab)).map_err(|error| unavailable(&error))
}

struct Measured {
    per_second: f64,
    user_nanoseconds: f64,
}

/// One run of ours.
fn ours(shard: &Shard, path: &Path) -> Result<Measured, BenchError> {
    let file = File::open(path).map_err(BenchError::io("opening the file to be read"))?;
    let leases: Vec<Lease> = std::iter::from_fn(|| shard.slab().try_lease()).collect();
    block_on(shard.with_reads(Arc::new(file), DEPTH, |reads| run(reads, leases)))
}

/// Reads random blocks for the length of a run, on the shard's thread.
async fn run(mut reads: Reads, leases: Vec<Lease>) -> Result<Measured, BenchError> {
    let mut noise = Noise(u64::from(std::process::id()));
    // The upper half of the product: a random block without a division.
    let mut place = || {
        let block = (u128::from(noise.draw()) * u128::from(FILE_BYTES / BLOCK as u64)) >> 64;
        block as u64 * BLOCK as u64
    };
    let (start, user) = (Instant::now(), user_time()?);
    for lease in leases {
        reads
            .push(place(), lease, 0, BLOCK)
            .map_err(|refused| BenchError::Unavailable(refused.to_string()))?;
    }
    let (mut count, mut failed) = (0u64, None);
    loop {
        reads.ended().await;
        // All that have ended are begun anew, and go to the kernel together.
        let over = start.elapsed() >= RUN;
        let ended = reads.read_on(|_, outcome| match outcome {
            Ok(bytes) if bytes.len() == BLOCK => (!over).then(&mut place),
            Ok(bytes) => {
                failed = Some(BenchError::Unavailable(format!(
                    "a read brought {} bytes of {BLOCK}: the file was changed meanwhile",
                    bytes.len()
                )));
                None
            }
            Err(error) => {
                failed = Some(BenchError::io("reading through the ring")(error));
                None
            }
        });
        count += ended as u64;
        if ended == 0 {
            break;
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let (seconds, user) = (start.elapsed().as_secs_f64(), user_time()? - user);
    Ok(Measured {
        per_second: count as f64 / seconds,
        user_nanoseconds: user / count as f64,
    })
}

/// What this thread has spent in user mode, in nanoseconds.
fn user_time() -> Result<f64, BenchError> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)
        .map_err(|error| BenchError::Unavailable(format!("getrusage failed: {error}")))?;
    Ok(usage.user_time().num_microseconds() as f64 * 1e3)
}

/// One run of fio's.
fn fio(path: &Path) -> Result<f64, BenchError> {
    let mut command = Command::new("fio");
    command
        .args(["--name=read", "--ioengine=io_uring", "--rw=randread"])
        .args(["--direct=0", "--invalidate=0", "--norandommap"])
        .args(["--fixedbufs=1", "--registerfiles=1", "--gtod_reduce=1"])
        .args(["--thread", "--output-format=json", "--time_based"])
        .arg(format!("--runtime={}ms", RUN.as_millis()))
        .arg(format!("--bs={BLOCK}"))
        .arg(format!("--size={FILE_BYTES}"))
        .arg(format!("--iodepth={DEPTH}"))
        .arg(format!("--iodepth_batch_submit={DEPTH}"))
        .arg("--iodepth_batch_complete_min=1")
        .arg(format!("--iodepth_batch_complete_max={DEPTH}"))
        .arg(format!("--filename={}", path.display()));
    Ok(read_report(&output(&mut command)?)?.iops)
}

/// What fio says of the reads of its only job.
#[derive(Debug, Deserialize)]
pub(super) struct FioRead {
    /// Reads a second.
    pub(super) iops: f64,
    /// Bytes a second.
    pub(super) bw_bytes: f64,
}

/// Reads fio's `--output-format=json`; it may say something before.
pub(super) fn read_report(printed: &str) -> Result<FioRead, BenchError> {
    #[derive(Deserialize)]
    struct Report {
        jobs: Vec<Job>,
    }
    #[derive(Deserialize)]
    struct Job {
        read: FioRead,
    }
    let json = printed.find('{').map_or("", |at| &printed[at..]);
    serde_json::from_str::<Report>(json)
        .ok()
        .and_then(|report| report.jobs.into_iter().next())
        .map(|job| job.read)
        .ok_or_else(|| BenchError::Output {
            program: "fio".to_owned(),
            output: printed.trim().to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fio_is_read_past_its_remarks() {
        let printed =
            "note: both iodepth >= 1\n{\"jobs\":[{\"read\":{\"iops\":7.5,\"bw_bytes\":3}}]}";
        let read = read_report(printed).expect("a report");
        assert_eq!((read.iops, read.bw_bytes), (7.5, 3.0));
        assert!(read_report("fio: failed").is_err());
    }
}
