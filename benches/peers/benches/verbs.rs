//! Messages between two queue pairs of one device: our safe layer, polled and with events, beside
//! `ibverbs`. Says so, and succeeds, where there is no device.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use trackbed_peers::{
    PeersError,
    loopback::{Messages, Ours, Path, Waiting, usual_device},
};

/// Bytes of a message, and messages under way.
const SHAPES: [(u32, u32); 5] = [(64, 1), (4096, 1), (64, 128), (4096, 128), (65_536, 16)];

fn sends(criterion: &mut Criterion) {
    let (device, gid_index) = match usual_device() {
        Ok(found) => found,
        Err(error) => {
            return println!(
                "skipped: {error}; `hack/bench rdma --criterion` runs this on soft-RoCE in a virtual \
                 machine"
            );
        }
    };
    for (size, depth) in SHAPES {
        let path = Path {
            device: device.clone(),
            gid_index,
            size,
            depth,
        };
        let mut group = criterion.benchmark_group(format!("send/{size}/depth-{depth}"));
        group
            .throughput(Throughput::Bytes(size.into()))
            .sample_size(10)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2));
        for (name, connect) in sides() {
            let mut side = match connect(&path) {
                Ok(side) => side,
                Err(error) => {
                    println!("skipped: {name} on {device}: {error}");
                    continue;
                }
            };
            group.bench_function(BenchmarkId::from_parameter(name), |bench| {
                bench.iter_custom(|count| {
                    let start = Instant::now();
                    side.send(count).expect("the device works");
                    start.elapsed()
                });
            });
        }
        group.finish();
    }
}

type Connect = fn(&Path) -> Result<Box<dyn Messages>, PeersError>;

fn sides() -> Vec<(&'static str, Connect)> {
    fn ours(path: &Path, waiting: Waiting) -> Result<Box<dyn Messages>, PeersError> {
        Ok(Box::new(Ours::connect(path, waiting)?))
    }
    vec![
        ("trackbed", |path| ours(path, Waiting::Polled)),
        ("trackbed-events", |path| ours(path, Waiting::Events)),
        #[cfg(feature = "ibverbs")]
        ("ibverbs", |path| {
            Ok(Box::new(trackbed_peers::loopback::Ibverbs::connect(path)?))
        }),
    ]
}

criterion_group!(benches, sends);
criterion_main!(benches);
