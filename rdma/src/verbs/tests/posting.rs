//! Posting through both interfaces: batches, atomics, faults, and each payload back exactly once.

mod faults;
mod payloads;

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
