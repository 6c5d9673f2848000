//! The objects of the verbs layer on a real provider, soft-RoCE in the virtual machine of `hack/vm`: every
//! kind of memory, shared receive queues, datagrams, awaited completions, asynchronous events.

mod datagrams;
mod events;
mod fork;
mod memory;
mod shared_receives;
#[path = "../soft_roce/mod.rs"]
mod soft_roce;
mod waiting;
mod windows;

use std::sync::Arc;
use std::time::Duration;

use soft_roce::device;
use trackbed_rdma::verbs::*;

const PIECE: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything of one end but its queue pairs.
struct Side {
    context: Arc<Context>,
    pd: Arc<ProtectionDomain>,
    queue: CompletionQueue,
    port: LocalPort,
    pieces: Vec<Piece>,
    region: Arc<MemoryRegion>,
}

impl Side {
    fn new(device: &str) -> Side {
        let context = Context::open(device).expect("the device");
        let pd = ProtectionDomain::new(&context).expect("a protection domain");
        let (mapping, pieces) = Mapping::split(PIECE, 32).expect("memory");
        Side {
            queue: CompletionQueue::with_events(&context, 512).expect("a completion queue"),
            port: context
                .local_port(None, &GidChoice::Automatic)
                .expect("an active port"),
            region: MemoryRegion::register(&pd, mapping, Access::LocalWrite).expect("a region"),
            context,
            pd,
            pieces,
        }
    }

    fn unconnected(&self) -> UnconnectedQueuePair<Piece, Piece> {
        let mut pair = UnconnectedQueuePair::new(&self.pd, &self.queue, self.port, &config())
            .expect("a queue pair");
        pair.attach(&self.region).expect("the same domain");
        pair
    }

    fn filled(&mut self, byte: u8) -> Piece {
        let mut piece = self.pieces.pop().expect("a piece left");
        piece.fill(byte);
        piece
    }

    fn next(&mut self) -> WorkCompletion {
        let done = self.queue.wait(PATIENCE).expect("a sound queue");
        done.expect("a completion within a minute")
    }
}

fn config() -> QueuePairConfig {
    QueuePairConfig {
        send_depth: 16,
        receive_depth: 16,
        remote_writes: true,
        remote_reads: true,
        remote_atomics: true,
        ..QueuePairConfig::default()
    }
}

fn options() -> ConnectOptions {
    ConnectOptions {
        timeout: 12,
        retries: 6,
        ..ConnectOptions::default()
    }
}

type Pair = QueuePair<Piece, Piece>;

fn connected(device: &str) -> (Side, Pair, Side, Pair) {
    let (left, right) = (Side::new(device), Side::new(device));
    let (a, b) = (left.unconnected(), right.unconnected());
    let (at_a, at_b) = (a.endpoint(), b.endpoint());
    let a = a.connect(&at_b, &options()).expect("connected");
    let b = b.connect(&at_a, &options()).expect("connected");
    (left, a, right, b)
}

fn send(pair: &mut Pair, payload: Piece, bytes: u32) {
    let mut batch = pair.batch();
    batch
        .push(payload, &[Work::send(&[Segment::new(0, bytes)]).signaled()])
        .expect("room");
    batch.commit().expect("posted");
}

fn sent<R>(settled: Settled<'_, Piece, R>) -> (Result<Completion, CompletionError>, Vec<Piece>) {
    match settled {
        Settled::Sent(sent) => (*sent.outcome(), sent.collect()),
        Settled::Received(_) => panic!("a receive, not a send"),
        Settled::Stale => panic!("a stale completion"),
    }
}

fn received(settled: Settled<'_, Piece, Piece>) -> Received<Piece> {
    match settled {
        Settled::Received(received) => received,
        Settled::Sent(_) => panic!("a send, not a receive"),
        Settled::Stale => panic!("a stale completion"),
    }
}

fn whole() -> [Segment; 1] {
    [Segment::new(0, PIECE as u32)]
}

#[test]
fn the_device_tells_its_limits_and_is_held_to_them() {
    let Some(device) = device() else { return };
    let side = Side::new(&device);
    let limits = *side.context.limits();
    assert_ne!(limits.atomics, Atomics::None);
    assert!(limits.shared_receive_queues > 0);
    assert!(limits.windows_of_type_1 && limits.windows_of_type_2);
    assert!(limits.address_handles > 0 && limits.capability_flags != 0);
    let error = CompletionQueue::new(&side.context, limits.completion_queue_entries + 1);
    let error = error.expect_err("one too many");
    assert!(matches!(error, VerbsError::OverLimit { .. }), "{error}");
    // What the limit says can be had.
    let config = QueuePairConfig {
        segments: limits.segments,
        ..config()
    };
    UnconnectedQueuePair::<Piece, Piece>::new(&side.pd, &side.queue, side.port, &config)
        .expect("as many segments as it has");
}
