//! Reads and atomics without completions of their own: when their results may be looked at.

use proptest::prelude::*;

use super::*;
use crate::sys;

const BOTH: [PostingInterface; 2] = [PostingInterface::Extended, PostingInterface::Classic];

/// Two ends whose window holds, at word `n`, the number `n + 1`.
fn ends(interface: PostingInterface, depth: u32) -> (Side, Pair, Side, Pair, RemoteWindow) {
    let config = QueuePairConfig {
        interface: Some(interface),
        remote_reads: true,
        remote_atomics: true,
        ..config(depth)
    };
    let (left, right) = (side("mock0", 64), side("mock0", 64));
    let (a, b) = (left.unconnected(&config), right.unconnected(&config));
    let (at_a, at_b) = (a.endpoint(), b.endpoint());
    let options = ConnectOptions::default();
    let a = a.connect(&at_b, &options).expect("connected");
    let b = b.connect(&at_a, &options).expect("connected");
    let access = RemoteAccess {
        write: true,
        read: true,
        atomic: true,
    };
    let mut window = RemoteWindow::new_with(&right.pd, PIECE, access).expect("a window");
    for word in 0..PIECE / 8 {
        assert!(window.set_word(word * 8, word as u64 + 1));
    }
    (left, a, right, b, window)
}

fn word(piece: &Piece, index: usize) -> u64 {
    u64::from_ne_bytes(piece[index * 8..][..8].try_into().expect("eight bytes"))
}

#[test]
fn results_of_unsignalled_reads_and_atomics_come_with_a_later_completion() {
    for interface in BOTH {
        let (mut left, mut a, _right, _b, window) = ends(interface, 16);
        let at = |offset| window.remote().at(offset, 8).expect("inside");
        let segments = [Segment::new(0, 8)];
        let (first, second, third) = (left.filled(0), left.filled(0), left.filled(0));
        let mut batch = a.batch();
        batch
            .push_fetch(first, &[Fetch::read(at(80), &segments)])
            .expect("room");
        batch
            .push_fetch(second, &[Fetch::fetch_add(at(0), 0, 41)])
            .expect("room");
        // Several of one payload, the last of which is signalled.
        let swap = Fetch::compare_swap(at(0), 0, 42, 7);
        let read = [Segment::new(8, 8)];
        let read = Fetch::read(at(16), &read).fenced().signaled();
        batch.push_fetch(third, &[swap, read]).expect("room");
        assert_eq!(batch.commit().expect("posted"), 4);
        let done = left.next();
        assert!(left.queue.poll().expect("sound").is_none(), "one for all");
        let mut sent = sent(a.settle(done));
        let mut back = Vec::new();
        while let Some((piece, outcome)) = sent.next_outcome() {
            outcome.expect("done");
            back.push((word(&piece, 0), word(&piece, 1)));
        }
        assert_eq!(back, [(11, 0), (1, 0), (42, 3)]);
        assert_eq!(window.word(0), Some(7));
    }
}

#[test]
fn an_unsignalled_read_that_fails_is_told_from_those_before_it_and_after() {
    for interface in BOTH {
        let (mut left, mut a, _right, _b, window) = ends(interface, 16);
        let remote = window.remote();
        let good = remote.at(8, 8).expect("inside");
        let segments = [Segment::new(0, 8)];
        let beyond = remote.at(0, 8).expect("inside").offset(PIECE as u64);
        let pieces: Vec<Piece> = (1..=4).map(|_| left.filled(0xff)).collect();
        mock::hold(a.qp_number());
        for (index, piece) in pieces.into_iter().enumerate() {
            let from = if index == 2 { beyond } else { good };
            let mut batch = a.batch();
            batch
                .push_fetch(piece, &[Fetch::read(from, &segments)])
                .expect("room");
            batch.commit().expect("posted");
        }
        mock::release(a.qp_number());
        let mut back = Vec::new();
        while let Some(done) = left.queue.poll().expect("sound") {
            let mut sent = sent(a.settle(done));
            while let Some((piece, outcome)) = sent.next_outcome() {
                let outcome = outcome.map_err(|error| error.status);
                back.push((word(&piece, 0), outcome));
            }
        }
        let expected = [
            (2, Ok(())),
            (2, Ok(())),
            (u64::MAX, Err(Status::RemoteAccess)),
            (u64::MAX, Err(Status::Flushed)),
        ];
        assert_eq!(back, expected);
    }
}

#[test]
fn what_a_device_forgot_to_flush_is_not_taken_for_a_success() {
    let (mut left, mut a, _right, _b, window) = ends(PostingInterface::Extended, 16);
    let at = window.remote().at(8, 8).expect("inside");
    let segments = [Segment::new(0, 8)];
    mock::hold(a.qp_number());
    for _ in 0..3 {
        let piece = left.filled(0xff);
        let mut batch = a.batch();
        batch
            .push_fetch(piece, &[Fetch::read(at, &segments)])
            .expect("room");
        batch.commit().expect("posted");
    }
    mock::fail_next(a.qp_number(), sys::IBV_WC_RETRY_EXC_ERR);
    mock::release(a.qp_number());
    let failed = left.next();
    let _lost = left.next();
    let last = left.next();
    let mut statuses = Vec::new();
    for done in [failed, last] {
        let mut sent = sent(a.settle(done));
        while let Some((_, outcome)) = sent.next_outcome() {
            statuses.push(outcome.expect_err("not carried out").status);
        }
    }
    let rest = Status::Flushed;
    assert_eq!(statuses, [Status::RetryExceeded, rest, rest]);
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Read,
    Add,
    Swap,
    Write,
}

#[derive(Debug, Clone)]
enum Step {
    /// Payloads, each with work requests of one kind, of which the last may be signalled.
    Post(Vec<(Kind, usize, bool)>),
    Settle(usize),
    Hold,
    Release,
    FailNext,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        Just(Kind::Read),
        Just(Kind::Add),
        Just(Kind::Swap),
        Just(Kind::Write)
    ];
    let payload = (kind, 1usize..4, prop::bool::weighted(0.3));
    let step = prop_oneof![
        8 => proptest::collection::vec(payload, 1..4).prop_map(Step::Post),
        6 => (0usize..5).prop_map(Step::Settle),
        1 => Just(Step::Hold),
        2 => Just(Step::Release),
        1 => Just(Step::FailNext),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whichever are signalled, whatever fails, and whenever the queue pair is shut.
    #[test]
    fn a_payload_said_to_be_good_holds_what_the_peer_had_and_each_comes_back_once(
        steps in steps(), classic in any::<bool>(), depth in 2u32..12,
    ) {
        let (mut left, mut a, _right, _b, window) = ends(BOTH[usize::from(classic)], depth);
        let remote = window.remote();
        let mut free = std::mem::take(&mut left.pieces);
        let all = free.len();
        // What is posted, in order: its kind.
        let mut posted = std::collections::VecDeque::new();
        // Additions that are known to be done; no more than are posted took place.
        let (mut added, mut tried) = (0u64, 0u64);
        let mut failed = false;
        let mut settle = |a: &mut Pair, queue: &mut CompletionQueue, free: &mut Vec<Piece>,
                          posted: &mut std::collections::VecDeque<(Kind, usize)>| {
            let Some(done) = queue.poll().expect("sound") else { return Ok(false) };
            let Settled::Sent(mut sent) = a.settle(done) else { return Ok(true) };
            while let Some((piece, outcome)) = sent.next_outcome() {
                let (kind, requests) = posted.pop_front().expect("posted");
                if outcome.is_ok() {
                    prop_assert!(!failed, "nothing succeeds after a failure");
                    for index in 0..requests {
                        let found = word(&piece, index);
                        match kind {
                            Kind::Read => prop_assert_eq!(found, index as u64 + 2),
                            Kind::Add => {
                                prop_assert_eq!(found, added + 1);
                                added += 1;
                            }
                            Kind::Swap => prop_assert_eq!(found, 501),
                            Kind::Write => prop_assert_eq!(found, u64::MAX),
                        }
                    }
                } else {
                    failed = true;
                }
                free.push(piece);
            }
            Ok(true)
        };
        for step in steps {
            match step {
                Step::Post(payloads) => {
                    let mut batch = a.batch();
                    let mut inside = Vec::new();
                    for (kind, requests, signaled) in payloads {
                        let Some(mut piece) = free.pop() else { break };
                        piece.fill(0xff);
                        let places: Vec<[Segment; 1]> =
                            (0..requests as u32).map(|index| [Segment::new(index * 8, 8)]).collect();
                        let at = |word: usize| remote.at(word as u64 * 8, 8).expect("inside");
                        let pushed = if let Kind::Write = kind {
                            let work: Vec<Work<'_>> = (0..requests)
                                .map(|index| Work::write(at(400 + index), &places[index]))
                                .map(|work| if signaled { work.signaled() } else { work })
                                .collect();
                            batch.push(piece, &work)
                        } else {
                            let fetches: Vec<Fetch<'_>> = (0..requests)
                                .map(|index| match kind {
                                    Kind::Read => Fetch::read(at(1 + index), &places[index]),
                                    Kind::Add => Fetch::fetch_add(at(0), index as u32 * 8, 1),
                                    // It never finds what it expects.
                                    _ => Fetch::compare_swap(at(500), index as u32 * 8, 0, 1),
                                })
                                .enumerate()
                                .map(|(index, fetch)| {
                                    if signaled && index + 1 == requests { fetch.signaled() } else { fetch }
                                })
                                .collect();
                            batch.push_fetch(piece, &fetches)
                        };
                        match pushed {
                            Ok(()) => inside.push((kind, requests)),
                            Err(rejected) => free.push(rejected.payload),
                        }
                    }
                    batch.commit().expect("nothing refuses it");
                    for (kind, requests) in inside {
                        if let Kind::Add = kind {
                            tried += requests as u64;
                        }
                        posted.push_back((kind, requests));
                    }
                }
                Step::Settle(count) => {
                    for _ in 0..count {
                        if !settle(&mut a, &mut left.queue, &mut free, &mut posted)? { break }
                    }
                }
                Step::Hold => mock::hold(a.qp_number()),
                Step::Release => mock::release(a.qp_number()),
                Step::FailNext => mock::fail_next(a.qp_number(), sys::IBV_WC_RETRY_EXC_ERR),
            }
        }
        a.fail().expect("to the error state");
        while settle(&mut a, &mut left.queue, &mut free, &mut posted)? {}
        prop_assert!(a.is_drained());
        prop_assert_eq!(free.len(), all);
        prop_assert!(posted.is_empty());
        let count = window.word(0).expect("inside") - 1;
        prop_assert!(added <= count && count <= tried, "{added} {count} {tried}");
    }
}
