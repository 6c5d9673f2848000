//! Both posting interfaces, inline data, reads and atomics on a real provider: soft-RoCE in the virtual
//! machine of `hack/vm`. Elsewhere each test prints that it was skipped.

mod soft_roce;

use std::sync::Arc;
use std::time::{Duration, Instant};

use soft_roce::device;
use trackbed_rdma::verbs::{
    Access, Atomics, Completion, CompletionError, CompletionQueue, ConnectOptions, Context, Fetch,
    GidChoice, Mapping, MemoryRegion, Operation, Piece, PostingInterface, ProtectionDomain,
    QueuePair, QueuePairConfig, RemoteAccess, RemoteWindow, Segment, SendBatch, Settled, Status,
    UnconnectedQueuePair, Work, WorkCompletion,
};

const PIECE: usize = 4096;
const BOTH: [PostingInterface; 2] = [PostingInterface::Extended, PostingInterface::Classic];

struct End {
    pd: Arc<ProtectionDomain>,
    queue: CompletionQueue,
    pieces: Vec<Piece>,
    pair: QueuePair<Piece, Piece>,
}

type Batch<'q> = SendBatch<'q, Piece>;

impl End {
    /// Posts one batch and waits for the next completion: how it went, with the first payload.
    fn run(
        &mut self,
        post: impl FnOnce(&mut Batch<'_>, Piece),
    ) -> (Result<Completion, CompletionError>, Piece) {
        let mut piece = self.pieces.pop().expect("a piece left");
        piece.fill(0xee);
        let mut batch = self.pair.batch();
        post(&mut batch, piece);
        batch.commit().expect("posted");
        let done = self.next();
        let Settled::Sent(mut sent) = self.pair.settle(done) else {
            panic!("only sends were posted");
        };
        let outcome = *sent.outcome();
        (outcome, sent.next().expect("the payload"))
    }

    /// Waits for the next completion.
    fn next(&mut self) -> WorkCompletion {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(done) = self.queue.poll().expect("a sound queue") {
                return done;
            }
            assert!(Instant::now() < deadline, "no completion for a minute");
            std::thread::yield_now();
        }
    }
}

/// Two ends on the device, connected; each may do everything to the other.
fn ends(device: &str, interface: PostingInterface, inline_bytes: u32) -> (End, End) {
    let context = Context::open(device).expect("the device");
    let config = QueuePairConfig {
        send_depth: 16,
        receive_depth: 16,
        inline_bytes,
        remote_writes: true,
        remote_reads: true,
        remote_atomics: true,
        interface: Some(interface),
        ..QueuePairConfig::default()
    };
    let half = || {
        let pd = ProtectionDomain::new(&context).expect("a protection domain");
        let queue = CompletionQueue::new(&context, 64).expect("a completion queue");
        let (mapping, pieces) = Mapping::split(PIECE, 16).expect("memory");
        let region = MemoryRegion::register(&pd, mapping, Access::LocalWrite).expect("a region");
        let port = context.local_port(None, &GidChoice::Automatic);
        let mut pair: UnconnectedQueuePair<Piece, Piece> =
            UnconnectedQueuePair::new(&pd, &queue, port.expect("a port"), &config)
                .expect("a queue pair");
        assert_eq!(pair.granted().interface, interface);
        assert!(pair.granted().inline_bytes >= inline_bytes.min(64));
        pair.attach(&region).expect("the same domain");
        (pd, queue, pieces, pair)
    };
    let (left, right) = (half(), half());
    let options = ConnectOptions {
        timeout: 10,
        retries: 3,
        ..ConnectOptions::default()
    };
    let (at_left, at_right) = (left.3.endpoint(), right.3.endpoint());
    let end =
        |(pd, queue, pieces, pair): (_, _, _, UnconnectedQueuePair<Piece, Piece>), peer| End {
            pd,
            queue,
            pieces,
            pair: pair.connect(peer, &options).expect("connected"),
        };
    (end(left, &at_right), end(right, &at_left))
}

const EVERYTHING: RemoteAccess = RemoteAccess {
    write: true,
    read: true,
    atomic: true,
};

#[test]
fn writes_arrive_inline_or_not_through_either_interface() {
    let Some(device) = device() else { return };
    for interface in BOTH {
        for inline_bytes in [0, 64] {
            let (mut a, b) = ends(&device, interface, inline_bytes);
            let window = RemoteWindow::new_with(&b.pd, PIECE, EVERYTHING).expect("a window");
            let remote = window.remote();
            let shapes: [&[Segment]; 4] = [
                &[Segment::new(0, 8)],
                &[Segment::new(0, 64)],
                &[Segment::new(0, 20), Segment::new(2048, 30)],
                &[Segment::new(0, PIECE as u32)],
            ];
            for (round, segments) in (1u8..).zip(shapes) {
                let bytes: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
                let at = remote.at(0, bytes).expect("inside");
                let (outcome, piece) = a.run(|batch, mut piece| {
                    piece.fill(round);
                    let work = Work::write(at, segments).signaled();
                    batch.push(piece, &[work]).expect("room");
                });
                outcome.expect("written");
                let last = bytes as usize - 1;
                let seen = (window.byte(0), window.byte(last));
                assert_eq!(
                    seen,
                    (Some(round), Some(round)),
                    "{interface:?} {inline_bytes}"
                );
                a.pieces.push(piece);
            }
        }
    }
}

#[test]
fn a_long_run_of_small_batches_loses_nothing() {
    let Some(device) = device() else { return };
    for interface in BOTH {
        for inline_bytes in [0, 64] {
            let (mut a, b) = ends(&device, interface, inline_bytes);
            let window = RemoteWindow::new_with(&b.pd, PIECE, EVERYTHING).expect("a window");
            let at = window.remote().at(0, 8).expect("inside");
            let segments = [Segment::new(0, 8)];
            let (mut posted, mut back) = (0, 0);
            let deadline = Instant::now() + Duration::from_secs(120);
            while back < 2000 {
                let room = a.pair.send_room().min(4);
                if posted < 2000 && room > 0 && !a.pieces.is_empty() {
                    let mut batch = a.pair.batch();
                    for _ in 0..room {
                        let Some(piece) = a.pieces.pop() else { break };
                        batch
                            .push(piece, &[Work::write(at, &segments)])
                            .expect("room");
                        posted += 1;
                    }
                    batch.commit().expect("posted");
                }
                while let Some(done) = a.queue.poll().expect("a sound queue") {
                    let Settled::Sent(sent) = a.pair.settle(done) else {
                        panic!("only sends were posted");
                    };
                    sent.outcome().expect("written");
                    back += sent.work_requests();
                    a.pieces.extend(sent);
                }
                if posted >= 2000 && a.pair.outstanding().0 > 0 {
                    // What is left went unsignalled: the next signalled one brings it.
                    let Some(piece) = a.pieces.pop() else {
                        continue;
                    };
                    let mut batch = a.pair.batch();
                    let work = Work::write(at, &segments).signaled();
                    if let Err(rejected) = batch.push(piece, &[work]) {
                        a.pieces.push(rejected.payload);
                        continue;
                    }
                    batch.commit().expect("posted");
                }
                assert!(Instant::now() < deadline, "{back} of {posted} came back");
            }
        }
    }
}

#[test]
fn reads_and_atomics_bring_the_right_values_through_either_interface() {
    let Some(device) = device() else { return };
    let known = Context::open(&device).expect("the device");
    assert_ne!(
        known.limits().atomics,
        Atomics::None,
        "soft-RoCE has atomics"
    );
    for interface in BOTH {
        let (mut a, b) = ends(&device, interface, 0);
        let mut window = RemoteWindow::new_with(&b.pd, PIECE, EVERYTHING).expect("a window");
        assert!(window.copy_in(0, &[7; 100]) && window.set_word(1024, 40));
        let from = window.remote().at(0, 100).expect("inside");
        let (outcome, piece) = a.run(|batch, piece| {
            let into = [Segment::new(10, 60), Segment::new(200, 40)];
            batch.push_read(piece, from, &into).expect("room");
        });
        assert_eq!(outcome.expect("read").operation, Operation::Read);
        assert_eq!(
            [
                piece[9], piece[10], piece[69], piece[70], piece[200], piece[239], piece[240]
            ],
            [0xee, 7, 7, 0xee, 7, 7, 0xee]
        );
        let at = window.remote().at(1024, 8).expect("inside");
        let word =
            |piece: &Piece| u64::from_ne_bytes(piece[64..72].try_into().expect("eight bytes"));
        let (outcome, piece) = a.run(|batch, piece| {
            batch.push_fetch_add(piece, 64, at, 2).expect("room");
        });
        assert_eq!(outcome.expect("added").operation, Operation::FetchAdd);
        assert_eq!((word(&piece), window.word(1024)), (40, Some(42)));
        for (expected, new, there, left) in [(42, 7, 42, 7), (42, 9, 7, 7)] {
            let (outcome, piece) = a.run(|batch, piece| {
                batch
                    .push_compare_swap(piece, 64, at, expected, new)
                    .expect("room");
            });
            assert_eq!(outcome.expect("compared").operation, Operation::CompareSwap);
            assert_eq!((word(&piece), window.word(1024)), (there, Some(left)));
        }
    }
}

#[test]
fn unsignalled_reads_and_atomics_are_proven_done_by_a_later_completion() {
    let Some(device) = device() else { return };
    for interface in BOTH {
        let (mut a, b) = ends(&device, interface, 0);
        let mut window = RemoteWindow::new_with(&b.pd, PIECE, EVERYTHING).expect("a window");
        for index in 0..16 {
            assert!(window.set_word(index * 8, index as u64 + 1));
        }
        let at = |index: usize| window.remote().at(index as u64 * 8, 8).expect("inside");
        let word = |piece: &Piece| u64::from_ne_bytes(piece[..8].try_into().expect("eight bytes"));
        let segments = [Segment::new(0, 8)];
        for round in 0..20 {
            let pieces: Vec<Piece> = a.pieces.drain(..6).collect();
            let mut batch = a.pair.batch();
            for (index, piece) in pieces.into_iter().enumerate() {
                let fetch = match index {
                    4 => Fetch::fetch_add(at(0), 0, 1),
                    _ => Fetch::read(at(1 + index), &segments),
                };
                let fetch = if index == 5 { fetch.signaled() } else { fetch };
                batch.push_fetch(piece, &[fetch]).expect("room");
            }
            batch.commit().expect("posted");
            let mut back = Vec::new();
            while back.len() < 6 {
                let done = a.next();
                let Settled::Sent(mut sent) = a.pair.settle(done) else {
                    panic!("only sends were posted");
                };
                while let Some((piece, outcome)) = sent.next_outcome() {
                    outcome.expect("brought");
                    back.push(word(&piece));
                    a.pieces.push(piece);
                }
            }
            assert_eq!(back, [2, 3, 4, 5, round + 1, 7]);
        }
        // One in the middle that fails: those before it are good, those after it are not.
        let beyond = at(0).offset(PIECE as u64);
        let pieces: Vec<Piece> = a.pieces.drain(..4).collect();
        let mut batch = a.pair.batch();
        for (index, piece) in pieces.into_iter().enumerate() {
            let from = if index == 2 { beyond } else { at(1) };
            batch
                .push_fetch(piece, &[Fetch::read(from, &segments)])
                .expect("room");
        }
        batch.commit().expect("posted");
        let mut back = Vec::new();
        while back.len() < 4 {
            let done = a.next();
            let Settled::Sent(mut sent) = a.pair.settle(done) else {
                panic!("only sends were posted");
            };
            while let Some((piece, outcome)) = sent.next_outcome() {
                back.push(outcome.map(|()| word(&piece)).map_err(|error| error.status));
            }
        }
        let expected = [
            Ok(2),
            Ok(2),
            Err(Status::RemoteAccess),
            Err(Status::Flushed),
        ];
        assert_eq!(back, expected);
    }
}

#[test]
fn memory_stays_while_it_is_posted_whoever_lets_go_of_it() {
    let Some(device) = device() else { return };
    for interface in BOTH {
        let (a, b) = ends(&device, interface, 0);
        let window = RemoteWindow::new(&b.pd, PIECE).expect("a window");
        let at = window.remote().at(0, PIECE as u64).expect("inside");
        let End {
            pd,
            mut queue,
            mut pieces,
            mut pair,
        } = a;
        let whole = [Segment::new(0, PIECE as u32)];
        let mut batch = pair.batch();
        for byte in 1..=15 {
            let mut piece = pieces.pop().expect("a piece left");
            piece.fill(byte);
            let work = Work::write(at, &whole);
            let work = if byte == 15 { work.signaled() } else { work };
            batch.push(piece, &[work]).expect("room");
        }
        batch.commit().expect("posted");
        // The last handles of the region and its memory but those of the queue pair.
        drop((pieces, pd));
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut back = Vec::new();
        while back.len() < 15 {
            assert!(Instant::now() < deadline, "{} came back", back.len());
            let Some(done) = queue.poll().expect("a sound queue") else {
                std::thread::yield_now();
                continue;
            };
            let Settled::Sent(sent) = pair.settle(done) else {
                panic!("only sends were posted");
            };
            (*sent.outcome()).expect("written");
            back.extend(sent.map(|piece| piece[PIECE - 1]));
        }
        assert_eq!(back, (1..=15).collect::<Vec<u8>>());
        assert_eq!(window.byte(PIECE - 1), Some(15));
    }
}

#[test]
fn an_atomic_where_none_is_allowed_is_refused_by_the_peer() {
    let Some(device) = device() else { return };
    for interface in BOTH {
        let (mut a, b) = ends(&device, interface, 0);
        let window = RemoteWindow::new(&b.pd, PIECE).expect("a window");
        let at = window.remote().at(0, 8).expect("inside");
        let (outcome, _piece) = a.run(|batch, piece| {
            batch.push_fetch_add(piece, 0, at, 1).expect("room");
        });
        assert_eq!(outcome.expect_err("refused").status, Status::RemoteAccess);
        assert_eq!(window.byte(0), Some(0));
    }
}

#[test]
fn a_failed_queue_pair_hands_all_payloads_back_through_either_interface() {
    let Some(device) = device() else { return };
    for interface in BOTH {
        let (mut a, b) = ends(&device, interface, 0);
        let window = RemoteWindow::new_with(&b.pd, PIECE, EVERYTHING).expect("a window");
        let at = window.remote().at(0, 8).expect("inside");
        let all = a.pieces.len();
        for _ in 0..3 {
            let piece = a.pieces.pop().expect("a piece");
            let mut batch = a.pair.batch();
            let segments = [Segment::new(0, 8)];
            let work = [Work::write(at, &segments)];
            batch.push(piece, &work).expect("room");
            batch.commit().expect("posted");
        }
        a.pair.fail().expect("to the error state");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !a.pair.is_drained() {
            if let Some(done) = a.queue.poll().expect("a sound queue")
                && let Settled::Sent(sent) = a.pair.settle(done)
            {
                a.pieces.extend(sent);
            }
            assert!(Instant::now() < deadline, "not drained within a minute");
        }
        assert_eq!(a.pieces.len(), all);
    }
}
