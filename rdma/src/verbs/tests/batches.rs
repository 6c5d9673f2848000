//! Queues that are full and batches that are posted in part or not at all.

use super::*;

#[test]
fn a_full_queue_gives_the_payload_back() {
    let (mut left, mut a, _right, _b) = connected(&config(2));
    mock::hold(a.qp_number());
    let at = RemoteAddress {
        address: 0,
        rkey: 0,
    };
    for _ in 0..2 {
        let payload = left.filled(0);
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::write(at, &whole())])
            .expect("room");
        batch.commit().expect("posted");
    }
    let payload = left.filled(3);
    let mut batch = a.batch();
    let rejected = batch
        .push(payload, &[Work::write(at, &whole())])
        .expect_err("full");
    assert_eq!(rejected.reason, Rejection::QueueFull { room: 0, wanted: 1 });
    assert_eq!(rejected.payload[0], 3);
}

#[test]
fn a_batch_that_is_dropped_posts_nothing() {
    let (mut left, mut a, _right, _b) = connected(&config(4));
    let payload = left.filled(1);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    assert_eq!(batch.len(), 1);
    drop(batch);
    assert!(left.queue.poll().expect("sound").is_none());
    assert!(a.is_drained());
}

#[test]
fn a_batch_taken_in_part_keeps_what_the_adapter_has_and_returns_the_rest() {
    let (mut left, mut a, right, _b) = connected(&QueuePairConfig {
        interface: Some(PostingInterface::Classic),
        ..config(8)
    });
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    mock::refuse_sends_after(a.qp_number(), 3, libc::EIO);
    let segments = whole();
    let two = [
        Work::write(at, &segments),
        Work::write(at, &segments).signaled(),
    ];
    let payloads: Vec<Piece> = (1..=3).map(|byte| left.filled(byte)).collect();
    let mut batch = a.batch();
    for payload in payloads {
        batch.push(payload, &two).expect("room");
    }
    let error = batch.commit().expect_err("refused in part");
    assert_eq!((error.posted, error.wanted), (3, 6));
    assert_eq!(error.source.raw_os_error(), Some(libc::EIO));
    // Of the second payload one write was posted: only the third is ours again.
    let back: Vec<u8> = error.payloads.iter().map(|piece| piece[0]).collect();
    assert_eq!(back, [3]);
    assert_eq!(a.outstanding().0, 3);
    let done = left.next();
    let first: Vec<u8> = sent(a.settle(done)).map(|piece| piece[0]).collect();
    assert_eq!(first, [1]);
    a.fail().expect("to the error state");
    let done = left.next();
    let second: Vec<u8> = sent(a.settle(done)).map(|piece| piece[0]).collect();
    assert_eq!(second, [2]);
    assert!(a.is_drained());
}
