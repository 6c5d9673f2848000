//! What a remote end that refuses, is not ready or is gone gives, and what comes back then.

use super::*;

#[test]
fn a_wrong_rkey_fails_both_ends_and_flushes_the_rest_in_order() {
    let (mut left, mut a, mut right, mut b) = connected(&config(4));
    b.post_receive(right.pieces.pop().expect("a piece"), &whole())
        .expect("posted");
    mock::hold(a.qp_number());
    let wrong = RemoteAddress {
        address: 4096,
        rkey: 1,
    };
    for byte in 1..=3 {
        let payload = left.filled(byte);
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::write(wrong, &whole()).signaled()])
            .expect("room");
        batch.commit().expect("posted");
    }
    mock::release(a.qp_number());
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let done = left.next();
        let sent = sent(a.settle(done));
        let error = (*sent.outcome()).expect_err("a failure");
        statuses.push(error.status);
        assert_eq!(error.queue, Queue::Send);
        assert!(!error.to_string().is_empty());
        left.pieces.extend(sent);
    }
    assert_eq!(
        statuses,
        [Status::RemoteAccess, Status::Flushed, Status::Flushed]
    );
    assert_eq!(left.pieces.len(), 8);
    let flushed = received(b.settle(right.next()));
    assert_eq!(
        flushed.outcome.expect_err("a failure").status,
        Status::Flushed
    );
    assert_eq!(a.state().expect("asked"), QueuePairState::Error);
    assert_eq!(b.state().expect("asked"), QueuePairState::Error);
}

#[test]
fn a_peer_cannot_write_where_the_queue_pair_or_the_region_forbids_it() {
    for remote_writes in [false, true] {
        let (mut left, mut a, right, _b) = connected(&QueuePairConfig {
            remote_writes,
            ..config(4)
        });
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let mut at = window.remote().at(0, PIECE as u64).expect("inside");
        if remote_writes {
            // The window's key, but an address beyond it.
            at = at.offset(1);
        }
        assert_eq!(right.region.remote(), None);
        let payload = left.filled(1);
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::write(at, &whole()).signaled()])
            .expect("room");
        batch.commit().expect("posted");
        let done = left.next();
        let sent = sent(a.settle(done));
        assert_eq!(
            (*sent.outcome()).expect_err("refused").status,
            Status::RemoteAccess
        );
        assert_eq!(window.byte(0), Some(0));
    }
}

#[test]
fn a_receiver_that_is_not_ready_and_a_peer_that_is_gone_are_told_apart() {
    let (mut left, mut a, _right, b) = connected(&config(4));
    let payload = left.filled(1);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    let done = left.next();
    assert_eq!(
        (*sent(a.settle(done)).outcome())
            .expect_err("not ready")
            .status,
        Status::ReceiverNotReady
    );

    drop((a, b));
    let (mut left, mut a, _right, b) = connected(&config(4));
    drop(b);
    let payload = left.filled(1);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    let done = left.next();
    assert_eq!(
        (*sent(a.settle(done)).outcome()).expect_err("gone").status,
        Status::RetryExceeded
    );
}

#[test]
fn a_failed_queue_pair_gives_all_buffers_back_even_those_sent_unsignalled() {
    let (mut left, mut a, right, _b) = connected(&config(8));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = window.remote().at(0, PIECE as u64).expect("inside");
    for byte in 0..2 {
        let receive = left.filled(byte);
        a.post_receive(receive, &whole()).expect("posted");
        let payload = left.filled(byte);
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::write(at, &whole())])
            .expect("room");
        batch.commit().expect("posted");
    }
    assert!(left.queue.poll().expect("sound").is_none());
    a.fail().expect("to the error state");
    a.fail().expect("again does nothing");
    assert_eq!(a.send_room(), 0);
    while let Some(done) = left.queue.poll().expect("sound") {
        match a.settle(done) {
            Settled::Sent(sent) => left.pieces.extend(sent),
            Settled::Received(received) => left.pieces.push(received.payload),
            Settled::Stale => panic!("nothing stale here"),
        }
    }
    assert!(a.is_drained());
    assert_eq!(left.pieces.len(), 8);
}
