//! Reads of 4 KiB from the page cache: our shard beside `tokio-uring`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::{io::Write, time::Instant};
use trackbed_peers::{
    PeersError,
    reads::{BLOCK, Blocks, DEPTH, Ours, TokioUring},
};

/// Bytes of the file.
const FILE_BYTES: usize = 64 << 20;

fn reads(criterion: &mut Criterion) {
    let (_file, mut sides) = match sides() {
        Ok(sides) => sides,
        Err(error) => return println!("skipped: io_uring can't be measured here: {error}"),
    };
    let mut group = criterion.benchmark_group(format!("read/{BLOCK}"));
    group.throughput(Throughput::Elements(1));
    for (name, side) in &mut sides {
        group.bench_function(BenchmarkId::new(*name, format!("depth-{DEPTH}")), |bench| {
            bench.iter_custom(|count| {
                let start = Instant::now();
                side.read(count).expect("the file is sound");
                start.elapsed()
            });
        });
    }
    group.finish();
}

type Sides = [(&'static str, Box<dyn Blocks>); 2];

/// Both sides, and the file that they read.
fn sides() -> Result<(tempfile::NamedTempFile, Sides), PeersError> {
    let attempt = "writing a file to be read";
    let mut file = tempfile::NamedTempFile::new().map_err(PeersError::of(attempt))?;
    file.write_all(&vec![0x5a; FILE_BYTES])
        .map_err(PeersError::of(attempt))?;
    let ours: Box<dyn Blocks> = Box::new(Ours::open(file.path())?);
    let peer: Box<dyn Blocks> = Box::new(TokioUring::open(file.path())?);
    Ok((file, [("trackbed", ours), ("tokio-uring", peer)]))
}

criterion_group!(benches, reads);
criterion_main!(benches);
