//! Posting through both interfaces: batches, atomics, faults, and each payload back exactly once.

use std::collections::HashMap;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::sys;

const BOTH: [PostingInterface; 2] = [PostingInterface::Extended, PostingInterface::Classic];

fn through(interface: PostingInterface, depth: u32) -> QueuePairConfig {
    QueuePairConfig {
        interface: Some(interface),
        ..config(depth)
    }
}

/// Two ends on a device that has both interfaces.
fn pair(config: &QueuePairConfig) -> (Side, Pair, Side, Pair) {
    let (left, right) = (side("mock0", 64), side("mock0", 64));
    let (a, b) = (left.unconnected(config), right.unconnected(config));
    let (at_a, at_b) = (a.endpoint(), b.endpoint());
    let options = ConnectOptions::default();
    let a = a.connect(&at_b, &options).expect("connected");
    let b = b.connect(&at_a, &options).expect("connected");
    (left, a, right, b)
}

fn window(side: &Side, access: RemoteAccess) -> RemoteWindow {
    RemoteWindow::new_with(&side.pd, PIECE, access).expect("a window")
}

fn start_of(window: &RemoteWindow) -> RemoteAddress {
    window.remote().at(0, PIECE as u64).expect("inside")
}

fn post(a: &mut Pair, payload: Piece, work: &[Work<'_>]) {
    let mut batch = a.batch();
    batch.push(payload, work).expect("room");
    batch.commit().expect("posted");
}

/// How the next send ended.
fn ending(side: &mut Side, a: &mut Pair) -> Result<Completion, CompletionError> {
    let done = side.next();
    *sent(a.settle(done)).outcome()
}

#[test]
fn the_extended_interface_is_taken_where_there_is_one_unless_told_otherwise() {
    let (_left, a, _right, b) = connected(&config(2));
    let granted = [a.granted().interface, b.granted().interface];
    assert_eq!(granted, BOTH, "mock0 has it, mock1 hasn't");
    for interface in BOTH {
        let (_left, a, ..) = pair(&through(interface, 2));
        assert_eq!(a.granted().interface, interface);
    }
    let old = side("mock1", 64);
    let port = old.context.local_port(None, &GidChoice::Automatic);
    let made = UnconnectedQueuePair::<Piece, Piece>::new(
        &old.pd,
        &old.queue,
        port.expect("a port"),
        &through(PostingInterface::Extended, 2),
    );
    let error = made.err().expect("it has none").to_string();
    assert!(
        error.contains("mock1") && error.contains("ibv_wr_"),
        "{error}"
    );
}

#[test]
fn a_batch_that_the_extended_interface_refuses_comes_back_whole() {
    let (mut left, mut a, right, _b) = pair(&through(PostingInterface::Extended, 8));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = start_of(&window);
    mock::refuse_sends_after(a.qp_number(), 2, libc::EIO);
    let mut batch = a.batch();
    for byte in 1..=3 {
        let payload = left.filled(byte);
        let segments = whole();
        let work = [Work::write(at, &segments).signaled()];
        batch.push(payload, &work).expect("room");
    }
    let error = batch.commit().expect_err("refused");
    assert_eq!((error.posted, error.wanted), (0, 3));
    assert!(error.to_string().contains("ibv_wr_complete"), "{error}");
    let back: Vec<u8> = error.payloads.iter().map(|piece| piece[0]).collect();
    assert_eq!(back, [1, 2, 3]);
    assert!(a.is_drained());
    assert_eq!(window.byte(0), Some(0), "nothing was written");
    post(
        &mut a,
        left.filled(4),
        &[Work::write(at, &whole()).signaled()],
    );
    ending(&mut left, &mut a).expect("the next batch is posted as ever");
    assert_eq!(window.byte(0), Some(4));
}

#[test]
fn a_batch_that_is_forgotten_posts_nothing_and_blocks_nothing() {
    for interface in BOTH {
        let (mut left, mut a, right, _b) = pair(&through(interface, 8));
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let at = start_of(&window);
        let mut batch = a.batch();
        let segments = whole();
        let work = [Work::write(at, &segments).signaled()];
        batch.push(left.filled(1), &work).expect("room");
        std::mem::forget(batch);
        assert_eq!(window.byte(0), Some(0));
        post(&mut a, left.filled(2), &work);
        let done = left.next();
        let back: Vec<u8> = sent(a.settle(done)).map(|piece| piece[0]).collect();
        assert_eq!(
            (back.as_slice(), window.byte(0)),
            ([1, 2].as_slice(), Some(2))
        );
        assert!(left.queue.poll().expect("sound").is_none());
        std::mem::forget(a.batch());
        a.fail().expect("to the error state");
        assert!(a.is_drained());
    }
}

#[test]
fn atomics_change_the_peers_word_and_bring_back_what_was_there() {
    for interface in BOTH {
        let (mut left, mut a, right, _b) = pair(&QueuePairConfig {
            remote_atomics: true,
            ..through(interface, 4)
        });
        let mut window = window(
            &right,
            RemoteAccess {
                atomic: true,
                ..RemoteAccess::default()
            },
        );
        assert!(window.set_word(8, 40));
        let at = window.remote().at(8, 8).expect("inside");
        let mut run = |post: &mut dyn FnMut(&mut SendBatch<'_, Piece>, Piece)| {
            let mut batch = a.batch();
            post(&mut batch, left.filled(0xff));
            batch.commit().expect("posted");
            let done = left.next();
            let mut sent = sent(a.settle(done));
            let operation = sent.outcome().expect("done").operation;
            let piece = sent.next().expect("the payload");
            let word = piece[16..24].try_into().expect("eight bytes");
            assert_eq!((piece[15], piece[24]), (0xff, 0xff), "eight bytes, no more");
            (operation, u64::from_ne_bytes(word))
        };
        let added = run(&mut |batch, piece| {
            batch.push_fetch_add(piece, 16, at, 2).expect("room");
        });
        assert_eq!(
            (added, window.word(8)),
            ((Operation::FetchAdd, 40), Some(42))
        );
        let swapped = run(&mut |batch, piece| {
            batch.push_compare_swap(piece, 16, at, 42, 7).expect("room");
        });
        assert_eq!(
            (swapped, window.word(8)),
            ((Operation::CompareSwap, 42), Some(7))
        );
        let kept = run(&mut |batch, piece| {
            batch.push_compare_swap(piece, 16, at, 42, 9).expect("room");
        });
        assert_eq!(
            (kept, window.word(8)),
            ((Operation::CompareSwap, 7), Some(7))
        );
    }
}

#[test]
fn what_an_atomic_or_a_read_lacks_is_said_before_it_is_posted() {
    let (mut left, mut a, _right, _b) = pair(&config(4));
    let odd = RemoteAddress {
        address: 4097,
        rkey: 1,
    };
    let mut batch = a.batch();
    let rejected = batch
        .push_fetch_add(left.filled(1), 0, odd, 1)
        .expect_err("unaligned");
    assert_eq!(rejected.reason, Rejection::Unaligned { address: 4097 });
    let even = odd.offset(7);
    let beyond = batch
        .push_compare_swap(left.filled(1), PIECE as u32 - 7, even, 0, 1)
        .expect_err("past the end of the payload");
    assert!(matches!(beyond.reason, Rejection::OutsidePayload { .. }));
    drop(batch);

    let mut plain = side("mock2", 64);
    let a = plain.unconnected(&config(4));
    let to_itself = a.endpoint();
    let options = ConnectOptions::default();
    let mut a = a.connect(&to_itself, &options).expect("connected");
    let (first, second) = (plain.filled(1), plain.filled(2));
    let mut batch = a.batch();
    let none = batch.push_fetch_add(first, 0, even, 1).expect_err("none");
    assert_eq!(none.reason, Rejection::NoAtomics);
    let none = batch.push_read(second, even, &whole()).expect_err("none");
    assert_eq!(none.reason, Rejection::NoReads);
    let port = plain.context.local_port(None, &GidChoice::Automatic);
    let offered = UnconnectedQueuePair::<Piece, Piece>::new(
        &plain.pd,
        &plain.queue,
        port.expect("a port"),
        &QueuePairConfig {
            remote_atomics: true,
            ..config(1)
        },
    );
    assert!(matches!(offered.err(), Some(VerbsError::Lacking { .. })));
}

#[test]
fn a_queue_pair_lets_its_peer_do_what_it_was_told_and_no_more() {
    let all = RemoteAccess {
        write: true,
        read: true,
        atomic: true,
    };
    for interface in BOTH {
        for (reads, atomics) in [(false, false), (true, false), (false, true)] {
            let given = QueuePairConfig {
                remote_reads: reads,
                remote_atomics: atomics,
                ..through(interface, 4)
            };
            let refused = Err(Status::RemoteAccess);
            let (mut left, mut a, right, _b) = pair(&given);
            let kept = window(&right, all);
            let at = start_of(&kept);
            let mut batch = a.batch();
            batch.push_read(left.filled(1), at, &whole()).expect("room");
            batch.commit().expect("posted");
            let read = ending(&mut left, &mut a);
            let read = read.map(drop).map_err(|error| error.status);
            assert_eq!(read, if reads { Ok(()) } else { refused });

            let (mut left, mut a, right, _b) = pair(&given);
            let kept = window(&right, all);
            let mut batch = a.batch();
            let at = start_of(&kept);
            batch
                .push_fetch_add(left.filled(1), 0, at, 1)
                .expect("room");
            batch.commit().expect("posted");
            let added = ending(&mut left, &mut a);
            let added = added.map(drop).map_err(|error| error.status);
            assert_eq!(added, if atomics { Ok(()) } else { refused });
        }
    }
}

#[test]
fn short_messages_are_copied_when_posted_and_need_no_key() {
    for interface in BOTH {
        let (mut left, mut a, right, _b) = pair(&QueuePairConfig {
            inline_bytes: 64,
            ..through(interface, 8)
        });
        assert_eq!(a.granted().inline_bytes, 64);
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let at = start_of(&window);
        let one = [Segment::new(0, 64)];
        let two = [Segment::new(0, 16), Segment::new(100, 48)];
        let long = [Segment::new(0, 65)];
        for (byte, segments) in [(1, &one[..]), (2, &two[..]), (3, &long[..])] {
            let payload = left.filled(byte);
            post(&mut a, payload, &[Work::write(at, segments).signaled()]);
            ending(&mut left, &mut a).expect("written");
            assert_eq!((window.byte(0), window.byte(63)), (Some(byte), Some(byte)));
        }
        assert_eq!((window.byte(64), window.byte(65)), (Some(3), Some(0)));
    }
}

#[test]
fn a_completion_that_comes_twice_counts_once() {
    for interface in BOTH {
        let (mut left, mut a, right, _b) = pair(&through(interface, 4));
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let at = start_of(&window);
        mock::complete_twice(a.qp_number());
        post(
            &mut a,
            left.filled(1),
            &[Work::write(at, &whole()).signaled()],
        );
        let done = left.next();
        assert_eq!(sent(a.settle(done)).count(), 1);
        post(
            &mut a,
            left.filled(2),
            &[Work::write(at, &whole()).signaled()],
        );
        let again = left.next();
        assert!(matches!(a.settle(again), Settled::Stale));
        let done = left.next();
        let back: Vec<u8> = sent(a.settle(done)).map(|piece| piece[0]).collect();
        assert_eq!(back, [2]);
    }
}

#[test]
fn a_slot_used_again_is_not_freed_by_its_earlier_request() {
    let (mut left, mut a, right, _b) = pair(&config(2));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = start_of(&window);
    let mut old = Vec::new();
    for byte in 0..100 {
        mock::complete_twice(a.qp_number());
        post(
            &mut a,
            left.filled(byte),
            &[Work::write(at, &whole()).signaled()],
        );
        let done = left.next();
        left.pieces.extend(sent(a.settle(done)));
        old.push(left.next());
    }
    mock::hold(a.qp_number());
    post(
        &mut a,
        left.filled(1),
        &[Work::write(at, &whole()).signaled()],
    );
    for late in old {
        assert!(matches!(a.settle(late), Settled::Stale));
    }
    assert_eq!(a.outstanding().0, 1);
}

#[test]
fn an_overrun_queue_says_what_to_do() {
    let (mut left, mut a, right, _b) = pair(&config(4));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = start_of(&window);
    post(
        &mut a,
        left.filled(1),
        &[Work::write(at, &whole()).signaled()],
    );
    mock::overrun(a.qp_number());
    let error = left
        .queue
        .poll()
        .expect_err("completions are lost")
        .to_string();
    assert!(error.contains("ibv_poll_cq on mock0"), "{error}");
    assert!(
        error.contains("overran") && error.contains("connect anew"),
        "{error}"
    );
}

#[test]
fn a_failed_request_names_verb_object_status_vendor_code_and_meaning() {
    for (status, expected, means) in [
        (sys::IBV_WC_REM_ACCESS_ERR, Status::RemoteAccess, "rkey"),
        (
            sys::IBV_WC_RNR_RETRY_EXC_ERR,
            Status::ReceiverNotReady,
            "no receive posted",
        ),
        (
            sys::IBV_WC_RETRY_EXC_ERR,
            Status::RetryExceeded,
            "doesn't answer",
        ),
        (
            sys::IBV_WC_LOC_PROT_ERR,
            Status::LocalProtection,
            "registered region",
        ),
        (
            sys::IBV_WC_REM_INV_REQ_ERR,
            Status::RemoteInvalidRequest,
            "refused",
        ),
        (sys::IBV_WC_GENERAL_ERR, Status::General, "driver"),
        (sys::IBV_WC_MW_BIND_ERR, Status::WindowBind, "memory window"),
    ] {
        let (mut left, mut a, right, _b) = pair(&config(4));
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let at = start_of(&window);
        mock::fail_next(a.qp_number(), status);
        post(&mut a, left.filled(1), &[Work::write(at, &whole())]);
        let error = ending(&mut left, &mut a).expect_err("made to fail");
        assert_eq!(error.status, expected);
        let text = error.to_string();
        let object = format!("queue pair {}", a.qp_number());
        for part in [object.as_str(), "ibv_poll_cq", "vendor code 0x", means] {
            assert!(text.contains(part), "{part:?} is missing in: {text}");
        }
    }
}

#[test]
fn what_is_posted_after_a_failure_comes_back_flushed_and_in_order() {
    for interface in BOTH {
        let (mut left, mut a, right, _b) = pair(&through(interface, 8));
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let at = start_of(&window);
        mock::fail_next(a.qp_number(), sys::IBV_WC_RETRY_EXC_ERR);
        post(&mut a, left.filled(0), &[Work::write(at, &whole())]);
        for byte in 1..=3 {
            post(&mut a, left.filled(byte), &[Work::write(at, &whole())]);
        }
        let mut order = Vec::new();
        for _ in 0..4 {
            let done = left.next();
            let sent = sent(a.settle(done));
            let status = sent.outcome().expect_err("failed").status;
            order.extend(sent.map(|piece| (piece[0], status)));
        }
        let (first, rest) = (Status::RetryExceeded, Status::Flushed);
        assert_eq!(order, [(0, first), (1, rest), (2, rest), (3, rest)]);
        assert_eq!(window.byte(0), Some(0));
        a.fail().expect("to the error state");
        let mut batch = a.batch();
        let rejected = batch
            .push(left.filled(4), &[Work::write(at, &whole())])
            .expect_err("shut");
        assert_eq!(rejected.reason, Rejection::QueueFull { room: 0, wanted: 1 });
    }
}

#[test]
fn an_address_outside_the_peers_memory_changes_nothing_whatever_the_verb() {
    let all = RemoteAccess {
        write: true,
        read: true,
        atomic: true,
    };
    for interface in BOTH {
        for verb in 0..3 {
            for offset in [PIECE as u64, PIECE as u64 * 1000, 8u64.wrapping_neg()] {
                let (mut left, mut a, right, _b) = pair(&QueuePairConfig {
                    remote_reads: true,
                    remote_atomics: true,
                    ..through(interface, 4)
                });
                let kept = window(&right, all);
                let at = start_of(&kept).offset(offset);
                let payload = left.filled(9);
                let segments = [Segment::new(0, 8)];
                let mut batch = a.batch();
                match verb {
                    0 => batch.push(payload, &[Work::write(at, &segments).signaled()]),
                    1 => batch.push_read(payload, at, &segments),
                    _ => batch.push_fetch_add(payload, 0, at, 1),
                }
                .expect("nobody here knows the peer's bounds");
                batch.commit().expect("posted");
                let done = left.next();
                let mut sent = sent(a.settle(done));
                let (payload, outcome) = sent.next_outcome().expect("the payload");
                let status = outcome.expect_err("refused").status;
                assert_eq!(status, Status::RemoteAccess);
                assert_eq!(payload[..8], [9; 8], "nothing was brought");
                assert_eq!(kept.word(0), Some(0));
            }
        }
    }
}

#[test]
fn a_region_stays_registered_while_it_is_posted_from() {
    for interface in BOTH {
        let (mut left, mut a, right, _b) = pair(&through(interface, 4));
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        mock::hold(a.qp_number());
        let payload = left.filled(5);
        let at = start_of(&window);
        post(&mut a, payload, &[Work::write(at, &whole()).signaled()]);
        let Side {
            region,
            pieces,
            mut queue,
            ..
        } = left;
        let watched = Arc::downgrade(&region);
        drop((region, pieces));
        mock::release(a.qp_number());
        let done = queue.poll().expect("sound").expect("a completion");
        sent(a.settle(done)).outcome().expect("written");
        assert_eq!(window.byte(PIECE - 1), Some(5));
        drop(a);
        assert!(
            watched.upgrade().is_none(),
            "and is let go with the queue pair"
        );
    }
}

/// A payload that tells when it is dropped.
struct Told {
    piece: Piece,
    id: usize,
    dropped: Arc<Mutex<HashMap<usize, u32>>>,
}

impl Drop for Told {
    fn drop(&mut self) {
        let mut dropped = self.dropped.lock().expect("one thread");
        *dropped.entry(self.id).or_default() += 1;
    }
}

// SAFETY: the piece's own promises.
unsafe impl Source for Told {
    fn as_ptr(&self) -> *const u8 {
        Source::as_ptr(&self.piece)
    }
    fn len(&self) -> usize {
        Source::len(&self.piece)
    }
}
// SAFETY: as above.
unsafe impl Sink for Told {}

/// What is done with a batch of payloads, each with so many writes, some signalled.
#[derive(Debug, Clone)]
struct Step {
    payloads: Vec<(usize, bool)>,
    ending: Ending,
    settle: usize,
    fault: Option<Fault>,
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    Commit,
    Drop,
    Forget,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Hold,
    Release,
    RefuseAfter(u32),
    Twice,
    Fail,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ending = prop_oneof![
        8 => Just(Ending::Commit),
        1 => Just(Ending::Drop),
        1 => Just(Ending::Forget),
    ];
    let fault = prop_oneof![
        6 => Just(None),
        1 => Just(Some(Fault::Hold)),
        2 => Just(Some(Fault::Release)),
        1 => (0u32..6).prop_map(|taken| Some(Fault::RefuseAfter(taken))),
        1 => Just(Some(Fault::Twice)),
        1 => Just(Some(Fault::Fail)),
    ];
    let payloads = proptest::collection::vec((1usize..4, any::<bool>()), 0..4);
    let step =
        (payloads, ending, 0usize..6, fault).prop_map(|(payloads, ending, settle, fault)| Step {
            payloads,
            ending,
            settle,
            fault,
        });
    proptest::collection::vec(step, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whatever is posted, dropped, forgotten, refused, doubled or failed, on either interface.
    #[test]
    fn every_payload_comes_back_exactly_once(steps in steps(), classic in any::<bool>(), depth in 1u32..10) {
        let interface = BOTH[usize::from(classic)];
        let (mut left, right) = (side("mock0", 64), side("mock0", 64));
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let at = start_of(&window);
        let port = left.context.local_port(None, &GidChoice::Automatic).expect("a port");
        let made: UnconnectedQueuePair<Told, Piece> =
            UnconnectedQueuePair::new(&left.pd, &left.queue, port, &through(interface, depth))
                .expect("a queue pair");
        let b = right.unconnected(&config(depth));
        let (at_a, at_b) = (made.endpoint(), b.endpoint());
        let mut a = made.connect(&at_b, &ConnectOptions::default()).expect("connected");
        let _b = b.connect(&at_a, &ConnectOptions::default()).expect("connected");
        a.attach(&left.region).expect("the same domain");
        let dropped = Arc::new(Mutex::new(HashMap::new()));
        let mut free: Vec<Told> = std::mem::take(&mut left.pieces)
            .into_iter()
            .enumerate()
            .map(|(id, piece)| Told { piece, id, dropped: Arc::clone(&dropped) })
            .collect();
        let all = free.len();
        for step in steps {
            match step.fault {
                Some(Fault::Hold) => mock::hold(a.qp_number()),
                Some(Fault::Release) => mock::release(a.qp_number()),
                Some(Fault::RefuseAfter(taken)) => {
                    mock::refuse_sends_after(a.qp_number(), taken, libc::EIO);
                }
                Some(Fault::Twice) => mock::complete_twice(a.qp_number()),
                Some(Fault::Fail) => mock::fail_next(a.qp_number(), sys::IBV_WC_RETRY_EXC_ERR),
                None => {}
            }
            let mut batch = a.batch();
            for (writes, signaled) in step.payloads {
                let Some(payload) = free.pop() else { break };
                let segments = whole();
                let work = Work::write(at, &segments);
                let work = if signaled { work.signaled() } else { work };
                if let Err(rejected) = batch.push(payload, &vec![work; writes]) {
                    free.push(rejected.payload);
                }
            }
            match step.ending {
                Ending::Commit => {
                    if let Err(error) = batch.commit() {
                        free.extend(error.payloads);
                    }
                }
                Ending::Drop => drop(batch),
                Ending::Forget => std::mem::forget(batch),
            }
            for _ in 0..step.settle {
                let Some(done) = left.queue.poll().expect("sound") else { break };
                if let Settled::Sent(sent) = a.settle(done) {
                    free.extend(sent);
                }
            }
        }
        mock::release(a.qp_number());
        // Nothing refuses the marker.
        mock::refuse_sends_after(a.qp_number(), u32::MAX, 0);
        a.fail().expect("to the error state");
        while let Some(done) = left.queue.poll().expect("sound") {
            if let Settled::Sent(sent) = a.settle(done) {
                free.extend(sent);
            }
        }
        prop_assert!(a.is_drained());
        let before: u32 = dropped.lock().expect("one thread").values().sum();
        prop_assert_eq!(free.len() + before as usize, all);
        drop(free);
        drop(a);
        let dropped = dropped.lock().expect("one thread");
        prop_assert_eq!(dropped.len(), all);
        prop_assert!(dropped.values().all(|times| *times == 1), "{dropped:?}");
    }
}
